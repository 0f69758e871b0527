"""The day that a run's chat templates write as today's: settled when the run starts, the same when it is resumed."""

from __future__ import annotations

from pathlib import Path

from penchant.config import RunConfig
from penchant.data.template import has_date, reads_clock
from penchant.evaluation.dates import recorded_day, today, tokenizers
from penchant.training.references import reference_sources


def on_one_day(config: RunConfig) -> RunConfig:
    """The configuration with `data.date`: its own, else that of the run in its folder, else today.

    None where no chat template of the run's models writes a date.
    """
    if config.data.date is not None:
        return config
    begun = (Path(config.output) / "run.json").exists()
    day = recorded_day(config.output) if begun else None
    return with_day(config, day or (today() if run_writes_today(config) else None))


def with_day(config: RunConfig, day: str | None) -> RunConfig:
    """The configuration with this `data.date`."""
    return config.model_copy(update={"data": config.data.model_copy(update={"date": day})})


def run_writes_today(config: RunConfig) -> bool:
    """Whether a chat template of the run's models writes today's date: policy, references or reward model."""
    return any(map(reads_clock, tokenizers(_models(config))))


def _models(config: RunConfig) -> list[tuple[str, str | None]]:
    template = config.data.chat_template
    models: list[tuple[str, str | None]] = [
        (source, template) for source in dict.fromkeys([config.model, *reference_sources(config)]) if source
    ]
    if config.reward is not None and config.reward.model is not None:
        models.append((config.reward.model, None))
    return models


def day_note(config: RunConfig) -> list[str]:
    """A line for people, where a day is set."""
    day = config.data.date
    if day is None:
        return []
    if not any(map(has_date, tokenizers(_models(config)))):
        return [f"data.date is {day}, and no chat template of this run writes a date"]
    return [f"the chat template writes {day} as today's date, also when this run is resumed"]
