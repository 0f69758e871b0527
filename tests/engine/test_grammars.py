"""Responses constrained to a grammar: the tokens that may come next, and where the end may come."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from penchant.engine.grammars import Grammars
from penchant.engine.sampling import Sampling, sample
from penchant.errors import ConfigError, ModelError
from penchant.models.loading import load_model, load_tokenizer
from penchant.recipes.small_llama import Sizes, build_small_llama

SHORT = 'start: "yes" | "no" ("pe" | "")'


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    model = tmp_path_factory.mktemp("small") / "model"
    build_small_llama(model, ["yes or no or nope"], Sizes(300, 32, 1, 2, 128), seed=0)
    return str(model)


def token_texts(tokenizer, ids):
    return {tokenizer.decode([number]) for number in ids}


def test_the_end_is_allowed_where_the_text_is_complete_and_nowhere_else(folder):
    tokenizer = load_tokenizer(folder)
    end = tokenizer.eos_token_id
    guide = Grammars(tokenizer, [end]).guide(SHORT)
    letters = [tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "nope"]
    assert token_texts(tokenizer, guide.allowed_tokens([])) >= {"y", "n"}
    assert end not in guide.allowed_tokens([])
    assert end not in guide.allowed_tokens(letters[:1])
    after_no = guide.allowed_tokens(letters[:2])
    assert end in after_no
    assert letters[2] in after_no
    assert end not in guide.allowed_tokens(letters[:3])
    assert guide.allowed_tokens(letters).tolist() == [end]


def test_every_end_of_several(folder):
    tokenizer = load_tokenizer(folder)
    ends = [tokenizer.eos_token_id, tokenizer.bos_token_id]
    guide = Grammars(tokenizer, ends).guide('start: "n"')
    assert sorted(guide.allowed_tokens(tokenizer.encode("n", add_special_tokens=False)).tolist()) == sorted(ends)


def test_responses_are_the_grammars(folder):
    """Sampled from a random model, in batches and one prompt at a time: the same texts, all of the grammar."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    grammars = Grammars(tokenizer, [tokenizer.eos_token_id])
    prompts = [np.array([5, 6, 7]), np.array([8]), np.array([9, 3, 5])]
    texts = []
    for batch_size in (3, 1):
        drawing = Sampling(samples=20, max_new_tokens=6, seed=1, batch_size=batch_size)
        samples = sample(
            model,
            prompts,
            drawing,
            ends=[tokenizer.eos_token_id],
            guides=[lambda: grammars.guide(SHORT), lambda: grammars.guide(SHORT), lambda: grammars.guide('start: "?"')],
        )
        assert all(response.has_end for responses in samples for response in responses)
        texts.append([[tokenizer.decode(response.ids[:-1]) for response in responses] for responses in samples])
    assert texts[0] == texts[1]
    assert {*texts[0][0], *texts[0][1]} == {"yes", "no", "nope"}
    assert set(texts[0][2]) == {"?"}


def test_a_guide_that_allows_all_changes_nothing(folder):
    class All:
        def allowed_tokens(self, response):
            return np.arange(len(tokenizer))

    model, tokenizer = load_model(folder), load_tokenizer(folder)
    prompts = [np.array([5, 6, 7]), np.array([8])]
    for temperature in (0, 1):
        drawing = Sampling(samples=3, max_new_tokens=9, temperature=temperature, seed=2)
        free, guided = (sample(model, prompts, drawing, ends=[2], guides=guides) for guides in (None, [All, All]))
        ids = [
            [[response.ids.tolist() for response in responses] for responses in samples] for samples in (free, guided)
        ]
        assert ids[0] == ids[1]


def test_an_invalid_grammar_is_an_error(folder):
    tokenizer = load_tokenizer(folder)
    with pytest.raises(ValueError, match="missing"):
        Grammars(tokenizer, [2]).guide("start: missing")


def test_a_tokenizer_whose_tokens_are_no_text(tiny_model):
    with pytest.raises(ModelError, match="cannot be constrained"):
        Grammars(load_tokenizer(str(tiny_model)), [2])


def test_a_dead_end_is_an_error(folder):
    """The tokens so far do not follow the grammar."""
    tokenizer = load_tokenizer(folder)
    guide = Grammars(tokenizer, [2]).guide(SHORT)
    with pytest.raises(ModelError, match="an answer cannot be constrained"):
        guide.allowed_tokens(tokenizer.encode("x", add_special_tokens=False))


def test_without_the_package(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance.hf", None)
    with pytest.raises(ConfigError, match="need llguidance") as error:
        Grammars(load_tokenizer(folder), [2])
    assert error.value.fix == "python -m pip install 'penchant[constrained]'"


def test_a_copy_is_independent(request):
    tokenizer = load_tokenizer(request.getfixturevalue("folder"))
    guide = Grammars(tokenizer, [tokenizer.eos_token_id]).guide(SHORT)
    [n, o] = [tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "no"]
    guide.allowed_tokens([n])
    copy = guide.copy()
    assert tokenizer.eos_token_id in copy.allowed_tokens([n, o])
    assert tokenizer.eos_token_id not in guide.allowed_tokens([n])
    assert token_texts(tokenizer, guide.allowed_tokens([n])) >= {"o"}
