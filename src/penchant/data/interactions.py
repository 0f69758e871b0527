"""Readers of users' interactions with items (user, item, time, rating), and of the items' titles.

Files are CSV, JSON lines or Parquet with named columns, RecBole's atomic files (.inter, .item), or MovieLens' .dat
(``user::item::rating::time``; titles as ``item::title::...``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penchant.data.files import ending_of, open_data_file, read_rows
from penchant.data.files_text import text_lines
from penchant.errors import DataError

NAMES = {
    "user": ("user", "user_id", "userId", "uid", "reviewerID"),
    "item": ("item", "item_id", "itemId", "iid", "movie_id", "movieId", "product_id", "asin", "parent_asin"),
    "time": ("time", "timestamp", "unixReviewTime", "unix_time"),
    "rating": ("rating", "score", "stars", "overall"),
    "title": ("title", "item_name", "movie_title", "name"),
}
"""Accepted names of each column, Penchant's first."""

INTERACTIONS = ("user", "item", "rating", "time")
TITLES = ("item", "title")
RECBOLE = (".inter", ".item")


@dataclass(frozen=True)
class Interaction:
    """One user's interaction with one item.

    Attributes:
        user: id of the user.
        item: id of the item.
        time: seconds, or another number that grows with time.
        rating: the user's rating; None where the data has none.
    """

    user: str
    item: str
    time: float
    rating: float | None


def read_interactions(source: str | Path, *, columns: Mapping[str, str] | None = None) -> list[Interaction]:
    """The interactions of a file, in its order.

    Args:
        source: the file, or a folder of files.
        columns: the source's column name for user, item, time or rating, where it is not one of `NAMES`.

    Raises:
        DataError: the file cannot be read; a row lacks its user, item or time; or a time or rating is not a number.
    """
    interactions = []
    for row in _rows(source, INTERACTIONS, columns):
        rating = row.number("rating") if row.values["rating"] not in (None, "") else None
        interactions.append(Interaction(row.text("user"), row.text("item"), row.number("time"), rating))
    return interactions


def read_titles(
    source: str | Path, *, columns: Mapping[str, str] | None = None, split: str | None = None
) -> dict[str, str]:
    """The title of each item, by the item's id.

    Args:
        source: the file, or a folder of files.
        columns: the source's column name for item or title, where it is not one of `NAMES`.
        split: name of a split of the folder.

    Raises:
        DataError: the file cannot be read, a row lacks its item or title, or an item has two titles.
    """
    titles: dict[str, str] = {}
    for row in _rows(source, TITLES, columns, split):
        item, title = row.text("item"), row.text("title")
        if titles.setdefault(item, title) != title:
            raise DataError(
                f"item '{item}' is called '{title}' here and '{titles[item]}' before",
                where=row.where,
                fix="give each item one title",
            )
    return titles


@dataclass(frozen=True)
class _Row:
    """The required columns of a row.

    Attributes:
        values: value by Penchant's column name; None where the row has none.
        where: file and line, for errors.
        names: accepted names of each column.
    """

    values: Mapping[str, Any]
    where: str
    names: Mapping[str, tuple[str, ...]]

    def text(self, column: str) -> str:
        """The column's value as non-empty text."""
        value = self.values[column]
        text = "" if value is None else str(value).strip()
        if not text:
            raise DataError(
                f"no {column}; looked for the columns {', '.join(self.names[column])}",
                where=self.where,
                fix=f"name the column: data.columns={{{column}: NAME}}",
            )
        return text

    def number(self, column: str) -> float:
        """The column's value as a finite number."""
        text = self.text(column)
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise DataError(
                f"the {column} is '{text}'; expected a number", where=self.where, fix="write times in seconds"
            )
        return number


def _rows(
    source: str | Path, columns_read: tuple[str, ...], columns: Mapping[str, str] | None, split: str | None = None
) -> Iterator[_Row]:
    column_names = columns or {}
    names = {ours: (column_names[ours],) if ours in column_names else NAMES[ours] for ours in columns_read}
    path = Path(source).absolute()
    ending = ending_of(path)
    if ending == ".dat":
        rows = _double_colons(path, columns_read)
    elif ending in RECBOLE:
        rows = _recbole(path)
    else:
        rows = read_rows(source, split=split)
    empty = True
    for where, row in rows:
        empty = False
        values = {
            ours: next((row[n] for n in accepted_names if n in row), None) for ours, accepted_names in names.items()
        }
        yield _Row(values, where, names)
    if empty:
        raise DataError("it is empty; expected at least one row", where=path.name, fix="name another file")


def _double_colons(path: Path, columns_read: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a file without a header, whose fields are separated by ``::``."""
    with open_data_file(path, path.name) as stream:
        for number, line in text_lines(stream, path.name):
            where, cells = f"{path.name}, line {number}", line.rstrip("\r\n").split("::")
            if len(cells) < len(columns_read):
                raise DataError(
                    f"{len(cells)} fields between '::'; expected {'::'.join(columns_read)}",
                    where=where,
                    fix="write one row a line, or use CSV with a header",
                )
            yield where, dict(zip(columns_read, cells, strict=False))


def _recbole(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a tab-separated file whose header has a ``name:type`` for each column."""
    header: list[str] | None = None
    with open_data_file(path, path.name) as stream:
        for number, line in text_lines(stream, path.name):
            where, cells = f"{path.name}, line {number}", line.rstrip("\r\n").split("\t")
            if header is None:
                header = [cell.split(":")[0] for cell in cells]
            elif len(cells) == len(header):
                yield where, dict(zip(header, cells, strict=True))
            else:
                raise DataError(
                    f"{len(cells)} fields between tabs; the header has {len(header)}",
                    where=where,
                    fix="separate the fields by one tab each",
                )
