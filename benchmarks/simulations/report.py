"""The simulations' tables, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from simulations.comparing import (
    NULLS,
    UNEQUAL,
    UNEQUAL_SHARES,
    Accuracies,
    family_error,
    power,
)
from simulations.shares import (
    SHARES,
    SIZES,
    SeededShare,
    clustered_coverage,
    exact_coverage,
    length_control_coverage,
    served_rates,
)


def tables(runs: int, seed: int) -> Iterator[str]:
    """Each table as it is done."""
    yield _family_errors(runs, seed)
    yield _unequal(runs, seed)
    yield _power(runs, seed)
    yield _shares()
    yield _clustered(runs, seed)
    yield _seeded(runs, seed)
    yield _length_control(runs, seed)
    yield _gate(runs, seed)


def _family_errors(runs: int, seed: int) -> str:
    rows = []
    for setting in NULLS:
        careful, rule = family_error(setting, runs, seed)
        kind = "yes or no" if setting.yes_or_no else "continuous"
        sizes = [str(n) for n in (setting.methods, setting.seeds, setting.prompts)]
        rows.append([*sizes, f"{setting.shares[0]:g}", f"{setting.residual:g}", kind, f"{careful:.4f}", f"{rule:.4f}"])
    columns = ["methods", "seeds", "prompts", "seeds' variance", "residual", "values", "careful interval alone", "rule"]
    return _table("Comparisons without an effect that have any verdict (5 % at most)", columns, rows)


def _unequal(runs: int, seed: int) -> str:
    rows = []
    for name, setting in UNEQUAL.items():
        errors = [family_error(setting(share), runs, seed)[1] for share in UNEQUAL_SHARES]
        rows.append([name, *(f"{error:.4f}" for error in errors)])
    columns = ["whose seeds differ; their variance", *(f"{share:g}" for share in UNEQUAL_SHARES)]
    return _table("The same where seeds' variances are unequal", columns, rows)


def _power(runs: int, seed: int) -> str:
    rows = []
    for shared, specific in ((0.0, 0.0), (0.3, 0.3), (0.5, 0.3)):
        for points in (0.0, 0.5, 1.0, 2.0):
            careful, rule = power(Accuracies(0.5, 0.16, shared, specific, points), runs, seed)
            five = power(Accuracies(0.5, 0.16, shared, specific, points, seeds=5), runs // 2, seed)[1]
            rows.append([f"{shared:g}", f"{specific:g}", f"{points:g}", f"{careful:.3f}", f"{rule:.3f}", f"{five:.3f}"])
    columns = [
        "shared by all models",
        "a model's own at a prompt",
        "seeds differ by, points",
        "careful interval alone",
        "rule",
        "rule, 5 seeds",
    ]
    title = "A true gap of 16 points in accuracy that is found: 5 methods, 300 prompts, 3 seeds"
    return _table(title, columns, rows)


def _shares() -> str:
    rows = []
    grid = np.linspace(0.5, 0.99, 99)
    for n in SIZES:
        bootstrap, ours = exact_coverage(n, np.array(SHARES))
        cells = [f"{a:.3f} / {b:.3f}" for a, b in zip(bootstrap, ours, strict=True)]
        rows.append([str(n), *cells, f"{exact_coverage(n, grid)[1].min():.3f}"])
    columns = ["n", *(f"share {share:g}" for share in SHARES), "least, 0.5 to 0.99"]
    return _table("Coverage of a share's 95 % interval, exact: percentile bootstrap / now", columns, rows)


def _clustered(runs: int, seed: int) -> str:
    rows = []
    for clusters in (20, 60, 200):
        for correlation in (0.1, 0.4, 0.8):
            cells = [f"{clustered_coverage(clusters, correlation, share, runs // 2, seed):.3f}" for share in SHARES]
            rows.append([str(clusters), f"{correlation:g}", *cells])
    columns = ["prompts, of 1 to 7 values", "correlation", *(f"share {share:g}" for share in SHARES)]
    return _table("Coverage where a prompt has several values", columns, rows)


def _seeded(runs: int, seed: int) -> str:
    rows = []
    for seeds in (3, 5):
        for prompts in (20, 100, 300):
            for of_seeds in (0.001, 0.01, 0.1):
                settings = [SeededShare(share, seeds, prompts, of_seeds) for share in SHARES]
                coverages = [setting.coverage(runs // 2, seed) for setting in settings]
                # Of a small shift of the threshold at a share of 1/2, where the normal density is 0.399.
                points = f"{100 * 0.399 * of_seeds**0.5:.1f}"
                cells = [f"{over_seeds:.3f} / {ours:.3f}" for over_seeds, ours in coverages]
                rows.append([str(seeds), str(prompts), points, *cells])
    columns = ["seeds", "prompts", "seeds differ by, points at 0.5", *(f"share {share:g}" for share in SHARES)]
    return _table("Coverage of a method's share over seeds and prompts: t over the seeds' means / now", columns, rows)


def _length_control(runs: int, seed: int) -> str:
    rows = []
    rates = (0.5, 0.7, 0.9)
    for prompts in (100, 300, 800):
        for effect, longer in ((0.0, 0.0), (1.5, 0.0), (1.5, 0.7)):
            coverages = [length_control_coverage(prompts, rate, effect, longer, runs // 2, seed) for rate in rates]
            cells = [f"{coverage:.3f} ({mean:.3f})" for coverage, mean in coverages]
            rows.append([str(prompts), f"{effect:g}", f"{longer:g}", *cells])
    columns = ["prompts", "effect of length", "longer by, sd", *(f"rate {rate:g}" for rate in rates)]
    return _table("Win rate at equal lengths: coverage (mean estimate)", columns, rows)


def _gate(runs: int, seed: int) -> str:
    rows = []
    for prompts, answers in ((100, 1), (200, 2)):
        pairs = [served_rates(points, prompts, answers, runs, seed) for points in (-5.0, -1.0, 0.0, 5.0, 10.0)]
        rows.append([str(prompts), str(answers), *(f"{larger:.3f} / {gate:.3f}" for larger, gate in pairs)])
    columns = ["prompts", "answers to each", "5 points worse", "1 worse", "equal", "5 better", "10 better"]
    return _table("How often a new learner is served: by the larger share / by the gate at 0.05", columns, rows)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(cells) for cells in (columns, ["---"] * len(columns), *rows)]
    return "\n".join([f"{title}:", "", *(f"| {text} |" for text in lines), ""])
