from __future__ import annotations

import random
import re
import statistics
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from penchant.recipes import demo_world as world
from penchant.recipes.demo_world import KINDS, SUBJECT, WORD_SCORES, all_words


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return world.build_tokenizer()


@pytest.fixture(scope="module")
def reviews() -> list[tuple[str, str]]:
    rng = random.Random(5)
    return [(prompt, world.demonstration(prompt, rng)) for prompt in world.prompts(500, 5)]


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("the rooms were good.", 0.5),
        ("the rooms were wonderful.", 1.0),
        ("The Rooms Were GOOD.", 0.5),
        ("we loved the hall but the view was poor.", 1.0 - 0.5),
        # A word counts once, however often it occurs.
        ("the rooms were good. the hall was good. the view was good.", 0.5),
        # "not" flips the sign of the next word of sentiment, also across intensifiers.
        ("the rooms were not good.", -0.5),
        ("the rooms were not really very good.", -0.5),
        ("the rooms were not dull and the hall was great.", 0.5 + 1.0),
        ("tom would not recommend the cafe to peter.", -1.0),
        ("the rooms were very good.", 0.5),
        # The same word with and without "not" cancels out.
        ("the rooms were good. the hall was not good.", 0.0),
        # Malformed sentences cost 1 each: unfinished, under 3 words, over 16 words.
        ("the rooms were wonderful. the hall was", 1.0 - 1.0),
        ("wonderful rooms. a great hall.", 2.0 - 1.0),
        ("the" + " hall" * 15 + " was.", -1.0),
        ("the" + " hall" * 15 + ".", 0.0),
        ("", -1.0),
        ("  ", -1.0),
        ("...", -3.0),
        # 40 words are 10 too many.
        (" ".join(["the rooms were clean there."] * 8), 0.5 - 1.0),
        # Bounds.
        ("the hall was wonderful great excellent beautiful splendid perfect.", 4.0),
        ("the hall was awful terrible horrible filthy ugly rotten.", -4.0),
    ],
)
def test_true_reward_by_hand(text: str, reward: float) -> None:
    assert world.true_reward(text) == pytest.approx(reward, abs=1e-12)


@settings(deadline=None)
@given(
    st.text(max_size=200) | st.lists(st.sampled_from([*all_words(), ".", ",", ":", "not"]), max_size=60).map(" ".join)
)
def test_true_reward_is_defined_and_bounded_for_any_text(text: str) -> None:
    assert -4.0 <= world.true_reward(text) <= 4.0


def test_word_scores_are_symmetric_and_neutral_words_have_none() -> None:
    # "recommend" is the only word whose opposite is written with "not".
    values = sorted(value for word, value in WORD_SCORES.items() if word != "recommend")
    assert values == sorted(-value for value in values)
    neutral = {
        word for kind in KINDS for text in (*kind.nouns, *kind.qualities, *kind.settings) for word in text.split()
    }
    assert not neutral & set(WORD_SCORES)


def test_demonstrations_are_neutral_complete_and_of_the_stated_size(reviews: list[tuple[str, str]]) -> None:
    rewards = [world.true_reward(response) for _, response in reviews]
    assert abs(statistics.mean(rewards)) < 0.3
    assert statistics.stdev(rewards) > 1.0
    for prompt, response in reviews:
        assert re.fullmatch(r"( [a-z, ]+\.)+", response)
        assert 12 <= len(response.split()) <= 30
        assert 2 <= response.count(".") <= 4
        assert prompt.endswith(":")
        # No penalty applies, so the reward is a multiple of 0.5.
        assert (2 * world.true_reward(response)).is_integer()


def test_a_demonstration_is_about_the_prompts_subject() -> None:
    rng = random.Random(0)
    responses = [world.demonstration("review of the hot soup for two:", rng) for _ in range(200)]
    nouns = {noun for kind in KINDS for noun in kind.nouns}
    assert {word for text in responses for word in re.findall("[a-z]+", text)} & nouns == {"soup"}


def test_prompt_without_a_known_subject_is_an_error() -> None:
    with pytest.raises(ValueError, match="names no subject of this world"):
        world.demonstration("review of the moon:", random.Random(0))


def _subject(prompt: str) -> str:
    return re.sub(r"^(review of|a note about|what .* thought of) ", "", prompt)


@pytest.mark.parametrize("seed", [0, 1])
def test_no_subject_is_on_both_sides_of_the_split(seed: int) -> None:
    train, held_out = world.split_prompts(200, seed)
    assert (len(train), len(held_out)) == (952, 200)
    subjects = [_subject(prompt) for prompt in train + held_out]
    assert len(set(subjects)) == 1152
    assert SUBJECT.format(quality="old", noun="museum", setting="by the river:") in subjects


def test_the_seed_decides_all_texts() -> None:
    assert world.pretraining_texts(20, 3) == world.pretraining_texts(20, 3)
    assert world.pretraining_texts(20, 3) != world.pretraining_texts(20, 4)
    assert world.pretraining_texts(20, 3)[:5] == world.pretraining_texts(5, 3)
    assert world.prompts(20, 3) == world.prompts(20, 3)
    assert world.prompts(20, 3) != world.prompts(20, 4)
    prompt = world.prompts(1, 0)[0]
    response, same_seed, other_seed = (world.demonstration(prompt, random.Random(seed)) for seed in (7, 7, 8))
    assert response == same_seed != other_seed
    # Pinned: a recorded run of the demo is only comparable with the same texts.
    (text,) = world.pretraining_texts(1, 0)
    assert text == (
        "here is what tom thought of the french concert about the sea: we came for it in the evening. "
        "the jokes were unbearable. the ending was not funny but the dialogue was not dull. "
        "anna thought the concert was not dull."
    )


def test_labels_are_exact_ranks_with_ties() -> None:
    candidates = ["the hall was good.", "the hall was awful.", "the hall was nice.", "the hall was great."]
    group = world.label("review of it:", candidates, random.Random(0))
    assert group.prompt == "review of it:"
    assert group.ranks == (2, 4, 2, 1)
    assert set(group.pairs) == {(3, 0), (3, 1), (3, 2), (0, 1), (2, 1)}


def test_noisy_labels_follow_bradley_terry() -> None:
    rng = random.Random(0)
    pair = ["the hall was great.", "the hall was here."]
    n = 4000
    wins = sum(world.label("p", pair, rng, temperature=0.5).ranks == (1, 2) for _ in range(n))
    expected = 1 / (1 + 2.718281828459045 ** -(1.0 / 0.5))
    # Four standard errors.
    assert wins / n == pytest.approx(expected, abs=4 * (expected * (1 - expected) / n) ** 0.5)


def test_the_vocabulary_is_closed(tokenizer: PreTrainedTokenizerFast, reviews: list[tuple[str, str]]) -> None:
    texts = [prompt + response for prompt, response in reviews] + world.pretraining_texts(500, 9)
    used_ids = {token for text in texts for token in tokenizer(text)["input_ids"]}
    assert tokenizer.unk_token_id not in used_ids
    assert tokenizer("the zebra")["input_ids"][-1] == tokenizer.unk_token_id
    # Nothing is in the vocabulary that no text uses, but the special tokens.
    unused = {tokenizer.convert_ids_to_tokens(i) for i in set(range(len(tokenizer))) - used_ids}
    assert unused == {"<pad>", "<eos>", "<unk>"}


def test_token_ids_by_hand(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("Review of the soup: tom, we")["input_ids"]
    expected = ["<bos>", "▁review", "▁of", "▁the", "▁soup", ":", "▁tom", ",", "▁we"]
    assert tokenizer.convert_ids_to_tokens(ids) == expected
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<bos>", "<eos>", "<unk>"]) == [0, 1, 2, 3]


def test_prompt_and_response_join_without_moving_the_boundary(
    tokenizer: PreTrainedTokenizerFast, reviews: list[tuple[str, str]]
) -> None:
    for prompt, response in reviews[:100]:
        prompt_ids, response_ids = (
            tokenizer(prompt)["input_ids"],
            tokenizer(response, add_special_tokens=False)["input_ids"],
        )
        assert tokenizer(prompt + response)["input_ids"] == prompt_ids + response_ids
        assert tokenizer.decode(prompt_ids + response_ids, skip_special_tokens=True) == prompt + response
        alone = tokenizer.decode([*response_ids, tokenizer.eos_token_id], skip_special_tokens=True)
        assert world.true_reward(alone) == world.true_reward(response)


def test_saved_model_and_tokenizer_load_unchanged(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = world.build_model(len(tokenizer), 0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    train, _ = world.split_prompts(1000, 0)
    for text in [*train, *world.pretraining_texts(100, 1), "", " the Hall, was:unknown ."]:
        ids = tokenizer(text)["input_ids"]
        assert loaded(text)["input_ids"] == ids
        assert loaded.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids, skip_special_tokens=True)
    assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 2)
    loaded_model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (loaded_model.config.pad_token_id, loaded_model.config.bos_token_id, loaded_model.config.eos_token_id) == (
        0,
        1,
        2,
    )
    ids = torch.tensor([tokenizer(train[0])["input_ids"]])
    torch.testing.assert_close(loaded_model(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_the_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(1)
    weights = world.build_model(50, 0).state_dict()
    random_number = torch.rand(1)
    torch.manual_seed(1)
    # The caller's random number generator is unchanged.
    assert torch.equal(random_number, torch.rand(1))
    same_seed, other = world.build_model(50, 0).state_dict(), world.build_model(50, 1).state_dict()
    assert all(torch.equal(value, same_seed[name]) for name, value in weights.items())
    assert not torch.equal(weights["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
