"""A round of attempts, with answers and verdicts that are known."""

from __future__ import annotations

from collections import Counter

import pytest

from penchant.errors import ConfigError
from penchant.recipes.self_improve.attempts import attempt, progress, satisfied
from penchant.recipes.self_improve.buffer import Judgement, ReplayBuffer
from penchant.recipes.self_improve.verifying import Verdict

PROMPTS = {"a": "Say 1.", "b": "Say 2.", "c": "Say 3."}
SAID = {
    "Say 1.": ["1"],
    "Say 2.": ["no", "2"],
    "Say 3.": ["no", "nor", "never"],
}


class Learner:
    """Answers by how often a prompt was asked."""

    def __init__(self):
        self.asked, self.numbers, self.times = [], [], Counter()

    def __call__(self, prompts, numbers):
        self.asked.append(list(prompts))
        self.numbers += numbers
        return [self.one(prompt.split("|")[0]) for prompt in prompts]

    def one(self, prompt):
        self.times[prompt] += 1
        return SAID[prompt][self.times[prompt] - 1]


def verifier(prompts, answers):
    right = [answer in prompt for prompt, answer in zip(prompts, answers, strict=True)]
    return [Verdict((True,), 1.0, "") if fine else Verdict((False,), 0.2, "it is another number") for fine in right]


@pytest.fixture
def buffer(tmp_path):
    return ReplayBuffer(tmp_path / "buffer.sqlite", 10)


def run(buffer, learner, memory=None):
    attempt(PROMPTS, 1, learner, verifier, buffer, attempts=3, memory=memory, seed=7)


def test_each_is_tried_until_it_is_right_or_often_enough(buffer):
    learner = Learner()
    run(buffer, learner)
    assert learner.asked == [["Say 1.", "Say 2.", "Say 3."], ["Say 2.", "Say 3."], ["Say 3."]]
    assert len(set(learner.numbers)) == 6
    assert [[j.answer for j in buffer.judged(1, name)] for name in "abc"] == [
        ["1"],
        ["no", "2"],
        ["no", "nor", "never"],
    ]
    [group] = buffer.draw(5, seed=0)
    assert (group.prompt, group.candidates, group.preferred, group.id) == ("Say 2.", ("2", "no"), 0, "1-b")


def test_the_critique_stays_in_mind(buffer):
    learner = Learner()
    run(buffer, learner, memory="{prompt}|{answer}: {critique}")
    assert learner.asked[1] == ["Say 2.|no: it is another number", "Say 3.|no: it is another number"]
    # What is learnt is an answer to the prompt itself.
    assert [group.prompt for group in buffer.draw(5, seed=0)] == ["Say 2."]


def test_an_interrupted_round_goes_on(buffer):
    def interrupted(prompts, numbers):
        if len(prompts) < 3:
            raise KeyboardInterrupt
        return [SAID[prompt][0] for prompt in prompts]

    with pytest.raises(KeyboardInterrupt):
        run(buffer, interrupted)
    asked = []

    def rest(prompts, numbers):
        asked.append(list(prompts))
        return [SAID[prompt][len(asked)] for prompt in prompts]

    run(buffer, rest)
    assert asked == [["Say 2.", "Say 3."], ["Say 3."]]
    assert buffer.counts()["judgements"] == 6
    run(buffer, rest)
    assert buffer.counts() == {"judgements": 6, "groups": 1, "groups drawn": 0, "draws": 0}
    assert buffer.added() == 1


def test_draws_are_a_prompts_own(buffer, tmp_path):
    """Whatever is beside it, and whether the round was interrupted: by seed, round, prompt and attempt."""
    told = {}

    def asked(prompts, numbers):
        told.update(zip(prompts, numbers, strict=True))
        return ["no"] * len(prompts)

    for seed, number, names in ((7, 1, "abc"), (7, 1, "c"), (7, 2, "c"), (10**15, 1, "c")):
        batch = {name: PROMPTS[name] for name in names}
        fresh = ReplayBuffer(tmp_path / f"{seed}-{number}-{names}.sqlite", 10)
        attempt(batch, number, asked, verifier, fresh, attempts=1, memory=None, seed=seed)
        told[seed, number, names] = told["Say 3."]
    alone, beside, later, other = (told[key] for key in ((7, 1, "c"), (7, 1, "abc"), (7, 2, "c"), (10**15, 1, "c")))
    assert alone == beside
    assert len({alone, later, other, told["Say 1."], told["Say 2."]}) == 5
    assert all(0 <= each < 2**63 for each in (alone, later, other))


def test_a_verifier_that_says_nothing(buffer):
    def silent(prompts, answers):
        return [Verdict((), 0.0, "", failed=True) for _ in prompts]

    with pytest.raises(ConfigError, match="the verifier gave no verdict on 3 answers"):
        attempt(PROMPTS, 1, Learner(), silent, buffer, attempts=3, memory=None, seed=0)
    assert buffer.counts()["judgements"] == 0


def test_a_prompt_that_cannot_be_judged(buffer):
    """One of three: the others go on, and it is asked again like any other."""

    def mute(prompts, answers):
        told = verifier(prompts, answers)
        silence = Verdict((), 0.0, "", failed=True)
        return [silence if prompt == "Say 3." else each for prompt, each in zip(prompts, told, strict=True)]

    attempt(PROMPTS, 1, Learner(), mute, buffer, attempts=3, memory=None, seed=0)
    assert [len(buffer.judged(1, name)) for name in "abc"] == [1, 2, 3]
    assert all(not each.met for each in buffer.judged(1, "c"))
    assert [group.id for group in buffer.draw(5, seed=0)] == ["1-b"]


def test_an_answer_without_a_verdict_is_not_a_wrong_one(buffer):
    """The verifier was away for the first attempt at b: nothing is known to be worse than what satisfied then."""
    silence = Verdict((), 0.0, "", failed=True)

    def away(prompts, answers):
        told = verifier(prompts, answers)
        first = len(prompts) == 3
        return [silence if first and prompt == "Say 2." else each for prompt, each in zip(prompts, told, strict=True)]

    attempt(PROMPTS, 1, Learner(), away, buffer, attempts=3, memory=None, seed=0)
    assert [each.met for each in buffer.judged(1, "b")] == [(), (True,)]
    assert buffer.counts()["groups"] == 0


def judged(*answers_and_met):
    return [Judgement(1, "a", n, "p", text, met, 1.0, "") for n, (text, met) in enumerate(answers_and_met, 1)]


def test_progress():
    assert progress("a", judged(("x", (False,)), ("y", (True, False)), ("z", (True, True)))).candidates == (
        "z",
        "x",
        "y",
    )
    assert progress("a", judged(("x", (False,)), ("x", (False,)), ("z", (True,)))).candidates == ("z", "x")
    assert progress("a", judged(("x", ()), ("y", (False,)), ("z", (True,)))).candidates == ("z", "y")
    for told in (
        judged(("x", (True,))),
        judged(("x", (False,)), ("y", (False,))),
        judged(("x", (False,)), ("x", (True,))),
        judged((" ", (False,)), ("z", (True,))),
        judged(("x", (False,)), ("", (True,))),
        judged(("x", (False,)), ("y", ())),
        judged(("x", ()), ("y", (True,))),
    ):
        assert progress("a", told) is None
    assert not satisfied(judged(("x", ()))[0])
