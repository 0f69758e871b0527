"""How a recipe waits for people: a queue of groups, and their verdicts."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from penchant.config_section import Section
from penchant.data.reading import read_groups
from penchant.data.review import Review
from penchant.errors import DataError
from penchant.recipes.fingerprints import fingerprint


class ReviewConfig(Section):
    """What people read before anything is trained on it."""

    most: int = Field(50, ge=1, description="pairs in the queue")
    verdicts: str | None = Field(None, description="file of `penchant data review`; null: nobody is waited for")

    def fingerprint(self) -> str | None:
        """Of the verdicts, for a stage's settings. A file that is not there is told from none named: a stage that was
        done without it does not count as done with it."""
        there = self.verdicts is not None and Path(self.verdicts).exists()
        return fingerprint(str(self.verdicts)) if there else self.verdicts


def read_verdicts(queue: Path, verdicts: str | None) -> tuple[set[str], dict[str, int]]:
    """The ids that were rejected, and how many had which verdict.

    Raises:
        DataError: the verdicts' file is not there, or groups of the queue wait for a verdict.
    """
    if verdicts is None:
        return set(), {"accept": 0, "reject": 0, "waiting": 0}
    fix = f"penchant data review {queue} --verdicts {verdicts}"
    if not Path(verdicts).exists():
        raise DataError("there is no such file", where=verdicts, fix=fix)
    found = Review(read_groups(queue).groups, Path(verdicts))
    if found.waiting:
        raise DataError(f"{len(found.waiting)} pairs wait for a verdict", where=str(queue), fix=fix)
    return {group.id for group in found.groups} - {group.id for group in found.accepted}, found.counts()
