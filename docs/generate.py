"""Writes docs/configuration.md from the configuration's own types: python docs/generate.py"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from penchant.config import RunConfig
from penchant.objectives import OBJECTIVES

HEAD = """# Configuration

Every key of a run's YAML, from the types in `src/penchant/config.py` (this page is generated: `python
docs/generate.py`). On the command line a key is a dotted path: `penchant train run.yaml training.learning_rate=1e-6`.
`data: FILE` is short for `data: {train: FILE}`.
"""


def page() -> str:
    """The whole page."""
    sections = [HEAD, *_section("", RunConfig), "\n## objective\n\n| name | hyper-parameters |\n| --- | --- |"]
    for name, method in OBJECTIVES.items():
        fields = ", ".join(f"`{field.name}` ({field.default})" for field in dataclasses.fields(method))
        sections.append(f"| `{name}` | {fields or 'none'} |")
    return "\n".join(sections) + "\n"


def _section(prefix: str, model: type[BaseModel]) -> list[str]:
    lines, inner = ["| key | type | default | |", "| --- | --- | --- | --- |"], []
    for name, field in model.model_fields.items():
        nested = _nested(field)
        if nested is not None:
            inner.append((name, nested, field))
        else:
            default = "needed" if field.is_required() else f"`{_plain(field.get_default(call_default_factory=True))}`"
            lines.append(f"| `{prefix}{name}` | {_type(field.annotation)} | {default} | {field.description or ''} |")
    for name, nested, field in inner:
        missing = " Left out unless given." if field.default is None else ""
        lines += ["", f"## {name}", "", f"{(nested.__doc__ or '').strip()}{missing}", ""]
        lines += _section(f"{name}.", nested)
    return lines


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    options = [field.annotation, *get_args(field.annotation)]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _type(annotation: Any) -> str:
    if get_origin(annotation) is not None and str(annotation).startswith("typing.Literal"):
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("|", "or").replace("NoneType", "null").replace("None", "null")


def _plain(value: object) -> str:
    """As it stands in YAML."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    (Path(__file__).parent / "configuration.md").write_text(page(), encoding="utf-8")
