"""A small comparison on the tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from penchant.comparison import run as running
from penchant.config.run import RunConfig
from penchant.errors import TrainingError
from penchant.training.run import train


@pytest.fixture(scope="session")
def write_bench(tiny_model, tiny_pairs) -> Callable[..., Path]:
    """Writes a small comparison's YAML into a folder; keys given replace its own."""

    def write(folder: Path, **keys: object) -> Path:
        values: dict[str, object] = {
            "output": str(folder / "bench"),
            "base": {
                "model": str(tiny_model),
                "data": {"train": str(tiny_pairs), "held_out": 0.25},
                "training": {"max_steps": 3, "batch_size": 8, "learning_rate": 1e-3},
                "logging": {"every": 1},
            },
            "methods": ["dpo", {"label": "ipo", "objective": {"name": "ipo"}, "grid": {"objective.beta": [0.1, 1.0]}}],
            "baseline": "dpo",
            "seeds": [0, 1],
            **keys,
        }
        file = folder / "bench.yaml"
        file.write_text(yaml.safe_dump(values))
        return file

    return write


@pytest.fixture
def bench(tmp_path, write_bench) -> Callable[..., Path]:
    """`write_bench` into the test's own folder, with a reward of cats."""
    rewards = tmp_path / "rewards.py"
    rewards.write_text("def score(prompt, responses):\n    return [r.count('cat') + 0.0 for r in responses]\n")
    measure = {"samples": 4, "max_new_tokens": 6, "reward": {"function": f"{rewards}:score"}}

    def write(**keys: object) -> Path:
        return write_bench(tmp_path, **{"measure": measure, **keys})

    return write


@pytest.fixture
def failing_cell(monkeypatch) -> Callable[[str], None]:
    """Makes the cell of this name fail as a diverged loss does, until `monkeypatch.undo`."""

    def make(name: str) -> None:
        def failing(config: RunConfig, **keywords: object) -> Path:
            if name in config.output:
                raise TrainingError("the loss is not a finite number at step 2")
            return train(config, **keywords)

        monkeypatch.setattr(running, "train", failing)

    return make
