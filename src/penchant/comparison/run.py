"""A comparison, cell by cell: train what is not trained, measure what is not measured, and put it together."""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from penchant.comparison.cells import Planned, prepare, variants
from penchant.comparison.config import START, Bench, dump_bench
from penchant.comparison.measure import DEFINITIONS, Measured, Yardstick, throw_away_weights
from penchant.comparison.results import Cell, Comparison
from penchant.config import dump_config
from penchant.engine.distribution import is_alone
from penchant.engine.progress import Progress
from penchant.errors import ConfigError, DiskFullError, TrainingError
from penchant.evaluation.files import write_atomically
from penchant.training.run import train

Tell = Callable[[str], None]


def compare(bench: Bench, where: str, *, tell: Tell = lambda line: None) -> Comparison:
    """Run a comparison into its folder; one that was interrupted goes on where it stopped.

    Args:
        where: the configuration's file, for errors.
        tell: called with lines for people.

    Raises:
        PenchantError: the configuration, data or model is at fault; every cell is checked before the first is trained.
        Interrupted: on Ctrl-C, after saving.
    """
    if not is_alone():
        raise ConfigError(
            "a comparison runs its cells one after another in one process", fix="start it without torchrun"
        )
    folder = Path(bench.output)
    shared, cells = prepare(bench, where)
    _take(folder, bench, where)
    for note in shared.notes:
        tell(note)
    tell(f"{len(cells)} cells: {len(variants(bench))} variants, {len(bench.seeds)} seeds, {len(shared.train)} sizes")
    yardstick = Yardstick(shared.base, shared.held_out, bench.measure, tell)
    done: dict[Path, Cell] = {}
    measured: dict[tuple[str, int, int], Measured] = {}
    notices: list[str] = []
    starts = {
        seed: _measured(folder / "start" / f"seed{seed}", yardstick, shared.base.model, seed, None)
        for seed in bench.seeds
    }
    _check_primary(bench, next(iter(starts.values())))
    ordered = sorted(cells, key=lambda cell: cell.variant.method.label != bench.baseline)
    began, tokens = time.monotonic(), 0.0
    with Progress("cells", len(ordered), "cells") as progress:
        for number, planned in enumerate(ordered):
            if reason := _spent(bench, planned, ordered[:number], tokens, began):
                notices.append(f"{reason}: {len(ordered) - number} of {len(ordered)} cells were not begun")
                break
            rival: Measured | None = starts[planned.seed]
            if bench.measure.against == "baseline" and bench.baseline != START:
                own = planned.variant.method.label == bench.baseline
                rival = None if own else measured.get((bench.baseline, planned.size, planned.seed), rival)
            tell(f"{number + 1} of {len(ordered)}: {planned.folder.name}")
            cell, result = _cell(planned, yardstick, rival, bench.keep_weights, tell)
            done[planned.folder] = cell
            tokens += cell.cost.get("tokens", 0.0)
            if result is not None:
                measured.setdefault((planned.variant.method.label, planned.size, planned.seed), result)
            progress.advance(1, planned.folder.name)
    rows = [_start_cell(result, seed, size, folder) for size, _ in shared.train for seed, result in starts.items()]
    rows += [done[planned.folder] for planned in cells if planned.folder in done]
    notices += [f"{cell.method}, seed {cell.seed}: {cell.failed}" for cell in rows if cell.failed]
    return Comparison(
        title=folder.name,
        baseline=bench.baseline,
        model=shared.base.model,
        data=shared.base.data.train,
        cells=rows,
        definitions={name: line for name, line in DEFINITIONS.items() if any(name in cell.metrics for cell in rows)},
        primary=bench.measure.primary,
        notices=notices,
        config_yaml=dump_bench(bench),
        judge=_judged(measured),
    )


def _take(folder: Path, bench: Bench, where: str) -> None:
    """The folder is this comparison's; more methods, seeds or sizes may be asked for later."""
    file = folder / "compare.yaml"
    if file.exists():
        before = yaml.safe_load(file.read_text(encoding="utf-8"))
        changed = [key for key in ("base", "measure") if before[key] != bench.model_dump()[key]]
        if changed:
            raise ConfigError(
                f"the folder {folder} holds a comparison with another {' and '.join(changed)}",
                where=where,
                fix="name a new folder: output=DIR; methods, seeds and sizes may be added to this one",
            )
    write_atomically(file, dump_bench(bench))


def _cell(
    planned: Planned, yardstick: Yardstick, rival: Measured | None, keep_weights: bool, tell: Tell
) -> tuple[Cell, Measured | None]:
    folder, failed, result = planned.folder, None, None
    if (folder / "measured.json").exists():
        _same_run(planned)
    else:
        try:
            _reset_peak()
            train(planned.config, resume=(folder / "run.json").exists())
            write_atomically(folder / "cost.json", json.dumps(_cost(folder)))
        except DiskFullError as error:
            # Every further cell would fail of it, and none of them for a reason of its method's.
            raise DiskFullError(
                error.what,
                where=error.where,
                fix="free some space, then give the same command again: it goes on where it stopped",
            ) from error
        except TrainingError as error:
            failed = error.what
            tell(f"{folder.name} failed: {failed}")
        gc.collect()
    if failed is None:
        result = _measured(folder, yardstick, str(folder), planned.seed, rival)
        if not keep_weights:
            throw_away_weights(folder)
    cost = json.loads((folder / "cost.json").read_text(encoding="utf-8")) if failed is None else {}
    cell = Cell(
        method=planned.variant.method.label,
        settings=dict(planned.variant.settings),
        size=planned.size,
        seed=planned.seed,
        folder=str(folder),
        metrics={} if result is None else result.metrics,
        values={} if result is None else result.values,
        sources=_sources(yardstick),
        curves=_curves(folder),
        cost=cost,
        failed=failed,
    )
    return cell, result


def _same_run(planned: Planned) -> None:
    """Refuse numbers that another configuration was measured with; the comparison's folder may have been moved."""

    def content(values: dict[str, Any]) -> dict[str, Any]:
        moved = {key: value for key, value in values["data"].items() if key not in ("train", "held_out")}
        return {**values, "output": None, "data": moved}

    file = planned.folder / "config.yaml"
    before = content(yaml.safe_load(file.read_text(encoding="utf-8")))
    now = content(yaml.safe_load(dump_config(planned.config)))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        raise ConfigError(
            f"{planned.folder.name} was trained with another {', '.join(changed)}",
            where=str(file),
            fix="give the method another label, or name a new folder: output=DIR",
        )


def _measured(folder: Path, yardstick: Yardstick, model: str, seed: int, rival: Measured | None) -> Measured:
    """From its file, or measured now and written there."""
    file = folder / "measured.json"
    if file.exists():
        return Measured(**json.loads(file.read_text(encoding="utf-8")))
    result = yardstick.measure(model, seed, rival)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(vars(result), ensure_ascii=False))
    gc.collect()
    return result


def _start_cell(result: Measured, seed: int, size: int, folder: Path) -> Cell:
    return Cell(
        method=START,
        settings={},
        size=size,
        seed=seed,
        folder=str(folder / "start"),
        metrics=result.metrics,
        values=result.values,
        sources={},
        curves={},
        cost={},
        failed=None,
    )


def _check_primary(bench: Bench, start: Measured) -> None:
    known = {*start.metrics, "accuracy", "margin", "auc", *(["win_rate"] if bench.measure.judge else [])}
    if bench.measure.primary not in known:
        raise ConfigError(
            f"measure.primary is {bench.measure.primary!r}, which is not measured",
            fix=f"one of: {', '.join(sorted(known))}; reward needs measure.reward",
        )
    if bench.baseline == START and bench.measure.primary not in start.metrics:
        raise ConfigError(
            f"baseline is start, which has no {bench.measure.primary} (it is the reference of it)",
            fix="measure.primary=reward or log_prob_accuracy, or another baseline",
        )


def _spent(bench: Bench, planned: Planned, before: Sequence[Planned], tokens: float, began: float) -> str | None:
    """Why no new cell is begun, if so."""
    if bench.search is None:
        return None
    budget = bench.search.budget
    begun = {cell.variant.name for cell in before}
    if budget.trials is not None and planned.variant.name not in begun and len(begun) >= budget.trials:
        return f"the budget of {budget.trials} trials is spent"
    if budget.tokens is not None and tokens >= budget.tokens:
        return f"the budget of {budget.tokens:g} tokens is spent"
    if budget.hours is not None and time.monotonic() - began >= budget.hours * 3600:
        return f"the budget of {budget.hours:g} hours is spent"
    return None


def _lines(folder: Path, name: str) -> list[dict[str, Any]]:
    file = folder / name
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in _lines(folder, "metrics.jsonl"):
        for name in ("loss", "rewards/margins", "rewards/accuracies", "eval_loss", "eval_rewards/accuracies"):
            if name in line:
                curves.setdefault(name, []).append((line["step"], line[name]))
    return curves


def _cost(folder: Path) -> dict[str, float]:
    """Tokens trained on, seconds of training steps, and the most memory (on a CPU, of the process: it never falls)."""
    trained = [line for line in _lines(folder, "metrics.jsonl") if "num_tokens" in line]
    steps = _lines(folder, "timing.jsonl")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**20
    each = steps[-1]["seconds"] if steps else 0.0
    mean = sum(line["seconds"] for line in steps) / len(steps) if steps else each
    done = trained[-1]["step"] if trained else 0
    return {
        "tokens": float(trained[-1]["num_tokens"]) if trained else 0.0,
        "seconds": mean * done,
        "peak_memory_mb": peak,
    }


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _sources(yardstick: Yardstick) -> dict[str, str]:
    return {group.id: group.source for group in yardstick.held_out if group.source is not None}


def _judged(measured: dict[tuple[str, int, int], Measured]) -> dict[str, Any] | None:
    found = {f"{label}, n {size}, seed {seed}": of.judge for (label, size, seed), of in measured.items() if of.judge}
    return found or None
