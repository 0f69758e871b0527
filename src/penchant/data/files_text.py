"""Rows of text files: JSON, JSON lines, CSV."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, BinaryIO

from penchant.data.conversations import is_message
from penchant.errors import DataError

Rows = Iterator[tuple[str, dict[str, Any]]]
Line = tuple[int, str]

WRAPPERS = ("data", "rows")
BOM = b"\xef\xbb\xbf"
OTHER_KINDS = (
    (b"\xff\xfe", "this looks like UTF-16; save it as UTF-8"),
    (b"\xfe\xff", "this looks like UTF-16; save it as UTF-8"),
    (b"\x1f\x8b", "this is gzip; give the file's name the ending .gz"),
    (b"\x28\xb5\x2f\xfd", "this is zstandard; give the file's name the ending .zst"),
)
LARGEST_CELL = 2**31 - 1

# A cell of a CSV file is text; only the name of its column tells its type.
JSON_COLUMNS = {
    "messages", "conversations", "context", "completions", "candidates", "responses", "scores", "ranks", "ranking",
    "rank", "pairwise", "comparisons", "labels", "rejected_messages", "data", "annotations", "history", "label",
    "weight", "preferred", "best", "tools", "documents", "chat_template_kwargs",
}  # fmt: skip
MESSAGE_COLUMNS = {"prompt", "chosen", "rejected", "completion"}
EMPTY_IS_NULL = re.compile("|".join([*JSON_COLUMNS, "id", "source", "system", r"rejected_?\d+"]))
QUOTED = re.compile(r'"(?:[^"]|"")*"')
PRINTED_BY_PYTHON = re.compile(r"\s*\[\s*\{\s*'")


def text_lines(stream: BinaryIO, name: str) -> Iterator[Line]:
    """The lines of a UTF-8 file, numbered from 1, without a byte-order mark.

    Raises:
        DataError: the bytes are not UTF-8.
    """
    offset = 0
    for number, raw in enumerate(stream, 1):
        content = raw.removeprefix(BOM) if number == 1 else raw
        try:
            line = content.decode("utf-8")
        except UnicodeDecodeError as error:
            bad_index = len(raw) - len(content) + error.start
            hint = next((hint for start, hint in OTHER_KINDS if number == 1 and raw.startswith(start)), None)
            raise DataError(
                f"byte 0x{raw[bad_index]:02x} at offset {offset + bad_index} is not UTF-8",
                where=f"{name}, line {number}",
                fix=hint or "save it as UTF-8, as in: iconv -f ISO-8859-1 -t UTF-8 FILE > NEW_FILE",
            ) from error
        yield number, line
        offset += len(raw)


def json_lines(stream: BinaryIO, name: str) -> Rows:
    """Rows of a file with one JSON object per line, each with its location."""
    return _rows_of_lines(text_lines(stream, name), name)


def _rows_of_lines(lines: Iterable[Line], name: str) -> Rows:
    for number, line in lines:
        if line.strip():
            where = f"{name}, line {number}"
            yield where, _require_object(_parse_json(line, name, number), where)


def json_file(stream: BinaryIO, name: str) -> Rows:
    """Rows of a JSON file: a list of objects, an object that contains one such list, or one object per line."""
    lines = text_lines(stream, name)
    head: list[Line] = []
    starts = ""
    while len(starts) < 2 and (line := next(lines, None)):
        head.append(line)
        starts += line[1].lstrip()[:1]
    if starts == "{{":
        yield from _rows_of_lines(chain(head, lines), name)
        return
    text = "".join(line for _, line in chain(head, lines))
    if text.strip():
        for number, value in enumerate(_row_values(_parse_json(text, name, 1)), 1):
            where = f"{name}, row {number}"
            yield where, _require_object(value, where)


def _row_values(value: Any) -> list[Any]:
    if isinstance(value, dict):
        wrapped_lists = [value[key] for key in WRAPPERS if isinstance(value.get(key), list)]
        return wrapped_lists[0] if len(wrapped_lists) == 1 else [value]
    return value if isinstance(value, list) else [value]


def _require_object(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    kind = {list: "a list", str: "text", type(None): "null"}.get(type(value), "a number or true/false")
    raise DataError(
        f'found {kind}; expected an object, as in {{"prompt": ..., "chosen": ..., "rejected": ...}}',
        where=where,
        fix="write one object for each row" + ("; a file that is one list is named .json" if kind == "a list" else ""),
    )


class _DuplicateNameError(ValueError):
    """An object contains a name twice; the message is the name."""


def _unique_names(items: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(items)
    if len(values) < len(items):
        names = [name for name, _ in items]
        raise _DuplicateNameError(next(name for name in values if names.count(name) > 1))
    return values


def _parse_json(text: str, name: str, first_line: int) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique_names)
    except json.JSONDecodeError as error:
        message = f"not valid JSON at column {error.colno}: {error.msg}"
        line, fix = first_line + error.lineno - 1, "correct the line; one object stands on one line in JSON lines"
    except _DuplicateNameError as error:
        message, line = f"the name '{error}' occurs twice in one object", first_line
        fix = "keep one of the two"
    except RecursionError:
        message, line, fix = "JSON nested too deeply", first_line, "remove what is nested"
    except ValueError as error:
        message, line, fix = f"not valid JSON: {error}", first_line, "correct the line"
    raise DataError(message, where=f"{name}, line {line}", fix=fix)


def tsv_file(stream: BinaryIO, name: str) -> Rows:
    """Rows of a tab-separated file with a header.

    Quotes are text, as in GLUE's files, unless the file was evidently written with quoted cells: a line does not split
    into the header's number of cells, or all quotes are placed as a quoting writer places them.
    """
    lines = [(number, line.rstrip("\r\n")) for number, line in text_lines(stream, name)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        return
    rows = [line.split("\t") for _, line in lines]
    uneven = any(len(row) != len(rows[0]) for row in rows)
    if (uneven and any('"' in line for _, line in lines)) or _are_quoted(rows):
        yield from _delimited((line + "\n" for _, line in lines), name, "\t")
        return
    header = _header(rows[0], f"{name}, line {lines[0][0]}")
    for (number, _), cells in zip(lines[1:], rows[1:], strict=True):
        where = f"{name}, line {number}"
        if len(cells) != len(header):
            raise DataError(
                f"{len(cells)} cells; the header has {len(header)} columns",
                where=where,
                fix="separate the cells by one tab each",
            )
        yield where, dict(zip(header, cells, strict=True))


def _are_quoted(rows: Sequence[Sequence[str]]) -> bool:
    """Whether every cell with a quote is a complete quoted cell, and quoting was necessary or is in all cells."""
    cells = [cell for row in rows for cell in row]
    quoted = [cell for cell in cells if '"' in cell]
    if not quoted or not all(map(QUOTED.fullmatch, quoted)):
        return False
    return len(quoted) == len(cells) or any('"' in cell[1:-1] for cell in quoted)


def csv_file(stream: BinaryIO, name: str) -> Rows:
    """Rows of a comma-separated file with a header; quoted cells may span lines."""
    yield from _delimited((line for _, line in text_lines(stream, name)), name, ",")


def _delimited(lines: Iterable[str], name: str, delimiter: str) -> Rows:
    # The default limit of the csv module, 128 KiB, is shorter than a long conversation.
    csv.field_size_limit(LARGEST_CELL)
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    begin = 1
    header: list[str] | None = None
    try:
        for cells in reader:
            where, begin = f"{name}, line {begin}", reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = _header(cells, where)
            elif len(cells) == len(header):
                yield where, dict(zip(header, cells, strict=True))
            else:
                raise DataError(
                    f"{len(cells)} cells; the header has {len(header)} columns",
                    where=where,
                    fix="put a cell that holds a comma, a tab or a line end in double quotes, and write a quote in it "
                    'as ""',
                )
    except csv.Error as error:
        raise DataError(
            f"not valid CSV: {error}",
            where=f"{name}, line {begin}",
            fix='put cells in double quotes, and write a quote inside one as ""',
        ) from error


def _header(names: list[str], where: str) -> list[str]:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"column '{repeated[0]}' occurs twice in the header", where=where, fix="rename one of the two")
    return names


def typed_cells(row: dict[str, Any], where: str) -> dict[str, Any]:
    """A CSV row with its cells parsed as the type of their columns: list, object, number, true/false or null."""
    return {name: _typed_cell(name, cell, where) for name, cell in row.items()}


def _typed_cell(name: str, cell: str, where: str) -> Any:
    if not cell and EMPTY_IS_NULL.fullmatch(name):
        return None
    if name in JSON_COLUMNS | MESSAGE_COLUMNS and PRINTED_BY_PYTHON.match(cell):
        raise DataError(
            f"column '{name}' holds a list as Python prints it, not JSON",
            where=where,
            fix="write JSON lines instead: frame.to_json('data.jsonl', orient='records', lines=True)",
        )
    if name in JSON_COLUMNS:
        return _json_or_text(cell)
    if name in MESSAGE_COLUMNS and cell.lstrip()[:1] in ("[", "{"):
        value = _json_or_text(cell)
        turns = value if isinstance(value, list) else [value]
        # A response may itself be JSON, as in a function call.
        return value if turns and all(map(is_message, turns)) else cell
    return cell


def _json_or_text(cell: str) -> Any:
    try:
        return json.loads(cell.lower() if cell.lower() in ("true", "false") else cell)
    except (ValueError, RecursionError):
        return cell
