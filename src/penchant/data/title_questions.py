"""Questions of a recommender, as S-DPO's authors publish them: a history, titles to choose from, and the right one."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from penchant.data.fields import Cell, ReadLog, Row
from penchant.data.files import read_rows

COLUMNS = ("historyList", "itemList", "trueSelection")
SEPARATOR = "::"


@dataclass(frozen=True)
class TitleQuestion:
    """A question which of several titles is taken next.

    Attributes:
        history: titles taken before, the oldest first.
        candidates: distinct titles to choose from.
        target: index of the title that was taken.
        where: file and row, for errors.
    """

    history: tuple[str, ...]
    candidates: tuple[str, ...]
    target: int
    where: str


def title_question(row: Row) -> TitleQuestion:
    """The question of a row; titles that are listed twice are counted and taken once.

    Raises:
        DataError: a list is none, or the title that was taken is not listed.
    """
    history_cell, list_cell, chosen_cell = (row.need(column) for column in COLUMNS)
    item_list, history = _titles(list_cell), _titles(history_cell)
    candidates = tuple(dict.fromkeys(item_list))
    if len(candidates) < len(item_list):
        row.read_log.count("items that occur twice in 'itemList', taken once", row.where)
    chosen = chosen_cell.name()
    if chosen not in candidates:
        raise chosen_cell.refusal(f"one of the {len(candidates)} titles of 'itemList', letter by letter")
    return TitleQuestion(tuple(history), candidates, candidates.index(chosen), row.where)


def read_title_questions(
    source: str | Path, *, split: str | None = None, columns: Mapping[str, str] | None = None
) -> list[TitleQuestion]:
    """The questions of a file or of a folder's split, in their order.

    Args:
        columns: the source's column name by ours, as in ``{"historyList": "history"}``.

    Raises:
        DataError: the source cannot be read, or a row is no question.
    """
    read_log = ReadLog()
    rows = read_rows(source, split=split, columns=columns)
    return [title_question(Row(values, where, number, read_log)) for number, (where, values) in enumerate(rows)]


def _titles(cell: Cell) -> list[str]:
    """The titles of a list, which may be written as JSON, as Python prints it, or with `::` between titles."""
    if not isinstance(cell.value, str):
        return [item.name() for item in cell.items()]
    text = cell.text().strip()
    if not text.startswith("["):
        return text.split(SEPARATOR) if text else []
    for parse in (json.loads, ast.literal_eval):
        try:
            values = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(values, list):
            return [item.name() for item in Cell(values, cell.column, cell.row).items()]
    raise cell.refusal("a list, a list written as text, or items with '::' between them")
