"""Values that a question says and its answer holds, swapped for others in both.

Only where it is sure. Words are swapped where the question says them exactly as often as arguments of the answer hold
them: said more often, they also mean something else; said less often, an argument has them from elsewhere. A number is
swapped where it is said once and held once: of two, one may be another thing (5 % for 5 years, both calls for 5 years).
Every place and every argument then has the new value, so that none is left to contradict.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penchant.evaluation.tool_calls.calls import Accepted, Function
from penchant.evaluation.tool_calls.questions import ToolQuestion
from penchant.recipes.tool_calling.right import right_calls
from penchant.recipes.tool_calling.vocabulary import Vocabulary

NUMBER = r"-?\d+(?:\.\d+)?"
NUMERALS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
TRIES = 5

Spans = Sequence[tuple[int, int]]
Alternatives = Sequence[Any]


@dataclass(frozen=True)
class Said:
    """Values of a question that can be swapped.

    Attributes:
        places: by spelling, where the text says it.
        held: all spellings that the answer holds, in lower case.
    """

    places: Mapping[str, Spans]
    held: frozenset[str]

    @classmethod
    def by(cls, question: ToolQuestion) -> Said:
        """What the last message says."""
        if not question.accepted:
            # Whatever its numbers are, none of the functions serves.
            said = {} if question.accepted is None else _numbers(question.text)
            return cls(said, frozenset())
        by_name = {function.name: function for function in question.functions}
        held, written = [], []
        for call, due in zip(right_calls(question), question.accepted, strict=True):
            [(name, accepted)] = due.items()
            for key, values in accepted.items():
                held.append(_held(values))
                changeable = key in call.arguments and not _listed(by_name[name], key)
                written.append(_spellings(call.arguments[key]) if changeable else [])
        every = sum(held, Counter[str]())
        places: dict[str, Spans] = {}
        for n, own in enumerate(written):
            elsewhere = {each for m, other in enumerate(held) if m != n for each in other}
            for spelling in own:
                others = elsewhere.union(each.casefold() for each in own) - {spelling.casefold()}
                spans = _sure(spelling, question.text, every[spelling.casefold()], others)
                if spans:
                    places[spelling] = spans
        return cls(places, frozenset(every))

    def swapped(self, question: ToolQuestion, words: Vocabulary, draw: random.Random) -> tuple[str, list[Accepted]]:
        """The text and what is accepted, with other values; a value for which none is free stays."""
        text = question.text
        new: dict[str, str] = {}
        for spelling in self.places:
            for _ in range(TRIES):
                made = _another(spelling, words, draw)
                others = {*self.held, *(each.casefold() for each in (*self.places, *new.values()))}
                if not _spans(made, text) and not any(_spans(made, each) or _spans(each, made) for each in others):
                    new[spelling] = made
                    break
        spans = ((start, end, made) for spelling, made in new.items() for start, end in self.places[spelling])
        for start, end, made in sorted(spans, reverse=True):
            text = text[:start] + made + text[end:]
        by_key = {spelling.casefold(): made for spelling, made in new.items()}
        accepted: list[Accepted] = [
            {name: {key: _alternatives(values, by_key) for key, values in each.items()}}
            for due in question.accepted or ()
            for name, each in due.items()
        ]
        return text, accepted


def _sure(spelling: str, text: str, holders: int, others: set[str]) -> Spans:
    """Where the text says it; nowhere, if that may mean anything else."""
    spans = _spans(spelling, text)
    if len(spans) != holders or any(text[start:end] != spelling for start, end in spans):
        return []
    if re.fullmatch(NUMBER, spelling):
        bare = spelling.lstrip("-")
        if not _is_said_once(bare, text) or any(bare == other.lstrip("-") for other in others):
            return []
    overlapping = (span for other in others for span in _spans(other, text))
    if any(_spans(spelling, other) for other in others) or any(
        start < until and since < end for start, end in overlapping for since, until in spans
    ):
        return []
    return spans


def _is_said_once(number: str, text: str) -> bool:
    """Also as a part of 3x or x^3, below zero, and in words."""
    said = len(re.findall(rf"(?<!\d)(?<!\d\.){re.escape(number)}(?!\d|\.\d)", text))
    if number.isdecimal() and int(number) < len(NUMERALS):
        said += len(_spans(NUMERALS[int(number)], text))
    return said == 1


def _spans(spelling: str, text: str) -> Spans:
    return [found.span() for found in re.finditer(_pattern(spelling), text, re.IGNORECASE)]


def _pattern(spelling: str) -> str:
    """It alone: not in a word, and no part of another number, of a time, a date, a range or a power."""
    if not re.fullmatch(NUMBER, spelling):
        return rf"(?<!\w){re.escape(spelling)}(?!\w)"
    thousands = r"(?<!\d,)" if re.match(r"\d{3}(?!\d)", spelling) else ""
    return rf"(?<![\w.^*-])(?<!\d[:/]){thousands}{re.escape(spelling)}(?!\w|[.:/-]\d|,\d{{3}}(?!\d))"


def _numbers(text: str) -> dict[str, Spans]:
    return {each: _spans(each, text) for each in re.findall(NUMBER, text) if _spans(each, text)}


def _spelled(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _is_leaf(value: Any) -> bool:
    return isinstance(value, int | float | str) and not isinstance(value, bool) and value != ""


def _spellings(value: Any) -> list[str]:
    """What an argument's value says, as far as it can be said otherwise."""
    if isinstance(value, list | tuple):
        return [each for part in value for each in _spellings(part)]
    if isinstance(value, dict):
        return [each for part in value.values() for each in _spellings(part)]
    known = isinstance(value, str) or re.fullmatch(NUMBER, _spelled(value))
    return [_spelled(value)] if _is_leaf(value) and known else []


def _held(alternatives: Alternatives) -> Counter[str]:
    """How often any one of some accepted values holds each spelling, in lower case."""
    found = Counter[str]()
    for value in alternatives:
        found |= _holds(value)
    return found


def _holds(value: Any) -> Counter[str]:
    if isinstance(value, list | tuple):
        return sum(map(_holds, value), Counter[str]())
    if isinstance(value, dict):
        # What a dict accepts for a key is a list of values.
        return sum((_held(each if isinstance(each, list) else [each]) for each in value.values()), Counter[str]())
    return Counter([_spelled(value).casefold()] if _is_leaf(value) else [])


def _listed(function: Function, key: str) -> bool:
    """Whether the schema names the values that it may have."""
    return "enum" in function.schema["parameters"]["properties"][key]


def _another(spelling: str, words: Vocabulary, draw: random.Random) -> str:
    """A number of as many digits, or as many words."""
    if re.fullmatch(NUMBER, spelling):
        whole, _, decimals = spelling.lstrip("-").partition(".")
        first = 10 ** (len(whole) - 1) if len(whole) > 1 else 0
        made = str(draw.randint(first, 10 ** len(whole) - 1))
        return f"{made}.{draw.randint(1, 9)}" if decimals else made
    made_of = draw.choices(words.words, k=len(spelling.split()))
    return " ".join(word.capitalize() if spelling[:1].isupper() else word for word in made_of)


def _alternatives(values: Alternatives, new: Mapping[str, str]) -> list[Any]:
    """Those that can be said with the new values: that say all the first one says of the old."""
    first = next((value for value in values if value != ""), "")
    due = {key: n for key, n in _holds(first).items() if key in new}
    kept = (v for v in values if v == "" or {key: n for key, n in _holds(v).items() if key in new} == due)
    # Told apart by how they are written, as 1 equals 1.0.
    return list({repr(made): made for made in (_new(value, new) for value in kept)}.values())


def _new(value: Any, new: Mapping[str, str]) -> Any:
    if isinstance(value, list | tuple):
        return [_new(each, new) for each in value]
    if isinstance(value, dict):
        return {key: _alternatives(each if isinstance(each, list) else [each], new) for key, each in value.items()}
    made = new.get(_spelled(value).casefold()) if _is_leaf(value) else None
    return value if made is None else type(value)(made)
