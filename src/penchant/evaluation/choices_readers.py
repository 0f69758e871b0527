"""Multiple-choice questions from local files, in the layouts their data sets have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penchant.data.fields import ReadLog, Row
from penchant.data.files import read_rows, unread_files
from penchant.errors import DataError
from penchant.evaluation.choices import Question
from penchant.evaluation.choices_layouts import LAYOUTS, Layout

Located = tuple[str, Mapping[str, Any]]
"""A row and where it is."""

UNLABELED = "no label"
LIMITED = "beyond the limit"
ANY_NAME = ("choices", "instruction")
"""Layouts that hold questions of any task."""

_BY_NAME = {layout.name: layout for layout in LAYOUTS}
_LAYOUT_OF = {
    **{name: name for name in _BY_NAME if name not in (*ANY_NAME, "arc", "race")},
    "arc_easy": "arc",
    "arc_challenge": "arc",
    "race_middle": "race",
    "race_high": "race",
}
TASKS = tuple(_LAYOUT_OF)
"""Names of tasks that say which layout their file has."""


@dataclass(frozen=True)
class TaskQuestions:
    """A task's questions from one source.

    Attributes:
        layout: name of the layout its rows are in.
        left_out: why -> rows that gave no question.
        notes: for people: what was read and what was not.
    """

    name: str
    questions: tuple[Question, ...]
    layout: str
    left_out: Mapping[str, int]
    notes: tuple[str, ...]


def read_questions(
    task: str,
    source: str | Path,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> TaskQuestions:
    """Read a task's questions.

    Args:
        task: what to call it. One of `TASKS` has that data set's layout, or one of `ANY_NAME`; any other name takes
            the one layout that the columns fit.
        source: as in `penchant.data.reading.read_groups`.
        split: which split of a folder.
        columns: the layout's column name -> the source's.
        limit: only the first so many questions; the others are counted.

    Raises:
        DataError: the source cannot be read, is of no layout or of several, a row is not what its layout says, or no
            row has a label.
    """
    name = Path(source).absolute().name
    rows = list(read_rows(source, split=split, columns=columns))
    layout = _layout(task, rows, name)
    read_log = ReadLog()
    asked = [layout.convert(Row(values, where, number, read_log), task) for number, (where, values) in enumerate(rows)]
    questions = [question for question in asked if question is not None]
    unlabeled = len(asked) - len(questions)
    if not questions:
        raise DataError(
            f"none of its {len(rows)} rows has a label, as in a hidden test split; expected the right answers",
            where=name,
            fix=f"name the file of the validation split, as in --task {task}=validation.jsonl",
        )
    kept = tuple(questions[:limit])
    left_out = {UNLABELED: unlabeled, LIMITED: len(questions) - len(kept)}
    left_out = {why: count for why, count in left_out.items() if count}
    notes = [
        f"{name}: {len(kept)} questions, task {task}, layout {layout.name} ({', '.join(sorted(read_log.used_columns))})"
    ]
    notes += [f"{name}: {count} rows left out: {why}" for why, count in left_out.items()]
    if others := unread_files(source, split):
        notes.append(f"{name}: files not read: {', '.join(others)}")
    if repeats := len(kept) - len({(question.prompt, question.options) for question in kept}):
        notes.append(f"{name}: {repeats} questions repeat an earlier one, options and all; they are kept")
    return TaskQuestions(task, kept, layout.name, left_out, tuple(notes))


def _layout(task: str, rows: Sequence[Located], name: str) -> Layout:
    """The one layout that every row has the columns of."""
    own = _LAYOUT_OF.get(task)
    allowed = list(LAYOUTS) if own is None else [_BY_NAME[layout] for layout in (own, *ANY_NAME)]
    columns = list(rows[0][1])
    fits = [layout for layout in allowed if not layout.lacks(columns)]
    if not fits:
        raise _unknown(task, allowed, columns, rows[0][0])
    if own is None and len(fits) > 1:
        names = [layout.name for layout in fits]
        raise DataError(
            f"its columns fit several tasks: {', '.join(names)}",
            where=name,
            fix=f"say which it is, as in --task {names[0]}={name}",
        )
    layout = fits[0]
    for where, values in rows:
        if lacks := layout.lacks(list(values)):
            raise DataError(
                f"the row has no column {_named(lacks)}; the rows before it are of the layout {layout.name}",
                where=where,
                fix="correct the row or remove it",
            )
    return layout


def _unknown(task: str, allowed: Sequence[Layout], columns: Sequence[str], where: str) -> DataError:
    near = sorted(allowed, key=lambda layout: len(layout.lacks(columns)) / len(layout.needs))[:3]
    lacking = "; ".join(f"{layout.name} (lacks {_named(layout.lacks(columns))})" for layout in near)
    return DataError(
        f"no multiple-choice layout that task {task} can have (columns: {', '.join(columns) or 'none'}); "
        f"nearest are {lacking}",
        where=where,
        fix='write each row as {"prompt": "2 + 2?", "options": ["4", "5"], "answer": 0}, or see docs/tasks.md',
    )


def _named(needs: Sequence[str]) -> str:
    return ", ".join(" or ".join(f"'{name}'" for name in need.split("|")) for need in needs)
