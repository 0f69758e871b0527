"""Conversion between the key `objective` of a configuration and the objective; also for user-defined objectives.

A user-defined objective is one file: a class with the protocol of `penchant.objectives.base`. It is loaded by its path
(``objective: {name: mine, file: mine.py}``) or, installed, through the entry point group ``penchant.objectives``.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from penchant.config.section import explain, nearest
from penchant.errors import ConfigError
from penchant.objectives import DPO, OBJECTIVES, Objective, Part, WeightedSum
from penchant.storage.fingerprints import hash_bytes

GROUP = "penchant.objectives"

STAND_IN: Objective = DPO()
"""Stand-in for an objective whose code must not run; most objectives need the same inputs."""
_CODE_RUNS: ContextVar[bool] = ContextVar("code_runs", default=True)


@contextmanager
def without_code() -> Iterator[None]:
    """Context in which no code that a configuration names runs, for commands that neither train nor score."""
    token = _CODE_RUNS.set(False)
    try:
        yield
    finally:
        _CODE_RUNS.reset(token)


def code_runs() -> bool:
    """Whether code that a configuration names may run."""
    return _CODE_RUNS.get()


def names_code(values: Mapping[str, Any]) -> bool:
    """Whether the `objective` of a configuration names user-defined code."""
    if values.get("name") == WeightedSum.name:
        return any(isinstance(part, dict) and names_code(part) for part in values.get("parts") or ())
    return values.get("file") is not None or values.get("name") not in OBJECTIVES


def build_objective(values: dict[str, Any]) -> Objective:
    """The objective that a configuration describes.

    Raises:
        ConfigError: unknown name or hyper-parameter (with the nearest), wrong type, value out of range; a file or
            plug-in that cannot be imported or does not follow the protocol.

    Inside `without_code` a user-defined objective is `STAND_IN`.
    """
    parameters = dict(values)
    name, file = parameters.pop("name", None), parameters.pop("file", None)
    if file is not None:
        path = _python_file(str(file))
        if not code_runs():
            return STAND_IN
        method = _from_file(path, name)
    elif isinstance(name, str) and name in OBJECTIVES:
        method = OBJECTIVES[name]
    else:
        point = _entry_point(name)
        if not code_runs():
            return STAND_IN
        method = _from_entry_point(point)
    if method is WeightedSum:
        return _weighted_sum(parameters)
    names = {field.name for field in dataclasses.fields(method)}
    for key in parameters:
        if key not in names:
            raise ConfigError(
                f"objective.{key}: {name} has no such hyper-parameter{nearest(key, names)}",
                fix=f"it has: {', '.join(sorted(names)) or 'none'}",
            )
    try:
        objective = TypeAdapter(method).validate_python(parameters)
    except ValidationError as error:
        problems = "; ".join(explain({**p, "loc": ("objective", *p["loc"])}) for p in error.errors())
        raise ConfigError(problems) from error
    for field, value in vars(objective).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"objective.{field} is {value}, expected a finite number")
    return objective


def describe_objective(objective: Objective, settings: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Name and hyper-parameters of an objective, in the form of a configuration.

    Args:
        settings: the configuration it was built from, for its file and for its name as a plug-in.
    """
    if not code_runs() and names_code(settings):
        return dict(settings)
    name = settings.get("name", objective.name)
    if isinstance(objective, WeightedSum):
        described = []
        for i, part in enumerate(objective.parts):
            values = settings["parts"][i] if "parts" in settings else {}
            described.append({"weight": part.weight, **describe_objective(part.objective, values)})
        return {"name": name, "parts": described}
    fields = {field.name: getattr(objective, field.name) for field in dataclasses.fields(objective)}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}
    file = {} if settings.get("file") is None else {"file": str(settings["file"])}
    return {"name": name, **plain, **file}


def method_files(settings: Mapping[str, Any]) -> dict[str, str]:
    """Hash of the content by path, for the user's files from which an objective is built.

    Args:
        settings: the `objective` of a checked configuration.
    """
    if settings.get("file") is not None:
        return {str(settings["file"]): hash_bytes(Path(settings["file"]).read_bytes(), 8)}
    parts = settings.get("parts", ()) if settings.get("name") == WeightedSum.name else ()
    return {file: content for part in parts for file, content in method_files(part).items()}


def _weighted_sum(parameters: dict[str, Any]) -> WeightedSum:
    parts = parameters.get("parts")
    example = "objective: {name: weighted_sum, parts: [{name: dpo, weight: 1}, {name: sft, weight: 0.2}]}"
    if not parameters:
        return WeightedSum()
    if set(parameters) != {"parts"} or not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ConfigError("objective: weighted_sum takes a list `parts`, and nothing else", fix=f"as in {example}")
    weighted_parts = []
    for i, part in enumerate(parts):
        values = dict(part)
        weight = values.pop("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise ConfigError(f"objective.parts.{i}.weight is {weight!r}, expected a number", fix=f"as in {example}")
        weighted_parts.append(Part(float(weight), build_objective(values)))
    try:
        return WeightedSum(tuple(weighted_parts))
    except ValueError as error:
        raise ConfigError(f"objective: {error}", fix=f"as in {example}") from error


def _entry_point(name: object) -> EntryPoint:
    """The entry point of the installed plug-in of this name, without importing it."""
    installed = {point.name: point for point in entry_points(group=GROUP)}
    if not isinstance(name, str) or name not in installed:
        problem = "objective has no name" if name is None else f"objective.name: {name!r} is no objective"
        names = [*OBJECTIVES, *installed]
        raise ConfigError(f"{problem}{nearest(str(name), names)}", fix=f"one of: {', '.join(names)}")
    return installed[name]


def _from_entry_point(point: EntryPoint) -> type[Objective]:
    try:
        loaded = point.load()
    except (Exception, SystemExit) as error:
        raise _import_error(f"the plug-in {point.name} ({point.value})", error) from error
    return _checked_class(loaded, point.name, point.value)


def _python_file(file: str) -> Path:
    path = Path(file)
    if not path.is_file():
        raise ConfigError("objective.file: there is no such file", where=file, fix="name the method's .py file")
    if path.suffix != ".py":
        raise ConfigError("objective.file: this is no Python file", where=file, fix="name the method's .py file")
    return path


def _from_file(path: Path, name: object) -> type[Objective]:
    file = str(path)
    # One module per content of the file, so that every caller gets the same class.
    module_name = f"penchant_objective_{hash_bytes(path.read_bytes(), 8)}"
    if module_name not in sys.modules:
        sys.modules[module_name] = module = ModuleType(module_name)
        module.__file__ = file
        try:
            # Python's import would reuse the compiled file where modification time in seconds and length are equal.
            exec(compile(path.read_bytes(), path, "exec", dont_inherit=True), vars(module))
        except (Exception, SystemExit) as error:
            del sys.modules[module_name]
            raise _import_error(f"objective.file {file}", error) from error
    classes = [
        value for value in vars(sys.modules[module_name]).values() if getattr(value, "__module__", "") == module_name
    ]
    by_name = {value.name: value for value in classes if isinstance(getattr(value, "name", None), str)}
    if name not in by_name:
        raise ConfigError(
            f"objective.name: no class in the file has name = {name!r}{nearest(str(name), by_name)}",
            where=file,
            fix=f"it has: {', '.join(sorted(by_name)) or 'none'}",
        )
    return _checked_class(by_name[name], str(name), file)


def _checked_class(method: Any, name: str, where: str) -> type[Objective]:
    """The class, after the check that it follows the protocol of objectives."""
    lacks = [
        member
        for member in ("name", "needs", "coupled", "initial_state", "__call__", "evaluate")
        if not hasattr(method, member)
    ]
    if not isinstance(method, type) or not dataclasses.is_dataclass(method) or lacks:
        problem = f"lacks {', '.join(lacks)}" if lacks else "is no frozen dataclass"
        raise ConfigError(f"objective {name} {problem}", where=where, fix="see docs/new-method.md for an example")
    objective_class: Any = method
    return objective_class


def _import_error(source: str, error: BaseException) -> ConfigError:
    cause = " ".join(str(error).split())
    return ConfigError(f"{source} cannot be imported: {type(error).__name__}: {cause}", fix="correct it, and try again")
