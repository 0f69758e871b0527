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

from penchant.config.run import RunConfig, SamplingConfig
from penchant.data.groups import PreferenceGroup, Text, as_text
from penchant.data.shortening import keep_last_ids
from penchant.data.special_tokens import SpecialTokens
from penchant.data.tokenization import tokenize_groups, tokenize_prompts
from penchant.data.tokenized import Ids, TokenizationReport, TokenizedGroup
from penchant.engine.reference_model import NO_LIMIT
from penchant.engine.sampling import SampledResponse, Sampling, sample
from penchant.errors import CheckpointError, ConfigError, DataError, reason_of
from penchant.evaluation.answering import ends_of, text_after
from penchant.evaluation.rewards import Reward
from penchant.storage.files import read_record, write_atomically
from penchant.training.batches import Drawn, Order, References

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def prompts_to_answer(
    config: RunConfig, groups: Sequence[PreferenceGroup], tokenizer: PreTrainedTokenizerBase, limit: int
) -> tuple[list[TokenizedGroup], TokenizationReport]:
    """A group for each distinct prompt, and what happened to prompts; the data's responses say nothing here.

    Args:
        limit: tokens of a prompt with its answer.

    Raises:
        ConfigError: a prompt leaves no room for `sampling.max_new_tokens`, and `data.truncation` is ``error``.
        DataError: no prompt is left, or the tokenizer or its chat template refuses one.
    """
    first: dict[str, PreferenceGroup] = {}
    for group in groups:
        # One response, so that nothing is compared with anything.
        single = PreferenceGroup(group.prompt, group.candidates[:1], id=group.id, source=group.source)
        first.setdefault(as_text(group.prompt), single)
    # The rules of all data: what cannot be read is refused with its group's name.
    tokenized, report = tokenize_groups(
        [group for group in first.values() if group.prompt],
        tokenizer,
        max_length=NO_LIMIT,
        rendering=config.rendering,
        empty="keep",
    )
    report.groups = len(first)
    for group in first.values():
        if not group.prompt:
            report.note("empty_prompt_dropped", group.id)
    # A response begins behind the whole prompt, wherever the data's would.
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


def _bound(config: RunConfig, limit: int) -> str:
    return f"data.max_length is {limit}" if config.data.max_length else f"the model's context is {limit} tokens"


def _refuse_no_room(config: RunConfig, limit: int, least: int) -> None:
    tokens = config.sampling.max_new_tokens
    if limit - tokens < least:
        raise ConfigError(
            f"sampling.max_new_tokens is {tokens} and {_bound(config, limit)}: no room is left for a prompt",
            fix=f"sampling.max_new_tokens={max(1, limit // 2)}, or less",
        )


def _shorter(longest: int, limit: int) -> str:
    """Fewer new tokens are advised only where they would do."""
    return f"sampling.max_new_tokens={limit - longest}, or " if longest < limit else ""


def _refuse_too_long(config: RunConfig, groups: Sequence[TokenizedGroup], ids: Sequence[Ids], limit: int) -> None:
    tokens, lengths = config.sampling.max_new_tokens, [len(prompt) for prompt in ids]
    long = [each.group.id for each, length in zip(groups, lengths, strict=True) if length > limit - tokens]
    if long and config.data.truncation == "error":
        shown = ", ".join(long[:5]) + (", ..." if len(long) > 5 else "")
        raise ConfigError(
            f"the longest prompt has {max(lengths)} tokens, its answer up to sampling.max_new_tokens={tokens}, and "
            f"{_bound(config, limit)} ({len(long)} of {len(groups)} prompts are too long: {shown})",
            where=config.data.train,
            fix=f"{_shorter(max(lengths), limit)}leave such prompts out, counted: data.truncation=drop, or cut their "
            "beginnings: data.truncation=keep_end_of_prompt",
        )


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
