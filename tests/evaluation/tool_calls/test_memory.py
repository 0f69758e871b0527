"""Tests of the current and peak memory of this process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest
import torch

from penchant.evaluation.tool_calls import latency as memory
from penchant.evaluation.tool_calls.latency import current_bytes, peak_bytes, reset_peak

CPU = torch.device("cpu")
MIB = 2**20


def can_reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@pytest.mark.skipif(not can_reset_peak(), reason="this system cannot reset a process's peak memory")
def test_the_peak_since_its_reset():
    reset_peak(CPU)
    start = current_bytes(CPU)
    assert start == pytest.approx(peak_bytes(CPU), abs=4 * MIB)
    block = bytearray(b"x") * (100 * MIB)
    assert current_bytes(CPU) - start == pytest.approx(100 * MIB, abs=8 * MIB)
    del block
    assert peak_bytes(CPU) - start == pytest.approx(100 * MIB, abs=8 * MIB)
    reset_peak(CPU)
    assert peak_bytes(CPU) - start == pytest.approx(0, abs=8 * MIB)


def test_a_system_without_a_status_file(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "STATUS_FILE", tmp_path / "nothing")
    monkeypatch.setattr(memory, "CLEAR_REFS_FILE", tmp_path / "nothing" / "either")
    reset_peak(CPU)
    monkeypatch.setattr(sys, "platform", "linux")
    current_bytes(CPU)  # The first call imports a module, which can raise the peak.
    ru_maxrss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert current_bytes(CPU) == peak_bytes(CPU) == ru_maxrss * 1024
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_bytes(CPU) == ru_maxrss
