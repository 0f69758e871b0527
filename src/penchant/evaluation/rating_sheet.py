"""A sheet for people to compare two models' answers, who do not know which is whose."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from penchant.data.files import is_data_file, read_rows, stem_of
from penchant.data.groups import Text, as_text
from penchant.errors import DataError
from penchant.evaluation.files import write_atomically

COLUMNS = ("number", "prompt", "answer_a", "answer_b", "better")
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
    csv.writer(sheet).writerow(COLUMNS)
    csv.writer(key).writerow(("number", "a", "b"))
    for number, (prompt, *given) in enumerate(zip(prompts, *answers.values(), strict=True), 1):
        order = draw.sample((0, 1), 2)
        csv.writer(sheet).writerow([number, as_text(prompt), *(given[k] for k in order), ""])
        csv.writer(key).writerow([number, *(list(answers)[k] for k in order)])
    write_atomically(folder / "sheet.csv", sheet.getvalue())
    write_atomically(folder / "key.csv", key.getvalue())


def read_sheet(folder: Path) -> dict[str, list[float]]:
    """Of each model its points, 1 for a better answer and 1/2 for a tie, over the rows that were filled in.

    Raises:
        DataError: a file is missing, a verdict is none of a, b and tie, a row is not in the key, or none was filled in.
    """
    file = _file(folder, "sheet")
    key = {str(row["number"]): (row["a"], row["b"]) for _, row in read_rows(_file(folder, "key"))}
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
    return io.StringIO(newline="")
