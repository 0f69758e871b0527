"""The allocator's settings, in processes of their own: the C library keeps them for good."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from penchant.cli.main import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
import torch
def step():
    kept = [torch.ones(n << 18) for n in (3, 40, 5, 60)]
for _ in range(10):  # It takes some until every block has found its place.
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_step_reuses_the_memory_of_the_step_before():
    """108 MB a step, 27,000 pages: all of them new by default, next to none where freed memory is kept."""
    new = {}
    for habit in ("give back", "keep"):
        run = [sys.executable, "-c", SCRIPT, habit]
        new[habit] = int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    assert new["give back"] > 20_000
    assert new["keep"] < 1_000


def test_another_c_library_is_left_alone(monkeypatch):
    import ctypes

    from penchant.cli import main

    def no_library(name):
        raise OSError("no such library")

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    main.keep_freed_memory()
