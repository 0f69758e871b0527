"""Questions split into parts that share no function name and no text, their variants, prompts and answers."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from penchant.api import (
    STYLES,
    Call,
    DataError,
    Function,
    Message,
    PreferenceGroup,
    Text,
    ToolQuestion,
    as_text,
    read_bfcl,
    read_calls,
    read_groups,
    read_native_calls,
    split_by_prompt,
    write_anew,
    write_bfcl,
    write_native,
)
from penchant.recipes.stages import StageResult
from penchant.recipes.tool_calling.config import ToolCallingConfig
from penchant.recipes.tool_calling.variants import (
    Vocabulary,
    make_variant,
    right_answer,
    right_calls,
    with_unrelated_functions,
)


def families(questions: Sequence[ToolQuestion]) -> list[str]:
    """The name of every question's family: questions that share a function's name or a text are in one family.

    So are questions that are only connected through others. A family's name is the smallest of its function names, or
    its text if it has no function. It depends on the family alone, so that added questions do not rename families to
    which they do not belong.
    """
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        parents.setdefault(key, key)
        while parents[key] != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    for question in questions:
        first_key, *other_keys = _keys(question)
        for other_key in other_keys:
            # The smaller key is the root, which names the family.
            smaller, larger = sorted((root(first_key), root(other_key)))
            parents[larger] = smaller
    return [root(_keys(question)[0]) for question in questions]


def _keys(question: ToolQuestion) -> list[str]:
    names = sorted({function.name.lower() for function in question.functions})
    return [*(f"name {name}" for name in names), f"text {' '.join(question.text.lower().split())}"]


def split(questions: Sequence[ToolQuestion], share: float, seed: int) -> tuple[list[ToolQuestion], list[ToolQuestion]]:
    """Training and held-out questions in their order, with whole families held out.

    Args:
        share: the share of families to hold out.

    Raises:
        DataError: a side would be empty.
    """
    # Families are split as prompts are: those with the smallest hashes are held out.
    groups = [PreferenceGroup(family, ("",), id=str(n)) for n, family in enumerate(families(questions))]
    sides = split_by_prompt(groups, held_out=share, seed=seed)
    train, held_out = ([questions[int(group.id)] for group in side] for side in sides)
    return train, held_out


TRIES = 20
PAIRED, REWARDED = 1, 2
"""The seed offsets of `fresh_questions` for the pairs and for the prompts of a reward."""


def prepare(config: ToolCallingConfig, folder: Path) -> StageResult:
    """Write the three parts of the questions and the supervised groups; the result counts them."""
    read, left_out = read_bfcl(Path(config.questions))
    # A question that any call answers has no right answer to learn. A right answer must be right when it is read back,
    # which fails if an argument's name is a keyword of Python.
    answerable = [
        question
        for question in read
        if question.accepted is not None and question.fault(_read_back(config, question)) is None
    ]
    if not answerable:
        raise DataError("no question with a right answer is left", where=config.questions, fix="add other categories")
    training_and_validation, test = split(answerable, config.held_out, config.seed)
    train, validation = split(training_and_validation, config.held_out / (1 - config.held_out), config.seed)
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        write_bfcl(part, folder / name)
    new_variants = variants(config, train, config.variants, config.seed, function_names([*validation, *test]))
    steps = _trajectories(config)
    write_anew(
        [*(as_group(config, question) for question in [*train, *new_variants]), *steps],
        folder / "supervised_train.jsonl",
    )
    write_anew([as_group(config, question) for question in validation], folder / "supervised_validation.jsonl")
    return {
        "left_out": left_out,
        "no right answer": len(read) - len(answerable),
        "questions": {
            name: dict(Counter(question.category for question in part))
            for name, part in (("train", train), ("validation", validation), ("test", test))
        },
        "variants": len(new_variants),
        "trajectories": len(steps),
    }


def variants(
    config: ToolCallingConfig,
    questions: Sequence[ToolQuestion],
    rounds: int,
    seed: int,
    reserved_names: Collection[str],
) -> list[ToolQuestion]:
    """Variants of questions without a repeated prompt, some of them with functions that cannot answer the question.

    Args:
        rounds: the number of variants per question, at most.
        reserved_names: lower-case names that no function may get, such as those of the other parts.
    """
    draw = random.Random(seed)
    words = Vocabulary.from_questions(questions)
    prompts = {as_text(question_prompt(config, question)) for question in questions}
    new_questions = []
    for number in range(rounds):
        for question in questions:
            candidate = make_variant(question, words, draw, reserved_names)
            # A question without accepted calls keeps its names, and without a number it has no variant.
            for _ in range(TRIES if question.accepted else 0):
                if as_text(question_prompt(config, candidate)) not in prompts:
                    break
                candidate = make_variant(question, words, draw, reserved_names)
            is_repeated = not question.accepted and as_text(question_prompt(config, candidate)) in prompts
            if candidate.functions and (is_repeated or draw.random() < config.mismatched):
                candidate = with_unrelated_functions(candidate, question, questions, draw) or candidate
            prompt = as_text(question_prompt(config, candidate))
            if prompt not in prompts:
                prompts.add(prompt)
                new_questions.append(replace(candidate, id=f"{question.id}-v{seed}-{number}"))
    return new_questions


def fresh_questions(config: ToolCallingConfig, data: Path, draw: int) -> list[ToolQuestion]:
    """The training questions and variants of them that differ from the supervised ones.

    Args:
        data: the folder of stage data.
        draw: the seed offset, 1 or more; every offset gives other variants.
    """
    train, _ = read_bfcl(data / "train")
    return [*train, *variants(config, train, config.pairs.variants, config.seed + draw, held_out_function_names(data))]


def function_names(questions: Iterable[ToolQuestion]) -> frozenset[str]:
    """The lower-case names of all functions on offer."""
    return frozenset(function.name.lower() for question in questions for function in question.functions)


def held_out_function_names(data: Path) -> frozenset[str]:
    """The lower-case names of the functions in the validation and test parts that `prepare` wrote."""
    return function_names(question for part in ("validation", "test") for question in read_bfcl(data / part)[0])


def as_group(config: ToolCallingConfig, question: ToolQuestion) -> PreferenceGroup:
    """A group of the question's prompt and its right answer."""
    answer = STYLES[config.style].write(right_calls(question))
    return PreferenceGroup(question_prompt(config, question), (answer,), id=question.id, source=question.category)


def question_prompt(config: ToolCallingConfig, question: ToolQuestion) -> Text:
    """The prompt of a question in the configured style."""
    return STYLES[config.style].ask(question)


def _read_back(config: ToolCallingConfig, question: ToolQuestion) -> list[Call] | None:
    """The calls of the right answer as they are read from its text; None if they cannot be read."""
    if config.style == "native":
        return [Call(call.name, json.loads(json.dumps(dict(call.arguments)))) for call in right_calls(question)]
    return read_calls(right_answer(question), question.language)


def as_candidate(config: ToolCallingConfig, answer: str, functions: Sequence[Function]) -> Text:
    """A model's answer as the candidate after the prompt, in the configured style.

    Args:
        functions: the functions on offer.
    """
    if config.style == "signatures":
        return f" {answer.strip()}"
    if config.style == "native" and (calls := read_native_calls(answer, functions)):
        # The template writes the calls with its control tokens, which in a message's text are no control tokens.
        return write_native(calls)
    return (Message(role="assistant", content=answer.strip()),)


def _trajectories(config: ToolCallingConfig) -> list[PreferenceGroup]:
    if config.trajectories is None:
        return []
    groups = read_groups(config.trajectories).groups
    if any(len(group.candidates) != 1 for group in groups):
        raise DataError("a step has several answers", where=config.trajectories, fix="give prompt and completion")
    if any(isinstance(group.prompt, str) != (config.style == "signatures") for group in groups):
        raise DataError(
            "steps must be plain text for style signatures, and messages for the other styles",
            where=config.trajectories,
        )
    return [replace(group, id=f"step-{group.id}", source="trajectories") for group in groups]
