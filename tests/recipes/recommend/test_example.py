"""Tests of the committed example, on small data with a few steps."""

from __future__ import annotations

from pathlib import Path

from penchant.config.run import load_section
from penchant.recipes.recommend.config import RecommendConfig
from penchant.recipes.recommend.pipeline import recommend

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "recipes" / "recommend.yaml"


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


def _shortened(config: RecommendConfig) -> RecommendConfig:
    values = config.model_dump()
    for stage in (values["new_model"], values["sft"], *values["methods"]):
        stage["training"] |= {"max_steps": 2, "batch_size": 8}
    values["questions"]["held_out"] = 10
    return RecommendConfig(**{**values, "answers": 2, "catalogue": 4})
