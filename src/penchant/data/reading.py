"""Reading of preference groups from any source and format, with notes on what was read and what was not."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from penchant.data.conversations import SYSTEM, TEMPLATE_COLUMNS, template_context
from penchant.data.fields import Cell, ReadLog, Row
from penchant.data.files import MAX_BYTES, read_rows, unread_files
from penchant.data.formats import FORMATS, Format, LocatedRow, detect, format_named
from penchant.data.groups import PreferenceGroup, as_messages
from penchant.data.messages import Message, content_of, with_context
from penchant.errors import DataError

AS_MESSAGES = "plain prompt and responses read as messages, because a row has a system text, tools or documents"
"""Event: a plain row has one of these columns; all other rows then become messages too."""


TOOLS_TWICE = (
    "tools are in the system text and in a column, so most chat templates write them twice; to leave the column out: "
    "data.columns={unused: tools}"
)


_TURN = re.compile(r"\n\n(Human|Assistant):")


_ROLES = {"Human": "user", "Assistant": "assistant"}


def add_template_columns(group: PreferenceGroup, row: Row) -> PreferenceGroup:
    """The group with its row's system text as first message, and with its tools, documents and template variables.

    Raises:
        DataError: one of the columns has the wrong type, or there are two different system texts.
    """
    if row.values.keys().isdisjoint(TEMPLATE_COLUMNS):
        return group
    system, row_context = row.find("system"), template_context(row)
    if not row_context.columns() and (system is None or not system.text()):
        return group
    if isinstance(group.prompt, str):
        row.read_log.count(AS_MESSAGES, row.where)
        group = text_as_messages(group)
    assert not isinstance(group.prompt, str)
    prompt = group.prompt if system is None else _prepend_system(system, group.prompt)
    if row_context.tools and prompt and prompt[0]["role"] in SYSTEM and "<tools>" in content_of(prompt[0]):
        row.read_log.count(TOOLS_TWICE, row.where)
    return replace(group, prompt=with_context(prompt, row_context))


def text_as_messages(group: PreferenceGroup) -> PreferenceGroup:
    """The group as messages, where a transcript of Human and Assistant turns (format hh) gives one message per turn."""
    prompt = group.prompt
    turns = _TURN.split(f"\n\n{prompt.strip()}") if isinstance(prompt, str) else []
    if len(turns) < 5 or turns[0] or turns[-1].strip():
        return as_messages(group)
    speaker_turns = zip(turns[1:-2:2], turns[2:-1:2], strict=True)
    messages = tuple(Message(role=_ROLES[speaker], content=text.strip()) for speaker, text in speaker_turns)
    responses = [text.removeprefix(" ") if isinstance(text, str) else text for text in group.candidates]
    return as_messages(replace(group, prompt=messages, candidates=tuple(responses)))


def _prepend_system(cell: Cell, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages with a system column's text as first message; an empty text adds none."""
    if not cell.text():
        return prompt
    if prompt and prompt[0]["role"] in SYSTEM:
        if content_of(prompt[0]) == cell.text():
            return prompt
        raise cell.refusal("no system text where the conversation has a system message", "keep one of the two")
    return (Message(role="system", content=cell.text()), *prompt)


__all__ = ["FORMATS", "GroupSet", "read_groups"]

PLAIN, CONVERSATIONAL = "plain text", "conversational"


@dataclass(frozen=True)
class GroupSet:
    """Groups read from one source.

    Attributes:
        groups: the groups, in the order of the rows.
        format: name of the rows' format.
        source: file, folder or hub id, as the caller named it.
        notes: lines for the user: the detected format, the columns used and not used, and the counted events.
    """

    groups: tuple[PreferenceGroup, ...]
    format: str
    source: str
    notes: tuple[str, ...]


def read_groups(
    source: str | Path,
    *,
    format: str | None = None,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> GroupSet:
    """Preference groups of a source; the format is detected from all rows.

    Args:
        source: a file, a folder of files, or a hub id, as for `penchant.data.files.read_rows`.
        format: a name in `FORMATS`, which turns detection off.
        split: name of a split of the folder or hub data set.
        columns: the source's column name by Penchant's, as in ``{"prompt": "question"}``.
        max_bytes: limit on the bytes of an unpacked file.

    Raises:
        DataError: the source cannot be read; its rows are in several formats or in none; or a row does not have the
            types of its format, with its line and column.
    """
    forced = None if format is None else format_named(format)
    name = Path(source).absolute().name
    rows = list(read_rows(source, split=split, columns=columns, max_bytes=max_bytes))
    present = list(dict.fromkeys(column for _, values in rows for column in values))
    _check_mapped(columns or {}, present, name)
    detected_format = forced or detect(rows, name)
    read_log = ReadLog()
    groups, kind = _convert_rows(detected_format, rows, read_log, name, columns or {})
    account = _summary_note(detected_format, groups, kind, _split_columns(present, columns or {}, read_log))
    unread_names = unread_files(source, split)
    unread_notes = [f"files not read: {', '.join(unread_names)}"] if unread_names else []
    notes = [account, *_origin_notes(rows, name), *unread_notes, *_event_notes(read_log), *_repeated_id_notes(groups)]
    return GroupSet(tuple(groups), detected_format.name, str(source), tuple(f"{name}: {note}" for note in notes))


def _convert_rows(
    format: Format, rows: Sequence[LocatedRow], read_log: ReadLog, name: str, columns: Mapping[str, str]
) -> tuple[list[PreferenceGroup], str]:
    """The groups of the rows with their unread columns, and the kind of all groups: plain text or conversational."""
    located: list[tuple[str, PreferenceGroup]] = []
    sources: list[Mapping[str, Any]] = []
    for number, (where, values) in enumerate(rows):
        row = Row(values, where, number, read_log)
        converted = [(where, add_template_columns(group, row)) for group in format.convert(row)]
        located += converted
        sources += [values] * len(converted)
    if read_log.events[AS_MESSAGES]:
        located = [(where, text_as_messages(group)) for where, group in located]
    groups = [group for _, group in located]
    counts = Counter(map(_kind, groups))
    first_rows = {_kind(group): where for where, group in reversed(located)}
    if not groups:
        raise DataError(
            f"no row can be used: {'; '.join(_event_notes(read_log))}",
            where=name,
            fix="docs/data-formats.md shows what is read",
        )
    if len(counts) > 1:
        kind_counts = "; ".join(f"{kind} ({count}, first: {first_rows[kind]})" for kind, count in counts.items())
        raise DataError(
            f"rows of both kinds: {kind_counts}; expected all plain text or all messages",
            where=name,
            fix="write every row as messages, or put the plain rows in a file of their own",
        )
    # The set of read columns is complete only after the last row.
    read_columns = {"id", *read_log.used_columns}
    extras = ({columns.get(key, key): row[key] for key in row if key not in read_columns} for row in sources)
    with_extras = [replace(group, extra=extra) if extra else group for group, extra in zip(groups, extras, strict=True)]
    return with_extras, next(iter(counts))


def _kind(group: PreferenceGroup) -> str:
    return PLAIN if all(isinstance(text, str) for text in (group.prompt, *group.candidates)) else CONVERSATIONAL


def _check_mapped(columns: Mapping[str, str], present: Iterable[str], name: str) -> None:
    """Check that every mapped column is in some row; the rows are already renamed, so the names are mapped back."""
    source_names = [columns.get(column, column) for column in present]
    for ours, source_name in columns.items():
        if source_name not in source_names:
            near = difflib.get_close_matches(source_name, source_names, 1)
            raise DataError(
                f"no column '{source_name}' to read as '{ours}'; the columns are {', '.join(source_names)}",
                where=name,
                fix=f"data.columns={{{ours}: {near[0] if near else 'COLUMN'}}}",
            )


def _split_columns(
    present: Iterable[str], columns: Mapping[str, str], read_log: ReadLog
) -> tuple[list[str], list[str]]:
    """The columns used and those not used, with the source's name of a mapped column."""
    used_columns: list[str] = []
    unused_columns: list[str] = []
    for column in present:
        if column != "id":
            display_name = f"{column} (from {columns[column]})" if column in columns else column
            (used_columns if column in read_log.used_columns else unused_columns).append(display_name)
    return used_columns, unused_columns


def _summary_note(
    format: Format, groups: Sequence[PreferenceGroup], kind: str, columns: tuple[Sequence[str], Sequence[str]]
) -> str:
    used_columns, unused_columns = columns
    count = f"{len(groups)} group{'s' * (len(groups) > 1)}"
    unused_note = f"; columns not used: {', '.join(unused_columns)}" if unused_columns else ""
    return f"{count}, format {format.name} ({', '.join(used_columns)}; {kind}){unused_note}"


def _origin_notes(rows: Sequence[LocatedRow], name: str) -> list[str]:
    """A note on the files or the split that were read, where these are not the source's name."""
    origins = list(dict.fromkeys(where.rpartition(", ")[0] for where, _ in rows))
    return [] if origins == [name] else [f"read from {', '.join(origins)}"]


def _event_notes(read_log: ReadLog) -> list[str]:
    return [f"{count} x {event} (first: {read_log.first_rows[event]})" for event, count in read_log.events.items()]


def _repeated_id_notes(groups: Sequence[PreferenceGroup]) -> list[str]:
    repeated = [name for name, count in Counter(group.id for group in groups).items() if count > 1]
    return [f"{len(repeated)} ids occur more than once (first: {repeated[0]})"] if repeated else []
