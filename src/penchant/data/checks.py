"""Checks of preference data: counts, lengths, overlaps, chat templates, and whatever would stop or spoil training.

This module counts; `check_findings` judges the counts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from penchant.data.check_findings import (
    Ints,
    count_characters,
    count_tokens,
    findings,
    length_bias,
    length_quantiles,
    longest_sequences,
)
from penchant.data.check_report import CheckReport, Counts, Hits, Ties
from penchant.data.control_text import ControlText
from penchant.data.groups import PreferenceGroup
from penchant.data.messages import is_blank
from penchant.data.overlaps import Corpus, candidate_values, overlapping_prompts, preference_key
from penchant.data.rendering import PLAIN, PLAIN_TEXT, ChatConverter, Rendering
from penchant.data.template_tokens import TemplateTokens
from penchant.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TemplateFault = Literal["no_chat_template", "chat_template_fails", "no_end_of_turn"]
TEMPLATE_FAULTS: tuple[TemplateFault, ...] = ("no_chat_template", "chat_template_fails", "no_end_of_turn")


def template_checks(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, rendering: Rendering) -> dict[str, Hits]:
    """Hits by name of check: conversations affected by a fault of the template, and plain groups without template."""
    as_chat = ChatConverter(tokenizer, rendering)
    groups_as_read = [as_chat.group(group) for group in corpus.groups]
    conversational = [i for i, (group, _) in enumerate(groups_as_read) if not isinstance(group.prompt, str)]
    plain = [i for i, (_, event) in enumerate(groups_as_read) if event is not None]
    hits = {PLAIN_TEXT: corpus.hits(plain, len(corpus.groups))} if plain else {}
    if not conversational:
        return hits
    fault = template_fault(tokenizer)
    for name in TEMPLATE_FAULTS:
        hits[name] = corpus.hits(conversational if name == fault else (), len(conversational))
    return hits | {"control_text": _control_text(corpus, conversational, tokenizer)}


def _control_text(corpus: Corpus, conversational: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Hits:
    """Messages that contain control tokens, with the count of each token; out of all messages."""
    control, token_counts = ControlText.from_tokenizer(tokenizer), Counter[str]()
    numbers: list[int] = []
    messages = 0
    for number in conversational:
        group = corpus.groups[number]
        for text in (group.prompt, *group.candidates):
            for content in (text,) if isinstance(text, str) else text:
                messages += 1
                present = control.find_tokens(content)
                token_counts.update(present)
                numbers += [number] * bool(present)
    names = tuple(f"{token}: {count}" for token, count in token_counts.most_common())
    return replace(corpus.hits(numbers, messages), names=names)


def template_fault(tokenizer: PreTrainedTokenizerBase) -> TemplateFault | None:
    """The fault of the template on a question and its answer; None where there is none."""
    if tokenizer.chat_template is None:
        return "no_chat_template"
    tokens = TemplateTokens.from_tokenizer(tokenizer)
    if not tokens.renders:
        return "chat_template_fails"
    return "no_end_of_turn" if tokens.turn_end is None else None


def held_out_checks(corpus: Corpus, held_out: Corpus) -> dict[str, Hits]:
    """Hits by name of check: distinct prompts and candidates on both sides, counted for their first training group."""
    held_out_prompts = set(held_out.prompts)
    held_out_candidates = {text for texts in held_out.candidates for text in texts}
    prompts = _first_groups([text] for text in corpus.prompts)
    candidates = _first_groups(map(_not_blank, corpus.groups, corpus.candidates))
    conversations = overlapping_prompts(corpus.prompt_prefixes, held_out.prompt_prefixes)

    def shared(first_groups: dict[int, int], held_out_texts: set[int], *, fold: bool) -> Hits:
        texts, other_texts = (side.folded_texts if fold else side.texts for side in (corpus, held_out))
        held_out_strings = {other_texts[number] for number in held_out_texts}
        return corpus.hits(
            (group for text, group in first_groups.items() if texts[text] in held_out_strings), len(first_groups)
        )

    return {
        "prompts_in_held_out": shared(prompts, held_out_prompts, fold=False),
        "prompts_in_held_out_normalized": shared(prompts, held_out_prompts, fold=True),
        "candidates_in_held_out": shared(candidates, held_out_candidates, fold=False),
        "candidates_in_held_out_normalized": shared(candidates, held_out_candidates, fold=True),
        "conversations_in_held_out": corpus.hits(conversations, len(corpus.groups)),
    }


def _not_blank(group: PreferenceGroup, texts: Sequence[int]) -> list[int]:
    """Numbers of the candidates that are not blank."""
    return [text for text, candidate in zip(texts, group.candidates, strict=True) if not is_blank(candidate)]


def _first_groups(texts: Iterable[Sequence[int]]) -> dict[int, int]:
    """Number of the first group that contains each text."""
    first_groups: dict[int, int] = {}
    for group, numbers in enumerate(texts):
        for number in numbers:
            first_groups.setdefault(number, group)
    return first_groups


NO_SOURCE = "not given"
"""Name in `Counts.by_source` of groups without a source, where other groups have one."""


def check_groups(
    groups: Sequence[PreferenceGroup],
    *,
    held_out: Sequence[PreferenceGroup] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int | None = None,
    rendering: Rendering = PLAIN,
) -> CheckReport:
    """A report on preference data, for inspection before training.

    Args:
        groups: the training groups.
        held_out: evaluation groups; their prompts must not be among those of `groups`.
        tokenizer: counts tokens; its chat template is checked where the data is conversational.
        max_length: limit on the tokens of a prompt with its longest candidate; needs a tokenizer.
        rendering: settings of the step from rows to text; needs a tokenizer.

    Raises:
        DataError: there are no groups.
        ConfigError: `max_length` without a tokenizer.
    """
    if not groups:
        raise DataError("there are no groups to check", fix="name a file with at least one row")
    if max_length is not None and tokenizer is None:
        raise ConfigError(
            "a maximum length is in tokens, and no tokenizer was given", fix="name one: --tokenizer MODEL"
        )
    corpus = Corpus.from_groups(groups)
    text_lengths = count_characters(corpus)
    lengths = [length_quantiles(corpus, text_lengths, "characters")]
    ties = _ties(corpus)
    checks = {name: check(corpus) for name, check in _CHECKS.items()} | _identical_candidates(corpus, ties.couples)
    if held_out:
        checks |= held_out_checks(corpus, Corpus.from_groups(held_out))
    if tokenizer is not None:
        text_lengths = count_tokens(corpus, tokenizer)
        lengths.append(length_quantiles(corpus, text_lengths, "tokens"))
        checks |= template_checks(corpus, tokenizer, rendering)
        if max_length is not None:
            checks["too_long"] = _too_long(corpus, text_lengths, max_length)
    bias = length_bias(corpus, text_lengths, lengths[-1].unit)
    return CheckReport(_counts(corpus), tuple(lengths), ties, bias, checks, findings(checks, ties, bias))


def _counts(corpus: Corpus) -> Counts:
    groups = corpus.groups
    labels = Counter(label for group in groups for label in group.labels or ())
    sources = Counter(NO_SOURCE if group.source is None else group.source for group in groups)
    return Counts(
        groups=len(groups),
        candidates=_candidate_count(corpus),
        prompts=len(set(corpus.prompts)),
        pairs=sum(corpus.pair_counts),
        by_size=dict(sorted(Counter(map(len, corpus.candidates)).items())),
        without_pairs=corpus.pair_counts.count(0),
        desirable=labels[True],
        undesirable=labels[False],
        by_source=dict(sources) if any(group.source is not None for group in groups) else {},
    )


def _candidate_count(corpus: Corpus) -> int:
    return sum(map(len, corpus.candidates))


def _ties(corpus: Corpus) -> Ties:
    couples = tied = undecided = 0
    for group, count in zip(corpus.groups, corpus.pair_counts, strict=True):
        k = len(group.candidates)
        preferred = count if group.comparisons is None else len({frozenset(pair) for pair in group.comparisons})
        unpreferred = k * (k - 1) // 2 - preferred
        couples += k * (k - 1) // 2
        if group.comparisons is None and (group.scores is not None or group.ranks is not None):
            tied += unpreferred
        else:
            undecided += unpreferred
    return Ties(couples, tied, undecided)


def _empty_candidates(corpus: Corpus) -> Hits:
    empty_groups = (number for number, group in enumerate(corpus.groups) for text in group.candidates if is_blank(text))
    return corpus.hits(empty_groups, _candidate_count(corpus))


def _unreadable_texts(corpus: Corpus) -> Hits:
    """Groups with a lone surrogate in a text; out of all groups."""
    unreadable = {number for number, text in enumerate(corpus.texts) if not _is_unicode(text)}
    groups = enumerate(zip(corpus.prompts, corpus.candidates, strict=True))
    unreadable_groups = (number for number, (prompt, texts) in groups if not unreadable.isdisjoint((prompt, *texts)))
    return corpus.hits(unreadable_groups, len(corpus.groups))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _identical_candidates(corpus: Corpus, couples: int) -> dict[str, Hits]:
    """Couples of identical candidates in a group, with and without a preference between them; out of all couples."""
    compared, undecided, similar = Counter[int](), Counter[int](), Counter[int]()
    folded_texts = corpus.folded_texts
    for number, texts in enumerate(corpus.candidates):
        if len({folded_texts[text] for text in texts}) < len(texts):
            equal, equal_and_preferred = _equal_couples(corpus.groups[number], texts)
            compared[number] = equal_and_preferred
            undecided[number] = equal - equal_and_preferred
            similar[number] = _count_couples(Counter(folded_texts[text] for text in texts)) - equal
    return {
        "similar_candidates": corpus.hits_by_group(+similar, couples),
        "identical_in_a_pair": corpus.hits_by_group(+compared, couples),
        "identical_without_preference": corpus.hits_by_group(+undecided, couples),
    }


def _equal_couples(group: PreferenceGroup, texts: Sequence[int]) -> tuple[int, int]:
    """Number of couples of candidates with the same text, and how many of them have a preference."""
    equal = _count_couples(Counter(texts))
    if group.comparisons is not None:
        pairs = {frozenset(pair) for pair in group.comparisons if pair[0] != pair[1]}
        return equal, sum(len({texts[index] for index in pair}) == 1 for pair in pairs)
    return equal, equal - _count_couples(Counter(zip(texts, candidate_values(group), strict=True)))


def _count_couples(counts: Counter[Any]) -> int:
    """Number of couples of equal items, from the number of items of each kind."""
    return sum(count * (count - 1) // 2 for count in counts.values())


def _contradictory_pairs(corpus: Corpus) -> Hits:
    """Couples of texts preferred both ways for one prompt, in any groups; out of all distinct couples compared."""
    groups: defaultdict[tuple[int, int, int], list[int]] = defaultdict(list)
    pairs = Counter[int]()
    for number, prompt, chosen, rejected in corpus.overlapping_pairs():
        pairs[number] += 1
        if chosen != rejected:
            groups[prompt, chosen, rejected].append(number)
    # The pairs that were not listed are distinct, and contradict no other pair.
    unrelated_pairs = sum(count for number, count in enumerate(corpus.pair_counts) if number not in pairs)
    contradictory = [key for key in groups if key[1] < key[2] and (key[0], key[2], key[1]) in groups]
    numbers = {i for prompt, a, b in contradictory for i in groups[prompt, a, b] + groups[prompt, b, a]}
    return Hits(
        len(contradictory), len(groups) + unrelated_pairs - len(contradictory), corpus.hits(sorted(numbers), 0).ids
    )


def _contradictory_labels(corpus: Corpus) -> Hits:
    """Candidates of one prompt labelled both yes and no, in any groups; out of all distinct labelled candidates."""
    groups: defaultdict[tuple[int, int], defaultdict[bool, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, group in enumerate(corpus.groups):
        if group.labels is not None:
            for text, label in zip(corpus.candidates[number], group.labels, strict=True):
                groups[corpus.prompts[number], text][label].append(number)
    contradictory = [labels for labels in groups.values() if len(labels) == 2]
    numbers = {i for labels in contradictory for numbers_of_label in labels.values() for i in numbers_of_label}
    return Hits(len(contradictory), len(groups), corpus.hits(sorted(numbers), 0).ids)


def _repeated_groups(corpus: Corpus) -> Hits:
    labels = (group.labels for group in corpus.groups)
    preferences = map(preference_key, corpus.groups)
    keys = zip(corpus.prompts, corpus.candidates, preferences, labels, strict=True)
    return corpus.hits(_repeats(enumerate(keys)), len(corpus.groups))


def _similar_groups(corpus: Corpus) -> Hits:
    """Groups equal to an earlier one except for case and white space; exact repeats are left out."""
    folded_texts = corpus.folded_texts
    earlier_exact: set[object] = set()
    earlier_keys: set[object] = set()
    similar = []
    for number, (prompt, texts) in enumerate(zip(corpus.prompts, corpus.candidates, strict=True)):
        key, folded_key = (prompt, texts), (folded_texts[prompt], tuple(folded_texts[text] for text in texts))
        if folded_key in earlier_keys and key not in earlier_exact:
            similar.append(number)
        earlier_exact.add(key)
        earlier_keys.add(folded_key)
    return corpus.hits(similar, len(corpus.groups))


def _conversations_in_each_other(corpus: Corpus) -> Hits:
    """Groups whose prompt continues another prompt, or is continued by one; out of all groups."""
    return corpus.hits(overlapping_prompts(corpus.prompt_prefixes, corpus.prompt_prefixes), len(corpus.groups))


def _repeated_pairs(corpus: Corpus) -> Hits:
    return corpus.hits(_repeats((pair.group, pair[1:]) for pair in corpus.overlapping_pairs()), sum(corpus.pair_counts))


def _repeats(numbered: Iterable[tuple[int, object]]) -> Iterator[int]:
    """The number of every key that occurred earlier.

    Args:
        numbered: keys with the number of their group.
    """
    earlier_keys: set[object] = set()
    for number, key in numbered:
        if key in earlier_keys:
            yield number
        earlier_keys.add(key)


def _no_whitespace_at_boundary(corpus: Corpus) -> Hits:
    """Candidates that follow their prompt without white space; out of those where both are non-empty plain text."""
    candidate_count, group_numbers = 0, []
    for number, group in enumerate(corpus.groups):
        prompt = group.prompt
        if isinstance(prompt, str) and prompt:
            begins = [candidate[0] for candidate in group.candidates if isinstance(candidate, str) and candidate]
            candidate_count += len(begins)
            group_numbers += [number for begin in begins if not (prompt[-1].isspace() or begin.isspace())]
    return corpus.hits(group_numbers, candidate_count)


def _nothing_to_learn(corpus: Corpus) -> Hits:
    """Groups with neither a pair nor labels; out of all groups."""
    numbered = enumerate(zip(corpus.groups, corpus.pair_counts, strict=True))
    return corpus.hits((i for i, (group, pairs) in numbered if not pairs and not group.labels), len(corpus.groups))


_CHECKS: dict[str, Callable[[Corpus], Hits]] = {
    "empty_candidates": _empty_candidates,
    "unreadable_texts": _unreadable_texts,
    "contradictory_pairs": _contradictory_pairs,
    "contradictory_labels": _contradictory_labels,
    "repeated_groups": _repeated_groups,
    "similar_groups": _similar_groups,
    "conversations_in_each_other": _conversations_in_each_other,
    "repeated_pairs": _repeated_pairs,
    "no_whitespace_at_boundary": _no_whitespace_at_boundary,
    "nothing_to_learn": _nothing_to_learn,
}


def _too_long(corpus: Corpus, tokens: Ints, max_length: int) -> Hits:
    group_numbers: list[int] = (longest_sequences(corpus, tokens) > max_length).nonzero()[0].tolist()
    return corpus.hits(group_numbers, len(corpus.groups))
