"""Questions with functions on offer, from files of the Berkeley Function Calling Leaderboard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from penchant.data.files import is_data_file, read_rows, stem_of
from penchant.data.messages import Message, content_of
from penchant.errors import DataError
from penchant.evaluation.files import write_atomically
from penchant.evaluation.tool_calls.calls import Accepted, Call, Fault, Function, Language
from penchant.evaluation.tool_calls.matching import entries_as_lists, match_calls

ANSWERS = "possible_answer"
FILE_NAME = re.compile(r"BFCL_v\d+_")
NEEDS_CODE = "its functions are programs to be run, which are not data"


@dataclass(frozen=True)
class ToolQuestion:
    """One question, what may be called, and what is due.

    Attributes:
        category: as the file's name calls it.
        messages: of the only turn.
        accepted: the calls that are due; empty where none is, None where any will do.
    """

    id: str
    category: str
    messages: tuple[Message, ...]
    functions: tuple[Function, ...]
    accepted: tuple[Accepted, ...] | None

    @property
    def language(self) -> Language:
        words = self.category.split("_")
        return "java" if "java" in words else "javascript" if "javascript" in words else "python"

    @property
    def text(self) -> str:
        """What the last message says."""
        return content_of(self.messages[-1])

    def fault(self, calls: list[Call] | None) -> Fault | None:
        """What is wrong with an answer's calls (None: no calls could be read); None where nothing is."""
        if self.accepted is None:
            return None if calls else Fault.NO_CALL
        if not self.accepted:
            return Fault.UNCALLED_FOR if calls else None
        if calls is None:
            return Fault.NO_CALL
        return match_calls(calls, self.functions, self.accepted, language=self.language)


def read_bfcl(folder: Path) -> tuple[list[ToolQuestion], dict[str, str]]:
    """All questions of files ``BFCL_v*_CATEGORY.json`` and of ``possible_answer/``, in any kind of data file.

    An entry of an accepted dict, ``{"city": "Rome"}``, is read as a list of the one value that is right.

    Returns:
        The questions, and by category, or by a file that is none, why it was left out.

    Raises:
        DataError: there is no such file, or a row is not as expected.
    """
    files = _by_stem(folder)
    if not any(map(FILE_NAME.match, files)):
        raise DataError("there is no file BFCL_v*_CATEGORY.json in it", where=str(folder), fix="name the data's folder")
    questions: list[ToolQuestion] = []
    answers = _by_stem(folder / ANSWERS)
    data_files = set(files.values())
    left_out = {
        item.name + "/" * item.is_dir(): "it is no file of questions"
        for item in sorted(folder.iterdir())
        if item.name[0] != "."
        and item.name != ANSWERS
        and (item not in data_files or not FILE_NAME.match(stem_of(item)))
    }
    for stem, file in files.items():
        if not FILE_NAME.match(stem):
            continue
        category = FILE_NAME.sub("", stem)
        if category.startswith(("multi_turn", "memory", "web_search")):
            left_out[category] = NEEDS_CODE
        elif not category.endswith("relevance") and stem not in answers:
            left_out[category] = f"it has no {ANSWERS}/{file.name}"
        else:
            questions += _read_file(file, answers.get(stem), category)
    if not questions:
        told = ", ".join(f"{category}: {why}" for category, why in left_out.items())
        raise DataError(f"no question is left ({told})", where=str(folder), fix="add files of other categories")
    return questions, left_out


def _by_stem(folder: Path) -> dict[str, Path]:
    """Data files by their names without endings, in order.

    Raises:
        DataError: two files differ in their endings alone.
    """
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir() if folder.is_dir() else ()):
        if file.is_file() and is_data_file(file) and files.setdefault(stem_of(file), file) != file:
            raise DataError(
                f"{files[stem_of(file)].name} and {file.name} are one file of questions twice",
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
            raise DataError(f"no question: {error!r}", where=where, fix="a row is id, question and function") from error
        if len(turns) != 1 or not messages:
            raise DataError(f"{len(turns)} turns; expected one", where=where, fix="leave this file out")
        if not all(isinstance(message["content"], str) for message in messages) or not content_of(messages[-1]).strip():
            raise DataError(f"question {name} says nothing", where=where, fix="give its last message's content a text")
        question = ToolQuestion(name, category, messages, functions, accepted=None)
        yield replace(question, accepted=_accepted(question, answers, where))


def _accepted(
    question: ToolQuestion, answers: Mapping[str, tuple[str, Any]], where: str
) -> tuple[Accepted, ...] | None:
    if question.category.endswith("irrelevance"):
        return ()
    if question.category.endswith("relevance"):
        return None
    where, due = answers.get(question.id, (where, None))
    if not isinstance(due, list) or not due or not all(isinstance(each, dict) and len(each) == 1 for each in due):
        raise DataError(
            f"there is no answer to {question.id}", where=where, fix=f"add it to {ANSWERS}/ as ground_truth"
        )
    return tuple(_due(question, each, where) for each in due)


def _due(question: ToolQuestion, due: Mapping[str, Any], where: str) -> Accepted:
    """One call that is due, checked."""
    [(called, values)] = due.items()
    function = next((each for each in question.functions if each.name == called), None)
    if function is None or not isinstance(values, dict):
        offered = ", ".join(each.name for each in question.functions)
        raise DataError(
            f"the answer to {question.id} calls {called!r} with {values!r}",
            where=where,
            fix=f"a function on offer ({offered}), with a list of accepted values for each argument",
        )
    read = {}
    for name, accepted in values.items():
        if not isinstance(accepted, list):
            raise DataError(
                f"the answer to {question.id} accepts {accepted!r} as {name!r} of {called}",
                where=where,
                fix="give a list of the values that are right",
            )
        argument = function.arguments.get(name)
        read[name] = accepted if argument is None else entries_as_lists(accepted, argument, question.language)
    return {called: read}


def choose(questions: Sequence[ToolQuestion], categories: Sequence[str], limit: int | None) -> list[ToolQuestion]:
    """Those of some categories (of all, where none is named), at most so many of each.

    Raises:
        DataError: there is no such category.
    """
    known = list(dict.fromkeys(each.category for each in questions))
    for name in categories:
        if name not in known:
            raise DataError(f"there is no category '{name}'", fix=f"one of {', '.join(known)}")
    return [
        each
        for category in dict.fromkeys(categories or known)
        for each in [question for question in questions if question.category == category][:limit]
    ]


def spread(questions: Sequence[ToolQuestion], most: int) -> list[ToolQuestion]:
    """So many of them, evenly spaced: files are read one category after the other."""
    n = min(most, len(questions))
    return [questions[number * len(questions) // n] for number in range(n)]


def write_bfcl(questions: Sequence[ToolQuestion], folder: Path) -> None:
    """As `read_bfcl` reads them; files of other questions that are there are taken away first."""
    for stem, file in [*_by_stem(folder).items(), *_by_stem(folder / ANSWERS).items()]:
        if FILE_NAME.match(stem):
            file.unlink()
    (folder / ANSWERS).mkdir(parents=True, exist_ok=True)
    for category in dict.fromkeys(each.category for each in questions):
        own = [each for each in questions if each.category == category]
        rows = [
            {"id": each.id, "question": [list(each.messages)], "function": [dict(f.schema) for f in each.functions]}
            for each in own
        ]
        _write_rows(folder / f"BFCL_v4_{category}.json", rows)
        if not category.endswith("relevance"):
            answers = [{"id": each.id, "ground_truth": list(each.accepted or ())} for each in own]
            _write_rows(folder / ANSWERS / f"BFCL_v4_{category}.json", answers)


def _write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
