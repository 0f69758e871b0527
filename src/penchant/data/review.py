"""Review of groups by a person: one verdict per group, stored at once, which can be undone and continued later.

The file of verdicts is JSON lines: {"id", "verdict": "accept" or "reject", "of": fingerprint of the group's text}. A
group whose text has changed since its verdict needs a new one.
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
    """The verdicts on some groups, and the file that stores them.

    Args:
        groups: the groups in the order of the review; their ids must differ.
        file: file of verdicts; it is created with the first one.

    Attributes:
        stale: number of stored verdicts that no longer count, because their groups have changed.

    Raises:
        DataError: two groups have the same id, or the file does not contain verdicts.
    """

    def __init__(self, groups: Sequence[PreferenceGroup], file: Path) -> None:
        repeated = [name for name, times in Counter(group.id for group in groups).items() if times > 1]
        if repeated:
            raise DataError(
                f"{len(repeated)} ids occur twice, the first is '{repeated[0]}'", fix="give each row its id"
            )
        self.groups, self.file = groups, file
        self._fingerprints = {group.id: _fingerprint(group) for group in groups}
        entries = _read_verdicts(file)
        self.stale = sum(
            name in self._fingerprints and fingerprint != self._fingerprints[name]
            for name, (_, fingerprint) in entries.items()
        )
        # Verdicts on groups that are not reviewed here remain in the file.
        self._foreign_entries = {name: entry for name, entry in entries.items() if name not in self._fingerprints}
        self._verdicts = {
            name: verdict
            for name, (verdict, fingerprint) in entries.items()
            if self._fingerprints.get(name) == fingerprint
        }

    @property
    def waiting(self) -> list[PreferenceGroup]:
        """The groups without a verdict, in order."""
        return [group for group in self.groups if group.id not in self._verdicts]

    @property
    def accepted(self) -> list[PreferenceGroup]:
        """The accepted groups, in order."""
        return [group for group in self.groups if self._verdicts.get(group.id) == "accept"]

    def counts(self) -> dict[str, int]:
        """Number of groups by verdict, and of those without one."""
        verdict_counts = Counter(self._verdicts.values())
        return {"accept": verdict_counts["accept"], "reject": verdict_counts["reject"], "waiting": len(self.waiting)}

    def give(self, group: PreferenceGroup, verdict: Verdict) -> None:
        """Store a verdict; it is on the disk when this returns."""
        # The latest verdict is last in the file, so that `undo` removes it also after a restart.
        self._verdicts.pop(group.id, None)
        self._verdicts[group.id] = verdict
        self._write()

    def undo(self) -> PreferenceGroup | None:
        """Remove the latest verdict; the result is its group, or None where there is no verdict."""
        if not self._verdicts:
            return None
        name, _ = self._verdicts.popitem()
        self._write()
        return next(group for group in self.groups if group.id == name)

    def _write(self) -> None:
        entries = dict(self._foreign_entries)
        entries |= {name: (verdict, self._fingerprints[name]) for name, verdict in self._verdicts.items()}
        rows = [{"id": name, "verdict": verdict, "of": fingerprint} for name, (verdict, fingerprint) in entries.items()]
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
    """Verdict and fingerprint by the group's id, in the order of the verdicts."""
    if not file.exists():
        return {}
    verdicts: dict[str, tuple[Verdict, str]] = {}
    # Not `splitlines`, which also splits at U+2028: an id may contain it.
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
