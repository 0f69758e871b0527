"""Columns beside a row's texts that its chat template reads: a system text, tools and documents."""

from __future__ import annotations

import re
from dataclasses import replace

from penchant.data.conversations import SYSTEM, TEMPLATE_COLUMNS, template_context
from penchant.data.fields import Cell, Row
from penchant.data.groups import PreferenceGroup, as_messages
from penchant.data.messages import Message, content_of, with_context

AS_MESSAGES = "plain prompt and responses read as messages, because a row has a system text, tools or documents"
"""Event: a plain row has one of these columns; all other rows then become messages too."""


TOOLS_TWICE = (
    "tools are in the system text and in a column, so most chat templates write them twice; to leave the column out: "
    "data.columns={unused: tools}"
)


_TURN = re.compile(r"\n\n(Human|Assistant):")


_ROLES = {"Human": "user", "Assistant": "assistant"}


def add_template_columns(group: PreferenceGroup, row: Row) -> PreferenceGroup:
    """The group with its row's system text as first message, and with its tools, documents and template variables.

    Raises:
        DataError: one of the columns has the wrong type, or there are two different system texts.
    """
    if row.values.keys().isdisjoint(TEMPLATE_COLUMNS):
        return group
    system, row_context = row.find("system"), template_context(row)
    if not row_context.columns() and (system is None or not system.text()):
        return group
    if isinstance(group.prompt, str):
        row.read_log.count(AS_MESSAGES, row.where)
        group = text_as_messages(group)
    assert not isinstance(group.prompt, str)
    prompt = group.prompt if system is None else _prepend_system(system, group.prompt)
    if row_context.tools and prompt and prompt[0]["role"] in SYSTEM and "<tools>" in content_of(prompt[0]):
        row.read_log.count(TOOLS_TWICE, row.where)
    return replace(group, prompt=with_context(prompt, row_context))


def text_as_messages(group: PreferenceGroup) -> PreferenceGroup:
    """The group as messages, where a transcript of Human and Assistant turns (format hh) gives one message per turn."""
    prompt = group.prompt
    turns = _TURN.split(f"\n\n{prompt.strip()}") if isinstance(prompt, str) else []
    if len(turns) < 5 or turns[0] or turns[-1].strip():
        return as_messages(group)
    speaker_turns = zip(turns[1:-2:2], turns[2:-1:2], strict=True)
    messages = tuple(Message(role=_ROLES[speaker], content=text.strip()) for speaker, text in speaker_turns)
    responses = [text.removeprefix(" ") if isinstance(text, str) else text for text in group.candidates]
    return as_messages(replace(group, prompt=messages, candidates=tuple(responses)))


def _prepend_system(cell: Cell, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages with a system column's text as first message; an empty text adds none."""
    if not cell.text():
        return prompt
    if prompt and prompt[0]["role"] in SYSTEM:
        if content_of(prompt[0]) == cell.text():
            return prompt
        raise cell.refusal("no system text where the conversation has a system message", "keep one of the two")
    return (Message(role="system", content=cell.text()), *prompt)
