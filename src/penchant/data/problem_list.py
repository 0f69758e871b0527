"""Problems of groups while they are tokenized: counted where such groups may be dropped, one error where not."""

from __future__ import annotations

from dataclasses import dataclass, field

from penchant.data.tokenized import TokenizationReport
from penchant.errors import DataError


@dataclass(frozen=True)
class Problem:
    """Why one group cannot be used.

    Attributes:
        group: its id.
        message: the error's text.
        fix: what to do, if anything.
        tokens: of the group's longest sequence, where its length is the problem.
    """

    group: str
    message: str
    fix: str | None
    tokens: int = 0


@dataclass
class ProblemList:
    """The problems of all groups.

    Attributes:
        report: counts what is dropped.
        dropping: events whose groups are dropped.
        keeping: events whose groups are used all the same.
        problems: the others, by event.
    """

    report: TokenizationReport
    dropping: frozenset[str]
    keeping: frozenset[str]
    problems: dict[str, list[Problem]] = field(default_factory=dict)

    def add(self, event: str, problem: Problem) -> None:
        """Count the group as dropped where the event's policy says so; otherwise it is part of the error."""
        if event in self.dropping:
            self.report.note(event, problem.group)
        else:
            self.problems.setdefault(event, []).append(problem)

    def raise_first(self) -> None:
        """Raise the first kind of problem met, with the longest of its groups (else the first) as the example.

        Raises:
            DataError: there is a problem.
        """
        for problems in self.problems.values():
            worst = max(problems, key=lambda problem: problem.tokens)
            ids = ", ".join(problem.group for problem in problems[:5]) + (", ..." if len(problems) > 5 else "")
            count = f"{len(problems)} of {self.report.groups} groups like this: {ids}"
            raise DataError(f"{worst.message} ({count})", where=f"group {worst.group}", fix=worst.fix)
