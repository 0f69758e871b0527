"""A sheet for people to compare two models' answers, who do not know which is whose."""

from __future__ import annotations

import csv
import io
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from penchant.api import DataError, Text, as_text, is_data_file, read_rows, stem_of, write_atomically

COLUMNS = ("number", "prompt", "answer_a", "answer_b", "better")
FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
"""How a cell begins that spreadsheets calculate; also with apostrophes, so that each can be taken off again."""
ANSWERS = {"a": 0, "b": 1, "tie": None}


def write_sheet(folder: Path, prompts: Sequence[Text], answers: Mapping[str, Sequence[str]], *, seed: int = 0) -> None:
    """`sheet.csv`, its column `better` empty; and `key.csv`, which says whose answer stands where.

    Args:
        answers: by model (two of them), to each prompt; which stands first is drawn for each prompt.

    Raises:
        DataError: there are not two models.
    """
    if len(answers) != 2:
        raise DataError(f"{len(answers)} models' answers; a sheet compares two", fix="name two")
    draw = random.Random(seed)
    sheet, key = _table(), _table()
    _write_row(sheet, COLUMNS)
    _write_row(key, ("number", "a", "b"))
    for number, (prompt, *texts) in enumerate(zip(prompts, *answers.values(), strict=True), 1):
        order = draw.sample((0, 1), 2)
        _write_row(sheet, [number, as_text(prompt), *(texts[k] for k in order), ""])
        _write_row(key, [number, *(list(answers)[k] for k in order)])
    write_atomically(folder / "sheet.csv", sheet.getvalue())
    write_atomically(folder / "key.csv", key.getvalue())


def read_sheet(folder: Path) -> dict[str, list[float]]:
    """Points of every model, 1 for a better answer and 1/2 for a tie, over the rows that were filled in.

    Raises:
        DataError: a file is missing, a verdict is none of a, b and tie, a row is not in the key, or none was filled in.
    """
    file = _file(folder, "sheet")
    key = {
        str(row["number"]): (_without_guard(row["a"]), _without_guard(row["b"]))
        for _, row in read_rows(_file(folder, "key"))
    }
    points: dict[str, list[float]] = {name: [] for names in key.values() for name in names}
    for _, row in read_rows(file):
        verdict, names = str(row.get("better") or "").strip().lower(), key.get(str(row.get("number") or ""))
        if not verdict:
            continue
        where = f"{file}, number {row.get('number')}"
        if verdict not in ANSWERS:
            raise DataError(f"'{verdict}' in the column better", where=where, fix="write a, b or tie")
        if names is None:
            raise DataError("this number is not in key.csv", where=where, fix="keep the numbers as they were")
        for index, name in enumerate(names):
            winner = ANSWERS[verdict]
            points[name].append(0.5 if winner is None else float(winner == index))
    if not any(points.values()):
        raise DataError("no row has a verdict", where=str(file), fix="write a, b or tie in the column better")
    return points


def _file(folder: Path, stem: str) -> Path:
    """The folder's data file of this name, whatever its ending: a spreadsheet may have saved it as another kind."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    for file in files:
        if is_data_file(file) and stem_of(file) == stem:
            return file
    raise DataError(
        "there is no such file", where=str(folder / f"{stem}.csv"), fix="name the folder of sheet.csv and key.csv"
    )


def _table() -> io.StringIO:
    """An empty file that spreadsheets take for UTF-8."""
    table = io.StringIO(newline="")
    table.write("\ufeff")
    return table


def _write_row(table: io.StringIO, cells: Iterable[object]) -> None:
    csv.writer(table).writerow([_guarded(str(cell)) for cell in cells])


def _guarded(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula: an apostrophe stands in front of what could be one."""
    return "'" + cell if FORMULA.match(cell) else cell


def _without_guard(cell: str) -> str:
    """What `_guarded` was given."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell
