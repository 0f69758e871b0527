"""A reward's scores of all candidates, added to the groups and written to a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penchant.data.groups import PreferenceGroup, as_text
from penchant.data.messages import as_json
from penchant.data.writing import write_groups
from penchant.errors import DataError
from penchant.evaluation.rewards import Reward
from penchant.evaluation.statistics import Estimate, bootstrap_mean
from penchant.progress import Progress
from penchant.storage.caches import AnswerCache, cache_folder

if TYPE_CHECKING:
    from rich.table import Table

AT_ONCE = 64
"""Number of groups that are scored before their scores are cached."""


def with_scores(
    groups: Sequence[PreferenceGroup], reward: Reward, advance: Callable[[int], None] = lambda groups: None
) -> list[PreferenceGroup]:
    """The groups with a reward's numbers as their scores.

    Known preferences stay as explicit comparisons; without any, the scores define them. Numbers are cached on disk as
    they are computed, so that an interrupted pass resumes.

    Args:
        advance: called with the number of groups scored since the last call.
    """
    scored: list[PreferenceGroup] = []
    with closing(AnswerCache(reward.name, cache_folder())) as answer_cache:
        for start in range(0, len(groups), AT_ONCE):
            part = groups[start : start + AT_ONCE]
            questions = [[as_json(group.prompt), list(group.candidates)] for group in part]
            answers = [answer_cache.get(question) for question in questions]
            unscored = [i for i, numbers in enumerate(answers) if numbers is None]
            if unscored:
                fresh = reward([part[i].prompt for i in unscored], [part[i].candidates for i in unscored])
                answer_cache.keep((questions[i], numbers) for i, numbers in zip(unscored, fresh, strict=True))
                answers = [fresh.pop(0) if numbers is None else numbers for numbers in answers]
            scored += [_scored(group, numbers) for group, numbers in zip(part, answers, strict=True)]
            advance(len(part))
    return scored


def _scored(group: PreferenceGroup, numbers: Sequence[float]) -> PreferenceGroup:
    # An explicit empty list would mean that all are tied, so it becomes None.
    comparisons = group.pairs or group.comparisons
    return replace(
        group, scores=tuple(numbers), comparisons=comparisons or None, ranks=None, preferred=None, labels=group.labels
    )


@dataclass(frozen=True)
class ScoredFile:
    """Results of scoring a file.

    Attributes:
        accuracy: share of the data's pairs that the scores order as the data does (a tie is wrong); mean over a
            group's pairs, then over groups; None if the data has no pairs.
    """

    output: Path
    reward: str
    groups: int
    candidates: int
    mean: float
    accuracy: Estimate | None

    def to_json(self) -> dict[str, Any]:
        return {
            "output": str(self.output),
            "reward": self.reward,
            "groups": self.groups,
            "candidates": self.candidates,
            "mean_score": self.mean,
            "accuracy": None if self.accuracy is None else self.accuracy.to_json(),
        }

    @property
    def table(self) -> Table:
        from rich.table import Table

        table = Table("scores", "", title=str(self.output))
        table.add_row("groups", str(self.groups))
        table.add_row("candidates", str(self.candidates))
        table.add_row("mean score", f"{self.mean:.4f}")
        if self.accuracy is not None:
            accuracy = self.accuracy
            text = f"{accuracy.value:.4f} [{accuracy.low:.4f}, {accuracy.high:.4f}] of {accuracy.n} groups"
            table.add_row("orders the data's pairs as they are", text)
        return table


def score_file(groups: Sequence[PreferenceGroup], reward: Reward, output: Path) -> ScoredFile:
    """Results of scoring all groups, which are written to a new .jsonl file as a whole or not at all.

    Raises:
        DataError: the output exists, or the reward fails.
    """
    if output.exists():
        raise DataError("it is there already", where=str(output), fix="name a new file: --output FILE.jsonl")
    with Progress("scoring", len(groups), "groups") as progress:
        scored = with_scores(groups, reward, progress.advance)
    write_groups(scored, output)
    numbers = [score for group in scored for score in group.scores or ()]
    return ScoredFile(
        output, reward.name, len(scored), len(numbers), float(np.mean(numbers)), accuracy_of_scores(groups, scored)
    )


def accuracy_of_scores(groups: Sequence[PreferenceGroup], scored: Sequence[PreferenceGroup]) -> Estimate | None:
    """Share of the data's pairs that the scores order correctly, with an interval over prompts; None without pairs."""
    values, prompts = [], []
    for group, with_numbers in zip(groups, scored, strict=True):
        if group.pairs and with_numbers.scores is not None:
            scores = with_numbers.scores
            values.append(sum(scores[i] > scores[j] for i, j in group.pairs) / len(group.pairs))
            prompts.append(as_text(group.prompt))
    if not values:
        return None
    number = {prompt: i for i, prompt in enumerate(sorted(set(prompts)))}
    return bootstrap_mean(values, [number[prompt] for prompt in prompts])
