"""Text made fit to train on."""

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
    chunks,
    clean,
    hold_out,
    near_repeats,
    normal,
    read_passages,
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
    assert [each.text for each in read_passages(str(plain))] == ["One\nline.", "Two.\n"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_separators_of_unicode_end_no_row(tmp_path, separator):
    text = f"One{separator}two."
    file = tmp_path / "texts.jsonl"
    rows = [json.dumps({"text": each}, ensure_ascii=False) for each in (text, "Three.")]
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
def test_lines_that_are_no_texts(tmp_path, content, message):
    file = tmp_path / "texts.jsonl"
    file.write_text(content)
    with pytest.raises(DataError) as error:
        read_passages(str(file))
    assert message in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        read_passages(str(tmp_path / "no.jsonl"))


def test_normal():
    assert normal(" Cafe\u0301\u200b \x07 a\n\tb ") == "Café a b"


def test_near_repeats_are_those_of_all_pairs():
    base = [words(60, n) for n in range(30)]
    draw = random.Random(1)
    texts = [" ".join(each) for each in base]
    for each in base:
        changed = list(each)
        for place in draw.sample(range(60), draw.choice([1, 2, 6])):
            changed[place] = "other"
        texts.append(" ".join(changed))

    def shingles(text):
        own = text.split()
        return {tuple(own[n : n + 5]) for n in range(len(own) - 4)}

    sets = [shingles(text) for text in texts]
    expected = {}
    for n, own in enumerate(sets):
        like = [m for m in range(n) if m not in expected and len(own & sets[m]) / len(own | sets[m]) >= 0.7]
        if like:
            expected[n] = like[0]
    assert 5 < len(expected) < 30
    found = near_repeats(texts, 0.7)
    # What is found is right; MinHash may miss one near the threshold.
    assert found.items() <= expected.items()
    assert len(found) >= 0.9 * len(expected)


@pytest.mark.parametrize("similarity", [0.1, 1.0])
def test_near_repeats_at_the_ends_of_the_range(similarity):
    text, half = " ".join(words(40, 0)), " ".join([*words(20, 0), *words(20, 5)])
    found = near_repeats([text, " ".join(words(40, 1)), half, text.upper()], similarity)
    assert found[3] == 0
    assert 1 not in found
    assert (2 in found) == (similarity < 0.5)


def test_what_is_left_out_is_counted():
    long = " ".join(words(40, 0))
    test = " ".join(words(30, 1))
    passages = [
        Passage(long, "a"),
        Passage("Two words", "a"),
        Passage(f"Before. {test} After that.", "b"),
        Passage(f"{long} ", "c"),
        Passage(" ".join(words(40, 2)), "d"),
    ]
    kept, dropped = clean(passages, [test], Cleaning())
    assert [each.section for each in kept] == ["a", "d"]
    assert dropped == {"too short": 1, "held out for tests": 1, "near repeats": 1}


def test_sections_are_never_split():
    passages = [Passage(f"text {n}", f"s{n % 40}") for n in range(400)]
    train, held_out = hold_out(passages, 0.2, 0)
    assert len(train) + len(held_out) == 400
    assert not {each.section for each in train} & {each.section for each in held_out}
    assert 3 <= len({each.section for each in held_out}) <= 14
    assert hold_out(passages[::-1], 0.2, 0)[1] == held_out[::-1]
    with pytest.raises(DataError, match="1 sections give"):
        hold_out(passages[:1], 0.2, 0)


@given(st.lists(st.text("ab.", min_size=1, max_size=4), max_size=80), st.integers(1, 20))
def test_chunks_are_the_text(parts, size):
    found = list(chunks(" ".join(parts), size))
    assert " ".join(found).split() == parts
    assert all(1 <= len(each.split()) <= size for each in found)


def test_a_chunk_ends_with_a_sentence():
    assert list(chunks("a b c d. e f g h", 5)) == ["a b c d.", "e f g h"]
