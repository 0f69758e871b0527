"""Mistakes a user can make, each with what was found, where, and what to do about it.

The command line prints such an error as it stands and exits with 2; a library caller catches `PenchantError`.
Every other exception is a defect of ours and exits with 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class PenchantError(Exception):
    """A user's mistake.

    Args:
        what: what was found, and what was expected instead.
        where: the file, row or field, as in ``pairs.jsonl, line 3``.
        fix: what to do; ends with what to type where that is known.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what)

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.fix:
            lines.append(f"  what to do: {self.fix}")
        return "\n".join(lines)


class DataError(PenchantError):
    """A preference file, or a row of it, that cannot be used as it is."""


class ConfigError(PenchantError):
    """A run's configuration that is not valid, or does not fit its data or its output folder."""


class ModelError(PenchantError):
    """A model, tokenizer or chat template that cannot be loaded or does not fit."""


class CheckpointError(PenchantError):
    """A checkpoint that is damaged, or belongs to another run."""


class TrainingError(PenchantError):
    """A run that had to stop: a loss that is not a number, a full disk."""


class DiskFullError(TrainingError):
    """A run that had to stop for want of space: no other run could go on either."""


def reason_of(error: BaseException) -> str:
    """All that an exception says, in one line; its type's name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def require_extra(extra: str, requirement: str) -> Iterator[None]:
    """Around the import of a package that comes with one of Penchant's extras.

    Args:
        what: what needs which package, as in "GGUF files need gguf".

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigError(requirement, fix=f"python -m pip install 'penchant[{extra}]'") from error


@contextmanager
def locate_errors(source: str) -> Iterator[None]:
    """Puts the file's name in front of a `DataError` that knows only its group."""
    try:
        yield
    except DataError as error:
        where = f"{source}, {error.where}" if error.where else source
        raise DataError(error.what, where=where, fix=error.fix) from error


def rename_options(text: str, keys: Mapping[str, str]) -> str:
    """The text with options that it names replaced.

    Args:
        keys: new name by old one; a section's end with a dot, as in ``{"training.": "sft.training."}``.
    """
    # Neither the end of a sentence nor the name of a file, reward.py.
    names = [re.escape(old) + (r"(?=[a-z])(?!(?:csv|jsonl?|py|ya?ml)\b)" if old[-1] == "." else r"\b") for old in keys]
    return re.sub(rf"(?<![\w./-])(?:{'|'.join(names)})", lambda match: keys[match[0]], text) if keys else text


@contextmanager
def rename_options_in_errors(keys: Mapping[str, str]) -> Iterator[None]:
    """Names options in an error as `rename_options` does: a recipe's stage's keys for a run's."""
    try:
        yield
    except PenchantError as error:
        fix = None if error.fix is None else rename_options(error.fix, keys)
        raise type(error)(rename_options(error.what, keys), where=error.where, fix=fix) from error
