"""Pairs of right and wrong answers: corruptions of right answers, and wrong answers of a weaker model."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from penchant.api import (
    STYLES,
    Call,
    DataError,
    PreferenceGroup,
    Sampling,
    Text,
    ToolQuestion,
    content_of,
    context_of,
    read_bfcl,
    read_groups,
    style_leak,
    with_context,
    write_anew,
)
from penchant.recipes.reading import generate_answers
from penchant.recipes.results import read_verdicts
from penchant.recipes.stages import StageResult
from penchant.recipes.tool_calling.config import ToolCallingConfig
from penchant.recipes.tool_calling.data import PAIRED, as_candidate, as_group, fresh_questions, question_prompt
from penchant.recipes.tool_calling.variants import right_calls

Corrupted = list[Call] | None
"""Corrupted calls; None if the corruption does not apply to the question."""


def corrupt(question: ToolQuestion, draw: random.Random) -> dict[str, list[Call]]:
    """A wrong answer by kind of corruption, without the kinds whose result does not apply or is right after all."""
    calls = right_calls(question)
    candidates = {name: change(question, list(calls), draw) for name, change in CORRUPTIONS.items()}
    return {
        name: wrong for name, wrong in candidates.items() if wrong is not None and question.fault(wrong) is not None
    }


def _wrong_function(question: ToolQuestion, calls: list[Call], draw: random.Random) -> Corrupted:
    """Calls with one function replaced by another on offer, or by an invented one if there is no other."""
    if not calls:
        return None
    n = draw.randrange(len(calls))
    other_names = [function.name for function in question.functions if function.name != calls[n].name]
    invented = f"{calls[n].name.rsplit('.', 1)[-1]}_v2"
    calls[n] = replace(calls[n], name=draw.choice(other_names) if other_names else invented)
    return calls


def _missing_argument(question: ToolQuestion, calls: list[Call], draw: random.Random) -> Corrupted:
    return _change_argument(calls, draw, lambda arguments, name: {k: v for k, v in arguments.items() if k != name})


def _extra_argument(question: ToolQuestion, calls: list[Call], draw: random.Random) -> Corrupted:
    """Calls with one argument too many, named like an argument of another function or by an invented name."""
    if not calls:
        return None
    n = draw.randrange(len(calls))
    called_function = next(function for function in question.functions if function.name == calls[n].name)
    names = {name for function in question.functions for name in function.arguments} - set(called_function.arguments)
    name = draw.choice(sorted(names)) if names else "verbose"
    calls[n] = Call(calls[n].name, {**calls[n].arguments, name: draw.choice([True, 1, "default"])})
    return calls


def _other_type(question: ToolQuestion, calls: list[Call], draw: random.Random) -> Corrupted:
    return _change_argument(calls, draw, lambda arguments, name: {**arguments, name: _change_type(arguments[name])})


def _wrong_value(question: ToolQuestion, calls: list[Call], draw: random.Random) -> Corrupted:
    return _change_argument(
        calls, draw, lambda arguments, name: {**arguments, name: _similar_value(arguments[name], draw)}
    )


def _extra_call(question: ToolQuestion, calls: list[Call], draw: random.Random) -> Corrupted:
    """Calls with the last call repeated, with another value if it has arguments."""
    if not calls:
        return None
    return [*calls, *(_wrong_value(question, calls[-1:], draw) or calls[-1:])]


def _missing_call(question: ToolQuestion, calls: list[Call], draw: random.Random) -> Corrupted:
    """Calls without one of them."""
    if not calls:
        return None
    del calls[draw.randrange(len(calls))]
    return calls


def _unneeded_call(question: ToolQuestion, calls: list[Call], draw: random.Random) -> Corrupted:
    """A call of a function that cannot answer the question, with words of it as required arguments."""
    if calls or question.accepted is None or not question.functions:
        return None
    function = draw.choice(question.functions)
    words = question.text.split()
    default_values: Mapping[str, Any] = {
        "integer": 1,
        "float": 1.0,
        "boolean": True,
        "array": [],
        "tuple": [],
        "dict": {},
    }
    arguments = {
        name: default_values.get(function.arguments[name].type, draw.choice(words)) for name in function.required
    }
    return [Call(function.name, arguments)]


CORRUPTIONS: Mapping[str, Callable[[ToolQuestion, list[Call], random.Random], Corrupted]] = {
    "wrong function": _wrong_function,
    "missing argument": _missing_argument,
    "extra argument": _extra_argument,
    "other type": _other_type,
    "wrong value": _wrong_value,
    "extra call": _extra_call,
    "missing call": _missing_call,
    "call where none is due": _unneeded_call,
}


def _change_argument(
    calls: Sequence[Call], draw: random.Random, change: Callable[[Mapping[str, Any], str], dict[str, Any]]
) -> Corrupted:
    """Calls with the arguments of one call changed at one random name."""
    arguments = [(n, name) for n, call in enumerate(calls) for name in call.arguments]
    if not arguments:
        return None
    n, name = draw.choice(arguments)
    new_calls = list(calls)
    new_calls[n] = Call(calls[n].name, change(calls[n].arguments, name))
    return new_calls


def _change_type(value: Any) -> Any:
    """A value of another type with the same content."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple):
        return value[0] if value else None
    return str(value)


def _similar_value(value: Any, draw: random.Random) -> Any:
    """A similar value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + draw.choice([1, -1, 10])
    if isinstance(value, str):
        words = value.split()
        return " ".join(words[:-1]) if len(words) > 1 else f"{value}s"
    if isinstance(value, list) and value:
        return value[:-1] if len(value) > 1 else [_similar_value(value[0], draw)]
    if isinstance(value, dict) and value:
        key = draw.choice(sorted(value, key=str))
        return {**value, key: _similar_value(value[key], draw)}
    return [value]


QUEUE = "queue.jsonl"
WEAKER_ANSWER = "the weaker model's own"


def make_pairs(config: ToolCallingConfig, weaker: str, folder: Path) -> StageResult:
    """Write training and validation groups of a right and wrong answers, and the queue for review by people.

    Raises:
        DataError: there is no wrong answer.
    """
    data = folder.parent / "data"
    validation, _ = read_bfcl(data / "validation")
    kinds: Counter[str] = Counter()
    # The supervised variants would give few wrong answers, since the weaker model may have been trained on them.
    groups = _groups(config, weaker, fresh_questions(config, data, PAIRED), kinds)
    steps = [g for g in read_groups(data / "supervised_train.jsonl").groups if g.source == "trajectories"]
    if config.data.learn == "all":
        steps = [step for trajectory in steps for step in split_into_steps(trajectory)]
    groups += _steps(config, weaker, steps, kinds)
    held_out = _groups(config, weaker, validation, Counter())
    if not groups or not held_out:
        raise DataError("no wrong answer was found", where=weaker, fix="raise pairs.corruptions or pairs.temperature")
    write_anew(groups, folder / "all.jsonl")
    write_anew(held_out, folder / "validation.jsonl")
    draw = random.Random(config.seed)
    write_anew(draw.sample(groups, min(len(groups), config.review.most)), folder / QUEUE)
    return {"groups": len(groups), "rejected": dict(kinds.most_common())}


def review(config: ToolCallingConfig, folder: Path) -> StageResult:
    """Write the training pairs without those that people rejected; the result tells how style predicts the label."""
    rejected, counts = read_verdicts(folder.parent / "pairs" / QUEUE, config.review.verdicts)
    accepted_groups = [
        group for group in read_groups(folder.parent / "pairs" / "all.jsonl").groups if group.id not in rejected
    ]
    write_anew(accepted_groups, folder / "train.jsonl")
    return {"verdicts": counts, "audit": style_leak(accepted_groups).to_json()}


def _groups(
    config: ToolCallingConfig, weaker: str, questions: Sequence[ToolQuestion], kinds: Counter[str]
) -> list[PreferenceGroup]:
    draw, style = random.Random(config.seed), STYLES[config.style]
    weaker_answers = _weaker_answers(config, weaker, [question_prompt(config, question) for question in questions])
    groups = []
    for question, texts in zip(questions, weaker_answers, strict=True):
        corrupted = list(corrupt(question, draw).items())
        chosen = draw.sample(corrupted, min(len(corrupted), config.pairs.corruptions))
        wrong = {
            answer_key(candidate): (candidate, kind) for kind, calls in chosen for candidate in [style.write(calls)]
        }
        # A right answer of the weaker model is not rejected.
        for text in texts:
            if text.strip() and question.fault(style.read(text, question)) is not None:
                candidate = as_candidate(config, text, question.functions)
                wrong.setdefault(answer_key(candidate), (candidate, WEAKER_ANSWER))
        kinds.update(kind for _, kind in wrong.values())
        if wrong:
            group = as_group(config, question)
            candidates = (*group.candidates, *(candidate for candidate, _ in wrong.values()))
            groups.append(replace(group, candidates=candidates, preferred=0))
    return groups


def _steps(
    config: ToolCallingConfig, weaker: str, steps: Sequence[PreferenceGroup], kinds: Counter[str]
) -> list[PreferenceGroup]:
    """Groups of an agent's step and the weaker model's other steps (the way TinyLLM made its data)."""
    groups = []
    for step, texts in zip(steps, _weaker_answers(config, weaker, [step.prompt for step in steps]), strict=True):
        candidates = [as_candidate(config, text, ()) for text in texts if text.strip()]
        wrong = {answer_key(candidate): candidate for candidate in candidates}
        wrong.pop(answer_key(step.candidates[0]), None)
        kinds.update({WEAKER_ANSWER: len(wrong)} if wrong else {})
        if wrong:
            groups.append(replace(step, candidates=(*step.candidates, *wrong.values()), preferred=0))
    return groups


def split_into_steps(trajectory: PreferenceGroup) -> list[PreferenceGroup]:
    """A group for every message of the assistant in a conversation, with the messages before it as the prompt."""
    if isinstance(trajectory.prompt, str):
        return [trajectory]
    messages, context = trajectory.prompt, context_of(trajectory.prompt)
    earlier_steps = [
        replace(
            trajectory,
            prompt=with_context(messages[:number], context),
            candidates=((message,),),
            id=f"{trajectory.id}-{number}",
        )
        for number, message in enumerate(messages)
        if message["role"] == "assistant" and number and messages[number - 1]["role"] != "assistant"
    ]
    return [*earlier_steps, trajectory]


def answer_key(candidate: Text) -> str:
    """A candidate as text that is equal for equal answers: without outer spaces and the ids of calls."""
    if isinstance(candidate, str):
        return candidate.strip()
    messages = [
        (content_of(message).strip(), [call["function"] for call in message.get("tool_calls", ())])
        for message in candidate
    ]
    return json.dumps(messages, sort_keys=True)


def _weaker_answers(config: ToolCallingConfig, weaker: str, prompts: Sequence[Text]) -> list[list[str]]:
    """Answers sampled from the weaker model to every prompt."""
    if not config.pairs.samples or not prompts:
        return [[] for _ in prompts]
    sampling = Sampling(
        samples=config.pairs.samples,
        temperature=config.pairs.temperature,
        max_new_tokens=config.answer_tokens,
        seed=config.seed,
    )
    return [list(answers) for answers in generate_answers(weaker, prompts, sampling, config.data)]
