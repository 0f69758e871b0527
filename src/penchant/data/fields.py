"""Typed access to the columns of one row. Every refusal names the row, the column, what was found and what is taken."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from penchant.data.groups import PreferenceGroup, Text
from penchant.errors import DataError

KINDS: dict[type, str] = {str: "text", bool: "true/false", int: "a number", float: "a number", list: "a list"}


LARGEST = 3.4028234e38
"""Scores and weights are float32 where methods read them."""


@dataclass
class ReadLog:
    """What reading did: the columns it used, and events with how often and where first each was met."""

    used_columns: set[str] = field(default_factory=set)
    events: Counter[str] = field(default_factory=Counter)
    first_rows: dict[str, str] = field(default_factory=dict)

    def count(self, event: str, where: str) -> None:
        self.events[event] += 1
        self.first_rows.setdefault(event, where)


@dataclass(frozen=True)
class Row:
    """One row of the source.

    Attributes:
        values: its columns; a column that is null counts as absent.
        where: file and line, for errors.
        number: 0-based; the group's id where the data has none.
    """

    values: Mapping[str, Any]
    where: str
    number: int
    read_log: ReadLog

    def find(self, *names: str) -> Cell | None:
        """The first of these columns that the row has; None where it has none."""
        for name in names:
            if self.values.get(name) is not None:
                self.read_log.used_columns.add(name)
                return Cell(self.values[name], name, self)
        return None

    def need(self, *names: str) -> Cell:
        """The first of these columns that the row has.

        Raises:
            DataError: it has none of them.
        """
        if cell := self.find(*names):
            return cell
        null = [name for name in names if name in self.values]
        if null:
            raise DataError(
                f"column '{null[0]}' is null; expected a value", where=self.where, fix="fill it or remove it"
            )
        column_names = " or ".join(f"'{name}'" for name in names)
        raise DataError(
            f"no column {column_names}; the row has {', '.join(self.values) or 'none'}",
            where=self.where,
            fix=f"add it, or map a column to it: data.columns={{{names[0]}: YOUR_COLUMN}}",
        )

    def count_left_out(self, reason: str) -> None:
        """Count this row as left out."""
        self.read_log.count(f"left out: {reason}", self.where)

    def group(self, prompt: Text, candidates: Sequence[Text]) -> PreferenceGroup:
        """A group with the row's id, weight and source, and nothing known of its candidates' worth."""
        if not candidates:
            raise DataError("no candidates; expected at least one", where=self.where, fix="add one or remove the row")
        name, weight, source = self.find("id"), self.find("weight"), self.find("source")
        return PreferenceGroup(
            prompt,
            tuple(candidates),
            id=str(self.number) if name is None else name.name(),
            weight=1.0 if weight is None else weight.positive(),
            source=None if source is None else source.text(),
        )


@dataclass(frozen=True)
class Cell:
    """A value in a row; `column` is its path, as in ``completions[2].response``."""

    value: Any
    column: str
    row: Row

    def refusal(self, expected: str, fix: str = "correct it or remove the row") -> DataError:
        return DataError(
            f"column '{self.column}' is {describe_value(self.value)}; expected {expected}",
            where=self.row.where,
            fix=fix,
        )

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self.refusal("text")
        try:
            self.value.encode()
        except UnicodeEncodeError as error:
            raise self.refusal(
                f"text without the lone surrogate U+{ord(self.value[error.start]):04X} at character {error.start}",
                "write the character whole: UTF-8, or both halves of its escape",
            ) from error
        return self.value

    def name(self) -> str:
        """Text, or a whole number as text."""
        return self.text() if isinstance(self.value, str) else str(self.whole())

    def number(self) -> float:
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self.refusal("a number")
        try:
            number = float(self.value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.refusal("a finite number")
        if abs(number) > LARGEST:
            raise self.refusal(f"a number of at most {LARGEST:g} (float32 holds no larger)")
        return number

    def positive(self) -> float:
        number = self.number()
        if number <= 0:
            raise self.refusal("a number above 0", "remove the row to leave it out")
        return number

    def whole(self) -> int:
        if isinstance(self.value, int) and not isinstance(self.value, bool):
            return self.value
        # Tables with nulls hold whole numbers as floats.
        if isinstance(self.value, float) and self.value.is_integer():
            return int(self.value)
        raise self.refusal("a whole number")

    def index(self, k: int) -> int:
        """0-based index of one of k candidates."""
        index = self.whole()
        if not 0 <= index < k:
            raise self.refusal(f"the 0-based index of one of the {k} candidates, 0 to {k - 1}")
        return index

    def yes_or_no(self) -> bool:
        if isinstance(self.value, bool) or self.value in (0, 1):
            return bool(self.value)
        raise self.refusal("true or false (or 1 or 0)")

    def items(self) -> list[Cell]:
        if not isinstance(self.value, list):
            raise self.refusal("a list")
        return [Cell(value, f"{self.column}[{i}]", self.row) for i, value in enumerate(self.value)]

    def items_for(self, k: int) -> list[Cell]:
        """The items of a list with one for each of k candidates."""
        items = self.items()
        if len(items) != k:
            raise self.refusal(f"one item for each of the {k} candidates, found {len(items)}")
        return items

    def find(self, *keys: str) -> Cell | None:
        """The first of these fields that the object has and that is not null."""
        if not isinstance(self.value, dict):
            raise self.refusal(f"an object with {' or '.join(keys)}")
        for key in keys:
            if self.value.get(key) is not None:
                return Cell(self.value[key], f"{self.column}.{key}", self.row)
        return None

    def need(self, *keys: str) -> Cell:
        if cell := self.find(*keys):
            return cell
        raise self.refusal(f"an object with {' or '.join(keys)}")


def describe_value(value: object) -> str:
    """A value's type and its start, for an error."""
    if value is None:
        return "null"
    kind = KINDS.get(type(value), "an object" if isinstance(value, dict) else type(value).__name__)
    text = json.dumps(value, default=str)
    return f"{kind}, {text if len(text) <= 60 else text[:57] + '...'}"
