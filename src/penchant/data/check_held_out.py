"""Checks for prompts, candidates and conversations that are both in the training and in the held-out groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from penchant.data.check_corpus import Corpus
from penchant.data.check_report import Hits
from penchant.data.groups import PreferenceGroup
from penchant.data.messages import is_blank
from penchant.data.overlaps import overlapping_prompts


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
