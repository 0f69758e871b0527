"""Log-probs and metrics of a model on held-out preferences, with the date its chat template writes."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml

from penchant.config.run import RunConfig
from penchant.config.run_sections import SAFE_TOKEN_BUDGET, Dtype
from penchant.config.section import parse_yaml
from penchant.data.groups import PreferenceGroup
from penchant.data.rendering import PLAIN, Rendering
from penchant.data.template import reads_clock
from penchant.data.tokenization import tokenize_groups
from penchant.data.tokenized import TokenizedGroup, Truncation
from penchant.engine.distributed import World
from penchant.engine.reference_model import FrozenModel
from penchant.errors import ConfigError, PenchantError, locate_errors
from penchant.evaluation.preferences import PreferenceReport, ScoredGroup, evaluate_preferences
from penchant.models.loading import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def recorded_day(folder: str | Path) -> str | None:
    """The template date recorded in a run's folder; None for other folders and for templates without a date."""
    file = Path(folder) / "config.yaml"
    try:
        values = parse_yaml(file.read_text(encoding="utf-8"))
        day = values["data"]["date"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return None
    return None if day is None else str(day)


def tokenizers(models: Iterable[tuple[str, str | None]]) -> Iterator[PreTrainedTokenizerBase]:
    """Iterator over the models' tokenizers; those that cannot be loaded are skipped and reported elsewhere.

    Args:
        models: folders or hub ids, each with a template's file that stands for its own.
    """
    for source, template in models:
        try:
            yield load_tokenizer(source, chat_template=template)
        except PenchantError:
            continue


def today() -> str:
    """Today's date by the clock, as in ``2026-11-30``."""
    return datetime.date.today().isoformat()


def on_one_day(model: str, chat_template: str | None, rendering: Rendering) -> tuple[Rendering, list[str]]:
    """The rendering with a fixed date if the model's template writes one (its own, else the run's or today's); notes.

    Args:
        chat_template: a template's file that stands for the model's own.
    """
    if rendering.date is not None or not any(map(reads_clock, tokenizers([(model, chat_template)]))):
        return rendering, []
    day = recorded_day(model)
    note = f"the chat template writes {day or today()} as today's date" + (", as the run did" if day else "")
    return replace(rendering, date=day or today()), [note]


@dataclass(frozen=True)
class Reading:
    """Settings for tokenizing preferences and scoring them.

    Attributes:
        max_length: tokens of prompt + response; None is the model's context.
        truncation, empty, identical: what happens to rows that do not fit; see docs/tokenization.md.
        chat_template: a file with a Jinja template to use instead of the tokenizer's.
        token_budget: tokens in a micro-batch.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        rendering: how rows become text.
    """

    max_length: int | None = None
    truncation: Truncation = "error"
    empty: Literal["error", "drop"] = "error"
    identical: Literal["error", "drop"] = "error"
    chat_template: str | None = None
    token_budget: int = SAFE_TOKEN_BUDGET
    dtype: Dtype = "float32"
    rendering: Rendering = PLAIN

    @classmethod
    def of_run(cls, config: RunConfig) -> Reading:
        """Settings of a run's configuration."""
        data, training = config.data, config.training
        return cls(
            data.max_length,
            data.truncation,
            data.empty,
            data.identical,
            data.chat_template,
            training.unplanned_token_budget,
            training.resolved_dtype,
            config.rendering,
        )

    def on_one_day(self, model: str) -> Reading:
        """These settings with a fixed date for the model's template, which is logged; see the function `on_one_day`."""
        rendering, notes = on_one_day(model, self.chat_template, self.rendering)
        for note in notes:
            logger.info(note)
        return replace(self, rendering=rendering)


AS_IS = Reading()
"""Default reading settings."""


def score(
    model: str,
    groups: Sequence[PreferenceGroup],
    world: World,
    *,
    reference: str | None = None,
    reading: Reading = AS_IS,
) -> list[ScoredGroup]:
    """Log-probs of every candidate by a model, and by a reference if one is named; one model is in memory at a time.

    Args:
        model, reference: folders or hub ids; the reference may have a tokenizer of its own.
    """
    return score_with_notes(model, groups, world, reference=reference, reading=reading)[0]


def score_with_notes(
    model: str,
    groups: Sequence[PreferenceGroup],
    world: World,
    *,
    reference: str | None = None,
    reading: Reading = AS_IS,
    logged: Sequence[str] = (),
) -> tuple[list[ScoredGroup], list[str]]:
    """Scored groups as `score` returns them, with the notes on rows and models that are not `logged` yet."""
    notes: list[str] = []
    for source in (model, reference):
        if source is not None:
            rendering, lines = on_one_day(source, reading.chat_template, reading.rendering)
            reading = replace(reading, rendering=rendering)
            notes += log_new_notes(lines, [*logged, *notes])
    policy = FrozenModel.load(model, world, reading.dtype, reading.chat_template, reading.rendering)
    tokenized, lines = read_held_out(policy, model, groups, reading)
    notes += log_new_notes(lines, [*logged, *notes])
    log_probs, lines = policy.log_probs(tokenized, world, reading.token_budget, reading.dtype)
    notes += log_new_notes(lines, [*logged, *notes])
    del policy
    reference_log_probs: list[list[float]] | None = None
    if reference is not None:
        frozen = FrozenModel.load(reference, world, reading.dtype, reading.chat_template, reading.rendering)
        with locate_errors(reference):
            theirs, lines = frozen.retokenize(tokenized, reading.truncation)
        notes += log_new_notes(lines, [*logged, *notes])
        reference_log_probs, lines = frozen.log_probs(theirs, world, reading.token_budget, reading.dtype)
        notes += log_new_notes(lines, [*logged, *notes])
    return scored_groups(tokenized, log_probs, reference_log_probs), notes


def log_new_notes(notes: Sequence[str], logged: Sequence[str]) -> list[str]:
    """The notes that are not `logged` yet; logs them."""
    new = [note for note in notes if note not in logged]
    for note in new:
        logger.info(note)
    return new


def read_held_out(
    policy: FrozenModel,
    model: str,
    groups: Sequence[PreferenceGroup],
    reading: Reading,
) -> tuple[list[TokenizedGroup], list[str]]:
    """Tokenized groups in their order, and notes on those that were changed or dropped."""
    tokenized, report = tokenize_groups(
        groups,
        policy.tokenizer,
        max_length=length_limit(model, policy.context, reading),
        rendering=reading.rendering,
        truncation=reading.truncation,
        empty=reading.empty,
        identical=reading.identical,
    )
    return tokenized, report.lines()


def length_limit(model: str, context: int, reading: Reading) -> int:
    """Maximal tokens of prompt and response: the reading's limit, else the model's context.

    Raises:
        ConfigError: the limit is beyond the context.
    """
    if (reading.max_length or 0) > context:
        raise ConfigError(
            f"the length limit is {reading.max_length}, the model's context is {context} tokens",
            where=model,
            fix=f"data.max_length={context}, or none",
        )
    return reading.max_length or context


def scored_groups(
    groups: Sequence[TokenizedGroup],
    log_probs: Sequence[Sequence[float]],
    reference_log_probs: Sequence[Sequence[float]] | None,
) -> list[ScoredGroup]:
    """Scored groups from tokenized groups and [G][K] summed log-probs in nats."""
    return [
        ScoredGroup(
            group=group.group,
            prompt_tokens=len(group.prompt),
            tokens=group.tokens,
            log_probs=tuple(log_probs[i]),
            reference_log_probs=None if reference_log_probs is None else tuple(reference_log_probs[i]),
        )
        for i, group in enumerate(groups)
    ]


__all__ = [
    "AS_IS",
    "PreferenceReport",
    "Reading",
    "ScoredGroup",
    "evaluate_preferences",
    "read_held_out",
    "score",
    "scored_groups",
]
