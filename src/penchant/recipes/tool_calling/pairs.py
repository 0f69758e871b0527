"""Right answers above wrong ones: typed corruptions, and what a weaker model says itself."""

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
from penchant.recipes.tool_calling.data import PAIRED, as_candidate, ask, fresh_questions
from penchant.recipes.tool_calling.right import right_answer

QUEUE = "queue.jsonl"
OWN = "the weaker model's own"


def make_pairs(config: ToolCallingConfig, weaker: str, folder: Path) -> StageResult:
    """Write groups of a right answer and wrong ones, of training and validation, and the queue for people.

    Raises:
        DataError: nothing wrong was found.
    """
    data = folder.parent / "data"
    validation, _ = read_bfcl(data / "validation")
    kinds: Counter[str] = Counter()
    # Of the supervised variants a tuned model answers more rightly.
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
    """Write the training pairs without what people rejected, and what style gives away in them."""
    rejected, counts = read_verdicts(folder.parent / "pairs" / QUEUE, config.review.verdicts)
    kept = [group for group in read_groups(folder.parent / "pairs" / "all.jsonl").groups if group.id not in rejected]
    write_anew(kept, folder / "train.jsonl")
    return {"verdicts": counts, "audit": style_leak(kept).to_json()}


def _groups(
    config: ToolCallingConfig, weaker: str, questions: Sequence[ToolQuestion], kinds: Counter[str]
) -> list[PreferenceGroup]:
    draw = random.Random(config.seed)
    own = _own(config, weaker, [ask(config, each) for each in questions])
    found = []
    for question, said in zip(questions, own, strict=True):
        corrupted = list(corrupt(question, draw).items())
        chosen = draw.sample(corrupted, min(len(corrupted), config.pairs.corruptions))
        wrong = {f" {write_calls(calls)}": kind for kind, calls in chosen}
        # What the model says that is right after all is no answer to reject.
        for text in said:
            if text.strip() and question.fault(read_calls(text, question.language)) is not None:
                wrong.setdefault(f" {text.strip()}", OWN)
        kinds.update(wrong.values())
        if wrong:
            found.append(_group(config, ask(config, question), right_answer(question), list(wrong), question))
    return found


def _steps(
    config: ToolCallingConfig, weaker: str, steps: Sequence[PreferenceGroup], kinds: Counter[str]
) -> list[PreferenceGroup]:
    """Of an agent's steps, each against what the weaker model would have done (as TinyLLM made its data)."""
    found = []
    for step, said in zip(steps, _own(config, weaker, [step.prompt for step in steps]), strict=True):
        right = as_text(step.candidates[0]).strip()
        wrong = dict.fromkeys(text.strip() for text in said if text.strip() not in ("", right))
        kinds.update({OWN: len(wrong)} if wrong else {})
        if wrong:
            candidates = (step.candidates[0], *(as_candidate(config, f" {text}") for text in wrong))
            found.append(PreferenceGroup(step.prompt, candidates, preferred=0, id=step.id, source=step.source))
    return found


def _own(config: ToolCallingConfig, weaker: str, prompts: Sequence[Text]) -> list[list[str]]:
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
