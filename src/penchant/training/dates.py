"""The day that a run's chat templates write as today's: settled when the run starts, the same when it is resumed."""

from __future__ import annotations

from pathlib import Path

from penchant.config import RunConfig
from penchant.evaluation.dates import recorded_day, today, write_today
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
    template = config.data.chat_template
    models = [(source, template) for source in dict.fromkeys([config.model, *reference_sources(config)]) if source]
    if config.reward is not None and config.reward.model is not None:
        models.append((config.reward.model, None))
    return write_today(models)


def day_note(config: RunConfig) -> list[str]:
    """A line for people, where a day is set."""
    day = config.data.date
    return [] if day is None else [f"chat templates that write today's date write {day}, also when this run is resumed"]
