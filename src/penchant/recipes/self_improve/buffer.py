"""What a learner's verifier said, each judgement once, and the trajectories that progressed, drawn by priority."""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from penchant.data.beside import add_template_columns
from penchant.data.fields import ReadLog, Row
from penchant.data.formats import format_named
from penchant.data.groups import PreferenceGroup
from penchant.data.messages import as_json
from penchant.data.writing import row_of
from penchant.errors import DataError
from penchant.evaluation.database import Database

APPLICATION = 0x50524201
"""In the file's header: says that it is a replay buffer, and of which version."""
SCHEMA = """
CREATE TABLE judgements (
    round INTEGER, prompt_id TEXT, attempt INTEGER, body TEXT NOT NULL, PRIMARY KEY (round, prompt_id, attempt)
) WITHOUT ROWID;
CREATE TABLE groups (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given twice, so it is the group's age
    text BLOB NOT NULL UNIQUE,
    id TEXT NOT NULL UNIQUE,
    body TEXT NOT NULL,
    priority REAL NOT NULL,
    uses INTEGER NOT NULL DEFAULT 0
)
"""
SMALLEST = math.ulp(0.0)
"""Lowered priorities stop here: what is held can be drawn."""


@dataclass(frozen=True)
class Judgement:
    """One answer and what the verifier said of it.

    Attributes:
        attempt: the learner's, at this prompt in this round.
        met: a yes or no for each condition; empty where the verifier gave none.
        score: finite, higher is better.
    """

    round: int
    prompt_id: str
    attempt: int
    prompt: str
    answer: str
    met: tuple[bool, ...]
    score: float
    critique: str


class ReplayBuffer:
    """One SQLite file, safe against several processes, each with a buffer of its own on it; a call is one transaction.

    Args:
        path: the file; made if missing, with its folder.
        capacity: groups held; beyond it the one with the lowest priority goes, of equals the oldest.
        alpha: how much priorities count in `draw`: 0 not at all, 1 in full (Schaul et al. 2016, arXiv 1511.05952,
            equation 1, whose value for proportional priorities is the default).

    Raises:
        DataError: the file is no database, is another program's, or cannot be opened.
        DiskFullError: here and wherever something is written.
    """

    def __init__(self, path: Path, capacity: int, alpha: float = 0.6) -> None:
        self._path, self._capacity, self._alpha = path, capacity, alpha
        self._database = Database(path, APPLICATION, SCHEMA)

    def record(self, judgement: Judgement) -> None:
        """Store a judgement; an equal one of the same round, prompt and attempt is there already and left as it is.

        Raises:
            DataError: another judgement of the same round, prompt and attempt is stored, or the score is not finite.
        """
        place = (judgement.round, judgement.prompt_id, judgement.attempt)
        where = "round {}, prompt {!r}, attempt {}".format(*place)
        if not math.isfinite(judgement.score):
            raise DataError(f"the score is {judgement.score}, expected a finite number", where=where)
        with self._database.writing() as connection:
            stored = connection.execute(
                "SELECT body FROM judgements WHERE round = ? AND prompt_id = ? AND attempt = ?", place
            ).fetchone()
            if stored is None:
                row = (*place, json.dumps(asdict(judgement)))
                connection.execute("INSERT INTO judgements VALUES (?, ?, ?, ?)", row)
            elif _judgement(stored[0]) != judgement:
                raise DataError(
                    "another judgement of this attempt is stored",
                    where=f"{self._path}, {where}",
                    fix="go on from the judgements that are stored, or start anew with another file",
                )

    def judged(self, round: int, prompt_id: str) -> list[Judgement]:
        """The judgements of a round at a prompt, in the order of attempts."""
        query = "SELECT body FROM judgements WHERE round = ? AND prompt_id = ? ORDER BY attempt"
        rows = self._database.read(query, (round, prompt_id))
        return [_judgement(body) for (body,) in rows]

    def add(self, group: PreferenceGroup, priority: float) -> bool:
        """Hold a group, unless others have all the room; one of the same prompt and candidates stays as it is.

        Args:
            priority: above 0 and finite; higher is drawn more often.

        Returns:
            Whether a group of this text is held now.

        Raises:
            DataError: a group of another text has this id, or the group holds what its row cannot say.
        """
        if not 0 < priority < math.inf:
            raise ValueError(f"the priority is {priority}, expected a finite number above 0")
        body, text = _body(group), _text(group)
        with self._database.writing() as connection:
            named = connection.execute("SELECT text FROM groups WHERE id = ?", (group.id,)).fetchone()
            if named not in (None, (text,)):
                raise DataError(
                    f"another group has the id {group.id!r}", where=str(self._path), fix="give each group its own id"
                )
            if connection.execute("SELECT 1 FROM groups WHERE text = ?", (text,)).fetchone() is not None:
                # An insertion that is refused would take a number, and count among those that were ever added.
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
        """At most n different groups, one after the other, each with probability proportional to priority ** alpha.

        The groups' texts, their priorities and the seed decide it, whatever the order in which they were added: the
        n largest of alpha * log(priority) + Gumbel noise are such a draw (Efraimidis and Spirakis 2006).
        """
        with self._database.writing() as connection:
            rows = connection.execute("SELECT number, text, priority FROM groups").fetchall()
            drawn = heapq.nlargest(n, rows, key=lambda row: self._alpha * math.log(row[2]) + _gumbel(seed, row[1]))
            numbers = [(number,) for number, _, _ in drawn]
            connection.executemany("UPDATE groups SET uses = uses + 1 WHERE number = ?", numbers)
            query = "SELECT body FROM groups WHERE number = ?"
            return [_group(connection.execute(query, number).fetchone()[0]) for number in numbers]

    def priorities(self) -> dict[str, float]:
        """Of each group, by id, from the oldest to the newest."""
        return dict(self._database.read("SELECT id, priority FROM groups ORDER BY number"))

    def lower(self, priorities: Mapping[str, float]) -> None:
        """Give groups, by id, a lower priority; one that has a lower one, or is no longer held, is left as it is.

        So a call that is made again, after a crash, changes nothing.
        """
        rows = [(max(priority, SMALLEST), name) for name, priority in priorities.items()]
        with self._database.writing() as connection:
            connection.executemany("UPDATE groups SET priority = min(priority, ?) WHERE id = ?", rows)

    def uses(self) -> dict[str, int]:
        """How often each group was drawn, by id, from the oldest group to the newest."""
        return dict(self._database.read("SELECT id, uses FROM groups ORDER BY number"))

    def counts(self) -> dict[str, int]:
        """Judgements stored; groups held, those of them drawn at least once, and how often all of them were drawn."""
        [row] = self._database.read(
            "SELECT (SELECT count(*) FROM judgements), count(*), count(*) FILTER (WHERE uses > 0),"
            " coalesce(sum(uses), 0) FROM groups"
        )
        return dict(zip(("judgements", "groups", "groups drawn", "draws"), row, strict=True))

    def added(self) -> int:
        """Groups that were ever taken in; those that had to go count too."""
        found = self._database.read("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'groups'")
        return int(found[0][0])

    def close(self) -> None:
        self._database.close()


def _judgement(body: str) -> Judgement:
    values = json.loads(body)
    return Judgement(**values | {"met": tuple(values["met"])})


def _body(group: PreferenceGroup) -> str:
    """The group as JSON, from which the same group can be read."""
    try:
        body = json.dumps(row_of(group), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"it cannot be kept: {error}", where=f"group {group.id!r}", fix="correct it") from error
    if _group(body) != group:
        raise DataError(
            "it cannot be kept: it would be read as another", where=f"group {group.id!r}", fix="leave out what is odd"
        )
    return body


def _group(body: str) -> PreferenceGroup:
    row = Row(json.loads(body), "the replay buffer", 0, ReadLog())
    return add_template_columns(next(format_named("penchant").convert(row)), row)


def _text(group: PreferenceGroup) -> bytes:
    return hashlib.blake2b(json.dumps([as_json(group.prompt), group.candidates]).encode(), digest_size=20).digest()


def _gumbel(seed: int, text: bytes) -> float:
    """Standard Gumbel noise of a group's own, from the 52 bits that leave a number strictly between 0 and 1."""
    drawn = int.from_bytes(hashlib.blake2b(b"%d " % seed + text, digest_size=8).digest()) >> 12
    return -math.log(-math.log((drawn + 0.5) / 2**52))
