"""Checks of a run's data and models against what its objective needs, before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from penchant.config.run import RunConfig
from penchant.data.groups import PreferenceGroup
from penchant.errors import ConfigError, DataError
from penchant.models.loading import adapter_base, context_length, load_config, load_tokenizer
from penchant.models.model_kind import model_kind, require_language_model
from penchant.objectives import FittedObjective, Groups, State

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_references(config: RunConfig) -> str | None:
    """Refuse references that the objective cannot use; returns a notice where one is named and not used.

    Raises:
        ConfigError: there are too many references, or none for an objective that mixes them; or no pairs to fit their
            weights to; or reference_update is set without a reference, or with weights fitted before training.
    """
    objective, reference_count = config.built_objective, len(config.references) or int(config.reference is not None)
    needs = objective.needs
    if needs.fitting_pairs and config.data.reference_held_out is None:
        raise ConfigError(
            f"{objective.name} fits its weights to pairs that no reference was trained on, and none are named: "
            "references that were trained on the training pairs know those by heart",
            fix="give a share of the prompts or a file: data.reference_held_out=0.1",
        )
    if needs.many_references and not reference_count:
        raise ConfigError(
            f"{objective.name} mixes references, and none is named",
            fix="references=[MODEL, MODEL, ...], the first is the primary; of the starting model alone it is "
            "objective.name=dpo",
        )
    if config.reference_update != "never" and (not needs.references or needs.fitting_pairs):
        reason = "its reference weights are fitted before training" if needs.references else "it has no reference"
        raise ConfigError(
            f"reference_update is {config.reference_update}, and {objective.name} cannot follow it: {reason}",
            fix="reference_update=never"
            + (", or another weighting, as in objective.weighting=adaptive" if needs.references else ""),
        )
    if reference_count and not needs.references:
        return f"{objective.name} has no reference: the one that is named is not used"
    if reference_count > needs.references and not needs.many_references:
        raise ConfigError(
            f"references names {reference_count} models, {objective.name} takes {needs.references}",
            fix="name one with reference=MODEL, or use objective.name=multi_reference",
        )
    return None


def check_models(config: RunConfig) -> list[str]:
    """Refuse a reward model where the run needs a language model; returns a notice on an unused preference head.

    Raises:
        ModelError: a folder does not hold a language model.
    """
    if config.built_objective.needs.trains == "log_probs":
        require_language_model(config.model)
    if config.built_objective.needs.references:
        for source in filter(None, config.reference_sources):
            require_language_model(source)
    heads = model_kind(config.model).heads
    if not heads:
        return []
    notice = f"the preference head beside {config.model} ({', '.join(heads)}) is not part of this run"
    return [f"{notice}; a fresh one is trained" if config.built_objective.needs.head else notice]


def fit_state(objective: FittedObjective, reference: Tensor, groups: Groups, state: State) -> State:
    """The objective's initial state, fitted to the references' log-probs [R, G, K].

    Raises:
        ConfigError: its hyper-parameters do not fit the number of references.
    """
    try:
        return objective.fit(reference, groups, state)
    except ValueError as error:
        raise ConfigError(f"objective: {error}", fix="name as many in `references`, in their order") from error


def check_sampled(config: RunConfig, processes: int) -> None:
    """Refuse settings that do not work with candidates sampled during training.

    Raises:
        ConfigError: a setting or the objective does not work with them.
    """
    if config.candidates == "given":
        return
    objective, needs = config.built_objective, config.built_objective.needs
    reason = None
    if needs.many_references:
        reason = f"{objective.name} takes its references' log-probs from a table made before training"
    elif config.reference_update != "never":
        reason = f"reference_update={config.reference_update} is of log-probs of the data's own candidates"
    elif needs.mismatched:
        reason = f"{objective.name} needs responses to other prompts"
    elif needs.trains == "rewards" or needs.head:
        reason = f"{objective.name} does not train what is sampled from"
    elif needs.candidates > config.sampling.samples:
        reason = f"{objective.name} compares at least {needs.candidates}, sampling.samples is {config.sampling.samples}"
    if reason is not None:
        raise ConfigError(f"candidates is sampled: {reason}", fix="candidates=given")
    if needs.on_policy and config.sampling.top_p < 1:
        raise ConfigError(
            f"sampling.top_p is {config.sampling.top_p}, and {objective.name} learns by the probability that a sample "
            "was drawn with, which is then not the policy's",
            fix="sampling.top_p=1; a sampling.temperature below 1 also draws likelier tokens, and is accounted for",
        )
    if processes > 1:
        raise ConfigError("candidates is sampled: it runs in one process", fix="start it without torchrun")


def check_head(config: RunConfig) -> None:
    """Refuse a frozen backbone where no head is trained.

    Raises:
        ConfigError: the objective has no head, so all weights would be trained.
    """
    if config.head.freeze_backbone and not config.built_objective.needs.head:
        raise ConfigError(
            f"head.freeze_backbone is true, and {config.built_objective.name} has no head: it would train the whole "
            "model",
            fix="head.freeze_backbone=false, or train a head: objective.name=preference_head",
        )


def check_live_reference(config: RunConfig, tokenizer: PreTrainedTokenizerBase, longest: int) -> None:
    """Refuse a reference that cannot score the policy's token ids.

    Args:
        longest: maximum tokens of a prompt with its answer.

    Raises:
        PenchantError: its tokenizer differs, its context is too short, or it cannot be loaded.
    """
    ours = tokenizer.get_vocab()
    for source in filter(None, config.reference_sources):
        theirs = load_tokenizer(source).get_vocab()
        differing = [token for token in sorted(ours, key=ours.__getitem__) if theirs.get(token) != ours[token]]
        if differing:
            raise ConfigError(
                "candidates is sampled: the reference is given the very tokens that are drawn, and its tokenizer is "
                f"another ({len(differing)} of the model's {len(ours)} tokens have no id or another one in it; the "
                f"first is {differing[0]!r})",
                where=source,
                fix="name a reference with the model's own tokenizer, or none: it is the model training starts from; "
                "with candidates=given each reads the text with its own",
            )
        limit = context_length(load_config(adapter_base(source) or source, weights=False))
        if limit is not None and longest > limit:
            raise ConfigError(
                f"the reference's context is {limit} tokens; the longest prompt and its answer, of up to "
                f"sampling.max_new_tokens={config.sampling.max_new_tokens}, have {longest}",
                where=source,
                fix=f"lower sampling.max_new_tokens, or leave long prompts out: data.max_length={limit} "
                "data.truncation=drop",
            )


def filter_learnable_groups(
    config: RunConfig, groups: list[PreferenceGroup], name: str, source: str, notes: list[str]
) -> list[PreferenceGroup]:
    """The groups that the objective can learn from; the number of the others is added to `notes`.

    Raises:
        DataError: a group has too few candidates, or no group meets a requirement.
    """
    objective, needs = config.built_objective, config.built_objective.needs
    small = [g for g in groups if len(g.candidates) < needs.candidates]
    if small:
        raise DataError(
            f"{objective.name} compares at least {needs.candidates} candidates, "
            f"{len(small)} of {len(groups)} groups have fewer (first: {_ids(small)})",
            where=source,
            fix="use data with a chosen and a rejected response, or an objective for single responses: "
            "objective.name=sft",
        )
    requirements = []
    if needs.pairs:
        requirements.append(_PREFERENCES)
    if needs.scores and config.reward is None:
        requirements.append(_SCORES)
    if needs.labels:
        requirements.append(_LABELS)
    for requirement in requirements:
        learnable = [group for group in groups if requirement.is_met(group)]
        if not learnable:
            raise DataError(
                f"{objective.name} learns from {requirement.learns_from}, and no group {requirement.has}",
                where=source,
                fix=requirement.fix,
            )
        if len(learnable) < len(groups):
            left_out = len(groups) - len(learnable)
            notes.append(f"{name}: {left_out} of {len(groups)} groups left out: {requirement.lacks}")
        groups = learnable
    return groups


@dataclass(frozen=True)
class _Requirement:
    """What a group must have for an objective to learn from it.

    Attributes:
        learns_from, has, lacks, fix: the words of the error where no group meets it, and of the note where some do not.
    """

    is_met: Callable[[PreferenceGroup], bool]
    learns_from: str
    has: str
    lacks: str
    fix: str


_PREFERENCES = _Requirement(
    lambda group: bool(group.pairs),
    learns_from="preferences",
    has="says which candidate is better",
    lacks="all candidates tie",
    fix="add scores, ranks or a preferred index to the rows; see `penchant data check`",
)
_SCORES = _Requirement(
    lambda group: group.scores is not None,
    learns_from="scores",
    has="has any",
    lacks="no scores",
    fix="write them with `penchant score`, or let the run do it: reward.model=MODEL or reward.function=FILE:NAME",
)
_LABELS = _Requirement(
    lambda group: group.labels is not None or bool(group.pairs),
    learns_from="labels",
    has="has labels or preferences",
    lacks="neither labels nor preferences",
    fix="add a yes/no label to each row, or preferences, whose winners count as desirable",
)


def _ids(groups: Sequence[PreferenceGroup]) -> str:
    return ", ".join(group.id for group in groups[:5])
