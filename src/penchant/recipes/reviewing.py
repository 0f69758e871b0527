"""People's review of a recipe's training data: a queue of groups, and the verdicts on them."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from penchant.config_section import Section
from penchant.data.reading import read_groups
from penchant.data.review import Review
from penchant.errors import DataError
from penchant.recipes.fingerprints import file_fingerprint


class ReviewConfig(Section):
    """Review of the training pairs by people, before anything is trained on them."""

    most: int = Field(50, ge=1, description="number of pairs in the review queue")
    verdicts: str | None = Field(
        None, description="verdict file of `penchant data review`; null: the recipe does not wait for a review"
    )

    def fingerprint(self) -> str | None:
        """A fingerprint of the verdict file for a stage's settings; its name where it is missing, None without one.

        A stage that was done while the file was missing is thus not taken for one that was done with it.
        """
        exists = self.verdicts is not None and Path(self.verdicts).exists()
        return file_fingerprint(str(self.verdicts)) if exists else self.verdicts


def read_verdicts(queue: Path, verdicts: str | None) -> tuple[set[str], dict[str, int]]:
    """The ids of the rejected groups, and the number of groups by verdict.

    Raises:
        DataError: the verdict file is missing, or groups of the queue have no verdict yet.
    """
    if verdicts is None:
        return set(), {"accept": 0, "reject": 0, "waiting": 0}
    fix = f"penchant data review {queue} --verdicts {verdicts}"
    if not Path(verdicts).exists():
        raise DataError("there is no such file", where=verdicts, fix=fix)
    review = Review(read_groups(queue).groups, Path(verdicts))
    if review.waiting:
        raise DataError(f"{len(review.waiting)} pairs wait for a verdict", where=str(queue), fix=fix)
    return {group.id for group in review.groups} - {group.id for group in review.accepted}, review.counts()
