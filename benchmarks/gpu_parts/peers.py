"""TRL, cut into several numbers of parts, and its faster relatives, on the data and weights of our own runs."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from statistics import median

from run import SIDES, TOLERANCE, Disagreement, check_losses, check_tokens, run_side

from gpu_parts.setting import Figures, Item, Setting
from gpu_parts.training import GROUPS, PAIRS

PARTS = {PAIRS: (1, 2, 4), GROUPS: (4, 8)}
"""Parts of a step that TRL is cut into, the likely fastest first."""

RELATIVES = ("trl_liger", "trl_flash_pref", "trl_unsloth")
"""Sides that need a package more than TRL."""


class Missing(Exception):
    """A peer is not installed; what to type."""


def peer_items(setting: Setting) -> Mapping[str, Item]:
    """TRL at all numbers of parts, then the others at TRL's best."""
    parts = {PAIRS: (1,), GROUPS: (2,)} if setting.tiny else PARTS
    items: dict[str, Item] = {
        f"{name}, TRL in {number}": partial(run_peer, setting, name, "trl_best", number)
        for name, numbers in parts.items()
        for number in numbers
    }
    for name in (PAIRS, GROUPS):
        for side in RELATIVES:
            items[f"{name}, {side}"] = partial(run_peer, setting, name, side)
    return items


def best_parts(setting: Setting, name: str) -> int:
    """The number of parts at which TRL took the least time; the workload's own where TRL did not run."""
    milliseconds = {
        figures["parts"]: figures["milliseconds"]
        for item, figures in setting.figures.get("peers", {}).items()
        if item.startswith(f"{name}, TRL in ") and "milliseconds" in figures
    }
    return min(milliseconds, key=lambda parts: milliseconds[parts]) if milliseconds else setting.workload(name).parts


def run_peer(setting: Setting, name: str, side: str, parts: int | None = None) -> Figures:
    """Time and memory of a peer's step, and how many times as fast ours is.

    Args:
        parts: that a step is cut into; None: as many as were best for TRL.

    Raises:
        Missing: a package is not installed.
    """
    packages = [package for package in ("trl", SIDES[side].needs) if package is not None]
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise Missing(f"{package} is not installed: {sys.executable} -m pip install {package.replace('_', '-')}")
    workload = setting.workload(name)
    folder, parts = setting.workload_folder(workload), parts or best_parts(setting, name)
    report = run_side(SIDES[side].script, sys.executable, replace(setting.task(side, workload, folder), parts=parts))
    check_tokens(side, report, setting.drawn_steps(folder))
    seconds = [step["seconds"] for step in report["steps"][setting.warmup :]]
    figures: Figures = {
        "milliseconds": 1e3 * median(seconds),
        "least_milliseconds": 1e3 * min(seconds),
        "peak_mb": report["peak_mb"],
        "parts": parts,
        "losses": [step["loss"] for step in report["steps"]],
        "versions": report["versions"],
    }
    return figures | beside_ours(setting, name, report, figures)


def beside_ours(setting: Setting, name: str, report: Figures, figures: Figures) -> Figures:
    """Our fastest run beside the peer, and how far the losses differ; nothing where ours did not run."""
    items = setting.figures.get("ours", {}).items()
    runs = [run for item, run in items if item.startswith(f"{name}, ") and "milliseconds" in run]
    if not runs:
        return {}
    ours = min(runs, key=lambda run: run["milliseconds"])
    reports = {"penchant": {"steps": [{"loss": loss} for loss in ours["losses"]]}, report["side"]: report}
    comparison: Figures = {
        "times_as_fast": figures["milliseconds"] / ours["milliseconds"],
        "memory_ratio": ours["peak_mb"] / figures["peak_mb"],
    }
    try:
        workload = setting.workload(name)
        difference = check_losses(reports, TOLERANCE[workload.device, workload.dtype])[report["side"]]
        return {**comparison, "losses_agree": True, "loss_difference": difference}
    except Disagreement as disagreement:
        return {**comparison, "losses_agree": False, "disagreement": str(disagreement)}
