"""The embedded default's world: plain English whose true reward is known by construction, and a tiny model of it.

In the spirit of the controlled-sentiment experiment of arXiv 2305.18290, section 6: the reward is a formula that any
text can be put into, so what preference training gained, and at what KL, can be measured on fresh samples. Short
reviews of places, meals, shows and people are written from templates over a closed vocabulary; each draws a mood, and
the moods are symmetric, so the texts are neutral on average. Everything is a function of its seed.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING

from penchant.data.groups import PreferenceGroup
from penchant.recipes.lexicon import (
    COMPANY,
    GOOD,
    GOOD_VERBS,
    INTENSIFIERS,
    INTRODUCTIONS,
    KINDS,
    NUMBERS,
    OPINIONS,
    PEOPLE,
    POOR,
    POOR_VERBS,
    REMARKS,
    REQUESTS,
    SUBJECT,
    TIMES,
    WORTH,
    Kind,
    all_words,
)

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, EOS, UNKNOWN = SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
LONGEST = 30
"""Words of the longest demonstration; the true reward pays for none beyond."""


def true_reward(text: str) -> float:
    """What a response is worth, in [-4, 4]; defined for any text, also a malformed one.

    The sum over the *distinct* words of sentiment (0.5 a mild one, 1 a strong one, negative for poor ones; "not", also
    with an intensifier between, turns the sign), less 1 for each broken sentence (unfinished, or not of 3 to 16
    words), less 0.1 for each word beyond `LONGEST`.
    """
    tokens = re.findall(r"[^\s.,:]+|[.,:]", text.lower())
    said = {(word, _negated(tokens, place)) for place, word in enumerate(tokens) if word in WORTH}
    worth = sum(-WORTH[word] if negated else WORTH[word] for word, negated in said)
    lengths = [len(re.findall(r"[^\s,:]+", sentence)) for sentence in text.split(".")]
    unfinished = lengths.pop() > 0 or not lengths
    broken = unfinished + sum(not 3 <= length <= 16 for length in lengths)
    excess = max(0, len(re.findall(r"[^\s.,:]+", text)) - LONGEST)
    return max(-4.0, min(4.0, worth - broken - 0.1 * excess))


def _negated(tokens: Sequence[str], place: int) -> bool:
    before = place - 1
    while before >= 0 and tokens[before] in INTENSIFIERS:
        before -= 1
    return before >= 0 and tokens[before] == "not"


def true_rewards(prompt: str, responses: Sequence[str]) -> list[float]:
    """`true_reward` of each response, as ``reward: {function: penchant.recipes.world:true_rewards}`` calls it."""
    return [true_reward(response) for response in responses]


def label(prompt: str, candidates: Sequence[str], rng: random.Random, *, temperature: float = 0.0) -> PreferenceGroup:
    """The group with its candidates ranked by true reward; 1 is the best, and equal rewards share a rank.

    Args:
        temperature: above 0, a noisy judge: the ranking is one draw from Plackett-Luce with log-worths
            ``true_reward / temperature`` (of two candidates the better wins with probability sigma(gap / temperature)).
    """
    worths = [true_reward(candidate) for candidate in candidates]
    if temperature > 0:
        # The order of worth / temperature + Gumbel noise is a draw from Plackett-Luce.
        worths = [worth / temperature - math.log(rng.expovariate(1.0)) for worth in worths]
    ranks = tuple(1 + sum(other > worth for other in worths) for worth in worths)
    return PreferenceGroup(prompt, tuple(candidates), ranks=ranks)


def prompts(n: int, seed: int) -> list[str]:
    """`n` prompts about as many different subjects, in random order.

    Raises:
        ValueError: the world has fewer than `n` subjects.
    """
    rng = random.Random(f"prompts {seed}")
    subjects = rng.sample([subject for kind in KINDS for subject in _subjects(kind)], n)
    return [rng.choice(REQUESTS).format(subject=subject, person=rng.choice(PEOPLE)) for subject in subjects]


def split_prompts(held_out: int, seed: int) -> tuple[list[str], list[str]]:
    """A prompt about every subject: (for training, `held_out` others); no subject is on both sides."""
    every = prompts(sum(1 for kind in KINDS for _ in _subjects(kind)), seed)
    return every[held_out:], every[:held_out]


def _subjects(kind: Kind) -> Iterator[str]:
    slots = product(kind.qualities, kind.nouns, kind.settings)
    return (SUBJECT.format(quality=quality, noun=noun, setting=setting) for quality, noun, setting in slots)


def pretraining_texts(n: int, seed: int) -> list[str]:
    """`n` notes of 2 to 6 sentences, in every mood; none of them is a prompt with its response."""
    rng = random.Random(f"texts {seed}")
    return [_note(rng) for _ in range(n)]


def _note(rng: random.Random) -> str:
    kind = rng.choice(KINDS)
    writer = _Writer(kind, rng.choice(kind.nouns), rng)
    return " ".join([writer.fill(rng.choice(INTRODUCTIONS)), *writer.sentences(rng.randint(1, 5))])


def demonstration(prompt: str, rng: random.Random) -> str:
    """A response to a prompt of this world: a space, then 12 to 30 words in 2 to 4 sentences, neutral on average.

    Raises:
        ValueError: the prompt names no subject of this world.
    """
    known = [(kind, noun) for kind in KINDS for noun in kind.nouns if noun in prompt.rstrip(":").split()]
    if not known:
        raise ValueError(f"{prompt!r} is about nothing in this world; expected a prompt from `prompts`")
    kind, noun = known[0]
    while True:
        text = " ".join(_Writer(kind, noun, rng).sentences(rng.randint(2, 4)))
        if 12 <= len(text.split()) <= LONGEST:
            return " " + text


class _Writer(dict[str, str]):
    """Fills the slots of templates for one text: each slot is drawn when it is met, aspects without repeats."""

    def __init__(self, kind: Kind, noun: str, rng: random.Random) -> None:
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
                return self._judged(good)
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

    def _judged(self, good: bool) -> str:
        manner = self._rng.random()
        # "not dull" is good: the sign turns.
        negated = manner < 0.15
        general, special = (GOOD, self._kind.good) if good != negated else (POOR, self._kind.poor)
        strength = 0 if negated else self._rng.randrange(2)
        word = self._rng.choice(general[strength] + special[strength])
        if negated:
            return f"not {word}"
        return f"{self._rng.choice(INTENSIFIERS)} {word}" if manner < 0.4 else word


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word or mark; words carry the space before them, so a prompt's tokens end where its text ends."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = [*SPECIAL_TOKENS, ".", ",", ":", *(f"▁{word}" for word in all_words())]
    ids = {token: place for place, token in enumerate(tokens)}
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
    """A Llama small enough for a laptop's processor, with random weights that are a function of the seed."""
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
