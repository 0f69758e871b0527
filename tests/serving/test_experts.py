"""The models of a server."""

from __future__ import annotations

import json
import queue
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from penchant.engine.sampling import Sampling, sample
from penchant.evaluation.answering import text_after
from penchant.models.loading import load_model, load_tokenizer
from penchant.serving.experts import Experts
from penchant.serving.jobs import End, Job, Piece
from penchant.serving.worker import Worker

PROMPTS = ("the old cat", "house by river tree", "sees a")


def configured(model: Path, folder: Path, **settings: object) -> Path:
    """The model with settings in its generation_config.json."""
    shutil.copytree(model, folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


def served(experts: Experts, name: str, *, batch: int) -> list[str]:
    """Greedy answers to the prompts."""
    worker = Worker(experts, batch=batch, waiting=8)
    queues: list[queue.Queue] = [queue.Queue() for _ in PROMPTS]
    for text, events in zip(PROMPTS, queues, strict=True):
        prompt = np.array(experts.peek(name).tokenizer(text).input_ids)
        worker.submit(Job(name, prompt, 16, 0.0, 1.0, (), 0, time.monotonic() + 30, events.put))
    texts = []
    for events in queues:
        text = ""
        while isinstance(event := events.get(timeout=30), Piece):
            text += event.text
        assert isinstance(event, End), event
        texts.append(text)
    worker.stop()
    return texts


def sampled_texts(folder: Path, ends: list[int]) -> list[str]:
    """The same answers as an evaluation samples them."""
    tokenizer = load_tokenizer(str(folder))
    prompts = [np.array(tokenizer(text).input_ids) for text in PROMPTS]
    samples = sample(load_model(str(folder)), prompts, Sampling(temperature=0, max_new_tokens=16), ends=ends)
    return [text_after(tokenizer, p, responses[0].ids.tolist()) for p, responses in zip(prompts, samples, strict=True)]


@pytest.mark.parametrize(
    "settings",
    [{"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}, {"num_beams": 2}, {"max_time": 1e-6}],
    ids=lambda settings: next(iter(settings)),
)
def test_the_models_generation_settings_have_no_effect(tiny_model, tmp_path, settings):
    """Some settings change the text, others end a batch early or break it."""
    folder = configured(tiny_model, tmp_path / "model", **settings)
    expected = sampled_texts(folder, [2])
    assert max(len(text.split()) for text in expected) == 16
    experts = Experts({"one": str(folder)})
    assert served(experts, "one", batch=4) == expected
    assert served(experts, "one", batch=1) == expected


def test_adapters_of_one_base_keep_only_its_end_ids(tiny_model, tmp_path):
    from peft import LoraConfig, get_peft_model

    # 3 is <unk>, which the tokenizer does not name an end: the second adapter must hear of it as the first does.
    base = configured(tiny_model, tmp_path / "base", repetition_penalty=1.3, eos_token_id=[2, 3])
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        model = get_peft_model(load_model(str(base)), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.05)
        model.peft_config["default"].base_model_name_or_path = str(base)
        model.save_pretrained(tmp_path / name)
        load_tokenizer(str(base)).save_pretrained(tmp_path / name)
    experts = Experts({name: str(tmp_path / name) for name in ("a", "b")})
    assert experts.peek("a").model is experts.peek("b").model
    for name in ("a", "b"):
        assert experts.peek(name).ends == {2, 3}
        assert served(experts, name, batch=4) == sampled_texts(tmp_path / name, [2, 3])


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_changes_its_base_has_a_copy(tiny_model, tmp_path):
    """Biases of the base, a fully trained head, a larger vocabulary: changes that other adapters must not see."""
    from peft import LoraConfig, get_peft_model

    base = tmp_path / "base"
    configuration = AutoConfig.from_pretrained(tiny_model, attention_bias=True)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(configuration).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(base)
    kinds = {
        "plain": {},
        "head": {"target_modules": ["q_proj", "lm_head"]},
        "biased": {"bias": "all"},
        "whole": {"modules_to_save": ["lm_head"]},
        "grown": {"modules_to_save": ["embed_tokens", "lm_head"]},
    }
    expected, ids = {}, torch.tensor([[1, 5, 9, 7]])
    for seed, (name, settings) in enumerate(kinds.items()):
        torch.manual_seed(seed)
        model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
        if name == "grown":
            tokenizer.add_tokens(["<call>"])
            model.resize_token_embeddings(len(tokenizer))
        adapted = get_peft_model(model, LoraConfig(**{"r": 4, "target_modules": ["q_proj"], **settings}))
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
            expected[name] = adapted.eval()(ids).logits
        adapted.save_pretrained(tmp_path / name, save_embedding_layers=name == "grown")
        tokenizer.save_pretrained(tmp_path / name)
    experts = Experts({name: str(tmp_path / name) for name in kinds})
    assert experts.peek("plain").model is experts.peek("head").model
    for name, logits in expected.items():
        with torch.no_grad():
            torch.testing.assert_close(experts.get(name).model(ids).logits, logits, rtol=1e-5, atol=1e-5)
