"""GGUF files: every weight under llama.cpp's name, the same logits when loaded, or one clear error."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers as hf

from penchant.errors import ConfigError, ModelError
from penchant.models.gguf.writing import export_gguf
from penchant.models.loading import load_config, load_model, load_tokenizer

_SPEC = importlib.util.spec_from_file_location("gguf_models", Path(__file__).with_name("gguf_models.py"))
shapes: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shapes)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A folder for each tiny model, by name."""
    root = tmp_path_factory.mktemp("models")
    tokenizers = {"Llama": shapes.byte_level(), "Qwen2": shapes.byte_level("qwen2", bos=False, nfc=True)}
    return {
        name: shapes.build(root / name, kind, tokenizers[kind], **changes)
        for name, (kind, changes) in shapes.MODELS.items()
    }


@pytest.fixture(scope="session")
def ids():
    """As many tokens as the tiny models can read, so that scaled positions make a difference."""
    return torch.randint(5, 300, (2, 90), generator=torch.Generator().manual_seed(1))


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def as_llama_cpp_computes(file: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits from the file's tensors alone, as llama.cpp's graph has it: `build_llama` and `build_qwen2`.

    Of a Llama neighbouring numbers of a head are rotated together, of a Qwen2 those half a head apart.
    """
    read = gguf.GGUFReader(file)
    tensors = {t.name: torch.tensor(gguf.dequantize(t.data, t.tensor_type)).double() for t in read.tensors}
    kind = read.get_field("general.architecture").contents()

    def metadata(key: str, otherwise: Any = None) -> Any:
        field = read.get_field(f"{kind}.{key}")
        return otherwise if field is None else field.contents()

    heads, groups, head = (
        metadata("attention.head_count"),
        metadata("attention.head_count_kv"),
        metadata("attention.key_length"),
    )
    frequencies = metadata("rope.freq_base") ** (-torch.arange(0, head, 2).double() / head)
    frequencies = frequencies / metadata("rope.scaling.factor", 1.0) / tensors.get("rope_freqs.weight", 1.0)
    angles = torch.arange(ids.shape[1])[:, None].double() * frequencies

    def norm(x, weight):
        return x * (x.square().mean(-1, keepdim=True) + metadata("attention.layer_norm_rms_epsilon")).rsqrt() * weight

    def rotate(x):
        real, imaginary = (x[..., ::2], x[..., 1::2]) if kind == "llama" else x.chunk(2, -1)
        rotated = (real * angles.cos() - imaginary * angles.sin(), real * angles.sin() + imaginary * angles.cos())
        return torch.stack(rotated, -1).flatten(-2) if kind == "llama" else torch.cat(rotated, -1)

    def linear(x, name):
        return x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", 0.0)

    x = tensors["token_embd.weight"][ids]
    for layer in range(metadata("block_count")):
        prefix = f"blk.{layer}."
        y = norm(x, tensors[prefix + "attn_norm.weight"])
        q, k, v = (linear(y, prefix + f"attn_{n}").unflatten(-1, (-1, head)).transpose(1, 2) for n in "qkv")
        k, v = (tensor.repeat_interleave(heads // groups, 1) for tensor in (k, v))
        scores = rotate(q) @ rotate(k).mT / head**0.5
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
        x = x + linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), prefix + "attn_output")
        y = norm(x, tensors[prefix + "ffn_norm.weight"])
        gated = torch.nn.functional.silu(linear(y, prefix + "ffn_gate")) * linear(y, prefix + "ffn_up")
        x = x + linear(gated, prefix + "ffn_down")
    output = "output" if "output.weight" in tensors else "token_embd"
    return linear(norm(x, tensors["output_norm.weight"]), output)


@pytest.mark.parametrize("name", shapes.MODELS)
class TestEveryModel:
    def test_a_loaded_file_gives_the_same_logits(self, name, folders, tmp_path, ids):
        export_gguf(str(folders[name]), tmp_path / "a.gguf", "f32")
        ours, original = load_model(str(tmp_path / "a.gguf")), load_model(str(folders[name]))
        torch.testing.assert_close(logits(ours, ids), logits(original, ids), rtol=1e-5, atol=1e-5)
        assert type(ours) is type(original)

    def test_llama_cpps_arithmetic_gives_the_same_logits(self, name, folders, tmp_path, ids):
        export_gguf(str(folders[name]), tmp_path / "a.gguf", "f32")
        original = logits(load_model(str(folders[name])), ids)
        torch.testing.assert_close(
            as_llama_cpp_computes(tmp_path / "a.gguf", ids).float(), original, rtol=1e-4, atol=1e-4
        )

    def test_names_are_llama_cpps(self, name, folders, tmp_path):
        export_gguf(str(folders[name]), tmp_path / "a.gguf", "f16")
        read = gguf.GGUFReader(tmp_path / "a.gguf")
        kind = read.get_field("general.architecture").contents()
        arch = next(arch for arch, known_keys in gguf.MODEL_ARCH_NAMES.items() if known_keys == kind)
        tensor_names = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[arch]}
        for tensor in read.tensors:
            stem, _, suffix = tensor.name.rpartition(".")
            assert re.sub(r"^blk\.\d+", "blk.{bid}", stem) in tensor_names
            assert suffix in ("weight", "bias")
        assert ("output.weight" in {t.name for t in read.tensors}) == ("tied" not in name)
        known_keys = {
            value.replace("{arch}", kind)
            for group in vars(gguf.Keys).values()
            if isinstance(group, type)
            for key, value in vars(group).items()
            if not key.startswith("_") and isinstance(value, str)
        }
        assert {key for key in read.fields if not key.startswith("GGUF.")} <= known_keys

    def test_configuration(self, name, folders, tmp_path):
        export_gguf(str(folders[name]), tmp_path / "a.gguf", "q8_0")
        ours, original = load_config(str(tmp_path / "a.gguf")), load_config(str(folders[name]))
        for key in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "max_position_embeddings", "tie_word_embeddings", "bos_token_id", "eos_token_id",
            "pad_token_id",
        ):  # fmt: skip
            assert getattr(ours, key) == getattr(original, key), key
        assert ours.rms_norm_eps == pytest.approx(original.rms_norm_eps)
        assert ours.rope_parameters["rope_theta"] == original.rope_parameters["rope_theta"]


class TestStorage:
    def differences(self, folder, file):
        ours, original = (dict(load_model(str(source)).named_parameters()) for source in (file, folder))
        assert ours.keys() == original.keys()
        return {name: ((ours[name] - weight).detach(), weight.detach()) for name, weight in original.items()}

    def test_f16_rounds_to_the_nearest(self, folders, tmp_path):
        export_gguf(str(folders["qwen2"]), tmp_path / "a.gguf", "f16")
        for difference, weight in self.differences(folders["qwen2"], tmp_path / "a.gguf").values():
            if weight.ndim == 1:
                assert not difference.any()
            else:
                # 11 bits, and below 2^-14 steps of 2^-24.
                assert (difference.abs() <= (weight.abs() * 2**-11).clamp(min=2**-25)).all()
                assert difference.any()

    @pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen2"])
    def test_q8_0_is_within_half_a_step_of_each_block(self, name, folders, tmp_path):
        exported = export_gguf(str(folders[name]), tmp_path / "a.gguf", "q8_0")
        assert exported.kept_apart == []
        assert set(exported.tensors) == {"f32", "q8_0"}
        for difference, weight in self.differences(folders[name], tmp_path / "a.gguf").values():
            if weight.ndim == 1:
                assert not difference.any()
                continue
            # Half a step of absmax / 127; and the step itself, taken up to 127 times, is stored in f16.
            step = weight.unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True) / 127
            tolerance = step / 2 + 127 * (step * 2**-11).clamp(min=2**-25)
            assert (difference.unflatten(1, (-1, 32)).abs() <= tolerance * (1 + 1e-5)).all()
            assert difference.any()

    def test_q8_0_is_read_to_nearby_logits(self, folders, tmp_path, ids):
        export_gguf(str(folders["llama"]), tmp_path / "a.gguf", "q8_0")
        original = logits(load_model(str(folders["llama"])), ids)
        ours = logits(load_model(str(tmp_path / "a.gguf")), ids)
        assert (ours - original).std() < 0.05 * original.std()
        theirs = as_llama_cpp_computes(tmp_path / "a.gguf", ids)
        torch.testing.assert_close(theirs.float(), ours, rtol=1e-4, atol=1e-4)

    def test_rows_that_are_no_whole_blocks_stay_f16(self, tmp_path, ids):
        folder = shapes.build(tmp_path / "odd", "Llama", shapes.byte_level(), intermediate_size=72)
        exported = export_gguf(str(folder), tmp_path / "a.gguf", "q8_0")
        assert exported.kept_apart == ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"]
        assert exported.tensors == {"f32": 5, "f16": 2, "q8_0": 14}
        assert exported.bytes == (tmp_path / "a.gguf").stat().st_size
        types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
        assert types["blk.0.ffn_down.weight"] == "F16"
        assert types["blk.0.ffn_up.weight"] == "Q8_0"
        assert torch.isfinite(logits(load_model(str(tmp_path / "a.gguf")), ids)).all()

    def test_a_file_can_be_stored_otherwise(self, folders, tmp_path):
        export_gguf(str(folders["llama-3"]), tmp_path / "a.gguf", "f32")
        with pytest.raises(ModelError, match="positions scaled by longrope"):
            export_gguf(str(tmp_path / "a.gguf"), tmp_path / "b.gguf", "q8_0")
        export_gguf(str(folders["llama"]), tmp_path / "c.gguf", "f32")
        export_gguf(str(folders["llama"]), tmp_path / "one.gguf", "q8_0")
        export_gguf(str(tmp_path / "c.gguf"), tmp_path / "two.gguf", "q8_0")
        one, two = (gguf.GGUFReader(tmp_path / name).tensors for name in ("one.gguf", "two.gguf"))
        assert all(np.array_equal(a.data, b.data) for a, b in zip(one, two, strict=True))


class TestReadBack:
    def test_it_is_an_ordinary_model(self, folders, tmp_path, ids):
        export_gguf(str(folders["llama"]), tmp_path / "a.gguf", "q8_0")
        model = load_model(str(tmp_path / "a.gguf"))
        assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in model.parameters())
        assert load_model(str(tmp_path / "a.gguf"), dtype=torch.bfloat16).dtype == torch.bfloat16
        model.save_pretrained(tmp_path / "folder")
        reloaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
        assert torch.equal(logits(reloaded, ids), logits(model, ids))

    def test_scaled_positions_survive_a_folder(self, folders, tmp_path, ids):
        export_gguf(str(folders["llama-3"]), tmp_path / "a.gguf", "f32")
        load_model(str(tmp_path / "a.gguf")).save_pretrained(tmp_path / "folder")
        original = logits(load_model(str(folders["llama-3"])), ids)
        reloaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
        torch.testing.assert_close(logits(reloaded, ids), original, rtol=1e-5, atol=1e-5)

    def test_an_adapter_on_it_finds_it_again(self, folders, tmp_path, ids):
        from peft import LoraConfig, get_peft_model

        export_gguf(str(folders["llama"]), tmp_path / "a.gguf", "f16")
        model = get_peft_model(
            load_model(str(tmp_path / "a.gguf")),
            LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
        )
        model.save_pretrained(tmp_path / "adapter")
        load_tokenizer(str(tmp_path / "a.gguf")).save_pretrained(tmp_path / "adapter")
        merged = load_model(str(tmp_path / "adapter"))
        torch.testing.assert_close(logits(merged, ids), logits(model, ids), rtol=1e-3, atol=1e-3)
        export_gguf(str(tmp_path / "adapter"), tmp_path / "b.gguf", "f32")
        exported = load_model(str(tmp_path / "b.gguf"))
        torch.testing.assert_close(logits(exported, ids), logits(merged, ids), rtol=1e-5, atol=1e-5)


class TestRefused:
    @pytest.mark.parametrize(
        ("kind", "changes", "message"),
        [
            ("Mistral", {}, "it is a mistral; GGUF files are written of llama and qwen2"),
            ("Llama", {"attention_bias": True}, "it has biases"),
            ("Llama", {"mlp_bias": True, "hidden_act": "gelu"}, "it has biases and the activation gelu"),
            ("Llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 5e3, "factor": 2.0}}, "by dynamic"),
            ("Qwen2", {"rope_parameters": shapes.LLAMA_3_ROPE}, "positions scaled by llama3"),
            ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "sliding windows"),
        ],
    )
    def test_models_that_llama_cpp_would_compute_differently(self, kind, changes, message, tmp_path):
        folder = shapes.build(tmp_path / "model", kind, shapes.byte_level(), **changes)
        with pytest.raises(ModelError, match=message):
            export_gguf(str(folder), tmp_path / "a.gguf", "f32")
        assert [entry.name for entry in tmp_path.iterdir()] == ["model"]

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("a.bin", r"a GGUF file's name ends in \.gguf"),
            ("none/a.gguf", "its folder does not exist"),
            ("there.gguf", "it is there already"),
        ],
    )
    def test_output_paths(self, name, message, folders, tmp_path):
        (tmp_path / "there.gguf").write_text("mine")
        with pytest.raises(ModelError, match=message):
            export_gguf(str(folders["llama"]), tmp_path / name, "f32")
        assert (tmp_path / "there.gguf").read_text() == "mine"
        assert len(list(tmp_path.iterdir())) == 1

    def test_a_full_disk_leaves_nothing(self, folders, tmp_path, monkeypatch):
        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ModelError, match="it cannot be written: No space left on device"):
            export_gguf(str(folders["llama"]), tmp_path / "a.gguf", "f32")
        assert list(tmp_path.iterdir()) == []

    def test_a_disk_that_fills_up_while_writing(self, folders, tmp_path, monkeypatch):
        write, tensors = gguf.GGUFWriter.write_tensor_data, []

        def full(self, tensor):
            if len(tensors) == 5:
                raise OSError("4096 requested and 512 written")  # numpy's own words for it
            tensors.append(tensor)
            write(self, tensor)

        monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
        with pytest.raises(ModelError, match="it cannot be written: 4096 requested and 512 written"):
            export_gguf(str(folders["llama"]), tmp_path / "a.gguf", "f32")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("value", "storage_type", "message"), [(1e5, "f16", "65504"), (float("nan"), "f32", "not finite")]
    )
    def test_numbers_that_cannot_be_stored(self, value, storage_type, message, folders, tmp_path):
        model = load_model(str(folders["llama"]))
        model.model.layers[1].mlp.up_proj.weight.data[3, 4] = value
        model.save_pretrained(tmp_path / "model")
        load_tokenizer(str(folders["llama"])).save_pretrained(tmp_path / "model")
        with pytest.raises(ModelError, match=message):
            export_gguf(str(tmp_path / "model"), tmp_path / "a.gguf", storage_type)
        assert [entry.name for entry in tmp_path.iterdir()] == ["model"]

    def test_without_the_package(self, folders, tmp_path, monkeypatch):
        export_gguf(str(folders["llama"]), tmp_path / "a.gguf", "f32")
        monkeypatch.setitem(sys.modules, "gguf", None)
        for use in (
            lambda: export_gguf(str(folders["llama"]), tmp_path / "b.gguf", "f32"),
            lambda: load_model(str(tmp_path / "a.gguf")),
            lambda: load_tokenizer(str(tmp_path / "a.gguf")),
            lambda: load_config(str(tmp_path / "a.gguf")),
        ):
            with pytest.raises(ConfigError, match="GGUF files need gguf") as error:
                use()
            assert error.value.fix == "python -m pip install 'penchant[gguf]'"
        assert [entry.name for entry in tmp_path.iterdir()] == ["a.gguf"]

    @pytest.mark.parametrize("load", [load_model, load_tokenizer, load_config])
    def test_no_such_file(self, load, tmp_path):
        with pytest.raises(ModelError, match="there is no such file"):
            load(str(tmp_path / "a.gguf"))

    @pytest.mark.parametrize("load", [load_model, load_tokenizer, load_config])
    @pytest.mark.parametrize("damage", ["empty", "other", "header", "vocabulary", "weights"])
    def test_a_damaged_file(self, load, damage, folders, tmp_path):
        file = tmp_path / "a.gguf"
        export_gguf(str(folders["llama"]), file, "f32")
        whole = file.read_bytes()
        file.write_bytes(
            {
                "empty": b"",
                "other": b"PK" + whole[2:],
                "header": whole[:20],
                "vocabulary": whole[:2000],
                "weights": whole[:-5000],
            }[damage]
        )
        with pytest.raises(ModelError, match="it cannot be loaded: ") as error:
            load(str(file))
        assert error.value.where == str(file)
        assert error.value.fix == "get the whole file again"

    def test_a_missing_tensor(self, folders, tmp_path):
        file = export_changed(folders["llama"], tmp_path, omitted_tensor="blk.1.ffn_up.weight")
        with pytest.raises(ModelError, match=r"1 weights are not in the model's files.*layers\.1\.mlp\.up_proj"):
            load_model(str(file))

    def test_tensors_that_transformers_would_drop(self, folders, tmp_path):
        file = export_changed(folders["llama"], tmp_path, bias="blk.0.attn_q.bias")
        with pytest.raises(ModelError, match=r"a Llama with biases.*blk\.0\.attn_q\.bias"):
            load_model(str(file))

    def test_positions_scaled_in_a_way_that_is_not_read(self, folders, tmp_path):
        file = export_changed(folders["llama"], tmp_path, scaling="yarn")
        with pytest.raises(ModelError, match=r"scaled in a way that transformers does not read \(yarn\)"):
            load_model(str(file))


def export_changed(folder, tmp_path, *, omitted_tensor="", bias="", scaling=""):
    """An export of the folder without a tensor, with an additional bias, or with other positions."""
    export_gguf(str(folder), tmp_path / "good.gguf", "f32")
    read = gguf.GGUFReader(tmp_path / "good.gguf")
    writer = gguf.GGUFWriter(tmp_path / "bad.gguf", "llama")
    for key, field in read.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind, *inner = field.types
            writer.add_key_value(key, field.contents(), kind, inner[0] if inner else None)
    if scaling:
        writer.add_string("llama.rope.scaling.type", scaling)
    for tensor in read.tensors:
        if tensor.name != omitted_tensor:
            writer.add_tensor(tensor.name, tensor.data)
    if bias:
        writer.add_tensor(bias, np.zeros(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "bad.gguf"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["embed_tokens"], r".*(embed_tokens|lm_head)"], ids=str)
@pytest.mark.parametrize("name", ["llama-tied", "qwen2-tied"])
def test_an_adapter_on_one_of_two_tied_modules(name, targets, folders, tmp_path, ids):
    """The file then has its own output layer; the oracle is PEFT's unmerged model."""
    from peft import LoraConfig, get_peft_model

    model = hf.AutoModelForCausalLM.from_pretrained(folders[name])
    config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    export_gguf(str(tmp_path / "adapter"), tmp_path / "a.gguf", "f32")
    expected = logits(adapted, ids)
    torch.testing.assert_close(logits(load_model(str(tmp_path / "a.gguf")), ids), expected, rtol=1e-5, atol=5e-5)
    torch.testing.assert_close(as_llama_cpp_computes(tmp_path / "a.gguf", ids).float(), expected, rtol=1e-4, atol=1e-4)
