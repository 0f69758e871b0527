"""The prompts that are answered while a run trains: each once, as it is read at inference, with room for an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from penchant.config import RunConfig
from penchant.data.groups import PreferenceGroup, as_text
from penchant.data.shortening import keep_last_ids
from penchant.data.special_tokens import SpecialTokens
from penchant.data.tokenization import tokenize_groups, tokenize_prompts
from penchant.data.tokenized import Ids, TokenizationReport, TokenizedGroup
from penchant.engine.frozen import NO_LIMIT
from penchant.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
