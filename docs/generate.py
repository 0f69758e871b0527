"""Writes docs/configuration.md and docs/methods.md from the code's own types and docstrings: python docs/generate.py

Also in this module: the page of the API reference, which docs/pages.py adds to the documentation's site.
"""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

import penchant
import penchant.api
from penchant.config.objective import describe_objective
from penchant.config.run import RunConfig
from penchant.objectives import OBJECTIVES, Needs, Objective

HEAD = """# Configuration

Every key of a run's YAML, from the types in `src/penchant/config/` (this page is generated: `python
docs/generate.py`). On the command line a key is a dotted path: `penchant train run.yaml training.learning_rate=1e-6`.
`data: FILE` is short for `data: {train: FILE}`.
"""

METHODS_HEAD = """# Methods

Each is one file of `src/penchant/objectives/`; this page is made of their docstrings (`python docs/generate.py`). In
the formulas `Delta(y) = log pi(y|x) - log ref(y|x)`, summed over the response's tokens, in nats; y_w is preferred to
y_l; `h = Delta(y_w) - Delta(y_l)`. Which one does best on *your* data is a question for `penchant compare`."""


API_HEAD = "The names of `import penchant`. Modules are imported when one of their names is first used."

RECIPES_API_HEAD = """The names of `penchant.api`, for recipes and for programs that need more than the names above.
Names that are in both are listed above."""


def page() -> str:
    """The whole page."""
    sections = [HEAD, *_section("", RunConfig), "\n## objective\n\n| name | hyper-parameters |\n| --- | --- |"]
    for name, method in OBJECTIVES.items():
        fields = ", ".join(f"`{field.name}` ({field.default})" for field in dataclasses.fields(method))
        sections.append(f"| `{name}` | {fields or 'none'} |")
    return "\n".join(sections) + "\n"


def methods_page() -> str:
    """What each method computes, needs and is for, from its own docstring."""
    sections = [METHODS_HEAD]
    for name, method in OBJECTIVES.items():
        formula, _, rest = inspect.cleandoc(method.__doc__ or "").partition("\n\nAttributes:\n")
        source = (inspect.getmodule(method).__doc__ or "").strip().rstrip(".")
        sections += [f"## {name}", f"{source}. Example: [{name}.yaml](../examples/methods/{name}.yaml).", formula]
        sections.append(f"Needs {_needs(method().needs)}.")
        if rest:
            sections.append(_hyper_parameters(method, rest))
    return "\n\n".join(sections) + "\n"


def api_page() -> str:
    """The page of the site from which mkdocstrings writes the API reference; it is in no checkout."""
    sections = ["# API reference", "## penchant", API_HEAD]
    sections += [f"::: penchant.{name}" for name in sorted(penchant.__all__)]
    sections += ["## penchant.api", RECIPES_API_HEAD]
    sections += [f"::: penchant.api.{name}" for name in dir(penchant.api) if name not in penchant.__all__]
    return "\n\n".join(sections) + "\n"


def _needs(needs: Needs) -> str:
    references = f"{needs.references or 'no'} reference{'s' if needs.references != 1 else ''}"
    parts = [f"{references} or more" if needs.many_references else references]
    parts.append(f"at least {needs.candidates} candidate{'s' if needs.candidates != 1 else ''}")
    asked = {"pairs": "preferences", "scores": "scores", "labels": "labels (or preferences)"}
    parts += [words for name, words in asked.items() if getattr(needs, name)]
    parts += ["responses to other prompts (borrowed by itself)"] if needs.mismatched else []
    parts += ["a preference head (made by itself)"] if needs.head else []
    parts += ["the policy's own samples"] if needs.on_policy else []
    parts += ["to train a reward model"] if needs.trains == "rewards" else []
    return ", ".join(parts)


def _hyper_parameters(method: type[Objective], documented: str) -> str:
    """A table: name, default, and the docstring's words."""
    words: dict[str, str] = {}
    for line in documented.splitlines():
        name, colon, text = line.strip().partition(": ")
        if line.startswith("    ") and not line.startswith("     ") and colon:
            words[name] = text
            last = name
        elif line.strip():
            words[last] += f" {line.strip()}"
    rows = ["| hyper-parameter | default | |", "| --- | --- | --- |"]
    for field in dataclasses.fields(method):
        default = describe_objective(method())["parts"] if field.name == "parts" else field.default
        rows.append(f"| `{field.name}` | `{default}` | {words[field.name].replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


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
        return annotation.__name__.replace("NoneType", "null")
    if "Literal" in str(annotation):
        return " or ".join(map(_type, get_args(annotation)))
    return str(annotation).replace("typing.", "").replace("|", "or").replace("NoneType", "null").replace("None", "null")


def _plain(value: object) -> str:
    """As it stands in YAML."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    for file, text in (("configuration.md", page()), ("methods.md", methods_page())):
        (Path(__file__).parent / file).write_text(text, encoding="utf-8")
