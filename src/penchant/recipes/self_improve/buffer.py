"""The replay buffer: every judgement of the verifier once, and groups that show progress, drawn by priority."""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from penchant.api import (
    Database,
    DataError,
    Message,
    PreferenceGroup,
    ReadLog,
    Row,
    Text,
    add_template_columns,
    as_json,
    format_named,
    hash_parts,
    row_of,
)

APPLICATION_ID = 0x50524201
"""SQLite application id in the file's header, which identifies a replay buffer and its version."""
SCHEMA = """
CREATE TABLE judgements (
    round INTEGER, prompt_id TEXT, attempt INTEGER, body TEXT NOT NULL, PRIMARY KEY (round, prompt_id, attempt)
) WITHOUT ROWID;
CREATE TABLE groups (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused, so it orders the groups by age
    text BLOB NOT NULL UNIQUE,
    id TEXT NOT NULL UNIQUE,
    body TEXT NOT NULL,
    priority REAL NOT NULL,
    uses INTEGER NOT NULL DEFAULT 0
)
"""
MIN_PRIORITY = math.ulp(0.0)
"""Minimum priority after lowering, so that every group can still be drawn."""


@dataclass(frozen=True)
class Judgement:
    """One answer with the verifier's judgement.

    Attributes:
        attempt: number of the learner's attempt at this prompt in this round.
        met: whether each condition is met; empty without a verdict.
        score: finite, higher is better.
    """

    round: int
    prompt_id: str
    attempt: int
    prompt: Text
    answer: str
    met: tuple[bool, ...]
    score: float
    critique: str


class ReplayBuffer:
    """A replay buffer in one SQLite file, which several processes may open; every call is one transaction.

    Args:
        path: the file, created with its folder if missing.
        capacity: maximum groups; beyond it the group with the lowest priority is removed, the oldest among equals.
        alpha: exponent of priorities in `draw`: 0 ignores them, 1 uses them in full (Schaul et al. 2016, arXiv
            1511.05952, equation 1, whose value for proportional priorities is the default).

    Raises:
        DataError: the file is no database, belongs to another program, or cannot be opened.
        DiskFullError: the disk is full; all methods that write raise it too.
    """

    def __init__(self, path: Path, capacity: int, alpha: float = 0.6) -> None:
        self._path, self._capacity, self._alpha = path, capacity, alpha
        self._database = Database(path, SCHEMA, application=APPLICATION_ID)

    def record(self, judgement: Judgement) -> None:
        """Store a judgement; does nothing if an equal judgement of the same round, prompt and attempt is stored.

        Raises:
            DataError: a different judgement of the same attempt is stored, or the score is not finite.
        """
        key = (judgement.round, judgement.prompt_id, judgement.attempt)
        where = "round {}, prompt {!r}, attempt {}".format(*key)
        if not math.isfinite(judgement.score):
            raise DataError(f"the score is {judgement.score}, expected a finite number", where=where)
        with self._database.writing() as connection:
            stored_row = connection.execute(
                "SELECT body FROM judgements WHERE round = ? AND prompt_id = ? AND attempt = ?", key
            ).fetchone()
            if stored_row is None:
                new_row = (*key, json.dumps(asdict(judgement)))
                connection.execute("INSERT INTO judgements VALUES (?, ?, ?, ?)", new_row)
            elif _judgement(stored_row[0]) != judgement:
                raise DataError(
                    "another judgement of this attempt is stored",
                    where=f"{self._path}, {where}",
                    fix="continue from the stored judgements, or start with another file",
                )

    def judgements(self, round: int, prompt_id: str) -> list[Judgement]:
        """The judgements of a prompt in a round, in the order of attempts."""
        query = "SELECT body FROM judgements WHERE round = ? AND prompt_id = ? ORDER BY attempt"
        rows = self._database.read(query, (round, prompt_id))
        return [_judgement(body) for (body,) in rows]

    def judgements_of_round(self, round: int) -> list[Judgement]:
        """All judgements of a round."""
        return [
            _judgement(body)
            for (body,) in self._database.read(
                "SELECT body FROM judgements WHERE round = ? ORDER BY prompt_id, attempt", (round,)
            )
        ]

    def forget_judgements(self, round: int, prompt_ids: Sequence[str]) -> None:
        """Remove the judgements of some prompts in a round."""
        rows = [(round, prompt_id) for prompt_id in prompt_ids]
        self._database.write("DELETE FROM judgements WHERE round = ? AND prompt_id = ?", rows)

    def add(self, group: PreferenceGroup, priority: float) -> bool:
        """Add a group, unless the buffer is full of groups with higher priorities; an equal group stays as it is.

        Args:
            priority: finite and above 0; a higher priority is drawn more often.

        Returns:
            Whether the buffer contains a group with this text now.

        Raises:
            DataError: a group with another text has this id, or the group cannot be stored as a row.
        """
        if not 0 < priority < math.inf:
            raise ValueError(f"the priority is {priority}, expected a finite number above 0")
        body, text = _body(group), _text(group)
        with self._database.writing() as connection:
            same_id = connection.execute("SELECT text FROM groups WHERE id = ?", (group.id,)).fetchone()
            if same_id not in (None, (text,)):
                raise DataError(
                    f"another group has the id {group.id!r}",
                    where=str(self._path),
                    fix="give every group a different id",
                )
            if connection.execute("SELECT 1 FROM groups WHERE text = ?", (text,)).fetchone() is not None:
                # A failed insertion would use up a number, and `count_added` would count it.
                return True
            connection.execute(
                "INSERT INTO groups (text, id, body, priority) VALUES (?, ?, ?, ?)",
                (text, group.id, body, priority),
            )
            connection.execute(
                "DELETE FROM groups WHERE number IN (SELECT number FROM groups ORDER BY priority, number"
                " LIMIT max(0, (SELECT count(*) FROM groups) - ?))",
                (self._capacity,),
            )
            return connection.execute("SELECT 1 FROM groups WHERE text = ?", (text,)).fetchone() is not None

    def draw(self, n: int, seed: int) -> list[PreferenceGroup]:
        """At most n different groups, drawn in turn with probability proportional to priority ** alpha.

        The groups' texts, their priorities and the seed decide the draw, not the order in which groups were added: the
        n largest of alpha * log(priority) + Gumbel noise are such a draw (Efraimidis and Spirakis 2006).
        """
        with self._database.writing() as connection:
            rows = connection.execute("SELECT number, text, priority FROM groups").fetchall()
            chosen = heapq.nlargest(n, rows, key=lambda row: self._alpha * math.log(row[2]) + _gumbel(seed, row[1]))
            numbers = [(number,) for number, _, _ in chosen]
            connection.executemany("UPDATE groups SET uses = uses + 1 WHERE number = ?", numbers)
            query = "SELECT body FROM groups WHERE number = ?"
            return [_group(connection.execute(query, number).fetchone()[0]) for number in numbers]

    def priorities(self) -> dict[str, float]:
        """The priority of every group by id, from the oldest group to the newest."""
        return dict(self._database.read("SELECT id, priority FROM groups ORDER BY number"))

    def lower_priorities(self, priorities: Mapping[str, float]) -> None:
        """Lower the priorities of groups, by id; lower priorities stay, and removed groups are ignored.

        Repeating the call after a crash therefore changes nothing.
        """
        rows = [(max(priority, MIN_PRIORITY), name) for name, priority in priorities.items()]
        with self._database.writing() as connection:
            connection.executemany("UPDATE groups SET priority = min(priority, ?) WHERE id = ?", rows)

    def uses(self) -> dict[str, int]:
        """How often each group was drawn, by id, from the oldest group to the newest."""
        return dict(self._database.read("SELECT id, uses FROM groups ORDER BY number"))

    def counts(self) -> dict[str, int]:
        """Numbers of judgements, of groups, of groups that were drawn at least once, and of draws."""
        [row] = self._database.read(
            "SELECT (SELECT count(*) FROM judgements), count(*), count(*) FILTER (WHERE uses > 0),"
            " coalesce(sum(uses), 0) FROM groups"
        )
        return dict(zip(("judgements", "groups", "groups drawn", "draws"), row, strict=True))

    def count_added(self) -> int:
        """Number of groups that were ever added, including removed ones."""
        rows = self._database.read("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'groups'")
        return int(rows[0][0])

    def close(self) -> None:
        """Close the database."""
        self._database.close()


def _judgement(body: str) -> Judgement:
    values = json.loads(body)
    return Judgement(**values | {"met": tuple(values["met"]), "prompt": read_prompt(values["prompt"])})


def read_prompt(value: str | list[Message]) -> Text:
    """A prompt from its JSON: text, or a list of messages."""
    return value if isinstance(value, str) else tuple(value)


def _body(group: PreferenceGroup) -> str:
    """The group as JSON, checked to read back as an equal group."""
    try:
        body = json.dumps(row_of(group), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"it cannot be stored: {error}", where=f"group {group.id!r}", fix="correct it") from error
    if _group(body) != group:
        raise DataError(
            "it cannot be stored: it would read back as a different group",
            where=f"group {group.id!r}",
            fix="leave out fields that a data row cannot hold",
        )
    return body


def _group(body: str) -> PreferenceGroup:
    row = Row(json.loads(body), "the replay buffer", 0, ReadLog())
    return add_template_columns(next(format_named("penchant").convert(row)), row)


def _text(group: PreferenceGroup) -> bytes:
    return hash_parts([json.dumps([as_json(group.prompt), group.candidates]).encode()], 20)


def _gumbel(seed: int, text: bytes) -> float:
    """Standard Gumbel noise from a hash of a group's text; 52 bits give a number strictly between 0 and 1."""
    bits = int.from_bytes(hashlib.blake2b(b"%d " % seed + text, digest_size=8).digest()) >> 12
    return -math.log(-math.log((bits + 0.5) / 2**52))
