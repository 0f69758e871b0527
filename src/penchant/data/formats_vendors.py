"""Formats of other tools: LLaMA-Factory, ms-swift, Label Studio."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from penchant.data.conversations import join_prompt_and_responses, messages, split_shared_prompt, text_or_messages
from penchant.data.fields import Cell, Row
from penchant.data.formats_pairs import alpaca_prompt
from penchant.data.groups import PreferenceGroup

Values = Mapping[str, Any]
Converted = Iterator[PreferenceGroup]

SIDES = ("left", "right")


def is_llama_factory(row: Values) -> bool:
    """Whether a row has the columns of LLaMA-Factory's pairs."""
    both = {"chosen", "rejected"} <= row.keys() and "prompt" not in row
    if "conversations" in row:
        return both
    return "instruction" in row and (both or isinstance(row.get("output"), list))


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
    whole, other = row.need("messages"), row.find("rejected_messages")
    conversation = messages(whole)
    if other is not None:
        prompt, candidates = split_shared_prompt([conversation, messages(other)], [whole, other])
    else:
        prompt, chosen = split_shared_prompt([conversation], [whole])
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
