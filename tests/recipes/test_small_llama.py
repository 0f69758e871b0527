"""A small Llama's folder is written completely or not at all."""

from __future__ import annotations

import pytest
from transformers import LlamaForCausalLM

from penchant.recipes.small_llama import Sizes, build_small_llama


def test_interrupted_writing_leaves_no_folder(tmp_path, monkeypatch):
    folder, sizes = tmp_path / "start", Sizes(300, 32, 1, 2, 64)

    def killed(model, folder):
        model.config.save_pretrained(folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            build_small_llama(folder, ["the old cat"], sizes, seed=0)
    assert not folder.exists()
    build_small_llama(folder, ["the old cat"], sizes, seed=0)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    assert list(tmp_path.iterdir()) == [folder]
