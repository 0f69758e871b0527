"""Functions of the user's, named in a configuration as ``package.module:name`` or ``file.py:name``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penchant.errors import ConfigError, PenchantError


@dataclass(frozen=True)
class UserFunction:
    """A function that was found.

    Attributes:
        where: as the configuration names it.
        digest: a hash of the file it stands in.
    """

    call: Callable[..., Any]
    where: str
    digest: str


def import_function(where: str, setting: str) -> UserFunction:
    """Import ``package.module:name`` or ``file.py:name``.

    Args:
        setting: the configuration's name for it, as in ``reward.function``; for errors.

    Raises:
        ConfigError: it is not there, cannot be imported, or is no function.
    """
    module_name, colon, attribute = where.rpartition(":")
    example = "as in my_file.py:my_function or package.module:function"
    if not colon or not module_name or not attribute:
        raise ConfigError(f"{setting} is {where!r}, expected a module and a name", fix=example)
    try:
        module = _module(module_name, setting)
    except PenchantError:
        raise
    except Exception as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(f"{setting} {where} cannot be imported: {found}", fix="correct it") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        kind = "has no such name" if function is None else "is no function"
        raise ConfigError(f"{setting} {where}: {attribute} {kind}", fix=example)
    # The whole file: what the function calls may stand beside it.
    file = getattr(module, "__file__", None)
    source = Path(file).read_bytes() if file else where.encode()
    return UserFunction(function, where, hashlib.blake2b(source, digest_size=8).hexdigest())


def shown(value: object) -> str:
    """A value, or its start where it is long, for an error."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _module(name: str, setting: str) -> Any:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"{setting}: there is no such file", where=name, fix="name the .py file that holds it")
    spec = importlib.util.spec_from_file_location(f"penchant_function_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
