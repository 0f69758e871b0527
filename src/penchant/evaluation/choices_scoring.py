"""Scores of the options of multiple-choice questions by a model's log-probs and its preference head."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from penchant.data.tokenization import tokenize_groups
from penchant.data.tokenized import TokenizedGroup
from penchant.engine.distributed import World, shard
from penchant.engine.reference_model import FrozenModel, cached_log_probs
from penchant.engine.reward_scorers import HeadedScorer
from penchant.engine.scorer_choice import choose_scorer, head_scorer_notes, sample_groups
from penchant.engine.scoring import score_with_head
from penchant.errors import locate_errors
from penchant.evaluation.choices import Question, ScoredQuestion, chat_group, plain_group
from penchant.evaluation.held_out import AS_IS, Reading, length_limit
from penchant.models.preference_head import load_head
from penchant.storage.fingerprints import model_fingerprint

logger = logging.getLogger(__name__)

OptionNumbers = Callable[[Sequence[TokenizedGroup]], list[list[float]]]
"""Function from groups to a number for every response of every group."""


@dataclass(frozen=True)
class OptionScorer:
    """Functions that score every response of groups by a model.

    Attributes:
        log_probs: summed log-probs of the responses, nats.
        rewards: rewards by the preference head; None without a head.
    """

    log_probs: OptionNumbers
    rewards: OptionNumbers | None = None


def without_end(group: TokenizedGroup) -> TokenizedGroup:
    """The group without its responses' last token, which ends the turn.

    Tokenization refuses a response that is nothing but its end, so at least one token is left of each.
    """
    loss_masks = None if group.loss_masks is None else tuple(mask[:-1] for mask in group.loss_masks)
    return replace(group, responses=tuple(response[:-1] for response in group.responses), loss_masks=loss_masks)


def score_options(groups: Sequence[TokenizedGroup], scorer: OptionScorer) -> list[dict[str, tuple[float, ...]]]:
    """K scores of every group's options by name, as in `choices.SCORES`; ``head`` only if the scorer has a head.

    The log-prob without the end-of-turn token is computed from the responses without it, not by a subtraction: the
    tokens before do not depend on it, so both sums are exact.
    """
    answers = [without_end(group) for group in groups]
    columns = {
        "log": [
            tuple(value / tokens for value, tokens in zip(values, answer.tokens, strict=True))
            for values, answer in zip(scorer.log_probs(answers), answers, strict=True)
        ],
        "log_sum": list(map(tuple, scorer.log_probs(groups))),
    }
    if scorer.rewards is not None:
        columns["head"] = list(map(tuple, scorer.rewards(groups)))
    return [{name: column[i] for name, column in columns.items()} for i in range(len(groups))]


@dataclass(frozen=True)
class ScoredTask:
    """A task's scored questions, and the number of questions that were not scored by reason."""

    questions: tuple[ScoredQuestion, ...]
    left_out: Mapping[str, int]


def score_tasks(
    model: str,
    tasks: Mapping[str, Sequence[Question]],
    world: World,
    *,
    head: str | None = None,
    reading: Reading = AS_IS,
) -> dict[str, ScoredTask]:
    """Scored questions of every task by one model, which is loaded once.

    Options are the assistant's message where the tokenizer has a chat template, else they continue the prompt's text.

    Args:
        model: a folder or hub id.
        tasks: name -> questions.
        head: folder of a preference head on the model, or None.

    Raises:
        DataError: a question that the model cannot read as it is.
        ConfigError: a length limit beyond the model's context.
        ModelError: the model or its head cannot be loaded.
    """
    reading = reading.on_one_day(model)
    frozen = FrozenModel.load(model, world, reading.dtype, reading.chat_template, reading.rendering)
    templated = reads_messages(frozen, reading)
    form = "messages, by the chat template" if templated else "plain text, options continue the prompt"
    logger.info(f"questions are read as {form}")
    limit = length_limit(model, frozen.context, reading)
    tokenized = {}
    left_out = {}
    for name, questions in tasks.items():
        with locate_errors(f"task {name}"):
            tokenized[name], left_out[name] = tokenize_questions(questions, frozen, limit, reading)
        for event, count in sorted(left_out[name].items()):
            logger.info(f"{name}: {event.replace('_', ' ')}: {count} of {len(questions)} questions")
    scorer = load_scorer(frozen, [group for groups in tokenized.values() for group in groups], world, head, reading)
    scored = {}
    for name, questions in tasks.items():
        by_place = {question.where: question for question in questions}
        scores = score_options(tokenized[name], scorer)
        pairs = zip(tokenized[name], scores, strict=True)
        scored_questions = tuple(ScoredQuestion(by_place[group.group.id], values) for group, values in pairs)
        dropped = {event: count for event, count in left_out[name].items() if event.endswith("_dropped")}
        scored[name] = ScoredTask(scored_questions, dropped)
    return scored


def tokenize_questions(
    questions: Sequence[Question], frozen: FrozenModel, limit: int, reading: Reading
) -> tuple[list[TokenizedGroup], Mapping[str, int]]:
    """Token ids of the questions as messages or plain text, and counts of dropped or truncated questions by event."""
    form = chat_group if reads_messages(frozen, reading) else plain_group
    # Without the right option, two options of the same tokens are a tie here and no error of the tokenizer.
    groups = [replace(form(question), preferred=None) for question in questions]
    tokenized, report = tokenize_groups(
        groups,
        frozen.tokenizer,
        max_length=limit,
        rendering=replace(reading.rendering, as_chat="false"),
        truncation=reading.truncation,
        empty=reading.empty,
    )
    return tokenized, report.counts


def reads_messages(frozen: FrozenModel, reading: Reading) -> bool:
    """Whether questions become chat messages; ``auto`` means if the tokenizer has a chat template."""
    as_chat = reading.rendering.as_chat
    return as_chat == "true" or (as_chat == "auto" and frozen.tokenizer.chat_template is not None)


def load_scorer(
    frozen: FrozenModel,
    groups: Sequence[TokenizedGroup],
    world: World,
    head: str | None,
    reading: Reading,
) -> OptionScorer:
    """Scorer of groups like these by the model and, if `head` names a folder, by the preference head in it."""
    sample = sample_groups(groups)
    choice = choose_scorer(frozen.model, sample, reading.dtype)
    for note in choice.notes:
        logger.info(note)
    fingerprint = model_fingerprint(frozen.model)
    shard(choice.scorer, world)

    def log_probs(groups_to_score: Sequence[TokenizedGroup]) -> list[list[float]]:
        return cached_log_probs(choice.scorer, fingerprint, groups_to_score, world, reading.token_budget, reading.dtype)

    if head is None:
        return OptionScorer(log_probs)
    headed = HeadedScorer(choice.scorer, load_head(head).to(world.device))
    for note in head_scorer_notes(choice, headed, sample, reading.dtype)[-1:]:
        logger.info(f"of the head's rewards: {note}")

    def rewards(groups_to_score: Sequence[TokenizedGroup]) -> list[list[float]]:
        return score_with_head(headed, groups_to_score, world=world, budget=reading.token_budget, dtype=reading.dtype)

    return OptionScorer(log_probs, rewards)
