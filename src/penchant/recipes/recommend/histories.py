"""Questions made of interactions: the items that a user had taken before a time, and the item taken then.

No information comes from the future. A history holds only items taken strictly before its target, questions are split
by time and not by user, and the catalogue holds the items that were taken often enough in the training part.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penchant.api import DataError, ending_of, open_data_file, read_rows, text_lines

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


@dataclass(frozen=True)
class Rules:
    """The rules of making questions.

    Attributes:
        min_rating: interactions with a lower rating or without one are left out; None leaves out none.
        min_count: the interactions in the training part that an item of the catalogue needs.
        min_history: the number of items that a history needs.
        max_history: the number of items in a history, at most; the last ones are kept.
        shares: the shares of interactions in training, validation and test, by time.
    """

    min_rating: float | None = None
    min_count: int = 5
    min_history: int = 3
    max_history: int = 10
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1)


@dataclass(frozen=True)
class Question:
    """The question which item a user takes next.

    Attributes:
        number: the index of the question among the user's questions, by time.
        history: the items taken before, the oldest first.
        target: the item that the user took.
        time: the time of the target's interaction.
    """

    user: str
    number: int
    history: tuple[str, ...]
    target: str
    time: float

    @property
    def id(self) -> str:
        """The user and the question's number."""
        return f"{self.user}/{self.number}"


@dataclass(frozen=True)
class Histories:
    """Questions by part, and the data that they were made of.

    Attributes:
        items: the catalogue, in the order of first appearance.
        counts: the number of interactions in the training part by item of the catalogue.
        times_by_user: by user, the time at which they took an item, by item of the catalogue.
        dropped: the number of interactions that were left out, by reason.
    """

    train: tuple[Question, ...]
    validation: tuple[Question, ...]
    test: tuple[Question, ...]
    items: tuple[str, ...]
    counts: Mapping[str, int]
    times_by_user: Mapping[str, Mapping[str, float]]
    dropped: Mapping[str, int] = field(default_factory=dict)


def build_histories(interactions: Sequence[Interaction], titles: Mapping[str, str], rules: Rules) -> Histories:
    """The questions of interactions: a split by time, the catalogue of the training part, and a question per target.

    Raises:
        DataError: an item with a sufficient rating has no title, or a part would be empty.
    """
    dropped: Counter[str] = Counter()
    liked = _liked(interactions, rules.min_rating, dropped)
    untitled = [interaction.item for interaction in liked if interaction.item not in titles]
    if untitled:
        raise DataError(
            f"{len(set(untitled))} items have no title, the first is '{untitled[0]}'",
            fix="add their titles, or leave their interactions out",
        )
    train_end, validation_end = _boundaries(liked, rules.shares)
    counts = Counter(interaction.item for interaction in liked if interaction.time < train_end)
    items = tuple(
        dict.fromkeys(interaction.item for interaction in liked if counts[interaction.item] >= rules.min_count)
    )
    catalogue = set(items)
    dropped["interactions with items too rare in training"] = sum(
        interaction.item not in catalogue for interaction in liked
    )
    times_by_user: dict[str, dict[str, float]] = defaultdict(dict)
    for interaction in liked:
        if interaction.item in catalogue:
            times_by_user[interaction.user][interaction.item] = interaction.time
    questions = [q for user, times in times_by_user.items() for q in _questions(user, times, rules, dropped)]
    questions.sort(key=lambda question: (question.time, question.user, question.number))
    parts = {
        "training": tuple(q for q in questions if q.time < train_end),
        "validation": tuple(q for q in questions if train_end <= q.time < validation_end),
        "test": tuple(q for q in questions if q.time >= validation_end),
    }
    empty = [name for name, part in parts.items() if not part]
    if empty:
        raise DataError(
            f"no questions for {' and '.join(empty)}: none of {len(liked)} interactions has {rules.min_history} items "
            f"before it among the {len(items)} items taken {rules.min_count} times in training",
            fix="lower min_history, min_count or min_rating, or take more data",
        )
    return Histories(
        parts["training"],
        parts["validation"],
        parts["test"],
        items,
        {item: counts[item] for item in items},
        times_by_user,
        dict(dropped),
    )


def _liked(interactions: Sequence[Interaction], min_rating: float | None, dropped: Counter[str]) -> list[Interaction]:
    """The interactions with a sufficient rating, by time; a user's repeated interactions with an item are dropped."""
    liked: dict[tuple[str, str], Interaction] = {}
    for interaction in sorted(
        interactions, key=lambda interaction: (interaction.time, interaction.user, interaction.item)
    ):
        if min_rating is not None and (interaction.rating is None or interaction.rating < min_rating):
            dropped["interactions rated too low"] += 1
        elif liked.setdefault((interaction.user, interaction.item), interaction) is not interaction:
            dropped["repeated interactions"] += 1
    return list(liked.values())


def _boundaries(liked: Sequence[Interaction], shares: tuple[float, float, float]) -> tuple[float, float]:
    """The times at which validation and test begin; interactions of the same time are in the same part."""
    if not liked:
        raise DataError("no interaction is left", fix="lower min_rating")
    total, cumulative_share, times = sum(shares), 0.0, []
    for share in shares[:2]:
        cumulative_share += share / total
        times.append(liked[min(len(liked) - 1, int(cumulative_share * len(liked)))].time)
    return times[0], times[1]


def _questions(user: str, times: Mapping[str, float], rules: Rules, dropped: Counter[str]) -> list[Question]:
    """The questions of a user with these times of items."""
    questions: list[Question] = []
    ordered = sorted(times.items(), key=lambda pair: (pair[1], pair[0]))
    for target, time in ordered:
        items_before = [item for item, time_of_item in ordered if time_of_item < time]
        if len(items_before) < rules.min_history:
            dropped["interactions with too short a history"] += 1
            continue
        questions.append(Question(user, len(questions), tuple(items_before[-rules.max_history :]), target, time))
    return questions
