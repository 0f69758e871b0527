"""Formats with a column for each response, among them those of LLaMA-Factory, ms-swift and Label Studio."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from penchant.data.conversations import (
    join_prompt_and_responses,
    last_turn,
    messages,
    split_shared_prompt,
    text_or_messages,
)
from penchant.data.fields import Cell, Row
from penchant.data.groups import Message, PreferenceGroup, Text
from penchant.errors import DataError

Values = Mapping[str, Any]
Converted = Iterator[PreferenceGroup]

NUMBERED = re.compile(r"rejected_?\d+")
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def is_pairs(row: Values) -> bool:
    """Whether a row has a prompt, a chosen and a rejected response."""
    return {"prompt", "chosen", "rejected"} <= row.keys()


def pairs(row: Row) -> Converted:
    """One group of the chosen and the rejected response."""
    prompt = text_or_messages(row.need("prompt"))
    yield replace(
        row.group(*join_prompt_and_responses(prompt, [row.need("chosen"), row.need("rejected")])), preferred=0
    )


def is_implicit_prompt(row: Values) -> bool:
    """Whether a row has a chosen and a rejected conversation and no prompt column."""
    return {"chosen", "rejected"} <= row.keys() and "prompt" not in row


def implicit_prompt(row: Row) -> Converted:
    """One group whose prompt is the beginning that the two conversations share."""
    cells = [row.need("chosen"), row.need("rejected")]
    if any(isinstance(cell.value, str) for cell in cells):
        # The end of the prompt cannot be derived from the characters that two texts share.
        raise DataError(
            "columns 'chosen' and 'rejected' are text and there is no prompt; expected a prompt column, "
            "lists of messages, or Human/Assistant transcripts (format hh)",
            where=row.where,
            fix="add a column 'prompt' and keep only the responses in 'chosen' and 'rejected'",
        )
    prompt, responses = split_shared_prompt([messages(cell) for cell in cells], cells)
    yield replace(row.group(prompt, responses), preferred=0)


def is_hh(row: Values) -> bool:
    """Whether a row has a chosen and a rejected transcript of Human and Assistant turns."""
    texts = [row.get("chosen"), row.get("rejected")]
    return "prompt" not in row and all(isinstance(t, str) for t in texts) and any(map(_is_transcript, texts))


def _is_transcript(text: object) -> bool:
    return isinstance(text, str) and text.lstrip().startswith("Human:") and ASSISTANT in text


def hh(row: Row) -> Converted:
    """One group of the last Assistant turns of two transcripts; no group where the transcripts differ earlier."""
    texts = [row.need("chosen").text(), row.need("rejected").text()]
    ends = [text.rfind(ASSISTANT) + len(ASSISTANT) for text in texts]
    prompts = {text[:end] for text, end in zip(texts, ends, strict=True)}
    responses = [text[end:] for text, end in zip(texts, ends, strict=True)]
    if not all(map(_is_transcript, texts)):
        row.count_left_out("no transcript of Human and Assistant turns")
    elif any(HUMAN in response for response in responses):
        row.count_left_out("a transcript ends with a Human turn")
    elif len(prompts) > 1:
        row.count_left_out("the two transcripts differ before the last Assistant turn")
    else:
        yield replace(row.group(prompts.pop(), responses), preferred=0)


def is_several_rejected(row: Values) -> bool:
    """Whether a row has several rejected responses, in a list or in numbered columns."""
    rejected = row.get("rejected")
    several = isinstance(rejected, list) and all(isinstance(value, str | list) for value in rejected)
    return {"prompt", "chosen"} <= row.keys() and (several or any(map(NUMBERED.fullmatch, row)))


def several_rejected(row: Row) -> Converted:
    """One group of the chosen and all rejected responses."""
    prompt, rejected = text_or_messages(row.need("prompt")), _rejected_cells(row)
    if not rejected:
        raise row.need("rejected").refusal("at least one rejected response")
    yield replace(row.group(*join_prompt_and_responses(prompt, [row.need("chosen"), *rejected])), preferred=0)


def _rejected_cells(row: Row) -> list[Cell]:
    rejected_cell = row.find("rejected")
    is_list = rejected_cell is not None and isinstance(rejected_cell.value, list) and is_several_rejected(row.values)
    cells = [] if rejected_cell is None else rejected_cell.items() if is_list else [rejected_cell]
    names = sorted(filter(NUMBERED.fullmatch, row.values), key=lambda name: int(re.sub(r"\D", "", name)))
    return cells + [cell for name in names if (cell := row.find(name))]


def is_unpaired(row: Values) -> bool:
    """Whether a row has one response with a yes/no label."""
    return "label" in row and bool({"completion", "messages"} & row.keys()) and "chosen" not in row


def unpaired(row: Row) -> Converted:
    """One group of one response with its label."""
    yield replace(row.group(*_prompt_and_response(row)), labels=(row.need("label").yes_or_no(),))


def is_sft(row: Values) -> bool:
    """Whether a row has one response without a label, for supervised tuning."""
    if {"instruction", "output"} <= row.keys():
        return isinstance(row["output"], str)
    return {"prompt", "completion"} <= row.keys() or bool({"messages", "conversations"} & row.keys())


def sft(row: Row) -> Converted:
    """One group of one response."""
    if output := row.find("output"):
        yield row.group(*join_prompt_and_responses(alpaca_prompt(row), [output]))
    else:
        yield row.group(*_prompt_and_response(row))


def _prompt_and_response(row: Row) -> tuple[Text, tuple[Text, ...]]:
    conversation = row.find("messages", "conversations")
    if conversation is not None:
        return last_turn(messages(conversation), conversation)
    completion = row.need("completion")
    prompt = row.need("prompt") if "prompt" in row.values else None
    if prompt is None and not isinstance(completion.value, str):
        return last_turn(messages(completion), completion)
    return join_prompt_and_responses("" if prompt is None else text_or_messages(prompt), [completion])


def alpaca_prompt(row: Row) -> tuple[Message, ...]:
    """The prompt of an Alpaca row as messages: the history, then the instruction with the input on the next line."""
    turns: list[Message] = []
    for exchange in history.items() if (history := row.find("history")) else ():
        question, answer = exchange.items_for(2)
        turns += [Message(role="user", content=question.text()), Message(role="assistant", content=answer.text())]
    instruction, extra_input = row.need("instruction").text(), row.find("input")
    content = "\n".join(filter(None, [instruction, extra_input.text() if extra_input else ""]))
    turns.append(Message(role="user", content=content))
    return tuple(turns)


def is_text(row: Values) -> bool:
    """Whether a row has a text without a prompt."""
    return "text" in row


def text(row: Row) -> Converted:
    """One group of an empty prompt and the text."""
    yield row.group("", [row.need("text").text()])


SIDES = ("left", "right")


def is_llama_factory(row: Values) -> bool:
    """Whether a row has the columns of LLaMA-Factory's pairs."""
    both_columns = {"chosen", "rejected"} <= row.keys() and "prompt" not in row
    if "conversations" in row:
        return both_columns
    return "instruction" in row and (both_columns or isinstance(row.get("output"), list))


def llama_factory(row: Row) -> Converted:
    """One group of the chosen and the rejected response."""
    output = row.find("output") if not row.find("chosen") else None
    cells = [row.need("chosen"), row.need("rejected")] if output is None else output.items_for(2)
    conversation = row.need("conversations") if "conversations" in row.values else None
    prompt = messages(conversation) if conversation else alpaca_prompt(row)
    if conversation and prompt[-1]["role"] == "assistant":
        raise conversation.refusal("a conversation whose last turn is not the assistant's")
    yield replace(row.group(*join_prompt_and_responses(prompt, cells)), preferred=0)


def is_ms_swift(row: Values) -> bool:
    """Whether a row has the columns of ms-swift's pairs."""
    return "messages" in row and not row.keys().isdisjoint({"rejected_response", "rejected_messages"})


def ms_swift(row: Row) -> Converted:
    """One group of the conversation's last turn and the rejected responses."""
    messages_cell, rejected_messages = row.need("messages"), row.find("rejected_messages")
    conversation = messages(messages_cell)
    if rejected_messages is not None:
        prompt, candidates = split_shared_prompt(
            [conversation, messages(rejected_messages)], [messages_cell, rejected_messages]
        )
    else:
        prompt, chosen = split_shared_prompt([conversation], [messages_cell])
        rejected = row.need("rejected_response")
        cells = rejected.items() if isinstance(rejected.value, list) else [rejected]
        candidates = (*chosen, *join_prompt_and_responses(prompt, cells)[1])
    yield replace(row.group(prompt, candidates), preferred=0)


def is_label_studio(row: Values) -> bool:
    """Whether a row has the fields of a task exported by Label Studio."""
    return isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list)


def label_studio(row: Row) -> Converted:
    """One group for each annotation, so that the preferences of annotators who disagree are all read."""
    data = row.need("data")
    items = data.find("items")
    candidates = _items(items) if items else [data.need(name) for name in ("answer1", "answer2")]
    group = row.group(*join_prompt_and_responses(text_or_messages(data.need("prompt")), candidates))
    judged = []
    for annotation in row.need("annotations").items():
        cancelled = annotation.find("was_cancelled")
        if cancelled and cancelled.yes_or_no():
            row.read_log.count("annotation not used: cancelled", row.where)
        elif values := _annotation_values(annotation, "ranker" if items else "selected"):
            judged += [
                _apply_ranking(group, items.items(), value) if items else _apply_selection(group, value)
                for value in values
            ]
        else:
            row.read_log.count("annotation not used: nothing chosen", row.where)
    if not judged:
        row.count_left_out("a task without a usable annotation")
    for number, annotated in enumerate(judged, 1):
        yield annotated if len(judged) == 1 else replace(annotated, id=f"{annotated.id}-{number}")


def _items(items: Cell) -> list[Cell]:
    return [cell.need("body", "html", "text", "title") for cell in items.items()]


def _annotation_values(annotation: Cell, key: str) -> list[Cell]:
    """The values of an annotation's results that have this key."""
    results = annotation.find("result")
    values = [cell.find("value") for cell in results.items()] if results else []
    return [result for value in values if value and (result := value.find(key))]


def _apply_selection(group: PreferenceGroup, value: Cell) -> PreferenceGroup:
    """The group with the selected side, ``left`` or ``right``, as its preferred candidate."""
    if value.value not in SIDES:
        raise value.refusal("'left' or 'right'")
    return replace(group, preferred=SIDES.index(value.value))


def _apply_ranking(group: PreferenceGroup, items: Sequence[Cell], value: Cell) -> PreferenceGroup:
    """The group with ranks from one bucket of items; comparisons among the ranked items where some are missing."""
    names = [cell.need("id").name() for cell in items]
    buckets = value.value if isinstance(value.value, dict) else {}
    # The bucket "_" contains the unranked items, unless it is the only bucket.
    filled = [name for name, ids in buckets.items() if ids and name != "_"] or [name for name in buckets if name == "_"]
    if len(filled) != 1:
        raise value.refusal("an object with one bucket of items, the best first")
    order = [cell.name() for cell in value.need(filled[0]).items()]
    if len(set(order)) < len(order) or not set(order) <= set(names):
        raise value.refusal(f"each of the items' ids once: {', '.join(names)}")
    indices = [names.index(name) for name in order]
    if len(order) == len(names):
        return replace(group, ranks=tuple(1 + order.index(name) for name in names))
    return replace(group, comparisons=tuple((i, j) for n, i in enumerate(indices) for j in indices[n + 1 :]))
