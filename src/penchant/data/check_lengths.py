"""How long prompts and candidates are, and whether length alone tells chosen from rejected.

Legend: T distinct texts, G groups, C prompts with pairs, N pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from penchant.data.check_corpus import Corpus, worths
from penchant.data.check_report import LengthBias, Lengths, Quantiles, Share, Unit
from penchant.intervals.shares import clustered_interval

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ints = NDArray[np.int64]

_BATCH = 1024
_MANY = 16
"""Candidates from which a group's pairs are counted in arrays rather than listed."""
_PROBABILITIES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)


def count_characters(corpus: Corpus) -> Ints:
    """[T] characters of each text."""
    return np.array([len(text) for text in corpus.texts], dtype=np.int64)


def count_tokens(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> Ints:
    """[T] tokens of each text on its own, without special tokens; a lone surrogate is counted as a question mark."""
    counts: list[int] = []
    for start in range(0, len(corpus.texts), _BATCH):
        texts = [text.encode(errors="replace").decode() for text in corpus.texts[start : start + _BATCH]]
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        counts += map(len, encoded["input_ids"])
    return np.array(counts, dtype=np.int64)


def longest_sequences(corpus: Corpus, counts: Ints) -> Ints:
    """[G] length of each group's prompt with its longest candidate, from the [T] lengths of the texts."""
    sizes = [len(texts) for texts in corpus.candidates]
    starts = np.cumsum([0, *sizes[:-1]])
    return counts[list(corpus.prompts)] + np.maximum.reduceat(_of_candidates(corpus, counts), starts)


def length_quantiles(corpus: Corpus, counts: Ints, unit: Unit) -> Lengths:
    """Quantiles, from the [T] lengths of the texts."""
    return Lengths(
        unit,
        prompts=_quantiles(counts[list(corpus.prompts)]),
        candidates=_quantiles(_of_candidates(corpus, counts)),
        longest=_quantiles(longest_sequences(corpus, counts)),
    )


def length_bias(corpus: Corpus, counts: Ints, unit: Unit) -> LengthBias | None:
    """How often the chosen is the longer one, from the [T] lengths of the texts; None without pairs."""
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
    """[C] of each prompt with pairs: those whose chosen is longer, those of unequal lengths, and all."""
    table = np.zeros((len(corpus.texts), 3), dtype=np.int64)
    prompts: list[int] = []
    differences: list[int] = []
    for group, prompt, texts in zip(corpus.groups, corpus.prompts, corpus.candidates, strict=True):
        lengths = counts[list(texts)]
        if len(texts) > _MANY and group.comparisons is None:
            # [K, K], whole arrays of one group at a time.
            values = np.array(worths(group))
            difference = (lengths[:, None] - lengths)[values[:, None] > values]
            table[prompt] += (difference > 0).sum(), (difference != 0).sum(), len(difference)
        else:
            pairs = group.pairs
            prompts += [prompt] * len(pairs)
            differences += [int(lengths[better] - lengths[worse]) for better, worse in pairs]
    listed = np.array(differences, dtype=np.int64)
    rows = np.stack([listed > 0, listed != 0, np.ones_like(listed)], axis=1).astype(np.int64)
    np.add.at(table, np.array(prompts, dtype=np.int64), rows)
    longer, unequal, sizes = table[table[:, 2] > 0].T
    return longer, unequal, sizes


def share_of_pairs(hits: Ints, sizes: Ints) -> Share:
    """The share of all pairs that are hits, with a 95 % interval over prompts, as of `penchant evaluate`'s shares.

    The pairs of one prompt are not independent: whole prompts are the observations.

    Args:
        hits, sizes: [C] each prompt's hits and pairs.
    """
    hits, sizes = hits[sizes > 0], sizes[sizes > 0]
    n = int(sizes.sum())
    if not n:
        return Share(None, None, None, 0)
    value = float(hits.sum() / n)
    if len(sizes) < 2:
        return Share(value, None, None, n)
    # A hit is 1 and its own square. In an order that does not depend on the file's, for sums are rounded by theirs.
    order = np.lexsort((hits, sizes))
    low, high = clustered_interval(value, value, (hits - value * sizes)[order], sizes[order])
    return Share(value, low, high, n)


def _of_candidates(corpus: Corpus, counts: Ints) -> Ints:
    return counts[[text for texts in corpus.candidates for text in texts]]


def _quantiles(lengths: Ints) -> Quantiles:
    return Quantiles(*(int(x) for x in np.quantile(lengths, _PROBABILITIES, method="inverted_cdf")))
