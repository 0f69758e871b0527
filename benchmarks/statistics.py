"""Are the intervals, verdicts and gates what they say? Coverage, family-wise error and power by simulation.

    python benchmarks/statistics.py [--runs 2000] [--seed 0]

One core, a few minutes; prints the tables of docs/comparisons.md. Each number is a share of simulated data sets, with a
standard error of 0.005 at 0.05 and 2,000 runs. Smaller versions are tests (tests/benchmarks/test_simulations.py,
tests/evaluation/). The simulations are in simulations/: verdicts are written anew there with arrays and scipy, and a
test holds them to the library's.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import sysconfig
from pathlib import Path


def _hand_over_to_the_standard_library() -> None:
    """Another script of this folder imports `statistics`: that is Python's own module of this name."""
    spec = importlib.machinery.PathFinder.find_spec("statistics", [sysconfig.get_path("stdlib")])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["statistics"] = module
    spec.loader.exec_module(module)


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000, help="simulated data sets of each number")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from simulations.report import tables

    for table in tables(arguments.runs, arguments.seed):
        print(table, flush=True)


if __name__ == "__main__":
    # Python puts this folder first, where this file would stand for the standard library's module.
    sys.path.remove(str(Path(__file__).resolve().parent))
    main()
elif __name__ == "statistics":
    _hand_over_to_the_standard_library()
