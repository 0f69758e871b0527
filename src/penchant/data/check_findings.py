"""Findings about preference data: the severity of each check's hits, their description and their fix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from penchant.data.as_chat import PLAIN_TEXT, SWITCH
from penchant.data.check_report import SEVERITIES, Finding, Hits, LengthBias, Severity, Ties


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
