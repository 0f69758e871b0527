"""Attempts at prompts: the learner answers, the verifier judges, and what satisfies is preferred to what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from penchant.api import ConfigError, Message, PreferenceGroup, Text, content_of, fill
from penchant.recipes.self_improve.buffer import Judgement, ReplayBuffer
from penchant.recipes.self_improve.learner import AnswerFunction, answer_seed
from penchant.recipes.self_improve.verifying import Verifier, verifier_text

MIN_PRIORITY = 0.05
"""Minimum priority of a group."""


def attempt_prompts(
    prompts: Mapping[str, Text],
    number: int,
    answer: AnswerFunction,
    verifier: Verifier,
    buffer: ReplayBuffer,
    *,
    attempts: int,
    memory: str | None,
    seed: int,
) -> None:
    """Attempt one batch of a round's prompts; judgements of an interrupted batch are reused.

    Args:
        prompts: prompts by id.
        number: number of the round.
        answer: the learner's answer function.
        attempts: maximum attempts at a prompt.
        memory: template of a repeated attempt's prompt, with {prompt}, {answer} and {critique}; None: the prompt.

    Raises:
        ConfigError: the verifier gives no verdict on any prompt of the batch.
    """
    judgements = {name: buffer.judgements(number, name) for name in prompts}
    for nth in range(1, attempts + 1):
        unfinished = [
            name
            for name, earlier in judgements.items()
            if len(earlier) < nth and not (earlier and is_satisfied(earlier[-1]))
        ]
        if not unfinished:
            continue
        requests = [_request(prompts[name], judgements[name], memory) for name in unfinished]
        answers = answer(requests, [answer_seed(seed, number, name, nth) for name in unfinished])
        # The verifier judges by the original prompt; only the learner sees the memory.
        verdicts = verifier([verifier_text(prompts[name]) for name in unfinished], answers)
        if all(verdict.failed for verdict in verdicts) and _is_down(judgements):
            raise ConfigError(
                f"the verifier gave no verdict on {len(verdicts)} answers",
                fix="check that it is up, then run the recipe again",
            )
        for name, text, verdict in zip(unfinished, answers, verdicts, strict=True):
            judgement = Judgement(number, name, nth, prompts[name], text, verdict.met, verdict.score, verdict.critique)
            buffer.record(judgement)
            judgements[name].append(judgement)
    for name, prompt_judgements in judgements.items():
        group = progress_group(name, prompt_judgements)
        if group is not None:
            worst = min(judgement.score for judgement in prompt_judgements if judgement.met)
            buffer.add(group, max(MIN_PRIORITY, prompt_judgements[-1].score - worst))


def is_satisfied(judgement: Judgement) -> bool:
    """Whether the answer meets every condition, and there is at least one."""
    return bool(judgement.met) and all(judgement.met)


def progress_group(name: str, judgements: Sequence[Judgement]) -> PreferenceGroup | None:
    """A group that prefers the satisfying last answer to the failed earlier ones; None without progress."""
    if len(judgements) < 2 or not is_satisfied(judgements[-1]):
        return None
    best = judgements[-1].answer
    earlier = dict.fromkeys(judgement.answer for judgement in judgements[:-1] if judgement.met)
    failed = [text for text in earlier if text != best and text.strip()]
    if not failed or not best.strip():
        return None
    return PreferenceGroup(judgements[-1].prompt, (best, *failed), preferred=0, id=f"{judgements[-1].round}-{name}")


def _request(prompt: Text, judgements: Sequence[Judgement], memory: str | None) -> Text:
    """What the learner reads: the prompt; at a repeated attempt its last message is filled into the template."""
    if memory is None or not judgements:
        return prompt
    last = prompt if isinstance(prompt, str) else content_of(prompt[-1])
    filled = fill(memory, prompt=last, answer=judgements[-1].answer, critique=judgements[-1].critique)
    if isinstance(prompt, str):
        return filled
    return (*prompt[:-1], cast("Message", {**prompt[-1], "content": filled}))


def _is_down(judgements: Mapping[str, Sequence[Judgement]]) -> bool:
    """Whether none of several prompts has a verdict; a single prompt may just be impossible to judge."""
    return len(judgements) > 1 and not any(judgement.met for earlier in judgements.values() for judgement in earlier)
