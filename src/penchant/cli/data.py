"""The `penchant data` verbs: check, show, split and convert preference files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from penchant.cli.flags import CANDIDATES, LENGTHS, ROWS, TEMPLATE, ReadingFlags, available_flags
from penchant.cli.output import (
    Count,
    Json,
    Length,
    Seed,
    Source,
    console_for,
    log_notes,
    print_result,
)
from penchant.errors import ConfigError, DataError, locate_errors, rename_options_in_errors

if TYPE_CHECKING:
    from penchant.data.groups import PreferenceGroup

data = App(name="data", help="Inspect and edit a preference file: check, show, split, convert, review, audit, ratings.")


@data.command
def check(
    file: Source,
    *,
    held_out: str | None = None,
    held_out_split: str | None = None,
    tokenizer: str | None = None,
    max_length: Length | None = None,
    flags: Annotated[ReadingFlags, available_flags(*ROWS, *TEMPLATE)] = ReadingFlags(),
    as_json: Json = False,
) -> None:
    """Check a preference file: counts, lengths, duplicates, contradictions, leaks, length bias.

    Parameters
    ----------
    held_out
        Held-out file, to report prompts, candidates and conversations that are in both files.
    held_out_split
        Split of the held-out file, or of FILE where there is no held-out file.
    tokenizer
        Folder or hub id of a tokenizer, to count tokens and check its chat template.
    max_length
        Count rows longer than this many tokens.
    """
    from penchant.data.check_report import render
    from penchant.data.checks import check_groups

    if max_length is not None and tokenizer is None:
        raise ConfigError("--max-length counts tokens, and no tokenizer is given", fix="add: --tokenizer MODEL")
    dataset = flags.load(file)
    log_notes(dataset.notes)
    held_out_groups: Sequence[PreferenceGroup] = ()
    if held_out is not None or held_out_split is not None:
        with rename_options_in_errors({"data.split": "data.held_out_split"}):
            held_out_groups = replace(flags, split=held_out_split).load(held_out or file).groups
    loaded = None
    if tokenizer is not None:
        from penchant.models.loading import load_tokenizer

        loaded = load_tokenizer(tokenizer, chat_template=flags.chat_template)
    report = check_groups(
        dataset.groups,
        held_out=held_out_groups,
        tokenizer=loaded,
        max_length=max_length,
        rendering=flags.rendering,
    )
    print_result(report.to_json(), as_json, render(report))


@data.command
def show(
    file: Source,
    *ids: str,
    first: Count = 3,
    tokenizer: str | None = None,
    flags: Annotated[ReadingFlags, available_flags(*ROWS, *TEMPLATE, *LENGTHS, *CANDIDATES)] = ReadingFlags(),
) -> None:
    """Print groups in readable form.

    Parameters
    ----------
    ids
        Ids of the groups to print; the first few if not given.
    first
        Number of groups to print, where no id is given.
    tokenizer
        Folder or hub id of a tokenizer, to mark token boundaries.
    """
    from penchant.data.show import show_group
    from penchant.data.tokenization import tokenize_groups

    dataset = flags.load(file)
    by_id = {group.id: group for group in dataset.groups}
    absent = [name for name in ids if name not in by_id]
    if absent:
        raise DataError(
            f"no group has the id {absent[0]}", where=file, fix="ids are the file's, or 0-based row numbers"
        )
    groups = [by_id[name] for name in ids] if ids else list(dataset.groups[:first])
    log_notes(dataset.notes)
    console = console_for(False)
    if tokenizer is None:
        for group in groups:
            console.print(show_group(group))
        return
    from penchant.models.loading import load_tokenizer

    loaded = load_tokenizer(tokenizer, chat_template=flags.chat_template)
    tokenized, report = tokenize_groups(
        groups,
        loaded,
        max_length=flags.max_length or sys.maxsize,
        rendering=flags.rendering,
        truncation=flags.truncation,
        empty=flags.empty,
        identical=flags.identical,
    )
    for row in tokenized:
        console.print(show_group(row.group, row, loaded))
    log_notes(report.lines())


@data.command(name="split")
def split_file(
    file: Source,
    *,
    held_out: float = 0.1,
    seed: Seed = 0,
    train_output: Path,
    held_out_output: Path,
    by: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    by_first_turn: Annotated[bool, Parameter(negative="")] = False,
    flags: Annotated[ReadingFlags, available_flags(*ROWS)] = ReadingFlags(),
    as_json: Json = False,
) -> None:
    """Split a file by prompt, so that no prompt is in both parts.

    Parameters
    ----------
    held_out
        Share of the prompts to hold out.
    seed
        Seed of the split, which does not depend on the order of rows.
    train_output
        Output file of the training groups (.jsonl or .jsonl.gz).
    held_out_output
        Output file of the held-out groups.
    by
        Column whose equal values stay in one part, as of a user or a document; repeatable.
    by_first_turn
        Keep conversations with the same first user turn in one part.
    """
    from penchant.data.splitting import column_values, first_user_turns, split_by_prompt
    from penchant.data.writing import renamed_columns, write_groups

    dataset = flags.load(file)
    log_notes(dataset.notes)
    with locate_errors(file):
        together = [column_values(dataset.groups, column) for column in by]
        together += [first_user_turns(dataset.groups)] if by_first_turn else []
        train, out = split_by_prompt(dataset.groups, held_out=held_out, seed=seed, together=together)
    log_notes(renamed_columns(dataset.groups))
    write_groups(train, train_output)
    try:
        write_groups(out, held_out_output)
    except DataError:  # Write both files or none.
        train_output.unlink()
        raise
    lines = f"{train_output}: {len(train)} groups\n{held_out_output}: {len(out)} groups"
    print_result({"train": len(train), "held_out": len(out)}, as_json, lines)


@data.command
def convert(
    file: Source,
    output: Path,
    *,
    to: Literal["penchant", "messages"] = "penchant",
    flags: Annotated[ReadingFlags, available_flags(*ROWS)] = ReadingFlags(),
    as_json: Json = False,
) -> None:
    """Convert a file in any supported format to Penchant's JSON lines, with all its columns.

    Parameters
    ----------
    output
        Output file (.jsonl or .jsonl.gz).
    to
        penchant: texts stay as they are; messages: plain prompts and responses become messages of a user and an
        assistant.
    """
    from penchant.data.rendering import require_messages
    from penchant.data.writing import renamed_columns, write_groups

    dataset = flags.load(file)
    with locate_errors(file):
        groups = require_messages(dataset.groups) if to == "messages" else dataset.groups
    write_groups(groups, output)
    notes = [*dataset.notes, *renamed_columns(groups)]
    print_result(
        {"groups": len(dataset.groups), "format": dataset.format, "notes": notes},
        as_json,
        "\n".join([*notes, f"{output}: {len(dataset.groups)} groups"]),
    )
