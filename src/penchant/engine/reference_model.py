"""Frozen models, and their log-probs through the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from penchant.data.rendering import PLAIN, Rendering
from penchant.data.second_reading import retokenize_groups
from penchant.data.tokenized import TokenizedGroup, Truncation
from penchant.engine.device import products_name
from penchant.engine.distributed import World, shard
from penchant.engine.scorer_choice import choose_scorer, sample_groups
from penchant.engine.scoring import Scorer, score_groups
from penchant.models.loading import check_vocabulary, context_length, load_model, load_tokenizer
from penchant.progress import Progress
from penchant.storage.caches import LogProbCache, cache_folder
from penchant.storage.fingerprints import model_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NO_LIMIT = 1_000_000_000
"""Number of tokens that a model without a context limit may read."""


@dataclass(frozen=True)
class FrozenModel:
    """A model that is only read, with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    rendering: Rendering = PLAIN

    @classmethod
    def load(
        cls,
        source: str,
        world: World,
        dtype: str,
        chat_template: str | None = None,
        rendering: Rendering = PLAIN,
    ) -> FrozenModel:
        """Load a model and its tokenizer onto this process's device; errors as in `models.loading`."""
        tokenizer = load_tokenizer(source, chat_template=chat_template)
        model = load_model(source, dtype=getattr(torch, dtype)).to(world.device).requires_grad_(False)
        check_vocabulary(model, tokenizer, source)
        return cls(model, tokenizer, rendering)

    @property
    def context(self) -> int:
        """Number of tokens that the model can read."""
        return context_length(self.model.config) or NO_LIMIT

    def retokenize(
        self, groups: Sequence[TokenizedGroup], truncation: Truncation
    ) -> tuple[list[TokenizedGroup], list[str]]:
        """The same groups by this model's tokenizer, and a note on prompts that were cut further.

        Raises:
            DataError: as `retokenize_groups`.
        """
        retokenized, shortened = retokenize_groups(
            groups, self.tokenizer, context=self.context, rendering=self.rendering, truncation=truncation
        )
        note = (
            f"prompts cut further for a reference with its own tokenizer and a context of {self.context} tokens: "
            f"{shortened} of {len(groups)} groups"
        )
        return retokenized, [note] if shortened else []

    def log_probs(
        self, groups: Sequence[TokenizedGroup], world: World, budget: int, dtype: str
    ) -> tuple[list[list[float]], list[str]]:
        """Summed log-probs of every candidate, nats, from the cache where they are stored; notes on the scorer."""
        choice = choose_scorer(self.model, sample_groups(groups), dtype)
        fingerprint = model_fingerprint(self.model)
        shard(choice.scorer, world)
        return cached_log_probs(choice.scorer, fingerprint, groups, world, budget, dtype), choice.notes


def cached_log_probs(
    scorer: Scorer, fingerprint: str, groups: Sequence[TokenizedGroup], world: World, budget: int, dtype: str
) -> list[list[float]]:
    """Summed log-probs of every candidate by a model whose weights have this fingerprint, through the cache."""
    scorer_name = f"{type(scorer).__name__} {products_name(dtype, world.device)} {world.device.type}"
    cache = LogProbCache(fingerprint, scorer_name, cache_folder())
    with Progress("log-probs", len(groups), "groups", visible=world.is_main) as progress:
        log_probs = score_groups(
            scorer, groups, world=world, budget=budget, dtype=dtype, cache=cache, advance=progress.advance
        )
    cache.close()
    return log_probs
