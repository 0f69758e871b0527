"""A progress bar where there is a terminal."""

from __future__ import annotations

import sys
from types import TracebackType


class Progress:
    """A bar with rate and time left on a terminal's standard error; nothing elsewhere."""

    def __init__(self, title: str, total: int, unit: str, *, start: int = 0, visible: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(file=sys.stderr),
            disable=not (visible and sys.stderr.isatty()),
            transient=True,
        )
        self._task = self._bar.add_task(title, total=total, completed=start, rate="", note="")
        self._unit = unit

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, amount: int, note: str = "") -> None:
        """Advance the bar by `amount`, and show a note beside it."""
        speed = self._bar.tasks[0].speed
        rate = f"{speed:.1f} {self._unit}/s" if speed else ""
        self._bar.update(self._task, advance=amount, rate=rate, note=note)
