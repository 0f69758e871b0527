"""generation_config.json names the tokens that ended responses in training."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest
import torch
import transformers as hf

from penchant.models.gguf.writing import export_gguf
from penchant.models.loading import load_model
from penchant.models.special_tokens import TrainedResponses, revise_settings

_SPEC = importlib.util.spec_from_file_location("gguf_models", Path(__file__).with_name("gguf_models.py"))
shapes: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shapes)

TOKENIZER: Any = SimpleNamespace(eos_token_id=2, bos_token_id=1, pad_token_id=0)
TRAINED = TrainedResponses(ends=(5,), shortest=3, longest=40, sequence=100)


def revised_settings(**values: Any) -> dict[str, Any]:
    return revise_settings(values, TOKENIZER, TRAINED, 512)


@pytest.mark.parametrize(
    ("base_ends", "expected"), [(2, [2, 5]), ([2, 7], [2, 7, 5]), (None, [2, 5]), ([5, 2], [5, 2]), (9, [9, 2, 5])]
)
def test_the_trained_end_is_added_to_the_configured_ends(base_ends, expected):
    assert revised_settings(eos_token_id=base_ends)["eos_token_id"] == expected


def test_plain_text_keeps_one_eos():
    plain = TrainedResponses(ends=(2,), shortest=3, longest=40, sequence=100)
    assert revise_settings({"eos_token_id": 2}, TOKENIZER, plain, 512)["eos_token_id"] == 2
    assert revise_settings({}, TOKENIZER, plain, 512)["eos_token_id"] == 2


@pytest.mark.parametrize(
    ("base_settings", "expected"),
    [
        ({"pad_token_id": 99}, {"pad_token_id": 0}),
        ({"bos_token_id": 99}, {"bos_token_id": 1}),
        ({"max_length": 50}, {"max_length": 512}),
        ({"max_length": 100}, {"max_length": 100}),
        ({"max_new_tokens": 16}, {"max_new_tokens": 40}),
        ({"max_new_tokens": 64}, {"max_new_tokens": 64}),
        ({"min_new_tokens": 3}, {"min_new_tokens": None}),
        ({"min_new_tokens": 2}, {"min_new_tokens": 2}),
        ({"min_length": 10}, {"min_length": None}),
        ({"forced_bos_token_id": 7}, {"forced_bos_token_id": None}),
        ({"suppress_tokens": [5, 8]}, {"suppress_tokens": [8]}),
        ({"begin_suppress_tokens": [2, 5]}, {"begin_suppress_tokens": None}),
        ({"bad_words_ids": [[5], [5, 8]]}, {"bad_words_ids": [[5, 8]]}),
        ({"_from_model_config": True}, {"_from_model_config": None}),
        ({"temperature": 0.6, "do_sample": False}, {"temperature": 0.6, "do_sample": False}),
    ],
)
def test_settings_that_contradict_training_are_removed(base_settings, expected):
    values = revised_settings(**base_settings)
    assert {name: values.get(name) for name in expected} == expected


def test_a_tokenizer_without_bos_leaves_the_models():
    tokenizer: Any = SimpleNamespace(eos_token_id=2, bos_token_id=None, pad_token_id=None)
    values = revise_settings({"bos_token_id": 1, "pad_token_id": 3}, tokenizer, TRAINED, None)
    assert (values["bos_token_id"], values["pad_token_id"]) == (1, 3)


class TestGguf:
    def model(self, tmp_path: Path, ends: Any, tokenizer: Any = None) -> tuple[Path, dict[str, Any], list[str]]:
        tokenizer = tokenizer or shapes.byte_level()
        folder = shapes.build(tmp_path / "model", "Llama", tokenizer, num_hidden_layers=1)
        file = folder / "generation_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": ends}))
        notes = export_gguf(str(folder), tmp_path / "a.gguf", "f16").notes
        fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
        ends_in_file = {
            name: field.contents() for name, field in fields.items() if name.endswith(("eos_token_id", "eot_token_id"))
        }
        return folder, ends_in_file, notes

    def test_the_templates_end_of_turn_is_one_for_llama_cpp(self, tmp_path):
        tokenizer = shapes.byte_level()
        eos, turn = tokenizer.convert_tokens_to_ids(["<eos>", "<|im_end|>"])
        _, ends, notes = self.model(tmp_path, [eos, turn], tokenizer)
        assert ends == {"tokenizer.ggml.eos_token_id": eos, "tokenizer.ggml.eot_token_id": turn}
        assert notes == []

    def test_without_a_template_eos_stands_alone(self, tmp_path):
        tokenizer = shapes.byte_level()
        tokenizer.chat_template = None
        _, ends, _ = self.model(tmp_path, tokenizer.eos_token_id, tokenizer)
        assert ends == {"tokenizer.ggml.eos_token_id": tokenizer.eos_token_id}

    def test_a_loaded_file_ends_at_the_same_tokens(self, tmp_path):
        tokenizer = shapes.byte_level()
        eos, turn, endoftext = tokenizer.convert_tokens_to_ids(["<eos>", "<|im_end|>", "<|endoftext|>"])
        self.model(tmp_path, [eos, turn, endoftext], tokenizer)
        assert load_model(str(tmp_path / "a.gguf")).generation_config.eos_token_id == [eos, turn, endoftext]

    def test_more_ends_than_a_file_holds_are_noted(self, tmp_path):
        tokenizer = shapes.byte_level()
        ends = tokenizer.convert_tokens_to_ids(["<eos>", "<|im_end|>", "<|endoftext|>", "<think>"])
        _, _, notes = self.model(tmp_path, ends, tokenizer)
        assert any("<think>" in note for note in notes)


def test_transformers_stops_where_training_said(tiny_model, tmp_path):
    """A model that always answers with one token, which is the end its chat was trained with."""
    from penchant.engine.distributed import World
    from penchant.engine.policy import Policy
    from penchant.engine.tree import TreeScorer
    from penchant.models.loading import load_tokenizer

    policy = Policy(load_model(str(tiny_model)), load_tokenizer(str(tiny_model)))
    end = 7
    with torch.no_grad():  # every hidden state looks most like token 7's embedding
        embedding = policy.model.get_input_embeddings().weight
        embedding.zero_()
        embedding[:, 0] = 1.0
        embedding[end, 0] = 50.0
        for name, parameter in policy.model.named_parameters():
            if "layers" in name and parameter.ndim == 2:
                parameter.zero_()
    policy.trained_responses = TrainedResponses(ends=(end,), shortest=2, longest=9, sequence=12)
    world = World(0, 1, torch.device("cpu"))
    policy.save(tmp_path, TreeScorer(policy.model), world, torch.float32)
    reloaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    generated = reloaded.generate(torch.tensor([[4, 5, 6]]), max_new_tokens=5, do_sample=False)
    assert generated[0].tolist() == [4, 5, 6, end]
