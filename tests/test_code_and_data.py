"""Code that a configuration names runs only where a model is trained or candidates are scored."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from penchant.cli.main import run

OBJECTIVE = """
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from penchant.objectives import DPO

Path({marker!r}).touch()


@dataclass(frozen=True)
class Mine(DPO):
    name: ClassVar[str] = "mine"
    strength: float = 1.0
"""
REWARD = """
from pathlib import Path

Path({marker!r}).touch()


def score(prompt, responses):
    return [float(len(response)) for response in responses]
"""


@pytest.fixture
def marker(tmp_path) -> Path:
    """The file that the planted code creates."""
    return tmp_path / "executed"


@pytest.fixture
def objective(tmp_path, marker) -> dict:
    """A planted method."""
    (tmp_path / "mine.py").write_text(OBJECTIVE.format(marker=str(marker)))
    return {"name": "mine", "file": str(tmp_path / "mine.py"), "strength": 2.0}


@pytest.fixture
def reward(tmp_path, marker) -> dict:
    """A planted reward."""
    (tmp_path / "reward.py").write_text(REWARD.format(marker=str(marker)))
    return {"function": f"{tmp_path / 'reward.py'}:score"}


@pytest.fixture
def plug_in(tmp_path, marker, monkeypatch) -> dict:
    """A planted package that offers a method by an entry point."""
    (tmp_path / "planted.py").write_text(OBJECTIVE.format(marker=str(marker)))
    info = tmp_path / "planted-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[penchant.objectives]\nmine = planted:Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return {"name": "mine", "strength": 2.0}


@pytest.mark.slow_but("objective")
@pytest.mark.parametrize("kind", ["objective", "part", "plug_in", "reward"])
def test_training_runs_user_code_and_planning_does_not(request, write_config, marker, capsys, monkeypatch, kind):
    monkeypatch.setattr("penchant.planning.plan.SECONDS", 0.02)
    section = request.getfixturevalue("objective" if kind == "part" else kind)
    if kind == "part":
        section = {"name": "weighted_sum", "parts": [{"weight": 1.0, **section}, {"weight": 0.1, "name": "sft"}]}
    sections = {"reward": section} if kind == "reward" else {"objective": section}
    file = write_config(**sections, training={"max_steps": 1}, evaluation={"samples": 0})
    assert run(["plan", str(file), "--json"]) == 0
    assert not marker.exists()
    notes = json.loads(capsys.readouterr().out)["notes"]
    expected = "rewards are not computed" if kind == "reward" else "a plan runs no code of yours"
    assert any(note.startswith(expected) for note in notes)
    assert run(["train", str(file)]) == 0
    assert marker.exists()


def test_planning_refuses_a_missing_objective_file(write_config, tmp_path, capsys):
    file = write_config(objective={"name": "mine", "file": str(tmp_path / "none.py")})
    assert run(["plan", str(file)]) == 2
    assert "objective.file: there is no such file" in capsys.readouterr().err


@pytest.mark.slow
def test_card_of_a_merged_run_names_the_method_without_running_code(write_config, objective, marker, tmp_path):
    file = write_config(objective=objective, lora={"rank": 2}, training={"max_steps": 1}, evaluation={"samples": 0})
    assert run(["train", str(file)]) == 0
    marker.unlink()
    for name in [name for name in sys.modules if name.startswith("penchant_objective_")]:
        del sys.modules[name]
    assert run(["merge", str(tmp_path / "run"), str(tmp_path / "merged")]) == 0
    assert not marker.exists()
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "with `mine`" in card
    assert "strength 2.0" in card


@pytest.mark.slow
def test_data_verbs_run_no_user_code(tiny_pairs, marker, tmp_path):
    """A data set's folder may contain Python code."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "pairs.jsonl").write_bytes(tiny_pairs.read_bytes())
    for name in ("data.py", "pairs.py", "__init__.py", "conftest.py", "sitecustomize.py"):
        (folder / name).write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    script = "import sys; from penchant.cli.main import run; sys.path.pop(0); sys.exit(run(sys.argv[1:]))"
    for verb in (["check"], ["show"], ["audit"], ["convert", "--output", str(tmp_path / "out.jsonl")]):
        process = subprocess.run(
            [sys.executable, "-c", script, "data", verb[0], folder, *verb[1:]],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder.parent,
        )
        assert process.returncode in (0, 2), process.stderr
        assert "pairs" in process.stdout + process.stderr
    assert not marker.exists()
