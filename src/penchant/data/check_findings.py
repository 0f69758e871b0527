"""Findings about preference data: the severity of each check's hits, their description and their fix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penchant.data.check_report import (
    SEVERITIES,
    Finding,
    Hits,
    LengthBias,
    Lengths,
    Quantiles,
    Severity,
    Share,
    Ties,
    Unit,
)
from penchant.data.overlaps import Corpus, candidate_values
from penchant.data.rendering import PLAIN_TEXT, SWITCH
from penchant.intervals import clustered_interval

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ints = NDArray[np.int64]

_BATCH = 1024
_ARRAY_THRESHOLD = 16
"""Number of candidates above which a group's pairs are counted in arrays rather than listed."""
_PROBABILITIES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)


def count_characters(corpus: Corpus) -> Ints:
    """[T] number of characters of each text."""
    return np.array([len(text) for text in corpus.texts], dtype=np.int64)


def count_tokens(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> Ints:
    """[T] number of tokens of each text alone, without special tokens; a lone surrogate counts as a question mark."""
    counts: list[int] = []
    for start in range(0, len(corpus.texts), _BATCH):
        texts = [text.encode(errors="replace").decode() for text in corpus.texts[start : start + _BATCH]]
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        counts += map(len, encoded["input_ids"])
    return np.array(counts, dtype=np.int64)


def longest_sequences(corpus: Corpus, counts: Ints) -> Ints:
    """[G] length of each group's prompt with its longest candidate.

    Args:
        corpus: the groups.
        counts: [T] length of each text, in characters or tokens.
    """
    sizes = [len(texts) for texts in corpus.candidates]
    starts = np.cumsum([0, *sizes[:-1]])
    return counts[list(corpus.prompts)] + np.maximum.reduceat(_candidate_lengths(corpus, counts), starts)


def length_quantiles(corpus: Corpus, counts: Ints, unit: Unit) -> Lengths:
    """Quantiles of the lengths of prompts, candidates and longest sequences.

    Args:
        corpus: the groups.
        counts: [T] length of each text.
        unit: unit of `counts`.
    """
    return Lengths(
        unit,
        prompts=_quantiles(counts[list(corpus.prompts)]),
        candidates=_quantiles(_candidate_lengths(corpus, counts)),
        longest=_quantiles(longest_sequences(corpus, counts)),
    )


def length_bias(corpus: Corpus, counts: Ints, unit: Unit) -> LengthBias | None:
    """How often the chosen candidate is the longer one; None without pairs.

    Args:
        corpus: the groups.
        counts: [T] length of each text.
        unit: unit of `counts`.
    """
    total = sum(corpus.pair_counts)
    if not total:
        return None
    longer, unequal, sizes = _longer_pairs(corpus, counts)
    return LengthBias(
        unit,
        longer=share_of_pairs(longer, sizes),
        equal=float((total - unequal.sum()) / total),
        longer_where_unequal=share_of_pairs(longer, unequal),
    )


def _longer_pairs(corpus: Corpus, counts: Ints) -> tuple[Ints, Ints, Ints]:
    """Three [C] counts for each prompt with pairs: pairs with a longer chosen, pairs of unequal length, all pairs."""
    table = np.zeros((len(corpus.texts), 3), dtype=np.int64)
    prompts: list[int] = []
    differences: list[int] = []
    for group, prompt, texts in zip(corpus.groups, corpus.prompts, corpus.candidates, strict=True):
        lengths = counts[list(texts)]
        if len(texts) > _ARRAY_THRESHOLD and group.comparisons is None:
            # [K, K] for one group at a time.
            values = np.array(candidate_values(group))
            difference = (lengths[:, None] - lengths)[values[:, None] > values]
            table[prompt] += (difference > 0).sum(), (difference != 0).sum(), len(difference)
        else:
            pairs = group.pairs
            prompts += [prompt] * len(pairs)
            differences += [int(lengths[better] - lengths[worse]) for better, worse in pairs]
    gaps = np.array(differences, dtype=np.int64)
    rows = np.stack([gaps > 0, gaps != 0, np.ones_like(gaps)], axis=1).astype(np.int64)
    np.add.at(table, np.array(prompts, dtype=np.int64), rows)
    longer, unequal, sizes = table[table[:, 2] > 0].T
    return longer, unequal, sizes


def share_of_pairs(hits: Ints, sizes: Ints) -> Share:
    """Share of all pairs that are hits, with a 95 % interval over prompts, as for shares in `penchant evaluate`.

    The pairs of one prompt are not independent, so the observations are whole prompts.

    Args:
        hits: [C] number of hits among each prompt's pairs.
        sizes: [C] number of pairs of each prompt.
    """
    hits, sizes = hits[sizes > 0], sizes[sizes > 0]
    n = int(sizes.sum())
    if not n:
        return Share(None, None, None, 0)
    value = float(hits.sum() / n)
    if len(sizes) < 2:
        return Share(value, None, None, n)
    # Hits are 0 or 1, so their mean square is their mean. Sorted, because the rounding of a sum depends on the order.
    order = np.lexsort((hits, sizes))
    low, high = clustered_interval(value, value, (hits - value * sizes)[order], sizes[order])
    return Share(value, low, high, n)


def _candidate_lengths(corpus: Corpus, counts: Ints) -> Ints:
    """Length of every candidate of every group, in order."""
    return counts[[text for texts in corpus.candidates for text in texts]]


def _quantiles(lengths: Ints) -> Quantiles:
    return Quantiles(*(int(x) for x in np.quantile(lengths, _PROBABILITIES, method="inverted_cdf")))


class _FindingTemplate(NamedTuple):
    severity: Severity
    message: str
    fix: str


_TEMPLATE_FIX = "use the chat model's own tokenizer, or name a template when training: data.chat_template=FILE"
_SPLIT = "split by prompt: penchant data split FILE --train-output TRAIN --held-out-output HELD_OUT"
_TOGETHER = (
    "split so that they stay together: penchant data split FILE --by-first-turn --train-output TRAIN "
    "--held-out-output HELD_OUT"
)
_NORMALIZED = "prompts_in_held_out_normalized"
_CANDIDATES_NORMALIZED = "candidates_in_held_out_normalized"
_EXACT = {_NORMALIZED: "prompts_in_held_out", _CANDIDATES_NORMALIZED: "candidates_in_held_out"}
_REPEATS = "remove the repeats, unless they are meant to count more than once"

_TEMPLATES: dict[str, _FindingTemplate] = {
    "empty_candidates": _FindingTemplate(
        "error",
        "{count} of {of} candidates are empty: only an end-of-turn token would be trained on",
        "remove these rows, or have them dropped and counted when training: data.empty=drop",
    ),
    "unreadable_texts": _FindingTemplate(
        "error",
        "{count} of {of} groups have half of a surrogate pair in a text, which no tokenizer reads",
        "correct or remove these rows; often an emoji was cut in two, as in \\ud83d alone",
    ),
    "identical_in_a_pair": _FindingTemplate(
        "error",
        "{count} of {of} couples of candidates are the same text, and yet one is preferred",
        "remove these rows, or have them dropped and counted when training: data.identical=drop",
    ),
    "contradictory_pairs": _FindingTemplate(
        "error",
        "{count} of {of} compared couples of a prompt are preferred both ways",
        "keep the direction you trust or neither; where people disagree, count votes and keep the majority",
    ),
    "contradictory_labels": _FindingTemplate(
        "error",
        "{count} of {of} labelled responses to a prompt are called both desirable and undesirable",
        "keep the label you trust or neither",
    ),
    "prompts_in_held_out": _FindingTemplate(
        "error", "{count} of {of} prompts are also in the held-out data: what is measured there was trained on", _SPLIT
    ),
    _NORMALIZED: _FindingTemplate(
        "error",
        "{count} of {of} prompts are also in the held-out data once case and white space are made equal",
        "remove them from one side; a split by prompt keeps only exactly equal prompts together",
    ),
    "no_chat_template": _FindingTemplate(
        "error", "{count} groups are conversations, and the tokenizer has no chat template", _TEMPLATE_FIX
    ),
    "chat_template_fails": _FindingTemplate(
        "error",
        "{count} groups are conversations, and the chat template cannot render a question with its answer",
        _TEMPLATE_FIX,
    ),
    "no_end_of_turn": _FindingTemplate(
        "error",
        "{count} groups are conversations, and the chat template puts no special token behind the assistant's turn: "
        "the model would not learn to stop",
        "end the assistant's turn in the template with the end-of-turn token, or name another when training: "
        "data.chat_template=FILE",
    ),
    "control_text": _FindingTemplate(
        "warning",
        "{count} of {of} messages hold control tokens ({names}): where a tokenizer finds them, they end or begin turns",
        "nothing, if they are meant as text, which they are read as; when training, data.control_text=error refuses "
        "them, and data.control_text=token lets them act",
    ),
    "conversations_in_held_out": _FindingTemplate(
        "error",
        "{count} of {of} groups and held-out ones are one conversation: the prompt of one goes on from the other's, so "
        "its answer may have been trained on",
        _TOGETHER,
    ),
    PLAIN_TEXT: _FindingTemplate(
        "warning",
        "{count} of {of} groups are a bare prompt and its answers, and the model has a chat template: they are read "
        "without it",
        SWITCH,
    ),
    "candidates_in_held_out": _FindingTemplate(
        "warning", "{count} of {of} distinct candidates are also in the held-out data", _SPLIT
    ),
    _CANDIDATES_NORMALIZED: _FindingTemplate(
        "warning",
        "{count} of {of} distinct candidates are also in the held-out data once case and white space are made equal",
        _SPLIT,
    ),
    "similar_candidates": _FindingTemplate(
        "warning",
        "{count} of {of} couples of candidates differ in case and white space alone",
        "keep one of the two, unless it is such differences that are to be learnt",
    ),
    "similar_groups": _FindingTemplate(
        "warning",
        "{count} of {of} groups repeat an earlier one but for case and white space",
        _REPEATS,
    ),
    "identical_without_preference": _FindingTemplate(
        "warning",
        "{count} of {of} couples of candidates are the same text, neither preferred",
        "keep one of them; listwise methods would count it twice",
    ),
    "repeated_groups": _FindingTemplate(
        "warning", "{count} of {of} groups repeat an earlier one: same prompt, candidates and preferences", _REPEATS
    ),
    "repeated_pairs": _FindingTemplate(
        "warning", "{count} of {of} pairs repeat an earlier (prompt, chosen, rejected)", _REPEATS
    ),
    "too_long": _FindingTemplate(
        "warning",
        "{count} of {of} groups are longer than the maximum length, before special and template tokens",
        "when training, raise data.max_length, or choose data.truncation=drop or data.truncation=keep_end_of_prompt",
    ),
    "no_whitespace_at_boundary": _FindingTemplate(
        "warning",
        "{count} of {of} candidates ({share:.1%}) follow their prompt without white space: the last token of the "
        "prompt and the first of the response may merge",
        "begin candidates with a space or end prompts with a line break; look at it: penchant data show FILE "
        "--tokenizer MODEL",
    ),
    "conversations_in_each_other": _FindingTemplate(
        "note",
        "{count} of {of} groups are of one conversation with another: the prompt of one goes on from the other's",
        _TOGETHER,
    ),
    "nothing_to_learn": _FindingTemplate(
        "note",
        "{count} of {of} groups give neither a pair nor a label: preference methods learn nothing from them",
        "nothing, if they are meant for supervised tuning; otherwise add preferences, scores or labels",
    ),
}


def findings(checks: Mapping[str, Hits], ties: Ties, bias: LengthBias | None) -> tuple[Finding, ...]:
    """The findings of all checks, the severest first."""
    all_findings = [*_check_findings(checks), *_length_bias_findings(bias), *_tie_findings(ties)]
    return tuple(sorted(all_findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def _check_findings(checks: Mapping[str, Hits]) -> Iterator[Finding]:
    for name, hits in checks.items():
        severity, message, fix = _TEMPLATES[name]
        # Exactly equal texts are also equal when normalized, and are reported once.
        is_repeated = name in _EXACT and hits.count == checks[_EXACT[name]].count
        if hits.count and not is_repeated:
            names = ", ".join(hits.names)
            description = message.format(count=hits.count, of=hits.of, share=hits.count / hits.of, names=names)
            yield Finding(name, severity, hits.count, hits.ids, description, fix)


def _length_bias_findings(bias: LengthBias | None) -> Iterator[Finding]:
    """The finding of a length bias, where the interval over pairs of unequal length excludes one half."""
    if bias is None:
        return
    share = bias.longer_where_unequal
    if share.value is None or share.low is None or share.high is None:
        return
    if share.low <= 0.5 <= share.high:
        return
    side, value, low, high = "longer", share.value, share.low, share.high
    if high < 0.5:
        side, value, low, high = "shorter", 1 - value, 1 - high, 1 - low
    message = (
        f"the chosen is the {side} in {value:.1%} [{low:.1%}, {high:.1%}] of the {share.n} pairs of unequal length, "
        f"in {bias.unit}: a method that learns length alone looks good"
    )
    fix = "report this baseline beside every accuracy; balance the lengths, or use a method that normalises by length"
    yield Finding("length_bias", "warning", share.n, (), message, fix)


def _tie_findings(ties: Ties) -> Iterator[Finding]:
    count = ties.tied + ties.undecided
    if count:
        message = (
            f"{count} of {ties.couples} couples of candidates have no preferred one: {ties.tied} tied in score or "
            f"rank, {ties.undecided} not preferred either way"
        )
        yield Finding("ties", "note", count, (), message, "nothing: such couples make no pair")
