"""The one day that a chat template writes as today's: a run's own, wherever its model is measured or asked."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from penchant.config_yaml import parse_yaml
from penchant.data.rendering import Rendering
from penchant.data.template import reads_clock
from penchant.engine.loading import load_tokenizer
from penchant.errors import PenchantError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def recorded_day(folder: str | Path) -> str | None:
    """The day that a run's folder was begun with; None where it is no run's, or its template writes none."""
    file = Path(folder) / "config.yaml"
    try:
        values = parse_yaml(file.read_text(encoding="utf-8"))
        day = values["data"]["date"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return None
    return None if day is None else str(day)


def tokenizers(models: Iterable[tuple[str, str | None]]) -> Iterator[PreTrainedTokenizerBase]:
    """The models' tokenizers, one after another; what cannot be loaded is refused elsewhere.

    Args:
        models: folders or hub ids, each with a template's file that stands for its own.
    """
    for source, template in models:
        try:
            yield load_tokenizer(source, chat_template=template)
        except PenchantError:
            continue


def today() -> str:
    """The clock's day, as in ``2026-11-30``."""
    return datetime.date.today().isoformat()


def on_one_day(
    model: str, chat_template: str | None, rendering: Rendering, tell: Callable[[str], None] = lambda line: None
) -> Rendering:
    """The settings with a day where the model's template writes one: their own, else its run's, else today's.

    Args:
        chat_template: a template's file that stands for the model's own.
    """
    if rendering.date is not None or not any(map(reads_clock, tokenizers([(model, chat_template)]))):
        return rendering
    day = recorded_day(model)
    tell(f"the chat template writes {day or today()} as today's date" + (", as the run did" if day else ""))
    return replace(rendering, date=day or today())
