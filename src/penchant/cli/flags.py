"""The reading flags: rows and columns, template, length limit, dropped rows, micro-batch and dtype.

A verb takes one parameter, ``flags: Annotated[ReadingFlags, available_flags(...)]``, and names in it the flags that
have an effect; the command line refuses the other ones. Names, help and defaults are the same on every verb.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from cyclopts import Parameter

from penchant.cli.output import Count, Dtype, Length, Rows, Truncation
from penchant.config.section import parse_yaml
from penchant.data.rendering import AsChat, ControlText, Learn, Rendering
from penchant.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from penchant.data.reading import GroupSet
    from penchant.evaluation.held_out import Reading

Pairs = tuple[str, ...]

COLUMNS = ("columns", "split")
ROWS = (*COLUMNS, "format")
TEMPLATE = ("chat_template", "chat_template_kwargs", "date", "as_chat", "control_text")
LENGTHS = ("max_length", "truncation", "refused")
CANDIDATES = ("empty", "identical", "learn")
COMPUTE = ("token_budget", "dtype")
ALL = (*ROWS, *TEMPLATE, *LENGTHS, *CANDIDATES, *COMPUTE)
"""Fields of `ReadingFlags` that verbs offer together."""


def available_flags(*fields: str) -> Parameter:
    """The annotation of a verb's parameter ``flags`` that makes these fields, and no other ones, flags of the verb."""
    # A pattern goes for the parameter and for the fields inside it.
    return Parameter(parse=re.compile(f"^({'|'.join(('flags', *fields))})$"))


@Parameter(name="*")
@dataclass(frozen=True)
class ReadingFlags:
    """How a verb reads data; a field that the verb does not offer keeps its default."""

    columns: Annotated[
        Pairs,
        Parameter(
            negative="", help="OURS=THEIRS, as in prompt=question: our name of a column and the file's; repeatable."
        ),
    ] = ()
    split: Annotated[str | None, Parameter(help="Split of a folder or hub id.")] = None
    format: Annotated[str | None, Parameter(help="Format of the data; detected if not given.")] = None
    chat_template: Annotated[str | None, Parameter(help="File with a Jinja chat template.")] = None
    chat_template_kwargs: Annotated[
        Pairs,
        Parameter(
            negative="",
            help="Variables for the chat template: KEY=VALUE, as in enable_thinking=false, or a JSON object.",
        ),
    ] = ()
    date: Annotated[
        str | None, Parameter(help="The date that the chat template uses as today's, as in 2026-11-30.")
    ] = None
    as_chat: Annotated[
        AsChat,
        Parameter(
            help="Read plain prompts and responses as messages of a user and an assistant. auto: only a prompt typed "
            "on the command line, where the model has a chat template; rows of files stay plain, with a warning."
        ),
    ] = "auto"
    control_text: Annotated[
        ControlText,
        Parameter(help="Treatment of control tokens inside messages: read as plain text, as the token, or an error."),
    ] = "text"
    max_length: Annotated[
        Length | None, Parameter(help="Maximum tokens of prompt + response; the model's context length if not given.")
    ] = None
    truncation: Annotated[Truncation, Parameter(help="What to do with rows longer than that.")] = "error"
    refused: Annotated[Rows, Parameter(help="What to do with rows that the chat template rejects.")] = "error"
    empty: Annotated[Rows, Parameter(help="What to do with groups that have an empty candidate.")] = "error"
    identical: Annotated[
        Rows, Parameter(help="What to do with groups whose chosen and rejected response are equal.")
    ] = "error"
    token_budget: Annotated[Count, Parameter(help="Maximum tokens of a micro-batch.")] = 8192
    dtype: Annotated[Dtype, Parameter(help="Dtype of the matrix products.")] = "float32"
    learn: Annotated[
        Learn,
        Parameter(help="Assistant turns whose tokens count; last: the response; all: also those in the prompt."),
    ] = "last"

    @property
    def mapping(self) -> dict[str, str]:
        """Our column name -> the file's."""
        return dict(_halves(pair, "--columns", "prompt=question") for pair in self.columns)

    def load(self, source: str | Path) -> GroupSet:
        """The source's preference groups; errors as in `read_groups`."""
        from penchant.data.reading import read_groups

        return read_groups(source, format=self.format, split=self.split, columns=self.mapping)

    @property
    def rendering(self) -> Rendering:
        """How rows become the text that a model reads."""
        variables = _variables(self.chat_template_kwargs)
        return Rendering(variables, self.date, self.as_chat, self.control_text, self.learn, self.refused)

    @property
    def reading(self) -> Reading:
        """How a model reads rows, with its micro-batches and dtype."""
        from penchant.evaluation.held_out import Reading

        return Reading(
            self.max_length,
            self.truncation,
            self.empty,
            self.identical,
            self.chat_template,
            self.token_budget,
            self.dtype,
            self.rendering,
        )


def _variables(arguments: Sequence[str]) -> Mapping[str, Any]:
    """Template variables; the values of KEY=VALUE are YAML, so that false is no text."""
    variables: dict[str, Any] = {}
    for argument in arguments:
        if argument.lstrip().startswith("{"):
            variables |= _yaml(argument, argument)
        else:
            key, value = _halves(argument, "--chat-template-kwargs", "enable_thinking=false")
            variables[key] = _yaml(value, argument)
    return variables


def _yaml(text: str, argument: str) -> Any:
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{argument!r} cannot be read: {' '.join(str(error).split())}",
            where="--chat-template-kwargs",
            fix="--chat-template-kwargs enable_thinking=false",
        ) from error


def _halves(argument: str, flag: str, example: str) -> tuple[str, str]:
    name, equals, value = argument.partition("=")
    if not (name and equals and value):
        raise ConfigError(f"found {argument!r}; expected NAME=VALUE", where=flag, fix=f"{flag} {example}")
    return name, value
