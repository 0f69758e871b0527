"""The registry of formats, and the detection of a source's format."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penchant.data import formats_items, formats_lists, formats_pairs, formats_vendors
from penchant.data.fields import Row
from penchant.data.groups import PreferenceGroup
from penchant.errors import DataError

MAX_COLUMNS_LISTED = 12
LocatedRow = tuple[str, Mapping[str, Any]]
"""A row's location and its values."""


@dataclass(frozen=True)
class Format:
    """A format of preference data.

    Attributes:
        name: name in the configuration and on the command line.
        needs: its columns, with alternatives separated by ``|``; for errors.
        matches: whether a row without its null columns is in this format, judged by names and types alone.
        convert: function from a row to its groups; a row without groups is counted as left out.
    """

    name: str
    needs: tuple[str, ...]
    matches: Callable[[Mapping[str, Any]], bool]
    convert: Callable[[Row], Iterator[PreferenceGroup]]

    def lacks(self, columns: Sequence[str]) -> list[str]:
        """The needed columns that are not among these."""
        return [need for need in self.needs if not set(need.split("|")) & set(columns)]


# The first format that matches is chosen, so more specific formats come first.
_ALL = (
    Format("label_studio", ("data", "annotations"), formats_vendors.is_label_studio, formats_vendors.label_studio),
    Format("nemo_rl", ("context", "completions"), formats_lists.is_nemo_rl, formats_lists.nemo_rl),
    Format(
        "ultrafeedback",
        ("instruction|prompt", "completions"),
        formats_lists.is_ultrafeedback,
        formats_lists.ultrafeedback,
    ),
    Format("s_dpo", ("historyList", "itemList", "trueSelection"), formats_items.is_s_dpo, formats_items.s_dpo),
    Format("penchant", ("prompt", "candidates"), formats_lists.is_penchant, formats_lists.penchant),
    Format(
        "ranked",
        ("prompt", "|".join(formats_lists.LISTS), "|".join(formats_lists.WORTH)),
        formats_lists.is_ranked,
        formats_lists.ranked,
    ),
    Format(
        "llama_factory",
        ("conversations|instruction", "chosen|output", "rejected|output"),
        formats_vendors.is_llama_factory,
        formats_vendors.llama_factory,
    ),
    Format(
        "ms_swift",
        ("messages", "rejected_response|rejected_messages"),
        formats_vendors.is_ms_swift,
        formats_vendors.ms_swift,
    ),
    Format(
        "several_rejected",
        ("prompt", "chosen", "rejected"),
        formats_pairs.is_several_rejected,
        formats_pairs.several_rejected,
    ),
    Format("pairs", ("prompt", "chosen", "rejected"), formats_pairs.is_pairs, formats_pairs.pairs),
    Format("hh", ("chosen", "rejected"), formats_pairs.is_hh, formats_pairs.hh),
    Format("implicit_prompt", ("chosen", "rejected"), formats_pairs.is_implicit_prompt, formats_pairs.implicit_prompt),
    Format("unpaired", ("completion|messages", "label"), formats_pairs.is_unpaired, formats_pairs.unpaired),
    Format(
        "sft",
        ("prompt|messages|conversations|instruction", "completion|messages|conversations|output"),
        formats_pairs.is_sft,
        formats_pairs.sft,
    ),
    Format("text", ("text",), formats_pairs.is_text, formats_pairs.text),
)
_PROMPTS = Format("prompts", ("prompt",), formats_lists.is_prompts, formats_lists.prompts)
FORMATS: dict[str, Format] = {format.name: format for format in (*_ALL, _PROMPTS)}


def format_named(name: str) -> Format:
    """The format with this name.

    Raises:
        DataError: there is no such format.
    """
    if name in FORMATS:
        return FORMATS[name]
    near = difflib.get_close_matches(name, FORMATS, 1)
    raise DataError(
        f"there is no format '{name}'; the formats are {', '.join(sorted(FORMATS))}",
        fix=f"data.format={near[0]}" if near else "leave data.format out to have it detected",
    )


def detect(rows: Sequence[LocatedRow], name: str) -> Format:
    """The one format of all rows.

    Args:
        rows: the rows with their locations.
        name: name of the source, for errors.

    Raises:
        DataError: the rows are in several formats, or a row is in none.
    """
    rows_by_format: dict[Format | None, list[int]] = {}
    for number, (_, values) in enumerate(rows):
        rows_by_format.setdefault(_format_of(values), []).append(number)
    if None in rows_by_format:
        other_formats = [_describe_rows(format, numbers, rows) for format, numbers in rows_by_format.items() if format]
        raise _unknown_format(rows[rows_by_format[None][0]], len(rows_by_format[None]), other_formats, name)
    if len(rows_by_format) > 1:
        counts = "; ".join(
            _describe_rows(format, numbers, rows) for format, numbers in rows_by_format.items() if format
        )
        names = [format.name for format in rows_by_format if format]
        raise DataError(
            f"rows of several formats: {counts}; expected one format",
            where=name,
            fix="correct the rows that are unlike the others, or put each format in a file of its own; "
            f"data.format={names[0]} reads every row as {names[0]}",
        )
    return next(format for format in rows_by_format if format)


def _format_of(values: Mapping[str, Any]) -> Format | None:
    present = {name: value for name, value in values.items() if value is not None}
    # A null in a needed column is a mistake in that format, not a sign of another format.
    for row in (present, values):
        for format in _ALL:
            if format.matches(row):
                return format
    # Prompts come last, because null responses are a mistake in pairs and do not make a row a prompt.
    return _PROMPTS if _PROMPTS.matches(present) else None


def _describe_rows(format: Format, numbers: Sequence[int], rows: Sequence[LocatedRow]) -> str:
    return f"{format.name} ({len(numbers)} row{'s' * (len(numbers) > 1)}, first: {rows[numbers[0]][0]})"


def _unknown_format(row: LocatedRow, count: int, other_formats: Sequence[str], name: str) -> DataError:
    where, values = row
    columns = list(values)
    column_names = ", ".join(columns[:MAX_COLUMNS_LISTED]) + (
        f" and {len(columns) - MAX_COLUMNS_LISTED} more" if len(columns) > MAX_COLUMNS_LISTED else ""
    )
    subject = f"row{'s' * (count > 1)} of no known format" if other_formats else "no known preference format"
    problem = f"{subject} (columns: {column_names or 'none'}); nearest are {_nearest_formats(columns)}"
    return DataError(
        f"{count} {problem}; the other rows are {'; '.join(other_formats)}" if other_formats else problem,
        where=where if other_formats else name,
        fix="map your columns to ours, as in data.columns={prompt: question, chosen: better, rejected: worse}; "
        "docs/data-formats.md shows each format",
    )


def _nearest_formats(columns: Sequence[str]) -> str:
    """The three formats with the fewest missing columns, the columns each misses, and similar names among these."""

    def distance(format: Format) -> tuple[float, int]:
        lacking = len(format.lacks(columns))
        # A format without any of its columns is not near, however few it needs.
        return (lacking / len(format.needs), lacking) if lacking < len(format.needs) else (1, 0)

    ordered = sorted([FORMATS["pairs"], FORMATS["penchant"], FORMATS["unpaired"], *_ALL], key=distance)
    return "; ".join(_describe_missing(format, columns) for format in list(dict.fromkeys(ordered))[:3])


def _describe_missing(format: Format, columns: Sequence[str]) -> str:
    lacks = format.lacks(columns)
    if not lacks:
        return f"{format.name} (has its columns, {', '.join(format.needs)}, but not of the types it takes)"
    descriptions = []
    for need in lacks:
        names = need.split("|")
        close = [near[0] for name in names if (near := difflib.get_close_matches(name, columns, 1))]
        descriptions.append(" or ".join(f"'{name}'" for name in names) + (f" (is it '{close[0]}'?)" if close else ""))
    return f"{format.name} (lacks {', '.join(descriptions)})"
