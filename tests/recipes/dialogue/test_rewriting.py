"""Rewriting in two styles by rules, and by an endpoint that may be down, slow or give useless replies."""

from __future__ import annotations

import pytest

from penchant.config.shared_sections import JudgeConfig
from penchant.errors import ConfigError
from penchant.recipes.dialogue.human_centric import unsupported
from penchant.recipes.dialogue.rewriting import AnswerRecord, EndpointRewriter, RuleRewriter, StyledAnswers

ASTHMA = AnswerRecord(
    "What is asthma?",
    "Asthma is a disease of the airways. Medication helps. See a physician. It is chronic. " + "It lasts. " * 40,
)


def test_rules_keep_the_facts_and_change_the_words():
    [styled] = RuleRewriter()([ASTHMA])
    assert "Asthma is a disease of the airways. Medicine helps. See a doctor." in styled.supportive
    assert "Asthma is a disease of the airways. Medication helps. See a physician." in styled.prescriptive
    assert "chronic" not in styled.supportive
    assert RuleRewriter()([ASTHMA]) == [styled]
    assert not unsupported(styled.supportive, f"{ASTHMA.question} {ASTHMA.answer}")


def test_plain_words_become_technical_ones():
    [styled] = RuleRewriter()([AnswerRecord("q", "Ask a doctor about high blood pressure and medicines.")])
    assert "Ask a physician about hypertension and medications." in styled.prescriptive
    assert "Ask a doctor about high blood pressure and medicines." in styled.supportive


def test_answer_with_a_long_first_sentence_is_not_rewritten():
    assert RuleRewriter(most_words=5)([AnswerRecord("q", "One two three four five six.")]) == [None]


def rewriter(url):
    return EndpointRewriter(JudgeConfig(url=url, model="m", retries=0, timeout_s=0.3, parallel=2))


def test_rewritings_are_cached(chat_endpoint):
    prompts = []

    def reply(question):
        prompts.append(question)
        return " Please rest. " if "caregiver" in question else "Rest!"

    url = chat_endpoint(reply)
    answers = [AnswerRecord(f"q{n}", f"answer {n}") for n in range(3)]
    rewritings = rewriter(url)(answers)
    assert rewritings == [StyledAnswers("Please rest.", "Rest!")] * 3
    assert len(prompts) == 6
    assert "[Question]\nq0\n\n[Answer]\nanswer 0" in "".join(prompts)
    assert rewriter(url)(answers) == rewritings
    assert len(prompts) == 6


def test_useless_replies_give_none(chat_endpoint):
    replies = {"q0": "", "q1": "I cannot help with that.", "q2": "word " * 500, "q3": "Fine.", "q4": 500, "q5": None}
    url = chat_endpoint(lambda question: next(text for name, text in replies.items() if f"\n{name}\n" in question))
    rewritings = rewriter(url)([AnswerRecord(name, "a") for name in replies])
    assert rewritings == [None, None, None, StyledAnswers("Fine.", "Fine."), None, None]


@pytest.mark.parametrize("reply", ["", 503, None])
def test_endpoint_without_any_rewriting_is_an_error(chat_endpoint, reply):
    url = chat_endpoint(lambda question: reply)
    with pytest.raises(ConfigError, match="the endpoint gave no rewriting of 8 answers in a row"):
        rewriter(url)([AnswerRecord(str(n), "a") for n in range(20)])


def test_endpoint_that_is_down_or_refuses(chat_endpoint):
    with pytest.raises(ConfigError, match=r"no rewriting of 1 answers in a row; the last: .*refused"):
        rewriter("http://127.0.0.1:9/v1")([AnswerRecord("q", "a")])
    url = chat_endpoint(lambda question: 401)
    with pytest.raises(ConfigError, match="endpoint refuses: 401"):
        rewriter(url)([AnswerRecord("q", "a")])
