from __future__ import annotations

import gzip
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.data.groups import PreferenceGroup
from penchant.data.reading import read_groups
from penchant.data.writing import write_groups
from penchant.errors import DataError

GROUP = PreferenceGroup("p", ("a", "b"), preferred=0, id="x")
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.text()}
)
MESSAGES = st.lists(MESSAGE, min_size=1, max_size=3).map(tuple)
FINITE = st.floats(-3.4e38, 3.4e38)


@st.composite
def groups(draw: st.DrawFn, text: st.SearchStrategy[Any]) -> PreferenceGroup:
    k = draw(st.integers(1, 4))
    index = st.integers(0, k - 1)
    pair = st.tuples(index, index).filter(lambda both: both[0] != both[1])

    def maybe(values: st.SearchStrategy[Any]) -> Any:
        return draw(st.none() | values)

    def value_per_candidate(values: st.SearchStrategy[Any]) -> Any:
        return maybe(st.tuples(*[values] * k))

    return PreferenceGroup(
        draw(text),
        tuple(draw(text) for _ in range(k)),
        comparisons=maybe(st.lists(pair, max_size=4).map(tuple) if k > 1 else st.just(())),
        scores=value_per_candidate(FINITE),
        ranks=value_per_candidate(st.integers(1, k)),
        preferred=maybe(index),
        labels=value_per_candidate(st.booleans()),
        id=draw(st.text()),
        weight=draw(st.floats(1e-3, 1e3)),
        source=maybe(st.text()),
    )


@given(
    st.one_of(st.lists(groups(text), min_size=1, max_size=4) for text in (st.text(), MESSAGES)),
    st.sampled_from(["", ".gz"]),
)
def test_groups_are_read_back_unchanged(original: list[PreferenceGroup], gz: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"groups.jsonl{gz}"
        write_groups(original, file)
        group_set = read_groups(file)
    assert group_set.format == "penchant"
    assert list(group_set.groups) == original


def test_each_group_is_one_line(tmp_path: Path) -> None:
    write_groups([GROUP, replace(GROUP, preferred=None, scores=(1.0, 0.5), weight=2.0, id="é")], tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines() == [
        '{"id": "x", "prompt": "p", "candidates": ["a", "b"], "preferred": 0}',
        '{"id": "é", "prompt": "p", "candidates": ["a", "b"], "scores": [1.0, 0.5], "weight": 2.0}',
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_the_same_groups_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_groups([GROUP], tmp_path / name)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert (tmp_path / "a.jsonl.gz").read_bytes()[4:8] == bytes(4), "no time stamp"
    assert json.loads(gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()))["id"] == "x"


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    write_groups([GROUP], tmp_path / "a.jsonl")
    content = (tmp_path / "a.jsonl").read_bytes()
    with pytest.raises(DataError, match="exists already"):
        write_groups([replace(GROUP, id="y")], tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == content


@pytest.mark.parametrize(
    ("name", "groups_to_write", "message"),
    [
        ("a.json", [GROUP], "written as .jsonl or .jsonl.gz"),
        ("none/a.jsonl", [GROUP], "its folder does not exist"),
        ("a.jsonl", [], "there are no groups"),
        ("a.jsonl", [GROUP, replace(GROUP, scores=(float("nan"), 1.0))], "group 2 \\(id 'x'\\) cannot be written"),
        ("a.jsonl", [replace(GROUP, prompt="\ud800")], "group 1 \\(id 'x'\\) cannot be written"),
    ],
)
def test_refused(tmp_path: Path, name: str, groups_to_write: list[PreferenceGroup], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_groups(groups_to_write, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        write_groups([GROUP], tmp_path / "a.jsonl")
    assert list(tmp_path.iterdir()) == []
