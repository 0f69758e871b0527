"""Variants of a question with other names and values, which a model can only answer by reading the prompt.

A small model that was trained on a few hundred functions memorizes them instead of reading names, arguments and values
from the prompt. In a variant, functions and arguments have other names, and numbers and words of the question are
replaced in the question and in the answer.
"""

from __future__ import annotations

import keyword
import random
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from penchant.api import Accepted, Call, Function, Message, ToolQuestion, write_calls


def right_calls(question: ToolQuestion) -> list[Call]:
    """The accepted calls with the first accepted value of every argument; optional arguments are left out."""
    by_name = {function.name: function for function in question.functions}
    calls = []
    for accepted_call in question.accepted or ():
        [(name, accepted)] = accepted_call.items()
        function = by_name[name]
        arguments = {}
        for key, values in accepted.items():
            nonempty = [value for value in values if value != ""]
            is_needed = "" not in values or key in function.required
            if nonempty and is_needed and key in function.arguments:
                arguments[key] = _first_values(nonempty[0])
        calls.append(Call(name, arguments))
    return calls


def right_answer(question: ToolQuestion) -> str:
    """The right answer as the text after the prompt; ``[]`` without a call."""
    return f" {write_calls(right_calls(question))}"


def _first_values(value: Any) -> Any:
    """A value with only the first accepted value of every required dict entry; optional entries are left out."""
    if isinstance(value, dict):
        nonempty = {
            key: [v for v in element if v != ""] if isinstance(element, list) else [element]
            for key, element in value.items()
        }
        required_keys = (key for key, element in value.items() if not (isinstance(element, list) and "" in element))
        return {key: _first_values(nonempty[key][0]) for key in required_keys if nonempty[key]}
    return [_first_values(element) for element in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Vocabulary:
    """Lower-case words to make names and values of."""

    words: Sequence[str]

    @classmethod
    def from_questions(cls, questions: Sequence[ToolQuestion]) -> Vocabulary:
        """The words of 3 to 10 letters in questions and in the names on offer."""
        names = " ".join(
            name.replace("_", " ").replace(".", " ")
            for question in questions
            for function in question.functions
            for name in (function.name, *function.arguments)
        )
        texts = " ".join(question.text for question in questions)
        words = {word.lower() for word in re.findall(r"[A-Za-z]{3,10}", f"{names} {texts}")}
        return cls(sorted(word for word in words if not keyword.iskeyword(word)))

    def name(self, draw: random.Random, parts: int) -> str:
        """A random snake-case name of so many words."""
        return "_".join(draw.choices(self.words, k=parts))


NUMBER = r"-?\d+(?:\.\d+)?"
NUMERALS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
VALUE_DRAWS = 5

Spans = Sequence[tuple[int, int]]
Alternatives = Sequence[Any]


@dataclass(frozen=True)
class SwappableValues:
    """Values of a question that can be replaced.

    Attributes:
        spans: the positions of a spelling in the text, by spelling.
        answer_spellings: all spellings in the answer, in lower case.
    """

    spans: Mapping[str, Spans]
    answer_spellings: frozenset[str]

    @classmethod
    def from_question(cls, question: ToolQuestion) -> SwappableValues:
        """The values in the last message that can be replaced."""
        if not question.accepted:
            # No function can answer the question whatever its numbers are.
            spans_of_numbers = {} if question.accepted is None else _numbers(question.text)
            return cls(spans_of_numbers, frozenset())
        by_name = {function.name: function for function in question.functions}
        counts_per_call, spellings_per_call = [], []
        for call, accepted_call in zip(right_calls(question), question.accepted, strict=True):
            [(name, accepted)] = accepted_call.items()
            for key, values in accepted.items():
                counts_per_call.append(_spelling_counts(values))
                changeable = key in call.arguments and not _is_enum(by_name[name], key)
                spellings_per_call.append(_spellings(call.arguments[key]) if changeable else [])
        answer_counts = sum(counts_per_call, Counter[str]())
        all_spans: dict[str, Spans] = {}
        for n, spellings in enumerate(spellings_per_call):
            in_other_calls = {key for m, counts in enumerate(counts_per_call) if m != n for key in counts}
            for spelling in spellings:
                in_this_call = {other_spelling.casefold() for other_spelling in spellings}
                other_spellings = (in_other_calls | in_this_call) - {spelling.casefold()}
                spans = _certain_spans(spelling, question.text, answer_counts[spelling.casefold()], other_spellings)
                if spans:
                    all_spans[spelling] = spans
        return cls(all_spans, frozenset(answer_counts))

    def swap(self, question: ToolQuestion, words: Vocabulary, draw: random.Random) -> tuple[str, list[Accepted]]:
        """The text and the accepted calls with new values; a value without an unambiguous new one stays."""
        text = question.text
        new: dict[str, str] = {}
        for spelling in self.spans:
            for _ in range(VALUE_DRAWS):
                new_spelling = _random_spelling(spelling, words, draw)
                other_spellings = {*self.answer_spellings, *(key.casefold() for key in (*self.spans, *new.values()))}
                if not _spans(new_spelling, text) and not any(
                    _spans(new_spelling, other_spelling) or _spans(other_spelling, new_spelling)
                    for other_spelling in other_spellings
                ):
                    new[spelling] = new_spelling
                    break
        replacements = ((start, end, new[spelling]) for spelling in new for start, end in self.spans[spelling])
        for start, end, new_spelling in sorted(replacements, reverse=True):
            text = text[:start] + new_spelling + text[end:]
        by_key = {spelling.casefold(): new_spelling for spelling, new_spelling in new.items()}
        accepted: list[Accepted] = [
            {name: {key: _with_new_alternatives(values, by_key) for key, values in arguments.items()}}
            for accepted_call in question.accepted or ()
            for name, arguments in accepted_call.items()
        ]
        return text, accepted


def _certain_spans(spelling: str, text: str, answer_count: int, other_spellings: set[str]) -> Spans:
    """The positions of a spelling in the text; empty if one of them may mean something else.

    Args:
        answer_count: how often the answer's arguments hold the spelling.
        other_spellings: the other spellings of the answer, in lower case.
    """
    spans = _spans(spelling, text)
    if len(spans) != answer_count or any(text[start:end] != spelling for start, end in spans):
        return []
    if re.fullmatch(NUMBER, spelling):
        absolute = spelling.lstrip("-")
        if not _occurs_once(absolute, text) or any(
            absolute == other_spelling.lstrip("-") for other_spelling in other_spellings
        ):
            return []
    overlapping = (span for other_spelling in other_spellings for span in _spans(other_spelling, text))
    if any(_spans(spelling, other_spelling) for other_spelling in other_spellings) or any(
        start < until and since < end for start, end in overlapping for since, until in spans
    ):
        return []
    return spans


def _occurs_once(number: str, text: str) -> bool:
    """Whether a number occurs once in the text, counting 3x, x^3, negative numbers and number words."""
    count = len(re.findall(rf"(?<!\d)(?<!\d\.){re.escape(number)}(?!\d|\.\d)", text))
    if number.isdecimal() and int(number) < len(NUMERALS):
        count += len(_spans(NUMERALS[int(number)], text))
    return count == 1


def _spans(spelling: str, text: str) -> Spans:
    return [match.span() for match in re.finditer(_pattern(spelling), text, re.IGNORECASE)]


def _pattern(spelling: str) -> str:
    """A regular expression for the spelling outside of words, and of other numbers, times, dates, ranges and powers."""
    if not re.fullmatch(NUMBER, spelling):
        return rf"(?<!\w){re.escape(spelling)}(?!\w)"
    thousands = r"(?<!\d,)" if re.match(r"\d{3}(?!\d)", spelling) else ""
    return rf"(?<![\w.^*-])(?<!\d[:/]){thousands}{re.escape(spelling)}(?!\w|[.:/-]\d|,\d{{3}}(?!\d))"


def _numbers(text: str) -> dict[str, Spans]:
    return {number: _spans(number, text) for number in re.findall(NUMBER, text) if _spans(number, text)}


def _spelling(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _is_leaf(value: Any) -> bool:
    return isinstance(value, int | float | str) and not isinstance(value, bool) and value != ""


def _spellings(value: Any) -> list[str]:
    """The replaceable spellings in an argument's value."""
    if isinstance(value, list | tuple):
        return [spelling for part in value for spelling in _spellings(part)]
    if isinstance(value, dict):
        return [spelling for part in value.values() for spelling in _spellings(part)]
    is_swappable = isinstance(value, str) or re.fullmatch(NUMBER, _spelling(value))
    return [_spelling(value)] if _is_leaf(value) and is_swappable else []


def _spelling_counts(alternatives: Alternatives) -> Counter[str]:
    """The largest count of every lower-case spelling in any one of the accepted values."""
    counts = Counter[str]()
    for value in alternatives:
        counts |= _value_spelling_counts(value)
    return counts


def _value_spelling_counts(value: Any) -> Counter[str]:
    """The count of every lower-case spelling in a value."""
    if isinstance(value, list | tuple):
        return sum(map(_value_spelling_counts, value), Counter[str]())
    if isinstance(value, dict):
        # A dict entry is a list of accepted values.
        return sum(
            (_spelling_counts(entry if isinstance(entry, list) else [entry]) for entry in value.values()),
            Counter[str](),
        )
    return Counter([_spelling(value).casefold()] if _is_leaf(value) else [])


def _is_enum(function: Function, key: str) -> bool:
    """Whether the schema lists the argument's possible values."""
    return "enum" in function.schema["parameters"]["properties"][key]


def _random_spelling(spelling: str, words: Vocabulary, draw: random.Random) -> str:
    """A random number with as many digits, or a random text with as many words."""
    if re.fullmatch(NUMBER, spelling):
        integer, _, decimals = spelling.lstrip("-").partition(".")
        lowest = 10 ** (len(integer) - 1) if len(integer) > 1 else 0
        number = str(draw.randint(lowest, 10 ** len(integer) - 1))
        return f"{number}.{draw.randint(1, 9)}" if decimals else number
    new_words = draw.choices(words.words, k=len(spelling.split()))
    return " ".join(word.capitalize() if spelling[:1].isupper() else word for word in new_words)


def _with_new_alternatives(values: Alternatives, new: Mapping[str, str]) -> list[Any]:
    """The accepted values with new spellings, without those that hold other old spellings than the first value."""
    first_value = next((value for value in values if value != ""), "")
    new_counts = {key: n for key, n in _value_spelling_counts(first_value).items() if key in new}
    consistent = [
        value
        for value in values
        if value == "" or {key: n for key, n in _value_spelling_counts(value).items() if key in new} == new_counts
    ]
    new_values = [_with_new_spellings(value, new) for value in consistent]
    # Compared by repr, since 1 equals 1.0.
    return list({repr(value): value for value in new_values}.values())


def _with_new_spellings(value: Any, new: Mapping[str, str]) -> Any:
    """The value with new spellings by the lower-case old ones."""
    if isinstance(value, list | tuple):
        return [_with_new_spellings(element, new) for element in value]
    if isinstance(value, dict):
        return {
            key: _with_new_alternatives(element if isinstance(element, list) else [element], new)
            for key, element in value.items()
        }
    new_spelling = new.get(_spelling(value).casefold()) if _is_leaf(value) else None
    return value if new_spelling is None else type(value)(new_spelling)


TRIES = 20


@dataclass(frozen=True)
class NewNames:
    """New names of a question's functions and arguments by their old names."""

    functions: Mapping[str, str]
    arguments: Mapping[str, str]

    @classmethod
    def unchanged(cls, question: ToolQuestion) -> NewNames:
        """Names that are all equal to the old ones."""
        return cls(
            {function.name: function.name for function in question.functions},
            {name: name for function in question.functions for name in function.arguments},
        )

    def draw_others(self, words: Vocabulary, draw: random.Random, reserved_names: Collection[str]) -> NewNames:
        """Random distinct names, none of a function reserved; these names if no such draw succeeds."""
        for _ in range(TRIES):
            modules = [words.name(draw, 1) + "." if "." in name else "" for name in self.functions]
            functions = [module + words.name(draw, draw.randint(1, 3)) for module in modules]
            arguments = [words.name(draw, draw.randint(1, 2)) for _ in self.arguments]
            different = len(set(functions)) == len(functions) and len(set(arguments)) == len(arguments)
            # The parts of the data are kept apart by lower-case names.
            if different and not any(name.lower() in reserved_names for name in functions):
                return NewNames(
                    dict(zip(self.functions, functions, strict=True)), dict(zip(self.arguments, arguments, strict=True))
                )
        return self

    def rename_function(self, function: Function) -> Function:
        """The function with its new name and its arguments' new names."""
        name, properties = self.functions[function.name], function.schema["parameters"]["properties"]
        parameters = {
            **function.schema["parameters"],
            "properties": {self.arguments[key]: schema for key, schema in properties.items()},
            "required": [self.arguments[key] for key in function.required if key in self.arguments],
        }
        return Function.read({**function.schema, "name": name, "parameters": parameters}, name)

    def rename_call(self, accepted: Accepted) -> Accepted:
        """The accepted call with its new names, without arguments that no function takes."""
        return {
            self.functions[name]: {
                self.arguments[key]: values for key, values in arguments.items() if key in self.arguments
            }
            for name, arguments in accepted.items()
        }


def make_variant(
    question: ToolQuestion, words: Vocabulary, draw: random.Random, reserved_names: Collection[str] = ()
) -> ToolQuestion:
    """The question with other names and values, and the accepted calls with the same replacements.

    Half of the variants keep their names, so that the model also learns the names' meanings. So do questions without
    accepted calls, since only the names show that no function can answer them.

    Args:
        reserved_names: lower-case names that no function may get.
    """
    names = NewNames.unchanged(question)
    if question.accepted and draw.random() < 0.5:
        names = names.draw_others(words, draw, reserved_names)
    text, accepted = SwappableValues.from_question(question).swap(question, words, draw)
    last = Message(role=question.messages[-1]["role"], content=text)
    return replace(
        question,
        messages=(*question.messages[:-1], last),
        functions=tuple(map(names.rename_function, question.functions)),
        accepted=None if question.accepted is None else tuple(map(names.rename_call, accepted)),
    )


def with_unrelated_functions(
    variant_question: ToolQuestion, question: ToolQuestion, questions: Sequence[ToolQuestion], draw: random.Random
) -> ToolQuestion | None:
    """The variant with the functions of another question and no accepted call; None if no draw succeeds.

    The functions' names share no word with the question or its functions, since a function with a similar name may
    answer it after all.

    Args:
        variant_question: the variant.
        question: the question it is a variant of.
        questions: the questions whose functions are drawn.
    """
    stems = _word_stems(question.text, variant_question.text, *(function.name for function in question.functions))
    for _ in range(TRIES):
        functions = draw.choice(questions).functions
        if functions and not stems & _word_stems(*(function.name for function in functions)):
            return replace(variant_question, category="irrelevance", functions=functions, accepted=())
    return None


def _word_stems(*texts: str) -> set[str]:
    """The first four letters of all words with at least four, in lower case."""
    separated = re.sub(r"([a-z])([A-Z])", r"\1 \2", " ".join(texts)).replace("_", " ")
    return {word[:4].lower() for word in re.findall(r"[A-Za-z]{4,}", separated)}
