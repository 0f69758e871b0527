"""Verdicts of a review: stored at once, undone, and continued after a restart."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.cli.main import run
from penchant.data.groups import PreferenceGroup
from penchant.data.reading import read_groups
from penchant.data.review import Review
from penchant.errors import DataError

GROUPS = tuple(PreferenceGroup(f"p{n}", (f"a{n}", f"b{n}"), preferred=0, id=str(n)) for n in range(4))


def ids(groups):
    return [group.id for group in groups]


def test_a_verdict_is_on_the_disk(tmp_path):
    file = tmp_path / "verdicts.jsonl"
    Review(GROUPS, file).give(GROUPS[1], "accept")
    (row,) = map(json.loads, file.read_text().splitlines())
    assert (row["id"], row["verdict"]) == ("1", "accept")
    reopened = Review(GROUPS, file)
    assert ids(reopened.accepted) == ["1"]
    assert ids(reopened.waiting) == ["0", "2", "3"]
    assert reopened.counts() == {"accept": 1, "reject": 0, "waiting": 3}


@given(st.lists(st.one_of(st.tuples(st.integers(0, 3), st.sampled_from(["accept", "reject"])), st.none()), max_size=12))
@settings(max_examples=40, deadline=None)
def test_undo_removes_the_latest_verdict_also_after_a_restart(tmp_path_factory, steps):
    file = tmp_path_factory.mktemp("review") / "verdicts.jsonl"
    expected: dict[str, str] = {}
    for step in steps:
        review = Review(GROUPS, file)
        if step is None:
            last = expected.popitem()[0] if expected else None
            undone = review.undo()
            assert (undone.id if undone else None) == last
        else:
            number, verdict = step
            expected.pop(str(number), None)
            expected[str(number)] = verdict
            review.give(GROUPS[number], verdict)
    review = Review(GROUPS, file)
    assert ids(review.accepted) == sorted(name for name, verdict in expected.items() if verdict == "accept")
    assert ids(review.waiting) == [group.id for group in GROUPS if group.id not in expected]


def test_ids_with_line_separators(tmp_path):
    file, odd = tmp_path / "verdicts.jsonl", [replace(group, id=f"{group.id}\u2028\x85") for group in GROUPS]
    Review(odd, file).give(odd[1], "accept")
    assert ids(Review(odd, file).accepted) == [odd[1].id]


def test_a_changed_group_needs_a_new_verdict(tmp_path):
    file = tmp_path / "verdicts.jsonl"
    Review(GROUPS, file).give(GROUPS[0], "accept")
    changed_groups = (replace(GROUPS[0], candidates=("other", "b0")), *GROUPS[1:])
    review = Review(changed_groups, file)
    assert review.stale == 1
    assert len(review.waiting) == 4
    reversed_groups = (replace(GROUPS[0], preferred=1), *GROUPS[1:])
    assert Review(reversed_groups, file).stale == 1


def test_verdicts_of_other_groups_are_kept(tmp_path):
    file = tmp_path / "verdicts.jsonl"
    Review(GROUPS, file).give(GROUPS[3], "reject")
    Review(GROUPS[:2], file).give(GROUPS[0], "accept")
    assert Review(GROUPS, file).counts() == {"accept": 1, "reject": 1, "waiting": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1: no verdict"),
        ('{"id": "0"}', "line 1: no verdict"),
        ('{"id": "0", "verdict": "perhaps", "of": "x"}', "'perhaps'; expected accept or reject"),
    ],
)
def test_a_file_without_verdicts_is_an_error(tmp_path, content, message):
    file = tmp_path / "verdicts.jsonl"
    file.write_text(content)
    with pytest.raises(DataError) as error:
        Review(GROUPS, file)
    assert message in str(error.value)


def test_ids_must_differ(tmp_path):
    with pytest.raises(DataError, match="1 ids occur twice, the first is '0'"):
        Review([GROUPS[0], GROUPS[0]], tmp_path / "v")


@pytest.fixture
def pairs(tmp_path) -> Path:
    file = tmp_path / "pairs.jsonl"
    rows = [{"id": f"r{n}", "prompt": f"p{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_from_the_command_line(pairs, tmp_path, monkeypatch, capsys):
    verdicts, out = tmp_path / "v.jsonl", tmp_path / "accepted.jsonl"
    arguments = ["data", "review", str(pairs), "--verdicts", str(verdicts)]
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nwhat\nu\nu\nr\nq\n"))
    assert run([*arguments, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"accept": 0, "reject": 1, "waiting": 2}
    assert "'what' is none of" in printed.err
    assert "no verdict to undo" in printed.err
    monkeypatch.setattr("sys.stdin", io.StringIO("s\na\n"))
    assert run([*arguments, "--accepted", str(out)]) == 0
    assert [group.prompt for group in read_groups(out).groups] == ["p2"]
    assert "accept 1, reject 1, waiting 1" in capsys.readouterr().out


def test_killed_between_two_verdicts(pairs, tmp_path):
    verdicts = tmp_path / "v.jsonl"
    command = [sys.executable, "-m", "penchant", "data", "review", str(pairs), "--verdicts", str(verdicts)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdin.write("a\n")
    process.stdin.flush()
    for line in process.stdout:
        if "2 to go" in line:
            break
    process.kill()
    process.wait()
    assert [json.loads(line)["id"] for line in verdicts.read_text().splitlines()] == ["r0"]
