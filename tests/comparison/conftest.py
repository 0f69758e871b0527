"""A small comparison on the tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml


@pytest.fixture
def bench(tmp_path, tiny_model, tiny_pairs) -> Callable[..., Path]:
    """Writes a small comparison's YAML; keys given replace its own."""
    (tmp_path / "rewards.py").write_text(
        "def score(prompt, responses):\n    return [r.count('cat') + 0.0 for r in responses]\n"
    )

    def write(**keys: object) -> Path:
        values: dict[str, object] = {
            "output": str(tmp_path / "bench"),
            "base": {
                "model": str(tiny_model),
                "data": {"train": str(tiny_pairs), "held_out": 0.25},
                "training": {"max_steps": 3, "batch_size": 8, "learning_rate": 1e-3},
                "logging": {"every": 1},
            },
            "methods": ["dpo", {"label": "ipo", "objective": {"name": "ipo"}, "grid": {"objective.beta": [0.1, 1.0]}}],
            "baseline": "dpo",
            "seeds": [0, 1],
            "measure": {"samples": 4, "max_new_tokens": 6, "reward": {"function": f"{tmp_path / 'rewards.py'}:score"}},
            **keys,
        }
        file = tmp_path / "bench.yaml"
        file.write_text(yaml.safe_dump(values))
        return file

    return write
