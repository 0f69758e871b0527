"""The registry of formats, the detection of a source's format, and the formats with a list of candidates."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from penchant.data import formats_pairs, title_questions
from penchant.data.conversations import TEMPLATE_COLUMNS, join_prompt_and_responses, text_or_messages
from penchant.data.fields import Cell, Row
from penchant.data.groups import PreferenceGroup, Text
from penchant.data.messages import content_of
from penchant.errors import DataError

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


def is_s_dpo(row: Mapping[str, Any]) -> bool:
    """Whether a row has the columns of S-DPO's recommendation data."""
    return set(title_questions.COLUMNS) <= row.keys()


def s_dpo(row: Row) -> Iterator[PreferenceGroup]:
    """One group: the prompt lists the history, and the candidates are the distinct items."""
    question = title_questions.title_question(row)
    prompt = "\n".join(["Chosen before, oldest first:", *question.history, "Chosen next:", ""])
    yield replace(row.group(prompt, question.candidates), preferred=question.target)


MAX_COLUMNS_LISTED = 12
LocatedRow = tuple[str, Mapping[str, Any]]
"""A row's location and its values."""


@dataclass(frozen=True)
class Format:
    """A format of preference data.

    Attributes:
        name: name in the configuration and on the command line.
        needs: its columns, with alternatives separated by ``|``; for errors.
        matches: whether a row without its null columns is in this format, judged by names and types alone.
        convert: function from a row to its groups; a row without groups is counted as left out.
    """

    name: str
    needs: tuple[str, ...]
    matches: Callable[[Mapping[str, Any]], bool]
    convert: Callable[[Row], Iterator[PreferenceGroup]]

    def lacks(self, columns: Sequence[str]) -> list[str]:
        """The needed columns that are not among these."""
        return [need for need in self.needs if not set(need.split("|")) & set(columns)]


# The first format that matches is chosen, so more specific formats come first.
_ALL = (
    Format("label_studio", ("data", "annotations"), formats_pairs.is_label_studio, formats_pairs.label_studio),
    Format("nemo_rl", ("context", "completions"), is_nemo_rl, nemo_rl),
    Format(
        "ultrafeedback",
        ("instruction|prompt", "completions"),
        is_ultrafeedback,
        ultrafeedback,
    ),
    Format("s_dpo", title_questions.COLUMNS, is_s_dpo, s_dpo),
    Format("penchant", ("prompt", "candidates"), is_penchant, penchant),
    Format(
        "ranked",
        ("prompt", "|".join(LISTS), "|".join(WORTH)),
        is_ranked,
        ranked,
    ),
    Format(
        "llama_factory",
        ("conversations|instruction", "chosen|output", "rejected|output"),
        formats_pairs.is_llama_factory,
        formats_pairs.llama_factory,
    ),
    Format(
        "ms_swift",
        ("messages", "rejected_response|rejected_messages"),
        formats_pairs.is_ms_swift,
        formats_pairs.ms_swift,
    ),
    Format(
        "several_rejected",
        ("prompt", "chosen", "rejected"),
        formats_pairs.is_several_rejected,
        formats_pairs.several_rejected,
    ),
    Format("pairs", ("prompt", "chosen", "rejected"), formats_pairs.is_pairs, formats_pairs.pairs),
    Format("hh", ("chosen", "rejected"), formats_pairs.is_hh, formats_pairs.hh),
    Format("implicit_prompt", ("chosen", "rejected"), formats_pairs.is_implicit_prompt, formats_pairs.implicit_prompt),
    Format("unpaired", ("completion|messages", "label"), formats_pairs.is_unpaired, formats_pairs.unpaired),
    Format(
        "sft",
        ("prompt|messages|conversations|instruction", "completion|messages|conversations|output"),
        formats_pairs.is_sft,
        formats_pairs.sft,
    ),
    Format("text", ("text",), formats_pairs.is_text, formats_pairs.text),
)
_PROMPTS = Format("prompts", ("prompt",), is_prompts, prompts)
FORMATS: dict[str, Format] = {format.name: format for format in (*_ALL, _PROMPTS)}


def format_named(name: str) -> Format:
    """The format with this name.

    Raises:
        DataError: there is no such format.
    """
    if name in FORMATS:
        return FORMATS[name]
    near = difflib.get_close_matches(name, FORMATS, 1)
    raise DataError(
        f"there is no format '{name}'; the formats are {', '.join(sorted(FORMATS))}",
        fix=f"data.format={near[0]}" if near else "leave data.format out to have it detected",
    )


def detect(rows: Sequence[LocatedRow], name: str) -> Format:
    """The one format of all rows.

    Args:
        rows: the rows with their locations.
        name: name of the source, for errors.

    Raises:
        DataError: the rows are in several formats, or a row is in none.
    """
    rows_by_format: dict[Format | None, list[int]] = {}
    for number, (_, values) in enumerate(rows):
        rows_by_format.setdefault(_format_of(values), []).append(number)
    if None in rows_by_format:
        other_formats = [_describe_rows(format, numbers, rows) for format, numbers in rows_by_format.items() if format]
        raise _unknown_format(rows[rows_by_format[None][0]], len(rows_by_format[None]), other_formats, name)
    if len(rows_by_format) > 1:
        counts = "; ".join(
            _describe_rows(format, numbers, rows) for format, numbers in rows_by_format.items() if format
        )
        names = [format.name for format in rows_by_format if format]
        raise DataError(
            f"rows of several formats: {counts}; expected one format",
            where=name,
            fix="correct the rows that are unlike the others, or put each format in a file of its own; "
            f"data.format={names[0]} reads every row as {names[0]}",
        )
    return next(format for format in rows_by_format if format)


def _format_of(values: Mapping[str, Any]) -> Format | None:
    present = {name: value for name, value in values.items() if value is not None}
    # A null in a needed column is a mistake in that format, not a sign of another format.
    for row in (present, values):
        for format in _ALL:
            if format.matches(row):
                return format
    # Prompts come last, because null responses are a mistake in pairs and do not make a row a prompt.
    return _PROMPTS if _PROMPTS.matches(present) else None


def _describe_rows(format: Format, numbers: Sequence[int], rows: Sequence[LocatedRow]) -> str:
    return f"{format.name} ({len(numbers)} row{'s' * (len(numbers) > 1)}, first: {rows[numbers[0]][0]})"


def _unknown_format(row: LocatedRow, count: int, other_formats: Sequence[str], name: str) -> DataError:
    where, values = row
    columns = list(values)
    column_names = ", ".join(columns[:MAX_COLUMNS_LISTED]) + (
        f" and {len(columns) - MAX_COLUMNS_LISTED} more" if len(columns) > MAX_COLUMNS_LISTED else ""
    )
    subject = f"row{'s' * (count > 1)} of no known format" if other_formats else "no known preference format"
    problem = f"{subject} (columns: {column_names or 'none'}); nearest are {_nearest_formats(columns)}"
    return DataError(
        f"{count} {problem}; the other rows are {'; '.join(other_formats)}" if other_formats else problem,
        where=where if other_formats else name,
        fix="map your columns to ours, as in data.columns={prompt: question, chosen: better, rejected: worse}; "
        "docs/data-formats.md shows each format",
    )


def _nearest_formats(columns: Sequence[str]) -> str:
    """The three formats with the fewest missing columns, the columns each misses, and similar names among these."""

    def distance(format: Format) -> tuple[float, int]:
        lacking = len(format.lacks(columns))
        # A format without any of its columns is not near, however few it needs.
        return (lacking / len(format.needs), lacking) if lacking < len(format.needs) else (1, 0)

    ordered = sorted([FORMATS["pairs"], FORMATS["penchant"], FORMATS["unpaired"], *_ALL], key=distance)
    return "; ".join(_describe_missing(format, columns) for format in list(dict.fromkeys(ordered))[:3])


def _describe_missing(format: Format, columns: Sequence[str]) -> str:
    lacks = format.lacks(columns)
    if not lacks:
        return f"{format.name} (has its columns, {', '.join(format.needs)}, but not of the types it takes)"
    descriptions = []
    for need in lacks:
        names = need.split("|")
        close = [near[0] for name in names if (near := difflib.get_close_matches(name, columns, 1))]
        descriptions.append(" or ".join(f"'{name}'" for name in names) + (f" (is it '{close[0]}'?)" if close else ""))
    return f"{format.name} (lacks {', '.join(descriptions)})"
