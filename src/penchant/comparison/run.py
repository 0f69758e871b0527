"""A comparison, cell by cell: train what is not trained, measure what is not measured, and put it together."""

from __future__ import annotations

import gc
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penchant.comparison.cells import PlannedCell, SharedData, configurations, prepare, repeats, variants
from penchant.comparison.config import NO_VERDICT, START, Bench, dump_bench
from penchant.comparison.design import cost_of, curves_of, design_notes, reset_peak
from penchant.comparison.measure import DEFINITIONS, RATIO_METRICS, JudgeOpponent, Measured, Measurement
from penchant.comparison.pair_values import first_of_prompt, name_of_group
from penchant.comparison.results_cache import (
    RESULTS_FILE,
    Cell,
    Comparison,
    InputHashes,
    check_cached_results,
    load_or_measure,
    throw_away_weights,
)
from penchant.comparison.summary import name_of
from penchant.config.run import dump_config, with_recorded_settings
from penchant.config.section import parse_yaml, read_yaml
from penchant.engine.device import best_dtype, local_device, on_device
from penchant.engine.distributed import is_single_process
from penchant.errors import ConfigError, DiskFullError, TrainingError
from penchant.evaluation.held_out import today
from penchant.planning.train import train
from penchant.progress import Progress
from penchant.storage.files import folder_lock, read_record, resumable_disk_errors, write_atomically
from penchant.training.folder import RunLog, day_note, run_log, run_writes_today

logger = logging.getLogger(__name__)


def same_but_for_no_day(earlier: dict[str, Any], current: dict[str, Any]) -> bool:
    """Whether two runs have the same keys, except for the device, and for a date that only one of them sets."""
    days = {_data(values).get("date") for values in (earlier, current)} - {None}
    return _comparable(earlier) == _comparable(current) and len(days) < 2


def _comparable(values: dict[str, Any]) -> dict[str, Any]:
    """A run's keys without its date and device; where an older Penchant wrote no dtype, float32."""
    training = {"dtype": "float32", **(values.get("training") or {})}
    return {**values, "device": None, "training": training, "data": {**_data(values), "date": None}}


def _data(values: dict[str, Any]) -> dict[str, Any]:
    data = values.get("data", {})
    return {"train": data} if isinstance(data, str) else data


def on_one_day(bench: Bench, where: str) -> Bench:
    """The comparison with `base.data.date` set: as configured, else as recorded, else today where a template writes it.

    Args:
        where: the configuration's file, for errors.

    Raises:
        ConfigError: all errors in the methods.
    """
    configs = configurations(bench, where)
    if configs[0].data.date is not None:
        return bench
    file = Path(bench.output) / "compare.yaml"
    earlier = read_yaml(file).get("base", {}) if file.exists() else {}
    day = _data(earlier).get("date")
    if day is None and any(map(run_writes_today, configs)):
        day = today()
    if day is None:
        return bench
    return bench.model_copy(update={"base": {**bench.base, "data": {**_data(bench.base), "date": str(day)}}})


def with_dtype(bench: Bench) -> Bench:
    """The comparison with `base.training.dtype` set: as configured, else as recorded, else the device's best one."""
    training = bench.base.get("training") or {}
    if training.get("dtype", "auto") != "auto":
        return bench
    file = Path(bench.output) / "compare.yaml"
    dtype: str = best_dtype(local_device())
    if file.exists():
        dtype = (read_yaml(file).get("base", {}).get("training") or {}).get("dtype", "float32")
    return bench.model_copy(update={"base": {**bench.base, "training": {**training, "dtype": dtype}}})


def compare(bench: Bench, where: str) -> Comparison:
    """Run a comparison; running an interrupted one again resumes where it stopped.

    Args:
        where: the configuration's file, for errors.

    Raises:
        PenchantError: the configuration, data or model is invalid; all cells are checked before any is trained.
        Interrupted: on Ctrl-C, SIGTERM or SIGHUP, after saving.
    """
    if not is_single_process():
        raise ConfigError(
            "a comparison runs its cells one after another in one process", fix="start it without torchrun"
        )
    folder, device = Path(bench.output), configurations(bench, where)[0].device
    with on_device(device), resumable_disk_errors(folder), folder_lock(folder), run_log() as log:
        return _compare(bench, where, log)


def _compare(bench: Bench, where: str, log: RunLog) -> Comparison:
    folder = Path(bench.output)
    bench = with_dtype(on_one_day(bench, where))
    shared, cells = prepare(bench, where)
    _record_config(folder, bench, where)
    log.open(folder)
    hashes = InputHashes(folder)
    hashes.check(shared.base, cells)
    for note in [*shared.notes, *day_note(shared.base), *repeats(bench), *design_notes(bench, shared.held_out)]:
        logger.info(note)
    counts = f"{len(variants(bench))} variants, {len(bench.seeds)} seeds, {len(shared.train)} sizes"
    logger.info(f"{len(cells)} cells: {counts}")
    measurement = Measurement(shared.base, shared.held_out, bench.measure)
    check_cached_results([planned.folder for planned in cells], measurement)
    starts = {
        seed: load_or_measure(folder / "start" / f"seed{seed}", measurement, shared.base.model, seed, None)
        for seed in bench.seeds
    }
    _check_primary(bench, next(iter(starts.values())))
    ran = _Ran(bench, measurement, starts, hashes)
    ran.run_cells(cells)
    return _assemble(bench, shared, cells, ran)


@dataclass
class _Ran:
    """The progress of a comparison.

    Attributes:
        starts: the starting model's numbers by seed.
        cells_by_folder: trained and measured cells.
        baselines: (size, seed) -> the baseline's samples, which the judge compares with, once they are there.
    """

    bench: Bench
    measurement: Measurement
    starts: dict[int, Measured]
    hashes: InputHashes
    cells_by_folder: dict[Path, Cell] = field(default_factory=dict)
    baselines: dict[tuple[int, int], JudgeOpponent] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    def run_cells(self, cells: Sequence[PlannedCell]) -> None:
        """Train and measure all cells, the baseline's first: the judge compares the others with them."""
        label = self.bench.baseline
        ordered = sorted(cells, key=lambda cell: cell.variant.method.label != label)
        # The baseline is the first variant of its method.
        baseline = next((cell.variant.name for cell in ordered if cell.variant.method.label == label), None)
        ordered = self._within_trials(ordered)
        start_time, tokens = time.monotonic(), 0.0
        with Progress("cells", len(ordered), "cells") as progress:
            for number, planned in enumerate(ordered):
                if reason := _budget_spent(self.bench, tokens, start_time):
                    self.notices.append(f"{reason}: {len(ordered) - number} of {len(ordered)} cells were not begun")
                    break
                logger.info(f"{number + 1} of {len(ordered)}: {planned.folder.name}")
                self.hashes.note(planned)
                is_baseline = planned.variant.name == baseline
                cell = _cell(planned, self.measurement, self._opponent(planned, is_baseline), self.bench.keep_weights)
                self.cells_by_folder[planned.folder] = cell
                if is_baseline:
                    self._remember(planned, cell)
                tokens += cell.cost.get("tokens", 0.0)
                progress.advance(1, planned.folder.name)

    def _within_trials(self, ordered: Sequence[PlannedCell]) -> list[PlannedCell]:
        """The cells of as many variants as the budget has trials; a trial is a variant with all seeds and sizes."""
        trials = None if self.bench.search is None else self.bench.search.budget.trials
        trial_names = list(dict.fromkeys(cell.variant.name for cell in ordered))[:trials]
        trial_cells = [cell for cell in ordered if cell.variant.name in trial_names]
        if unbegun := len(ordered) - len(trial_cells):
            reason = f"the budget of {trials} trials is spent"
            self.notices.append(f"{reason}: {unbegun} of {len(ordered)} cells were not begun")
        return trial_cells

    def _remember(self, planned: PlannedCell, baseline: Cell) -> None:
        if baseline.failed is None:
            self.baselines[planned.size, planned.seed] = JudgeOpponent(planned.folder.name, baseline.samples)
        elif self.measurement.judge_name is not None and self.bench.measure.against == "baseline":
            cell_text = f"at {planned.size} groups, seed {planned.seed}"
            self.notices.append(f"no win rates {cell_text}: the baseline's cell failed")

    def _opponent(self, planned: PlannedCell, is_baseline: bool) -> JudgeOpponent | None:
        """The samples that the judge compares a cell's with; None for the baseline itself, and where that failed."""
        if self.bench.measure.against == START or self.bench.baseline == START:
            return JudgeOpponent(START, self.starts[planned.seed].samples)
        return None if is_baseline else self.baselines.get((planned.size, planned.seed))


def _assemble(bench: Bench, shared: SharedData, cells: Sequence[PlannedCell], ran: _Ran) -> Comparison:
    folder, sizes = Path(bench.output), [size for size, _ in shared.train]
    rows = [_start_cell(result, seed, size, folder) for size in sizes for seed, result in ran.starts.items()]
    rows += [ran.cells_by_folder[planned.folder] for planned in cells if planned.folder in ran.cells_by_folder]
    return Comparison(
        title=folder.name,
        baseline=bench.baseline,
        model=shared.base.model,
        data=shared.base.data.train,
        cells=rows,
        prompts=first_of_prompt(shared.held_out),
        definitions={name: line for name, line in DEFINITIONS.items() if any(name in cell.metrics for cell in rows)},
        primary=bench.measure.primary,
        notices=[*ran.notices, *_notices(bench, rows)],
        config_yaml=dump_bench(bench),
        judge=_judge_results(rows),
    )


def _record_config(folder: Path, bench: Bench, where: str) -> None:
    """Write compare.yaml; methods, seeds, sizes and measures may be added to a recorded comparison.

    Raises:
        ConfigError: the folder holds a comparison with another base.
    """
    file = folder / "compare.yaml"
    if file.exists():
        recorded = read_yaml(file)
        if not same_but_for_no_day(recorded.get("base", {}), bench.model_dump()["base"]):
            raise ConfigError(
                f"the folder {folder} holds a comparison with another base",
                where=where,
                fix="name a new folder: output=DIR; methods, seeds and sizes may be added to this one",
            )
    write_atomically(file, dump_bench(bench))


def _cell(planned: PlannedCell, measurement: Measurement, opponent: JudgeOpponent | None, keep_weights: bool) -> Cell:
    folder, failed, result = planned.folder, None, None
    if (folder / RESULTS_FILE).exists():
        _same_run(planned)
    else:
        try:
            reset_peak()
            train(planned.config, resume=(folder / "run.json").exists())
            write_atomically(folder / "cost.json", json.dumps(cost_of(folder)))
        except DiskFullError:
            # Every further cell would fail too, and not because of its method.
            raise
        except TrainingError as error:
            failed = error.what
            logger.warning(f"{folder.name} failed: {failed}")
        gc.collect()
    if failed is None:
        result = load_or_measure(folder, measurement, str(folder), planned.seed, opponent)
        if not keep_weights:
            throw_away_weights(folder)
    fix = f"delete {folder}: the cell is trained again"
    cost = read_record(folder / "cost.json", (), fix) if failed is None else {}
    return Cell(
        method=planned.variant.method.label,
        settings=dict(planned.variant.settings),
        size=planned.size,
        seed=planned.seed,
        folder=str(folder),
        metrics={} if result is None else result.metrics,
        values={} if result is None else result.values,
        sources=_sources(measurement),
        curves=curves_of(folder),
        cost=cost,
        failed=failed,
        samples={} if result is None else result.samples,
        judge={} if result is None else result.judge,
    )


def _same_run(planned: PlannedCell) -> None:
    """Refuse a cell that was trained with another configuration; the comparison's folder may have been moved."""

    def content(values: dict[str, Any]) -> dict[str, Any]:
        paths = {key: values["data"].get(key) for key in ("train", "held_out", "reference_held_out")}
        files = {key: None if path is None else Path(str(path)).name for key, path in paths.items()}
        return {**values, "output": None, "data": {**values["data"], **files}}

    # The cell's own token budget was chosen when it was trained.
    config = with_recorded_settings(planned.config)
    file = planned.folder / "config.yaml"
    recorded = content(read_yaml(file))
    current = content(parse_yaml(dump_config(config)))
    if same_but_for_no_day(recorded, current):
        return
    changes = sorted(key for key in recorded.keys() | current.keys() if recorded.get(key) != current.get(key))
    if changes:
        raise ConfigError(
            f"{planned.folder.name} was trained with another {', '.join(changes)}",
            where=str(file),
            fix="give the method another label, or name a new folder: output=DIR",
        )


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
        samples=result.samples,
    )


def _check_primary(bench: Bench, start: Measured) -> None:
    # Metrics of log-ratios: the start has those of its log-probs instead.
    ratios = {name for name in RATIO_METRICS if f"log_prob_{name}" in start.metrics}
    judged = ["win_rate"] if bench.measure.judge and bench.measure.samples else []
    names = {*start.metrics, *ratios, *judged} - NO_VERDICT.keys()
    if bench.measure.primary not in names:
        raise ConfigError(
            f"measure.primary is {bench.measure.primary!r}, which is not measured",
            fix=f"one of: {', '.join(sorted(names))}; reward needs measure.reward",
        )
    if bench.baseline == START and bench.measure.primary not in start.metrics:
        raise ConfigError(
            f"baseline is start, which has no {bench.measure.primary} (it is the reference of it)",
            fix="measure.primary=reward or log_prob_accuracy, or another baseline",
        )


def _budget_spent(bench: Bench, tokens: float, start_time: float) -> str | None:
    """The reason to start no further cell; None within the budget."""
    if bench.search is None:
        return None
    budget = bench.search.budget
    if budget.tokens is not None and tokens >= budget.tokens:
        return f"the budget of {budget.tokens:g} tokens is spent"
    if budget.hours is not None and time.monotonic() - start_time >= budget.hours * 3600:
        return f"the budget of {budget.hours:g} hours is spent"
    return None


def _sources(measurement: Measurement) -> dict[str, str]:
    groups = enumerate(measurement.held_out)
    return {name_of_group(index): group.source for index, group in groups if group.source is not None}


def _judge_results(cells: Sequence[Cell]) -> dict[str, Any] | None:
    results = {f"{name_of(cell)}, n {cell.size}, seed {cell.seed}": cell.judge for cell in cells if cell.judge}
    return results or None


def _notices(bench: Bench, cells: Sequence[Cell]) -> list[str]:
    """Lines on failed cells, repeated variants, and metrics that were not measured."""
    measure = bench.measure
    lines = repeats(bench) + [f"{cell.method}, seed {cell.seed}: {cell.failed}" for cell in cells if cell.failed]
    if measure.samples and measure.temperature != 1:
        reason = (
            f"measure.temperature is {measure.temperature:g}, so the samples are not drawn from the models themselves"
        )
        lines.append(f"kl is not measured: {reason}")
    question_count = sum(2 * cell.judge["n"] for cell in cells if cell.judge)
    unanswered_count = sum(cell.judge["failed"] for cell in cells if cell.judge)
    if unanswered_count:
        lines.append(f"judge: {unanswered_count} of {question_count} questions were never answered and count as ties")
    return lines
