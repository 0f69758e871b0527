"""The flag `--device`: on every verb that loads a model, with one error where the device is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from penchant.cli.main import app, run
from penchant.engine import device
from penchant.engine.device import local_device

LOADING = ("train", "plan", "compare", "sweep", "recipe", "demo", "evaluate", "rank", "score", "generate", "tasks",
           "tool-calls", "recommend", "serve")  # fmt: skip
OTHERS = ("data check", "merge", "residual", "export", "push")


@pytest.fixture(autouse=True)
def _choose_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(device.DEVICE_VARIABLE, "auto")


def flags_of(verb: str) -> dict[str, str]:
    _, apps, _ = app.parse_commands(verb.split())
    arguments = apps[-1].assemble_argument_collection()
    return {name: argument.parameter.help for argument in arguments if argument.parse for name in argument.names}


def test_all_verbs_that_load_a_model_have_it():
    assert {flags_of(verb)["--device"] for verb in LOADING} == {
        "Device of the models; auto: the first available of cuda, xpu, mps and cpu."
    }
    assert not any("--device" in flags_of(verb) for verb in OTHERS)


@pytest.mark.parametrize("verb", ["train", "plan", "evaluate", "rank", "score", "generate", "serve", "compare"])
def test_a_device_that_is_not_there(verb, write_config, tiny_model, tiny_pairs, tmp_path, capsys):
    data = ["--data", str(tiny_pairs)]
    bench = tmp_path / "bench.yaml"
    bench.write_text(
        f"{{base: {{model: {tiny_model}, data: {{train: {tiny_pairs}, held_out: 0.25}}}}, methods: [dpo], "
        f"baseline: dpo, output: {tmp_path / 'bench'}}}"
    )
    operands = {
        "train": [write_config()],
        "plan": [write_config()],
        "compare": [bench],
        "serve": [tiny_model],
        "score": [tiny_pairs, "--output", tmp_path / "new.jsonl", "--model", tiny_model],
        "generate": [tiny_model, "the cat"],
    }
    assert run([verb, *map(str, operands.get(verb, [tiny_model, *data])), "--device", "mps"]) == 2
    error = capsys.readouterr().err
    assert "device: found mps, which this machine (or this build of torch) does not have; it has: cpu" in error
    assert "name one of those, or auto" in error
    assert not any(Path(tmp_path / name).exists() for name in ("run", "new.jsonl"))


@pytest.mark.slow
def test_the_flag_goes_before_the_file(write_config, capsys, monkeypatch):
    monkeypatch.setattr("penchant.planning.plan.SECONDS", 0.02)
    assert run(["plan", str(write_config(device="mps")), "--device", "cpu"]) == 0, capsys.readouterr().err
    assert run(["plan", str(write_config(device="mps"))]) == 2


def test_it_is_the_device_of_the_verb(tiny_model, tiny_pairs, monkeypatch):
    monkeypatch.setenv(device.DEVICE_VARIABLE, "mps")
    assert run(["evaluate", str(tiny_model), "--data", str(tiny_pairs), "--device", "cpu"]) == 0
    assert local_device().type == "cpu"
