"""Every example runs, on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from penchant.config import load_config
from penchant.training.run import train

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.mark.parametrize("name", sorted(file.name for file in EXAMPLES.glob("*.yaml")))
def test_example_runs(name, tmp_path, tiny_model, tiny_pairs):
    overrides = [
        f"model={tiny_model}",
        f"data.train={tiny_pairs}",
        "data.split=null",
        "data.held_out_split=null",
        "data.held_out=0.25",
        "data.max_length=100",
        f"output={tmp_path / 'run'}",
        "training.max_steps=2",
        "evaluation.every=1",
    ]
    folder = train(load_config(EXAMPLES / name, overrides))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 2
    assert lines[-1]["eval_loss"] > 0


@pytest.mark.slow
def test_happy_stories(shared_data, tmp_path):
    """DPO on a real model's own samples raises the reward they were ranked by."""
    command = [sys.executable, EXAMPLES / "happy_stories.py", shared_data / "models" / "stories260K", tmp_path / "out"]
    small = ["--prompts", "60", "--steps", "30"]
    done = subprocess.run([*map(str, command), *small], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    before, after = (
        float(line.split("reward ")[1].split()[0]) for line in done.stdout.splitlines() if "reward" in line
    )
    assert after > before
