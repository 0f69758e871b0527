"""Cleaning of training text."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.errors import DataError
from penchant.recipes.texts import (
    Cleaning,
    Passage,
    clean_passages,
    near_duplicates,
    normalize_text,
    read_passages,
    split_by_section,
    split_into_chunks,
)


def words(n: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefgh", k=5)) for _ in range(n)]


def test_json_lines_and_plain_text(tmp_path):
    lines = tmp_path / "texts.jsonl"
    lines.write_text("\n".join(json.dumps({"body": f"Text {n}", "part": f"p{n % 2}"}) for n in range(4)))
    assert read_passages(str(lines), text="body", section="part")[3] == Passage("Text 3", "p1")
    assert read_passages(str(lines), text="body")[3] == Passage("Text 3", "4")
    plain = tmp_path / "texts.txt"
    plain.write_text("One\nline.\n\n  \nTwo.\n")
    assert [passage.text for passage in read_passages(str(plain))] == ["One\nline.", "Two.\n"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_unicode_line_separators_end_no_row(tmp_path, separator):
    text = f"One{separator}two."
    file = tmp_path / "texts.jsonl"
    rows = [json.dumps({"text": line}, ensure_ascii=False) for line in (text, "Three.")]
    file.write_text("\n".join(rows) + "\n\n", encoding="utf-8")
    assert read_passages(str(file)) == [Passage(text, "1"), Passage("Three.", "2")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"txt": "b"}', "line 2: there is no text in 'text'; the row holds txt"),
        ("[1]", "line 1: found a list; expected an object"),
        ("{", "line 1: not valid JSON"),
    ],
)
def test_invalid_rows(tmp_path, content, message):
    file = tmp_path / "texts.jsonl"
    file.write_text(content)
    with pytest.raises(DataError) as error:
        read_passages(str(file))
    assert message in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        read_passages(str(tmp_path / "no.jsonl"))


def test_normalize_text():
    assert normalize_text(" Cafe\u0301\u200b \x07 a\n\tb ") == "Café a b"


def test_near_duplicates_agree_with_a_comparison_of_all_pairs():
    base = [words(60, n) for n in range(30)]
    draw = random.Random(1)
    texts = [" ".join(passage) for passage in base]
    for passage in base:
        changed_words = list(passage)
        for position in draw.sample(range(60), draw.choice([1, 2, 6])):
            changed_words[position] = "other"
        texts.append(" ".join(changed_words))

    def shingles(text):
        tokens = text.split()
        return {tuple(tokens[n : n + 5]) for n in range(len(tokens) - 4)}

    sets = [shingles(text) for text in texts]
    expected = {}
    for n, text_shingles in enumerate(sets):
        like = [
            m
            for m in range(n)
            if m not in expected and len(text_shingles & sets[m]) / len(text_shingles | sets[m]) >= 0.7
        ]
        if like:
            expected[n] = like[0]
    assert 5 < len(expected) < 30
    duplicates = near_duplicates(texts, 0.7)
    # Every reported duplicate is one; MinHash may miss some near the threshold.
    assert duplicates.items() <= expected.items()
    assert len(duplicates) >= 0.9 * len(expected)


@pytest.mark.parametrize("similarity", [0.1, 1.0])
def test_near_duplicates_at_the_ends_of_the_similarity_range(similarity):
    text, half = " ".join(words(40, 0)), " ".join([*words(20, 0), *words(20, 5)])
    duplicates = near_duplicates([text, " ".join(words(40, 1)), half, text.upper()], similarity)
    assert duplicates[3] == 0
    assert 1 not in duplicates
    assert (2 in duplicates) == (similarity < 0.5)


def test_dropped_passages_are_counted():
    long = " ".join(words(40, 0))
    test = " ".join(words(30, 1))
    passages = [
        Passage(long, "a"),
        Passage("Two words", "a"),
        Passage(f"Before. {test} After that.", "b"),
        Passage(f"{long} ", "c"),
        Passage(" ".join(words(40, 2)), "d"),
    ]
    cleaned, dropped = clean_passages(passages, [test], Cleaning())
    assert [passage.section for passage in cleaned] == ["a", "d"]
    assert dropped == {"too short": 1, "held out for tests": 1, "near repeats": 1}


def test_split_keeps_sections_whole():
    passages = [Passage(f"text {n}", f"s{n % 40}") for n in range(400)]
    train, held_out = split_by_section(passages, 0.2, 0)
    assert len(train) + len(held_out) == 400
    assert not {passage.section for passage in train} & {passage.section for passage in held_out}
    assert 3 <= len({passage.section for passage in held_out}) <= 14
    assert split_by_section(passages[::-1], 0.2, 0)[1] == held_out[::-1]
    with pytest.raises(DataError, match="1 sections give"):
        split_by_section(passages[:1], 0.2, 0)


@given(st.lists(st.text("ab.", min_size=1, max_size=4), max_size=80), st.integers(1, 20))
def test_chunks_contain_the_whole_text(parts, size):
    chunks = list(split_into_chunks(" ".join(parts), size))
    assert " ".join(chunks).split() == parts
    assert all(1 <= len(chunk.split()) <= size for chunk in chunks)


def test_a_chunk_ends_with_a_sentence():
    assert list(split_into_chunks("a b c d. e f g h", 5)) == ["a b c d.", "e f g h"]
