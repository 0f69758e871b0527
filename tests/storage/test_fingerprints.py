"""Hashes that folders and caches already hold must stay what they are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from penchant.data.groups import PreferenceGroup
from penchant.data.tokenized import TokenizedGroup
from penchant.errors import DataError
from penchant.models.loading import load_model, load_tokenizer
from penchant.storage.fingerprints import (
    engine_fingerprint,
    file_fingerprint,
    hash_blocks,
    hash_bytes,
    hash_file,
    hash_parts,
    hash_text,
    model_fingerprint,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from penchant.training.inputs import _fingerprint


def test_texts_and_bytes():
    assert hash_text("Größe", 8) == "18dd5f1b141d0975"
    assert hash_text("Größe") == hash_bytes("Größe".encode()) == "ba94ef9b04a20d4d71328310afe38a62"
    assert hash_parts(["Grö".encode(), b"", "ße".encode()]).hex() == hash_text("Größe")


def test_files(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(range(256)) * 40)
    assert hash_file(file)[:32] == "e96760a87768717bcebcfd25ddc7d46b"
    assert hash_file(file, "blake2b")[:32] == "42ed88485085bf7bd02cb7316192a407"
    assert file_fingerprint(str(file)) == weights_fingerprint(str(file)) == hash_file(file)[:16]
    assert hash_blocks(file, blocks=4, block=64)[:32] == "95155d085129cc812ba549e685932580"
    listing = f"model.safetensors {file_fingerprint(str(file))}\n"
    assert weights_fingerprint(str(tmp_path)) == hashlib.sha256(listing.encode()).hexdigest()[:16]
    with pytest.raises(DataError, match="it cannot be read: No such file"):
        file_fingerprint(str(tmp_path / "absent"))


def test_a_models_hash_is_of_its_configuration_and_weights(tiny_model):
    model = load_model(str(tiny_model))
    volatile = {"_name_or_path", "transformers_version", "_attn_implementation", "use_cache", "dtype"}
    config = {key: value for key, value in model.config.to_dict().items() if key not in volatile}
    content = json.dumps(config, sort_keys=True, default=str).encode()
    for name, tensor in sorted(model.state_dict().items()):
        assert tensor.dtype == torch.float32
        content += f"{name} torch.float32 {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes()
    assert model_fingerprint(model) == hashlib.blake2b(content, digest_size=16).hexdigest()


def test_a_tokenizers_hash_is_of_its_files(tiny_model, tmp_path):
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.save_pretrained(tmp_path)
    contents = {file.name: file.read_bytes() for file in sorted(tmp_path.iterdir())}
    content = b"".join(f"{name} {len(part)} ".encode() + part for name, part in contents.items())
    assert tokenizer_fingerprint(tokenizer) == hashlib.blake2b(content, digest_size=16).hexdigest()


def test_a_data_sets_hash_is_of_its_groups_and_tokens():
    group = PreferenceGroup("a", ("b",), preferred=0, id="7", weight=2.0)
    tokenized = TokenizedGroup(np.array([5]), (np.array([6, 1]),), group, loss_masks=(np.array([False, True]),))
    content = repr(("7", group.pairs, None, None, 2.0, group.source)).encode()
    content += b"".join(n.to_bytes(8, "little") for n in (1, 5, 2, 6, 1)) + b"learnt \x00\x01"
    assert _fingerprint([tokenized]) == hashlib.blake2b(content, digest_size=16).hexdigest()


def test_the_engines_hash_is_of_all_that_computes(monkeypatch):
    """Its kernels and the models' own parts too."""
    names: list[str] = []
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda file: names.append(file.name) or read(file))
    engine_fingerprint.cache_clear()
    assert len(engine_fingerprint()) == 16
    assert {"tree.py", "attention.py", "linear_log_probs.py", "preference_head.py"} <= set(names)
