"""The text of a field, made fit to train on: clean, without repeats and without what it will be tested on."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from penchant.data.files import is_data_file, open_data_file, read_rows
from penchant.data.files_text import text_lines
from penchant.data.groups import PreferenceGroup
from penchant.errors import DataError, require_extra

WORDS_OF_A_SHINGLE = 5

Shingles = frozenset[tuple[str, ...]]


@dataclass(frozen=True)
class Passage:
    """Some text.

    Attributes:
        section: what it is a part of; passages of one section are not split between training and the held-out part.
    """

    text: str
    section: str


@dataclass(frozen=True)
class Cleaning:
    """What is left of texts.

    Attributes:
        min_words: shorter ones are dropped.
        similarity: two texts are one where their five-word runs have this much in common (Jaccard).
        contained: a text is left out where it holds this share of an excluded text's five-word runs.
        chunk_words: longer ones are cut, at the end of a sentence where one is near.
    """

    min_words: int = 5
    similarity: float = 0.8
    contained: float = 0.7
    chunk_words: int = 200


def read_passages(source: str, *, text: str = "text", section: str | None = None) -> list[Passage]:
    """Rows with a field of text (any kind of data file), or plain text whose passages are separated by empty lines.

    Args:
        section: the field that names a passage's section; None makes each passage one.

    Raises:
        DataError: the file cannot be read, or a line has no such field.
    """
    path = Path(source)
    if path.is_dir() or is_data_file(path):
        rows = enumerate(read_rows(source), 1)
        return [_passage(row, where, number, text, section) for number, (where, row) in rows]
    with open_data_file(path, source) as stream:
        contents = "".join(line for _, line in text_lines(stream, source))
    return [Passage(part, str(n)) for n, part in enumerate(re.split(r"\n\s*\n", contents)) if part.strip()]


def _passage(row: Mapping[str, Any], where: str, number: int, text: str, section: str | None) -> Passage:
    for field in (text, *([section] if section else [])):
        if not isinstance(row.get(field), str):
            raise DataError(
                f"there is no text in '{field}'; the row holds {', '.join(row)}", where=where, fix="name its fields"
            )
    return Passage(row[text], row[section] if section else str(number))


def clean(
    passages: Sequence[Passage], excluded: Sequence[str], rules: Cleaning
) -> tuple[list[Passage], dict[str, int]]:
    """Passages in their order, and how many were left out, by reason.

    Args:
        excluded: texts that the model will be asked about.
    """
    dropped: Counter[str] = Counter()
    kept: list[Passage] = []
    for passage in passages:
        text = normal(passage.text)
        if len(text.split()) < rules.min_words:
            dropped["too short"] += 1
        else:
            kept.append(Passage(text, passage.section))
    overlaps = _Contained([normal(text) for text in excluded], rules.contained)
    kept, before = [each for each in kept if not overlaps(each.text)], len(kept)
    dropped["held out for tests"] = before - len(kept)
    repeats = near_repeats([each.text for each in kept], rules.similarity)
    dropped["near repeats"] = len(repeats)
    return [each for n, each in enumerate(kept) if n not in repeats], dict(dropped)


def normal(text: str) -> str:
    """Unicode composed (NFC), control characters out, runs of white space one space."""
    composed = unicodedata.normalize("NFC", text)
    shown = "".join(letter for letter in composed if letter.isspace() or unicodedata.category(letter)[0] != "C")
    return " ".join(shown.split())


def near_repeats(texts: Sequence[str], similarity: float) -> dict[int, int]:
    """Each text that is nearly an earlier one, with that one: found by MinHash, then compared exactly.

    Raises:
        ConfigError: the library is not installed.
    """
    with require_extra("recipes", "finding repeated texts needs datasketch"):
        from datasketch import MinHash, MinHashLSH
    shingles = [_shingles(text) for text in texts]
    # What the sketches find is compared exactly, so that they may find more; above 0.95 they have too few bands.
    index = MinHashLSH(threshold=min(similarity, 0.95), num_perm=128)
    found: dict[int, int] = {}
    for number, own in enumerate(shingles):
        sketch = MinHash(num_perm=128, seed=1)
        sketch.update_batch([" ".join(each).encode() for each in own])
        like = (other for other in sorted(index.query(sketch)) if _jaccard(own, shingles[other]) >= similarity)
        earlier = next(like, None)
        if earlier is None:
            index.insert(number, sketch)
        else:
            found[number] = earlier
    return found


def hold_out(passages: Sequence[Passage], share: float, seed: int) -> tuple[list[Passage], list[Passage]]:
    """Training and held-out passages; whole sections, chosen by their names."""

    def place(section: str) -> float:
        return int.from_bytes(blake2b(f"{seed}/{section}".encode(), digest_size=8).digest()) / 2**64

    held = [place(each.section) < share for each in passages]
    parts = ([each for each, out in zip(passages, held, strict=True) if out is wanted] for wanted in (False, True))
    train, held_out = parts
    if not train or not held_out:
        raise DataError(
            f"{len({each.section for each in passages})} sections give {len(train)} passages to train on and "
            f"{len(held_out)} held out; both need some",
            fix="take more text, another share, or another seed",
        )
    return train, held_out


def chunks(text: str, words: int) -> Iterator[str]:
    """Parts of at most so many words; a part of more than half of them ends with a sentence where it can."""
    left = text.split()
    while len(left) > words:
        ends = [n for n in range(words // 2, words) if left[n][-1] in ".!?;"]
        cut = ends[-1] + 1 if ends else words
        yield " ".join(left[:cut])
        left = left[cut:]
    if left:
        yield " ".join(left)


def as_groups(passages: Sequence[Passage], words: int) -> list[PreferenceGroup]:
    """Each chunk of a passage as text to go on with from nothing."""
    parts = [(part, each.section) for each in passages for part in chunks(normal(each.text), words)]
    return [PreferenceGroup("", (part,), id=str(n), source=section) for n, (part, section) in enumerate(parts)]


class _Contained:
    """Whether a text holds most of any of some texts."""

    def __init__(self, texts: Sequence[str], share: float) -> None:
        self._sizes = [len(_shingles(text)) for text in texts]
        self._share = share
        self._holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for number, text in enumerate(texts):
            for shingle in _shingles(text):
                self._holders[shingle].append(number)

    def __call__(self, text: str) -> bool:
        common = Counter(number for shingle in _shingles(text) for number in self._holders.get(shingle, ()))
        return any(count >= self._share * self._sizes[number] for number, count in common.items())


def _shingles(text: str) -> Shingles:
    words = re.findall(r"\w+", text.lower())
    runs = range(max(1, len(words) - WORDS_OF_A_SHINGLE + 1))
    return frozenset(tuple(words[n : n + WORDS_OF_A_SHINGLE]) for n in runs)


def _jaccard(a: Shingles, b: Shingles) -> float:
    return len(a & b) / len(a | b)
