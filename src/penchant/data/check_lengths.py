"""Lengths of prompts and candidates, and how well length alone separates chosen from rejected.

Legend: T distinct texts, G groups, C prompts with pairs, N pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from penchant.data.check_corpus import Corpus, candidate_values
from penchant.data.check_report import LengthBias, Lengths, Quantiles, Share, Unit
from penchant.intervals.shares import clustered_interval

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
