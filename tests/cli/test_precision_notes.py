"""What verbs, runs and plans say of bfloat16's rounding and of a model that the packed tree is not exact for."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from penchant.cli.main import run
from penchant.data.reading import read_groups
from penchant.data.tokenization import tokenize_groups
from penchant.engine.distributed import World
from penchant.engine.reference_model import FrozenModel
from penchant.engine.scorer_choice import choose_scorer, sample_groups
from penchant.models.loading import load_tokenizer

ROUNDS = re.compile(
    r"half precision rounds the model's numbers \(log-probs in nats, rewards\) by up to ([\d.e-]+) on a sample"
)
PADDED = re.compile(r"BloomForCausalLM is run padded, one row a candidate, .*? about ([\d.]+) times the tokens")

VERBS = {
    "evaluate": ["evaluate", "{model}", "--data", "{pairs}"],
    "evaluate a reward model": ["evaluate", "{reward}", "--data", "{pairs}"],
    "rank": ["rank", "{model}", "--data", "{pairs}"],
    "rank --by head": ["rank", "{head}", "--data", "{pairs}", "--by", "head"],
    "rank --by reward": ["rank", "{reward}", "--data", "{pairs}", "--by", "reward"],
    "score": ["score", "{pairs}", "--model", "{reward}", "--output", "{new}"],
    "tasks": ["tasks", "{model}", "--task", "piqa={piqa}"],
    "tasks --head": ["tasks", "{head}", "--task", "piqa={piqa}", "--head"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_model, tiny_pairs) -> dict[str, Path]:
    """A language model, a reward model, and a model with a preference head, with data for each."""
    folder = tmp_path_factory.mktemp("precision")
    config = hf.AutoConfig.from_pretrained(tiny_model, num_labels=1)
    torch.manual_seed(0)
    hf.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "reward")
    load_tokenizer(str(tiny_model)).save_pretrained(folder / "reward")
    values = {
        "model": str(tiny_model),
        "data": str(tiny_pairs),
        "output": str(folder / "head"),
        "objective": {"name": "preference_head"},
        "training": {"max_steps": 1},
    }
    (folder / "head.yaml").write_text(json.dumps(values))
    assert run(["train", str(folder / "head.yaml")]) == 0
    question = {"goal": "the old cat", "sol1": "sees a dog", "sol2": "runs to house", "label": 1}
    (folder / "piqa.jsonl").write_text("".join(json.dumps(question | {"goal": f"{n} cat"}) + "\n" for n in range(4)))
    names = {name: folder / name for name in ("reward", "head")}
    return {**names, "model": tiny_model, "pairs": tiny_pairs, "piqa": folder / "piqa.jsonl"}


def output_of(line: list[str], capsys: Any) -> str:
    """All that the verb prints, white space folded."""
    capsys.readouterr()
    assert run(line) == 0, capsys.readouterr().err
    return " ".join("".join(capsys.readouterr()).split())


@pytest.mark.slow_but("evaluate", "score")
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_names_the_measured_rounding_in_bfloat16_alone(verb, folders, tmp_path, capsys):
    printed = {}
    for dtype in ("float32", "bfloat16"):
        paths = {**folders, "new": tmp_path / f"{dtype}.jsonl"}
        printed[dtype] = output_of([*(part.format(**paths) for part in VERBS[verb]), "--dtype", dtype], capsys)
    assert "bfloat16" not in printed["float32"]
    rounding = [float(value) for value in ROUNDS.findall(printed["bfloat16"])]
    # Log-probs and rewards are off by different amounts.
    assert len(rounding) == (2 if verb == "tasks --head" else 1)
    assert all(0 < value < 1 for value in rounding)


def measured_rounding(model: Path, pairs: Path) -> float:
    """By how much the tree's log-probs of the sample are off, as the check at load measures it."""
    frozen = FrozenModel.load(str(model), World(0, 1, torch.device("cpu")), "bfloat16")
    groups, _ = tokenize_groups(read_groups(pairs).groups, frozen.tokenizer, max_length=128)
    rounding = choose_scorer(frozen.model, sample_groups(groups), "bfloat16").rounding
    assert rounding is not None
    return rounding


def test_the_rounding_of_evaluate_is_the_one_that_is_measured(tiny_model, tiny_pairs, capsys):
    printed = output_of(["evaluate", str(tiny_model), "--data", str(tiny_pairs), "--dtype", "bfloat16"], capsys)
    assert ROUNDS.findall(printed) == [f"{measured_rounding(tiny_model, tiny_pairs):.2g}"]


def page_of(run_folder: Path) -> str:
    """The report's text, white space folded."""
    return " ".join(html.unescape((run_folder / "report.html").read_text(encoding="utf-8")).split())


@pytest.mark.slow_but("bfloat16")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_runs_report_repeats_the_rounding(write_config, tmp_path, capsys, dtype):
    """The roundings of the model that training starts from and of the trained one."""
    printed = output_of(["train", str(write_config(training={"max_steps": 2, "dtype": dtype}))], capsys)
    document = json.loads((tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8"))
    texts = printed, page_of(tmp_path / "run"), " ".join(document.get("notes", []))
    values = [ROUNDS.findall(text) for text in texts]
    assert values[0] == values[1] == values[2]
    assert bool(values[0]) == (dtype == "bfloat16")
    assert all(("half precision rounds" in text) == (dtype == "bfloat16") for text in texts)


@pytest.mark.slow_but("bfloat16-bradley_terry")
@pytest.mark.parametrize("objective", ["bradley_terry", "preference_head"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_report_of_rewards_names_their_rounding(write_config, tmp_path, tiny_pairs, capsys, objective, dtype):
    """The line of `penchant rank` on the same rows, beside those of a head's log-probs."""
    rows = Path(tiny_pairs).read_text(encoding="utf-8").splitlines()[-8:]
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("\n".join(rows) + "\n", encoding="utf-8")
    config = write_config(
        objective={"name": objective},
        data={"held_out": str(held_out)},
        training={"max_steps": 1, "dtype": dtype},
        evaluation={"samples": 0},
    )
    printed = output_of(["train", str(config)], capsys)
    document = json.loads((tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8"))
    texts = printed, page_of(tmp_path / "run"), " ".join(document.get("notes", []))
    if dtype == "float32":
        assert all("half precision rounds" not in text for text in texts)
        return
    by = "head" if objective == "preference_head" else "reward"
    line = ["rank", str(tmp_path / "run"), "--data", str(held_out), "--by", by, "--dtype", dtype]
    [rounding] = ROUNDS.findall(output_of(line, capsys))
    for text in texts:
        assert ROUNDS.findall(text)[-1] == rounding


@pytest.fixture
def bloom(tmp_path: Path, tiny_model: Path) -> Path:
    """A model whose attention has no implementation but its own, with the tiny model's tokenizer."""
    tokenizer = load_tokenizer(str(tiny_model))
    torch.manual_seed(0)
    config = hf.BloomConfig(
        vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    )
    hf.BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")
    tokenizer.save_pretrained(tmp_path / "bloom")
    return tmp_path / "bloom"


@pytest.mark.slow
def test_a_fallback_is_named_in_the_run_its_report_and_its_plan(write_config, tmp_path, bloom, capsys):
    file = str(write_config(model=str(bloom), training={"max_steps": 2}))
    assert PADDED.search(output_of(["plan", file], capsys))
    printed = PADDED.findall(output_of(["train", file], capsys))
    notes = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["notes"]
    [in_training] = [match[1] for line in notes if (match := PADDED.search(line))]
    # Of the training groups, and of the held-out ones where their lengths give another number.
    assert printed[0] == in_training
    assert PADDED.findall(page_of(tmp_path / "run")) == list(dict.fromkeys(printed))
    assert float(in_training) > 1


def test_verbs_name_a_fallback(bloom, tiny_model, tiny_pairs, capsys):
    for verb in ("evaluate", "rank"):
        assert PADDED.search(output_of([verb, str(bloom), "--data", str(tiny_pairs)], capsys))
        assert "run padded" not in output_of([verb, str(tiny_model), "--data", str(tiny_pairs)], capsys)
