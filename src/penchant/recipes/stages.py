"""A recipe's stages, one after the other, each in a folder of its own, each done once.

    FOLDER/NAME/            what the stage makes
    FOLDER/NAME/begun.json  while it is not: its settings and those of the stages before it
    FOLDER/NAME/stage.json  written when it is done: the same settings, and what it found

A stage that was killed is run again; it goes on from what it left where it can (a training run does), and makes the
rest anew. What a stage makes depends on its settings and on the stages before it alone, so that the end is the same.

Settings that have changed are refused for a stage that is done. What one that is not done has left under other settings
is thrown away: nothing of it could be used, and a stage that refused a setting is to be run with a better one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penchant.engine.folder_lock import folder_lock
from penchant.engine.folders import resumable_disk_errors
from penchant.errors import ConfigError
from penchant.evaluation.files import write_atomically

RECORD, BEGUN = "stage.json", "begun.json"

Found = Mapping[str, Any]
Settings = Mapping[str, Mapping[str, Any]]
"""By stage, up to one of them."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: of its folder.
        does: for people.
        settings: what decides its result, beside the stages before it; JSON.
        run: given its folder, makes what it makes there and returns what it found; JSON.
    """

    name: str
    does: str
    settings: Mapping[str, Any]
    run: Callable[[Path], Found]


def run_stages(
    folder: Path,
    stages: Sequence[Stage],
    finish: Callable[[dict[str, Found]], None],
    *,
    only: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Found]:
    """Run what is not done yet, in order.

    Args:
        finish: called with what was found once the last stage is done.
        only: one stage; those before it must be done.

    Returns:
        What each stage found, by name; up to `only`.

    Raises:
        ConfigError: a stage was done with other settings, there is no stage `only`, or one before it is not done.
    """
    names = [stage.name for stage in stages]
    if only is not None and only not in names:
        raise ConfigError(f"there is no stage '{only}'", fix=f"one of {', '.join(names)}")
    with resumable_disk_errors(folder), folder_lock(folder):
        return _run_stages(folder, stages, finish, only, tell)


def _run_stages(
    folder: Path,
    stages: Sequence[Stage],
    finish: Callable[[dict[str, Found]], None],
    only: str | None,
    tell: Callable[[str], None],
) -> dict[str, Found]:
    found: dict[str, Found] = {}
    settings: dict[str, Any] = {}
    for number, stage in enumerate(stages, 1):
        place = folder / stage.name
        settings[stage.name] = json.loads(json.dumps(stage.settings))
        done = _done(place, settings)
        if done is None:
            if only not in (None, stage.name):
                raise ConfigError(
                    f"stage '{stage.name}' comes before '{only}' and is not done", fix=f"run stage {stage.name} first"
                )
            tell(f"{number} of {len(stages)}: {stage.does}")
            _begin(place, settings, tell)
            done = json.loads(json.dumps(stage.run(place)))
            _write(place / RECORD, {"settings": settings, "found": done})
            (place / BEGUN).unlink(missing_ok=True)
        else:
            tell(f"{number} of {len(stages)}: {stage.does}: done before")
        found[stage.name] = done
        if stage.name == only:
            break
    if len(found) == len(stages):
        finish(found)
    return found


def _done(place: Path, settings: Settings) -> Found | None:
    """What the stage found when it was done; None if it was not.

    Raises:
        ConfigError: it, or one before it, had other settings then.
    """
    if not (place / RECORD).exists():
        return None
    found, change = _read(place, RECORD, settings)
    if change is not None:
        raise ConfigError(
            f"the stage was done when {change}",
            where=str(place),
            fix="name another output folder; or delete this stage's folder and those after it to run them again",
        )
    result: Found = found
    return result


def _begin(place: Path, settings: Settings, tell: Callable[[str], None]) -> None:
    """Make the stage's folder, without what it left under other settings."""
    if (place / BEGUN).exists():
        change = _read(place, BEGUN, settings)[1]
        if change is not None:
            tell(f"it was begun when {change}: it begins anew")
            # Killed halfway, what is left of it must not stand where the stage would go on from it.
            aside = place.with_name(f".thrown-away-{place.name}")
            shutil.rmtree(aside, ignore_errors=True)
            place.rename(aside)
            shutil.rmtree(aside)
    place.mkdir(parents=True, exist_ok=True)
    _write(place / BEGUN, {"settings": settings, "found": None})


def _write(file: Path, record: Mapping[str, Any]) -> None:
    write_atomically(file, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _read(place: Path, name: str, settings: Settings) -> tuple[Any, str | None]:
    """What a record says was found, and the first of the settings that is not as it was then.

    Raises:
        ConfigError: it is no record.
    """
    file = place / name
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        found, before = record["found"], _flat(record["settings"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError("not a stage's record", where=str(file), fix=f"delete {place} to run it again") from error
    now = _flat(settings)
    changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if not changed:
        return found, None
    stage, key = changed[0]
    was, is_now = (json.dumps(each.get(changed[0])) for each in (before, now))
    return found, f"{stage}'s {key} was {was}; now it is {is_now}"


def _flat(settings: Settings) -> dict[tuple[str, str], Any]:
    return {(stage, key): value for stage, each in settings.items() for key, value in each.items()}
