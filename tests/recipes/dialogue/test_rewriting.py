"""Two styles of one answer, by rules and by an endpoint that may be down, slow or talking nonsense."""

from __future__ import annotations

import pytest

from penchant.config_reward import JudgeConfig
from penchant.errors import ConfigError
from penchant.evaluation.human_centric import unsupported
from penchant.recipes.dialogue.reading import Answered
from penchant.recipes.dialogue.rewriting import EndpointRewriter, RuleRewriter, Styled

ASTHMA = Answered(
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


def test_plain_words_become_learned_ones():
    [styled] = RuleRewriter()([Answered("q", "Ask a doctor about high blood pressure and medicines.")])
    assert "Ask a physician about hypertension and medications." in styled.prescriptive
    assert "Ask a doctor about high blood pressure and medicines." in styled.supportive


def test_a_list_is_not_cut():
    assert RuleRewriter(most_words=5)([Answered("q", "One two three four five six.")]) == [None]


def rewriter(url):
    return EndpointRewriter(JudgeConfig(url=url, model="m", retries=0, timeout_s=0.3, parallel=2))


def test_an_endpoint_is_asked_once(chat_endpoint):
    asked = []

    def says(question):
        asked.append(question)
        return " Please rest. " if "caregiver" in question else "Rest!"

    url = chat_endpoint(says)
    answers = [Answered(f"q{n}", f"answer {n}") for n in range(3)]
    found = rewriter(url)(answers)
    assert found == [Styled("Please rest.", "Rest!")] * 3
    assert len(asked) == 6
    assert "[Question]\nq0\n\n[Answer]\nanswer 0" in "".join(asked)
    assert rewriter(url)(answers) == found
    assert len(asked) == 6


def test_what_is_no_rewriting_is_given_up(chat_endpoint):
    said = {"q0": "", "q1": "I cannot help with that.", "q2": "word " * 500, "q3": "Fine.", "q4": 500, "q5": None}
    url = chat_endpoint(lambda question: next(text for name, text in said.items() if f"\n{name}\n" in question))
    found = rewriter(url)([Answered(name, "a") for name in said])
    assert found == [None, None, None, Styled("Fine.", "Fine."), None, None]


@pytest.mark.parametrize("said", ["", 503, None])
def test_an_endpoint_that_never_does(chat_endpoint, said):
    url = chat_endpoint(lambda question: said)
    with pytest.raises(ConfigError, match="the endpoint gave no rewriting of 8 answers in a row"):
        rewriter(url)([Answered(str(n), "a") for n in range(20)])


def test_an_endpoint_that_is_down_or_refuses(chat_endpoint):
    with pytest.raises(ConfigError, match=r"no rewriting of 1 answers in a row; the last: .*refused"):
        rewriter("http://127.0.0.1:9/v1")([Answered("q", "a")])
    url = chat_endpoint(lambda question: 401)
    with pytest.raises(ConfigError, match="endpoint refuses: 401"):
        rewriter(url)([Answered("q", "a")])
