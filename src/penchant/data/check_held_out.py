"""What training and held-out groups share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from penchant.data.check_corpus import Corpus
from penchant.data.check_report import Hits
from penchant.data.groups import PreferenceGroup, Text
from penchant.data.messages import is_blank
from penchant.data.overlaps import contained, folded


def held_out_checks(corpus: Corpus, held_out: Corpus) -> dict[str, Hits]:
    """Distinct prompts and candidates that are on both sides, each by the first training group that has it."""
    held_out_prompts = {held_out.texts[text] for text in held_out.prompts}
    held_out_candidates = {held_out.texts[text] for texts in held_out.candidates for text in texts}
    folded_prompts, folded_candidates = set(map(folded, held_out_prompts)), set(map(folded, held_out_candidates))
    prompts = _first_groups([text] for text in corpus.prompts)
    candidates = _first_groups(map(_not_blank, corpus.groups, corpus.candidates))
    conversations = contained(_prompts(corpus), _prompts(held_out))

    def shared(first_groups: dict[int, int], is_held_out: Callable[[str], bool]) -> Hits:
        numbers = (group for text, group in first_groups.items() if is_held_out(corpus.texts[text]))
        return corpus.hits(numbers, len(first_groups))

    return {
        "prompts_in_held_out": shared(prompts, held_out_prompts.__contains__),
        "prompts_in_held_out_normalized": shared(prompts, lambda text: folded(text) in folded_prompts),
        "candidates_in_held_out": shared(candidates, held_out_candidates.__contains__),
        "candidates_in_held_out_normalized": shared(candidates, lambda text: folded(text) in folded_candidates),
        "conversations_in_held_out": corpus.hits(conversations, len(corpus.groups)),
    }


def _prompts(corpus: Corpus) -> list[Text]:
    return [group.prompt for group in corpus.groups]


def _not_blank(group: PreferenceGroup, texts: Sequence[int]) -> list[int]:
    return [text for text, candidate in zip(texts, group.candidates, strict=True) if not is_blank(candidate)]


def _first_groups(texts: Iterable[Sequence[int]]) -> dict[int, int]:
    first: dict[int, int] = {}
    for group, numbers in enumerate(texts):
        for number in numbers:
            first.setdefault(number, group)
    return first
