"""Questions with functions on offer, in files of the Berkeley Function Calling Leaderboard (BFCL)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from penchant.data.files import is_data_file, read_rows, stem_of
from penchant.data.messages import Message, content_of
from penchant.errors import DataError
from penchant.evaluation.tool_calls.calls import Accepted, Call, Fault, Function, Language
from penchant.evaluation.tool_calls.matching import entries_as_lists, match_calls
from penchant.storage.files import write_atomically

ANSWERS = "possible_answer"
FUNCTIONS = "multi_turn_func_doc"
FILE_NAME = re.compile(r"BFCL_v\d+_")
NEEDS_CODE = "its functions are programs that must be run, and the data files do not hold them"
MULTI_TURN = "multi_turn"


@dataclass(frozen=True)
class ToolQuestion:
    """One question, the functions on offer and the accepted calls.

    Attributes:
        category: the category in the file's name.
        messages: the messages of the only turn.
        accepted: the accepted calls, all of which must be made; empty if no call is right, None if any call is right.
    """

    id: str
    category: str
    messages: tuple[Message, ...]
    functions: tuple[Function, ...]
    accepted: tuple[Accepted, ...] | None

    @property
    def language(self) -> Language:
        """The language of the category's calls."""
        words = self.category.split("_")
        return "java" if "java" in words else "javascript" if "javascript" in words else "python"

    @property
    def text(self) -> str:
        """The content of the last message."""
        return content_of(self.messages[-1])

    def fault(self, calls: list[Call] | None) -> Fault | None:
        """The fault of an answer's calls; None if they are right.

        Args:
            calls: the calls of the answer; None if none could be read.
        """
        if self.accepted is None:
            return None if calls else Fault.NO_CALL
        if not self.accepted:
            return Fault.UNCALLED_FOR if calls else None
        if calls is None:
            return Fault.NO_CALL
        return match_calls(calls, self.functions, self.accepted, language=self.language)


def read_bfcl(folder: Path) -> tuple[list[ToolQuestion], dict[str, str]]:
    """All questions of one turn of a folder, as `read_single_turn`.

    Raises:
        DataError: as `read_single_turn`, or the folder has no such question.
    """
    questions, left_out = read_single_turn(folder)
    if not questions:
        raise no_question_left(folder, left_out)
    return questions, left_out


def no_question_left(folder: Path, left_out: Mapping[str, str]) -> DataError:
    """The error for a folder without a question that can be measured."""
    reasons = ", ".join(f"{category}: {reason}" for category, reason in left_out.items())
    return DataError(f"no question is left ({reasons})", where=str(folder), fix="add files of other categories")


def read_single_turn(folder: Path) -> tuple[list[ToolQuestion], dict[str, str]]:
    """The questions of a folder with files ``BFCL_v*_CATEGORY.json`` and ``possible_answer/``, in any data format.

    An entry of an accepted dict that is no list, as in ``{"city": "Rome"}``, is read as a list of one accepted value.

    Returns:
        The questions, and the reason for every category or other file that was left out, by its name.

    Raises:
        DataError: the folder has no such file, or a row has another form.
    """
    questions: list[ToolQuestion] = []
    files = category_files(folder)
    data_files = {file for _, file, _ in files}
    left_out = {
        item.name + "/" * item.is_dir(): "it is not a file of questions"
        for item in sorted(folder.iterdir())
        if item.name[0] != "." and item.name not in (ANSWERS, FUNCTIONS) and item not in data_files
    }
    for category, file, answers_file in files:
        if category.startswith((MULTI_TURN, "memory", "web_search")):
            left_out[category] = NEEDS_CODE
        elif not category.endswith("relevance") and answers_file is None:
            left_out[category] = f"it has no {ANSWERS}/{file.name}"
        else:
            questions += _read_file(file, answers_file, category)
    return questions, left_out


def category_files(folder: Path) -> list[tuple[str, Path, Path | None]]:
    """Every category of a folder with its file of questions, and its file of answers if there is one.

    Raises:
        DataError: the folder has no file of questions, or two files differ only in their endings.
    """
    answers = _by_stem(folder / ANSWERS)
    files = [
        (FILE_NAME.sub("", stem), file, answers.get(stem))
        for stem, file in _by_stem(folder).items()
        if FILE_NAME.match(stem)
    ]
    if not files:
        raise DataError("the folder has no file BFCL_v*_CATEGORY.json", where=str(folder), fix="name the data's folder")
    return files


def _by_stem(folder: Path) -> dict[str, Path]:
    """Data files by their names without endings, in sorted order; empty if there is no such folder.

    Raises:
        DataError: two files differ only in their endings.
    """
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir() if folder.is_dir() else ()):
        if file.is_file() and is_data_file(file) and files.setdefault(stem_of(file), file) != file:
            raise DataError(
                f"{files[stem_of(file)].name} and {file.name} differ only in their endings",
                where=str(folder),
                fix="remove one of the two",
            )
    return files


def _read_file(file: Path, answers_file: Path | None, category: str) -> Iterator[ToolQuestion]:
    answers: Mapping[str, tuple[str, Any]] = {}
    if answers_file is not None and not category.endswith("relevance"):
        rows = read_rows(answers_file)
        answers = {str(row.get("id")): (f"{ANSWERS}/{where}", row.get("ground_truth")) for where, row in rows}
    for where, row in read_rows(file):
        try:
            turns, name = row["question"], str(row["id"])
            functions = tuple(Function.read(schema, where) for schema in row["function"])
            messages = tuple(Message(role=str(message["role"]), content=message["content"]) for message in turns[0])
        except (KeyError, TypeError, IndexError) as error:
            raise DataError(
                f"the row is not a question: {error!r}", where=where, fix="give id, question and function"
            ) from error
        if len(turns) != 1 or not messages:
            raise DataError(f"{len(turns)} turns; expected one", where=where, fix="leave this file out")
        if not all(isinstance(message["content"], str) for message in messages) or not content_of(messages[-1]).strip():
            raise DataError(f"question {name} has no text", where=where, fix="give its last message's content a text")
        question = ToolQuestion(name, category, messages, functions, accepted=None)
        yield replace(question, accepted=_accepted(question, answers, where))


def _accepted(
    question: ToolQuestion, answers: Mapping[str, tuple[str, Any]], where: str
) -> tuple[Accepted, ...] | None:
    if question.category.endswith("irrelevance"):
        return ()
    if question.category.endswith("relevance"):
        return None
    where, ground_truth = answers.get(question.id, (where, None))
    is_list_of_calls = isinstance(ground_truth, list) and all(
        isinstance(accepted_call, dict) and len(accepted_call) == 1 for accepted_call in ground_truth
    )
    if not ground_truth or not is_list_of_calls:
        raise DataError(
            f"there is no answer to {question.id}", where=where, fix=f"add it to {ANSWERS}/ as ground_truth"
        )
    return tuple(_accepted_call(question, accepted_call, where) for accepted_call in ground_truth)


def _accepted_call(question: ToolQuestion, accepted_call: Mapping[str, Any], where: str) -> Accepted:
    """One accepted call, checked, with the entries of accepted dicts as lists."""
    [(function_name, values)] = accepted_call.items()
    functions = {function.name: function for function in reversed(question.functions)}
    function = functions.get(function_name)
    if function is None or not isinstance(values, dict):
        names_on_offer = ", ".join(function.name for function in question.functions)
        raise DataError(
            f"the answer to {question.id} calls {function_name!r} with {values!r}",
            where=where,
            fix=f"a function on offer ({names_on_offer}), with a list of accepted values for each argument",
        )
    read = {}
    for name, accepted in values.items():
        if not isinstance(accepted, list):
            raise DataError(
                f"the answer to {question.id} accepts {accepted!r} as {name!r} of {function_name}",
                where=where,
                fix="give a list of the values that are right",
            )
        argument = function.arguments.get(name)
        read[name] = accepted if argument is None else entries_as_lists(accepted, argument, question.language)
    return {function_name: read}


class Categorised(Protocol):
    """Anything with a category."""

    @property
    def category(self) -> str: ...


Question = TypeVar("Question", bound=Categorised)


def select_questions(questions: Sequence[Question], categories: Sequence[str], limit: int | None) -> list[Question]:
    """The first questions of the named categories.

    Args:
        categories: names of categories; all categories if empty.
        limit: the number of questions per category, at most; None for no limit.

    Raises:
        DataError: there is no category of that name.
    """
    category_names = list(dict.fromkeys(question.category for question in questions))
    for name in categories:
        if name not in category_names:
            raise DataError(f"there is no category '{name}'", fix=f"one of {', '.join(category_names)}")
    return [
        selected
        for category in dict.fromkeys(categories or category_names)
        for selected in [question for question in questions if question.category == category][:limit]
    ]


def evenly_spaced(questions: Sequence[ToolQuestion], limit: int) -> list[ToolQuestion]:
    """At most `limit` questions, evenly spaced over the list, which holds one category after the other."""
    n = min(limit, len(questions))
    return [questions[number * len(questions) // n] for number in range(n)]


def write_bfcl(questions: Sequence[ToolQuestion], folder: Path) -> None:
    """Write questions as files that `read_bfcl` reads, after removing the folder's other files of questions."""
    for stem, file in [*_by_stem(folder).items(), *_by_stem(folder / ANSWERS).items()]:
        if FILE_NAME.match(stem):
            file.unlink()
    (folder / ANSWERS).mkdir(parents=True, exist_ok=True)
    for category in dict.fromkeys(question.category for question in questions):
        of_category = [question for question in questions if question.category == category]
        rows = [
            {
                "id": question.id,
                "question": [list(question.messages)],
                "function": [dict(function.schema) for function in question.functions],
            }
            for question in of_category
        ]
        _write_rows(folder / f"BFCL_v4_{category}.json", rows)
        if not category.endswith("relevance"):
            answers = [{"id": question.id, "ground_truth": list(question.accepted or ())} for question in of_category]
            _write_rows(folder / ANSWERS / f"BFCL_v4_{category}.json", answers)


def _write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
