"""The most that this process held."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest
import torch

from penchant.evaluation.tool_calls import memory
from penchant.evaluation.tool_calls.memory import forget, held, most_held

CPU = torch.device("cpu")
MIB = 2**20


def forgets() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@pytest.mark.skipif(not forgets(), reason="this system does not forget the most a process held")
def test_the_most_since_it_was_forgotten():
    forget(CPU)
    before = held(CPU)
    assert before == pytest.approx(most_held(CPU), abs=4 * MIB)
    block = bytearray(b"x") * (100 * MIB)
    assert held(CPU) - before == pytest.approx(100 * MIB, abs=8 * MIB)
    del block
    assert most_held(CPU) - before == pytest.approx(100 * MIB, abs=8 * MIB)
    forget(CPU)
    assert most_held(CPU) - before == pytest.approx(0, abs=8 * MIB)


def test_a_system_that_does_not_tell(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "STATUS", tmp_path / "nothing")
    monkeypatch.setattr(memory, "FORGET", tmp_path / "nothing" / "either")
    forget(CPU)
    monkeypatch.setattr(sys, "platform", "linux")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert held(CPU) == most_held(CPU) == most * 1024
    monkeypatch.setattr(sys, "platform", "darwin")
    assert most_held(CPU) == most
