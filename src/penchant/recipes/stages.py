"""A recipe's stages, which run in order and once, every stage in its own folder.

    FOLDER/NAME/            what the stage writes
    FOLDER/NAME/begun.json  while the stage is unfinished: its settings and those of the stages before it
    FOLDER/NAME/stage.json  once the stage is done: the same settings, and the stage's result

An interrupted stage runs again; it resumes from its own files where it can (a training run does), and makes the rest
anew. A stage's output depends only on its settings and on the stages before it, so an interruption does not change it.

Changed settings are an error for a stage that is done. The files of an unfinished stage with other settings are
deleted: nothing could reuse them, and a stage that refused a setting must be run again with a corrected one.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from penchant.api import (
    ConfigError,
    RunReport,
    Section,
    folder_lock,
    resumable_disk_errors,
    run_log,
    write_atomically,
    write_report,
)

logger = logging.getLogger(__name__)

DONE_RECORD, UNFINISHED_RECORD = "stage.json", "begun.json"

StageResult = Mapping[str, Any]
"""What a stage returns, as JSON."""
Settings = Mapping[str, Mapping[str, Any]]
"""Settings by stage, up to and including one stage."""


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        name: name of the stage and of its folder.
        description: what the stage does, in the progress messages.
        settings: everything that decides the stage's result besides the stages before it, as JSON.
        run: writes the stage's files into the given folder and returns the stage's result.
    """

    name: str
    description: str
    settings: Mapping[str, Any]
    run: Callable[[Path], StageResult]


def run_stages(
    folder: Path,
    stages: Sequence[Stage],
    finish: Callable[[dict[str, StageResult]], None],
    *,
    only_stage: str | None = None,
) -> dict[str, StageResult]:
    """Run all stages that are not done yet, in order.

    Args:
        finish: called with all results once the last stage is done.
        only_stage: name of the only stage to run; the stages before it must be done.

    Returns:
        The result of every stage by its name, up to `only_stage`.

    Raises:
        ConfigError: a stage was done with other settings, `only_stage` is no stage, or a stage before it is not done.
    """
    names = [stage.name for stage in stages]
    if only_stage is not None and only_stage not in names:
        raise ConfigError(f"there is no stage '{only_stage}'", fix=f"one of {', '.join(names)}")
    with resumable_disk_errors(folder), folder_lock(folder), run_log() as log:
        log.open(folder)
        return _run_stages(folder, stages, finish, only_stage)


def _run_stages(
    folder: Path,
    stages: Sequence[Stage],
    finish: Callable[[dict[str, StageResult]], None],
    only_stage: str | None,
) -> dict[str, StageResult]:
    results: dict[str, StageResult] = {}
    settings: dict[str, Any] = {}
    for number, stage in enumerate(stages, 1):
        stage_folder = folder / stage.name
        settings[stage.name] = json.loads(json.dumps(stage.settings))
        result = _read_result(stage_folder, settings)
        if result is None:
            if only_stage not in (None, stage.name):
                raise ConfigError(
                    f"stage '{stage.name}' comes before '{only_stage}' and is not done",
                    fix=f"run stage {stage.name} first",
                )
            logger.info(f"{number} of {len(stages)}: {stage.description}")
            _start_stage(stage_folder, settings)
            result = json.loads(json.dumps(stage.run(stage_folder)))
            _write(stage_folder / DONE_RECORD, {"settings": settings, "found": result})
            (stage_folder / UNFINISHED_RECORD).unlink(missing_ok=True)
        else:
            logger.info(f"{number} of {len(stages)}: {stage.description}: already done")
        results[stage.name] = result
        if stage.name == only_stage:
            break
    if len(results) == len(stages):
        finish(results)
    return results


def _read_result(folder: Path, settings: Settings) -> StageResult | None:
    """The recorded result of a stage; None if the stage is not done.

    Raises:
        ConfigError: the stage, or a stage before it, was done with other settings.
    """
    if not (folder / DONE_RECORD).exists():
        return None
    recorded, change = _read_record(folder, DONE_RECORD, settings)
    if change is not None:
        raise ConfigError(
            f"the stage was done when {change}",
            where=str(folder),
            fix="name another output folder; or delete this stage's folder and those after it to run them again",
        )
    result: StageResult = recorded
    return result


def _start_stage(folder: Path, settings: Settings) -> None:
    """Make the stage's folder, and delete the files of an unfinished run with other settings."""
    if (folder / UNFINISHED_RECORD).exists():
        change = _read_record(folder, UNFINISHED_RECORD, settings)[1]
        if change is not None:
            logger.info(f"the stage was begun when {change}: it starts again")
            # Renamed first: if the deletion is interrupted, the stage must not resume from the remaining files.
            aside = folder.with_name(f".thrown-away-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            shutil.rmtree(aside)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / UNFINISHED_RECORD, {"settings": settings, "found": None})


def write_result(folder: Path, config: Section, result: Mapping[str, Any], report: RunReport) -> None:
    """Write a recipe's `result.json`, and `report.html` with the configuration."""
    _write(folder / "result.json", result)
    config_yaml = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_report(folder / "report.html", replace(report, config_yaml=config_yaml))


def _write(file: Path, record: Mapping[str, Any]) -> None:
    write_atomically(file, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _read_record(folder: Path, name: str, settings: Settings) -> tuple[Any, str | None]:
    """The result in a stage's record, and a description of the first setting that has changed since, if any.

    Raises:
        ConfigError: the file is not a stage's record.
    """
    file = folder / name
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        result, old_settings = record["found"], _flatten(record["settings"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError("not a stage's record", where=str(file), fix=f"delete {folder} to run it again") from error
    new_settings = _flatten(settings)
    changed_keys = sorted(
        key for key in {*old_settings, *new_settings} if old_settings.get(key) != new_settings.get(key)
    )
    if not changed_keys:
        return result, None
    stage, setting = changed_keys[0]
    old, new = (json.dumps(values.get(changed_keys[0])) for values in (old_settings, new_settings))
    return result, f"{stage}'s {setting} was {old}; now it is {new}"


def _flatten(settings: Settings) -> dict[tuple[str, str], Any]:
    return {(stage, key): value for stage, values in settings.items() for key, value in values.items()}
