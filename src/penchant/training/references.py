"""Log-probs of a run's references: computed before training, live for sampled candidates, or of a copy that moves.

Before training there is one table per reference, and one model in memory at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from penchant.config.run import RunConfig
from penchant.config.run_sections import TrainingConfig
from penchant.data.second_reading import add_mismatched, have_same_ids
from penchant.data.tokenized import TokenizedGroup
from penchant.engine.distributed import World
from penchant.engine.reference_model import FrozenModel
from penchant.engine.scorer_choice import choose_scorer, sample_groups
from penchant.engine.scoring import CandidateGroup, Scorer, score_groups
from penchant.errors import locate_errors
from penchant.training.batches import References
from penchant.training.model import Trained, copy_trained_weights

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


class MovingReference:
    """The primary reference of a run with `reference_update`.

    Before the first update it is the configured reference, whose log-probs were computed before training. After an
    update it is the policy of that step, which reads the policy's tokens. Only trained weights are copied: frozen ones
    (LoRA's base model) are shared. To score, policy and copy are swapped in memory, so that the reference is packed,
    sharded and rounded as the policy is.

    Args:
        scorer: the policy; sharded over the world where there are several processes.
    """

    def __init__(self, scorer: Scorer, settings: TrainingConfig, world: World) -> None:
        self._scorer, self._settings, self._world = scorer, settings, world
        self._weights = copy_trained_weights(scorer)
        self._step = torch.zeros((), dtype=torch.int64)

    @property
    def step(self) -> int:
        """The optimizer step of the copied policy; 0 before the first update."""
        return int(self._step)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors to save in a checkpoint, in the shapes of the weights; loading fills them in place."""
        return {"step": self._step, **{f"weights.{name}": copy for name, copy in self._weights.items()}}

    def update(self, step: int) -> None:
        """Copy the policy's weights, as they are after this many optimizer steps."""
        for name, parameter in self._scorer.named_parameters():
            if parameter.requires_grad:
                self._weights[name].copy_(parameter.detach())
        self._step.fill_(step)

    def rescore(self, groups: Sequence[CandidateGroup], references: References) -> References:
        """The references' log-probs of these groups, the primary's computed with the copied weights.

        Args:
            references: [R][groups][candidates] log-probs of the configured references; returned unchanged before the
                first update.
        """
        if not self.step or not groups:
            return references
        with self._swapped_in():
            primary = score_groups(
                self._scorer,
                groups,
                world=self._world,
                budget=self._settings.resolved_token_budget,
                dtype=self._settings.resolved_dtype,
            )
        return [primary, *references[1:]]

    @contextmanager
    def _swapped_in(self) -> Iterator[None]:
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange the policy's trained weights and the copy, one parameter at a time, in place: FSDP keeps views."""
        for name, parameter in self._scorer.named_parameters():
            if parameter.requires_grad:
                policy = parameter.detach().clone()
                parameter.copy_(self._weights[name])
                self._weights[name].copy_(policy)
