"""constraints.txt pins every package of the tests' environment, also those that others bring."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parent.parent


def pins() -> dict[str, Version]:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    matches = [re.fullmatch(r"([\w.-]+)==(\S+)", line) for line in lines if line and not line.startswith("#")]
    return {str(canonicalize_name(match[1])): Version(match[2]) for match in matches}


def required_packages(name: str, extras: tuple[str, ...], visited: set[tuple[str, tuple[str, ...]]]) -> set[str]:
    """Names of the installed packages that a package needs here, its own aside."""
    if (name, extras) in visited:
        return set()
    visited.add((name, extras))
    names: set[str] = set()
    for text in distribution(name).requires or ():
        requirement = Requirement(text)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        inner = str(canonicalize_name(requirement.name))
        try:
            names |= {inner} | required_packages(inner, tuple(sorted(requirement.extras)), visited)
        except PackageNotFoundError:
            continue  # of an extra that is not installed here
    return names


def test_every_package_is_pinned_once():
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]
    assert len(pins()) == len(packages) > 80
    closure = required_packages("penchant", ("dev", "docs"), set())
    assert len(closure) > 80
    # A CUDA build of torch, which is installed without this file, brings its libraries.
    assert {name for name in closure if not re.match("nvidia|triton|cuda", name)} - pins().keys() == set()
