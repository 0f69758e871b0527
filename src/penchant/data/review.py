"""Groups waiting for a person's word: one verdict each, stored at once, taken back on request, gone on with later.

The verdicts' file is JSON lines: {"id", "verdict": "accept" or "reject", "of": fingerprint of the group's text}. A
group whose text has changed since is asked about again.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from penchant.data.groups import PreferenceGroup, as_text
from penchant.errors import DataError

Verdict = Literal["accept", "reject"]
VERDICTS: tuple[Verdict, ...] = ("accept", "reject")


class Review:
    """Verdicts of some groups.

    Args:
        groups: in the order they are asked about; ids must differ.
        file: where verdicts are kept; need not be there yet.

    Attributes:
        stale: verdicts of groups that have changed since; they no longer count.

    Raises:
        DataError: two groups of one id, or the file holds something else.
    """

    def __init__(self, groups: Sequence[PreferenceGroup], file: Path) -> None:
        repeated = [name for name, times in Counter(group.id for group in groups).items() if times > 1]
        if repeated:
            raise DataError(
                f"{len(repeated)} ids occur twice, the first is '{repeated[0]}'", fix="give each row its id"
            )
        self.groups, self.file = groups, file
        self._of = {group.id: _fingerprint(group) for group in groups}
        stored = _read_verdicts(file)
        self.stale = sum(
            name in self._of and fingerprint != self._of[name] for name, (_, fingerprint) in stored.items()
        )
        # A group that is not among these keeps its verdict in the file.
        self._others = {name: entry for name, entry in stored.items() if name not in self._of}
        self._verdicts = {
            name: verdict for name, (verdict, fingerprint) in stored.items() if self._of.get(name) == fingerprint
        }

    @property
    def waiting(self) -> list[PreferenceGroup]:
        """Those without a verdict, in order."""
        return [group for group in self.groups if group.id not in self._verdicts]

    @property
    def accepted(self) -> list[PreferenceGroup]:
        """In the order of the groups."""
        return [group for group in self.groups if self._verdicts.get(group.id) == "accept"]

    def counts(self) -> dict[str, int]:
        """Groups by verdict, and how many wait."""
        verdict_counts = Counter(self._verdicts.values())
        return {"accept": verdict_counts["accept"], "reject": verdict_counts["reject"], "waiting": len(self.waiting)}

    def give(self, group: PreferenceGroup, verdict: Verdict) -> None:
        """Store it: when this returns, it is on the disk."""
        # The latest comes last, so that it is the one taken back, also after a restart.
        self._verdicts.pop(group.id, None)
        self._verdicts[group.id] = verdict
        self._write()

    def undo(self) -> PreferenceGroup | None:
        """Take the latest verdict back; returns its group, which waits again, or None where there is none."""
        if not self._verdicts:
            return None
        name, _ = self._verdicts.popitem()
        self._write()
        return next(group for group in self.groups if group.id == name)

    def _write(self) -> None:
        rows = [
            {"id": name, "verdict": verdict, "of": fingerprint} for name, (verdict, fingerprint) in self._others.items()
        ]
        rows += [{"id": name, "verdict": verdict, "of": self._of[name]} for name, verdict in self._verdicts.items()]
        temporary = self.file.with_name(f".{self.file.name}.tmp")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)  # It may be a link to another file.
            with temporary.open("x", encoding="utf-8") as stream:
                stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, self.file)
        except OSError as error:
            raise DataError(
                f"the verdict cannot be stored: {error.strerror}", where=str(self.file), fix="name another place"
            ) from error


def _read_verdicts(file: Path) -> dict[str, tuple[Verdict, str]]:
    """By id, in the order they were given."""
    if not file.exists():
        return {}
    verdicts: dict[str, tuple[Verdict, str]] = {}
    # No splitlines, which also splits at U+2028: an id may hold one.
    *lines, last = file.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate([*lines, last] if last else lines, 1):
        try:
            row = json.loads(line)
            name, verdict, fingerprint = row["id"], row["verdict"], row["of"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                "no verdict",
                where=f"{file}, line {number}",
                fix='a line is {"id": ..., "verdict": "accept", "of": ...}',
            ) from error
        if verdict not in VERDICTS:
            raise DataError(
                f"the verdict is {verdict!r}; expected {' or '.join(VERDICTS)}", where=f"{file}, line {number}"
            )
        verdicts[name] = (verdict, fingerprint)
    return verdicts


def _fingerprint(group: PreferenceGroup) -> str:
    texts = [as_text(text) for text in (group.prompt, *group.candidates)]
    return blake2b(json.dumps([texts, group.pairs]).encode(), digest_size=8).hexdigest()
