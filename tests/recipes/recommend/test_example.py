"""Tests of the committed example, on small data with a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penchant.config.run import load_section
from penchant.data.reading import read_groups
from penchant.recipes.recommend.config import RecommendConfig
from penchant.recipes.recommend.pipeline import recommend
from penchant.recipes.recommend.questions import write_questions

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "recipes"
EXAMPLE = EXAMPLES / "recommend.yaml"


@pytest.mark.slow
def test_the_example_runs(tmp_path):
    rows = [f"u{u}::i{(u + t) % 40}::8::{100 * t + u}" for u in range(40) for t in range(14)]
    (tmp_path / "ratings.dat").write_text("\n".join(rows) + "\n")
    (tmp_path / "movies.dat").write_text("".join(f"i{n}::Film {n} (2013)::Drama\n" for n in range(40)))
    files = {"interactions": "ratings.dat", "titles": "movies.dat", "output": "out"}
    config = load_section(RecommendConfig, EXAMPLE, [f"{key}={tmp_path / name}" for key, name in files.items()])
    result = recommend(_shortened(config))
    assert list(result) == ["questions", "model", "sft", *(method.name for method in config.methods), "evaluation"]
    whole = result["evaluation"]["models"]["sft"]["catalogue"]
    assert whole["mrr"]["n"] == 4
    assert 0 < whole["mrr"]["value"] <= 1
    assert "Among the whole catalogue" in (tmp_path / "out" / "report.html").read_text()


def test_the_example_of_published_questions(tmp_path):
    """Its questions, with the listed titles and negatives of its methods, in its words."""
    (tmp_path / "lastfm").mkdir()
    bands = [f"Band {n}" for n in range(20)]
    for part, start in (("train", 0), ("val", 5), ("test", 9)):
        rows = [
            {"historyList": "::".join(bands[k : k + 3]), "itemList": bands, "trueSelection": bands[k + 3]}
            for k in range(start, start + 4)
        ]
        (tmp_path / "lastfm" / f"lastfm-{part}.json").write_text(json.dumps(rows))
    overrides = [f"questions.file={tmp_path / 'lastfm'}", f"output={tmp_path / 'out'}"]
    config = load_section(RecommendConfig, EXAMPLES / "recommend_questions.yaml", overrides)
    assert [method.negatives for method in config.methods] == [1, 3, 15]
    counts = write_questions(config, tmp_path)
    assert counts["questions"] == {"train": 4, "validation": 4, "test": 4}
    first = read_groups(tmp_path / "test.jsonl").groups[0]
    assert first.prompt == (
        "Bands and artists that a listener chose, oldest first: Band 9, Band 10, Band 11\n"
        f"One of these comes next: {', '.join(bands)}\nIt is"
    )
    assert (len(first.candidates), first.preferred) == (20, 12)


def _shortened(config: RecommendConfig) -> RecommendConfig:
    values = config.model_dump()
    for stage in (values["new_model"], values["sft"], *values["methods"]):
        stage["training"] |= {"max_steps": 2, "batch_size": 8}
    values["questions"]["held_out"] = 10
    return RecommendConfig(**{**values, "answers": 2, "catalogue": 4})
