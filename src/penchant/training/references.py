"""Log-probs of a run's references: one table per reference, computed before training, one model in memory at a time."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext

from penchant.config.run import RunConfig
from penchant.data.second_reading import add_mismatched, have_same_ids
from penchant.data.tokenized import TokenizedGroup
from penchant.engine.distributed import World
from penchant.engine.reference_model import FrozenModel
from penchant.engine.scorer import Scorer
from penchant.engine.scorer_choice import choose_scorer, sample_groups
from penchant.engine.scoring import score_groups
from penchant.errors import locate_errors
from penchant.training.model import Trained

logger = logging.getLogger(__name__)

Table = list[list[float]]
"""[groups][candidates] summed log-probs, nats."""


def reference_tables(
    config: RunConfig, groups: Sequence[TokenizedGroup], longest: int, world: World
) -> tuple[list[Table | None], list[str]]:
    """One table per named reference, None for the model that training starts from; and notes, which are logged.

    Every reference reads the groups' *texts* with its own tokenizer and chat template, and gets responses to other
    prompts where the policy does.

    Args:
        longest: maximum tokens of prompt + response of the policy; a response to another prompt is cut there.
    """
    tables: list[Table | None] = []
    notes: list[str] = []
    for source in config.reference_sources:
        if source is not None and groups:
            table, lines = _table(config, source, groups, longest, world)
            tables.append(table)
            notes += lines
        else:
            tables.append(None if source is None else [])
    return tables, notes


class LiveReference:
    """The reference of candidates sampled during training; it stays in memory.

    Where adapters are trained on the starting model, that model without them is the reference; else it is a second
    model. It reads the sampled token ids, so its tokenizer must be the policy's: see `needs.check_live_reference`. Its
    log-probs are at the temperature of sampling, as the policy's are.
    """

    def __init__(self, config: RunConfig, model: Trained, world: World) -> None:
        self._settings, self._world = config.training, world
        self._temperature = config.sampling.temperature
        (source,) = config.reference_sources
        self._adapters = model.policy.adapters if source is None else None
        self._policy = model.scorer
        self._frozen: FrozenModel | None = None
        if self._adapters is None:
            dtype, template = config.training.resolved_dtype, config.data.chat_template
            self._frozen = FrozenModel.load(source or config.model, world, dtype, template, config.rendering)
        self._chosen: Scorer | None = None

    def __call__(self, groups: Sequence[TokenizedGroup]) -> list[Table]:
        """[1][groups][candidates] log-probs of the groups' tokens."""
        if self._chosen is None:
            self._chosen = self._policy if self._frozen is None else self._choose(self._frozen, groups)
        with self._adapters.disable_adapter() if self._adapters is not None else nullcontext():
            return [
                score_groups(
                    self._chosen,
                    groups,
                    world=self._world,
                    budget=self._settings.resolved_token_budget,
                    dtype=self._settings.resolved_dtype,
                    temperature=self._temperature,
                )
            ]

    def _choose(self, frozen: FrozenModel, groups: Sequence[TokenizedGroup]) -> Scorer:
        choice = choose_scorer(frozen.model, sample_groups(groups), self._settings.resolved_dtype)
        if choice.notice:
            logger.info(choice.notice)
        return choice.scorer


def _table(
    config: RunConfig,
    source: str,
    groups: Sequence[TokenizedGroup],
    longest: int,
    world: World,
) -> tuple[Table, list[str]]:
    settings = config.training
    frozen = FrozenModel.load(source, world, settings.resolved_dtype, config.data.chat_template, config.rendering)
    with locate_errors(source):
        theirs, notes = frozen.retokenize(groups, config.data.truncation)
    if config.built_objective.needs.mismatched:
        # The policy's limit counts the policy's tokens.
        limit = min(longest, frozen.context) if all(map(have_same_ids, groups, theirs)) else frozen.context
        theirs = add_mismatched(theirs, settings.seed, limit)
    for note in notes:
        logger.info(note)
    table, model_notes = frozen.log_probs(theirs, world, settings.resolved_token_budget, settings.resolved_dtype)
    for note in model_notes:
        logger.info(note)
    return table, notes + model_notes
