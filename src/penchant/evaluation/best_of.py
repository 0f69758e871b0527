"""The best of n sampled responses to a prompt, by the model's preference head or by a reward model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penchant.data.groups import PreferenceGroup, Text, as_text
from penchant.data.tokenization import tokenize_groups, tokenize_prompts
from penchant.data.tokenized import Ids
from penchant.engine.distributed import World
from penchant.engine.reward_scorers import HeadedScorer
from penchant.engine.scorer_choice import choose_scorer, sample_groups
from penchant.engine.scoring import score_with_head
from penchant.evaluation.answering import Answers, Sampling, answer, generate
from penchant.evaluation.held_out import AS_IS, Reading
from penchant.evaluation.rewards import Reward
from penchant.models.loading import load_model, load_tokenizer
from penchant.models.model_kind import require_language_model
from penchant.models.preference_head import NAME, load_head
from penchant.progress import Progress

if TYPE_CHECKING:
    from rich.table import Table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BestOf:
    """The response of the highest reward among n samples for every prompt; of equal ones the first.

    Attributes:
        answers: the chosen response to every prompt.
        rewards: reward of the chosen response to each prompt.
        all_rewards: rewards of all n responses to each prompt.
    """

    answers: Answers
    rewards: tuple[float, ...]
    all_rewards: tuple[tuple[float, ...], ...]

    @classmethod
    def choose(
        cls, prompts: Sequence[Text], responses: Sequence[Sequence[str]], rewards: Sequence[Sequence[float]]
    ) -> BestOf:
        """The best response to every prompt.

        Args:
            responses: n responses to every prompt.
            rewards: n rewards of them.
        """
        best = [max(range(len(row)), key=row.__getitem__) for row in rewards]
        return cls(
            Answers(tuple(prompts), tuple((candidates[k],) for candidates, k in zip(responses, best, strict=True))),
            tuple(row[k] for row, k in zip(rewards, best, strict=True)),
            tuple(map(tuple, rewards)),
        )

    def to_json(self) -> dict[str, Any]:
        rows = self.answers.to_json()["answers"]
        for row, reward, all_rewards in zip(rows, self.rewards, self.all_rewards, strict=True):
            row.update(reward=reward, rewards_of_all=list(all_rewards))
        return {"answers": rows}

    @property
    def table(self) -> Table:
        from rich.table import Table
        from rich.text import Text as Plain

        table = Table("prompt", "best response", "reward", show_lines=True)
        for prompt, (response,), reward in zip(self.answers.prompts, self.answers.responses, self.rewards, strict=True):
            table.add_row(Plain(as_text(prompt)), Plain(response), f"{reward:.4f}")
        return table


def best_by_reward(
    model: str,
    prompts: Sequence[Text],
    sampling: Sampling,
    reward: Reward,
    reading: Reading = AS_IS,
    ids: Sequence[Ids] | None = None,
) -> BestOf:
    """The response to every prompt that a reward puts first among `sampling.samples` samples.

    Args:
        ids: [T] token ids of every prompt if `answering.fit_prompts` has computed them.

    Raises:
        DataError: the reward model cannot read a prompt with its response.
    """
    responses = answer(model, prompts, sampling, reading, ids).responses
    return BestOf.choose(prompts, responses, reward(prompts, responses))


def best_by_head(
    model: str,
    prompts: Sequence[Text],
    sampling: Sampling,
    *,
    head: str = NAME,
    reading: Reading = AS_IS,
    ids: Sequence[Ids] | None = None,
) -> BestOf:
    """The response to every prompt that the preference head prefers among `sampling.samples` samples.

    Args:
        ids: [T] token ids of every prompt if `answering.fit_prompts` has computed them.

    Raises:
        ModelError: the folder has no such head.
    """
    require_language_model(model)
    chooser = load_head(model, head)
    reading = reading.on_one_day(model)
    tokenizer = load_tokenizer(model, chat_template=reading.chat_template)
    world = World.single()
    loaded = load_model(model).to(world.device)
    with Progress("generating", len(prompts), "prompts") as progress:
        if ids is None:
            ids = tokenize_prompts(prompts, tokenizer, reading.rendering)
        responses = generate(loaded, tokenizer, ids, sampling, advance=progress.advance)
    groups = [
        PreferenceGroup(p, tuple(candidates), id=str(i))
        for i, (p, candidates) in enumerate(zip(prompts, responses, strict=True))
    ]
    tokenized, _ = tokenize_groups(groups, tokenizer, max_length=10**9, rendering=reading.rendering, empty="keep")
    choice = choose_scorer(loaded, sample_groups(tokenized))
    if choice.notice:
        logger.info(choice.notice)
    scorer = HeadedScorer(choice.scorer, chooser.to(world.device)).eval()
    rewards = score_with_head(scorer, tokenized, world=world, budget=AS_IS.token_budget, dtype=AS_IS.dtype)
    return BestOf.choose(prompts, responses, rewards)
