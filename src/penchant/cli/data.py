"""The `penchant data` verbs: look into a preference file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from penchant.cli.flags import (
    CandidateFlags,
    LengthFlags,
    RowFlags,
    TemplateFlags,
    TurnFlags,
)
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

data = App(name="data", help="Look into a preference file: check, show, split, convert, review, audit, ratings.")


@data.command
def check(
    file: Source,
    *,
    held_out: str | None = None,
    held_out_split: str | None = None,
    tokenizer: str | None = None,
    max_length: Length | None = None,
    rows: RowFlags = RowFlags(),
    template: TemplateFlags = TemplateFlags(),
    as_json: Json = False,
) -> None:
    """Check a preference file: counts, lengths, duplicates, contradictions, leaks, length bias.

    Parameters
    ----------
    held_out
        Another one, to find prompts, candidates and conversations that are in both.
    held_out_split
        Split of the held-out file, or of FILE where none is named.
    tokenizer
        Folder or hub id, to count in tokens and check its chat template.
    max_length
        Count rows longer than this many tokens.
    """
    from penchant.data.check_report import render
    from penchant.data.checks import check_groups

    if max_length is not None and tokenizer is None:
        raise ConfigError("--max-length counts tokens, and no tokenizer is named", fix="add: --tokenizer MODEL")
    dataset = rows.load(file)
    log_notes(dataset.notes)
    held_out_groups: Sequence[PreferenceGroup] = ()
    if held_out is not None or held_out_split is not None:
        with rename_options_in_errors({"data.split": "data.held_out_split"}):
            held_out_groups = replace(rows, split=held_out_split).load(held_out or file).groups
    loaded = None
    if tokenizer is not None:
        from penchant.models.loading import load_tokenizer

        loaded = load_tokenizer(tokenizer, chat_template=template.chat_template)
    report = check_groups(
        dataset.groups,
        held_out=held_out_groups,
        tokenizer=loaded,
        max_length=max_length,
        rendering=template.rendering,
    )
    print_result(report.to_json(), as_json, render(report))


@data.command
def show(
    file: Source,
    *ids: str,
    first: Count = 3,
    tokenizer: str | None = None,
    rows: RowFlags = RowFlags(),
    template: TemplateFlags = TemplateFlags(),
    lengths: LengthFlags = LengthFlags(),
    candidates: CandidateFlags = CandidateFlags(),
    turns: TurnFlags = TurnFlags(),
) -> None:
    """Print groups as a person reads them.

    Parameters
    ----------
    ids
        Which groups; the first few if none is named.
    first
        How many, where no id is named.
    tokenizer
        Folder or hub id, to mark token boundaries.
    """
    from penchant.data.show import show_group
    from penchant.data.tokenization import tokenize_groups

    dataset = rows.load(file)
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

    loaded = load_tokenizer(tokenizer, chat_template=template.chat_template)
    tokenized, report = tokenize_groups(
        groups,
        loaded,
        max_length=lengths.max_length or sys.maxsize,
        rendering=replace(template.rendering, learn=turns.learn, refused=lengths.refused),
        truncation=lengths.truncation,
        empty=candidates.empty,
        identical=candidates.identical,
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
    rows: RowFlags = RowFlags(),
    as_json: Json = False,
) -> None:
    """Split a file by prompt, never by row: no prompt is on both sides.

    Parameters
    ----------
    held_out
        Share of the prompts to hold out.
    seed
        The same seed and prompts give the same split, in any order of rows.
    train_output
        Where the training groups are written (.jsonl or .jsonl.gz).
    held_out_output
        Where the held-out groups are written.
    by
        A column: rows with one value stay together too, as of one user or document; may be repeated.
    by_first_turn
        Conversations that begin with the same user's turn stay together too.
    """
    from penchant.data.splitting import column_values, first_user_turns, split_by_prompt
    from penchant.data.writing import renamed_columns, write_groups

    dataset = rows.load(file)
    log_notes(dataset.notes)
    with locate_errors(file):
        together = [column_values(dataset.groups, column) for column in by]
        together += [first_user_turns(dataset.groups)] if by_first_turn else []
        train, out = split_by_prompt(dataset.groups, held_out=held_out, seed=seed, together=together)
    log_notes(renamed_columns(dataset.groups))
    write_groups(train, train_output)
    try:
        write_groups(out, held_out_output)
    except DataError:  # Both files or none.
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
    rows: RowFlags = RowFlags(),
    as_json: Json = False,
) -> None:
    """Write any format we read as our own JSON lines, with all other columns.

    Parameters
    ----------
    output
        Where to write (.jsonl or .jsonl.gz).
    to
        penchant: texts stay as they are; messages: bare prompts become a user's message, responses an assistant's.
    """
    from penchant.data.as_chat import require_messages
    from penchant.data.writing import renamed_columns, write_groups

    dataset = rows.load(file)
    with locate_errors(file):
        groups = require_messages(dataset.groups) if to == "messages" else dataset.groups
    write_groups(groups, output)
    notes = [*dataset.notes, *renamed_columns(groups)]
    print_result(
        {"groups": len(dataset.groups), "format": dataset.format, "notes": notes},
        as_json,
        "\n".join([*notes, f"{output}: {len(dataset.groups)} groups"]),
    )
