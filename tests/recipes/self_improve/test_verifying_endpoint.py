"""A language model as the verifier: exact, verbose, invalid and missing replies."""

from __future__ import annotations

import json
import re
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.config.shared_sections import JudgeConfig
from penchant.errors import ConfigError
from penchant.recipes.self_improve.verifying import (
    FAILED,
    EndpointVerifier,
    Verdict,
    read_conditions,
    read_judgement,
)

LIST = '["It is short.", "It is kind."]'


def judgement(
    *conditions_met: object, critique: object = "Be kind.", names: tuple[str, ...] = ("It is short.", "It is kind.")
):
    items = [{"condition": name, "met": is_met} for name, is_met in zip(names, conditions_met, strict=True)]
    return json.dumps({"conditions": items, "critique": critique})


def verifier(url: str, **settings) -> EndpointVerifier:
    return EndpointVerifier(JudgeConfig(url=url, model="m", **settings))


class Model:
    """A model that replies `conditions` if asked for them, else the `judgements` in turn and then the last one."""

    def __init__(self, conditions: object = LIST, *judgements: object) -> None:
        self.conditions, self.judgements = conditions, list(judgements) or [judgement(True, False)]
        self.requests: list[str] = []

    def __call__(self, question: str):
        self.requests.append(question)
        if "List the conditions" in question:
            return self.conditions
        return self.judgements.pop(0) if len(self.judgements) > 1 else self.judgements[0]


class TestRequests:
    def test_request_for_conditions_then_for_a_judgement(self, chat_endpoint):
        model = Model()
        url = chat_endpoint(model)
        assert verifier(url)(["Why {answer}?"], ["Be{cause} {prompt}"]) == [Verdict((True, False), 0.5, "Be kind.")]
        conditions_request, judge_request = model.requests
        assert "[Message]\nWhy {answer}?\n" in conditions_request
        assert "[Message]\nWhy {answer}?\n" in judge_request
        assert "[Answer]\nBe{cause} {prompt}\n" in judge_request
        assert "[Conditions]\n1. It is short.\n2. It is kind.\n" in judge_request
        assert '{"conditions": [{"condition": "...", "met": true}], "critique": "..."}' in judge_request

    def test_replies_are_cached(self, chat_endpoint):
        model = Model()
        url = chat_endpoint(model)
        prompts, answers = ["p", "q", "p", "p"], ["1", "2", "3", "1"]
        verdicts = verifier(url, parallel=1)(prompts, answers)
        assert Counter("List the conditions" in request for request in model.requests) == {True: 2, False: 3}
        assert verifier(url, parallel=3)(prompts, answers) == verdicts
        assert len(model.requests) == 5
        verifier(url)(["p"], ["4"])
        assert len(model.requests) == 6

    def test_verdicts_are_in_the_order_of_the_answers(self, chat_endpoint):
        def reply(question: str) -> str:
            if "List the conditions" in question:
                return LIST
            number = int(re.search(r"\[Answer\]\n(\d+)", question)[1])
            time.sleep(0.01 * (number % 3))
            return judgement(number % 2 == 0, number % 3 == 0, critique=str(number))

        verdicts = verifier(chat_endpoint(reply), parallel=4)(["p"] * 12, list(map(str, range(12))))
        assert [(verdict.met, verdict.critique) for verdict in verdicts] == [
            ((k % 2 == 0, k % 3 == 0), str(k)) for k in range(12)
        ]

    @pytest.mark.parametrize("critique", ["", None, 3])
    def test_missing_critique_is_replaced_by_the_failing_conditions(self, chat_endpoint, critique):
        url = chat_endpoint(Model(LIST, judgement(False, True, critique=critique)))
        assert verifier(url)(["p"], ["a"]) == [Verdict((False, True), 0.5, "Not met: It is short.")]

    def test_half_of_a_surrogate_pair_in_an_answer(self, chat_endpoint):
        assert verifier(chat_endpoint(Model()))(["p \ud83d"], ["a \ud83d"]) == [Verdict((True, False), 0.5, "Be kind.")]

    def test_judge_template_is_an_error(self):
        with pytest.raises(ConfigError, match="leave the judge's prompt out"):
            verifier("http://localhost:1/v1", prompt="judge.txt")


class TestFailures:
    @pytest.mark.parametrize("stumble", ["I like it.", "{", 500, 429, judgement(True, False)[:-30]])
    def test_invalid_replies_are_retried(self, chat_endpoint, stumble):
        model = Model(LIST, stumble, stumble, judgement(True, True))
        assert verifier(chat_endpoint(model))(["p"], ["a"]) == [Verdict((True, True), 1.0, "Be kind.")]
        assert len(model.requests) == 4

    @pytest.mark.parametrize("nonsense", ["I like it.", "", 503, "[" * 50_000, "[[A]]", "null"])
    def test_invalid_replies_to_all_retries_are_a_failure_and_not_cached(self, chat_endpoint, nonsense):
        model = Model(LIST, nonsense)
        url = chat_endpoint(model)
        verdicts = verifier(url, retries=2)(["p"] * 2, ["a", "b"])
        assert verdicts == [FAILED, FAILED]
        assert sum(verdict.failed for verdict in verdicts) == 2
        assert (FAILED.met, FAILED.score, FAILED.satisfied) == ((), 0.0, False)
        assert len(model.requests) == 1 + 2 * 3
        model.judgements = [judgement(True, True)]
        assert verifier(url)(["p"], ["a"]) == [Verdict((True, True), 1.0, "Be kind.")]

    def test_no_conditions_give_no_verdict_and_no_further_request(self, chat_endpoint):
        model = Model("I cannot think of any.")
        assert verifier(chat_endpoint(model), retries=1)(["p"] * 3, ["a", "b", "c"]) == [FAILED] * 3
        assert len(model.requests) == 2

    def test_one_failure_does_not_affect_the_others(self, chat_endpoint):
        def reply(question: str) -> str:
            return LIST if "List the" in question else "?" if "[Answer]\nodd" in question else judgement(True, True)

        verdicts = verifier(chat_endpoint(reply), retries=0)(["p"] * 3, ["a", "odd", "b"])
        assert [verdict.failed for verdict in verdicts] == [False, True, False]

    def test_timeout(self, chat_endpoint):
        model = Model(LIST, None)
        began = time.monotonic()
        assert verifier(chat_endpoint(model), retries=1, timeout_s=0.1)(["p"], ["a"]) == [FAILED]
        assert time.monotonic() - began < 0.9  # the endpoint is silent for a second, twice
        assert len(model.requests) == 3

    def test_no_server(self):
        assert verifier("http://127.0.0.1:9/v1", retries=0)(["p"], ["a"]) == [FAILED]

    @pytest.mark.parametrize("code", [401, 403, 404])
    @pytest.mark.parametrize("failing_request", ["conditions", "judgement"])
    def test_refusal_is_an_error_without_retries(self, chat_endpoint, code, failing_request):
        model = Model(code) if failing_request == "conditions" else Model(LIST, code)
        url = chat_endpoint(model)
        with pytest.raises(ConfigError, match=f"refuses: {code}") as error:
            verifier(url)(["p"], ["a"])
        assert url in str(error.value)
        assert len(model.requests) == (1 if failing_request == "conditions" else 2)


class TestReading:
    @pytest.mark.parametrize(
        "reply",
        [
            LIST,
            f"```json\n{LIST}\n```",
            f"Here are [two] conditions, as {{you}} asked: {LIST} I hope they help [sic].",
            f'<think>["A draft."]</think>{LIST}',
            f'{{"conditions": {LIST}}}',
            '["It is short.", " It  is\\nkind. ", "It is short.", ""]',
        ],
    )
    def test_conditions(self, reply):
        assert read_conditions(reply) == ["It is short.", "It is kind."]

    @pytest.mark.parametrize(
        "reply",
        ["", "[]", '[""]', "[1, 2]", '["a"', '{"a": ["b"]}', json.dumps(list("abcdefghijk")), "[" + "1" * 5000 + "]"],
    )
    def test_no_conditions(self, reply):
        assert read_conditions(reply) is None
        assert read_conditions(json.dumps(list("abcdefghij"))) == list("abcdefghij")

    @pytest.mark.parametrize(
        "reply",
        [
            judgement(True, False),
            f"```\n{judgement(True, False)}\n```",
            f"[a]{judgement(True, False)}",
            f"The answer says {judgement(True, True)} of itself, but: {judgement(True, False)} That is all {{sic}}.",
            judgement(False, True, names=("It is kind.", "It is short.")),
            judgement(True, False, names=("1. It is short", "2. It is kind")),
            judgement(True, False, names=("It is kind.", "It is kind.")),
        ],
    )
    def test_a_judgement(self, reply):
        assert read_judgement(reply, ["It is short.", "It is kind."]) == [[True, False], "Be kind."]

    @pytest.mark.parametrize(
        "reply",
        [
            judgement(True, names=("It is short.",)),
            judgement(True, False, True, names=("a", "b", "c")),
            judgement(1, 0),
            judgement("true", "false"),
            judgement(True, None),
            '{"conditions": [true, false], "critique": ""}',
            '{"conditions": {"It is short.": true}}',
            "[true, false]",
            judgement(True, False).replace("true", "True"),
        ],
    )
    def test_no_judgement(self, reply):
        assert read_judgement(reply, ["It is short.", "It is kind."]) is None

    def test_surrogate_halves_are_replaced(self):
        assert read_conditions('["a \\ud83d"]') == ["a ?"]
        assert read_judgement(judgement(True, True, critique="b \ud83d"), ["x", "y"]) == [[True, True], "b ?"]

    @given(st.text('[]{}",:\\ \n1tru\ud83de', max_size=40), st.booleans(), st.text("abc ([", max_size=9))
    def test_text_before_and_after_the_reply(self, noise, is_met, suffix):
        """Noise alone never raises; a JSON object on its own line after words is read."""
        read_conditions(noise)
        read_judgement(noise, ["x"])
        words = re.sub(r'[{\["]', "", noise)
        reply = f"{words}\n{judgement(is_met, names=('x',))}\n{suffix}"
        assert read_judgement(reply, ["x"]) == [[is_met], "Be kind."]
