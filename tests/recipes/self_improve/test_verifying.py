"""Verifiers: functions with all that can be wrong with them, rewards, and verifiers that are wrong on purpose."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.errors import ConfigError
from penchant.recipes.self_improve.verifying import FunctionVerifier, NoisyVerifier, RewardVerifier, Verdict

FUNCTIONS = """
import numpy as np
from penchant.recipes.self_improve.verifying import Verdict

def fine(prompt, answer):
    return {"short": len(answer) < 5, "repeats the prompt": prompt in answer, "has an e": "e" in answer}

def of_numpy(prompt, answer):
    return {"long": np.int64(len(answer)) > 3}

def raises(prompt, answer):
    raise KeyError("colour")

def nothing(prompt, answer):
    return None

def empty(prompt, answer):
    return {}

def a_list(prompt, answer):
    return [True, False]

def a_number(prompt, answer):
    return {"short": True, "how good": 1}

def no_name(prompt, answer):
    return {3: True}

def own(prompt, answer):
    return Verdict((np.float32(1) > 0, False), np.float32(0.25), "too long")

def own_of_numbers(prompt, answer):
    return Verdict((1,), 0.5, "")

def own_of_nothing(prompt, answer):
    return Verdict((), 0.0, "")

def own_not_finite(prompt, answer):
    return Verdict((True,), float("nan"), "")

def own_in_words(prompt, answer):
    return Verdict((True,), "high", "")

constant = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "conditions.py"
    path.write_text(FUNCTIONS)
    return path


class Lengths:
    """The reward is the response's length, less the prompt's."""

    name = "lengths"

    def __call__(self, prompts, responses):
        pairs = zip(prompts, responses, strict=True)
        return [[float(len(each) - len(prompt)) for each in given] for prompt, given in pairs]


class Scripted:
    """Three conditions, of which as many are met as the answer's number says."""

    def __call__(self, prompts, answers):
        counts = [int(answer.split()[0]) for answer in answers]
        return [Verdict(tuple(k < count for k in range(3)), count / 3, f"{count} are met") for count in counts]


class TestVerdict:
    @pytest.mark.parametrize(
        ("met", "satisfied"), [((True,), True), ((True, True), True), ((True, False), False), ((False,), False)]
    )
    def test_satisfied_where_all_is_met(self, met, satisfied):
        assert Verdict(met, 0.5, "").satisfied is satisfied

    def test_no_conditions_are_not_all_of_them(self):
        assert not Verdict((), 0.0, "", failed=True).satisfied


class TestFunctions:
    def test_the_share_met_and_the_names_of_what_fails(self, file):
        verify = FunctionVerifier.load(f"{file}:fine")
        assert verify(["ab", "ab", "x"], ["abe", "long enough", "other"]) == [
            Verdict((True, True, True), 1.0, ""),
            Verdict((False, False, True), 1 / 3, "Not met: short; repeats the prompt."),
            Verdict((False, False, True), 1 / 3, "Not met: short; repeats the prompt."),
        ]
        assert verify([], []) == []

    def test_numpys_comparisons_are_yes_or_no(self, file):
        [yes, no] = FunctionVerifier.load(f"{file}:of_numpy")(["p", "p"], ["long", "no"])
        assert (yes.met, no.met) == ((True,), (False,))
        assert type(yes.met[0]) is bool

    def test_a_verdict_of_its_own_can_be_stored(self, file):
        [told] = FunctionVerifier.load(f"{file}:own")(["p"], ["a"])
        assert told == Verdict((True, False), 0.25, "too long")
        assert [type(each) for each in (*told.met, told.score)] == [bool, bool, float]

    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("own_of_numbers", "returned met=(1,), failed=False, expected True or False for each condition"),
            ("own_of_nothing", "returned met=(), failed=False, expected True or False for each condition"),
            ("own_not_finite", "returned a score of nan, expected a finite number"),
            ("own_in_words", "returned a score of 'high', expected a finite number"),
            ("raises", "raised KeyError: 'colour'"),
            ("nothing", "returned None, expected a dictionary of at least one condition"),
            ("empty", "returned {}, expected a dictionary of at least one condition"),
            ("a_list", "returned [True, False], expected a dictionary of at least one condition"),
            ("a_number", "returned 'how good': 1, expected a condition's name and True or False"),
            ("no_name", "returned 3: True, expected a condition's name and True or False"),
        ],
    )
    def test_what_it_returns(self, file, name, found):
        with pytest.raises(ConfigError) as error:
            FunctionVerifier.load(f"{file}:{name}")(["which colour?"], ["a"])
        assert str(error.value).startswith(f"{file}:{name}, prompt 'which colour?': the verifier's function {found}")
        assert "what to do: return a True or False for each condition" in str(error.value)

    @pytest.mark.parametrize(
        ("where", "found"),
        [
            ("{file}:absent", "absent has no such name"),
            ("{file}:constant", "constant is no function"),
            ("nowhere.py:f", "verifier.function: there is no such file"),
            ("no_such_package:f", "cannot be imported: ModuleNotFoundError"),
            ("just_a_name", "verifier.function is 'just_a_name', expected a module and a name"),
        ],
    )
    def test_where_it_is(self, file, where, found):
        with pytest.raises(ConfigError) as error:
            FunctionVerifier.load(where.format(file=file))
        assert found in str(error.value)


class TestRewards:
    def test_the_logistic_of_what_lies_above_the_threshold(self):
        below, at, above = RewardVerifier(Lengths(), 2.0)(["p", "p", ""], ["ab", "abc", "abcde"])
        assert (below.met, at.met, above.met) == ((False,), (True,), (True,))
        assert (below.score, at.score, above.score) == pytest.approx(
            (1 / (1 + math.e), 0.5, 1 / (1 + math.exp(-3))), abs=1e-15
        )
        assert below.critique == "Not met: the reward is 1, expected at least 2."
        assert at.critique == above.critique == ""

    @pytest.mark.parametrize(("threshold", "score"), [(-1e6, 1.0), (1e6, 0.0)])
    def test_far_from_the_threshold(self, threshold, score):
        [verdict] = RewardVerifier(Lengths(), threshold)(["p"], ["a"])
        assert verdict.score == score


PROMPTS = [f"p{k}" for k in range(3000)]
ANSWERS = [f"{k % 4} of three" for k in range(3000)]


class TestNoise:
    @pytest.mark.parametrize("rate", [0.05, 0.3])
    def test_conditions_are_turned_as_often_as_the_rate_says_each_by_itself(self, rate):
        true = Scripted()(PROMPTS, ANSWERS)
        noisy = NoisyVerifier(Scripted(), rate, 1)(PROMPTS, ANSWERS)
        turned = np.array(
            [[a != b for a, b in zip(x.met, y.met, strict=True)] for x, y in zip(true, noisy, strict=True)]
        )
        # Four standard deviations.
        assert turned.mean() == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / turned.size))
        for place in range(3):
            assert turned[:, place].mean() == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / 3000))
        assert np.abs(np.corrcoef(turned.T) - np.eye(3)).max() < 4 / math.sqrt(3000)

    def test_nothing_at_rate_0_everything_at_rate_1(self):
        true = Scripted()(PROMPTS[:8], ANSWERS[:8])
        assert NoisyVerifier(Scripted(), 0, 1)(PROMPTS[:8], ANSWERS[:8]) == true
        wrong = NoisyVerifier(Scripted(), 1, 1)(PROMPTS[:8], ANSWERS[:8])
        assert [each.met for each in wrong] == [tuple(not fine for fine in each.met) for each in true]
        assert wrong[0] == Verdict((True, True, True), 1.0, "")
        assert wrong[2] == Verdict((False, False, True), 1 / 3, "Not met: condition 1 of 3; condition 2 of 3.")

    @given(order=st.permutations(range(30)))
    def test_the_prompt_the_answer_and_the_seed_decide(self, order):
        prompts, answers = PROMPTS[:30], ANSWERS[:30]
        whole = NoisyVerifier(Scripted(), 0.5, 1)(prompts, answers)
        shuffled = NoisyVerifier(Scripted(), 0.5, 1)([prompts[k] for k in order], [answers[k] for k in order])
        assert shuffled == [whole[k] for k in order]

    def test_another_seed_prompt_or_answer_other_noise(self):
        def turned(seed: int, prompt: str, ending: str) -> list[bool]:
            answers = [f"3 {k} {ending}" for k in range(100)]
            return [not each for v in NoisyVerifier(Scripted(), 0.5, seed)([prompt] * 100, answers) for each in v.met]

        every = [turned(1, "p", "x"), turned(2, "p", "x"), turned(1, "q", "x"), turned(1, "p", "y")]
        for k, one in enumerate(every):
            for other in every[:k]:
                assert 100 < sum(a != b for a, b in zip(one, other, strict=True)) < 200  # 150 of 300, 5.8 deviations

    def test_a_verdict_that_failed_stays_as_it_is(self):
        failed = Verdict((), 0.0, "", failed=True)
        assert NoisyVerifier(lambda prompts, answers: [failed], 1, 0)(["p"], ["a"]) == [failed]
