"""Log-probs by a run's references: a table each, made before training, one model in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from penchant.config import RunConfig
from penchant.data.mismatch import add_mismatched
from penchant.data.tokenized import TokenizedGroup
from penchant.engine.distribution import World
from penchant.engine.frozen import FrozenModel

Table = list[list[float]]
"""[groups][candidates] summed log-probs, nats."""


def reference_sources(config: RunConfig) -> list[str | None]:
    """The references' folders or hub ids, in order; None is the model training starts from."""
    if not config.method.needs.references:
        return []
    return list(config.references) or [config.reference]


def reference_tables(
    config: RunConfig, groups: Sequence[TokenizedGroup], world: World, tell: Callable[[str], None]
) -> list[Table | None]:
    """A table for each reference that is named; None where it is the model training starts from.

    Each reference reads the groups' *texts* with its own tokenizer and chat template, and borrows responses to other
    prompts as the policy does.
    """
    tables: list[Table | None] = []
    for source in reference_sources(config):
        tables.append(None if source is None else _table(config, source, groups, world, tell))
    return tables


def _table(
    config: RunConfig, source: str, groups: Sequence[TokenizedGroup], world: World, tell: Callable[[str], None]
) -> Table:
    settings = config.training
    frozen = FrozenModel.load(source, world, settings.dtype, config.data.chat_template)
    theirs = frozen.retokenize(groups)
    if config.method.needs.mismatched:
        theirs = add_mismatched(theirs, settings.seed, frozen.context)
    return frozen.log_probs(theirs, world, settings.token_budget, settings.dtype, tell)
