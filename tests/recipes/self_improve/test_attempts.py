"""A round of attempts, with scripted answers and verdicts."""

from __future__ import annotations

from collections import Counter

import pytest

from penchant.errors import ConfigError
from penchant.recipes.self_improve.attempts import attempt_prompts, is_satisfied, progress_group
from penchant.recipes.self_improve.buffer import Judgement, ReplayBuffer
from penchant.recipes.self_improve.verifying import Verdict, verifier_text

PROMPTS = {"a": "Say 1.", "b": "Say 2.", "c": "Say 3."}
ANSWERS = {
    "Say 1.": ["1"],
    "Say 2.": ["no", "2"],
    "Say 3.": ["no", "nor", "never"],
}


class Learner:
    """A learner whose answer depends on how often the prompt was asked before."""

    def __init__(self):
        self.requests, self.seeds, self.times = [], [], Counter()

    def __call__(self, prompts, numbers):
        self.requests.append(list(prompts))
        self.seeds += numbers
        return [self.one(prompt.split("|")[0]) for prompt in prompts]

    def one(self, prompt):
        self.times[prompt] += 1
        return ANSWERS[prompt][self.times[prompt] - 1]


def verifier(prompts, answers):
    right = [answer in prompt for prompt, answer in zip(prompts, answers, strict=True)]
    return [Verdict((True,), 1.0, "") if fine else Verdict((False,), 0.2, "it is another number") for fine in right]


@pytest.fixture
def buffer(tmp_path):
    return ReplayBuffer(tmp_path / "buffer.sqlite", 10)


def run(buffer, learner, memory=None):
    attempt_prompts(PROMPTS, 1, learner, verifier, buffer, attempts=3, memory=memory, seed=7)


def test_prompts_are_tried_until_satisfied_or_out_of_attempts(buffer):
    learner = Learner()
    run(buffer, learner)
    assert learner.requests == [["Say 1.", "Say 2.", "Say 3."], ["Say 2.", "Say 3."], ["Say 3."]]
    assert len(set(learner.seeds)) == 6
    assert [[j.answer for j in buffer.judgements(1, name)] for name in "abc"] == [
        ["1"],
        ["no", "2"],
        ["no", "nor", "never"],
    ]
    [group] = buffer.draw(5, seed=0)
    assert (group.prompt, group.candidates, group.preferred, group.id) == ("Say 2.", ("2", "no"), 0, "1-b")


def test_memory_includes_answer_and_critique(buffer):
    learner = Learner()
    run(buffer, learner, memory="{prompt}|{answer}: {critique}")
    assert learner.requests[1] == ["Say 2.|no: it is another number", "Say 3.|no: it is another number"]
    # The group has the original prompt.
    assert [group.prompt for group in buffer.draw(5, seed=0)] == ["Say 2."]


def test_interrupted_round_resumes(buffer):
    def interrupted(prompts, numbers):
        if len(prompts) < 3:
            raise KeyboardInterrupt
        return [ANSWERS[prompt][0] for prompt in prompts]

    with pytest.raises(KeyboardInterrupt):
        run(buffer, interrupted)
    requests = []

    def answer_remaining(prompts, numbers):
        requests.append(list(prompts))
        return [ANSWERS[prompt][len(requests)] for prompt in prompts]

    run(buffer, answer_remaining)
    assert requests == [["Say 2.", "Say 3."], ["Say 3."]]
    assert buffer.counts()["judgements"] == 6
    run(buffer, answer_remaining)
    assert buffer.counts() == {"judgements": 6, "groups": 1, "groups drawn": 0, "draws": 0}
    assert buffer.count_added() == 1


def test_seeds_depend_on_seed_round_prompt_and_attempt_only(buffer, tmp_path):
    """They do not depend on the other prompts of the batch, nor on an interruption."""
    seeds_seen = {}

    def record_seeds(prompts, numbers):
        seeds_seen.update(zip(prompts, numbers, strict=True))
        return ["no"] * len(prompts)

    for seed, number, names in ((7, 1, "abc"), (7, 1, "c"), (7, 2, "c"), (10**15, 1, "c")):
        batch = {name: PROMPTS[name] for name in names}
        fresh = ReplayBuffer(tmp_path / f"{seed}-{number}-{names}.sqlite", 10)
        attempt_prompts(batch, number, record_seeds, verifier, fresh, attempts=1, memory=None, seed=seed)
        seeds_seen[seed, number, names] = seeds_seen["Say 3."]
    alone, in_batch, next_round, other_seed = (
        seeds_seen[key] for key in ((7, 1, "c"), (7, 1, "abc"), (7, 2, "c"), (10**15, 1, "c"))
    )
    assert alone == in_batch
    assert len({alone, next_round, other_seed, seeds_seen["Say 1."], seeds_seen["Say 2."]}) == 5
    assert all(0 <= number < 2**63 for number in (alone, next_round, other_seed))


def test_verifier_without_any_verdict_is_an_error(buffer):
    def silent(prompts, answers):
        return [Verdict((), 0.0, "", failed=True) for _ in prompts]

    with pytest.raises(ConfigError, match="the verifier gave no verdict on 3 answers"):
        attempt_prompts(PROMPTS, 1, Learner(), silent, buffer, attempts=3, memory=None, seed=0)
    assert buffer.counts()["judgements"] == 0


def test_prompt_that_cannot_be_judged_is_retried(buffer):
    """One prompt of three gets no verdict: the others continue, and it is retried as well."""

    def mute(prompts, answers):
        verdicts = verifier(prompts, answers)
        silence = Verdict((), 0.0, "", failed=True)
        return [silence if prompt == "Say 3." else verdict for prompt, verdict in zip(prompts, verdicts, strict=True)]

    attempt_prompts(PROMPTS, 1, Learner(), mute, buffer, attempts=3, memory=None, seed=0)
    assert [len(buffer.judgements(1, name)) for name in "abc"] == [1, 2, 3]
    assert all(not judgement.met for judgement in buffer.judgements(1, "c"))
    assert [group.id for group in buffer.draw(5, seed=0)] == ["1-b"]


def test_answer_without_a_verdict_is_in_no_group(buffer):
    """The verifier failed for the first attempt at b, so no answer is known to be worse than the satisfying one."""
    silence = Verdict((), 0.0, "", failed=True)

    def away(prompts, answers):
        verdicts = verifier(prompts, answers)
        is_first_attempt = len(prompts) == 3
        return [
            silence if is_first_attempt and prompt == "Say 2." else verdict
            for prompt, verdict in zip(prompts, verdicts, strict=True)
        ]

    attempt_prompts(PROMPTS, 1, Learner(), away, buffer, attempts=3, memory=None, seed=0)
    assert [judgement.met for judgement in buffer.judgements(1, "b")] == [(), (True,)]
    assert buffer.counts()["groups"] == 0


def judgements_of(*answers_and_verdicts):
    return [
        Judgement(1, "a", n, "p", text, is_met, 1.0, "") for n, (text, is_met) in enumerate(answers_and_verdicts, 1)
    ]


def test_progress_group():
    assert progress_group(
        "a", judgements_of(("x", (False,)), ("y", (True, False)), ("z", (True, True)))
    ).candidates == (
        "z",
        "x",
        "y",
    )
    assert progress_group("a", judgements_of(("x", (False,)), ("x", (False,)), ("z", (True,)))).candidates == ("z", "x")
    assert progress_group("a", judgements_of(("x", ()), ("y", (False,)), ("z", (True,)))).candidates == ("z", "y")
    for judgements in (
        judgements_of(("x", (True,))),
        judgements_of(("x", (False,)), ("y", (False,))),
        judgements_of(("x", (False,)), ("x", (True,))),
        judgements_of((" ", (False,)), ("z", (True,))),
        judgements_of(("x", (False,)), ("", (True,))),
        judgements_of(("x", (False,)), ("y", ())),
        judgements_of(("x", ()), ("y", (True,))),
    ):
        assert progress_group("a", judgements) is None
    assert not is_satisfied(judgements_of(("x", ()))[0])


CHAT = ({"role": "system", "content": "Be short."}, {"role": "user", "content": "Say 2."})


def test_conversations_are_attempted_in_their_turns(buffer):
    """Memory fills the last message; the verifier reads every turn; the group has the prompt without memory."""
    requests, judged = [], []

    def answer(prompts, seeds):
        requests.extend(prompts)
        return ["no" if len(requests) == 1 else "2" for _ in prompts]

    def judge(prompts, answers):
        judged.extend(prompts)
        return verifier(prompts, answers)

    attempt_prompts({"a": CHAT}, 1, answer, judge, buffer, attempts=3, memory="{prompt}|{answer}|{critique}", seed=0)
    second_turn = {"role": "user", "content": "Say 2.|no|it is another number"}
    assert requests == [CHAT, (CHAT[0], second_turn)]
    assert judged == ["system: Be short.\n\nuser: Say 2."] * 2
    assert [judgement.prompt for judgement in buffer.judgements(1, "a")] == [CHAT, CHAT]
    [group] = buffer.draw(9, seed=0)
    assert (group.prompt, group.candidates, group.preferred) == (CHAT, ("2", "no"), 0)


def test_a_verifier_reads_one_user_message_as_plain_text():
    assert verifier_text("Say 2.") == verifier_text(CHAT[1:]) == "Say 2."
    assert verifier_text(CHAT[:1]) == "system: Be short."


def test_judgements_are_forgotten_by_round_and_prompt(buffer):
    run(buffer, Learner())
    buffer.forget_judgements(2, ["a", "b"])
    buffer.forget_judgements(1, ["a", "c"])
    assert [len(buffer.judgements(1, name)) for name in "abc"] == [0, 2, 0]
