"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from penchant.errors import ConfigError


def write_atomically(file: Path, text: str) -> None:
    """Write a whole UTF-8 file or nothing, making its folder where needed; lone surrogates become ``\\udXXX``.

    Raises:
        ConfigError: the file cannot be written.
    """
    aside = file.with_name(f".writing-{file.name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, file)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        raise ConfigError(
            f"cannot be written: {error.strerror}", where=str(file), fix="name a file in a folder you can write to"
        ) from error
