"""Errors that a user can correct; each says what is wrong, where, and how to fix it.

The command line prints such an error without a traceback and exits with 2; a library caller catches `PenchantError`.
Every other exception is a defect of Penchant and exits with 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class PenchantError(Exception):
    """Base class of the errors that a user can correct.

    Args:
        what: the problem: the value that was read, and the value that was expected.
        where: the file, row or field, as in ``pairs.jsonl, line 3``.
        fix: how to correct it; ends with the text to type where there is one.
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
    """A preference file, or one of its rows, cannot be used as it is."""


class ConfigError(PenchantError):
    """A run's configuration is not valid, or does not fit its data or its output folder."""


class ModelError(PenchantError):
    """A model, tokenizer or chat template cannot be loaded, or does not fit the run."""


class CheckpointError(PenchantError):
    """A checkpoint is damaged, or belongs to another run."""


class TrainingError(PenchantError):
    """A run had to stop: its loss is not a number, or the disk is full."""


class DiskFullError(TrainingError):
    """A run had to stop because the disk is full, so no other run can continue either."""


def reason_of(error: BaseException) -> str:
    """An exception's message on one line, or the name of its type where the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def require_extra(extra: str, requirement: str) -> Iterator[None]:
    """Context for importing a package that one of Penchant's extras installs.

    Args:
        extra: name of the extra, as in ``gguf``.
        requirement: the message: which feature needs which package, as in "GGUF files need gguf".

    Raises:
        ConfigError: the package cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigError(requirement, fix=f"python -m pip install 'penchant[{extra}]'") from error


@contextmanager
def locate_errors(source: str) -> Iterator[None]:
    """Context that puts the source's name in front of the location of every `DataError`.

    Args:
        source: name of the file or data set.
    """
    try:
        yield
    except DataError as error:
        where = f"{source}, {error.where}" if error.where else source
        raise DataError(error.what, where=where, fix=error.fix) from error


def rename_options(text: str, keys: Mapping[str, str]) -> str:
    """The text with the configuration options that it mentions renamed.

    Args:
        text: an error's message or fix.
        keys: new name of each option; names of sections end with a dot, as in ``{"training.": "sft.training."}``.
    """
    # A section's name must not match at the end of a sentence or in a file's name such as reward.py.
    names = [re.escape(old) + (r"(?=[a-z])(?!(?:csv|jsonl?|py|ya?ml)\b)" if old[-1] == "." else r"\b") for old in keys]
    return re.sub(rf"(?<![\w./-])(?:{'|'.join(names)})", lambda match: keys[match[0]], text) if keys else text


@contextmanager
def rename_options_in_errors(keys: Mapping[str, str]) -> Iterator[None]:
    """Context that applies `rename_options` to errors, so that a recipe's user reads the recipe's own keys.

    Args:
        keys: new name of each option, as for `rename_options`.
    """
    try:
        yield
    except PenchantError as error:
        fix = None if error.fix is None else rename_options(error.fix, keys)
        raise type(error)(rename_options(error.what, keys), where=error.where, fix=fix) from error
