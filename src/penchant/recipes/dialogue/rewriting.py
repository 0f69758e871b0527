"""One answer in two styles, supportive and prescriptive: by a language model, or by rules that stand in for one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple, Protocol

from penchant.config_reward import JudgeConfig
from penchant.engine.reference_cache import cache_folder
from penchant.errors import ConfigError
from penchant.evaluation.endpoint import Endpoint, Unanswered
from penchant.evaluation.human_centric import refuses
from penchant.evaluation.judges import fill
from penchant.evaluation.kept_answers import KeptAnswers
from penchant.recipes.dialogue.reading import Answered

SUPPORTIVE = """Rewrite the answer below for a worried caregiver: warm, in plain words, acknowledging how they feel,
suggesting rather than ordering. Keep every fact, number and name; add none. Reply with the rewritten answer alone.

[Question]
{question}

[Answer]
{answer}"""

PRESCRIPTIVE = """Rewrite the answer below as a clinical directive: impersonal, technical terms, orders rather than
suggestions, no word of how the reader may feel. Keep every fact, number and name; add none.
Reply with the rewritten answer alone.

[Question]
{question}

[Answer]
{answer}"""

LONGEST = 4
"""Times the answer's words: a rewriting that is longer is something else."""


class Styled(NamedTuple):
    """The same facts twice."""

    supportive: str
    prescriptive: str


class Rewriter(Protocol):
    """Both styles of each answer; None where there is none."""

    def __call__(self, answers: Sequence[Answered]) -> list[Styled | None]: ...


@dataclass(frozen=True)
class EndpointRewriter:
    """A language model asked for either style; its rewritings are kept on disk.

    Args:
        supportive, prescriptive: templates of {question} and {answer}.
    """

    endpoint: JudgeConfig
    supportive: str = SUPPORTIVE
    prescriptive: str = PRESCRIPTIVE

    def __call__(self, answers: Sequence[Answered]) -> list[Styled | None]:
        """A rewriting that is empty, a refusal or `LONGEST` times as long is asked for again, then given up.

        Raises:
            ConfigError: the endpoint refuses, or a whole round of answers in a row gives nothing.
        """
        found: list[Styled | None] = []
        round_ = 4 * self.endpoint.parallel
        with (
            closing(KeptAnswers(f"rewriter {self.endpoint.url} {self.endpoint.model}", cache_folder())) as kept,
            ThreadPoolExecutor(self.endpoint.parallel) as pool,
        ):
            for start in range(0, len(answers), round_):
                part = answers[start : start + round_]
                told: list[Styled | Unanswered] = list(pool.map(lambda each: self._both(each, kept), part))
                failures = [each for each in told if isinstance(each, Unanswered)]
                if len(failures) == len(part):
                    raise ConfigError(
                        f"the endpoint gave no rewriting of {len(part)} answers in a row; the last: {failures[-1]}",
                        where=self.endpoint.url,
                        fix="check that it is up and follows instructions; what it gave before is kept",
                    )
                found += [None if isinstance(each, Unanswered) else each for each in told]
        return found

    def _both(self, each: Answered, kept: KeptAnswers) -> Styled | Unanswered:
        try:
            return Styled(*(self._one(template, each, kept) for template in (self.supportive, self.prescriptive)))
        except Unanswered as error:
            return error

    def _one(self, template: str, each: Answered, kept: KeptAnswers) -> str:
        asked = fill(template, question=each.question, answer=each.answer)
        known = kept.get(asked)
        if known is not None:
            return str(known)
        most = LONGEST * max(20, len(each.answer.split()))

        def read(said: str) -> str | None:
            text = said.strip()
            return text if 0 < len(text.split()) <= most and not refuses(text) else None

        text = Endpoint(self.endpoint).ask(asked, read)
        kept.keep([(asked, text)])
        return text


OPENERS = (
    "I understand that this can be worrying.",
    "It is understandable that you ask, and I am glad you did.",
    "I hear you, and you are not alone with this.",
    "That sounds difficult, and I am sorry that you have to deal with it.",
    "Many people feel unsure about this, and it makes sense to ask.",
    "Thank you for asking; I can imagine that this is on your mind.",
)
CLOSERS = (
    "Would you like to tell me more about what worries you?",
    "If you like, a doctor can go through this with you.",
    "Please take your time, and feel free to ask anything else.",
    "Perhaps it may help to talk this over with someone you trust.",
)
ORDERS = (
    "The following is to be noted.",
    "Observe the following without exception.",
    "The patient must be informed as follows.",
    "Compliance with the following is required.",
    "This is established and is not subject to discussion.",
    "The clinical position is as stated.",
)
WARNINGS = (
    "Non-compliance is inadvisable.",
    "Further inquiry is to be directed to the responsible physician.",
    "No further explanation is required.",
    "Adherence is mandatory.",
)
PLAIN: Mapping[str, str] = {
    "hypertension": "high blood pressure",
    "physician": "doctor",
    "physicians": "doctors",
    "medication": "medicine",
    "medications": "medicines",
    "fracture": "broken bone",
    "edema": "swelling",
    "pruritus": "itching",
    "dyspnea": "shortness of breath",
    "fatigue": "tiredness",
}
"""Words of the field, and what people say; each can stand for the other wherever it is met."""


@dataclass(frozen=True)
class RuleRewriter:
    """A stand-in for a language model: the answer's first sentences between one of a few phrases before and after.

    What such pairs teach is those phrases and `PLAIN`; `penchant data audit` tells the two sides apart nearly always.

    Args:
        sentences: of an answer that are kept; whole ones.
        most_words: an answer whose first sentence is longer, as a list is, is not rewritten.
    """

    sentences: int = 3
    most_words: int = 60

    def __call__(self, answers: Sequence[Answered]) -> list[Styled | None]:
        return [self._styled(each) for each in answers]

    def _styled(self, each: Answered) -> Styled | None:
        facts = ""
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(each.answer.split()))[: self.sentences]:
            if len(f"{facts} {sentence}".split()) > self.most_words:
                break
            facts = f"{facts} {sentence}".strip()
        if not facts:
            return None
        drawn = blake2b(f"{each.question}\n{each.answer}".encode(errors="surrogatepass"), digest_size=4).digest()
        opener, closer, order, warning = (
            choices[byte % len(choices)]
            for choices, byte in zip((OPENERS, CLOSERS, ORDERS, WARNINGS), drawn, strict=True)
        )
        learned = {plain: word for word, plain in PLAIN.items()}
        return Styled(f"{opener} {_replaced(facts, PLAIN)} {closer}", f"{order} {_replaced(facts, learned)} {warning}")


def _replaced(text: str, words: Mapping[str, str]) -> str:
    """Words and phrases replaced, a capital at the beginning kept."""

    def other(match: re.Match[str]) -> str:
        new = words[match[0].lower()]
        return new[0].upper() + new[1:] if match[0][0].isupper() else new

    phrases = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.sub(rf"\b(?:{phrases})\b", other, text, flags=re.IGNORECASE)
