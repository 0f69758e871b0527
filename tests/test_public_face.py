"""The public names of `import penchant`."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import penchant

VALUES = {"OBJECTIVES"}
"""Public names that are no class or function; a value cannot carry a docstring of its own."""


@pytest.mark.parametrize("name", penchant.__all__)
def test_name_resolves_and_is_documented(name):
    value = getattr(penchant, name)
    if name in VALUES:
        assert value
        return
    assert inspect.isclass(value) or inspect.isfunction(value)
    assert value.__name__ == name
    # A dataclass without a docstring gets its signature for one.
    assert inspect.getdoc(value)
    assert not value.__doc__.startswith(f"{name}(")


def test_names_are_listed_once_with_a_module():
    assert len(set(penchant.__all__)) == len(penchant.__all__)
    assert set(penchant.__all__) == set(penchant.lazy_modules(penchant.__file__))


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="module 'penchant' has no attribute 'tarin'"):
        _ = penchant.tarin
    assert not hasattr(penchant, "no_such_name")


def test_version_is_the_installed_package():
    from importlib.metadata import version

    assert penchant.__version__ == version("penchant")


def test_import_is_light():
    code = "import sys, penchant; print(*({'torch', 'transformers', 'pydantic'} & sys.modules.keys()))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert process.stdout.split() == []
