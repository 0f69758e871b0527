"""Recommendation data in the format of S-DPO's authors: a user's history, the offered items, and the selected item."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from penchant.data.fields import Cell, Row
from penchant.data.formats_lists import index_of_text
from penchant.data.groups import PreferenceGroup

SEPARATOR = "::"
"""Separator of the items of a list that is written as one text."""


def is_s_dpo(row: Mapping[str, Any]) -> bool:
    """Whether a row has the columns of S-DPO's recommendation data."""
    return {"historyList", "itemList", "trueSelection"} <= row.keys()


def s_dpo(row: Row) -> Iterator[PreferenceGroup]:
    """One group: the prompt lists the history, and the candidates are the distinct items."""
    history, items, chosen = _items(row.need("historyList")), _items(row.need("itemList")), row.need("trueSelection")
    candidates = list(dict.fromkeys(items))
    if len(candidates) < len(items):
        row.read_log.count("items that occur twice in 'itemList', taken once", row.where)
    prompt = "\n".join(["Chosen before, oldest first:", *history, "Chosen next:", ""])
    chosen = Cell(chosen.name(), chosen.column, row)
    yield replace(row.group(prompt, candidates), preferred=index_of_text(chosen, candidates))


def _items(cell: Cell) -> list[str]:
    """The items of a list, which may be written as JSON, as Python prints it, or with `::` between items."""
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
