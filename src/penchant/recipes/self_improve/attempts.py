"""A round: each prompt is tried until the verifier is satisfied, or often enough; what helped goes into the buffer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from penchant.data.groups import PreferenceGroup
from penchant.errors import ConfigError
from penchant.evaluation.judges import fill
from penchant.recipes.self_improve.buffer import Judgement, ReplayBuffer
from penchant.recipes.self_improve.learner import Answer, number_of
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
        answer: the learner's answers.
        attempts: at a prompt, at most.
        memory: the prompt of another attempt, of {prompt}, {answer} and {critique}; None asks as the first time.

    Raises:
        ConfigError: the verifier judges none of a batch's prompts.
    """
    so_far = {name: buffer.judged(number, name) for name in prompts}
    for nth in range(1, attempts + 1):
        open_ = [name for name, told in so_far.items() if len(told) < nth and not (told and satisfied(told[-1]))]
        if not open_:
            continue
        asked = [_again(prompts[name], so_far[name], memory) for name in open_]
        answers = answer(asked, [number_of(seed, number, name, nth) for name in open_])
        # The verifier judges by what was asked first; the memory is the learner's own.
        verdicts = verifier([prompts[name] for name in open_], answers)
        if all(verdict.failed for verdict in verdicts) and _is_down(so_far):
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
            worst = min(each.score for each in told if each.met)
            buffer.add(group, max(LEAST, told[-1].score - worst))


def satisfied(judgement: Judgement) -> bool:
    """Whether every condition is met, of which there is one at least."""
    return bool(judgement.met) and all(judgement.met)


def progress(name: str, told: Sequence[Judgement]) -> PreferenceGroup | None:
    """The answer that satisfied above those before it that were judged and did not; None where there are no such."""
    if len(told) < 2 or not satisfied(told[-1]):
        return None
    best = told[-1].answer
    earlier = dict.fromkeys(each.answer for each in told[:-1] if each.met)
    failed = [text for text in earlier if text != best and text.strip()]
    if not failed or not best.strip():
        return None
    return PreferenceGroup(told[-1].prompt, (best, *failed), preferred=0, id=f"{told[-1].round}-{name}")


def _again(prompt: str, told: Sequence[Judgement], memory: str | None) -> str:
    if memory is None or not told:
        return prompt
    return fill(memory, prompt=prompt, answer=told[-1].answer, critique=told[-1].critique)


def _is_down(so_far: Mapping[str, Sequence[Judgement]]) -> bool:
    """Whether several prompts, asked together, have no verdict yet: one alone may be a prompt that cannot be judged."""
    return len(so_far) > 1 and not any(judgement.met for told in so_far.values() for judgement in told)
