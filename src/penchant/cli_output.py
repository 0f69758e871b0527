"""What the verbs share: their flags' types, and how they print for people and for scripts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from penchant.cli_advice import advice

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON document on standard output.")]
Rows = Literal["error", "drop"]
Truncation = Literal["error", "drop", "keep_end_of_prompt"]
Dtype = Literal["float32", "bfloat16"]
SaveDtype = Literal["auto", "float32", "bfloat16", "float16"]
Count = Annotated[int, Parameter(validator=Number(gte=1))]
Length = Annotated[int, Parameter(validator=Number(gte=2))]
Seed = Annotated[int, Parameter(validator=Number(gte=0))]
Source = Annotated[str, Parameter(help="Preference file, `datasets` folder or hub id.")]


def console_for(as_json: bool) -> Console:
    """Where people read: standard output, or standard error where that is kept for JSON."""
    from rich.console import Console

    return Console(stderr=as_json, soft_wrap=False)


def teller(as_json: bool) -> Callable[[str], None]:
    """Prints a line for people: on standard output, or on standard error where that is kept for JSON."""
    console = console_for(as_json)
    return lambda line: console.print(advice(line), markup=False, highlight=False, soft_wrap=True)


def tell_all(tell: Callable[[str], None], lines: Iterable[str]) -> None:
    """Each line by itself."""
    for line in lines:
        tell(line)


def deliver(document: dict[str, Any], as_json: bool, people: Any) -> None:
    """The verb's result: one JSON document, or what a person reads."""
    if as_json:
        print(json.dumps(document, ensure_ascii=False, allow_nan=False))
    else:
        # A line that names a file is not broken up, and its brackets are not markup.
        plain = isinstance(people, str)
        console_for(False).print(fold_columns(people), soft_wrap=plain, markup=not plain, highlight=not plain)


def fold_columns(people: Any) -> Any:
    """A table, or a group of tables, whose cells fold into lines where a column is too narrow: nothing is cut."""
    from rich.console import Group
    from rich.table import Table

    for part in people.renderables if isinstance(people, Group) else [people]:
        if isinstance(part, Table):
            for column in part.columns:
                column.overflow, column.no_wrap = "fold", False
    return people
