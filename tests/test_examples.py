"""Every example runs, on a tiny model."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from penchant.config.run import load_config
from penchant.training.run import train

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


TINY = [
    "data.split=null",
    "data.held_out_split=null",
    "data.held_out=0.25",
    "data.max_length=100",
    "training.max_steps=2",
    "training.batch_size=8",
    "training.dtype=float32",
    "evaluation.every=1",
]
"""What makes a published run a tiny one."""


@pytest.fixture(scope="module")
def scored_pairs(tmp_path_factory: pytest.TempPathFactory, tiny_pairs: Path) -> Path:
    """The pairs with scores, which every method can learn from."""
    from penchant.data.reading import read_groups
    from penchant.data.writing import write_groups

    groups = [
        replace(group, comparisons=group.pairs, scores=(1.0, -1.0), preferred=None)
        for group in read_groups(tiny_pairs).groups
    ]
    file = tmp_path_factory.mktemp("scored") / "groups.jsonl"
    write_groups(groups, file)
    return file


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A reward model folder with random weights."""
    from penchant.models.loading import load_tokenizer
    from penchant.models.reward_model import start_reward_model

    folder = tmp_path_factory.mktemp("reward") / "model"
    start_reward_model(str(tiny_model)).save_pretrained(folder)
    load_tokenizer(str(tiny_model)).save_pretrained(folder)
    return folder


def names(folder: str) -> list[str]:
    return sorted(str(file.relative_to(EXAMPLES)) for file in (EXAMPLES / folder).glob("*.yaml"))


def of_runs(names: list[str]) -> list[str]:
    """Those that describe a run or a comparison; recipes' are tested with the recipes."""
    return [name for name in names if re.search("^(objective:|base:$)", (EXAMPLES / name).read_text(), re.MULTILINE)]


LEARNING = ("beta_dpo", "bradley_terry", "dpo", "kto", "multi_reference", "preference_head", "rloo", "sft")
QUICK = ["dpo.yaml", "dpo_lora.yaml", *(f"methods/{name}.yaml" for name in LEARNING)]
"""Of every kind of learning one. Some of the others compare several methods, which takes seconds."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in [*names("."), *names("methods"), *names("protocols"), *of_runs(names("real"))]
    ],
)
def test_example_runs(name, tmp_path, tiny_model, scored_pairs, reward_model):
    """Each on a tiny model, shortened, with everything else as it stands in the file."""
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    file = tmp_path / "example.yaml"
    file.write_text(_local(text, tmp_path, tiny_model, reward_model), encoding="utf-8")
    if "methods:" in text:
        _compare(file, tmp_path, tiny_model, scored_pairs)
        return
    sampled = ["sampling.max_new_tokens=6"] if "candidates: sampled" in text else []
    overrides = [f"model={tiny_model}", f"data.train={scored_pairs}", f"output={tmp_path / 'run'}", *TINY, *sampled]
    folder = train(load_config(file, overrides))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 2
    assert math.isfinite(lines[-1]["eval_loss"])


def _local(text: str, folder: Path, model: Path, reward: Path) -> str:
    """The example with its hub ids, and the functions it imagines, in place."""
    function = folder / "my_reward.py"
    function.write_text("def score(prompt, responses):\n    return [float(len(text) % 7) for text in responses]\n")
    for name in ("runs/bradley_terry", "runs/ddo-rm/reward", "runs/real/ddo_rm/reward", "runs/tldr/reward"):
        text = text.replace(name, str(reward))
    text = text.replace("my_reward.py", str(function)).replace("as_chat: true", "as_chat: false")
    text = text.replace("examples/protocols", str(EXAMPLES / "protocols"))
    text = re.sub(r"\bruns/real/references/\w+|\breal/smollm2", str(model), text)
    return re.sub(r"(?<=[\[ ])[A-Za-z-]+/(Qwen|Llama|Mistral)[\w.-]+", str(model), text)


def _compare(file: Path, folder: Path, model: Path, data: Path) -> None:
    from penchant.comparison.cells import variants
    from penchant.comparison.config import load_bench
    from penchant.comparison.run import compare

    tiny = [f"base.{option}" for option in TINY if "evaluation" not in option]
    overrides = [
        f"output={folder / 'bench'}",
        f"base.model={model}",
        f"base.data.train={data}",
        *tiny,
        "seeds=[42]",
        "measure.samples=3",
        "measure.max_new_tokens=5",
    ]
    bench = load_bench(file, overrides)
    comparison = compare(bench, str(file))
    trained = [cell for cell in comparison.cells if cell.method != "start"]
    assert len(trained) == len(variants(bench)) > 1
    assert [cell.failed for cell in comparison.cells] == [None] * len(comparison.cells)
    assert all(math.isfinite(cell.metrics[comparison.primary]) for cell in comparison.cells if cell.method != "start")


@pytest.mark.slow
def test_happy_stories(shared_data, tmp_path):
    """DPO on a real model's own samples raises the reward they were ranked by."""
    command = [sys.executable, EXAMPLES / "happy_stories.py", shared_data / "models" / "stories260K", tmp_path / "out"]
    small = ["--prompts", "60", "--steps", "30"]
    process = subprocess.run([*map(str, command), *small], capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stderr
    start_reward, end_reward = (
        float(line.split("reward ")[1].split()[0]) for line in process.stdout.splitlines() if "reward" in line
    )
    assert end_reward > start_reward


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("example", EXAMPLES / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_choices_become_preference_groups(tmp_path):
    """The right option is preferred, options are the assistant's messages, and `--limit` draws by the seed."""
    from penchant.data.reading import read_groups

    rows = [{"prompt": f"Is {i} even?", "options": ["no", "yes"], "answer": 1 - i % 2} for i in range(8)]
    source, output = tmp_path / "test.jsonl", tmp_path / "new" / "groups.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    script("real/choices.py").main([f"choices={source}", str(output), "--limit", "5"])
    groups = read_groups(output).groups
    assert len(groups) == 5
    for group in groups:
        [message] = group.prompt
        number = int(message["content"].split()[1])
        assert group.preferred == 1 - number % 2
        assert [candidate[0]["content"] for candidate in group.candidates] == ["no", "yes"]
    prompts = [group.prompt for group in groups]
    script("real/choices.py").main([f"choices={source}", str(tmp_path / "other.jsonl"), "--limit", "5", "--seed", "1"])
    assert [group.prompt for group in read_groups(tmp_path / "other.jsonl").groups] != prompts


@pytest.mark.slow
def test_references_of_six_architectures(tmp_path, monkeypatch):
    """Reference k learns from its own file, the last from all, with three tokenizers; a second start keeps them."""
    from penchant.models.loading import load_model, load_tokenizer

    references = script("real/references.py")
    letters = ("a", "b")
    for letter in letters:
        lines = [json.dumps({"id": letter * 30, "text": f"{letter * 4} {i} " * 8}) for i in range(20)]
        (tmp_path / f"{letter}.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(references, "VOCABULARIES", (280, 281, 282))
    arguments = [*(str(tmp_path / f"{letter}.jsonl") for letter in letters), "--output", str(tmp_path / "out")]
    references.main([*arguments, "--steps", "1"])
    assert {(tmp_path / "out" / name / "config.json").is_file() for name in references.ARCHITECTURES} == {True}
    models = [load_model(str(tmp_path / "out" / name)) for name in references.ARCHITECTURES]
    assert len({type(model) for model in models}) == 6
    sizes = [len(load_tokenizer(str(tmp_path / "out" / name))) for name in list(references.ARCHITECTURES)[:3]]
    assert len(set(sizes)) == 3
    texts = [(tmp_path / "out" / "start" / f"{name}.jsonl").read_text() for name in references.ARCHITECTURES]
    assert [("aaaa" in text, "bbbb" in text) for text in texts[:2]] == [(True, False), (False, True)]
    assert [letter * 4 in texts[-1] for letter in letters] == [True, True]
    time_written = (tmp_path / "out" / "llama" / "model.safetensors").stat().st_mtime_ns
    references.main([*arguments, "--steps", "1"])
    assert (tmp_path / "out" / "llama" / "model.safetensors").stat().st_mtime_ns == time_written
