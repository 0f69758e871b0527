"""benchmarks/simulations: the same verdicts as the library's, and small versions of the tables."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from penchant.evaluation.comparisons import holm, paired_difference
from penchant.evaluation.variance_components import Variances, detectable_difference

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def comparing() -> Iterator[ModuleType]:
    """The script, imported as one runs it; its folder holds a statistics.py, so it stands last."""
    sys.path.append(str(BENCHMARKS))
    yield importlib.import_module("simulations.comparing")
    sys.path.remove(str(BENCHMARKS))
    for name in [name for name in sys.modules if name.partition(".")[0] == "simulations"]:
        del sys.modules[name]


def test_simulated_verdicts_equal_the_librarys(comparing: ModuleType) -> None:
    """Without an effect and with one, seeds that agree and that differ: the first step of Holm's procedure."""
    generator, decided = np.random.default_rng(0), 0
    for number in range(40):
        share = (0.0, 0.0, 1.0, 5.0)[number % 4]
        seeds, prompts = (3, 60) if number % 3 else (4, 40)
        setting = comparing.equal(5, seeds, prompts, share, (1.0, 3.0)[number % 2], bool(number % 5 == 0))
        differences = setting.draw(generator)
        # Effects around what is just told; those of yes-or-no values are smaller.
        effects = generator.uniform(0, 2, 5) * (number % 7 > 2) * (0.3 if number % 5 == 0 else 1)
        differences = differences + effects[:, None, None]
        squares = comparing.MeanSquares.from_differences(differences)
        expected = comparing.decided_by_parts(squares, 0.01) | comparing.decided_by_agreement(squares, 0.05)
        verdicts = holm([paired_difference(table, np.zeros_like(table)) for table in differences])
        # A later step of Holm's procedure may tell more, but only after a first one.
        outcomes = [verdict.outcome != "not distinguishable" for verdict in verdicts]
        assert any(outcomes) == expected.any()
        assert all(outcome for outcome, decision in zip(outcomes, expected.tolist(), strict=True) if decision)
        decided += int(expected.sum())
    assert decided > 20


@pytest.mark.parametrize("number", range(10))
def test_no_setting_of_decision_006_has_a_false_verdict_too_often(comparing: ModuleType, number: int) -> None:
    careful, rule = comparing.family_error(comparing.NULLS[number], 600, seed=number)
    # Two standard errors of the simulation above 5 %.
    assert careful <= rule <= 0.068


@pytest.mark.parametrize(
    "name", ["one method's seeds differ", "two methods' do", "the baseline's do", "one of twelve, residual large"]
)
@pytest.mark.parametrize("share", [2.0, 5.0, 20.0])
def test_false_verdicts_are_rare_with_unequal_seed_variances(comparing: ModuleType, name: str, share: float) -> None:
    assert comparing.family_error(comparing.UNEQUAL[name](share), 600, seed=3)[1] <= 0.068


@pytest.mark.parametrize(("shared", "specific"), [(0.0, 0.0), (0.3, 0.3), (0.5, 0.3)])
def test_difference_of_sixteen_points_is_detected(comparing: ModuleType, shared: float, specific: float) -> None:
    """5 methods, 3 seeds, 300 prompts; seeds differ by half a point. By the careful intervals alone: 0 to 42 %."""
    careful, rule = comparing.power(comparing.Accuracies(0.5, 0.16, shared, specific, 0.5), 200, seed=1)
    assert careful < 0.55
    assert rule >= 0.8


@pytest.mark.parametrize(("methods", "seeds", "prompts"), [(4, 3, 60), (1, 3, 60), (4, 5, 60), (5, 3, 300)])
def test_detectable_difference_is_detected_in_about_80_of_100_runs(comparing, methods, seeds, prompts) -> None:
    expected = Variances(seed=0.0, prompt=1 / 6, residual=1 / 6)
    difference = detectable_difference(expected, seeds, prompts, methods)
    assert difference is not None
    generator, setting = np.random.default_rng(0), comparing.equal(methods, seeds, prompts, 0.0, 1.0)
    # Each model has half of the variance of a difference: a prompt's and a residual's of 1/12.
    draws = np.sqrt(1 / 12) * np.stack([setting.draw(generator) for _ in range(600)])
    draws[:, -1] += difference
    squares = comparing.MeanSquares.from_differences(draws)
    decided = comparing.decided_by_parts(squares, 0.05 / methods) | comparing.decided_by_agreement(squares, 0.05)
    assert 0.74 <= decided[:, -1].mean() <= 0.85


@pytest.mark.parametrize(
    ("share", "seeds", "prompts", "of_seeds"),
    [(0.5, 3, 100, 0.001), (0.8, 5, 100, 0.01), (0.95, 3, 300, 0.1), (0.95, 5, 100, 0.001), (0.99, 3, 20, 0.01)],
)
def test_a_methods_interval_covers_its_share(comparing, share, seeds, prompts, of_seeds) -> None:
    shares = importlib.import_module("simulations.shares")
    over_seeds, ours = shares.SeededShare(share, seeds, prompts, of_seeds).coverage(400, seed=1)
    # Two standard errors of the simulation below 93 %; Student's t over the seeds' means is below that itself.
    assert ours >= 0.905
    assert over_seeds < 0.93


def test_script_runs_without_shadowing_python_modules() -> None:
    script = subprocess.run(
        [sys.executable, str(BENCHMARKS / "statistics.py"), "--help"], capture_output=True, text=True, check=True
    )
    assert "--runs" in script.stdout
    # As for another script of that folder.
    code = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import statistics; print(statistics.mean([1, 3]))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == "2\n"
