"""The flags of every verb that reads data: which rows, by which template, how long, what is dropped, in which dtype.

A verb takes the dataclasses it needs as parameters; their fields become its flags. Names, help and defaults are the
same on every verb.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from cyclopts import Parameter

from penchant.cli.output import Count, Dtype, Length, Rows, Truncation
from penchant.config.yaml_files import parse_yaml
from penchant.data.rendering import AsChat, ControlText, Learn, Rendering
from penchant.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from penchant.data.reading import GroupSet
    from penchant.evaluation.held_out import Reading

Pairs = tuple[str, ...]


@Parameter(name="*")
@dataclass(frozen=True)
class ColumnFlags:
    """Which columns of which split are read."""

    columns: Annotated[
        Pairs,
        Parameter(negative="", help="OURS=THEIRS, as in prompt=question: our column name, the file's; repeatable."),
    ] = ()
    split: Annotated[str | None, Parameter(help="Split of a folder or hub id.")] = None

    @property
    def mapping(self) -> dict[str, str]:
        """Our column name -> the file's."""
        return dict(_halves(pair, "--columns", "prompt=question") for pair in self.columns)


@Parameter(name="*")
@dataclass(frozen=True)
class RowFlags(ColumnFlags):
    """How a preference file is read."""

    format: Annotated[str | None, Parameter(help="The data's format, where it should not be detected.")] = None

    def load(self, source: str | Path) -> GroupSet:
        """The source's preference groups; errors as in `read_groups`."""
        from penchant.data.reading import read_groups

        return read_groups(source, format=self.format, split=self.split, columns=self.mapping)


@Parameter(name="*")
@dataclass(frozen=True)
class TemplateFlags:
    """How rows become the text that a model reads."""

    chat_template: Annotated[str | None, Parameter(help="File with a Jinja chat template.")] = None
    chat_template_kwargs: Annotated[
        Pairs,
        Parameter(
            negative="",
            help="Variables for the chat template: KEY=VALUE, as in enable_thinking=false, or a JSON object.",
        ),
    ] = ()
    date: Annotated[str | None, Parameter(help="The day a chat template writes as today's, as in 2026-11-30.")] = None
    as_chat: Annotated[
        AsChat,
        Parameter(
            help="Read plain prompts and responses as a user's and an assistant's message. auto: a prompt typed on the "
            "command line, where the model has a chat template; rows of files stay plain, with a warning."
        ),
    ] = "auto"
    control_text: Annotated[
        ControlText,
        Parameter(help="What a control token written inside a message becomes: plain text, the token, or an error."),
    ] = "text"

    @property
    def rendering(self) -> Rendering:
        """The flags as the library's `Rendering`."""
        return Rendering(_variables(self.chat_template_kwargs), self.date, self.as_chat, self.control_text)


@Parameter(name="*")
@dataclass(frozen=True)
class LengthFlags:
    """The length limit, and what happens to rows that break it or that the chat template refuses."""

    max_length: Annotated[
        Length | None, Parameter(help="Tokens of prompt + response; the model's context if not given.")
    ] = None
    truncation: Annotated[Truncation, Parameter(help="What to do with longer rows.")] = "error"
    refused: Annotated[Rows, Parameter(help="What to do with rows that the chat template refuses.")] = "error"


@Parameter(name="*")
@dataclass(frozen=True)
class TurnFlags:
    """Which of the assistant's turns count."""

    learn: Annotated[
        Learn,
        Parameter(help="Assistant turns whose tokens count: last, the response; all, those of the prompt too."),
    ] = "last"


@Parameter(name="*")
@dataclass(frozen=True)
class EmptyFlags:
    """What happens to groups with an empty candidate."""

    empty: Annotated[Rows, Parameter(help="What to do with empty candidates.")] = "error"


@Parameter(name="*")
@dataclass(frozen=True)
class CandidateFlags(EmptyFlags):
    """What happens to groups that nothing can be learnt from."""

    identical: Annotated[Rows, Parameter(help="What to do where chosen equals rejected.")] = "error"


@Parameter(name="*")
@dataclass(frozen=True)
class ComputeFlags:
    """Size of a micro-batch, and dtype."""

    token_budget: Annotated[Count, Parameter(help="Tokens in a micro-batch.")] = 8192
    dtype: Annotated[Dtype, Parameter(help="Of the matrix products.")] = "float32"


@Parameter(name="*")
@dataclass(frozen=True)
class MeasuringFlags(TurnFlags, ComputeFlags, CandidateFlags, LengthFlags, TemplateFlags, RowFlags):
    """All reading flags, for verbs that measure the log-probs of a preference file."""

    @property
    def reading(self) -> Reading:
        """How the model reads rows."""
        return reading_of(self, self, self, self, self)


def reading_of(
    template: TemplateFlags,
    lengths: LengthFlags = LengthFlags(),
    candidates: EmptyFlags = EmptyFlags(),
    compute: ComputeFlags = ComputeFlags(),
    turns: TurnFlags = TurnFlags(),
) -> Reading:
    """How a model reads rows, from the flags of a verb."""
    from penchant.evaluation.held_out import Reading

    return Reading(
        lengths.max_length,
        lengths.truncation,
        candidates.empty,
        candidates.identical if isinstance(candidates, CandidateFlags) else "error",
        template.chat_template,
        compute.token_budget,
        compute.dtype,
        replace(template.rendering, refused=lengths.refused, learn=turns.learn),
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
