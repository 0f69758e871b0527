"""A finished run's folder: it stops where training said, and its dtype and numbers are those of its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from penchant.config.run import load_config
from penchant.data.reading import read_groups
from penchant.data.tokenization import tokenize_groups
from penchant.engine.distributed import World
from penchant.evaluation.held_out import score
from penchant.models.loading import load_model, load_tokenizer
from penchant.models.lora import merge_adapter
from penchant.training.report import read_inputs, write_run_report
from penchant.training.run import train

END = "<|end|>"
TEMPLATE = "{% for m in messages %}{{ m.content }} " + END + " {% endfor %}"
SINGLE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def base(tiny_model, tmp_path):
    """A base model whose tokenizer has a token for the end of turns; its generation configuration ends with eos."""

    def make(dtype: torch.dtype = torch.float32) -> Path:
        folder = tmp_path / "base"
        tokenizer = load_tokenizer(str(tiny_model))
        tokenizer.add_special_tokens({"additional_special_tokens": [END]})
        model = load_model(str(tiny_model), dtype=dtype)
        model.resize_token_embeddings(len(tokenizer))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def chats(tiny_pairs, tmp_path) -> dict[str, object]:
    """The pairs as conversations, with the template's file."""
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    with (tmp_path / "chats.jsonl").open("w") as stream:
        for line in tiny_pairs.read_text().splitlines():
            row = json.loads(line)
            turns = {name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")}
            stream.write(json.dumps({"prompt": [{"role": "user", "content": row["prompt"]}], **turns}) + "\n")
    return {"train": str(tmp_path / "chats.jsonl"), "chat_template": str(tmp_path / "chat.jinja"), "held_out": None}


def ends(folder: Path) -> object:
    return hf.GenerationConfig.from_pretrained(folder).eos_token_id


def end_id(folder: Path) -> int:
    return load_tokenizer(str(folder)).convert_tokens_to_ids(END)


@pytest.mark.parametrize("name", ["dpo", "sft"])
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_chat_ends_with_the_templates_token(write_config, base, chats, tmp_path, lora, name):
    config = load_config(
        write_config(model=str(base()), data=chats, lora=lora, objective={"name": name}, training={"max_steps": 1})
    )
    folder = train(config)
    expected = [2, end_id(folder)]
    assert ends(folder) == expected
    assert load_model(str(folder)).generation_config.eos_token_id == expected
    if lora is not None:
        merge_adapter(str(folder), tmp_path / "merged")
        assert ends(tmp_path / "merged") == expected
        assert hf.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").generation_config.eos_token_id == expected


def test_plain_text_ends_with_eos(write_config, base):
    """Also where the tokenizer has a chat template: it was not used."""
    folder = base()
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    assert load_tokenizer(str(folder)).chat_template == TEMPLATE
    run = train(load_config(write_config(model=str(folder), training={"max_steps": 1}, data={"held_out": None})))
    assert ends(run) == 2


def test_borrowed_responses_that_are_cut_are_no_ends(write_config, base):
    """Responses to other prompts are cut at the length limit, and so end anywhere."""
    folder = base()
    groups = read_groups(load_config(write_config()).data.train).groups
    tokenized, _ = tokenize_groups(groups, load_tokenizer(str(folder)), max_length=128)
    data = {"held_out": None, "max_length": max(group.longest for group in tokenized)}
    sections = {"data": data, "training": {"max_steps": 1, "shuffle": False}}
    assert ends(train(load_config(write_config(model=str(folder), objective={"name": "kto"}, **sections)))) == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_evaluation_is_of_the_weights_that_were_saved(write_config, base, dtype):
    """evaluation.json holds what `penchant evaluate` says of the folder, also where saving rounded the weights."""
    torch_dtype = getattr(torch, dtype)
    config = load_config(write_config(model=str(base(torch_dtype)), training={"max_steps": 3, "learning_rate": 1e-2}))
    folder = train(config)
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch_dtype}
    report = write_run_report(folder).trained_report
    held_out = read_inputs(config).held_out
    scored = score(str(folder), held_out, SINGLE, reference=config.model)
    expected = sum(
        (group.log_probs[0] - group.reference_log_probs[0]) - (group.log_probs[1] - group.reference_log_probs[1])
        for group in scored
    ) / len(scored)
    assert report.to_json()["margin"]["value"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "lora", "expected"),
    [
        ({"dtype": "bfloat16"}, None, torch.float32),  # the dtype of the products is not that of the file
        ({"save_dtype": "bfloat16"}, None, torch.bfloat16),
        ({"dtype": "bfloat16"}, {"rank": 2}, torch.float32),
        ({"save_dtype": "float16"}, {"rank": 2}, torch.float16),
    ],
)
def test_the_dtype_on_disk(write_config, base, settings, lora, expected):
    config = load_config(
        write_config(model=str(base()), lora=lora, training={"max_steps": 1, **settings}, data={"held_out": None})
    )
    folder = train(config)
    (file,) = folder.glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(file).values()} == {expected}
    assert {tensor.dtype for tensor in _masters(folder)} == {torch.float32}


def _masters(folder: Path) -> list[torch.Tensor]:
    """The weights in the last checkpoint."""
    files = sorted((folder / "checkpoints").glob("step-*"))[-1].glob("*.safetensors")
    return [value for file in files for name, value in load_file(file).items() if name.startswith("model.")]
