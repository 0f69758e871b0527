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
    WORD_SCORES,
    SubjectKind,
    all_words,
)

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

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
    """`true_reward` of each response, a function for ``reward: {function: penchant.recipes.world:true_rewards}``."""
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
