"""Tokenization of preference groups.

A prompt and its candidate are tokenized as one text, because that is what the model reads; the responses begin where
any candidate's ids first differ from the prompt's ids. Everything that is cut, dropped or added is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np

from penchant.data.chat import ChatRenderer, GroupText
from penchant.data.control_text import ControlText, is_escaped
from penchant.data.groups import PreferenceGroup, Text
from penchant.data.messages import is_blank
from penchant.data.rendering import PLAIN, Rendering
from penchant.data.special_tokens import SpecialTokens
from penchant.data.tokenized import (
    Ids,
    Mask,
    TokenizationReport,
    TokenizedGroup,
    Truncation,
    common_length,
    truncate_prompt,
)
from penchant.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build_loss_masks(
    text: GroupText,
    encoded: list[list[int]],
    sequences: list[list[int]],
    boundary: int,
    special: SpecialTokens,
    events: set[str],
) -> list[Mask] | None:
    """One mask for each sequence, True for the tokens to train on; None where these are all tokens of the responses.

    A turn whose ids do not end with an end-of-turn token, for example where a token spans its end, is left out of the
    mask and counted.

    Args:
        text: texts of the group.
        encoded: token ids of `text.parts`, in their order.
        sequences: token ids of the prompt with each candidate.
        boundary: number of tokens in the prompt.
        special: special tokens of the tokenizer.
        events: names of the events to count; this function adds to them.
    """
    if not any(text.turns):
        return None
    ids_of = dict(zip(text.parts, encoded, strict=True))
    masks = []
    for turns, sequence_text, ids in zip(text.turns, text.sequences, sequences, strict=True):
        mask = np.zeros(len(ids), dtype=np.bool_)
        if turns is None:
            mask[boundary:] = True
        for turn in turns or ():
            start, end = boundary, len(ids)
            if turn.prompt is not None:
                prompt_ids = with_start_tokens(ids_of[turn.prompt], True, special, set())
                start = common_length(prompt_ids, ids)
                events |= {"boundary_moved"} if start < len(prompt_ids) else set()
            if turn.through != sequence_text:
                end = common_length(with_start_tokens(ids_of[turn.through], True, special, set()), ids)
            if ids[end - 1] in special.ends and (start < end - 1 or end == len(ids)):
                mask[start:end] = True
            else:
                events.add("assistant_turn_without_bounds_not_learnt")
        masks.append(mask)
    return masks


def with_start_tokens(ids: list[int], templated: bool, special: SpecialTokens, events: set[str]) -> list[int]:
    """The ids with the tokenizer's start tokens in front exactly once.

    Where a chat template wrote the text, start tokens are added only if it wrote some.

    Args:
        ids: token ids of the text, without special tokens added by the tokenizer.
        templated: whether a chat template wrote the text.
        special: special tokens of the tokenizer.
        events: names of the events to count; this function adds to them.
    """
    ids_without_start, times = special.strip_start(ids)
    if times > 1:
        events.add("duplicate_bos_removed")
    if templated and special.start and not times:
        events.add("template_without_bos")
        return ids_without_start
    return special.with_start(ids_without_start, times)


@dataclass(frozen=True)
class Problem:
    """The reason why one group cannot be used.

    Attributes:
        group: id of the group.
        message: text of the error.
        fix: how to correct the data or the configuration; None where there is no way.
        tokens: length of the group's longest sequence, where its length is the problem.
    """

    group: str
    message: str
    fix: str | None
    tokens: int = 0


@dataclass
class ProblemList:
    """The problems of all groups.

    Attributes:
        report: counts what is dropped.
        dropping: names of events whose groups are dropped.
        keeping: names of events whose groups are used nevertheless.
        problems: problems that are errors, by event.
    """

    report: TokenizationReport
    dropping: frozenset[str]
    keeping: frozenset[str]
    problems: dict[str, list[Problem]] = field(default_factory=dict)

    def add(self, event: str, problem: Problem) -> None:
        """Count the group as dropped where the event's policy allows it; otherwise add it to the errors."""
        if event in self.dropping:
            self.report.note(event, problem.group)
        else:
            self.problems.setdefault(event, []).append(problem)

    def raise_first(self) -> None:
        """Raise one error for all problems of the first event, with its longest group (else its first) as example.

        Raises:
            DataError: there is a problem.
        """
        for problems in self.problems.values():
            worst = max(problems, key=lambda problem: problem.tokens)
            ids = ", ".join(problem.group for problem in problems[:5]) + (", ..." if len(problems) > 5 else "")
            count = f"{len(problems)} of {self.report.groups} groups like this: {ids}"
            raise DataError(f"{worst.message} ({count})", where=f"group {worst.group}", fix=worst.fix)


_BATCH = 1024
"""Number of groups per call of the tokenizer, which bounds the memory for Python lists of ids."""

_EMPTY = "empty_candidate_dropped"
_IDENTICAL = "identical_candidates_dropped"
_TOO_LONG = "too_long_dropped"
_REFUSED = "refused_by_template_dropped"
_UNREADABLE = "not_readable_dropped"


def tokenize_groups(
    groups: Sequence[PreferenceGroup],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    rendering: Rendering = PLAIN,
    truncation: Truncation = "error",
    empty: Literal["error", "drop", "keep"] = "error",
    identical: Literal["error", "drop"] = "error",
) -> tuple[list[TokenizedGroup], TokenizationReport]:
    """Token ids of every group, and a report of counted events; the rules are in docs/tokenization.md.

    Args:
        groups: the groups to tokenize.
        tokenizer: tokenizer of the model.
        max_length: limit on the tokens of a prompt with its longest response.
        rendering: settings of the step from rows to text.
        truncation: treatment of longer groups; a response is never cut.
        empty: treatment of groups with a candidate without text or tokens; with ``keep`` the response is an end-of-turn
            token alone.
        identical: treatment of groups with a (better, worse) pair of equal token ids.

    Raises:
        DataError: some groups cannot be used as they are (one error for all groups of a kind), or no group is left.
        ModelError: there is no chat template for conversations, or no end-of-sequence token.
    """
    refused_policy = rendering.refused
    policies = {
        _EMPTY: empty,
        _IDENTICAL: identical,
        _TOO_LONG: truncation,
        _REFUSED: refused_policy,
        _UNREADABLE: refused_policy,
    }
    problems = ProblemList(
        TokenizationReport(groups=len(groups)),
        frozenset(event for event, policy in policies.items() if policy == "drop"),
        frozenset(event for event, policy in policies.items() if policy == "keep"),
    )
    special, renderer = SpecialTokens.from_tokenizer(tokenizer), ChatRenderer(tokenizer, rendering)
    tokenized: list[TokenizedGroup] = []
    for start in range(0, len(groups), _BATCH):
        texts = _texts(groups[start : start + _BATCH], renderer, problems)
        for text, ids in _encode(texts, tokenizer, problems):
            group = _assemble_group(text, ids, special, problems)
            if group is not None and group.longest > max_length:
                group = _truncate_group(group, max_length, truncation, special, problems)
            if group is not None:
                tokenized.append(group)
    problems.raise_first()
    if groups and not tokenized:
        counts = problems.report.counts
        dropped = ", ".join(f"{event.replace('_', ' ')}: {counts[event]}" for event in policies if counts[event])
        raise DataError(f"no group is left of {len(groups)} ({dropped})", fix="see the rows: penchant data check FILE")
    return tokenized, problems.report


def tokenize_prompts(
    prompts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, rendering: Rendering = PLAIN
) -> list[Ids]:
    """Token ids that a model reads before it answers, at least one per prompt; raises as `tokenize_groups` does.

    Returns:
        An array of [P] ids for each prompt.
    """
    special, renderer = SpecialTokens.from_tokenizer(tokenizer), ChatRenderer(tokenizer, rendering)
    texts = [renderer.prompt(prompt) for prompt in prompts]
    encoded = _ids([text for text, _ in texts], tokenizer)
    ids_with_start = (
        with_start_tokens(ids, text.templated, special, set()) for text, ids in zip(texts, encoded, strict=True)
    )
    return [np.array(ids or [special.fallback_start], dtype=np.int64) for ids in ids_with_start]


def readable_prompts(
    prompts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, rendering: Rendering = PLAIN
) -> list[Text]:
    """The prompts without those that the chat template or the tokenizer refuses; all where `refused` is ``error``."""
    if rendering.refused == "error":
        return list(prompts)
    return [prompt for prompt in prompts if _is_readable(prompt, tokenizer, rendering)]


def _is_readable(prompt: Text, tokenizer: PreTrainedTokenizerBase, rendering: Rendering) -> bool:
    try:
        tokenize_prompts([prompt], tokenizer, rendering)
    except ModelError:
        raise
    except Exception:  # Tokenizers raise bare exceptions.
        return False
    return True


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id with which training ends an assistant's turn; None without a template that renders a question and answer."""
    return None if tokenizer.eos_token_id is None else SpecialTokens.from_tokenizer(tokenizer).turn_end


def _texts(groups: Sequence[PreferenceGroup], renderer: ChatRenderer, problems: ProblemList) -> list[GroupText]:
    texts = []
    for group in groups:
        blank = [k for k, candidate in enumerate(group.candidates) if is_blank(candidate)]
        if blank and _EMPTY not in problems.keeping:
            problems.add(_EMPTY, _empty(group, blank[0], "has no text"))
            continue
        try:
            texts.append(renderer.group(group))
        except DataError as error:
            problems.add(_REFUSED, Problem(group.id, error.what, error.fix))
    return texts


def _empty(group: PreferenceGroup, candidate: int, defect: str) -> Problem:
    return Problem(
        group.id,
        f"candidate {candidate} is empty: it {defect}, so only its end-of-turn token would be trained on",
        "remove these rows, or have them dropped and counted: data.empty=drop",
    )


def _ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    unique = list(dict.fromkeys(texts))
    coded = [text for text in unique if is_escaped(text)]
    plain = [text for text in unique if not is_escaped(text)] if coded else unique
    ids = dict(zip(coded, ControlText.from_tokenizer(tokenizer).encode(coded, tokenizer) if coded else (), strict=True))
    if plain:
        encoded: list[list[int]] = tokenizer(
            plain, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )["input_ids"]
        ids |= zip(plain, encoded, strict=True)
    return [ids[text] for text in texts]


def _encode(
    texts: Sequence[GroupText], tokenizer: PreTrainedTokenizerBase, problems: ProblemList
) -> list[tuple[GroupText, list[list[int]]]]:
    """The groups with the token ids of their parts, in the order of `GroupText.parts`."""
    try:
        parts = [text.parts for text in texts]
        flat = iter(_ids([part for group_parts in parts for part in group_parts], tokenizer))
        return [(text, list(islice(flat, len(group_parts)))) for text, group_parts in zip(texts, parts, strict=True)]
    except Exception:  # Tokenizers raise bare exceptions, as for half a surrogate pair; a retry finds the group.
        encoded = []
        for text in texts:
            try:
                encoded.append((text, _ids(text.parts, tokenizer)))
            except Exception as error:
                message = f"the tokenizer cannot read the text: {error}"
                fix = (
                    "correct these rows (often it is half of a surrogate pair, as in \\ud83d alone), or have them "
                    "dropped and counted: data.refused=drop"
                )
                problems.add(_UNREADABLE, Problem(text.group.id, message, fix))
        return encoded


def _assemble_group(
    text: GroupText, encoded: list[list[int]], special: SpecialTokens, problems: ProblemList
) -> TokenizedGroup | None:
    """The group's prompt and response ids with one start and one end; None where the group cannot be trained on."""
    group, events = text.group, set(text.events)
    raw = encoded[: 1 + len(text.sequences)]
    prompt, *sequences = (with_start_tokens(ids, text.templated, special, events) for ids in raw)
    is_templated = not text.templated and ("[INST]" in text.prompt or not special.control.isdisjoint(encoded[0]))
    if is_templated:
        events.add("already_templated_prompt")
    ends = special.ends if text.templated or is_templated else frozenset({special.eos})
    end = special.turn_end if is_templated and special.turn_end is not None else special.eos
    sequences = [_with_end_token(ids, ends, end, text.templated, special, events) for ids in sequences]
    common = [common_length(prompt, ids) for ids in sequences]
    for k, ids in enumerate(sequences):
        if len(ids) - common[k] <= 1 and _EMPTY not in problems.keeping:
            problems.add(_EMPTY, _empty(group, k, "has no tokens"))
            return None
    boundary = min(common)
    if boundary < len(prompt):
        events.add("boundary_moved")
    masks = build_loss_masks(text, encoded, sequences, boundary, special, events)
    if masks is not None:
        boundary = min(boundary, *(int(mask.argmax()) for mask in masks))
        loss_masks = tuple(mask[boundary:] for mask in masks)
    else:
        loss_masks = None
    if boundary == 0:
        events.add("start_token_added")
        prompt, sequences, boundary = [special.fallback_start], [[special.fallback_start, *ids] for ids in sequences], 1
    for event in sorted(events):
        problems.report.note(event, group.id)
    responses = tuple(np.array(ids[boundary:], dtype=np.int64) for ids in sequences)
    equal_pair = _equal_pair(group, responses)
    if equal_pair is not None:
        problems.add(_IDENTICAL, _identical(group, *equal_pair))
        return None
    return TokenizedGroup(np.array(prompt[:boundary], dtype=np.int64), responses, group, loss_masks=loss_masks)


def _with_end_token(
    ids: list[int], ends: frozenset[int], default: int, templated: bool, special: SpecialTokens, events: set[str]
) -> list[int]:
    """The ids with exactly one end-of-turn token at the end, the default one where there is none."""
    ids_without_end, end, times = special.strip_end(ids, ends)
    if times > 1:
        events.add("duplicate_end_of_turn_removed")
    if templated and not times:
        events.add("template_without_end_of_turn")
    return [*ids_without_end, end if times else default]


def _equal_pair(group: PreferenceGroup, responses: Sequence[Ids]) -> tuple[int, int] | None:
    keys = [ids.tobytes() for ids in responses]
    if len(set(keys)) == len(keys):
        return None
    return next(((better, worse) for better, worse in group.pairs if keys[better] == keys[worse]), None)


def _identical(group: PreferenceGroup, better: int, worse: int) -> Problem:
    return Problem(
        group.id,
        f"candidate {better} is said to be better than candidate {worse}, yet both are the same tokens",
        "remove these rows, or have them dropped and counted: data.identical=drop",
    )


def _truncate_group(
    group: TokenizedGroup, max_length: int, truncation: Truncation, special: SpecialTokens, problems: ProblemList
) -> TokenizedGroup | None:
    """A group that is too long, with its prompt cut where `truncation` asks for it; None where it cannot be used."""
    name, message = group.group.id, f"{group.longest} tokens with the longest response, data.max_length is {max_length}"
    if truncation != "keep_end_of_prompt":
        fix = (
            "raise data.max_length up to the model's context, or leave the long groups out, counted: "
            "data.truncation=drop, or cut the beginning of long prompts: data.truncation=keep_end_of_prompt"
        )
        problems.add(_TOO_LONG, Problem(name, message, fix, group.longest))
        return None
    shorter = truncate_prompt(group, max_length, special)
    if shorter is None:
        message += ", and the response alone leaves no room for a token of the prompt; responses are never cut"
        fix = "raise data.max_length up to the model's context, or leave such groups out, counted: data.truncation=drop"
        problems.add("response_too_long", Problem(name, message, fix, group.longest))
        return None
    problems.report.note("prompt_truncated", name)
    return shorter
