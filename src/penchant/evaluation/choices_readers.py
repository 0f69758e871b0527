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
from penchant.evaluation.choices_layouts import ANY_NAME, BY_NAME, LAYOUT_OF, LAYOUTS, Layout

Located = tuple[str, Mapping[str, Any]]
"""A row's location and its values by column."""

NO_LABEL = "no label"
LIMITED = "beyond the limit"


@dataclass(frozen=True)
class TaskQuestions:
    """A task's questions from one source.

    Attributes:
        layout: name of the rows' layout.
        left_out: reason -> number of rows that gave no question.
        notes: lines for people about what was read and what was left out.
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
    """A task's questions, read from a file or folder.

    Args:
        task: name of the task. A name in `TASKS` has that data set's layout or one of `ANY_NAME`; any other name takes
            the only layout that fits the columns.
        source: as in `penchant.data.reading.read_groups`.
        split: name of a folder's split.
        columns: the layout's column name -> the source's.
        limit: maximal number of questions; further ones are counted as left out.

    Raises:
        DataError: the source cannot be read, no layout or several layouts fit it, a row violates its layout, or no row
            has a label.
    """
    name = Path(source).absolute().name
    rows = list(read_rows(source, split=split, columns=columns))
    layout = _layout(task, rows, name)
    read_log = ReadLog()
    converted = (layout.convert(Row(values, where, i, read_log), task) for i, (where, values) in enumerate(rows))
    questions = [question for question in converted if question is not None]
    unlabeled = len(rows) - len(questions)
    if not questions:
        raise DataError(
            f"none of its {len(rows)} rows has a label, as in a hidden test split; expected the right answers",
            where=name,
            fix=f"name the file of the validation split, as in --task {task}=validation.jsonl",
        )
    limited = tuple(questions[:limit])
    left_out = {NO_LABEL: unlabeled, LIMITED: len(questions) - len(limited)}
    left_out = {reason: count for reason, count in left_out.items() if count}
    used_columns = ", ".join(sorted(read_log.used_columns))
    notes = [f"{name}: {len(limited)} questions, task {task}, layout {layout.name} ({used_columns})"]
    notes += [f"{name}: {count} rows left out: {reason}" for reason, count in left_out.items()]
    if other_files := unread_files(source, split):
        notes.append(f"{name}: files not read: {', '.join(other_files)}")
    if repeats := len(limited) - len({(question.prompt, question.options) for question in limited}):
        notes.append(f"{name}: {repeats} questions repeat an earlier one, options and all; they are kept")
    return TaskQuestions(task, limited, layout.name, left_out, tuple(notes))


def _layout(task: str, rows: Sequence[Located], name: str) -> Layout:
    """The layout whose required columns every row has."""
    expected = LAYOUT_OF.get(task)
    candidates = list(LAYOUTS) if expected is None else [BY_NAME[layout] for layout in (expected, *ANY_NAME)]
    columns = list(rows[0][1])
    fits = [layout for layout in candidates if not layout.lacks(columns)]
    if not fits:
        raise _no_layout_error(task, candidates, columns, rows[0][0])
    if expected is None and len(fits) > 1:
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
                f"the row has no column {_column_list(lacks)}; the rows before it are of the layout {layout.name}",
                where=where,
                fix="correct the row or remove it",
            )
    return layout


def _no_layout_error(task: str, candidates: Sequence[Layout], columns: Sequence[str], where: str) -> DataError:
    near = sorted(candidates, key=lambda layout: len(layout.lacks(columns)) / len(layout.needs))[:3]
    lacking = "; ".join(f"{layout.name} (lacks {_column_list(layout.lacks(columns))})" for layout in near)
    return DataError(
        f"no multiple-choice layout that task {task} can have (columns: {', '.join(columns) or 'none'}); "
        f"nearest are {lacking}",
        where=where,
        fix='write each row as {"prompt": "2 + 2?", "options": ["4", "5"], "answer": 0}, or see docs/tasks.md',
    )


def _column_list(needs: Sequence[str]) -> str:
    return ", ".join(" or ".join(f"'{name}'" for name in need.split("|")) for need in needs)
