"""Tests of the committed example and the script that makes its files, on small data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import regulations

from penchant.config.run import load_section
from penchant.recipes.domain_expert.config import DomainExpertConfig
from penchant.recipes.domain_expert.pipeline import domain_expert
from penchant.serving.router import load_router

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "recipes"


def source(folder: Path) -> Path:
    """A folder of invented files in the form that the script reads."""
    numbers = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    sets = {
        "cfpb/paragraphs": [
            {
                "text": f"The {a} lender shall give the {b} notice to a borrower within {a} days, part {n}.",
                "section": f"s{n % 30}",
                "reg": ("1024", "1003")[n % 2],
                "kind": ("rule", "interpretation")[n % 3 == 0],
                "heading": "" if n % 4 else f"Notice {b}.",
            }
            for n in range(1000)
            for a, b in [(numbers[n % 10], numbers[n // 10 % 10])]
        ],
        "cfpb/definitions": [
            {"reg": "1024", "term": f"term {n}", "text": f"Term {n} means the {word} thing that is so called here."}
            for n, word in enumerate(numbers)
        ],
        "medquad/qa": [
            {"question": f"What is {word} {n}?", "answer": f"It is {word}.", "focus": word, "qtype": "information"}
            for n in range(3)
            for word in numbers
        ],
        **{
            f"{name}/train": [{"instruction": f"Which is {word}?"} for word in numbers]
            for name in ("openbookqa", "arc_easy")
        },
    }
    for name, rows in sets.items():
        file = folder / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.slow
def test_the_example_runs(tmp_path, monkeypatch):
    script = [sys.executable, str(EXAMPLES / "regulations.py"), str(source(tmp_path / "data")), str(tmp_path / "files")]
    subprocess.run(script, check=True)
    monkeypatch.chdir(tmp_path)
    config = load_section(DomainExpertConfig, EXAMPLES / "domain_expert.yaml", ["output=out", "texts.similarity=1"])
    result = domain_expert(_shortened(config))
    assert result["data"]["left_out"]["held out for tests"] == 0
    rows = [json.loads(line) for line in (tmp_path / "files" / "summaries.jsonl").read_text().splitlines()]
    assert len(rows) == 250
    assert all(row["completion"].startswith(" Notice ") and row["completion"][-1] != "." for row in rows)
    assert set(result["evaluation"]["models"]) == {
        "base", "instruct", "adapted", "residual", "conversation", "structured", "single",
        "routed experts",
    }  # fmt: skip
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.slow
def test_the_example_of_a_real_model_runs(tmp_path, monkeypatch, real_folders):
    """As it stands in the file, with small models in place of the real ones, and shortened."""
    regulations.make_files(source(tmp_path / "data"), tmp_path / "runs" / "real" / "domain")
    monkeypatch.chdir(tmp_path)
    real_folders(tmp_path / "real")
    overrides = ["texts.similarity=1", "texts.held_out=0.2"]
    config = load_section(DomainExpertConfig, EXAMPLES.parent / "real" / "domain_expert.yaml", overrides)
    result = domain_expert(_shortened(config))
    assert list(result)[:3] == ["data", "instruct", "adapted"]
    values = result["evaluation"]["models"]["routed experts"]
    assert {"tasks_bert_score", "summaries_bert_score", "preferences_bert_score"} <= set(values)
    assert load_router(Path("runs/real/domain-expert/router")).chat


def _shortened(config: DomainExpertConfig) -> DomainExpertConfig:
    values = config.model_dump()
    stages = [values["adaptation"], values["conversation"], values["structured"], values["new_models"]]
    for training in [stage["training"] for stage in stages] + [values["new_models"]["instruct"]]:
        training |= {"max_steps": 1, "batch_size": 4}
    values["new_models"] |= {"hidden": 32, "layers": 1}
    values["residual"]["scales"] = [1.0]
    return DomainExpertConfig(**{**values, "answers": 2, "answer_tokens": 2})
