"""The words and sentence templates of the demo's text world, and the score of every word of sentiment."""

from __future__ import annotations

import re
from dataclasses import dataclass

Words = tuple[str, ...]


def _words(text: str) -> Words:
    return tuple(text.split())


@dataclass(frozen=True)
class SubjectKind:
    """A kind of subject, with the words that texts about it use.

    Attributes:
        nouns, qualities, settings: values of the slots of `SUBJECT`.
        aspects: parts of the subject that a review judges, each with its "was" or "were".
        meeting: verbs of coming to the subject, followed by its name.
        visit: the same for a subject that the text has named before.
        good, poor: adjectives for this kind only, by strength: (mild, strong).
    """

    nouns: Words
    qualities: Words
    settings: Words
    aspects: tuple[tuple[str, str], ...]
    meeting: Words
    visit: Words
    good: tuple[Words, Words]
    poor: tuple[Words, Words]


def _aspects(singular: str, plural: str) -> tuple[tuple[str, str], ...]:
    return tuple((a, "was") for a in _words(singular)) + tuple((a, "were") for a in _words(plural))


KINDS = (
    SubjectKind(
        _words("museum hotel market library theatre castle station cafe"),
        _words("old new small big quiet busy"),
        ("by the river", "on the hill", "near the bridge", "in the town", "behind the church", "at the harbour"),
        _aspects("hall entrance garden kitchen view", "rooms stairs windows"),
        ("went to", "visited", "walked to"),
        ("went there", "stayed there", "came back"),
        (("clean", "bright"), ("beautiful", "splendid")),
        (("noisy", "shabby"), ("filthy", "ugly")),
    ),
    SubjectKind(
        _words("soup pizza curry pie salad stew cake breakfast"),
        _words("hot spicy sweet large simple green"),
        ("from the bakery", "at the corner", "with the mushrooms", "of the day", "on the menu", "for two"),
        _aspects("sauce bread cheese crust rice", "vegetables beans herbs"),
        ("ordered", "tried", "cooked"),
        ("ordered it", "tried it", "shared it"),
        (("fresh", "tasty"), ("delicious", "perfect")),
        (("stale", "greasy"), ("disgusting", "rotten")),
    ),
    SubjectKind(
        _words("film play concert novel opera musical story show"),
        _words("short long recent french famous modern"),
        ("about the sea", "about a dog", "with the twins", "about a war", "for children", "in two parts"),
        _aspects("plot ending music dialogue opening", "songs jokes scenes"),
        ("saw", "heard about", "talked about"),
        ("heard about it", "talked about it", "came for it"),
        (("funny", "clever"), ("brilliant", "moving")),
        (("boring", "silly"), ("unbearable", "dreary")),
    ),
    SubjectKind(
        _words("teacher doctor waiter guide driver nurse baker farmer"),
        _words("young tall german italian local retired"),
        ("from the village", "at the school", "with the beard", "in the blue coat", "from the north", "on the boat"),
        _aspects("manner voice advice tone greeting", "answers words letters"),
        ("met", "talked with", "worked with"),
        ("met them", "called them", "thanked them"),
        (("polite", "helpful"), ("kind", "generous")),
        (("rude", "careless"), ("cruel", "hostile")),
    ),
)
# Words by strength: (mild, strong).
GOOD: tuple[Words, Words] = (("good", "nice", "pleasant"), ("wonderful", "great", "excellent"))
POOR: tuple[Words, Words] = (("bad", "poor", "dull"), ("awful", "terrible", "horrible"))
GOOD_VERBS: tuple[Words, Words] = (("liked", "praised"), ("loved", "adored"))
POOR_VERBS: tuple[Words, Words] = (("disliked", "criticised"), ("hated", "loathed"))
ADVICE: tuple[Words, Words] = ((), ("recommend",))
INTENSIFIERS = ("very", "really", "quite", "rather")

PEOPLE = ("we", "i", "they", "my sister", "our friends", "anna", "tom", "a student")
COMPANY = ("my brother", "my mother", "my father", "the children", "a friend", "the family", "some students", "peter")
TIMES = ("on monday", "on friday", "last week", "in spring", "in the evening", "before lunch", "this year", "at noon")
NUMBERS = ("two", "three", "five", "ten")

SUBJECT = "the {quality} {noun} {setting}"
# A prompt is one of these templates, filled with one subject.
REQUESTS = ("review of {subject}:", "a note about {subject}:", "what {person} thought of {subject}:")
INTRODUCTIONS = (
    "{person} {meeting} {subject} {time}.",
    "{time} {person} {meeting} {subject} with {company}.",
    "{person} wrote a short note about {subject}.",
    "this is a review of {subject}.",
    "here is what {person} thought of {subject}:",
)
OPINIONS = (
    "the {aspect_was} {judged}.",
    "the {noun} was {judged}.",
    "the {aspect_was} {judged} and the {aspect_was} {judged}.",
    "the {aspect_was} {good} but the {aspect_was} {poor}.",
    "the {aspect_was} {poor} but the {aspect_was} {good}.",
    "{person} {verb} the {aspect}.",
    "{person} {verb} the {aspect} and {verb} the {aspect}.",
    "{person} found the {aspect} {judged}.",
    "{person} thought the {noun} was {judged}.",
    "{person} said that the {aspect_was} {judged}, and {company} {verb} the {aspect}.",
    "{time} the {aspect_was} {judged}.",
    "{person} would {advise} the {noun} to {company}.",
)
REMARKS = (
    "{person} {visit} {time}.",
    "{person} {visit} with {company}.",
    "{person} waited for {number} hours with {company}.",
    "{time} {person} {visit}.",
)


def _word_scores() -> dict[str, float]:
    """The score of every word of sentiment: 0.5 for a mild word, 1 for a strong one, negative for poor words."""
    good = [GOOD, GOOD_VERBS, ADVICE, *(kind.good for kind in KINDS)]
    poor = [POOR, POOR_VERBS, *(kind.poor for kind in KINDS)]
    signed = [(1.0, words) for words in good] + [(-1.0, words) for words in poor]
    return {
        word: sign * value
        for sign, by_strength in signed
        for value, words in zip((0.5, 1.0), by_strength, strict=True)
        for word in words
    }


WORD_SCORES = _word_scores()


def all_words() -> list[str]:
    """Every word that a text of the world can contain, sorted."""
    slots = re.compile(r"\{\w+\}")
    texts = [slots.sub(" ", text) for text in (SUBJECT, *REQUESTS, *INTRODUCTIONS, *OPINIONS, *REMARKS)]
    texts += [*PEOPLE, *COMPANY, *TIMES, *NUMBERS, *INTENSIFIERS, *WORD_SCORES, "not"]
    for kind in KINDS:
        texts += [*kind.nouns, *kind.qualities, *kind.settings, *kind.meeting, *kind.visit]
        texts += [word for aspect in kind.aspects for word in aspect]
    return sorted({word for text in texts for word in re.findall(r"[a-z]+", text)})
