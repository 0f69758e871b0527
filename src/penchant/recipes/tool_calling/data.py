"""Questions in parts, their variants, and what a model is shown of them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from penchant.data.groups import Message, PreferenceGroup, Text, as_text
from penchant.data.reading import read_groups
from penchant.data.writing import write_anew
from penchant.errors import DataError
from penchant.evaluation.tool_calls.questions import ToolQuestion, read_bfcl, write_bfcl
from penchant.evaluation.tool_calls.reading import read_calls
from penchant.evaluation.tool_calls.styles import as_messages, as_signatures
from penchant.recipes.stages import StageResult
from penchant.recipes.tool_calling.config import ToolCallingConfig
from penchant.recipes.tool_calling.right import right_answer
from penchant.recipes.tool_calling.splitting import split
from penchant.recipes.tool_calling.variants import misplaced, variant
from penchant.recipes.tool_calling.vocabulary import Vocabulary

TRIES = 20
PAIRED, REWARDED = 1, 2
"""Draws of `fresh_questions`: for the pairs, and for the prompts of a reward."""


def prepare(config: ToolCallingConfig, folder: Path) -> StageResult:
    """Write the questions in three parts, and supervised groups of training and validation."""
    read, left_out = read_bfcl(Path(config.questions))
    # What any call would answer teaches no answer. What is taught must be right as it is written: an argument that is
    # called as a keyword of Python cannot be read back.
    usable = [
        each
        for each in read
        if each.accepted is not None and each.fault(read_calls(right_answer(each), each.language)) is None
    ]
    if not usable:
        raise DataError("no question with a right answer is left", where=config.questions, fix="add other categories")
    rest, test = split(usable, config.held_out, config.seed)
    train, validation = split(rest, config.held_out / (1 - config.held_out), config.seed)
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        write_bfcl(part, folder / name)
    varied = variants(config, train, config.variants, config.seed, names_of([*validation, *test]))
    steps = _trajectories(config)
    write_anew([*(as_group(config, each) for each in [*train, *varied]), *steps], folder / "supervised_train.jsonl")
    write_anew([as_group(config, each) for each in validation], folder / "supervised_validation.jsonl")
    return {
        "left_out": left_out,
        "no right answer": len(read) - len(usable),
        "questions": {
            name: dict(Counter(each.category for each in part))
            for name, part in (("train", train), ("validation", validation), ("test", test))
        },
        "variants": len(varied),
        "trajectories": len(steps),
    }


def variants(
    config: ToolCallingConfig, questions: Sequence[ToolQuestion], each: int, seed: int, taken: Collection[str]
) -> list[ToolQuestion]:
    """So many of each question at most, in rounds, no prompt twice; some under functions of which none serves.

    Args:
        taken: names in lower case that no function gets, as those of the other parts.
    """
    draw = random.Random(seed)
    words = Vocabulary.of(questions)
    seen = {as_text(ask(config, question)) for question in questions}
    found = []
    for number in range(each):
        for question in questions:
            made = variant(question, words, draw, taken)
            # Where no call is due names stay, and a question without a number has no variant of its own.
            for _ in range(TRIES if question.accepted else 0):
                if as_text(ask(config, made)) not in seen:
                    break
                made = variant(question, words, draw, taken)
            bare = not question.accepted and as_text(ask(config, made)) in seen
            if made.functions and (bare or draw.random() < config.mismatched):
                made = misplaced(made, question, questions, draw) or made
            prompt = as_text(ask(config, made))
            if prompt not in seen:
                seen.add(prompt)
                found.append(replace(made, id=f"{question.id}-v{seed}-{number}"))
    return found


def fresh_questions(config: ToolCallingConfig, data: Path, draw: int) -> list[ToolQuestion]:
    """The training questions, with other variants of them than the supervised ones.

    Args:
        data: the folder of stage data.
        draw: 1 or more; each draws other variants.
    """
    train, _ = read_bfcl(data / "train")
    return [*train, *variants(config, train, config.pairs.variants, config.seed + draw, held_out_names(data))]


def names_of(questions: Iterable[ToolQuestion]) -> frozenset[str]:
    """Of all functions on offer, in lower case."""
    return frozenset(function.name.lower() for question in questions for function in question.functions)


def held_out_names(data: Path) -> frozenset[str]:
    """`names_of` what `prepare` held out in this folder."""
    return names_of(question for part in ("validation", "test") for question in read_bfcl(data / part)[0])


def as_group(config: ToolCallingConfig, question: ToolQuestion) -> PreferenceGroup:
    """The question with its right answer, to be imitated."""
    answer = as_candidate(config, right_answer(question))
    return PreferenceGroup(ask(config, question), (answer,), id=question.id, source=question.category)


def ask(config: ToolCallingConfig, question: ToolQuestion) -> Text:
    """The prompt."""
    return as_signatures(question) if config.style == "signatures" else as_messages(question)


def as_candidate(config: ToolCallingConfig, answer: str) -> Text:
    """What stands after it."""
    return answer if config.style == "signatures" else (Message(role="assistant", content=answer.strip()),)


def _trajectories(config: ToolCallingConfig) -> list[PreferenceGroup]:
    if config.trajectories is None:
        return []
    groups = read_groups(config.trajectories).groups
    if any(len(group.candidates) != 1 for group in groups):
        raise DataError("a step has several answers", where=config.trajectories, fix="give prompt and completion")
    if any(isinstance(group.prompt, str) != (config.style == "signatures") for group in groups):
        raise DataError("steps are plain text where style is signatures, else messages", where=config.trajectories)
    return [replace(group, id=f"step-{group.id}", source="trajectories") for group in groups]
