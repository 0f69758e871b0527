"""Formats with a list of candidates and their comparisons, scores, ranks or labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from penchant.data.calls import TEMPLATE_COLUMNS
from penchant.data.conversations import join_prompt_and_responses, text_or_messages
from penchant.data.fields import Cell, Row
from penchant.data.groups import PreferenceGroup, Text
from penchant.data.messages import content_of

Values = Mapping[str, Any]
Converted = Iterator[PreferenceGroup]

LISTS = ("candidates", "completions", "responses")
RANKS = ("ranks", "ranking", "rank")
PREFERRED = ("preferred", "best")
WORTH = ("pairwise", "scores", *RANKS, *PREFERRED)
NOT_OURS = ("pairwise", "ranking", "rank", "best")
RATINGS = ("overall_score", "fine-grained_score", "score")


def is_penchant(row: Values) -> bool:
    """Whether a row is in Penchant's own format."""
    return {"prompt", "candidates"} <= row.keys() and not row.keys() & {"chosen", *NOT_OURS}


def penchant(row: Row) -> Converted:
    """One group with the comparisons, scores, ranks, preferred index and labels of the row."""
    candidates = [text_or_messages(cell) for cell in row.need("candidates").items()]
    group = row.group(text_or_messages(row.need("prompt")), candidates)
    k = len(candidates)
    compared, labels, ranks = row.find("comparisons"), row.find("labels"), row.find("ranks")
    yield replace(
        group,
        comparisons=None if compared is None else tuple(_comparison(cell, k) for cell in compared.items()),
        scores=_scores(row, k),
        ranks=None if ranks is None else tuple(cell.whole() for cell in ranks.items_for(k)),
        preferred=_preferred(row, group.candidates),
        labels=None if labels is None else tuple(cell.yes_or_no() for cell in labels.items_for(k)),
    )


def _comparison(cell: Cell, k: int) -> tuple[int, int]:
    items = cell.items()
    if len(items) != 2 or items[0].value == items[1].value:
        raise cell.refusal("two different indices, the better candidate's first")
    return items[0].index(k), items[1].index(k)


def is_prompts(row: Values) -> bool:
    """Whether a row has a prompt and no response."""
    return "prompt" in row and row.keys() <= {"prompt", "id", "weight", "source", *TEMPLATE_COLUMNS}


def prompts(row: Row) -> Converted:
    """One group with an empty candidate, for methods that generate the responses; no other method accepts it."""
    yield row.group(text_or_messages(row.need("prompt")), [""])


def is_ranked(row: Values) -> bool:
    """Whether a row has a list of responses and a column of scores, ranks or comparisons."""
    return (
        "prompt" in row
        and "chosen" not in row
        and any(isinstance(row.get(name), list) for name in LISTS)
        and not row.keys().isdisjoint(WORTH)
    )


def ranked(row: Row) -> Converted:
    """One group with the scores, ranks, comparisons or preferred index of the row."""
    group = row.group(*join_prompt_and_responses(text_or_messages(row.need("prompt")), row.need(*LISTS).items()))
    k = len(group.candidates)
    row.need(*WORTH)
    pairwise, ranks = row.find("pairwise"), row.find(*RANKS)
    yield replace(
        group,
        comparisons=None if pairwise is None else _winner_pairs(pairwise, k),
        scores=_scores(row, k),
        ranks=None if ranks is None else tuple(_rank(cell) for cell in ranks.items_for(k)),
        preferred=_preferred(row, group.candidates),
    )


def _winner_pairs(pairwise: Cell, k: int) -> tuple[tuple[int, int], ...]:
    """(better, worse) index pairs of a list of {i, j, winner}; a tie gives no pair."""
    pairs = []
    for cell in pairwise.items():
        i, j, winner = cell.need("i").index(k), cell.need("j").index(k), cell.need("winner")
        if i == j or winner.whole() not in (0, 1, 2):
            raise cell.refusal("two different indices i and j, and winner 0 (i), 1 (j) or 2 (a tie)")
        if winner.value != 2:
            pairs.append((i, j) if winner.value == 0 else (j, i))
    return tuple(pairs)


def _rank(cell: Cell) -> int:
    """A rank counted from 1."""
    # A 0 is either a rank counted from 0 or an index in a list ordered from the best: the row does not tell which.
    if cell.whole() < 1:
        raise cell.refusal("the rank of the candidate at this place, counted from 1, the best", "add 1 to each rank")
    return cell.whole()


def _scores(row: Row, k: int) -> tuple[float, ...] | None:
    scores = row.find("scores")
    return None if scores is None else tuple(cell.number() for cell in scores.items_for(k))


def _preferred(row: Row, candidates: Sequence[Text]) -> int | None:
    """Index of the preferred candidate, which the row names by its index or its text."""
    cell = row.find(*PREFERRED)
    if cell is None:
        return None
    return cell.index(len(candidates)) if not isinstance(cell.value, str) else index_of_text(cell, candidates)


def index_of_text(cell: Cell, candidates: Sequence[Text]) -> int:
    """Index of the one candidate whose text, or text of its last message, equals the cell's text.

    Raises:
        DataError: no candidate has this text, or several have it.
    """
    texts = [text if isinstance(text, str) else content_of(text[-1]) for text in candidates]
    indices = [i for i, text in enumerate(texts) if text == cell.text()]
    if len(indices) != 1:
        times = f"which {len(indices)} of them are" if indices else "which none of them is"
        raise cell.refusal(
            f"the text of one of the {len(texts)} candidates, {times}, or its 0-based index",
            "write the candidate's text letter by letter, or its index",
        )
    return indices[0]


def _is_list_of_objects(value: object, key: str) -> bool:
    """Whether a value is a non-empty list of objects with this key."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and key in item for item in value)


def is_ultrafeedback(row: Values) -> bool:
    """Whether a row has the columns of UltraFeedback."""
    return not row.keys().isdisjoint({"instruction", "prompt"}) and _is_list_of_objects(
        row.get("completions"), "response"
    )


def ultrafeedback(row: Row) -> Converted:
    """One group with a rating of each completion as its score."""
    completions = row.need("completions").items()
    prompt, candidates = join_prompt_and_responses(
        text_or_messages(row.need("instruction", "prompt")), [cell.need("response") for cell in completions]
    )
    rating = next((name for name in RATINGS if all(cell.find(name) for cell in completions)), None)
    if rating is None:
        raise row.need("completions").refusal(f"one of {', '.join(RATINGS)} in each completion")
    row.read_log.count(f"scores taken from '{rating}' of the completions", row.where)
    yield replace(row.group(prompt, candidates), scores=tuple(cell.need(rating).number() for cell in completions))


def is_nemo_rl(row: Values) -> bool:
    """Whether a row has the columns of NeMo RL."""
    return "context" in row and _is_list_of_objects(row.get("completions"), "completion")


def nemo_rl(row: Row) -> Converted:
    """One group with the ranks of the completions."""
    completions = row.need("completions").items()
    prompt = text_or_messages(row.need("context"))
    group = row.group(*join_prompt_and_responses(prompt, [cell.need("completion") for cell in completions]))
    # NeMo RL's ranks start at 0, Penchant's at 1.
    yield replace(group, ranks=tuple(cell.need("rank").whole() + 1 for cell in completions))
