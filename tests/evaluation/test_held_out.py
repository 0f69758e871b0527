"""A model and its reference read the same of every prompt, also where its beginning was cut."""

from __future__ import annotations

import shutil

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from penchant.data.groups import PreferenceGroup
from penchant.engine.distributed import World
from penchant.errors import DataError
from penchant.evaluation.held_out import Reading, score

WORLD = World(0, 1, torch.device("cpu"))
LONG = PreferenceGroup(
    "the old cat sees a big dog then " * 20, (" it runs", " bird sings likes"), preferred=0, id="long"
)
SHORT = PreferenceGroup("the old cat", (" sees a dog", " runs"), preferred=0, id="short")


@pytest.fixture
def twin(tmp_path, tiny_model):
    """The very same weights in another folder."""
    return str(shutil.copytree(tiny_model, tmp_path / "twin"))


def letters(folder, context: int) -> str:
    """A random GPT-2 whose tokens are letters."""
    vocabulary = ["</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz .▁"]
    raw = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(vocabulary)}, merges=[], unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=len(vocabulary), n_embd=16, n_layer=1, n_head=2, n_positions=context, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("max_length", [None, 20])
def test_identical_weights_have_no_log_ratio_where_a_prompt_was_cut(tiny_model, twin, max_length, notices):
    """The prompt has 161 tokens; the model's context is 128."""
    reading = Reading(max_length=max_length, truncation="keep_end_of_prompt")
    scored = score(str(tiny_model), [LONG, SHORT], WORLD, reference=twin, reading=reading)
    assert [group.reference_log_probs for group in scored] == [group.log_probs for group in scored]
    assert scored[0].prompt_tokens + max(scored[0].tokens) == (max_length or 128)
    assert notices.messages == ["prompt truncated: 1 of 2 groups (long)"]


def test_a_reference_of_letters_reads_a_cut_prompts_end(tiny_model, tmp_path, notices):
    """Of 161 tokens the last 15 and <s> are read, 10 %; of 640 letters and spaces that is 63.6."""
    reference = letters(tmp_path / "letters", 512)
    reading = Reading(max_length=20, truncation="keep_end_of_prompt")
    [truncated, short] = score(str(tiny_model), [LONG, SHORT], WORLD, reference=reference, reading=reading)
    assert notices.messages == ["prompt truncated: 1 of 2 groups (long)"]
    alone = score(reference, [LONG, SHORT], WORLD, reading=Reading(max_length=64 + 18, truncation="keep_end_of_prompt"))
    assert alone[0].prompt_tokens == 64
    assert truncated.reference_log_probs == alone[0].log_probs
    assert short.reference_log_probs == alone[1].log_probs


def test_what_a_short_reference_reads_less_of_is_logged(tiny_model, tmp_path, notices):
    reference = letters(tmp_path / "letters", 100)
    reading = Reading(truncation="keep_end_of_prompt")
    [truncated] = score(str(tiny_model), [LONG], WORLD, reference=reference, reading=reading)
    [alone] = score(reference, [LONG], WORLD, reading=reading)
    assert truncated.reference_log_probs == alone.log_probs
    assert notices.messages[1] == (
        "prompts cut further for a reference with its own tokenizer and a context of 100 tokens: 1 of 1 groups"
    )


def test_an_error_names_the_reference(tiny_model, tmp_path):
    reference = letters(tmp_path / "letters", 23)
    with pytest.raises(DataError, match=r"letters, group short: 24 tokens .* this model's context is 23") as error:
        score(str(tiny_model), [SHORT], WORLD, reference=reference)
    assert "what to do: name a reference with a longer context" in str(error.value)
