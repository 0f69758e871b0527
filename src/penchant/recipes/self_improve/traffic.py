"""A server's traffic until it is judged, and counts of it, in one SQLite file.

The text of an answer is deleted once it is judged, except of the latest held-out prompts, which the gate needs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penchant.api import Database, Text, as_json, proportion
from penchant.recipes.self_improve.buffer import read_prompt

APPLICATION_ID = 0x50525401
"""SQLite application id in the file's header, which identifies a file of traffic and its version."""
SCHEMA = """
CREATE TABLE answers (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    prompt TEXT NOT NULL,
    answer TEXT NOT NULL,
    served INTEGER NOT NULL,
    held_out INTEGER NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0,
    judged INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE counts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE verdicts (
    served INTEGER PRIMARY KEY, judged INTEGER NOT NULL, satisfied INTEGER NOT NULL, unjudged INTEGER NOT NULL
)
"""
MAX_TRIES = 3
"""Maximum number of times that the judgement of an answer is begun: one that ends the process is not begun for ever."""


@dataclass(frozen=True)
class NewAnswer:
    """An answer that the server gave.

    Attributes:
        served: the update whose learner gave it; 0 for the first learner.
    """

    prompt: Text
    answer: str
    served: int


@dataclass(frozen=True)
class TrafficAnswer(NewAnswer):
    """A stored answer.

    Attributes:
        held_out: whether its prompt is one of the gate's, from which nothing is learnt.
    """

    number: int
    held_out: bool


@dataclass(frozen=True)
class TrafficVerdict:
    """What the verifier said of a stored answer.

    Attributes:
        satisfied: whether every condition is met; None without a verdict.
    """

    answer: TrafficAnswer
    satisfied: bool | None


class TrafficStore:
    """The traffic of one expert; several processes may open the file, and every call is one transaction.

    Args:
        path: the file, created if missing.
        held_out: share of prompts that are held out, chosen by a hash of the prompt and the seed.
        checks: number of held-out prompts that are kept.
        pending: maximum number of answers that wait; beyond it the oldest are dropped.

    Raises:
        DataError: the file is no database, belongs to another program, or cannot be opened.
        DiskFullError: the disk is full; all methods that write raise it too.
    """

    def __init__(self, path: Path, *, held_out: float, checks: int, pending: int, seed: int) -> None:
        self._held_out, self._checks, self._pending, self._seed = held_out, checks, pending, seed
        self._database = Database(path, SCHEMA, application=APPLICATION_ID)

    def add(self, answers: Sequence[NewAnswer], counts: Mapping[str, int]) -> None:
        """Store answers, and add to the counts."""
        rows = []
        for new in answers:
            prompt = json.dumps(as_json(new.prompt), ensure_ascii=False)
            rows.append((prompt, new.answer, new.served, self.is_held_out(prompt)))
        with self._database.writing() as connection:
            connection.executemany("INSERT INTO answers (prompt, answer, served, held_out) VALUES (?, ?, ?, ?)", rows)
            dropped = connection.execute(
                "DELETE FROM answers WHERE NOT judged AND number NOT IN"
                " (SELECT number FROM answers WHERE NOT judged ORDER BY number DESC LIMIT ?)",
                (self._pending,),
            ).rowcount
            connection.executemany(_COUNT, [*counts.items(), ("recorded", len(rows)), ("dropped", dropped)])

    def is_held_out(self, prompt: str) -> bool:
        """Whether a prompt, as JSON, is one of the gate's."""
        digest = hashlib.blake2b(json.dumps([self._seed, prompt]).encode(), digest_size=6).digest()
        return int.from_bytes(digest) < self._held_out * 2**48

    def begin(self, n: int) -> list[TrafficAnswer]:
        """The n answers that have waited longest, whose judgement begins; those begun too often are dropped."""
        with self._database.writing() as connection:
            failed = connection.execute("DELETE FROM answers WHERE NOT judged AND tries >= ?", (MAX_TRIES,)).rowcount
            connection.execute(_COUNT, ("failed", failed))
            rows = connection.execute(
                "SELECT prompt, answer, served, number, held_out FROM answers WHERE NOT judged ORDER BY number LIMIT ?",
                (n,),
            ).fetchall()
            connection.executemany("UPDATE answers SET tries = tries + 1 WHERE number = ?", [(row[3],) for row in rows])
        return [
            TrafficAnswer(read_prompt(json.loads(prompt)), answer, served, number, bool(held_out))
            for prompt, answer, served, number, held_out in rows
        ]

    def put_back(self, answers: Iterable[TrafficAnswer]) -> None:
        """Let answers wait as if their judgement had not begun."""
        rows = [(answer.number,) for answer in answers]
        self._database.write("UPDATE answers SET tries = tries - 1 WHERE number = ?", rows)

    def settle(self, verdicts: Sequence[TrafficVerdict]) -> None:
        """Count verdicts, and delete the judged answers that are not needed any more."""
        with self._database.writing() as connection:
            connection.executemany(
                "INSERT INTO verdicts VALUES (?1, 1, ?2, ?3) ON CONFLICT (served) DO UPDATE SET"
                " judged = judged + 1, satisfied = satisfied + ?2, unjudged = unjudged + ?3",
                [(row.answer.served, row.satisfied is True, row.satisfied is None) for row in verdicts],
            )
            connection.executemany(
                "UPDATE answers SET judged = 1 WHERE number = ?", [(row.answer.number,) for row in verdicts]
            )
            connection.execute(
                "DELETE FROM answers WHERE judged AND number NOT IN"
                " (SELECT max(number) FROM answers WHERE held_out GROUP BY prompt ORDER BY max(number) DESC LIMIT ?)",
                (self._checks,),
            )

    def checks(self) -> list[Text]:
        """The latest held-out prompts, the newest first."""
        rows = self._database.read(
            "SELECT prompt FROM answers WHERE held_out GROUP BY prompt ORDER BY max(number) DESC LIMIT ?",
            (self._checks,),
        )
        return [read_prompt(json.loads(prompt)) for (prompt,) in rows]

    def counts(self) -> dict[str, int]:
        """Number of recorded, dropped and failed answers, of skipped ones by reason, and of those that wait."""
        [(waiting,)] = self._database.read("SELECT count(*) FROM answers WHERE NOT judged")
        return {**dict(self._database.read("SELECT name, value FROM counts ORDER BY name")), "waiting": waiting}

    def success(self) -> list[dict[str, Any]]:
        """Share of satisfying answers by the update that gave them, with a 95 % interval."""
        rows = self._database.read("SELECT served, judged, satisfied, unjudged FROM verdicts ORDER BY served")
        return [
            {
                "update": served,
                "judged": judged,
                "unjudged": unjudged,
                "satisfied": proportion(satisfied, judged - unjudged).to_json(),
            }
            for served, judged, satisfied, unjudged in rows
        ]

    def close(self) -> None:
        """Close the database."""
        self._database.close()


_COUNT = "INSERT INTO counts VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = value + ?2"
