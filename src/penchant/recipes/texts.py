"""Cleaning of training text, and a stage that trains a small Llama on it from scratch."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from penchant.api import (
    DataError,
    PreferenceGroup,
    TrainingConfig,
    as_text,
    is_data_file,
    open_data_file,
    read_groups,
    read_rows,
    require_extra,
    text_lines,
    write_anew,
)
from penchant.recipes.reading import ModelTokenizer, ReadingConfig
from penchant.recipes.small_llama import SizesConfig, build_small_llama
from penchant.recipes.stages import StageResult
from penchant.recipes.tuning import StageData, TuningConfig, tune

WORDS_OF_A_SHINGLE = 5

Shingles = frozenset[tuple[str, ...]]


@dataclass(frozen=True)
class Passage:
    """A passage of text.

    Attributes:
        section: name of its section; the passages of a section are all for training or all held out.
    """

    text: str
    section: str


@dataclass(frozen=True)
class Cleaning:
    """Rules of cleaning.

    Attributes:
        min_words: texts with fewer words are dropped.
        similarity: two texts are near duplicates from this Jaccard similarity of their five-word shingles on.
        contained: a text is dropped where it contains this share of an excluded text's five-word shingles.
        chunk_words: longer texts are split, at the end of a sentence where one is near.
    """

    min_words: int = 5
    similarity: float = 0.8
    contained: float = 0.7
    chunk_words: int = 200


def read_passages(source: str, *, text: str = "text", section: str | None = None) -> list[Passage]:
    """The passages of a data file of any kind, or of a plain text whose passages are separated by empty lines.

    Args:
        text: name of the field that holds a passage's text.
        section: name of the field that holds a passage's section; None makes each passage its own section.

    Raises:
        DataError: the file cannot be read, or a row has no such field.
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


def clean_passages(
    passages: Sequence[Passage], excluded: Sequence[str], rules: Cleaning
) -> tuple[list[Passage], dict[str, int]]:
    """The passages that pass the rules, in their order, and the number of dropped passages by reason.

    Args:
        excluded: texts of the test questions.
    """
    dropped: Counter[str] = Counter()
    long_enough: list[Passage] = []
    for passage in passages:
        text = normalize_text(passage.text)
        if len(text.split()) < rules.min_words:
            dropped["too short"] += 1
        else:
            long_enough.append(Passage(text, passage.section))
    contains_excluded = _ContainmentTest([normalize_text(text) for text in excluded], rules.contained)
    cleaned = [passage for passage in long_enough if not contains_excluded(passage.text)]
    dropped["held out for tests"] = len(long_enough) - len(cleaned)
    duplicates = near_duplicates([passage.text for passage in cleaned], rules.similarity)
    dropped["near repeats"] = len(duplicates)
    return [passage for n, passage in enumerate(cleaned) if n not in duplicates], dict(dropped)


def normalize_text(text: str) -> str:
    """The text in Unicode form NFC, without control characters, every run of white space as one space."""
    composed = unicodedata.normalize("NFC", text)
    printable = "".join(letter for letter in composed if letter.isspace() or unicodedata.category(letter)[0] != "C")
    return " ".join(printable.split())


def near_duplicates(texts: Sequence[str], similarity: float) -> dict[int, int]:
    """The index of every text that nearly repeats an earlier one, mapped to the earlier one's index.

    MinHash proposes candidates, whose exact Jaccard similarity is then compared with the threshold.

    Raises:
        ConfigError: datasketch is not installed.
    """
    with require_extra("recipes", "finding repeated texts needs datasketch"):
        from datasketch import MinHash, MinHashLSH
    shingles = [_shingles(text) for text in texts]
    # Candidates are compared exactly, so the index may propose too many; above 0.95 it would have too few bands.
    index = MinHashLSH(threshold=min(similarity, 0.95), num_perm=128)
    duplicates: dict[int, int] = {}
    for number, text_shingles in enumerate(shingles):
        sketch = MinHash(num_perm=128, seed=1)
        sketch.update_batch([" ".join(shingle).encode() for shingle in text_shingles])
        candidates = sorted(index.query(sketch))
        similar = (other for other in candidates if _jaccard(text_shingles, shingles[other]) >= similarity)
        earlier = next(similar, None)
        if earlier is None:
            index.insert(number, sketch)
        else:
            duplicates[number] = earlier
    return duplicates


def split_by_section(passages: Sequence[Passage], share: float, seed: int) -> tuple[list[Passage], list[Passage]]:
    """Training and held-out passages; a hash of a section's name decides the part of all of its passages.

    Args:
        share: expected share of held-out sections.

    Raises:
        DataError: one of the parts would be empty.
    """

    def position(section: str) -> float:
        return int.from_bytes(blake2b(f"{seed}/{section}".encode(), digest_size=8).digest()) / 2**64

    train = [passage for passage in passages if position(passage.section) >= share]
    held_out = [passage for passage in passages if position(passage.section) < share]
    if not train or not held_out:
        raise DataError(
            f"{len({passage.section for passage in passages})} sections give {len(train)} passages to train on and "
            f"{len(held_out)} held out; both need some",
            fix="take more text, another share, or another seed",
        )
    return train, held_out


def split_into_chunks(text: str, words: int) -> Iterator[str]:
    """Chunks of at most `words` words; a chunk ends with a sentence where its second half holds the end of one."""
    remaining = text.split()
    while len(remaining) > words:
        ends = [n for n in range(words // 2, words) if remaining[n][-1] in ".!?;"]
        size = ends[-1] + 1 if ends else words
        yield " ".join(remaining[:size])
        remaining = remaining[size:]
    if remaining:
        yield " ".join(remaining)


def text_groups(passages: Sequence[Passage], words: int) -> list[PreferenceGroup]:
    """A group with an empty prompt and one candidate for every chunk of every passage."""
    chunks = [
        (chunk, passage.section)
        for passage in passages
        for chunk in split_into_chunks(normalize_text(passage.text), words)
    ]
    return [PreferenceGroup("", (chunk,), id=str(n), source=section) for n, (chunk, section) in enumerate(chunks)]


class _ContainmentTest:
    """A predicate: whether a text contains at least a share of the shingles of any of the reference texts."""

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


@dataclass(frozen=True)
class NewBase:
    """Settings of a base model that is trained from scratch.

    Attributes:
        texts: file of passages; longer ones are split into chunks of at most `chunk_words` words.
        tokenizer_files: files of groups that the tokenizer is trained on too; the base model is not.
        keys: see `tuning.stage_keys`.
    """

    texts: str
    chunk_words: int
    sizes: SizesConfig
    training: TrainingConfig
    tokenizer_files: Sequence[Path]
    seed: int
    keys: Mapping[str, str]

    def train(self, folder: Path) -> StageResult:
        """Train the base model into ``folder/run``; an interrupted run resumes.

        Returns:
            The number of training texts.
        """
        groups = self._groups()
        write_anew(groups, folder / "train.jsonl")
        start, tuned = folder / "start", TuningConfig(training=self.training)
        if not (start / "config.json").exists():
            build_small_llama(start, self._corpus(groups), self.sizes.sizes, self.seed)
        tune(folder, str(start), StageData(folder / "train.jsonl"), {"name": "sft"}, tuned, keys=self.keys)
        return {"texts": len(groups)}

    def tokenizer(self, name: str, data: ReadingConfig) -> ModelTokenizer:
        """The base model's tokenizer and context length, before the model is trained.

        Args:
            name: the base model's name in error messages.
        """
        return ModelTokenizer.from_scratch(name, self._corpus(self._groups()), self.sizes.sizes, self.seed, data)

    def _groups(self) -> list[PreferenceGroup]:
        return text_groups(read_passages(self.texts), self.chunk_words)

    def _corpus(self, groups: Sequence[PreferenceGroup]) -> list[str]:
        """The texts that the tokenizer is trained on."""
        passages = [as_text(group.candidates[0]) for group in groups]
        return [
            *passages,
            *(text for file in self.tokenizer_files for group in read_groups(file).groups for text in _texts(group)),
        ]


def _texts(group: PreferenceGroup) -> list[str]:
    return [as_text(part) for part in (group.prompt, *group.candidates)]
