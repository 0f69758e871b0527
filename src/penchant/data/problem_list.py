"""Problems of groups during tokenization: counted where such groups may be dropped, otherwise one error for all."""

from __future__ import annotations

from dataclasses import dataclass, field

from penchant.data.tokenized import TokenizationReport
from penchant.errors import DataError


@dataclass(frozen=True)
class Problem:
    """The reason why one group cannot be used.

    Attributes:
        group: id of the group.
        message: text of the error.
        fix: how to correct the data or the configuration; None where there is no way.
        tokens: length of the group's longest sequence, where its length is the problem.
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
        dropping: names of events whose groups are dropped.
        keeping: names of events whose groups are used nevertheless.
        problems: problems that are errors, by event.
    """

    report: TokenizationReport
    dropping: frozenset[str]
    keeping: frozenset[str]
    problems: dict[str, list[Problem]] = field(default_factory=dict)

    def add(self, event: str, problem: Problem) -> None:
        """Count the group as dropped where the event's policy allows it; otherwise add it to the errors."""
        if event in self.dropping:
            self.report.note(event, problem.group)
        else:
            self.problems.setdefault(event, []).append(problem)

    def raise_first(self) -> None:
        """Raise one error for all problems of the first event, with its longest group (else its first) as example.

        Raises:
            DataError: there is a problem.
        """
        for problems in self.problems.values():
            worst = max(problems, key=lambda problem: problem.tokens)
            ids = ", ".join(problem.group for problem in problems[:5]) + (", ..." if len(problems) > 5 else "")
            count = f"{len(problems)} of {self.report.groups} groups like this: {ids}"
            raise DataError(f"{worst.message} ({count})", where=f"group {worst.group}", fix=worst.fix)
