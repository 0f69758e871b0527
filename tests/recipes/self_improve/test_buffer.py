"""The replay buffer: against a model of it in plain Python, from several processes, killed, and without room."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.data.groups import Message, PreferenceGroup
from penchant.engine import database
from penchant.errors import DataError, DiskFullError
from penchant.recipes.self_improve.buffer import Judgement, ReplayBuffer

JUDGEMENT = Judgement(1, "p", 0, "prompt", "answer", (True, False), 0.5, "critique")
# Every character but halves of surrogate pairs.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
WRITER = """
import sys
from pathlib import Path
from penchant.data.groups import PreferenceGroup
from penchant.recipes.self_improve.buffer import Judgement, ReplayBuffer

path, who, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
buffer = ReplayBuffer(path, 10_000)
for k in range(count):
    for name in (who, "both"):
        buffer.record(Judgement(0, name, k, "p", f"answer {k}" * 50, (k % 2 == 0,), k / count, "c"))
        buffer.add(PreferenceGroup(f"{name} {k}", ("good", "bad"), preferred=0, id=f"{name} {k}"), 1.0)
    print(k, flush=True)
"""
HALFWAY = """
import sys, time
from pathlib import Path
from penchant.recipes.self_improve.buffer import ReplayBuffer

buffer = ReplayBuffer(Path(sys.argv[1]), 5)
with buffer._database.writing() as connection:
    connection.execute("INSERT INTO judgements VALUES (1, 'p', 1, '{')")
    print("written", flush=True)
    time.sleep(60)
"""


def group(name: str, prompt: str = "p") -> PreferenceGroup:
    return PreferenceGroup(prompt, (f"good {name}", f"bad {name}"), preferred=0, id=name, source="round 1")


def ids(groups: list[PreferenceGroup]) -> list[str]:
    return [each.id for each in groups]


def fill(buffer: ReplayBuffer, done: list[int]) -> None:
    for k in range(100):
        buffer.record(replace(JUDGEMENT, attempt=k, answer="x" * 5000))
        done.append(k)


@pytest.fixture
def buffer(tmp_path):
    found = ReplayBuffer(tmp_path / "deep" / "buffer.sqlite", 3)
    yield found
    found.close()


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Makes an empty buffer; hypothesis asks for many in one test."""

    def make(capacity: int, alpha: float = 0.6) -> ReplayBuffer:
        found = ReplayBuffer(tmp_path_factory.mktemp("fresh") / "buffer.sqlite", capacity, alpha)
        # Nothing cuts the power here: thousands of transactions need not wait for the disk.
        found._database.read("PRAGMA synchronous = OFF")
        return found

    return make


class TestJudgements:
    def test_in_order_of_attempts_whatever_the_order_of_recording(self, buffer):
        every = [replace(JUDGEMENT, attempt=k, answer=f"answer {k}") for k in (2, 0, 10, 1)]
        for each in every:
            buffer.record(each)
        buffer.record(replace(JUDGEMENT, round=2))
        buffer.record(replace(JUDGEMENT, prompt_id="q"))
        assert buffer.judged(1, "p") == [every[1], every[3], every[0], every[2]]
        assert buffer.judged(3, "p") == []
        assert buffer.counts()["judgements"] == 6

    def test_an_equal_one_is_stored_once_also_by_another_process_later(self, buffer, tmp_path):
        buffer.record(JUDGEMENT)
        later = ReplayBuffer(tmp_path / "deep" / "buffer.sqlite", 3)
        later.record(JUDGEMENT)
        assert later.judged(1, "p") == buffer.judged(1, "p") == [JUDGEMENT]
        later.close()

    @pytest.mark.parametrize(
        "other",
        [{"answer": "another"}, {"met": (True, True)}, {"score": 0.5 + 2**-53}, {"critique": ""}, {"prompt": "Prompt"}],
    )
    def test_a_different_one_of_the_same_attempt_is_an_error_and_changes_nothing(self, buffer, other):
        buffer.record(JUDGEMENT)
        with pytest.raises(DataError, match="another judgement of this attempt") as error:
            buffer.record(replace(JUDGEMENT, **other))
        assert "buffer.sqlite, round 1, prompt 'p', attempt 0" in str(error.value)
        assert buffer.judged(1, "p") == [JUDGEMENT]

    @pytest.mark.parametrize("score", [math.nan, math.inf])
    def test_a_score_that_is_no_number(self, buffer, score):
        with pytest.raises(DataError, match="expected a finite number"):
            buffer.record(replace(JUDGEMENT, score=score))
        assert buffer.counts()["judgements"] == 0

    @settings(max_examples=25, deadline=None)
    @given(prompt_id=TEXTS, texts=st.tuples(TEXTS, TEXTS, TEXTS), met=st.lists(st.booleans()), score=st.floats(0, 1))
    def test_what_is_read_is_what_was_recorded(self, fresh, prompt_id, texts, met, score):
        prompt, answer, critique = texts
        given = Judgement(0, prompt_id, 0, prompt, answer, tuple(met), score, critique)
        buffer = fresh(1)
        buffer.record(given)
        buffer.record(given)
        assert buffer.judged(0, prompt_id) == [given]
        buffer.close()


class TestHolding:
    def test_the_lowest_priority_goes_of_equals_the_oldest(self, buffer):
        assert [buffer.add(group(name), priority) for name, priority in [("a", 2), ("b", 1), ("c", 1)]] == [True] * 3
        assert buffer.add(group("d"), 1)
        assert list(buffer.uses()) == ["a", "c", "d"]
        assert not buffer.add(group("e"), 0.5)
        assert list(buffer.uses()) == ["a", "c", "d"]

    def test_the_same_text_is_held_once_with_its_first_priority(self, buffer):
        assert buffer.add(group("a"), 1)
        assert buffer.add(replace(group("a"), id="z", source=None), 9)
        assert buffer.draw(5, 0) == [group("a")]
        assert buffer.added() == 1
        for name in "bcd":
            buffer.add(group(name), 2)
        assert list(buffer.uses()) == ["b", "c", "d"]

    def test_another_rejected_answer_is_another_text(self, buffer):
        other = replace(group("b"), candidates=("good a", "worse"))
        assert buffer.add(group("a"), 1)
        assert buffer.add(other, 1)
        assert sorted(ids(buffer.draw(5, 0))) == ["a", "b"]

    def test_another_text_of_the_same_id_is_an_error(self, buffer):
        buffer.add(group("a"), 1)
        with pytest.raises(DataError, match="another group has the id 'a'"):
            buffer.add(group("a", prompt="q"), 1)
        assert buffer.draw(5, 0) == [group("a")]

    def test_lowered_groups_go_first_and_are_never_lost_to_underflow(self, buffer):
        for name in "abc":
            buffer.add(group(name), 1)
        lowered = {"c": 0.6, "a": 0.5, "b": 0.7, "gone": 0.1}
        for _ in range(2):
            buffer.lower(lowered)
            assert buffer.priorities() == {"a": 0.5, "b": 0.7, "c": 0.6}
        buffer.lower({"a": 0.9})
        assert buffer.priorities()["a"] == 0.5
        buffer.add(group("d"), 1)
        assert list(buffer.priorities()) == ["b", "c", "d"]
        buffer.lower({"b": 0.0, "c": 1e-323})
        assert len(buffer.draw(3, 0)) == 3

    @pytest.mark.parametrize("priority", [0, -1, math.inf, math.nan])
    def test_priorities_that_cannot_be_drawn_by(self, buffer, priority):
        with pytest.raises(ValueError, match="expected a finite number above 0"):
            buffer.add(group("a"), priority)

    @pytest.mark.parametrize(
        ("odd", "found"),
        [
            (PreferenceGroup("p", ("a", "b"), weight=math.nan), "cannot be kept"),
            (PreferenceGroup("p", ("a", "b"), mismatched=1), "would be read as another"),
            (PreferenceGroup("p \ud83d", ("a", "b")), "lone surrogate U\\+D83D"),
        ],
    )
    def test_what_could_not_be_read_back_is_refused_at_once(self, buffer, odd, found):
        with pytest.raises(DataError, match=found):
            buffer.add(odd, 1)
        assert buffer.counts()["groups"] == 0

    @settings(max_examples=25, deadline=None)
    @given(texts=st.lists(TEXTS, min_size=3, max_size=5), scores=st.booleans(), messages=st.booleans())
    def test_what_is_drawn_is_what_was_added(self, fresh, texts, scores, messages):
        said = [(Message(role="assistant", content=text),) if messages else text for text in texts]
        known = {"scores": tuple(map(float, range(len(texts) - 1)))} if scores else {"comparisons": ((0, 1),)}
        given = PreferenceGroup(said[0], tuple(said[1:]), **known, id="x", weight=0.25, source="s")
        buffer = fresh(1)
        assert buffer.add(given, 1)
        assert buffer.draw(1, 0) == [given]
        buffer.close()

    @settings(max_examples=40, deadline=None)
    @given(
        capacity=st.integers(1, 4),
        steps=st.lists(
            st.tuples(st.sampled_from(["add", "lower", "draw"]), st.integers(0, 7), st.sampled_from([0.25, 0.5, 1.0])),
            max_size=25,
        ),
    )
    def test_a_model_in_plain_python_holds_the_same(self, fresh, capacity, steps):
        buffer = fresh(capacity)
        model: dict[str, float] = {}  # id -> priority, the oldest first
        uses: Counter[str] = Counter()
        for what, number, value in steps:
            name = str(number)
            if what == "lower":
                buffer.lower({name: value})
                if name in model:
                    model[name] = min(model[name], value)
            elif what == "draw":
                drawn = ids(buffer.draw(number, 7))
                assert len(drawn) == len(set(drawn)) == min(number, len(model))
                uses.update(drawn)
            else:
                model.setdefault(name, value)
                if len(model) > capacity:
                    lowest = min(model, key=model.__getitem__)
                    del model[lowest]
                    del uses[lowest]
                assert buffer.add(group(name), value) == (name in model)
            assert buffer.uses() == {each: uses[each] for each in model}
            assert buffer.priorities() == model
            assert len(model) <= capacity
        drawn_once = sum(uses[each] > 0 for each in model)
        assert buffer.counts() == {
            "judgements": 0, "groups": len(model), "groups drawn": drawn_once, "draws": uses.total()
        }  # fmt: skip
        buffer.close()


class TestDrawing:
    @pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
    def test_pairs_come_as_often_as_priorities_say(self, fresh, alpha):
        """Ordered pairs without replacement: p_i p_j / (1 - p_i); chi-squared at 11 degrees of freedom."""
        buffer = fresh(4, alpha)
        weights = {name: priority**alpha for name, priority in zip("abcd", (1, 3, 9, 27), strict=True)}
        for name, priority in zip("abcd", (1, 3, 9, 27), strict=True):
            buffer.add(group(name), priority)
        draws = 3000
        seen = Counter(tuple(ids(buffer.draw(2, seed))) for seed in range(draws))
        total = sum(weights.values())
        expected = {
            (i, j): draws * weights[i] / total * weights[j] / (total - weights[i]) for i, j in permutations("abcd", 2)
        }
        assert seen.total() == draws
        assert seen.keys() <= expected.keys()
        # Exceeded by chance once in a thousand times; with alpha 0.1 off, 42 are expected at 1, more at the others.
        assert sum((seen[pair] - n) ** 2 / n for pair, n in expected.items()) < 31.3
        buffer.close()

    @settings(max_examples=25, deadline=None)
    @given(order=st.permutations("abcdef"), seed=st.integers(-(10**30), 10**30), n=st.integers(0, 8))
    def test_the_same_contents_and_seed_give_the_same_draw(self, fresh, order, seed, n):
        one, two = fresh(6), fresh(7)
        for name in "abcdef":
            one.add(group(name), ord(name) - 96)
        for name in order:
            two.add(group(name), ord(name) - 96)
        drawn = one.draw(n, seed)
        assert drawn == two.draw(n, seed) == two.draw(n, seed)
        assert len(set(ids(drawn))) == min(n, 6)
        # A larger draw begins with the smaller one.
        assert one.draw(6, seed)[:n] == drawn
        one.close()
        two.close()

    def test_other_seeds_give_other_draws(self, fresh):
        buffer = fresh(20)
        for k in range(20):
            buffer.add(group(str(k)), 1)
        assert len({tuple(ids(buffer.draw(20, seed))) for seed in range(50)}) == 50
        assert set(buffer.uses().values()) == {50}
        buffer.close()


class TestProcesses:
    def test_two_that_write_at_once_lose_and_double_nothing(self, tmp_path):
        path = tmp_path / "buffer.sqlite"
        command = [sys.executable, "-c", WRITER, str(path)]
        running = [subprocess.Popen([*command, who, "60"], stdout=subprocess.DEVNULL) for who in ("one", "two")]
        assert [process.wait(timeout=60) for process in running] == [0, 0]
        buffer = ReplayBuffer(path, 10_000)
        for name in ("one", "two", "both"):
            assert [(each.attempt, each.met) for each in buffer.judged(0, name)] == [
                (k, (k % 2 == 0,)) for k in range(60)
            ]
        assert buffer.counts() == {"judgements": 180, "groups": 180, "groups drawn": 0, "draws": 0}
        assert set(buffer.uses()) == {f"{name} {k}" for name in ("one", "two", "both") for k in range(60)}
        buffer.close()

    @pytest.mark.parametrize("after", [1, 17, 40])
    def test_a_writer_killed_leaves_whole_judgements_and_all_it_said_it_wrote(self, tmp_path, after):
        path = tmp_path / "buffer.sqlite"
        command = [sys.executable, "-c", WRITER, str(path), "one", "100000"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for _ in range(after):
                process.stdout.readline()
            process.kill()
            said = after + len(process.stdout.read().splitlines())
        buffer = ReplayBuffer(path, 10_000)
        found = buffer.judged(0, "one")
        assert [each.attempt for each in found] == list(range(len(found)))
        assert said <= len(found) <= said + 1
        assert all(each.answer == f"answer {each.attempt}" * 50 for each in found)
        drawn = buffer.draw(10_000, 0)
        assert 2 * said <= len(drawn) <= 2 * said + 2
        assert all(each.candidates == ("good", "bad") for each in drawn)
        buffer.record(replace(JUDGEMENT, round=5))
        buffer.close()
        assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    def test_killed_inside_a_transaction_leaves_nothing_of_it(self, buffer, tmp_path):
        buffer.record(JUDGEMENT)
        command = [sys.executable, "-c", HALFWAY, str(tmp_path / "deep" / "buffer.sqlite")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "written\n"
            assert buffer.judged(1, "p") == [JUDGEMENT]  # readers do not wait for the writer
            process.kill()
        second = replace(JUDGEMENT, attempt=1)
        buffer.record(second)
        assert buffer.judged(1, "p") == [JUDGEMENT, second]


class TestTheFile:
    def test_a_full_disk_is_said_so_and_takes_nothing_away(self, tmp_path, monkeypatch):
        connect = sqlite3.connect

        def small(*args, **kwargs):
            connection = connect(*args, **kwargs)
            connection.execute("PRAGMA max_page_count = 20")
            return connection

        monkeypatch.setattr(sqlite3, "connect", small)
        path = tmp_path / "buffer.sqlite"
        buffer = ReplayBuffer(path, 100)
        done: list[int] = []
        with pytest.raises(DiskFullError, match="the disk is full") as error:
            fill(buffer, done)
        stored = len(done)
        assert "free some space, then give the same command again" in str(error.value)
        assert str(path) in str(error.value)
        assert 1 < stored < 20
        with pytest.raises(DiskFullError):
            buffer.add(replace(group("a"), candidates=("x" * 50_000, "y")), 1)
        assert [each.attempt for each in buffer.judged(1, "p")] == list(range(stored))
        assert buffer.counts() == {"judgements": stored, "groups": 0, "groups drawn": 0, "draws": 0}
        buffer.close()
        monkeypatch.undo()
        roomy = ReplayBuffer(path, 100)
        roomy.record(replace(JUDGEMENT, attempt=stored))
        assert roomy.counts()["judgements"] == stored + 1
        roomy.close()

    def test_readers_and_a_writer_do_not_wait_for_each_other_writers_do(self, tmp_path, monkeypatch):
        monkeypatch.setattr(database, "TIMEOUT_SECONDS", 0.1)
        path = tmp_path / "buffer.sqlite"
        buffer = ReplayBuffer(path, 1)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN")
        assert other.execute("SELECT count(*) FROM judgements").fetchone() == (0,)
        buffer.record(JUDGEMENT)
        assert other.execute("SELECT count(*) FROM judgements").fetchone() == (0,)
        other.execute("COMMIT")
        other.execute("BEGIN IMMEDIATE")
        assert buffer.judged(1, "p") == [JUDGEMENT]
        with pytest.raises(DataError, match="database is locked") as error:
            buffer.add(group("a"), 1)
        assert "wait for the process that holds it" in str(error.value)
        other.execute("COMMIT")
        assert buffer.add(group("a"), 1)
        other.close()
        buffer.close()

    @pytest.mark.parametrize("content", [b"not a database, but long enough to be read as one " * 40, b"short"])
    def test_a_file_that_is_no_database(self, tmp_path, content):
        path = tmp_path / "notes.txt"
        path.write_bytes(content)
        with pytest.raises(DataError, match="file is not a database") as error:
            ReplayBuffer(path, 1)
        assert "name another file" in str(error.value)
        assert path.read_bytes() == content

    def test_another_programs_database_is_left_alone(self, tmp_path):
        path = tmp_path / "other.sqlite"
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE groups (name TEXT)")
        before = path.read_bytes()
        with pytest.raises(DataError, match="another program's database"):
            ReplayBuffer(path, 1)
        assert path.read_bytes() == before

    def test_places_where_no_file_can_be(self, tmp_path):
        with pytest.raises(DataError, match="unable to open"):
            ReplayBuffer(tmp_path, 1)
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match="its folder cannot be made"):
            ReplayBuffer(tmp_path / "file" / "sub" / "buffer.sqlite", 1)

    def test_our_own_mistakes_are_no_users_mistakes(self, buffer):
        buffer.close()
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            buffer.record(JUDGEMENT)
