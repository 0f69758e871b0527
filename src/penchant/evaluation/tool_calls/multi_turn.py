"""Questions of several turns, whose functions are programs of the package `bfcl-eval` and change their state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from penchant.data.files import read_rows
from penchant.data.messages import Message
from penchant.errors import ConfigError, DataError
from penchant.evaluation.tool_calls.calls import Call, DueCall, Fault, Function
from penchant.evaluation.tool_calls.programs import DEFAULT_LIMITS, LimitError, Limits, ProgramProcess, Scenario
from penchant.evaluation.tool_calls.questions import (
    ANSWERS,
    FUNCTIONS,
    MULTI_TURN,
    ToolQuestion,
    category_files,
    no_question_left,
    read_single_turn,
)
from penchant.evaluation.tool_calls.reading import read_due_call

PACKAGE = "bfcl_eval"
INSTALL = "python -m pip install --no-deps bfcl-eval==2026.3.23"
"""No extra can name the package: it pins NumPy 1.26, which Penchant does not support and its programs do not need."""


@dataclass(frozen=True)
class MultiTurnQuestion:
    """A conversation's turns, the functions on offer in them, and the calls that are due.

    Attributes:
        turns: the new messages of every turn.
        functions: the functions on offer in the first turn.
        later_functions: the functions that are offered from a later turn on, by the turn's index.
        scenario: the programs, in the state that the first turn finds.
        due_calls: the calls that are due in every turn; a turn without any is not judged.
        max_steps: the number of answers with calls in a turn; the conversation ends after one more.
    """

    id: str
    category: str
    turns: tuple[tuple[Message, ...], ...]
    functions: tuple[Function, ...]
    later_functions: Mapping[int, tuple[Function, ...]]
    scenario: Scenario
    due_calls: tuple[tuple[DueCall, ...], ...]
    max_steps: int

    def step(self, turn: int, messages: Sequence[Message]) -> ToolQuestion:
        """The question of one answer: the conversation's messages so far, and the functions on offer in this turn."""
        later = (function for start, part in self.later_functions.items() if start <= turn for function in part)
        return ToolQuestion(self.id, self.category, tuple(messages), (*self.functions, *later), None)


def judge_calls(
    question: MultiTurnQuestion, turns: Sequence[Sequence[Sequence[Call]]], limits: Limits = DEFAULT_LIMITS
) -> Fault | None:
    """The fault of a finished conversation's calls; None if they are right.

    Args:
        turns: for every turn the answers with calls, as their calls.
        limits: limits of the process that executes the calls.
    """
    if len(turns) != len(question.due_calls):
        return Fault.STEPS
    try:
        with ProgramProcess(question.scenario, limits) as programs:
            for steps, due_calls in zip(turns, question.due_calls, strict=True):
                for calls in steps:
                    programs.execute(calls)
                fault = programs.end_turn(due_calls)
                if fault is not None:
                    return fault
    except LimitError:
        return Fault.LIMITS
    return None


@dataclass(frozen=True)
class Registry:
    """What the package knows beside the data files.

    Attributes:
        modules: the module of every class.
        stateless: the classes that have no state.
        documents: the file of every class's schemas in ``multi_turn_func_doc/``.
        more_functions: the user's message of a turn that offers more functions.
        max_steps: as in `MultiTurnQuestion`.
    """

    modules: Mapping[str, str]
    stateless: frozenset[str]
    documents: Mapping[str, str]
    more_functions: str
    max_steps: int

    @classmethod
    def from_package(cls, package: str = PACKAGE) -> Registry:
        """The registry of the installed package.

        Raises:
            ConfigError: it is another version, without these tables.
        """
        try:
            classes = import_module(f"{package}.constants.executable_backend_config")
            prompts = import_module(f"{package}.constants.default_prompts")
            return cls(
                classes.CLASS_FILE_PATH_MAPPING,
                frozenset(classes.STATELESS_CLASSES),
                classes.MULTI_TURN_FUNC_DOC_FILE_MAPPING,
                prompts.DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC,
                prompts.MAXIMUM_STEP_LIMIT,
            )
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"this version of bfcl-eval is not supported: {error}", fix=INSTALL) from error


def read_multi_turn(folder: Path, package: str = PACKAGE) -> tuple[list[MultiTurnQuestion], dict[str, str]]:
    """The multi-turn questions of a folder, as `read_single_turn` reads the others.

    Args:
        folder: the folder of the leaderboard's files, with ``multi_turn_func_doc/``.
        package: the package with the functions' programs.

    Returns:
        The questions, and the reason for every multi-turn category that was left out, by its name.

    Raises:
        DataError: a row has another form, or names a class, a function or a file that there is not.
    """
    files = [entry for entry in category_files(folder) if entry[0].startswith(MULTI_TURN)]
    if find_spec(package) is None:
        reason = f"its functions are programs of bfcl-eval: {INSTALL}"
        return [], {category: reason for category, _, _ in files}
    questions: list[MultiTurnQuestion] = []
    left_out: dict[str, str] = {}
    reader = _Reader(folder / FUNCTIONS, Registry.from_package(package)) if files else None
    for category, file, answers_file in files:
        if answers_file is None:
            left_out[category] = f"it has no {ANSWERS}/{file.name}"
        elif reader is not None:
            questions += reader.read(category, file, answers_file)
    return questions, left_out


def read_all(folder: Path) -> tuple[list[ToolQuestion | MultiTurnQuestion], dict[str, str]]:
    """The questions of a folder, of one turn and of several; the reason for every category that was left out.

    Raises:
        DataError: as `read_single_turn` and `read_multi_turn`, or no question is left.
    """
    single_turn, left_out = read_single_turn(folder)
    multi_turn, reasons = read_multi_turn(folder)
    read_categories = {question.category for question in multi_turn}
    left_out = {name: reason for name, reason in left_out.items() if name not in read_categories} | reasons
    if not single_turn and not multi_turn:
        raise no_question_left(folder, left_out)
    return [*single_turn, *multi_turn], left_out


class _Reader:
    """Reads the files of multi-turn categories.

    Args:
        documents: the folder with the schemas of every class's functions.
    """

    def __init__(self, documents: Path, registry: Registry) -> None:
        self._registry, self._documents = registry, documents
        self._functions = cache(self._read_functions)

    def read(self, category: str, file: Path, answers_file: Path) -> Iterator[MultiTurnQuestion]:
        """The questions of a category."""
        ground_truths = {str(row.get("id")): row.get("ground_truth") for _, row in read_rows(answers_file)}
        for where, row in read_rows(file):
            try:
                yield self._question(category, row, ground_truths)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                reason = error if isinstance(error, ValueError) else repr(error)
                raise DataError(
                    f"the row is not a multi-turn question: {reason}",
                    where=where,
                    fix=f"give id, question, initial_config and involved_classes, and its ground_truth in {ANSWERS}/",
                ) from error

    def _question(self, category: str, row: Mapping[str, Any], ground_truths: Mapping[str, Any]) -> MultiTurnQuestion:
        held_back = {int(turn): tuple(names) for turn, names in (row.get("missed_function") or {}).items()}
        functions = {function.name: function for name in row["involved_classes"] for function in self._functions(name)}
        later = {turn: tuple(functions.pop(name) for name in names) for turn, names in held_back.items()}
        turns = tuple(tuple(map(_message, messages)) for messages in row["question"])
        offer = (Message(role="user", content=self._registry.more_functions),)
        due_calls = tuple(tuple(map(read_due_call, calls)) for calls in ground_truths[str(row["id"])])
        if not turns or len(turns) != len(due_calls):
            raise ValueError(f"{len(turns)} turns, and calls that are due in {len(due_calls)}")
        empty = [turn for turn, messages in enumerate(turns) if not messages and turn not in later]
        if empty:
            raise ValueError(f"turn {empty[0]} has no message")
        states = {name: row["initial_config"].get(name) or {} for name in row["involved_classes"]}
        scenario = Scenario(
            {name: self._registry.modules[name] for name in states},
            {name: state for name, state in states.items() if name not in self._registry.stateless},
            long="long_context" in category,
        )
        return MultiTurnQuestion(
            str(row["id"]),
            category,
            tuple(offer if turn in later else messages for turn, messages in enumerate(turns)),
            tuple(functions.values()),
            later,
            scenario,
            due_calls,
            self._registry.max_steps,
        )

    def _read_functions(self, class_name: str) -> tuple[Function, ...]:
        if class_name not in self._registry.documents or class_name not in self._registry.modules:
            raise ValueError(f"bfcl-eval has no class {class_name!r}")
        file = self._documents / self._registry.documents[class_name]
        return tuple(Function.read(schema, where) for where, schema in read_rows(file))


def _message(message: Mapping[str, Any]) -> Message:
    if not isinstance(message["content"], str):
        raise ValueError("a message's content is no text")
    return Message(role=str(message["role"]), content=message["content"])
