"""benchmarks/gpu_suite.py on the CPU: every part's figures, failures that stay with their item, and the clock."""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from penchant.data.groups import PreferenceGroup
from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import pack

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TRAINING = ("milliseconds", "tokens_per_second", "teraflops", "peak_mb", "first_step_seconds", "share_of_matrix_rate")
PROFILED = (*TRAINING, "launches", "busy_milliseconds")
POSITIVE = {
    "card": {
        "machine": ("cores",),
        "copies": ("inside_gb_per_second", "to_card_gb_per_second", "launch_microseconds"),
        "matrix products": ("bfloat16_teraflops", "tf32_teraflops", "float32_teraflops"),
    },
    "correctness": {"attention against float64": ("rows",), "models": ("rows",), "same bits, pairs": ("values",)},
    "ours": {"qwen_0.5b_pairs, token budget 8": PROFILED, "qwen_0.5b_k8, token budget auto": PROFILED},
    "compiling": {"cold": ("compile_seconds", "first_passes_seconds", "second_passes_seconds", "graphs")},
    "large": {"llama_8b_k8, LoRA": PROFILED},
    "switches": {"qwen_0.5b_k8, all on": TRAINING, "qwen_0.5b_k8, G1: small token budget": TRAINING},
}
"""Figures above zero of the parts that need no peer."""

Items = Mapping[str, Callable[[], Any]]


@pytest.fixture(scope="module")
def suite() -> Iterator[ModuleType]:
    """The script, imported as one runs it."""
    path_before, modules_before, environment = list(sys.path), set(sys.modules), dict(os.environ)
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("gpu_suite")
    sys.path[:] = path_before
    os.environ.clear()
    os.environ.update(environment)
    for name in set(sys.modules) - modules_before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def tiny(suite: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a whole tiny run wrote."""
    folder = tmp_path_factory.mktemp("suite")
    return run(suite, folder, suite.PARTS, minutes=9)[1]


def run(suite: ModuleType, folder: Path, parts: Any, minutes: float) -> tuple[int, dict[str, Any]]:
    """Exit status and document of a run on the CPU."""
    output = folder / "results" / "suite.json"
    options = ["--tiny", "--device", "cpu", "--minutes", str(minutes), "--output", str(output)]
    status = suite.main([*options, "--work", str(folder / "work")], parts)
    return status, json.loads(output.read_text())


def part(suite: ModuleType, name: str, items: Items, seconds: float = 100) -> Any:
    return suite.Part(name, seconds, lambda setting: items)


@pytest.mark.slow
def test_every_part_measures_what_it_is_for(tiny: dict[str, Any]) -> None:
    assert list(tiny["parts"]) == ["card", "correctness", "ours", "compiling", "peers", "large", "switches"]
    assert tiny["failed"] == tiny["cut"] == []
    for name, items in POSITIVE.items():
        assert set(tiny["parts"][name]) == set(items)
        for item, keys in items.items():
            outcome = tiny["parts"][name][item]
            assert outcome["status"] == "done"
            assert all(0 < outcome["figures"][key] < math.inf for key in keys), (name, item)


@pytest.mark.slow
def test_runs_start_at_the_reference_and_give_the_same_losses(tiny: dict[str, Any]) -> None:
    runs = [outcome["figures"] for name in ("ours", "large", "switches") for outcome in tiny["parts"][name].values()]
    for figures in runs:
        assert figures["losses"][0] == pytest.approx(math.log(2), abs=1e-3)
        assert len(figures["losses"]) == len(figures["seconds"]) == 3
    small, automatic = tiny["parts"]["ours"].values()
    assert (small["figures"]["token_budget"], automatic["figures"]["token_budget"]) == (8, 8192)
    # More micro-batches, more operators.
    assert small["figures"]["launches"] > 1.3 * automatic["figures"]["launches"]
    # Two groups of 88 tokens: a budget of one is rounded in another order, not computed in another way.
    assert 0 < tiny["parts"]["switches"]["qwen_0.5b_k8, G1: small token budget"]["figures"]["loss_difference"] < 0.01
    compiling = tiny["parts"]["compiling"]["cold"]["figures"]
    assert compiling["compiled"]
    assert compiling["graphs_of_other_lengths"] == 0
    assert tiny["best"]["qwen_0.5b_k8"]["ours"]["item"] == "qwen_0.5b_k8, token budget auto"


@pytest.mark.slow
def test_peers_are_measured_or_said_to_be_missing(tiny: dict[str, Any]) -> None:
    peers = tiny["parts"]["peers"]
    assert {"qwen_0.5b_pairs, TRL in 1", "qwen_0.5b_k8, TRL in 2", "qwen_0.5b_k8, trl_unsloth"} < set(peers)
    for name, outcome in peers.items():
        if outcome["status"] == "missing":
            assert "is not installed: " in outcome["reason"]
            assert f"peers: {name}" in tiny["missing"]
        else:
            assert outcome["figures"]["losses_agree"]
            assert outcome["figures"]["times_as_fast"] > 0


def test_failures_stay_with_their_item(suite: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        print("what the item printed")
        raise RuntimeError("a wrong number")

    items: Items = {
        "raises": fail,
        "exits": lambda: sys.exit("penchant said no"),
        "dies": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "works": lambda: {"value": 1.5, "table": {"row": "cell"}},
    }
    status, document = run(suite, tmp_path, [part(suite, "one", items), part(suite, "two", {"also": dict})], 1)
    outcomes = document["parts"]["one"]
    assert status == 1
    assert [outcome["status"] for outcome in outcomes.values()] == ["failed", "failed", "failed", "done"]
    assert outcomes["raises"]["reason"] == "RuntimeError: a wrong number"
    assert outcomes["exits"]["reason"] == "SystemExit: penchant said no"
    assert outcomes["dies"]["reason"] == "its process ended with code -9"
    assert outcomes["works"]["figures"] == {"value": 1.5, "table": {"row": "cell"}}
    assert document["parts"]["two"]["also"]["status"] == "done"
    assert document["failed"] == ["one: raises", "one: exits", "one: dies"]
    printed = capsys.readouterr().out
    assert "what the item printed" in printed
    assert "failed: one: dies" in printed
    assert "table: row: cell" in printed


def test_the_clock_ends_what_runs_and_names_what_it_cut(
    suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "ITEM_SECONDS", 1e6)

    def hang() -> None:
        process = subprocess.Popen(["sleep", "60"])
        (tmp_path / "sleeper").write_text(str(process.pid))
        process.wait()

    start = time.monotonic()
    status, document = run(suite, tmp_path, [part(suite, "one", {"hangs": hang, "waits": dict})], minutes=0.02)
    assert time.monotonic() - start < 20
    assert status == 0
    assert document["cut"] == ["one: hangs", "one: waits"]
    assert document["parts"]["one"]["hangs"]["reason"].startswith("ended after")
    assert document["parts"]["one"]["waits"]["reason"] == "not started"
    assert "cut: one: waits" in capsys.readouterr().out
    # What the item started is ended with it.
    sleeper = Path("/proc", (tmp_path / "sleeper").read_text(), "stat")
    assert not sleeper.exists() or sleeper.read_text().split()[2] == "Z"


def test_items_beyond_their_parts_share_run_at_the_end(suite: ModuleType, tmp_path: Path) -> None:
    order = tmp_path / "order"

    def note(name: str) -> Callable[[], dict[str, Any]]:
        def item() -> dict[str, Any]:
            with order.open("a") as file:
                file.write(name)
            time.sleep(0.3)
            return {}

        return item

    # The share has room for one item.
    parts = [
        part(suite, "one", {"a": note("a"), "b": note("b")}, seconds=suite.LEAST_SECONDS + 0.1),
        part(suite, "two", {"c": note("c")}),
    ]
    _, document = run(suite, tmp_path, parts, minutes=0.5)
    assert order.read_text() == "acb"
    assert document["cut"] == []


def test_document_names_what_was_measured(suite: ModuleType, tmp_path: Path) -> None:
    _, document = run(suite, tmp_path, [part(suite, "one", {"item": dict})], minutes=1)
    keys = ["date", "commit", "device", "tiny", "minutes", "seconds", "cut", "failed", "missing", "best", "parts"]
    assert list(document) == keys
    assert (document["device"], document["tiny"], document["minutes"]) == ("cpu", True, 1)
    assert set(document["parts"]["one"]["item"]) == {"status", "seconds", "figures", "reason"}


def test_results_are_named_by_the_card(suite: ModuleType) -> None:
    figures = {"card": {"machine": {"device": "NVIDIA H200"}}}
    names = [
        suite.default_output(suite.Setting(device, tiny, Path("unused"), figures)).relative_to(BENCHMARKS)
        for device, tiny in (("cuda", False), ("cpu", True))
    ]
    assert [str(name.parent) for name in names] == ["results", ".work"]
    assert names[0].name.endswith("-h200-gpu-suite.json")
    assert names[1].name.endswith("-cpu-gpu-suite.json")


def test_parts_can_be_chosen(suite: ModuleType, tmp_path: Path) -> None:
    parts = [part(suite, name, {"item": dict}) for name in ("card", "large")]
    options = ["--tiny", "--device", "cpu", "--parts", "large", "--output", str(tmp_path / "suite.json")]
    assert suite.main([*options, "--work", str(tmp_path / "work")], parts) == 0
    assert list(json.loads((tmp_path / "suite.json").read_text())["parts"]) == ["large"]


def test_no_item_starts_where_the_parent_uses_the_card(
    suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match="uses the card"):
        suite.in_own_process(dict, 1, tmp_path / "log")


def test_best_runs_are_compared_at_each_sides_best(suite: ModuleType) -> None:
    def timed(milliseconds: float, peak_mb: float, **figures: Any) -> dict[str, Any]:
        return {"milliseconds": milliseconds, "peak_mb": peak_mb, **figures}

    figures = {
        "ours": {"qwen_0.5b_k8, token budget 8192": timed(300, 50), "qwen_0.5b_k8, token budget auto": timed(100, 60)},
        "peers": {
            "qwen_0.5b_k8, TRL in 4": timed(250, 120, parts=4),
            "qwen_0.5b_k8, TRL in 8": timed(400, 80, parts=8),
            "qwen_0.5b_k8, trl_liger": timed(50, 10, parts=4),
        },
    }
    best = suite.best(figures)["qwen_0.5b_k8"]
    assert best["ours"]["item"] == "qwen_0.5b_k8, token budget auto"
    assert best["trl"]["item"] == "qwen_0.5b_k8, TRL in 4"
    assert (best["times_as_fast"], best["memory_ratio"]) == (2.5, 0.5)
    peers = importlib.import_module("gpu_parts.peers")
    setting = suite.Setting("cpu", False, Path("unused"), figures)
    assert peers.best_parts(setting, "qwen_0.5b_k8") == 4
    assert peers.best_parts(setting, "qwen_0.5b_pairs") == 4  # No run: the workload's own.


def test_wrong_numbers_fail_with_their_rows(suite: ModuleType) -> None:
    correctness = importlib.import_module("gpu_parts.correctness")
    rows = [("a", 1e-3, 1e-2), ("b", 9e-3, 1e-2)]
    assert correctness.judged(rows) == {"rows": 2, "wrong": [], "nearest_to_its_limit": "b: 9.0e-03 of 1e-02"}
    with pytest.raises(correctness.WrongNumbers, match="c: nan") as caught:
        correctness.judged([*rows, ("c", float("nan"), 1e-2)])
    assert caught.value.figures["rows"] == 3


def test_a_profile_counts_operations(suite: ModuleType) -> None:
    training, figures = importlib.import_module("gpu_parts.training"), dict[str, Any]()
    x = torch.ones(8, 8)
    with training.profiled(figures, suite.Setting("cpu", True, Path("unused"))):
        for _ in range(3):
            torch.mm(x, x)
    assert figures["top_kernels"]["aten::mm"].startswith("3 times, ")
    assert figures["launches"] >= 3


def test_each_switch_changes_what_a_card_would_run(suite: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaConfig

    from penchant.data import trees
    from penchant.engine import tree
    from penchant.engine.kernels import linear_log_probs
    from penchant.training import loop, model

    switches = importlib.import_module("gpu_parts.switches").SWITCHES
    card, ids = torch.device("cuda"), np.arange(4, 9)
    batch = pack([TokenizedGroup(ids, (ids, ids), PreferenceGroup("", ("a", "b"), preferred=0))])
    on_card = SimpleNamespace(device=card, config=LlamaConfig())
    half = torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    as_it_is = (
        tree.reorder_for_attention,
        linear_log_probs.block_rule(card, half),
        model.compile_scorer,
        loop.working_weights,
    )
    copy_together, compile_scorer = trees.copy_together, model.compile_scorer
    assert tree.reorder_for_attention(batch, on_card).prompts_first is not None
    with switches["G3: gathered attention"]():
        assert tree.reorder_for_attention(batch, on_card).prompts_first is None
    with switches["G1: small blocks of logits"]():
        assert linear_log_probs.block_rule(card, half).block_elements == 2**25 < as_it_is[1].block_elements
    with switches["G5: eager layers"]():
        assert model.compile_scorer is not compile_scorer
        assert model.compile_scorer() is None
    layer = torch.nn.ModuleDict({"self_attn": torch.nn.Linear(2, 2)})
    layer.self_attn = layer["self_attn"]
    layers = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([layer])})
    with loop.working_weights(layers, card, "bfloat16", 1).in_place():
        assert layer.self_attn.weight.dtype == half
    with switches["G4: casts in layers"](), loop.working_weights(layers, card, "bfloat16", 1).in_place():
        assert layer.self_attn.weight.dtype == torch.float32
    with switches["G2: blocking copies"]():
        assert trees.copy_together is not copy_together
        (copy,) = trees.copy_together([torch.ones(3)], torch.device("cpu"))
        assert copy.tolist() == [1, 1, 1]
    assert as_it_is == (
        tree.reorder_for_attention,
        linear_log_probs.block_rule(card, half),
        model.compile_scorer,
        loop.working_weights,
    )
