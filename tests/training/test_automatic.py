"""Settings that are auto: resolved once, written to config.yaml, kept by a resumed run; and float16's scaled loss."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from penchant.config.run import RunConfig, load_config, with_recorded_settings
from penchant.config.run_sections import SAFE_TOKEN_BUDGET, TrainingConfig
from penchant.engine import device
from penchant.errors import ConfigError, TrainingError
from penchant.planning import train as planned_training
from penchant.training import model as training_model
from penchant.training.loop import Loop
from penchant.training.model import choose_dtype
from penchant.training.optimizer import LossScale
from penchant.training.run import train

AUTOMATIC = {"dtype": "auto", "token_budget": "auto"}
SHORT = {**AUTOMATIC, "max_steps": 4}


@pytest.fixture(autouse=True)
def _choose_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(device.DEVICE_VARIABLE, "auto")


@pytest.fixture
def best(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """`best["dtype"]` is the dtype that suits this machine."""
    choice = {"dtype": "float32"}
    monkeypatch.setattr(training_model, "best_dtype", lambda device: choice["dtype"])
    return choice


def settings_of(folder: Path) -> tuple[str, int]:
    training = yaml.safe_load((folder / "config.yaml").read_text())["training"]
    return training["dtype"], training["token_budget"]


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def fail_after(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Train until so many steps are done and the machine fails."""
    step = Loop.step

    def begin(last: int, config: RunConfig, **options: Any) -> None:
        def failing(self: Loop, *arguments: object) -> object:
            if self.state.step == last:
                raise RuntimeError("the machine fails")
            return step(self, *arguments)

        monkeypatch.setattr(Loop, "step", failing)
        with pytest.raises(RuntimeError, match="the machine fails"):
            train(config, **options)
        monkeypatch.setattr(Loop, "step", step)

    return begin


def assert_same_run(one: Path, two: Path) -> None:
    assert lines(one) == lines(two)
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


class TestResolution:
    def test_defaults_on_a_cpu_are_as_they_were(self, write_config, tmp_path):
        file = write_config(training={"max_steps": 1, **AUTOMATIC})
        assert settings_of(train(load_config(file))) == ("float32", SAFE_TOKEN_BUDGET) == ("float32", 8192)

    def test_what_is_configured_stays(self, write_config):
        config = load_config(write_config(training={"dtype": "bfloat16"}))
        assert with_recorded_settings(config) == config
        assert choose_dtype("bfloat16", torch.device("cpu")) == "bfloat16"

    def test_float16_is_announced(self, best, notices):
        best["dtype"] = "float16"
        assert choose_dtype("auto", torch.device("cuda")) == "float16"
        (line,) = notices.messages
        assert "auto is float16 with a scaled loss" in line

    def test_a_dtype_that_the_device_lacks_stops_the_run_before_it_begins(self, write_config, monkeypatch, tmp_path):
        monkeypatch.setattr(torch.amp, "is_autocast_available", lambda name: False)
        with pytest.raises(ConfigError, match="no mixed precision on cpu"):
            train(load_config(write_config(training={"dtype": "bfloat16"})))
        assert not (tmp_path / "run").exists()

    def test_a_device_that_is_not_there_stops_the_run_before_it_begins(self, write_config, tmp_path):
        with pytest.raises(ConfigError, match="device: found xpu, which this machine"):
            train(load_config(write_config(device="xpu")))
        assert not (tmp_path / "run").exists()

    def test_what_is_not_resolved_is_not_read(self):
        for name in ("resolved_dtype", "resolved_token_budget"):
            with pytest.raises(ValueError, match="still auto"):
                getattr(TrainingConfig(), name)
        assert TrainingConfig().unplanned_token_budget == 8192
        assert TrainingConfig(token_budget=5).unplanned_token_budget == 5

    def test_the_plan_is_asked_on_a_card_only(self, write_config, monkeypatch):
        class OfAPlanner:
            budget_warning = None
            config = load_config(write_config(training={"token_budget": 12_800}))

        arguments: list[tuple[object, ...]] = []
        monkeypatch.setattr(planned_training, "new_planner", lambda *names: arguments.append(names) or OfAPlanner)
        monkeypatch.setattr(planned_training, "available_bytes", lambda device: {"cuda": 80 << 30}[device.type])
        run: Any = ("config", "inputs", "tokenizer", 128)
        for name, expected in (("cpu", 8192), ("mps", 8192), ("cuda", 12_800)):
            monkeypatch.setattr(planned_training, "local_device", lambda name=name: torch.device(name))
            assert planned_training.planned_budget(*run) == expected
        assert arguments == [(*run, torch.device("cuda"), 80 << 30)]


class TestResume:
    @pytest.mark.slow_but("bfloat16")
    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_a_resumed_run_keeps_them_and_has_the_same_bits(self, write_config, tmp_path, fail_after, best, dtype):
        best["dtype"] = dtype
        file = write_config(training=SHORT, data={"held_out": None})
        first, second = (load_config(file, [f"output={tmp_path / name}"]) for name in ("whole", "cut"))
        whole = train(first, choose_budget=lambda *arguments: 160)
        fail_after(3, second, choose_budget=lambda *arguments: 160)
        best["dtype"] = "float32"  # another machine
        resumed = train(second, resume=True, choose_budget=lambda *arguments: 999)
        assert settings_of(whole) == settings_of(resumed) == (dtype, 160)
        assert_same_run(whole, resumed)

    @pytest.mark.slow
    def test_on_another_device(self, write_config, tmp_path, fail_after):
        file = write_config(training=SHORT, data={"held_out": None})
        whole = train(load_config(file, [f"output={tmp_path / 'whole'}"]))
        fail_after(3, load_config(file))
        text = (tmp_path / "run" / "config.yaml").read_text()
        (tmp_path / "run" / "config.yaml").write_text(text.replace("device: auto", "device: cuda"))
        recorded = load_config(tmp_path / "run" / "config.yaml")
        with pytest.raises(ConfigError, match="device: found cuda"):
            train(recorded, resume=True)
        assert_same_run(train(recorded.model_copy(update={"device": "cpu"}), resume=True), whole)

    def test_another_dtype_is_another_run(self, write_config, fail_after):
        file = write_config(training=SHORT, data={"held_out": None})
        fail_after(2, load_config(file))
        with pytest.raises(ConfigError, match=r"differs in: training.dtype \(was float32, is bfloat16\)"):
            train(load_config(file, ["training.dtype=bfloat16"]), resume=True)


class TestLossScale:
    def test_numbers_of_torchs_grad_scaler(self):
        """A course of overflows and good steps, against torch's own."""
        scaler, scale = torch.amp.GradScaler("cpu"), LossScale()
        weight = torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weight], 1e-3)
        for is_finite in [False, True, True, False, *[True] * 2001, False]:
            weight.grad = torch.tensor([1.0 if is_finite else torch.inf])
            scaler.scale(torch.zeros(()))
            scaler.step(optimizer)
            scaler.update()
            scale = scale.next_scale(is_finite)
            state = scaler.state_dict()
            assert (scale.factor, scale.steps) == (state["scale"], state["_growth_tracker"])

    def test_gradients_are_those_of_float32_and_an_overflow_is_skipped(self, write_config, tmp_path, notices):
        training = {"max_steps": 3, "learning_rate": 1e-9, "token_budget": 100_000}
        file = write_config(training=training, logging={"every": 1})
        exact, scaled = (
            lines(train(load_config(file, [f"output={tmp_path / dtype}", f"training.dtype={dtype}"])))
            for dtype in ("float32", "float16")
        )
        # The step whose gradients overflow at the first scale has no norm, and changes nothing.
        (skipped,) = (line for line in notices.messages if "is skipped" in line)
        assert skipped == ("step 1 is skipped: a gradient is beyond float16's range; the loss is now scaled by 32768")
        assert [line["step"] for line in scaled if "loss" in line and "grad_norm" not in line] == [1]
        for mine, theirs in zip(scaled, exact, strict=True):
            for name in ("loss", "grad_norm"):
                if name in mine:
                    assert mine[name] == pytest.approx(theirs[name], rel=2e-2), name

    @pytest.mark.slow_but("dpo")
    @pytest.mark.parametrize("objective", ["dpo", "beta_dpo"])
    def test_the_scale_leaves_the_gradient(self, write_config, tmp_path, monkeypatch, objective):
        """In float32, where a power of two changes no bit, separable and coupled objectives alike."""
        file = write_config(objective={"name": objective}, training={"token_budget": 60})
        plain = train(load_config(file, [f"output={tmp_path / 'plain'}", "training.dtype=float32"]))
        init = Loop.__init__

        def scaled(self: Loop, *arguments: object) -> None:
            init(self, *arguments)
            self.is_scaled = True

        monkeypatch.setattr(Loop, "__init__", scaled)
        assert_same_run(train(load_config(file, ["training.dtype=float32"])), plain)

    def test_an_overflow_without_a_scale_is_refused(self, write_config, monkeypatch):
        from penchant.training import loop

        monkeypatch.setattr(loop, "scale_and_clip", lambda *arguments: float("inf"))
        monkeypatch.setattr(LossScale, "factor", 1.0)
        config = load_config(write_config(training={"dtype": "float16", "max_steps": 20}))
        with pytest.raises(TrainingError, match="the gradient is not a finite number at step 17") as raised:
            train(config)
        assert "training.dtype=float32" in raised.value.fix
