"""Pairs of right and wrong answers: corruptions of right answers, and wrong answers of a weaker model."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from penchant.data.groups import PreferenceGroup, Text, as_text
from penchant.data.reading import read_groups
from penchant.data.writing import write_anew
from penchant.errors import DataError
from penchant.evaluation.generation import Sampling
from penchant.evaluation.style import style_leak
from penchant.evaluation.tool_calls.questions import ToolQuestion, read_bfcl
from penchant.evaluation.tool_calls.reading import read_calls, write_calls
from penchant.recipes.reading import generate_answers
from penchant.recipes.reviewing import read_verdicts
from penchant.recipes.stages import StageResult
from penchant.recipes.tool_calling.config import ToolCallingConfig
from penchant.recipes.tool_calling.corruptions import corrupt
from penchant.recipes.tool_calling.data import PAIRED, as_candidate, fresh_questions, question_prompt
from penchant.recipes.tool_calling.right import right_answer

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
    draw = random.Random(config.seed)
    weaker_answers = _weaker_answers(config, weaker, [question_prompt(config, question) for question in questions])
    groups = []
    for question, texts in zip(questions, weaker_answers, strict=True):
        corrupted = list(corrupt(question, draw).items())
        chosen = draw.sample(corrupted, min(len(corrupted), config.pairs.corruptions))
        wrong = {f" {write_calls(calls)}": kind for kind, calls in chosen}
        # A right answer of the weaker model is not rejected.
        for text in texts:
            if text.strip() and question.fault(read_calls(text, question.language)) is not None:
                wrong.setdefault(f" {text.strip()}", WEAKER_ANSWER)
        kinds.update(wrong.values())
        if wrong:
            groups.append(
                _group(config, question_prompt(config, question), right_answer(question), list(wrong), question)
            )
    return groups


def _steps(
    config: ToolCallingConfig, weaker: str, steps: Sequence[PreferenceGroup], kinds: Counter[str]
) -> list[PreferenceGroup]:
    """Groups of an agent's step and the weaker model's other steps (the way TinyLLM made its data)."""
    groups = []
    for step, texts in zip(steps, _weaker_answers(config, weaker, [step.prompt for step in steps]), strict=True):
        right = as_text(step.candidates[0]).strip()
        wrong = dict.fromkeys(text.strip() for text in texts if text.strip() not in ("", right))
        kinds.update({WEAKER_ANSWER: len(wrong)} if wrong else {})
        if wrong:
            candidates = (step.candidates[0], *(as_candidate(config, f" {text}") for text in wrong))
            groups.append(PreferenceGroup(step.prompt, candidates, preferred=0, id=step.id, source=step.source))
    return groups


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


def _group(
    config: ToolCallingConfig, prompt: Text, right: str, wrong: Sequence[str], question: ToolQuestion
) -> PreferenceGroup:
    candidates = tuple(as_candidate(config, text) for text in (right, *wrong))
    return PreferenceGroup(prompt, candidates, preferred=0, id=question.id, source=question.category)
