"""The README.md of saved folders: valid metadata, the run's own numbers, and no path of this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from penchant.cli.main import run
from penchant.config.run import load_config
from penchant.models.loading import load_model, load_tokenizer
from penchant.training.model_source import describe_source
from penchant.training.report import write_run_report
from penchant.training.run import train

QUICK = {"training": {"max_steps": 1}, "evaluation": {"samples": 0}}


def card_of(folder: Path) -> ModelCard:
    """The card as huggingface_hub reads it."""
    return ModelCard.load(folder / "README.md")


def finished(file: Path) -> Path:
    folder = train(load_config(file))
    write_run_report(folder)
    return folder


@pytest.mark.slow_but("sections0", "sections1")
@pytest.mark.parametrize(
    ("sections", "library", "pipeline", "tags"),
    [
        ({}, "transformers", "text-generation", ["dpo"]),
        ({"lora": {"rank": 2}}, "peft", "text-generation", ["dpo", "lora"]),
        ({"objective": {"name": "sft"}}, "transformers", "text-generation", ["sft"]),
        (
            {"objective": {"name": "bradley_terry"}},
            "transformers",
            "text-classification",
            ["bradley_terry", "reward-model"],
        ),
        (
            {"objective": {"name": "bradley_terry"}, "lora": {"rank": 2}},
            "peft",
            "text-classification",
            ["bradley_terry", "lora", "reward-model"],
        ),
        (
            {"objective": {"name": "preference_head"}},
            "transformers",
            "text-generation",
            ["preference_head", "preference-head"],
        ),
    ],
)
def test_of_every_kind_of_run(write_config, tiny_model, tmp_path, sections, library, pipeline, tags):
    folder = finished(write_config(**QUICK, **sections))
    card = card_of(folder)
    assert card.data.library_name == library
    assert card.data.pipeline_tag == pipeline
    assert card.data.base_model == tiny_model.name
    assert card.data.tags == ["penchant", *tags]
    assert card.data.license is None
    assert "None is given here" in card.text
    assert str(tmp_path) not in card.content
    assert str(tiny_model.parent) not in card.content
    record = json.loads((folder / "run.json").read_text())
    assert record["data"] in card.text
    assert f"transformers {record['environment']['transformers']}" in card.text


def test_the_held_out_table_is_evaluation_json(write_config):
    folder = train(load_config(write_config(**QUICK)))
    assert "## Held-out" not in card_of(folder).text  # nothing measured yet
    write_run_report(folder)
    text = card_of(folder).text
    evaluation = json.loads((folder / "evaluation.json").read_text())
    for name in ("accuracy", "margin", "auc"):
        metrics = evaluation["before"][name], evaluation["after"][name]
        cells = [f"{metric['value']:.4f} [{metric['low']:.4f}, {metric['high']:.4f}]" for metric in metrics]
        assert f"| {name} | {cells[0]} | {cells[1]} |" in text


def test_what_made_it(write_config, tiny_model):
    sections = {"objective": {"name": "dpo", "beta": 0.25}, "lora": {"rank": 2, "targets": ["q_proj"]}}
    text = card_of(train(load_config(write_config(**{**QUICK, **sections})))).text
    for part in ("beta 0.25", "rank 2", "q_proj", "max_steps 1", "seed 0", f"| reference | {tiny_model.name} |"):
        assert part in text
    assert "epochs" not in text  # unused where max_steps is set
    assert "| weights on disk | float32 |" in text


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("license: apache-2.0", {"license": "apache-2.0"}),
        (
            "license: other\nlicense_name: gemma\nlicense_link: https://a.b/c",
            {"license": "other", "license_name": "gemma", "license_link": "https://a.b/c"},
        ),
        ("tags: [a]", {}),
        ("license: [unclosed", {}),
    ],
)
def test_the_bases_licence(write_config, tiny_model, tmp_path, metadata, expected):
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    (base / "README.md").write_text(f"---\n{metadata}\n---\n# Base\n")
    data = card_of(train(load_config(write_config(model=str(base), **QUICK)))).data.to_dict()
    assert {key: value for key, value in data.items() if key.startswith("license")} == expected


def test_the_dtype_of_rounded_weights(write_config, tiny_model, tmp_path):
    base = tmp_path / "half"
    load_model(str(tiny_model), dtype=torch.bfloat16).save_pretrained(base)
    load_tokenizer(str(tiny_model)).save_pretrained(base)
    text = card_of(finished(write_config(model=str(base), **QUICK))).text
    assert "| weights on disk | bfloat16 |" in text
    assert "Measured on the weights as saved, in bfloat16" in text


@pytest.mark.slow
def test_a_base_from_a_quantised_gguf_file(shared_data, write_config, tmp_path):
    import gguf

    from penchant.models.gguf.writing import export_gguf

    file = tmp_path / "tiny-q8.gguf"
    export_gguf(str(shared_data / "models" / "stories260K"), file, "q8_0")
    assert gguf.GGUFReader(file).tensors
    folder = train(load_config(write_config(model=str(file), data={"held_out": None}, **QUICK)))
    card = card_of(folder)
    assert card.data.base_model == "tiny-q8"
    assert "read from a GGUF file of type Q8_0; they carry its rounding" in card.text


class TestMerged:
    @pytest.mark.slow
    def test_of_a_run(self, write_config, tiny_model, tmp_path):
        folder = finished(write_config(lora={"rank": 2}, **QUICK))
        assert run(["merge", str(folder), str(tmp_path / "merged")]) == 0
        card = card_of(tmp_path / "merged")
        assert (card.data.library_name, card.data.base_model) == ("transformers", tiny_model.name)
        assert "before it was merged" in card.text
        assert "| accuracy |" in card.text

    def test_of_another_adapter(self, tiny_model, tmp_path):
        from peft import LoraConfig, get_peft_model

        base = load_model(str(tiny_model))
        get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).save_pretrained(
            tmp_path / "foreign"
        )
        load_tokenizer(str(tiny_model)).save_pretrained(tmp_path / "foreign")
        assert run(["merge", str(tmp_path / "foreign"), str(tmp_path / "merged"), "--save-dtype", "bfloat16"]) == 0
        card = card_of(tmp_path / "merged")
        assert card.data.base_model == tiny_model.name
        assert "the adapter foreign merged" in card.text
        assert "| weights on disk | bfloat16 |" in card.text


class TestSource:
    def test_a_folder_of_the_hubs_cache_is_its_id(self, tiny_model, tmp_path):
        folder = tmp_path / "models--someone--a-model" / "snapshots" / ("a" * 40)
        shutil.copytree(tiny_model, folder)
        source = describe_source(str(folder))
        assert (source.name, source.hub_name, source.local) == ("someone/a-model", "someone/a-model", False)

    def test_a_hub_id_is_itself(self):
        source = describe_source("someone/a-model")
        assert (source.name, source.hub_name, source.local) == ("someone/a-model", "someone/a-model", False)

    @pytest.mark.parametrize("name", ["with space", "naïve--model", "a..b"])
    def test_other_folders_in_the_letters_that_the_hub_allows(self, tiny_model, tmp_path, name):
        from huggingface_hub.utils import validate_repo_id

        source: Any = describe_source(str(shutil.copytree(tiny_model, tmp_path / name)))
        assert source.name == name
        validate_repo_id(source.hub_name)
