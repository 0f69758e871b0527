"""The demo's text world: plain English whose true reward is known by construction, and a tiny model of it.

It follows the controlled-sentiment experiment of arXiv 2305.18290, section 6: the reward is a formula defined for any
text, so the gain of preference training, and its KL, can be measured on fresh samples. Short reviews of places, meals,
shows and people are written from templates over a closed vocabulary; each review draws a mood, and the moods are
symmetric, so the texts are neutral on average. The seed decides everything.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from penchant.api import PreferenceGroup

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

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


PAD, BOS, EOS, UNKNOWN = SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
MAX_WORDS = 30
"""Maximum words of a demonstration; the true reward subtracts 0.1 for every further word."""


def true_reward(text: str) -> float:
    """The true reward of a response, in [-4, 4]; defined for any text, also a malformed one.

    The sum over the *distinct* words of sentiment (0.5 for a mild word, 1 for a strong one, negative for poor words;
    "not", also with an intensifier between, flips the sign), minus 1 for each malformed sentence (unfinished, or not of
    3 to 16 words), minus 0.1 for each word beyond `MAX_WORDS`.
    """
    tokens = re.findall(r"[^\s.,:]+|[.,:]", text.lower())
    words = {(word, _is_negated(tokens, index)) for index, word in enumerate(tokens) if word in WORD_SCORES}
    sentiment = sum(-WORD_SCORES[word] if negated else WORD_SCORES[word] for word, negated in words)
    lengths = [len(re.findall(r"[^\s,:]+", sentence)) for sentence in text.split(".")]
    unfinished = lengths.pop() > 0 or not lengths
    malformed = unfinished + sum(not 3 <= length <= 16 for length in lengths)
    excess = max(0, len(re.findall(r"[^\s.,:]+", text)) - MAX_WORDS)
    return max(-4.0, min(4.0, sentiment - malformed - 0.1 * excess))


def _is_negated(tokens: Sequence[str], index: int) -> bool:
    previous = index - 1
    while previous >= 0 and tokens[previous] in INTENSIFIERS:
        previous -= 1
    return previous >= 0 and tokens[previous] == "not"


def true_rewards(prompt: str, responses: Sequence[str]) -> list[float]:
    """`true_reward` of every response; ``reward: {function: penchant.recipes.demo_world:true_rewards}`` names it."""
    return [true_reward(response) for response in responses]


def label(prompt: str, candidates: Sequence[str], rng: random.Random, *, temperature: float = 0.0) -> PreferenceGroup:
    """A group with the candidates ranked by true reward; rank 1 is the best, and equal rewards share a rank.

    Args:
        temperature: above 0, a noisy judge: the ranking is one draw from Plackett-Luce with log-worths
            ``true_reward / temperature`` (of two candidates the better wins with probability sigma(gap / temperature)).
    """
    rewards = [true_reward(candidate) for candidate in candidates]
    if temperature > 0:
        # The order of reward / temperature + Gumbel noise is a draw from Plackett-Luce.
        rewards = [reward / temperature - math.log(rng.expovariate(1.0)) for reward in rewards]
    ranks = tuple(1 + sum(other > reward for other in rewards) for reward in rewards)
    return PreferenceGroup(prompt, tuple(candidates), ranks=ranks)


def prompts(n: int, seed: int) -> list[str]:
    """`n` prompts about `n` different subjects, in random order.

    Raises:
        ValueError: the world has fewer than `n` subjects.
    """
    rng = random.Random(f"prompts {seed}")
    subjects = rng.sample([subject for kind in KINDS for subject in _subjects(kind)], n)
    return [rng.choice(REQUESTS).format(subject=subject, person=rng.choice(PEOPLE)) for subject in subjects]


def split_prompts(held_out: int, seed: int) -> tuple[list[str], list[str]]:
    """One prompt about every subject, split in training prompts and `held_out` others; they share no subject."""
    all_prompts = prompts(sum(1 for kind in KINDS for _ in _subjects(kind)), seed)
    return all_prompts[held_out:], all_prompts[:held_out]


def _subjects(kind: SubjectKind) -> Iterator[str]:
    slots = product(kind.qualities, kind.nouns, kind.settings)
    return (SUBJECT.format(quality=quality, noun=noun, setting=setting) for quality, noun, setting in slots)


def pretraining_texts(n: int, seed: int) -> list[str]:
    """`n` notes of 2 to 6 sentences, with every mood; no note has the form of a prompt with its response."""
    rng = random.Random(f"texts {seed}")
    return [_note(rng) for _ in range(n)]


def _note(rng: random.Random) -> str:
    kind = rng.choice(KINDS)
    writer = _Writer(kind, rng.choice(kind.nouns), rng)
    return " ".join([writer.fill(rng.choice(INTRODUCTIONS)), *writer.sentences(rng.randint(1, 5))])


def demonstration(prompt: str, rng: random.Random) -> str:
    """A response to a prompt of this world: a space and 12 to 30 words in 2 to 4 sentences, neutral on average.

    Raises:
        ValueError: the prompt names no subject of this world.
    """
    subjects = [(kind, noun) for kind in KINDS for noun in kind.nouns if noun in prompt.rstrip(":").split()]
    if not subjects:
        raise ValueError(f"{prompt!r} names no subject of this world; expected a prompt from `prompts`")
    kind, noun = subjects[0]
    while True:
        text = " ".join(_Writer(kind, noun, rng).sentences(rng.randint(2, 4)))
        if 12 <= len(text.split()) <= MAX_WORDS:
            return " " + text


class _Writer(dict[str, str]):
    """Fills the slots of templates for one text: a value is drawn for every slot, aspects without repeats."""

    def __init__(self, kind: SubjectKind, noun: str, rng: random.Random) -> None:
        super().__init__(noun=noun)
        self._kind, self._rng = kind, rng
        self._mood = rng.betavariate(2, 2)
        self._aspects: list[tuple[str, str]] = []

    def sentences(self, n: int) -> list[str]:
        templates = self._rng.sample(OPINIONS, n)
        return [self.fill(self._rng.choice(REMARKS) if self._rng.random() < 0.2 else t) for t in templates]

    def fill(self, template: str) -> str:
        return template.format_map(self)

    def __missing__(self, slot: str) -> str:
        rng, kind = self._rng, self._kind
        good = slot == "good" or (slot != "poor" and rng.random() < self._mood)
        match slot:
            case "subject":
                return self.fill(SUBJECT)
            case "aspect":
                return self._next_aspect()[0]
            case "aspect_was":
                return " ".join(self._next_aspect())
            case "good" | "poor" | "judged":
                return self._adjective(good)
            case "verb":
                return rng.choice(rng.choice(GOOD_VERBS if good else POOR_VERBS))
            case "advise":
                return "recommend" if good else "not recommend"
        return rng.choice(
            {
                "person": PEOPLE,
                "company": COMPANY,
                "time": TIMES,
                "number": NUMBERS,
                "quality": kind.qualities,
                "setting": kind.settings,
                "meeting": kind.meeting,
                "visit": kind.visit,
            }[slot]
        )

    def _next_aspect(self) -> tuple[str, str]:
        if not self._aspects:
            self._aspects = self._rng.sample(self._kind.aspects, len(self._kind.aspects))
        return self._aspects.pop()

    def _adjective(self, good: bool) -> str:
        manner = self._rng.random()
        # "not dull" is good: the negation flips the sign.
        negated = manner < 0.15
        general, special = (GOOD, self._kind.good) if good != negated else (POOR, self._kind.poor)
        strength = 0 if negated else self._rng.randrange(2)
        word = self._rng.choice(general[strength] + special[strength])
        if negated:
            return f"not {word}"
        return f"{self._rng.choice(INTENSIFIERS)} {word}" if manner < 0.4 else word


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word or mark.

    A word's token includes the space before the word, so a prompt's tokens end where its text ends.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = [*SPECIAL_TOKENS, ".", ",", ":", *(f"▁{word}" for word in all_words())]
    ids = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("[.,:]"), "isolated"), pre_tokenizers.Metaspace(prepend_scheme="first")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


def build_model(vocabulary: int, seed: int) -> LlamaForCausalLM:
    """A Llama small enough for a laptop's CPU, with random weights decided by the seed.

    Args:
        vocabulary: number of tokens.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    pad, bos, eos, _ = range(len(SPECIAL_TOKENS))
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
