"""Candidates drawn from the policy while it trains, scored by a reward: the groups of each step are new.

samples/step-00000000.json in the run's folder holds each draw. It is written before it is used, and read again by a
resumed run: in the middle of a window the weights are no longer those the window was drawn with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penchant.config import SamplingConfig
from penchant.data.groups import PreferenceGroup, Text
from penchant.data.tokenized import Ids, TokenizedGroup
from penchant.engine.sampling import SampledResponse, Sampling, sample
from penchant.errors import CheckpointError, reason_of
from penchant.evaluation.files import read_record, write_atomically
from penchant.evaluation.generation import ends_of, text_after
from penchant.evaluation.rewards import Reward
from penchant.training.batches import Drawn, Order, References

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class SampledBatches:
    """Fresh groups for each step.

    Attributes:
        prompts: what is answered, with the ids the model reads; in the order's numbering.
        order: of the prompts.
        references: log-probs of groups by each frozen reference at the temperature of the draw,
            [R][groups][candidates].
        folder: where draws are kept.
        seed: of the run.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[tuple[Text, Ids]]
    order: Order
    settings: SamplingConfig
    reward: Reward
    references: Callable[[Sequence[TokenizedGroup]], References]
    folder: Path
    seed: int
    _window: int | None = None
    _groups: dict[int, list[TokenizedGroup]] = field(default_factory=dict)

    def batch(self, step: int) -> Drawn:
        """The groups of a 0-based step, their references' log-probs, and what the draw was like."""
        window = step - step % self.settings.every
        if window != self._window:
            self._groups = self._window_from(window)
            self._window = window
        groups = self._groups[step]
        sums = _sums(groups, self.tokenizer, self.model)
        return Drawn(groups, self.references(groups), sums, self.settings.temperature)

    def _window_from(self, window: int) -> dict[int, list[TokenizedGroup]]:
        file = self.folder / f"step-{window:08d}.json"
        if not file.exists():
            document = self._draw(window)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(document, ensure_ascii=False))
        fix = "put the whole file back; or delete it: other candidates are drawn, and the run ends with other weights"
        document = read_record(file, [str(step) for step in range(window, window + self.settings.every)], fix)
        try:
            return {int(step): [self._group(row) for row in rows] for step, rows in document.items()}
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise CheckpointError(f"the file is damaged: {reason_of(error)}", where=str(file), fix=fix) from error

    def _draw(self, window: int) -> dict[str, list[dict[str, Any]]]:
        """For each step of the window, its prompts' numbers with ids, texts and scores of the candidates."""
        settings = self.settings
        steps = {step: self.order.batch(step) for step in range(window, window + settings.every)}
        numbers = [number for members in steps.values() for number in members]
        draw = Sampling(
            settings.samples,
            settings.max_new_tokens,
            settings.temperature,
            settings.top_p,
            self.seed * 1_000_003 + window,
        )
        asked = [self.prompts[number] for number in numbers]
        drawn = sample(self.model, [ids for _, ids in asked], draw, ends=ends_of(self.model, self.tokenizer))
        texts = [self._texts(ids, found) for (_, ids), found in zip(asked, drawn, strict=True)]
        scores = self.reward([prompt for prompt, _ in asked], texts)
        rows = iter(
            {
                "prompt": number,
                "ids": [each.ids.tolist() for each in found],
                "texts": said,
                "scores": worth,
            }
            for number, found, said, worth in zip(numbers, drawn, texts, scores, strict=True)
        )
        return {str(step): [next(rows) for _ in members] for step, members in steps.items()}

    def _texts(self, prompt: Ids, responses: Sequence[SampledResponse]) -> list[str]:
        return [text_after(self.tokenizer, prompt, response.content) for response in responses]

    def _group(self, row: dict[str, Any]) -> TokenizedGroup:
        """The very tokens that were drawn: a text tokenized again may be others."""
        prompt, ids = self.prompts[row["prompt"]]
        group = PreferenceGroup(prompt, tuple(row["texts"]), scores=tuple(row["scores"]), id=str(row["prompt"]))
        return TokenizedGroup(ids, tuple(np.array(each, dtype=np.int64) for each in row["ids"]), group)


def _sums(
    groups: Sequence[TokenizedGroup], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> dict[str, tuple[float, float]]:
    """What the candidates of a step are like: (total, count) of each metric."""
    ends = set(ends_of(model, tokenizer))
    scores = [group.group.scores or () for group in groups]
    responses = [response for group in groups for response in group.responses]
    n, k = len(groups), len(responses)
    distinct = sum(len({tuple(response.tolist()) for response in group.responses}) for group in groups)
    return {
        "sampled/reward": (sum(map(sum, scores)), k),
        "sampled/reward_best": (sum(map(max, scores)), n),
        "sampled/length": (sum(map(len, responses)), k),
        "sampled/cut": (sum(int(response[-1]) not in ends for response in responses), k),
        "sampled/tied": (sum(len(set(of)) == 1 for of in scores), n),
        "sampled/distinct": (distinct, k),
    }
