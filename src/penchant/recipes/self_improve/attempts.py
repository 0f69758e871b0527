"""A round: each prompt is tried until the verifier is satisfied, or often enough; what helped goes into the buffer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from penchant.data.groups import PreferenceGroup
from penchant.errors import ConfigError
from penchant.evaluation.judges import fill
from penchant.recipes.self_improve.buffer import Judgement, ReplayBuffer
from penchant.recipes.self_improve.learner import Answer
from penchant.recipes.self_improve.verifying import Verifier

LEAST = 0.05
"""The least priority of a group."""


def attempt(
    prompts: Mapping[str, str],
    number: int,
    answer: Answer,
    verifier: Verifier,
    buffer: ReplayBuffer,
    *,
    attempts: int,
    memory: str | None,
    seed: int,
) -> None:
    """One batch of a round; what an interrupted one has judged already is not judged again.

    Args:
        prompts: by id.
        number: of the round.
        answer: given prompts and a seed, the learner's answers.
        attempts: at a prompt, at most.
        memory: the prompt of another attempt, of {prompt}, {answer} and {critique}; None asks as the first time.

    Raises:
        ConfigError: the verifier judged none of a batch's answers.
    """
    so_far = {name: buffer.judged(number, name) for name in prompts}
    for nth in range(1, attempts + 1):
        open_ = [name for name, told in so_far.items() if len(told) < nth and not (told and satisfied(told[-1]))]
        if not open_:
            continue
        asked = [_again(prompts[name], so_far[name], memory) for name in open_]
        answers = answer(asked, _seed(seed, number, nth))
        # The verifier judges by what was asked first; the memory is the learner's own.
        verdicts = verifier([prompts[name] for name in open_], answers)
        if all(verdict.failed for verdict in verdicts):
            raise ConfigError(
                f"the verifier gave no verdict on {len(verdicts)} answers", fix="check that it is up; then go on"
            )
        for name, said, verdict in zip(open_, answers, verdicts, strict=True):
            judgement = Judgement(number, name, nth, prompts[name], said, verdict.met, verdict.score, verdict.critique)
            buffer.record(judgement)
            so_far[name].append(judgement)
    for name, told in so_far.items():
        group = progress(name, told)
        if group is not None:
            buffer.add(group, max(LEAST, told[-1].score - min(each.score for each in told)))


def satisfied(judgement: Judgement) -> bool:
    """Whether every condition is met, of which there is one at least."""
    return bool(judgement.met) and all(judgement.met)


def progress(name: str, told: Sequence[Judgement]) -> PreferenceGroup | None:
    """The answer that satisfied above those before it that did not; None where none did, or the first."""
    if len(told) < 2 or not satisfied(told[-1]):
        return None
    best = told[-1].answer
    failed = [text for text in dict.fromkeys(each.answer for each in told[:-1]) if text != best and text.strip()]
    if not failed or not best.strip():
        return None
    return PreferenceGroup(told[-1].prompt, (best, *failed), preferred=0, id=f"{told[-1].round}-{name}")


def _again(prompt: str, told: Sequence[Judgement], memory: str | None) -> str:
    if memory is None or not told:
        return prompt
    return fill(memory, prompt=prompt, answer=told[-1].answer, critique=told[-1].critique)


def _seed(seed: int, number: int, nth: int) -> int:
    return (seed * 1_000_003 + number) * 101 + nth
