"""Ranking of candidates by a model's preference head, log-probs or rewards."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from penchant.data.groups import PreferenceGroup, as_text
from penchant.data.special_tokens import SpecialTokens
from penchant.engine.distributed import World
from penchant.engine.reference_model import FrozenModel
from penchant.engine.reward_scorers import HeadedScorer, require_end_tokens
from penchant.engine.scorer_choice import choose_scorer, head_scorer_notes, sample_groups
from penchant.engine.scoring import score_with_head
from penchant.evaluation.held_out import (
    AS_IS,
    Reading,
    log_new_notes,
    on_one_day,
    read_held_out,
    score_with_notes,
)
from penchant.evaluation.one_preferred import OnePreferred
from penchant.evaluation.preference_pairs import flatten_groups, prompt_numbers
from penchant.evaluation.rewards import Reward
from penchant.evaluation.score_file import accuracy_of_scores
from penchant.evaluation.statistics import Estimate
from penchant.models.model_kind import require_language_model
from penchant.models.preference_head import NAME, load_head
from penchant.storage.files import write_atomically

if TYPE_CHECKING:
    from rich.table import Table

logger = logging.getLogger(__name__)

By = Literal["head", "log_prob", "mean_log_prob"]


@dataclass(frozen=True)
class Ranking:
    """Groups with the scores that rank their candidates.

    Attributes:
        by: name of the score.
        groups: groups whose `scores` rank their candidates; higher is better.
        accuracy: share of the data's pairs that the scores order as the data does (a tie is wrong); None without pairs.
        choices: hit ratio, NDCG and reciprocal rank if the data prefers one candidate of more than two; see
            `one_preferred`.
        notes: what happened to rows, and how the model is run; logged.
    """

    by: str
    groups: tuple[PreferenceGroup, ...]
    accuracy: Estimate | None
    choices: Mapping[str, Estimate] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def lines(self) -> list[dict[str, Any]]:
        """A dictionary for every group: id, candidate indices from the best down, and scores in the data's order."""
        rows = []
        for group in self.groups:
            scores = list(group.scores or ())
            # Equal scores keep the data's order.
            order = sorted(range(len(scores)), key=lambda k: (-scores[k], k))
            rows.append({"id": group.id, "order": order, "scores": scores})
        return rows

    def to_json(self) -> dict[str, Any]:
        accuracy = None if self.accuracy is None else self.accuracy.to_json()
        choices = {name: estimate.to_json() for name, estimate in self.choices.items()}
        return {"by": self.by, "groups": self.lines(), "accuracy": accuracy, **choices}

    def write(self, path: Path) -> None:
        """Write a JSON line for every group."""
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in self.lines()))

    @property
    def table(self) -> Table:
        from rich.table import Table
        from rich.text import Text as Plain

        table = Table("prompt", "best candidate", "score", title=f"by {self.by}", show_lines=True)
        for group, line in list(zip(self.groups, self.lines(), strict=True))[:20]:
            best = line["order"][0]
            text = as_text(group.candidates[best])
            table.add_row(Plain(as_text(group.prompt)[-200:]), Plain(text[:400]), f"{line['scores'][best]:.4f}")
        notes = [f"the first 20 of {len(self.groups)} groups"] if len(self.groups) > 20 else []
        if self.accuracy is not None:
            notes.append(f"orders the data's pairs: {_with_interval(self.accuracy)} of {self.accuracy.n} groups")
        notes += [
            f"{name}: {_with_interval(estimate)} of {estimate.n} groups" for name, estimate in self.choices.items()
        ]
        table.caption = Plain("\n".join(notes)) if notes else None
        return table


def rank(
    model: str,
    groups: Sequence[PreferenceGroup],
    world: World,
    *,
    by: By,
    reading: Reading = AS_IS,
    head: str = NAME,
    logged: Sequence[str] = (),
) -> Ranking:
    """Ranking of every group's candidates by a model.

    Args:
        model: folder or hub id.
        by: the preference head's reward, or the candidate's summed or mean log-prob (end-of-turn included).
        head: name of the preference head, as a folder may hold several.
        logged: notes that are logged already.

    Raises:
        PenchantError: the model has no such head, or rows do not fit.
    """
    require_language_model(model)
    if by == "head":
        numbered, notes = _by_head(model, groups, world, head, reading, logged)
    else:
        scored, notes = score_with_notes(model, groups, world, reading=reading, logged=logged)
        numbered = [
            (
                row.group,
                [p / (n if by == "mean_log_prob" else 1) for p, n in zip(row.log_probs, row.tokens, strict=True)],
            )
            for row in scored
        ]
    return replace(_ranking(by, numbered), notes=tuple(notes))


def rank_by_reward(groups: Sequence[PreferenceGroup], reward: Reward) -> Ranking:
    """Ranking of every group's candidates by a reward."""
    numbers = reward([group.prompt for group in groups], [group.candidates for group in groups])
    return _ranking(reward.name, list(zip(groups, numbers, strict=True)))


def _ranking(by: str, numbered: Sequence[tuple[PreferenceGroup, Sequence[float]]]) -> Ranking:
    groups = [group for group, _ in numbered]
    scored = tuple(replace(group, scores=tuple(numbers)) for group, numbers in numbered)
    choices = OnePreferred.from_groups(groups, prompt_numbers(groups)).compare(
        flatten_groups([numbers for _, numbers in numbered])
    )
    return Ranking(by, scored, accuracy_of_scores(groups, scored), choices)


def _with_interval(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


def _by_head(
    model: str,
    groups: Sequence[PreferenceGroup],
    world: World,
    name: str,
    reading: Reading,
    logged: Sequence[str],
) -> tuple[list[tuple[PreferenceGroup, list[float]]], list[str]]:
    head = load_head(model, name)  # before the model, so that a folder without a head fails at once
    rendering, lines = on_one_day(model, reading.chat_template, reading.rendering)
    reading = replace(reading, rendering=rendering)
    notes = log_new_notes(lines, logged)
    frozen = FrozenModel.load(model, world, reading.dtype, reading.chat_template, reading.rendering)
    tokenized, lines = read_held_out(frozen, model, groups, reading)
    notes += log_new_notes(lines, [*logged, *notes])
    require_end_tokens(tokenized, sorted(SpecialTokens.from_tokenizer(frozen.tokenizer).ends))
    sample = sample_groups(tokenized)
    choice = choose_scorer(frozen.model, sample, reading.dtype)
    scorer = HeadedScorer(choice.scorer, head.to(world.device)).eval()
    notes += log_new_notes(head_scorer_notes(choice, scorer, sample, reading.dtype), [*logged, *notes])
    rewards = score_with_head(scorer, tokenized, world=world, budget=reading.token_budget, dtype=reading.dtype)
    return list(zip([group.group for group in tokenized], rewards, strict=True)), notes
