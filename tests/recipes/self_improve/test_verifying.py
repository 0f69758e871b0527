"""Verifiers: functions and their possible errors, rewards, and verifiers with flipped conditions."""

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
    """A reward that is the response's length minus the prompt's."""

    name = "lengths"

    def __call__(self, prompts, responses):
        pairs = zip(prompts, responses, strict=True)
        return [[float(len(response) - len(prompt)) for response in candidates] for prompt, candidates in pairs]


class Scripted:
    """A verifier with three conditions; the answer's number is the number of conditions that are met."""

    def __call__(self, prompts, answers):
        counts = [int(answer.split()[0]) for answer in answers]
        return [Verdict(tuple(k < count for k in range(3)), count / 3, f"{count} are met") for count in counts]


class TestVerdict:
    @pytest.mark.parametrize(
        ("conditions_met", "satisfied"),
        [((True,), True), ((True, True), True), ((True, False), False), ((False,), False)],
    )
    def test_satisfied_if_all_conditions_are_met(self, conditions_met, satisfied):
        assert Verdict(conditions_met, 0.5, "").satisfied is satisfied

    def test_verdict_without_conditions_is_not_satisfied(self):
        assert not Verdict((), 0.0, "", failed=True).satisfied


class TestFunctions:
    def test_score_is_the_share_met_and_critique_names_the_failures(self, file):
        verify = FunctionVerifier.load(f"{file}:fine")
        assert verify(["ab", "ab", "x"], ["abe", "long enough", "other"]) == [
            Verdict((True, True, True), 1.0, ""),
            Verdict((False, False, True), 1 / 3, "Not met: short; repeats the prompt."),
            Verdict((False, False, True), 1 / 3, "Not met: short; repeats the prompt."),
        ]
        assert verify([], []) == []

    def test_numpy_comparisons_are_accepted(self, file):
        [yes, no] = FunctionVerifier.load(f"{file}:of_numpy")(["p", "p"], ["long", "no"])
        assert (yes.met, no.met) == ((True,), (False,))
        assert type(yes.met[0]) is bool

    def test_returned_verdict_has_python_types(self, file):
        [verdict] = FunctionVerifier.load(f"{file}:own")(["p"], ["a"])
        assert verdict == Verdict((True, False), 0.25, "too long")
        assert [type(value) for value in (*verdict.met, verdict.score)] == [bool, bool, float]

    @pytest.mark.parametrize(
        ("name", "message"),
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
    def test_invalid_results(self, file, name, message):
        with pytest.raises(ConfigError) as error:
            FunctionVerifier.load(f"{file}:{name}")(["which colour?"], ["a"])
        assert str(error.value).startswith(f"{file}:{name}, prompt 'which colour?': the verifier's function {message}")
        assert "what to do: return a True or False for each condition" in str(error.value)

    @pytest.mark.parametrize(
        ("where", "message"),
        [
            ("{file}:absent", "absent has no such name"),
            ("{file}:constant", "constant is no function"),
            ("nowhere.py:f", "verifier.function: there is no such file"),
            ("no_such_package:f", "cannot be imported: ModuleNotFoundError"),
            ("just_a_name", "verifier.function is 'just_a_name', expected a module and a name"),
        ],
    )
    def test_invalid_function_paths(self, file, where, message):
        with pytest.raises(ConfigError) as error:
            FunctionVerifier.load(where.format(file=file))
        assert message in str(error.value)


class TestRewards:
    def test_score_is_the_logistic_of_the_difference_to_the_threshold(self):
        low, equal, high = RewardVerifier(Lengths(), 2.0)(["p", "p", ""], ["ab", "abc", "abcde"])
        assert (low.met, equal.met, high.met) == ((False,), (True,), (True,))
        assert (low.score, equal.score, high.score) == pytest.approx(
            (1 / (1 + math.e), 0.5, 1 / (1 + math.exp(-3))), abs=1e-15
        )
        assert low.critique == "Not met: the reward is 1, expected at least 2."
        assert equal.critique == high.critique == ""

    @pytest.mark.parametrize(("threshold", "score"), [(-1e6, 1.0), (1e6, 0.0)])
    def test_scores_far_from_the_threshold(self, threshold, score):
        [verdict] = RewardVerifier(Lengths(), threshold)(["p"], ["a"])
        assert verdict.score == score


PROMPTS = [f"p{k}" for k in range(3000)]
ANSWERS = [f"{k % 4} of three" for k in range(3000)]


class TestNoise:
    @pytest.mark.parametrize("rate", [0.05, 0.3])
    def test_conditions_are_flipped_independently_at_the_stated_rate(self, rate):
        true = Scripted()(PROMPTS, ANSWERS)
        noisy = NoisyVerifier(Scripted(), rate, 1)(PROMPTS, ANSWERS)
        flipped = np.array(
            [[a != b for a, b in zip(x.met, y.met, strict=True)] for x, y in zip(true, noisy, strict=True)]
        )
        # Four standard deviations.
        assert flipped.mean() == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / flipped.size))
        for index in range(3):
            assert flipped[:, index].mean() == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / 3000))
        assert np.abs(np.corrcoef(flipped.T) - np.eye(3)).max() < 4 / math.sqrt(3000)

    def test_rate_0_flips_nothing_and_rate_1_everything(self):
        true = Scripted()(PROMPTS[:8], ANSWERS[:8])
        assert NoisyVerifier(Scripted(), 0, 1)(PROMPTS[:8], ANSWERS[:8]) == true
        wrong = NoisyVerifier(Scripted(), 1, 1)(PROMPTS[:8], ANSWERS[:8])
        assert [verdict.met for verdict in wrong] == [tuple(not fine for fine in verdict.met) for verdict in true]
        assert wrong[0] == Verdict((True, True, True), 1.0, "")
        assert wrong[2] == Verdict((False, False, True), 1 / 3, "Not met: condition 1 of 3; condition 2 of 3.")

    @given(order=st.permutations(range(30)))
    def test_prompt_answer_and_seed_decide_the_flips(self, order):
        prompts, answers = PROMPTS[:30], ANSWERS[:30]
        whole = NoisyVerifier(Scripted(), 0.5, 1)(prompts, answers)
        shuffled = NoisyVerifier(Scripted(), 0.5, 1)([prompts[k] for k in order], [answers[k] for k in order])
        assert shuffled == [whole[k] for k in order]

    def test_other_seed_prompt_or_answer_gives_other_flips(self):
        def flips_of(seed: int, prompt: str, ending: str) -> list[bool]:
            answers = [f"3 {k} {ending}" for k in range(100)]
            return [
                not is_met for v in NoisyVerifier(Scripted(), 0.5, seed)([prompt] * 100, answers) for is_met in v.met
            ]

        flips = [flips_of(1, "p", "x"), flips_of(2, "p", "x"), flips_of(1, "q", "x"), flips_of(1, "p", "y")]
        for k, a_flips in enumerate(flips):
            for b_flips in flips[:k]:
                assert (
                    100 < sum(a != b for a, b in zip(a_flips, b_flips, strict=True)) < 200
                )  # 150 of 300, 5.8 deviations

    def test_failed_verdict_stays_unchanged(self):
        failed = Verdict((), 0.0, "", failed=True)
        assert NoisyVerifier(lambda prompts, answers: [failed], 1, 0)(["p"], ["a"]) == [failed]
