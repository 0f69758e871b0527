"""GGUF files: every weight under llama.cpp's name, the same logits when loaded, or one clear error."""

from __future__ import annotations

import importlib.util
import os
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
    return {
        name: shapes.build(root / name, kind, shapes.tokenizer_of(kind), **changes)
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
    """Logits from the file's tensors alone, as llama.cpp's graph has it: `src/models/*.cpp`.

    Of a Llama neighbouring numbers of a head are rotated together, of the others those half a head apart.
    """
    read = gguf.GGUFReader(file)
    tensors = {t.name: torch.tensor(gguf.dequantize(t.data, t.tensor_type)).double() for t in read.tensors}
    kind = read.get_field("general.architecture").contents()
    gemma = kind in ("gemma2", "gemma3")

    def metadata(key: str, otherwise: Any = None) -> Any:
        field = read.get_field(f"{kind}.{key}")
        return otherwise if field is None else field.contents()

    heads, groups, head = (
        metadata("attention.head_count"),
        metadata("attention.head_count_kv"),
        metadata("attention.key_length"),
    )
    distances = torch.arange(ids.shape[1])[:, None] - torch.arange(ids.shape[1])
    full_period = {"gemma2": 2, "gemma3": 6}.get(kind, 1)
    is_27b = (kind, metadata("block_count")) in (("gemma2", 46), ("gemma3", 62))
    scale = metadata("embedding_length") // heads if is_27b else head

    def norm(x, name):
        if f"{name}.weight" not in tensors:
            return x
        variance = x.square().mean(-1, keepdim=True)
        return x * (variance + metadata("attention.layer_norm_rms_epsilon")).rsqrt() * tensors[f"{name}.weight"]

    def rotate(x, full):
        base = metadata("rope.freq_base") if full else metadata("rope.freq_base_swa")
        frequencies = base ** (-torch.arange(0, head, 2).double() / head) / tensors.get("rope_freqs.weight", 1.0)
        frequencies = frequencies / (metadata("rope.scaling.factor", 1.0) if full or kind == "gemma2" else 1.0)
        angles = torch.arange(ids.shape[1])[:, None].double() * frequencies
        real, imaginary = (x[..., ::2], x[..., 1::2]) if kind == "llama" else x.chunk(2, -1)
        rotated = (real * angles.cos() - imaginary * angles.sin(), real * angles.sin() + imaginary * angles.cos())
        return torch.stack(rotated, -1).flatten(-2) if kind == "llama" else torch.cat(rotated, -1)

    def linear(x, name):
        return x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", 0.0)

    def cap(x, limit):
        return x if limit is None else limit * torch.tanh(x / limit)

    x = tensors["token_embd.weight"][ids] * (metadata("embedding_length") ** 0.5 if gemma else 1.0)
    for layer in range(metadata("block_count")):
        prefix, full = f"blk.{layer}.", (layer + 1) % full_period == 0
        y = norm(x, prefix + "attn_norm")
        q, k, v = (linear(y, prefix + f"attn_{n}").unflatten(-1, (-1, head)).transpose(1, 2) for n in "qkv")
        q, k = (rotate(norm(z, f"{prefix}attn_{n}_norm"), full) for z, n in ((q, "q"), (k, "k")))
        k, v = (tensor.repeat_interleave(heads // groups, 1) for tensor in (k, v))
        scores = cap(q @ k.mT / scale**0.5, metadata("attn_logit_softcapping"))
        hidden = (distances < 0) | ((distances >= metadata("attention.sliding_window", 0)) & (not full))
        scores = scores.masked_fill(hidden, -torch.inf)
        attended = linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), prefix + "attn_output")
        x = x + norm(attended, prefix + "post_attention_norm")
        y = norm(x, prefix + "ffn_norm")
        gate = linear(y, prefix + "ffn_gate")
        gate = torch.nn.functional.gelu(gate, approximate="tanh") if gemma else torch.nn.functional.silu(gate)
        x = x + norm(linear(gate * linear(y, prefix + "ffn_up"), prefix + "ffn_down"), prefix + "post_ffw_norm")
    output = "output" if "output.weight" in tensors else "token_embd"
    return cap(linear(norm(x, "output_norm"), output), metadata("final_logit_softcapping"))


def share_frequencies(model, original):
    """Check that the rotations' frequencies are the original's but for a rounding in float32, and take those.

    At position 85 a rounding of the frequency moves logits by as much as the bound on them, on some CPUs beyond it.
    """
    buffers, of_original = (
        {name: buffer for name, buffer in part.named_buffers() if name.endswith("inv_freq")}
        for part in (model, original)
    )
    assert buffers
    for name, buffer in buffers.items():
        source = of_original[name]
        torch.testing.assert_close(buffer, source, rtol=2**-22, atol=0)
        buffer.copy_(source)


@pytest.mark.parametrize("name", shapes.MODELS)
class TestEveryModel:
    @pytest.mark.slow_but("llama", "qwen2")
    def test_a_loaded_file_gives_the_same_logits(self, name, folders, tmp_path, ids):
        export_gguf(str(folders[name]), tmp_path / "a.gguf", "f32")
        ours, original = load_model(str(tmp_path / "a.gguf")), load_model(str(folders[name]))
        share_frequencies(ours, original)
        torch.testing.assert_close(logits(ours, ids), logits(original, ids), rtol=1e-5, atol=1e-5)
        # llama.cpp has one name for both, and both compute the same.
        assert type(ours) is (hf.LlamaForCausalLM if "mistral" in name else type(original))

    @pytest.mark.slow_but("llama", "qwen3")
    def test_llama_cpps_arithmetic_gives_the_same_logits(self, name, folders, tmp_path, ids):
        export_gguf(str(folders[name]), tmp_path / "a.gguf", "f32")
        original = logits(load_model(str(folders[name])), ids)
        torch.testing.assert_close(
            as_llama_cpp_computes(tmp_path / "a.gguf", ids).float(), original, rtol=1e-4, atol=1e-4
        )

    @pytest.mark.slow_but("llama-tied", "qwen2", "gemma3-tied")
    def test_names_are_llama_cpps(self, name, folders, tmp_path):
        export_gguf(str(folders[name]), tmp_path / "a.gguf", "f16")
        read = gguf.GGUFReader(tmp_path / "a.gguf")
        kind = read.get_field("general.architecture").contents()
        arch = next(arch for arch, known_keys in gguf.MODEL_ARCH_NAMES.items() if known_keys == kind)
        model = load_model(str(folders[name]))
        names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
        expected_names = {names.get_name(key, (".weight", ".bias")) for key, _ in model.named_parameters()}
        scaled = {"rope_freqs.weight"} if name == "llama-3" else set()
        assert {tensor.name for tensor in read.tensors} == expected_names | scaled
        assert ("output.weight" in {t.name for t in read.tensors}) == ("tied" not in name)
        known_keys = {
            value.replace("{arch}", kind)
            for group in vars(gguf.Keys).values()
            if isinstance(group, type)
            for key, value in vars(group).items()
            if not key.startswith("_") and isinstance(value, str)
        }
        assert {key for key in read.fields if not key.startswith("GGUF.")} <= known_keys

    @pytest.mark.slow_but("llama", "qwen2", "gemma3")
    def test_configuration(self, name, folders, tmp_path):
        export_gguf(str(folders[name]), tmp_path / "a.gguf", "q8_0")
        ours, original = load_config(str(tmp_path / "a.gguf")), load_config(str(folders[name]))
        for key in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
            "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "layer_types",
        ):  # fmt: skip
            assert getattr(ours, key, None) == getattr(original, key, None), key
        assert getattr(ours, "head_dim", 16) == getattr(original, "head_dim", 16)
        assert ours.max_position_embeddings == (92 if name == "mistral-window" else 96)
        assert ours.rms_norm_eps == pytest.approx(original.rms_norm_eps)
        if "longrope" not in str(ours.rope_parameters):
            assert ours.rope_parameters == original.rope_parameters
        if "gemma" in name:
            assert ours.sliding_window == original.sliding_window == 16


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "layers"), [("Gemma2", 46), ("Gemma3Text", 62)])
def test_a_gemma_of_27b_divides_queries_by_another_root(kind, layers, tmp_path, ids):
    changes = {**shapes.GEMMA, "query_pre_attn_scalar": 16, "num_hidden_layers": layers, "initializer_range": 0.05}
    folder = shapes.build(tmp_path / "model", kind, shapes.sentence_piece("gemma"), **changes)
    export_gguf(str(folder), tmp_path / "a.gguf", "f32")
    original = logits(load_model(str(folder)), ids[:, :40])
    theirs = as_llama_cpp_computes(tmp_path / "a.gguf", ids[:, :40])
    torch.testing.assert_close(theirs.float(), original, rtol=1e-4, atol=1e-4)
    assert load_config(str(tmp_path / "a.gguf")).query_pre_attn_scalar == 16


SIZES = {
    "context_length": 96, "embedding_length": 64, "block_count": 2, "feed_forward_length": 96,
    "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 16, "attention.value_length": 16,
    "rope.freq_base": 5000.0, "rope.dimension_count": 16, "attention.layer_norm_rms_epsilon": pytest.approx(3e-5),
}  # fmt: skip
HEADS_OF_32 = dict.fromkeys(("attention.key_length", "attention.value_length", "rope.dimension_count"), 32)
LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
WINDOW = {"attention.sliding_window": 16, **HEADS_OF_32}


@pytest.mark.parametrize(
    ("name", "architecture", "changes"),
    [
        ("llama", "llama", {}),
        ("llama-linear", "llama", LINEAR),
        ("mistral-window", "llama", {"context_length": 92, **HEADS_OF_32}),
        ("qwen2", "qwen2", {}),
        ("qwen3", "qwen3", HEADS_OF_32),
        (
            "gemma2-tied",
            "gemma2",
            {"block_count": 3, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
            | {"rope.freq_base_swa": 5000.0, **WINDOW},
        ),
        ("gemma3-tied", "gemma3", {"block_count": 7, "rope.freq_base_swa": 700.0, **LINEAR, **WINDOW}),
    ],
)
def test_metadata(name, architecture, changes, folders, tmp_path):
    export_gguf(str(folders[name]), tmp_path / "a.gguf", "f16")
    fields = {key: field.contents() for key, field in gguf.GGUFReader(tmp_path / "a.gguf").fields.items()}
    assert fields["general.architecture"] == architecture
    prefix = f"{architecture}."
    sizes = {key.removeprefix(prefix): value for key, value in fields.items() if key.startswith(prefix)}
    assert sizes.pop("vocab_size") == load_config(str(folders[name])).vocab_size
    assert sizes == SIZES | changes


def test_a_gemma_stores_what_its_norms_multiply_by(folders, tmp_path):
    export_gguf(str(folders["gemma3"]), tmp_path / "a.gguf", "f32")
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    weights = load_model(str(folders["gemma3"])).model.layers[1].state_dict()
    for gguf_name, name in (
        ("attn_norm", "input_layernorm"), ("attn_q_norm", "self_attn.q_norm"),
        ("post_attention_norm", "post_attention_layernorm"), ("ffn_norm", "pre_feedforward_layernorm"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
    ):  # fmt: skip
        np.testing.assert_array_equal(tensors[f"blk.1.{gguf_name}.weight"], 1 + weights[f"{name}.weight"].numpy())


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

    @pytest.mark.slow
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

    def test_a_file_with_the_name_of_a_mistral(self, folders, tmp_path, ids):
        """transformers takes a file for a Mistral by its name, and then has no names for its tensors."""
        export_gguf(str(folders["mistral"]), tmp_path / "mistral.gguf", "f32")
        model = load_model(str(tmp_path / "mistral.gguf"))
        assert type(model) is hf.LlamaForCausalLM
        torch.testing.assert_close(logits(model, ids), logits(load_model(str(folders["mistral"])), ids), rtol=0, atol=0)
        text = "the old  cat"
        tokenizers = [load_tokenizer(str(source)) for source in (tmp_path / "mistral.gguf", folders["mistral"])]
        assert tokenizers[0](text)["input_ids"] == tokenizers[1](text)["input_ids"]

    def test_what_a_file_leaves_out_is_as_in_llama_cpp(self, folders, tmp_path):
        omitted = ("attention.key_length", "attention.value_length", "rope.dimension_count", "rope.freq_base")
        config = load_config(str(export_changed(folders["qwen3"], tmp_path, omitted_keys=omitted)))
        assert (config.head_dim, config.rope_parameters["rope_theta"]) == (16, 10_000.0)
        (tmp_path / "good.gguf").unlink()
        omitted = ("attention.sliding_window", "rope.freq_base_swa")
        config = load_config(str(export_changed(folders["gemma3"], tmp_path, omitted_keys=omitted)))
        assert config.layer_types == ["full_attention"] * 2
        assert config.rope_parameters["sliding_attention"]["rope_theta"] == 10_000.0

    def test_scaled_positions_survive_a_folder(self, folders, tmp_path, ids):
        export_gguf(str(folders["llama-3"]), tmp_path / "a.gguf", "f32")
        load_model(str(tmp_path / "a.gguf")).save_pretrained(tmp_path / "folder")
        original = load_model(str(folders["llama-3"]))
        reloaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
        share_frequencies(reloaded, original)
        torch.testing.assert_close(logits(reloaded, ids), logits(original, ids), rtol=1e-5, atol=1e-5)

    @pytest.mark.slow
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
            ("Phi3", {}, "it is a phi3; GGUF files are written of llama, mistral, qwen2, qwen3, gemma2, gemma3_text"),
            ("Llama", {"attention_bias": True}, "it has biases"),
            ("Llama", {"mlp_bias": True, "hidden_act": "gelu"}, "it has biases and the activation gelu"),
            ("Llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 5e3, "factor": 2.0}}, "by dynamic"),
            ("Qwen2", {"rope_parameters": shapes.LLAMA_3_ROPE}, "positions scaled by llama3"),
            ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "sliding windows"),
            ("Qwen2", {"head_dim": 32}, "heads of another size"),
            ("Mistral", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e3, "factor": 2.0}}, "by yarn"),
            ("Gemma2", {**shapes.GEMMA, "final_logit_softcapping": None}, "soft caps of 50.0 and None"),
            ("Gemma2", {**shapes.GEMMA, "query_pre_attn_scalar": 16}, "queries divided by the root of 16"),
            ("Gemma2", {**shapes.GEMMA, "layer_types": ["full_attention"] * 2}, "sliding windows in other layers"),
            ("Gemma2", {**shapes.GEMMA, "hidden_activation": "gelu"}, "the activation gelu"),
            ("Gemma2", {**shapes.GEMMA, "tie_word_embeddings": False}, "llama.cpp's gemma2 has no lm_head.weight"),
            ("Gemma3Text", {**shapes.GEMMA, "final_logit_softcapping": 30.0}, "soft caps of None and 30.0"),
            ("Gemma3Text", {**shapes.GEMMA, "use_bidirectional_attention": True}, "attention to later tokens"),
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
        with pytest.raises(ModelError, match=r"a llama with biases.*blk\.0\.attn_q\.bias"):
            load_model(str(file))

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ({"attention.value_length": 8}, "its keys, values and rotated parts of heads differ in size"),
            ({"rope.dimension_count": 16}, "its keys, values and rotated parts of heads differ in size"),
            ({"attention.sliding_window_pattern": 4}, "its sliding windows are in other layers than usual"),
        ],
    )
    def test_sizes_that_transformers_would_not_read(self, sizes, message, folders, tmp_path):
        file = export_changed(folders["gemma3"], tmp_path, sizes=sizes)
        with pytest.raises(ModelError, match=message):
            load_config(str(file))

    @pytest.mark.parametrize("load", [load_model, load_config])
    def test_other_architectures(self, load, folders, tmp_path):
        file = export_changed(folders["llama"], tmp_path, architecture="phi3")
        message = "it is a phi3; GGUF files are read of gemma2, gemma3, llama, qwen2, qwen3"
        with pytest.raises(ModelError, match=message) as error:
            load(str(file))
        assert error.value.fix == "name the folder that the file was made from"

    def test_positions_scaled_in_a_way_that_is_not_read(self, folders, tmp_path):
        file = export_changed(folders["llama"], tmp_path, sizes={"rope.scaling.type": "yarn"})
        with pytest.raises(ModelError, match=r"scaled in a way that transformers does not read \(yarn\)"):
            load_model(str(file))


def export_changed(folder, tmp_path, *, omitted_tensor="", omitted_keys=(), bias="", sizes=None, architecture=""):
    """An export of the folder without a tensor or keys, with an additional bias, or with other sizes."""
    export_gguf(str(folder), tmp_path / "good.gguf", "f32")
    read = gguf.GGUFReader(tmp_path / "good.gguf")
    kind = read.get_field("general.architecture").contents()
    omitted_keys = {"general.architecture", *(f"{kind}.{key}" for key in (*omitted_keys, *(sizes or ())))}
    writer = gguf.GGUFWriter(tmp_path / "bad.gguf", architecture or kind)
    for key, field in read.fields.items():
        if not key.startswith("GGUF.") and key not in omitted_keys:
            type_, *inner = field.types
            writer.add_key_value(key, field.contents(), type_, inner[0] if inner else None)
    for key, value in (sizes or {}).items():
        add = {str: writer.add_string, int: writer.add_uint32, list: writer.add_array}[type(value)]
        add(f"{kind}.{key}", value)
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


@pytest.mark.slow_but("qwen2-tied-['embed_tokens']")
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
