"""Weights on disk: in the dtype of the model they come from, each tensor's own, or in the one that is asked for."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from penchant.engine.distribution import World
from penchant.engine.gguf_writing import export_gguf
from penchant.engine.loading import load_model, load_tokenizer, merge_adapter
from penchant.engine.policy import Policy
from penchant.engine.saved_dtype import SavedDtype, saved_dtype
from penchant.engine.tree import TreeScorer

ALONE = World(0, 1, torch.device("cpu"))
IDS = torch.tensor([[4, 5, 6, 7, 8]])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

_SPEC = importlib.util.spec_from_file_location("gguf_models", Path(__file__).with_name("gguf_models.py"))
shapes: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shapes)


@pytest.fixture
def based(tiny_model, tmp_path):
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


def adapter_on(base: Path, folder: Path) -> Path:
    model = get_peft_model(
        load_model(str(base)),
        LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    model.save_pretrained(folder)
    load_tokenizer(str(base)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_full_run_is_written_as_its_base_is(based, tmp_path, dtype):
    base = based(dtype)
    policy = Policy(load_model(str(base)), load_tokenizer(str(base)))
    (tmp_path / "run").mkdir()
    policy.save(tmp_path / "run", TreeScorer(policy.model), ALONE, saved_dtype(str(base), "auto"))
    assert dtypes(tmp_path / "run") == {dtype}
    assert config_dtype(tmp_path / "run") == str(dtype).removeprefix("torch.")
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}  # what is trained stays as it is
    alone = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert alone.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merged_folder_is_written_as_its_base_is(based, tmp_path, dtype):
    adapter = adapter_on(based(dtype), tmp_path / "adapter")
    merge_adapter(str(adapter), tmp_path / "merged")
    assert dtypes(tmp_path / "merged") == {dtype}
    assert config_dtype(tmp_path / "merged") == str(dtype).removeprefix("torch.")
    expected = load_model(str(adapter)).state_dict()
    written = load_model(str(tmp_path / "merged")).state_dict()
    assert all(torch.equal(written[name], weight.to(dtype).float()) for name, weight in expected.items())


@pytest.mark.parametrize("choice", ["float32", "bfloat16", "float16"])
def test_the_dtype_that_is_asked_for(based, tmp_path, choice):
    adapter = adapter_on(based(torch.bfloat16), tmp_path / "adapter")
    merge_adapter(str(adapter), tmp_path / "merged", choice)
    assert dtypes(tmp_path / "merged") == {getattr(torch, choice)}
    assert config_dtype(tmp_path / "merged") == choice


def test_an_adapter_counts_by_its_base(based, tmp_path):
    adapter = adapter_on(based(torch.bfloat16), tmp_path / "adapter")
    assert dtypes(adapter) == {torch.float32}
    assert saved_dtype(str(adapter), "auto").dtype == torch.bfloat16


def test_the_files_decide_where_the_configuration_says_otherwise(based):
    base = based(torch.bfloat16)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    assert saved_dtype(str(base), "auto").dtype == torch.bfloat16


def test_a_tensor_that_the_base_holds_in_another_dtype_stays_so(based, tmp_path):
    base = based(torch.bfloat16)
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float() + 1e-6
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    policy = Policy(load_model(str(base)), load_tokenizer(str(base)))
    (tmp_path / "run").mkdir()
    policy.save(tmp_path / "run", TreeScorer(policy.model), ALONE, saved_dtype(str(base), "auto"))
    with safe_open(tmp_path / "run" / "model.safetensors", "pt") as written:
        names = list(written.keys())
        found = {name: written.get_tensor(name) for name in names}
    assert torch.equal(found["model.norm.weight"], tensors["model.norm.weight"])
    assert {tensor.dtype for name, tensor in found.items() if name != "model.norm.weight"} == {torch.bfloat16}


def test_weights_beyond_float16_are_written_in_float32():
    stored = SavedDtype(torch.float16)
    assert stored.fitting({"a": torch.tensor([1e5])}).dtype == torch.float32
    assert stored.fitting({"a": torch.tensor([65504.0]), "steps": torch.tensor([1 << 20])}) is stored


@pytest.mark.parametrize(("kind", "dtype"), [("f32", "float32"), ("f16", "float16"), ("q8_0", "float32")])
def test_a_gguf_file_counts_by_its_matrices(kind, dtype, tmp_path):
    folder = shapes.build(tmp_path / "model", "Llama", shapes.byte_level(), num_hidden_layers=1)
    export_gguf(str(folder), tmp_path / "a.gguf", kind)
    assert saved_dtype(str(tmp_path / "a.gguf"), "auto").name == dtype
