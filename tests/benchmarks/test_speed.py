"""benchmarks/speed: same data and losses on every side, or nothing is reported; and what the bound counts."""

from __future__ import annotations

import copy
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SPEED = Path(__file__).resolve().parents[2] / "benchmarks" / "speed"
MODULES = ("bound", "measuring", "real_pairs", "report", "revisions", "run", "turn_side", "workloads")
FEW = ["--steps", "2", "--warmup", "1", "--alternations", "1"]
TINY = ["--tiny", "--here", "penchant", "--threads", "1", "--rate", "1e-3", *FEW]


@pytest.fixture(scope="module")
def speed() -> Iterator[dict[str, ModuleType]]:
    """The scripts, imported as one runs them: from their own folder."""
    path_before = list(sys.path)
    sys.path.insert(0, str(SPEED))
    yield {name: importlib.import_module(name) for name in MODULES}
    sys.path[:] = path_before
    for name in MODULES:
        del sys.modules[name]


def side(*losses: float, tokens: int = 10) -> dict[str, Any]:
    return {"steps": [{"loss": loss, "tokens": tokens} for loss in losses]}


@pytest.fixture(scope="module")
def driver_results(
    speed: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The driver's folder of results, and what each side's process found."""
    run, reports = speed["run"], {}
    folder = tmp_path_factory.mktemp("speed")
    with pytest.MonkeyPatch.context() as patch:
        whole = run.run_side

        def run_and_record(script: str, python: str, task: Any) -> dict[str, Any]:
            reports[task.side] = whole(script, python, task)
            return reports[task.side]

        patch.setattr(run, "run_side", run_and_record)
        assert run.main(arguments(folder)) == 0
    return folder / "out", reports


def arguments(folder: Path) -> list[str]:
    sides = ["--sides", "penchant", "padded", "padded_groups"]
    return ["negatives", *sides, *TINY, "--work", str(folder / "work"), "--out", str(folder / "out")]


@pytest.mark.slow
def test_all_sides_do_the_same_work(driver_results: tuple[Path, dict[str, Any]]) -> None:
    (file,) = driver_results[0].glob("*-cpu-speed.json")
    sides = json.loads(file.read_text())["results"][0]["sides"]
    # S-DPO's layout brings Penchant's own S-DPO with it.
    assert list(sides) == ["penchant", "padded", "penchant_s_dpo", "padded_groups"]
    for name, side_result in sides.items():
        assert len(side_result["losses"]) == 3
        # At the reference, DPO is ln 2; S-DPO's ln(1 + negatives) tells that whole groups were seen.
        at_start = side_result["losses"][0]
        assert at_start == pytest.approx(0.693147, abs=1e-5) if "_" not in name else at_start > 1
        assert side_result["losses_move_by"] > 1e-3
        assert side_result["largest_loss_difference"] < 1e-4
        assert side_result["peak_mb"]["lowest"] > 50
        assert 0 < side_result["share_of_bound"] < 1
        assert side_result["threads"] == 1
    # Its own row, and the one it is compared with.
    assert file.with_suffix(".txt").read_text().count("| penchant_s_dpo ") == 2
    assert file.with_suffix(".svg").read_text().startswith("<?xml")


@pytest.fixture
def driven(
    speed: dict[str, ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[Callable[[str, str, Any], dict[str, Any]]], tuple[int, str]]:
    """The driver with its sides replaced by a function: its exit status, and what it says of errors."""

    def drive(run_side: Callable[[str, str, Any], dict[str, Any]]) -> tuple[int, str]:
        monkeypatch.setattr(speed["run"], "run_side", run_side)
        return speed["run"].main(arguments(tmp_path)), capsys.readouterr().err

    return drive


@pytest.mark.slow
def test_another_loss_is_refused(driven: Any, driver_results: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The same run with one loss of one side wrong: the driver says which, exits with 1, and writes no result."""

    def perturbed(script: str, python: str, task: Any) -> dict[str, Any]:
        report = copy.deepcopy(driver_results[1][task.side])
        if task.side == "padded":
            report["steps"][1]["loss"] += 2e-4
        return report

    status, error_output = driven(perturbed)
    assert status == 1
    assert "padded's loss differs from penchant's by 2.0" in error_output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("reason", "status"), [("torch.OutOfMemoryError: too large", 0), ("RuntimeError: none", 1)])
def test_a_peer_that_fails_is_left_out(
    driven: Any,
    speed: dict[str, ModuleType],
    driver_results: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    reason: str,
    status: int,
) -> None:
    def failing(script: str, python: str, task: Any) -> dict[str, Any]:
        if task.side == "padded":
            raise speed["run"].Failure(reason)
        return driver_results[1][task.side]

    exit_status, error_output = driven(failing)
    assert exit_status == status
    assert "padded is left out" in error_output
    (file,) = (tmp_path / "out").glob("*-cpu-speed.json")
    assert list(json.loads(file.read_text())["results"][0]["sides"]) == ["penchant", "penchant_s_dpo", "padded_groups"]


def test_sides_run_in_this_python_with_option_here(
    speed: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = speed["run"]
    monkeypatch.setattr(run, "trl_python", lambda: "made")
    assert run.interpreter(run.SIDES["trl_best"], ["penchant", "trl"]) == sys.executable
    assert run.interpreter(run.SIDES["trl_best"], ["penchant"]) == "made"
    # A package is looked for in the Python that would run the side: this one has PEFT.
    assert run.missing_reason("trl_lora", ["trl"]) is None
    assert "flash_pref" in run.missing_reason("trl_flash_pref", ["trl"])


@pytest.mark.parametrize("loss", [0.7 + 1.1e-4, float("nan")])
def test_losses_must_agree(speed: dict[str, ModuleType], loss: float) -> None:
    check = speed["run"].check_losses
    assert check({"penchant": side(0.7), "padded": side(0.7 + 0.9e-4)}, 1e-4)["padded"] == pytest.approx(0.9e-4)
    with pytest.raises(speed["run"].Disagreement, match="padded's loss differs"):
        check({"penchant": side(0.7), "padded": side(loss)}, 1e-4)


def test_losses_must_change_during_a_run(speed: dict[str, ModuleType]) -> None:
    speed["run"].check_moved({"penchant": side(0.7, 0.7004)}, 1e-4)
    with pytest.raises(speed["run"].Disagreement, match="hardly move"):
        speed["run"].check_moved({"penchant": side(0.7, 0.7002)}, 1e-4)


def test_tokens_must_equal_the_workloads(speed: dict[str, ModuleType]) -> None:
    """A prompt of 5 and responses of 2, 3 and 4: 7 + 8 + 9 as candidates, 7 + 8 + 7 + 9 as pairs."""
    step = [([9] * 5, [[9, 2], [9, 9, 2], [9, 9, 9, 2]])]
    workloads, run = speed["workloads"], speed["run"]
    assert workloads.tokens_by_candidate(step) == 24
    assert workloads.tokens_by_pair(step) == 31
    run.check_tokens("penchant", side(0.7, tokens=24), [step])
    run.check_tokens("padded", side(0.7, tokens=31), [step])
    with pytest.raises(run.Disagreement, match="saw"):
        run.check_tokens("padded", side(0.7, tokens=30), [step])


def test_flops_by_hand(speed: dict[str, ModuleType]) -> None:
    """One group: a prompt of 3, responses of 2 and 1; a Llama of one layer, hidden 4, two heads of 2, one for keys."""
    shape = speed["workloads"].Shape(hidden=4, layers=1, heads=2, kv_heads=1, intermediate=5, vocabulary=7)
    step = [([9, 9, 9], [[9, 2], [2]])]
    # q and o 4x4, k and v 4x2; gate, up and down 4x5 each.
    weights = 2 * 16 + 2 * 8 + 3 * 20
    # The prompt's queries see 1 + 2 + 3 keys; the first response's 4 + 5; the second's 4.
    attention = 2 * 2 * 2 * 2 * (6 + 9 + 4)
    forward = 2 * weights * 6 + 2 * 28 * 3 + attention
    assert speed["bound"].step_flops(shape, step) == 3 * forward
    # Rank 1: q 4+4, k 4+2, v 4+2, o 4+4, gate and up 4+5, down 5+4, on 6 tokens, each 2 operations three times.
    adapters = 8 + 6 + 6 + 8 + 9 + 9 + 9
    assert speed["bound"].step_flops(shape, step, rank=1) == 2 * forward + attention + 3 * 2 * adapters * 6


def test_the_bound_counts_the_models_own_weights(speed: dict[str, ModuleType], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    workload = speed["workloads"].WORKLOADS["qwen_0.5b_pairs"].tiny()
    speed["workloads"].build(workload, tmp_path / "built", steps=1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "built" / "model")
    matrices = [p.numel() for name, p in model.model.layers.named_parameters() if p.ndim == 2]
    assert workload.shape.backbone_weights == sum(matrices)
    assert workload.shape.head_weights == model.lm_head.weight.numel()


def test_steps_have_equal_numbers_of_pairs_and_mixed_group_sizes(speed: dict[str, ModuleType]) -> None:
    workload = speed["workloads"].WORKLOADS["negatives"]
    steps = speed["workloads"].draw(workload, 8)
    assert {sum(len(responses) - 1 for _, responses in step) for step in steps} == {workload.pairs_per_step}
    sizes = {len(responses) - 1 for step in steps for _, responses in step}
    assert len(sizes) > 4
    assert sizes <= set(range(7, 16))


def test_a_real_models_workload(
    speed: dict[str, ModuleType], tmp_path: Path, tiny_model: Path, tiny_pairs: Path
) -> None:
    """Steps hold the tokens of the file's first rows, and the shape is that of the model's weights."""
    from penchant.models.loading import load_model, load_tokenizer

    rows = [json.loads(line) for line in tiny_pairs.read_text().splitlines()]
    steps = speed["real_pairs"].write_pairs(tiny_pairs, tiny_model, tmp_path / "data", steps=2, batch=3)
    assert [len(step) for step in steps] == [3, 3]
    tokenizer = load_tokenizer(str(tiny_model))
    prompt, responses = steps[1][2]
    assert tokenizer.decode(prompt, skip_special_tokens=True).split() == rows[5]["prompt"].split()
    texts = [tokenizer.decode(ids, skip_special_tokens=True).split() for ids in responses]
    assert texts == [rows[5][name].split() for name in ("chosen", "rejected")]
    lines = [json.loads(line) for line in (tmp_path / "data" / "pairs.jsonl").read_text().splitlines()]
    assert lines == [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows[:6]]
    shape = speed["real_pairs"].real_workload("tiny", tiny_model, batch=3, parts=1).shape
    weights = sum(p.numel() for p in load_model(str(tiny_model)).parameters() if p.dim() == 2)
    embedding = shape.hidden * shape.vocabulary * (1 if shape.tied else 2)
    assert shape.backbone_weights + embedding == weights


@pytest.mark.slow
def test_a_checkout_beside_itself(
    speed: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two processes take every step in turn, with the same losses."""
    small = ["pairs", "--tiny", "--steps", "2", "--warmup", "1", "--threads", "1", "--work", str(tmp_path / "work")]
    speed["revisions"].main([str(SPEED.parents[1]), *small])
    line = capsys.readouterr().out
    assert line.startswith("pairs")
    assert "2 steps, losses within 0e+00" in line
    with pytest.raises(SystemExit):
        speed["revisions"].main([str(tmp_path), *small])
    assert "is no checkout of Penchant" in capsys.readouterr().err
