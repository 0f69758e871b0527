"""Weights on disk: in the dtypes of the model they come from, tensor by tensor, or in the configured one."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from penchant.engine.distributed import World
from penchant.engine.policy import Policy
from penchant.engine.tree import TreeScorer
from penchant.models.gguf.writing import export_gguf
from penchant.models.loading import load_model, load_tokenizer
from penchant.models.lora import merge_adapter
from penchant.models.saving import SavedDtype, saved_dtype

SINGLE = World(0, 1, torch.device("cpu"))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

_SPEC = importlib.util.spec_from_file_location("gguf_models", Path(__file__).with_name("gguf_models.py"))
shapes: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shapes)


@pytest.fixture
def base_with_dtype(tiny_model, tmp_path):
    """A copy of the tiny model whose files hold a dtype."""

    def make(dtype: torch.dtype) -> Path:
        folder = tmp_path / "base"
        hf.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=dtype).save_pretrained(folder)
        load_tokenizer(str(tiny_model)).save_pretrained(folder)
        return folder

    return make


def dtypes(folder: Path) -> set[torch.dtype]:
    return {tensor.dtype for file in folder.glob("*.safetensors") for tensor in load_file(file).values()}


def config_dtype(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["dtype"]


def full_run(base: Path, folder: Path) -> Policy:
    """The base's weights as a run of all weights saves them, in the base's dtypes."""
    policy = Policy(load_model(str(base)), load_tokenizer(str(base)))
    folder.mkdir()
    policy.save(folder, TreeScorer(policy.model), SINGLE, saved_dtype(policy.model, str(base), "auto"))
    return policy


def adapter_on(base: Path, folder: Path) -> Path:
    model = get_peft_model(
        load_model(str(base)),
        LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    model.save_pretrained(folder)
    load_tokenizer(str(base)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_full_run_is_written_as_its_base_is(base_with_dtype, tmp_path, dtype):
    policy = full_run(base_with_dtype(dtype), tmp_path / "run")
    assert dtypes(tmp_path / "run") == {dtype}
    assert config_dtype(tmp_path / "run") == str(dtype).removeprefix("torch.")
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}  # what is trained stays as it is
    assert hf.AutoModelForCausalLM.from_pretrained(tmp_path / "run").dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merged_folder_is_written_as_its_base_is(base_with_dtype, tmp_path, dtype):
    adapter = adapter_on(base_with_dtype(dtype), tmp_path / "adapter")
    merge_adapter(str(adapter), tmp_path / "merged")
    assert dtypes(tmp_path / "merged") == {dtype}
    assert config_dtype(tmp_path / "merged") == str(dtype).removeprefix("torch.")
    expected = load_model(str(adapter)).state_dict()
    merged = load_model(str(tmp_path / "merged")).state_dict()
    assert all(torch.equal(merged[name], weight.to(dtype).float()) for name, weight in expected.items())


@pytest.mark.parametrize("choice", ["float32", "bfloat16", "float16"])
def test_the_dtype_that_is_asked_for(base_with_dtype, tmp_path, choice):
    adapter = adapter_on(base_with_dtype(torch.bfloat16), tmp_path / "adapter")
    merge_adapter(str(adapter), tmp_path / "merged", choice)
    assert dtypes(tmp_path / "merged") == {getattr(torch, choice)}
    assert config_dtype(tmp_path / "merged") == choice


def test_an_adapter_counts_by_its_base(base_with_dtype, tmp_path):
    adapter = adapter_on(base_with_dtype(torch.bfloat16), tmp_path / "adapter")
    assert dtypes(adapter) == {torch.float32}
    assert saved_dtype(load_model(str(adapter)), str(adapter), "auto").dtype == torch.bfloat16


def test_the_files_decide_where_the_configuration_says_otherwise(base_with_dtype):
    base = base_with_dtype(torch.bfloat16)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    assert saved_dtype(load_model(str(base)), str(base), "auto").dtype == torch.bfloat16


def test_a_tensor_that_the_base_holds_in_another_dtype_stays_so(base_with_dtype, tmp_path):
    base = base_with_dtype(torch.bfloat16)
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float() + 1e-6
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    full_run(base, tmp_path / "run")
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert torch.equal(saved["model.norm.weight"], tensors["model.norm.weight"])
    assert {tensor.dtype for name, tensor in saved.items() if name != "model.norm.weight"} == {torch.bfloat16}


def test_weights_beyond_float16_are_written_in_float32():
    disk_dtype = SavedDtype(torch.float16)
    assert disk_dtype.safe_for({"a": torch.tensor([1e5])}).dtype == torch.float32
    assert disk_dtype.safe_for({"a": torch.tensor([65504.0]), "steps": torch.tensor([1 << 20])}) is disk_dtype


@pytest.mark.parametrize(("kind", "dtype"), [("f32", "float32"), ("f16", "float16"), ("q8_0", "float32")])
def test_a_gguf_file_counts_by_its_matrices(kind, dtype, tmp_path):
    folder = shapes.build(tmp_path / "model", "Llama", shapes.byte_level(), num_hidden_layers=1)
    export_gguf(str(folder), tmp_path / "a.gguf", kind)
    source = str(tmp_path / "a.gguf")
    assert saved_dtype(load_model(source), source, "auto").name == dtype


class TestMultimodal:
    """The files name a weight otherwise than the model does, and hold towers that are copied."""

    @pytest.fixture(params=["gemma3", "qwen3_5"])
    def base(self, request, tiny_model, tmp_path, multimodal_models) -> Path:
        """A checkpoint in bfloat16 with one norm in float32, whose digits bfloat16 cannot hold."""
        folder = tmp_path / "base"
        multimodal_models.write_multimodal(request.param, folder, tiny_model, shards=False)
        tensors = multimodal_models.read_tensors(folder)
        self.norm = next(name for name in tensors if name.endswith("layers.1.input_layernorm.weight"))
        multimodal_models.add_tensors(folder, {self.norm: tensors[self.norm].float() + 1e-6})
        return folder

    def test_a_full_run_keeps_every_tensors_dtype(self, base, tmp_path, multimodal_models):
        full_run(base, tmp_path / "run")
        expected, actual = multimodal_models.read_tensors(base), multimodal_models.read_tensors(tmp_path / "run")
        assert {name: tensor.dtype for name, tensor in actual.items()} == {n: t.dtype for n, t in expected.items()}
        assert [name for name, tensor in expected.items() if not torch.equal(actual[name], tensor)] == []

    def test_a_merged_folder_keeps_every_tensors_dtype(self, base, tmp_path, multimodal_models):
        model = load_model(str(base))
        policy = Policy(model, load_tokenizer(str(base)))
        policy.add_lora(rank=2, alpha=4, dropout=0.0, targets=["down_proj"])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.5)
        policy.save(tmp_path / "run", TreeScorer(model), SINGLE, torch.float32)
        merge_adapter(str(tmp_path / "run"), tmp_path / "merged")
        expected, actual = multimodal_models.read_tensors(base), multimodal_models.read_tensors(tmp_path / "merged")
        assert {name: tensor.dtype for name, tensor in actual.items()} == {n: t.dtype for n, t in expected.items()}
        changed_names = {name for name, tensor in expected.items() if not torch.equal(actual[name], tensor)}
        assert changed_names == {name for name in expected if re.search(r"language.*down_proj\.weight$", name)}

    def test_the_towers_do_not_decide_the_dtype(self, base, tmp_path, multimodal_models):
        """Most of the numbers are copied ones in float32: the language part stays bfloat16."""
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps({**config, "unused_weights": ["large"]}))
        multimodal_models.add_tensors(base, {"large": torch.ones(400, 400)})
        policy = full_run(base, tmp_path / "run")
        embedding = next(n for n in multimodal_models.read_tensors(base) if n.endswith("embed_tokens.weight"))
        assert multimodal_models.read_tensors(tmp_path / "run")[embedding].dtype == torch.bfloat16
        assert config_dtype(tmp_path / "run") == "bfloat16"
        assert hf.AutoConfig.from_pretrained(tmp_path / "run").text_config.dtype == torch.bfloat16
        assert policy.model.dtype == torch.float32

    @pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
    def test_the_configuration_keeps_the_towers_dtype(self, base, tmp_path, key):
        config = json.loads((base / "config.json").read_text())
        plain = {name: {k: v for k, v in part.items() if k != "dtype"} if isinstance(part, dict) else part
                 for name, part in config.items() if name != "dtype"}  # fmt: skip
        (base / "config.json").write_text(json.dumps({**plain, key: "bfloat16"}))
        policy = Policy(load_model(str(base)), load_tokenizer(str(base)))
        policy.save(tmp_path / "run", TreeScorer(policy.model), SINGLE, torch.float32)
        saved = json.loads((tmp_path / "run" / "config.json").read_text())
        assert saved["dtype"] == saved["text_config"]["dtype"] == "float32"
        assert saved["vision_config"]["dtype"] == "bfloat16"
