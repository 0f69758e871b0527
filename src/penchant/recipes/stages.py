"""A recipe's stages, one after the other, each in a folder of its own, each done once.

    FOLDER/NAME/            what the stage makes
    FOLDER/NAME/stage.json  written when it is done: its settings and those of the stages before it, and what it found

A stage that was killed is run again; it goes on from what it left where it can (a training run does), and makes the
rest anew. What a stage makes depends on its settings and on the stages before it alone, so that the end is the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penchant.errors import ConfigError
from penchant.evaluation.files import write_atomically

RECORD = "stage.json"

Found = Mapping[str, Any]


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
            place.mkdir(parents=True, exist_ok=True)
            done = json.loads(json.dumps(stage.run(place)))
            record = {"settings": settings, "found": done}
            write_atomically(place / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        else:
            tell(f"{number} of {len(stages)}: {stage.does}: done before")
        found[stage.name] = done
        if stage.name == only:
            break
    if len(found) == len(stages):
        finish(found)
    return found


def _done(place: Path, settings: Mapping[str, Mapping[str, Any]]) -> Found | None:
    """What the stage found when it was done; None if it was not.

    Args:
        settings: by stage, up to this one.

    Raises:
        ConfigError: it, or one before it, had other settings then.
    """
    file = place / RECORD
    if not file.exists():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        then, found = record["settings"], record["found"]
        before = _flat(then)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError("not a stage's record", where=str(file), fix=f"delete {place} to run it again") from error
    now = _flat(settings)
    changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if changed:
        name, key = changed[0]
        was, is_now = (json.dumps(each.get(changed[0])) for each in (before, now))
        raise ConfigError(
            f"the stage was done when {name}'s {key} was {was}; now it is {is_now}",
            where=str(place),
            fix="name another output folder; or delete this stage's folder and those after it to run them again",
        )
    result: Found = found
    return result


def _flat(settings: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], Any]:
    return {(stage, key): value for stage, each in settings.items() for key, value in each.items()}
