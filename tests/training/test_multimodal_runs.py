"""Runs on multimodal checkpoints: every number is what transformers and PEFT alone compute from the folders."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from penchant.config.run import load_config
from penchant.data.reading import read_groups
from penchant.engine.distributed import World
from penchant.errors import ModelError
from penchant.evaluation.held_out import score
from penchant.models.gguf.writing import export_gguf
from penchant.models.loading import load_model
from penchant.models.lora import merge_adapter
from penchant.models.preference_head import load_head
from penchant.planning.plan import plan
from penchant.training.run import train

FAMILIES = ["qwen3_5", "gemma3", "gemma4", "mistral3", "qwen2_5_vl"]
SINGLE = World(0, 1, torch.device("cpu"))
FEW = {"training": {"max_steps": 2, "batch_size": 4, "token_budget": 512}, "evaluation": {"samples": 0}}


@pytest.fixture
def few_pairs(tmp_path, tiny_pairs):
    """The first pairs, those of letters that every family's tokenizer has."""
    file = tmp_path / "few.jsonl"
    file.write_text("".join(tiny_pairs.read_text().splitlines(keepends=True)[:8]))
    return file


@pytest.fixture
def start(write_config, few_pairs, tmp_path, notices) -> Any:
    def run(folder, name="run", **sections):
        data = {"train": str(few_pairs), "held_out": str(few_pairs)}
        settings = {**FEW, "model": str(folder), "output": str(tmp_path / name), "data": data, **sections}
        out = train(load_config(write_config(**settings)))
        return out, notices.messages

    return run


def log_probs(model, folder, file):
    """Summed log-prob of every candidate, by transformers alone."""
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    sums = []
    for row in map(json.loads, file.read_text().splitlines()):
        prompt = len(tokenizer(row["prompt"]).input_ids)
        for response in (row["chosen"], row["rejected"]):
            ids = torch.tensor([[*tokenizer(row["prompt"] + response).input_ids, tokenizer.eos_token_id]])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, prompt - 1 : -1].double()
            sums.append(logits.log_softmax(-1).gather(-1, ids[0, prompt:, None]).sum().item())
    return torch.tensor(sums)


def evaluated_log_probs(folder, file):
    """The same by `penchant evaluate`."""
    groups = score(str(folder), read_groups(str(file)).groups, SINGLE)
    return torch.tensor([value for group in groups for value in group.log_probs])


@pytest.mark.slow_but("dpo-qwen2_5_vl")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_a_full_run_changes_the_language_part_only(
    family, method, start, few_pairs, multimodal_folder, multimodal_models
):
    folder = multimodal_folder(family)
    run, lines = start(folder, objective={"name": method})
    base_tensors, saved_tensors = multimodal_models.read_tensors(folder), multimodal_models.read_tensors(run)
    assert base_tensors.keys() == saved_tensors.keys()
    for name, tensor in base_tensors.items():
        assert saved_tensors[name].dtype == tensor.dtype, name
        if multimodal_models.in_tower(name) or "layer_scalar" in name:
            assert torch.equal(saved_tensors[name], tensor)
    trained = [
        name for name in base_tensors if name.endswith(("layers.1.mlp.down_proj.weight", "layers.1.mlp.up_proj.weight"))
    ]
    assert trained
    assert all(not torch.equal(saved_tensors[name].float(), base_tensors[name].float()) for name in trained)
    untrained = multimodal_models.towers(base_tensors)
    assert any(line.startswith(f"{len(untrained)} tensors of the model's files are not trained") for line in lines)
    expected = log_probs(multimodal_models.original(run), run, few_pairs)
    torch.testing.assert_close(evaluated_log_probs(run, few_pairs), expected, rtol=1e-5, atol=1e-4)
    assert (run / "preprocessor_config.json").read_bytes() == (folder / "preprocessor_config.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_run_is_the_same_in_peft_and_merged(
    family, start, few_pairs, tmp_path, multimodal_folder, multimodal_models
):
    from peft import PeftModel

    folder = multimodal_folder(family)
    settings = {"learning_rate": 0.02, **FEW["training"]}
    run, _ = start(folder, lora={"rank": 2, "targets": "all-linear"}, training=settings)
    targets = json.loads((run / "adapter_config.json").read_text())["target_modules"]
    assert all("language_model" in target for target in targets)
    by_peft = log_probs(PeftModel.from_pretrained(multimodal_models.original(folder), run).eval(), run, few_pairs)
    assert (by_peft - log_probs(multimodal_models.original(folder), folder, few_pairs)).abs().max() > 1e-2
    torch.testing.assert_close(evaluated_log_probs(run, few_pairs), by_peft, rtol=1e-5, atol=1e-4)
    merge_adapter(str(run), tmp_path / "merged", save_dtype="float32")
    merged = log_probs(multimodal_models.original(tmp_path / "merged"), run, few_pairs)
    torch.testing.assert_close(merged, by_peft, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen3_5", "gemma3"])
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_reward_model(family, lora, start, multimodal_folder, multimodal_models):
    folder = multimodal_folder(family)
    run, _ = start(folder, objective={"name": "bradley_terry"}, lora=lora)
    if lora is None:
        base_tensors, saved_tensors = multimodal_models.read_tensors(folder), multimodal_models.read_tensors(run)
        towers = multimodal_models.towers(base_tensors), multimodal_models.towers(saved_tensors)
        assert multimodal_models.changed_tensors(*towers) == set()
    else:
        targets = json.loads((run / "adapter_config.json").read_text())["target_modules"]
        assert all("language_model" in target for target in targets)


def test_a_reward_model_that_transformers_lacks_is_refused_before_training(start, multimodal_folder, tmp_path):
    with pytest.raises(ModelError, match="no sequence classifier of a Mistral3"):
        start(multimodal_folder("mistral3"), objective={"name": "bradley_terry"})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_preference_head(family, start, multimodal_folder, multimodal_models):
    folder = multimodal_folder(family)
    run, _ = start(folder, objective={"name": "preference_head"})
    assert load_head(run).settings["size"] == 32
    assert multimodal_models.read_tensors(folder).keys() == multimodal_models.read_tensors(run).keys()


@pytest.mark.parametrize("family", ["qwen3_5", "gemma3"])
def test_it_is_planned_without_its_weights(
    family, write_config, few_pairs, multimodal_folder, tmp_path, multimodal_models
):
    folder = multimodal_folder(family)
    (tmp_path / "bare").mkdir()
    for file in folder.iterdir():
        if not file.name.startswith("model"):
            (tmp_path / "bare" / file.name).write_bytes(file.read_bytes())
    data = {"train": str(few_pairs), "held_out": str(few_pairs)}
    planned = plan(load_config(write_config(**FEW, model=str(tmp_path / "bare"), data=data)))
    model = multimodal_models.original(folder).model.language_model
    weights = sum(p.nbytes for p in model.parameters()) + (0 if family == "gemma3" else 96 * 32 * 4)
    assert planned.forecast.memory.weights == pytest.approx(weights, rel=0.05)


class TestGGUF:
    @pytest.mark.parametrize("family", ["llava", "mistral3", "gemma3"])
    def test_the_text_part(self, family, multimodal_folder, tmp_path, multimodal_models):
        pytest.importorskip("gguf")
        file = Path(__file__).parents[1] / "models" / "gguf_models.py"
        spec = importlib.util.spec_from_file_location("gguf_models", file)
        shapes = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(shapes)
        tokenizer = shapes.byte_level()
        config = hf.AutoConfig.from_pretrained(multimodal_folder(family))
        config.text_config.vocab_size = len(tokenizer)
        if family == "gemma3":
            config.text_config.layer_types = ["sliding_attention"] * 2  # llama.cpp's sixth layer has no window
        folder = tmp_path / family
        torch.manual_seed(0)
        hf.AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        exported = export_gguf(str(folder), tmp_path / "text.gguf", "f32")
        assert any("only the text part" in note for note in exported.notes)
        ids = torch.tensor([[1, 5, 9, 20, 7]])
        with torch.no_grad():
            text = load_model(str(tmp_path / "text.gguf"))(input_ids=ids).logits
            torch.testing.assert_close(
                text, multimodal_models.original(folder)(input_ids=ids).logits, rtol=0, atol=1e-4
            )

    def test_other_families_are_refused_by_the_name_of_their_text_part(self, multimodal_folder, tmp_path):
        pytest.importorskip("gguf")
        with pytest.raises(ModelError, match="it is a gemma4_text"):
            export_gguf(str(multimodal_folder("gemma4")), tmp_path / "text.gguf", "f32")
