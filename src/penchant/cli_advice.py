"""Advice in the words of the verb that a person typed.

The library names an option by its key in a run's configuration, `data.truncation=drop`. A verb with flags prints its
flag, a comparison the key below `base`, and a verb without the option what does the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from dataclasses import dataclass

import yaml

from penchant.errors import PenchantError

FLAGS: Mapping[str, str] = {
    "data.columns": "--columns",
    "data.format": "--format",
    "data.split": "--split",
    "data.held_out_split": "--held-out-split",
    "data.chat_template": "--chat-template",
    "data.chat_template_kwargs": "--chat-template-kwargs",
    "data.date": "--date",
    "data.as_chat": "--as-chat",
    "data.control_text": "--control-text",
    "data.learn": "--learn",
    "data.max_length": "--max-length",
    "data.truncation": "--truncation",
    "data.refused": "--refused",
    "data.empty": "--empty",
    "data.identical": "--identical",
    "training.token_budget": "--token-budget",
    "training.dtype": "--dtype",
    "sampling.max_new_tokens": "--max-new-tokens",
    "reward.label": "--label",
    "reward.model": "--model",
    "reward.function": "--function",
}
"""Options that the library names -> the flag of verbs that have one."""

CONVERT = "penchant data convert FILE NEW.jsonl"
CONVERTS = ("--columns", "--format", "--split")
ELSEWHERE: Mapping[str, str] = {
    "data.held_out_split": "a file of that split alone",
    "data.chat_template": "chat_template.jinja in the model's folder",
    "data.chat_template_kwargs": "their defaults in the chat template",
    "data.date": "the date in the chat template",
    "data.as_chat": "messages in place of plain text",
    "data.control_text": "texts without control tokens",
    "data.learn": "a run that learns all turns",
    "data.max_length": "the length limit",
    "data.truncation": "shorter texts",
    "data.refused": "messages that the template takes",
    "data.empty": "no empty candidates",
    "data.identical": "no identical candidates",
    "training.token_budget": "the token budget",
    "training.dtype": "weights in that dtype",
    "sampling.max_new_tokens": "shorter answers",
    "reward.label": "a model with one output",
    "reward.model": "a reward model",
    "reward.function": "a reward function",
}
"""What to do instead, on a verb without the option."""

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
"""Finds the verb that runs, where there is advice to word; None for the library, whose words are the keys of a run."""


def advice(text: str, verb: Verb | None = None) -> str:
    """A text of the library with its options named as the verb has them; by default the verb that runs."""
    find = VERB.get()
    if verb is None and find is not None and OPTION.search(text):
        verb = find()
    if verb is None or verb.name in RUN_VERBS:
        return text
    if verb.name in BASE_VERBS:
        return OPTION.sub(lambda match: f"base.{match[0]}", text)
    return OPTION.sub(lambda match: _spelled(match["key"], match["value"], match[0], verb), text)


def advised(error: PenchantError) -> PenchantError:
    """The error with its advice in the words of the verb that runs."""
    fix = None if error.fix is None else advice(error.fix)
    return type(error)(advice(error.what), where=error.where, fix=fix)


def _spelled(key: str, value: str | None, setting: str, verb: Verb) -> str:
    flag = FLAGS.get(key)
    if flag is None or key in verb.keys:
        return setting
    if key == "data.columns" and "columns" in verb.keys:
        return setting.removeprefix("data.")
    if flag in verb.flags:
        return _flag(flag, value)
    if flag in CONVERTS:
        return f"{CONVERT} {_flag(flag, value)}"
    return ELSEWHERE[key]


def _flag(flag: str, value: str | None) -> str:
    """The flag with its value; a mapping gives the flag once for each of its pairs."""
    if value is None:
        return flag
    try:
        mapping = yaml.safe_load(value) if value.startswith("{") else None
    except yaml.YAMLError:
        mapping = None
    if isinstance(mapping, dict):
        return " ".join(f"{flag} {name}={_word(entry)}" for name, entry in mapping.items())
    return f"{flag} {value}"


def _word(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"'{text}'" if re.search(r"[^\w.,:/+-]", text) else text
