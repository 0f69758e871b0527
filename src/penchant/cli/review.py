"""The `penchant data` verbs for human judgements: review, audit, ratings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from penchant.cli.flags import ROWS, ReadingFlags, available_flags
from penchant.cli.output import Json, Source, console_for, log_notes, print_result

if TYPE_CHECKING:
    from rich.console import Console

    from penchant.data.review import Review
    from penchant.evaluation.style import StyleLeak


def review(
    file: Source,
    *,
    verdicts: Path,
    accepted: Path | None = None,
    flags: Annotated[ReadingFlags, available_flags(*ROWS)] = ReadingFlags(),
    as_json: Json = False,
) -> None:
    """Accept or reject groups one by one; every verdict is saved at once, and re-running resumes where it stopped.

    Each answer is a line: a accepts, r rejects, s skips the group, u undoes the latest verdict, q quits.

    Parameters
    ----------
    verdicts
        File of verdicts in JSON lines; created if missing.
    accepted
        Output file of the accepted groups, written at the end (.jsonl or .jsonl.gz).
    """
    from penchant.data.review import Review
    from penchant.data.writing import write_groups

    dataset = flags.load(file)
    log_notes(dataset.notes)
    session = Review(dataset.groups, verdicts)
    if session.stale:
        log_notes([f"{session.stale} groups have changed since their verdicts, and need new ones"])
    _ask(session, console_for(as_json))
    if accepted is not None:
        write_groups(session.accepted, accepted)
    counts = session.counts()
    print_result(counts, as_json, ", ".join(f"{name} {n}" for name, n in counts.items()))


def _ask(session: Review, console: Console) -> None:
    from penchant.data.show import show_group

    waiting = session.waiting
    while waiting:
        group = waiting[0]
        console.print(show_group(group))
        console.print(f"{len(waiting)} to go. a accept, r reject, s skip, u undo, q stop:", markup=False)
        line = sys.stdin.readline()
        match line.strip().lower()[:1]:
            case "a":
                session.give(waiting.pop(0), "accept")
            case "r":
                session.give(waiting.pop(0), "reject")
            case "s":
                waiting.pop(0)
            case "u":
                group_undone = session.undo()
                if group_undone is None:
                    console.print("there is no verdict to undo", markup=False)
                else:
                    waiting = [group_undone, *(group for group in waiting if group.id != group_undone.id)]
            case "q":
                return
            case _ if not line:
                return  # The end of the input.
            case _:
                console.print(f"{line.strip()!r} is none of a, r, s, u, q", markup=False)


def audit(
    file: Source,
    *,
    flags: Annotated[ReadingFlags, available_flags(*ROWS)] = ReadingFlags(),
    as_json: Json = False,
) -> None:
    """Measure how well words alone, or length alone, predict the preferred answer: shortcuts for a model."""
    from penchant.evaluation.style import style_leak

    dataset = flags.load(file)
    log_notes(dataset.notes)
    leak = style_leak(dataset.groups)
    print_result(leak.to_json(), as_json, _leak(leak))


def ratings(folder: Path, *, as_json: Json = False) -> None:
    """Report how often people preferred each of two models, from a completed rating sheet.

    Parameters
    ----------
    folder
        Folder with key.csv and sheet.csv, whose column better holds a, b or tie in the rated rows.
    """
    from penchant.evaluation.report import show
    from penchant.evaluation.statistics import bootstrap_mean
    from penchant.recipes.dialogue.rating_sheet import read_sheet

    sheet = read_sheet(folder)
    shares = {name: bootstrap_mean(points, range(len(points))).to_json() for name, points in sheet.items()}
    print_result(shares, as_json, "\n".join(f"{name}: {show(share)} of {share['n']}" for name, share in shares.items()))


def _leak(leak: StyleLeak) -> str:
    from penchant.evaluation.report import show

    return "\n".join(
        (
            f"{leak.pairs} pairs of {leak.prompts} prompts",
            f"words alone are right in   {show(leak.words.to_json())}",
            f"the better one is longer in {show(leak.longer.to_json())}",
            f"words of the better answers: {', '.join(leak.of_better)}",
            f"words of the worse answers:  {', '.join(leak.of_worse)}",
        )
    )
