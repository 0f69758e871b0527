"""The verb `penchant tasks`, as a person types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from penchant.cli.main import app
from penchant.cli.tasks import named_files
from penchant.engine.scoring import PackedScorer
from penchant.errors import ConfigError, DataError
from penchant.evaluation import choices_scoring

ROWS = [
    {"prompt": "the old cat sees", "options": ["a dog", "bird", "tree ."], "answer": 0},
    {"prompt": "it runs to", "options": ["small house", "the river"], "answer": 1},
    {"prompt": "by the tree", "options": ["bird sings", "the", "dog"], "answer": 1},
]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Two files: all rows, and the first two."""
    paths = {}
    for name, rows in {"three": ROWS, "two": ROWS[:2]}.items():
        paths[name] = tmp_path / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Run the verb, and return standard output and standard error."""

    def type_(*arguments: object) -> tuple[str, str]:
        capsys.readouterr()
        app.meta(["tasks", *map(str, arguments)], exit_on_error=False, print_error=False)
        captured = capsys.readouterr()
        return captured.out, captured.err

    return type_


@pytest.fixture
def answer_json(typed: Callable[..., tuple[str, str]]) -> Callable[..., dict[str, Any]]:
    return lambda *arguments: json.loads(typed(*arguments, "--json")[0])


def plain_means(model: Path, row: dict[str, Any]) -> list[float]:
    """Mean log-prob of each option's own tokens, by a plain forward."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    prompt_length = len(tokenizer(row["prompt"])["input_ids"])
    means = []
    for option in row["options"]:
        ids = torch.tensor(tokenizer(f"{row['prompt']} {option}")["input_ids"])
        with torch.no_grad():
            table = plain(ids[None]).logits[0].log_softmax(-1)
        means.append(float(table[torch.arange(prompt_length - 1, len(ids) - 1), ids[prompt_length:]].mean()))
    return means


def test_json_is_one_document_with_every_task(answer_json, tiny_model, files):
    document = answer_json(tiny_model, "--task", f"all={files['three']}", "--task", f"some={files['two']}")
    assert document.keys() == {"tasks", "suite", "definitions"}
    assert list(document["tasks"]) == ["all", "some"]
    report = document["tasks"]["all"]
    right = [max(range(len(means)), key=means.__getitem__) == row["answer"]
             for row in ROWS for means in [plain_means(tiny_model, row)]]  # fmt: skip
    assert report["accuracy"].keys() == {"log", "log_sum"}
    assert report["accuracy"]["log"]["value"] == pytest.approx(sum(right) / 3)
    assert report["accuracy"]["log"].keys() == {"value", "low", "high", "n"}
    assert (report["questions"], report["options"]) == (3, {"2": 1, "3": 2})
    assert report["chance"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 3) / 3)
    assert report["baselines"]["majority"]["value"] == pytest.approx(2 / 3)
    assert document["suite"] is None
    assert {"log", "log_sum", "ties", "chance", "majority"} <= document["definitions"].keys()
    assert document["tasks"]["some"]["accuracy"]["log"]["value"] == pytest.approx(sum(right[:2]) / 2)


def test_people_read_accuracy_beside_chance(typed, tiny_model, files):
    out, _ = typed(tiny_model, "--task", f"all={files['three']}", "--limit", 2)
    assert "three.jsonl: 2 questions, task all, layout choices" in out
    assert "questions are read as plain text" in out
    assert "0.4167" in out  # Chance: (1/3 + 1/2) / 2.
    assert "all: 1 left out: beyond the limit" in out
    assert "end-of-turn token excluded" in out.replace("\n", " ")


def test_suite_accuracy_weights_tasks_by_questions(answer_json, typed, tiny_model, files):
    arguments = ["--task", f"race_high={files['three']}", "--task", f"race_middle={files['two']}", "--suite", "race"]
    document = answer_json(tiny_model, *arguments)
    high, middle = (document["tasks"][name]["accuracy"]["log"]["value"] for name in ("race_high", "race_middle"))
    assert document["suite"]["mean"]["log"]["value"] == pytest.approx((3 * high + 2 * middle) / 5)
    assert document["suite"]["mean"]["log"]["n"] == 5
    out, _ = typed(tiny_model, *arguments)
    assert "race: accuracy over the questions of both parts" in out


def test_a_suite_lacking_a_task_is_refused_before_any_file_is_read(typed, tiny_model):
    with pytest.raises(ConfigError, match="not given: race_middle"):
        typed(tiny_model, "--task", "race_high=absent.jsonl", "--suite", "race")


def test_bad_files_are_refused_by_line(typed, tiny_model, files):
    with files["two"].open("a") as stream:
        stream.write(json.dumps({**ROWS[0], "answer": 3}) + "\n")
    with pytest.raises(DataError, match="0 to 2") as error:
        typed(tiny_model, "--task", f"all={files['two']}")
    assert error.value.where == "two.jsonl, line 3"


class FirstTokenHead(PackedScorer):
    """A stub: the reward of an option is its first token's id."""

    def __init__(self, scorer: torch.nn.Module, head: torch.nn.Module) -> None:
        super().__init__()
        self.scorer = scorer

    def cost(self, group):
        return group.length

    def forward(self, batch):
        rewards = batch.to_group_matrix(batch.targets[torch.cumsum(batch.lengths, 0) - batch.lengths].double())
        return torch.stack([-rewards, rewards])


def test_the_head_beside_the_log_probs(answer_json, monkeypatch, tiny_model, files):
    monkeypatch.setattr(choices_scoring, "HeadedScorer", FirstTokenHead)
    monkeypatch.setattr(choices_scoring, "load_head", lambda folder: torch.nn.Identity())
    report = answer_json(tiny_model, "--task", f"all={files['three']}", "--head")["tasks"]["all"]
    # Ids follow the sentence of all words: a 8, bird 20, tree 19; small 15, the 4; bird 20, the 4, dog 10.
    # The head takes bird, small and bird: never right.
    assert report["accuracy"]["head"]["value"] == 0
    assert report["accuracy"].keys() == {"log", "log_sum", "head"}
    assert report["ties"]["head"] == 0


class TestNamedFiles:
    def test_in_their_order_with_what_follows_the_first_equals_sign(self):
        assert named_files(("b=x.jsonl", "a=dir=1/y.jsonl")) == {"b": "x.jsonl", "a": "dir=1/y.jsonl"}

    @pytest.mark.parametrize("argument", ["x.jsonl", "=x.jsonl", "piqa="])
    def test_another_form(self, argument):
        with pytest.raises(ConfigError, match="expected NAME=PATH"):
            named_files((argument,))

    def test_two_of_one_name_and_none(self):
        with pytest.raises(ConfigError, match="two tasks are named a"):
            named_files(("a=x", "a=y"))
        with pytest.raises(ConfigError, match="no task"):
            named_files(())
