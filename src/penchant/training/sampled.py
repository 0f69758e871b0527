"""Candidates sampled from the policy during training and scored by a reward: the groups of each step are new.

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

from penchant.config.run import RunConfig
from penchant.config.run_sections import SamplingConfig
from penchant.data.groups import PreferenceGroup, Text, as_text
from penchant.data.special_tokens import SpecialTokens
from penchant.data.tokenization import tokenize_groups, tokenize_prompts
from penchant.data.tokenized import Ids, TokenizationReport, TokenizedGroup, keep_last_ids
from penchant.engine.reference_model import NO_LIMIT
from penchant.engine.sampling import SampledResponse, Sampling, sample
from penchant.errors import CheckpointError, ConfigError, DataError, reason_of
from penchant.evaluation.answering import ends_of, text_after
from penchant.evaluation.rewards import Reward
from penchant.storage.files import read_record, write_atomically
from penchant.training.batches import Order, References, StepBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def prompts_to_answer(
    config: RunConfig, groups: Sequence[PreferenceGroup], tokenizer: PreTrainedTokenizerBase, limit: int
) -> tuple[list[TokenizedGroup], TokenizationReport]:
    """A group for each distinct prompt, and a report of changed and dropped prompts; the data's responses are not used.

    Args:
        limit: maximum tokens of a prompt with its answer.

    Raises:
        ConfigError: a prompt leaves no room for `sampling.max_new_tokens`, and `data.truncation` is ``error``.
        DataError: no prompt is left, or the tokenizer or its chat template cannot render one.
    """
    group_by_prompt: dict[str, PreferenceGroup] = {}
    for group in groups:
        # One response, so that there are no preferences to check.
        single = PreferenceGroup(group.prompt, group.candidates[:1], id=group.id, source=group.source)
        group_by_prompt.setdefault(as_text(group.prompt), single)
    # The same checks as for all data: an error names the group.
    tokenized, report = tokenize_groups(
        [group for group in group_by_prompt.values() if group.prompt],
        tokenizer,
        max_length=NO_LIMIT,
        rendering=config.rendering,
        empty="keep",
    )
    report.groups = len(group_by_prompt)
    for group in group_by_prompt.values():
        if not group.prompt:
            report.note("empty_prompt_dropped", group.id)
    # A sampled response begins after the whole prompt, so no boundary moves.
    report.counts.pop("boundary_moved", None)
    ids = tokenize_prompts([entry.group.prompt for entry in tokenized], tokenizer, config.rendering)
    room = limit - config.sampling.max_new_tokens
    special, fitting = SpecialTokens.from_tokenizer(tokenizer), []
    _refuse_no_room(config, limit, 1 + max(len(special.start), 1))
    _refuse_too_long(config, tokenized, ids, limit)
    for entry, prompt in zip(tokenized, ids, strict=True):
        if len(prompt) <= room:
            fitting.append(TokenizedGroup(prompt, entry.responses, entry.group))
        elif config.data.truncation == "drop":
            report.note("too_long_dropped", entry.group.id)
        else:
            report.note("prompt_truncated", entry.group.id)
            fitting.append(TokenizedGroup(keep_last_ids(prompt, room, special), entry.responses, entry.group))
    if not fitting:
        dropped = ", ".join(f"{name.replace('_', ' ')}: {report.counts[name]}" for name in sorted(report.counts))
        raise DataError(f"no prompt is left to answer ({dropped})", fix="see the rows: penchant data check FILE")
    return fitting, report


def _describe_limit(config: RunConfig, limit: int) -> str:
    return f"data.max_length is {limit}" if config.data.max_length else f"the model's context is {limit} tokens"


def _refuse_no_room(config: RunConfig, limit: int, min_prompt: int) -> None:
    tokens = config.sampling.max_new_tokens
    if limit - tokens < min_prompt:
        raise ConfigError(
            f"sampling.max_new_tokens is {tokens} and {_describe_limit(config, limit)}: no room is left for a prompt",
            fix=f"sampling.max_new_tokens={max(1, limit // 2)}, or less",
        )


def _shorter(longest: int, limit: int) -> str:
    """Advice to sample fewer tokens, where that would be enough."""
    return f"sampling.max_new_tokens={limit - longest}, or " if longest < limit else ""


def _refuse_too_long(config: RunConfig, groups: Sequence[TokenizedGroup], ids: Sequence[Ids], limit: int) -> None:
    tokens, lengths = config.sampling.max_new_tokens, [len(prompt) for prompt in ids]
    group_ids = [group.group.id for group, length in zip(groups, lengths, strict=True) if length > limit - tokens]
    if group_ids and config.data.truncation == "error":
        id_list = ", ".join(group_ids[:5]) + (", ..." if len(group_ids) > 5 else "")
        raise ConfigError(
            f"the longest prompt has {max(lengths)} tokens, its answer up to sampling.max_new_tokens={tokens}, and "
            f"{_describe_limit(config, limit)} ({len(group_ids)} of {len(groups)} prompts are too long: {id_list})",
            where=config.data.train,
            fix=f"{_shorter(max(lengths), limit)}leave such prompts out, counted: data.truncation=drop, or cut their "
            "beginnings: data.truncation=keep_end_of_prompt",
        )


@dataclass
class SampledBatches:
    """Groups of newly sampled candidates for each step.

    Attributes:
        prompts: the prompts with their token ids, by the index that the order uses.
        order: the order of the prompts.
        references: computes [R][groups][candidates] log-probs of the frozen references, at the temperature of sampling.
        folder: the folder of the samples.
        seed: the run's seed.
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

    def batch(self, step: int) -> StepBatch:
        """The groups of a 0-based step, their references' log-probs, and metrics of the samples."""
        window = step - step % self.settings.every
        if window != self._window:
            self._groups = self._window_from(window)
            self._window = window
        groups = self._groups[step]
        sums = _sums(groups, self.tokenizer, self.model)
        return StepBatch(groups, self.references(groups), sums, self.settings.temperature)

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
        """Step of the window -> rows of a prompt's number with ids, texts and scores of its candidates."""
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
        prompts = [self.prompts[number] for number in numbers]
        responses = sample(self.model, [ids for _, ids in prompts], draw, ends=ends_of(self.model, self.tokenizer))
        texts = [self._texts(ids, candidates) for (_, ids), candidates in zip(prompts, responses, strict=True)]
        scores = self.reward([prompt for prompt, _ in prompts], texts)
        rows = iter(
            {
                "prompt": number,
                "ids": [candidate.ids.tolist() for candidate in candidates],
                "texts": candidate_texts,
                "scores": candidate_scores,
            }
            for number, candidates, candidate_texts, candidate_scores in zip(
                numbers, responses, texts, scores, strict=True
            )
        )
        return {str(step): [next(rows) for _ in members] for step, members in steps.items()}

    def _texts(self, prompt: Ids, responses: Sequence[SampledResponse]) -> list[str]:
        return [text_after(self.tokenizer, prompt, response.content) for response in responses]

    def _group(self, row: dict[str, Any]) -> TokenizedGroup:
        """The group of a row, with the sampled token ids: a text tokenized again may give other ones."""
        prompt, ids = self.prompts[row["prompt"]]
        group = PreferenceGroup(prompt, tuple(row["texts"]), scores=tuple(row["scores"]), id=str(row["prompt"]))
        return TokenizedGroup(
            ids, tuple(np.array(candidate_ids, dtype=np.int64) for candidate_ids in row["ids"]), group
        )


def _sums(
    groups: Sequence[TokenizedGroup], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> dict[str, tuple[float, float]]:
    """(total, count) of each metric of a step's candidates."""
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
        "sampled/tied": (sum(len(set(group_scores)) == 1 for group_scores in scores), n),
        "sampled/distinct": (distinct, k),
    }
