"""Types of flags that all verbs share, output for people and for scripts, and advice in the words of the verb."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from cyclopts import Parameter
from cyclopts.validators import Number

from penchant.errors import PenchantError

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger(__name__)

OPTIONS: Mapping[str, tuple[str, str | None]] = {
    "data.columns": ("--columns", None),
    "data.format": ("--format", None),
    "data.split": ("--split", None),
    "data.held_out_split": ("--held-out-split", "a file of that split alone"),
    "data.chat_template": ("--chat-template", "chat_template.jinja in the model's folder"),
    "data.chat_template_kwargs": ("--chat-template-kwargs", "their defaults in the chat template"),
    "data.date": ("--date", "the date in the chat template"),
    "data.as_chat": ("--as-chat", "messages in place of plain text"),
    "data.control_text": ("--control-text", "texts without control tokens"),
    "data.learn": ("--learn", "a run that learns all turns"),
    "data.max_length": ("--max-length", "the length limit"),
    "data.truncation": ("--truncation", "shorter texts"),
    "data.refused": ("--refused", "messages that the template takes"),
    "data.empty": ("--empty", "no empty candidates"),
    "data.max_bytes": ("--max-bytes", "several smaller files"),
    "data.identical": ("--identical", "no identical candidates"),
    "training.token_budget": ("--token-budget", "the token budget"),
    "training.dtype": ("--dtype", "weights in that dtype"),
    "sampling.max_new_tokens": ("--max-new-tokens", "shorter answers"),
    "reward.label": ("--label", "a model with one output"),
    "reward.model": ("--model", "a reward model"),
    "reward.function": ("--function", "a reward function"),
}
"""Configuration keys in messages of the library -> the flag, and the text for verbs without this flag.

None: advice to convert the file with that flag first.
"""

CONVERT = "penchant data convert FILE NEW.jsonl"
RUN_VERBS = ("train", "plan")
BASE_VERBS = ("compare", "sweep")
RUN_SECTIONS = ("data", "training", "sampling", "reward", "evaluation", "head", "lora", "checkpoints", "logging")
OPTION = re.compile(
    rf"(?<![\w./-])(?P<key>(?:{'|'.join(RUN_SECTIONS)})\.[a-z_]+)(?![\w-]|\.\w)(?:=(?P<value>\{{[^}}]*\}}|[^\s,;()]+))?"
)


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
        name: as typed, ``data check``.
        flags: its flags, ``--columns``.
        keys: for a recipe, the dotted keys of its configuration.
    """

    name: str
    flags: frozenset[str]
    keys: Collection[str] = ()


VERB: ContextVar[Callable[[], Verb | None] | None] = ContextVar("VERB", default=None)
"""Function that finds the current verb, called where a message needs it; None outside the command line."""


def advice(text: str, verb: Verb | None = None) -> str:
    """A message of the library with configuration keys as flags of a verb; by default of the current one."""
    find = VERB.get()
    if verb is None and find is not None and OPTION.search(text):
        verb = find()
    if verb is None or verb.name in RUN_VERBS:
        return text
    if verb.name in BASE_VERBS:
        return OPTION.sub(lambda match: f"base.{match[0]}", text)
    return OPTION.sub(lambda match: _as_verb_option(match["key"], match["value"], match[0], verb), text)


def advised(error: PenchantError) -> PenchantError:
    """The error with configuration keys as flags of the current verb."""
    fix = None if error.fix is None else advice(error.fix)
    return type(error)(advice(error.what), where=error.where, fix=fix)


def _as_verb_option(key: str, value: str | None, setting: str, verb: Verb) -> str:
    if key not in OPTIONS or key in verb.keys:
        return setting
    if key == "data.columns" and "columns" in verb.keys:
        return setting.removeprefix("data.")
    flag, otherwise = OPTIONS[key]
    if flag in verb.flags:
        return _flag(flag, value)
    return otherwise or f"{CONVERT} {_flag(flag, value)}"


def _flag(flag: str, value: str | None) -> str:
    """The flag with its value; a mapping repeats the flag for each pair."""
    if value is None:
        return flag
    try:
        mapping = yaml.safe_load(value) if value.startswith("{") else None
    except yaml.YAMLError:
        mapping = None
    if isinstance(mapping, dict):
        return " ".join(f"{flag} {name}={_quoted(entry)}" for name, entry in mapping.items())
    return f"{flag} {value}"


def _quoted(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"'{text}'" if re.search(r"[^\w.,:/+-]", text) else text


Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON document on standard output.")]
Rows = Literal["error", "drop"]
Truncation = Literal["error", "drop", "keep_end_of_prompt"]
Dtype = Literal["float32", "bfloat16", "float16"]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps", "xpu"],
    Parameter(help="Device of the models; auto: the first available of cuda, xpu, mps and cpu."),
]
SaveDtype = Literal["auto", "float32", "bfloat16", "float16"]
Count = Annotated[int, Parameter(validator=Number(gte=1))]
Length = Annotated[int, Parameter(validator=Number(gte=2))]
Seed = Annotated[int, Parameter(validator=Number(gte=0))]
Source = Annotated[str, Parameter(help="Preference file, `datasets` folder or hub id.")]


def device_key(key: str, device: Device) -> list[str]:
    """The override of a configuration's key by the flag ``--device``; none for auto, which leaves it as it is."""
    return [] if device == "auto" else [f"{key}={device}"]


def console_for(as_json: bool) -> Console:
    """The console for people: standard output, or standard error where standard output is for JSON."""
    from rich.console import Console

    return Console(stderr=as_json, soft_wrap=False)


class NoticeHandler(logging.Handler):
    """Prints log records for people, a line each, with options named as the running verb has them.

    Args:
        level: lowest level that is printed; processes other than the main one print warnings, with their rank.
        room: package whose notices are printed; warnings of all packages are.
        on_stderr: whether standard output is kept for JSON.
    """

    def __init__(self, level: int, room: str, *, on_stderr: bool) -> None:
        rank = os.environ.get("RANK", "0")
        super().__init__(level if rank == "0" else max(level, logging.WARNING))
        self._prefix = "" if rank == "0" else f"rank {rank}: "
        self._room, self._console = room, console_for(on_stderr)

    def filter(self, record: logging.LogRecord) -> bool:
        is_verbose, is_warning = self.level < logging.INFO, record.levelno > logging.INFO
        return is_verbose or is_warning or record.name.startswith((self._room, "penchant.cli"))

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        line = self._prefix + advice(record.getMessage())
        self._console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def show_notices(level: int, room: str, *, on_stderr: bool) -> Iterator[None]:
    """Print the library's log records while a verb runs; arguments as those of `NoticeHandler`."""
    root = logging.getLogger("penchant")
    handler, earlier_level = NoticeHandler(level, room, on_stderr=on_stderr), root.level
    # Notices are logged whatever is printed: a run's folder holds them too.
    root.setLevel(min(level, logging.INFO))
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(earlier_level)


def log_notes(notes: Iterable[str]) -> None:
    """Log notices of a verb, one record each."""
    for note in notes:
        logger.info(note)


def print_result(document: dict[str, Any], as_json: bool, people: Any) -> None:
    """Print the verb's result: one JSON document, or a text or table for people."""
    if as_json:
        print(json.dumps(document, ensure_ascii=False, allow_nan=False))
    else:
        # Text is not wrapped, so that paths stay whole, and its brackets are not markup.
        plain = isinstance(people, str)
        console_for(False).print(fold_columns(people), soft_wrap=plain, markup=not plain, highlight=not plain)


def fold_columns(people: Any) -> Any:
    """A table or group of tables whose cells wrap in narrow columns, instead of being cut."""
    from rich.console import Group
    from rich.table import Table

    for part in people.renderables if isinstance(people, Group) else [people]:
        if isinstance(part, Table):
            for column in part.columns:
                column.overflow, column.no_wrap = "fold", False
    return people
