"""Typed access to the columns of one row; every error names the row, the column, its value and the expected type."""

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
"""Largest absolute score or weight: methods read them as float32."""


@dataclass
class ReadLog:
    """Log of the reading of one source.

    Attributes:
        used_columns: names of the columns that were read.
        events: number of rows by event.
        first_rows: location of the first row by event.
    """

    used_columns: set[str] = field(default_factory=set)
    events: Counter[str] = field(default_factory=Counter)
    first_rows: dict[str, str] = field(default_factory=dict)

    def count(self, event: str, where: str) -> None:
        """Count an event of the row at this location."""
        self.events[event] += 1
        self.first_rows.setdefault(event, where)


@dataclass(frozen=True)
class Row:
    """One row of the source.

    Attributes:
        values: values by column name; a column that is null counts as absent.
        where: file and line, for errors.
        number: 0-based number of the row; the group's id where the data has none.
        read_log: counts the columns and events of all rows.
    """

    values: Mapping[str, Any]
    where: str
    number: int
    read_log: ReadLog

    def find(self, *names: str) -> Cell | None:
        """The first of these columns that the row has; None where it has none of them."""
        for name in names:
            if self.values.get(name) is not None:
                self.read_log.used_columns.add(name)
                return Cell(self.values[name], name, self)
        return None

    def need(self, *names: str) -> Cell:
        """The first of these columns that the row has.

        Raises:
            DataError: the row has none of them.
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
        """Count this row as left out, for a reason."""
        self.read_log.count(f"left out: {reason}", self.where)

    def group(self, prompt: Text, candidates: Sequence[Text]) -> PreferenceGroup:
        """A group with the row's id, weight and source, without preferences among its candidates.

        Raises:
            DataError: there are no candidates, or the id, weight or source has the wrong type.
        """
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
    """A value in a row, with typed readers that raise a `DataError` for a value of another type.

    Attributes:
        value: the value, as JSON or the table has it.
        column: path of the value, as in ``completions[2].response``.
        row: the row that contains it.
    """

    value: Any
    column: str
    row: Row

    def refusal(self, expected: str, fix: str = "correct it or remove the row") -> DataError:
        """The error for a value that is not as expected."""
        return DataError(
            f"column '{self.column}' is {describe_value(self.value)}; expected {expected}",
            where=self.row.where,
            fix=fix,
        )

    def text(self) -> str:
        """The value as text that can be encoded in UTF-8."""
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
        """The value as text, where it is text or a whole number."""
        return self.text() if isinstance(self.value, str) else str(self.whole())

    def number(self) -> float:
        """The value as a finite number within the range of float32."""
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
        """The value as a number above 0."""
        number = self.number()
        if number <= 0:
            raise self.refusal("a number above 0", "remove the row to leave it out")
        return number

    def whole(self) -> int:
        """The value as a whole number."""
        if isinstance(self.value, int) and not isinstance(self.value, bool):
            return self.value
        # Tables with nulls store whole numbers as floats.
        if isinstance(self.value, float) and self.value.is_integer():
            return int(self.value)
        raise self.refusal("a whole number")

    def index(self, k: int) -> int:
        """The value as the 0-based index of one of k candidates."""
        index = self.whole()
        if not 0 <= index < k:
            raise self.refusal(f"the 0-based index of one of the {k} candidates, 0 to {k - 1}")
        return index

    def yes_or_no(self) -> bool:
        """The value as a boolean, where it is true, false, 1 or 0."""
        if isinstance(self.value, bool) or self.value in (0, 1):
            return bool(self.value)
        raise self.refusal("true or false (or 1 or 0)")

    def items(self) -> list[Cell]:
        """The items of a list."""
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
        """The first of these fields of an object that is not null; None where it has none of them."""
        if not isinstance(self.value, dict):
            raise self.refusal(f"an object with {' or '.join(keys)}")
        for key in keys:
            if self.value.get(key) is not None:
                return Cell(self.value[key], f"{self.column}.{key}", self.row)
        return None

    def need(self, *keys: str) -> Cell:
        """The first of these fields of an object that is not null; an error where it has none of them."""
        if cell := self.find(*keys):
            return cell
        raise self.refusal(f"an object with {' or '.join(keys)}")


def describe_value(value: object) -> str:
    """The type of a value and the start of its JSON text, for an error message."""
    if value is None:
        return "null"
    kind = KINDS.get(type(value), "an object" if isinstance(value, dict) else type(value).__name__)
    text = json.dumps(value, default=str)
    return f"{kind}, {text if len(text) <= 60 else text[:57] + '...'}"
