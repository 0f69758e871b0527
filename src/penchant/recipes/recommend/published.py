"""Questions of a file instead of interactions: history, titles and the right one, as S-DPO's authors publish them.

The file has no users and no times. Rows are taken to be in the order of time, and a row whose history goes on from the
row before is the same user's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from penchant.api import DataError, TitleQuestion, file_fingerprint, is_data_file, read_title_questions
from penchant.recipes.recommend.histories import Histories, Question, Rules

PARTS = ("train", "validation", "test")
WITHOUT_HISTORY = "questions without a history"


def published_fingerprint(source: str) -> str:
    """A fingerprint of a file, or of all data files of a folder, for a stage's settings."""
    path = Path(source)
    if not path.is_dir():
        return file_fingerprint(source)
    files = sorted(file for file in path.iterdir() if file.is_file() and is_data_file(file))
    return " ".join(f"{file.name} {file_fingerprint(str(file))}" for file in files)


@dataclass(frozen=True)
class Published:
    """The questions of a file, with what it tells of users and popularity.

    Attributes:
        histories: titles stand for items, and numbers of rows for times.
        candidate_lists: the titles to choose from by the question's id.
    """

    histories: Histories
    candidate_lists: Mapping[str, Sequence[str]]


def read_published(source: str, rules: Rules, negatives: int, columns: Mapping[str, str]) -> Published:
    """The questions of a folder's splits train, validation and test, or of one file, cut by the rules' shares.

    Args:
        rules: `max_history` and `shares` are used.
        negatives: titles beside the right one that a question needs.
        columns: the file's column name by `historyList`, `itemList` or `trueSelection`.

    Raises:
        DataError: the source cannot be read, a row is no question or lists too few titles, or a part is empty.
    """
    rows_by_part = _rows_by_part(source, rules.shares, columns)
    short = [row for rows in rows_by_part.values() for row in rows if len(row.candidates) <= negatives]
    if short:
        raise DataError(
            f"{len(short[0].candidates)} different titles in 'itemList', and a method takes {negatives} beside the "
            f"right one ({len(short)} such rows)",
            where=short[0].where,
            fix=f"methods with fewer negatives: {len(short[0].candidates) - 1} at most",
        )
    parts: dict[str, list[Question]] = {part: [] for part in PARTS}
    candidate_lists: dict[str, Sequence[str]] = {}
    times_by_user: dict[str, dict[str, float]] = {}
    dropped: Counter[str] = Counter()
    time = 0
    for part, rows in rows_by_part.items():
        user, number = "", 0
        following: tuple[tuple[str, ...], ...] = ()
        for row in rows:
            if not row.history:
                dropped[WITHOUT_HISTORY] += 1
                continue
            time += 1
            user, number = (user, number + 1) if row.history in following else (f"{part}-{time}", 0)
            target = row.candidates[row.target]
            _add_times(times_by_user.setdefault(user, {}), row.history, target, time)
            question = Question(user, number, row.history[-rules.max_history :], target, float(time))
            parts[part].append(question)
            candidate_lists[question.id] = row.candidates
            extended_history = (*row.history, target)
            following = (extended_history, extended_history[1:])
    _refuse_empty(parts, source)
    return Published(_histories(parts, candidate_lists, times_by_user, dropped), candidate_lists)


def _rows_by_part(
    source: str, shares: tuple[float, float, float], columns: Mapping[str, str]
) -> dict[str, list[TitleQuestion]]:
    if Path(source).is_dir():
        return {part: read_title_questions(source, split=part, columns=columns) for part in PARTS}
    rows = read_title_questions(source, columns=columns)
    first, second = (int(len(rows) * sum(shares[:n]) / sum(shares)) for n in (1, 2))
    return {"train": rows[:first], "validation": rows[first:second], "test": rows[second:]}


def _add_times(times: dict[str, float], history: Sequence[str], target: str, time: int) -> None:
    """Add a question's titles to a user's; those of the history were taken between the row before and this one."""
    for k, title in enumerate(history, 1):
        times.setdefault(title, time - 1 + k / (len(history) + 1))
    times.setdefault(target, float(time))


def _refuse_empty(parts: Mapping[str, Sequence[Question]], source: str) -> None:
    empty = [part for part, questions in parts.items() if not questions]
    if empty:
        raise DataError(
            f"no question with a history for {' and '.join(empty)}",
            where=source,
            fix="give more rows or other questions.shares, or a folder of files named train, val and test",
        )


def _histories(
    parts: Mapping[str, Sequence[Question]],
    candidate_lists: Mapping[str, Sequence[str]],
    times_by_user: Mapping[str, Mapping[str, float]],
    dropped: Mapping[str, int],
) -> Histories:
    train_end = parts["validation"][0].time
    counts = Counter(title for times in times_by_user.values() for title, time in times.items() if time < train_end)
    titles = [title for times in times_by_user.values() for title in times]
    items = tuple(dict.fromkeys([*titles, *(title for candidates in candidate_lists.values() for title in candidates)]))
    return Histories(
        tuple(parts["train"]),
        tuple(parts["validation"]),
        tuple(parts["test"]),
        items,
        {title: counts[title] for title in items},
        times_by_user,
        dict(dropped),
    )
