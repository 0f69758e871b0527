"""A run goes on from what it was started from: models, files and functions changed in place are refused by name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from penchant.config.run import load_config
from penchant.errors import ConfigError
from penchant.training import input_hashes as hashing
from penchant.training.folder import check, claim_folder
from penchant.training.input_hashes import changed_inputs, input_hashes, touched_inputs

REWARD = "def score(prompt, responses):\n    return [r.count('cat') + 0.0 for r in responses]\n"
TEMPLATE = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


def touch(file: Path) -> None:
    """Another time of change, the same bytes."""
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def alter_weights(folder: Path, name: str = "model.safetensors") -> None:
    """One number of the weights, in place, with size and time of change as they were."""
    file = folder / name
    status = file.stat()
    tensors = load_file(file)
    tensor_name = sorted(tensors)[0]
    tensors[tensor_name].view(-1)[0] += 1
    save_file(tensors, file, {"format": "pt"})
    assert file.stat().st_size == status.st_size
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture
def model(tiny_model, tmp_path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(tiny_model, tmp_path / "start"))


@pytest.fixture
def adapter(model, tmp_path) -> Path:
    from peft import LoraConfig, get_peft_model

    from penchant.models.loading import load_model, load_tokenizer

    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(load_model(str(model)), lora).save_pretrained(tmp_path / "adapter")
    load_tokenizer(str(model)).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def start_run(write_config, notices):
    """Takes the folder of a run with these settings; returns a function that resumes it and returns the messages."""

    def start(**sections: object):
        config = load_config(write_config(**sections))
        claim_folder(config, "data", [], input_hashes(config))

        def resume() -> list[str]:
            assert check(config, "data", resume=True)
            return notices.messages

        return resume

    return start


def assert_refused(resume, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as error:
        resume()
    assert "is not what this run was started with" in str(error.value)
    assert "output=DIR" in error.value.fix


class TestResume:
    def test_what_is_as_it_was_goes_on(self, start_run, model):
        assert start_run(model=str(model))() == []

    def test_the_starting_model(self, start_run, model):
        resume = start_run(model=str(model))
        alter_weights(model)
        assert_refused(resume, r"model \(.*start: model\.safetensors\)")

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
    def test_a_file_of_the_starting_model(self, start_run, model, name):
        resume = start_run(model=str(model))
        (model / name).write_text(json.dumps(json.loads((model / name).read_text()) | {"new": 1}))
        assert_refused(resume, rf"model \(.*start: {name}\)")

    def test_a_file_that_came(self, start_run, model):
        resume = start_run(model=str(model))
        (model / "chat_template.jinja").write_text(TEMPLATE)
        assert_refused(resume, r"model \(.*: chat_template\.jinja\)")

    @pytest.mark.parametrize("key", ["reference", "references"])
    def test_a_reference(self, start_run, model, tiny_model, key):
        value = str(model) if key == "reference" else [str(tiny_model), str(model)]
        resume = start_run(**{key: value})
        alter_weights(model)
        assert_refused(resume, r"^.*reference(s\.1)? \(.*start: model\.safetensors\)")

    def test_an_adapter(self, start_run, adapter):
        resume = start_run(model=str(adapter))
        alter_weights(adapter, "adapter_model.safetensors")
        assert_refused(resume, r"model \(.*adapter: adapter_model\.safetensors\)")

    def test_an_adapters_base(self, start_run, adapter, model):
        resume = start_run(model=str(adapter))
        alter_weights(model)
        assert_refused(resume, rf"model \(.*adapter: base {model}: model\.safetensors\)")

    def test_a_reward_model(self, start_run, model):
        resume = start_run(reward={"model": str(model)}, objective={"name": "rloo"}, candidates="sampled")
        alter_weights(model)
        assert_refused(resume, r"reward\.model \(.*start: model\.safetensors\)")

    @pytest.mark.parametrize("as_module", [False, True])
    def test_a_reward_function(self, start_run, tmp_path, monkeypatch, as_module):
        file = tmp_path / "my_reward_file.py"
        file.write_text(REWARD)
        monkeypatch.syspath_prepend(tmp_path)
        name = "my_reward_file:score" if as_module else f"{file}:score"
        resume = start_run(reward={"function": name}, objective={"name": "rloo"}, candidates="sampled")
        file.write_text(REWARD.replace("cat", "dog"))
        assert_refused(resume, r"reward\.function \(.*my_reward_file")

    def test_a_chat_template(self, start_run, tmp_path):
        file = tmp_path / "chat.jinja"
        file.write_text(TEMPLATE)
        resume = start_run(data={"chat_template": str(file)})
        file.write_text(TEMPLATE + " ")
        assert_refused(resume, r"data\.chat_template \(.*chat\.jinja\)")

    def test_a_part_of_the_objective(self, start_run, tmp_path):
        source = (Path(__file__).parents[2] / "src/penchant/objectives/dpo.py").read_text()
        file = tmp_path / "mine.py"
        file.write_text(source.replace('ClassVar[str] = "dpo"', 'ClassVar[str] = "mine"'))
        parts = [{"name": "mine", "file": str(file), "weight": 1}, {"name": "sft", "weight": 0.1}]
        resume = start_run(objective={"name": "weighted_sum", "parts": parts})
        file.write_text(file.read_text() + "\n")
        assert_refused(resume, r"objective\.file \(.*mine\.py\)")

    def test_another_time_of_change_is_no_change(self, start_run, model):
        resume = start_run(model=str(model))
        for file in model.iterdir():
            touch(file)
        assert resume() == []

    def test_a_run_of_an_older_penchant_goes_on_with_a_notice(self, start_run, model, write_config):
        resume = start_run(model=str(model))
        file = Path(load_config(write_config()).output) / "run.json"
        record = json.loads(file.read_text())
        del record["inputs"]
        file.write_text(json.dumps(record))
        alter_weights(model)
        (line,) = resume()
        assert "older Penchant" in line

    def test_keys_that_came_since_have_their_defaults(self, start_run, write_config):
        """A run whose config.yaml lacks a key of today, as an older Penchant wrote it."""
        import hashlib

        import yaml

        resume = start_run()
        folder = Path(load_config(write_config()).output)
        values = yaml.safe_load((folder / "config.yaml").read_text())
        del values["training"]["save_dtype"]
        (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        text = yaml.safe_dump({**values, "output": ""}, sort_keys=False, allow_unicode=True)
        record = json.loads((folder / "run.json").read_text())
        record["config"] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        (folder / "run.json").write_text(json.dumps(record))
        assert resume() == []
        values["training"]["learning_rate"] = 0.5  # by hand: no longer what the record says
        (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        with pytest.raises(ConfigError, match="the configuration is not what this run was started with"):
            resume()


class TestLargeFiles:
    """Sampled: a few blocks, the size; the time of change only as a hint."""

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch):
        monkeypatch.setattr(hashing, "WHOLE_FILE_BYTES", 1000)
        monkeypatch.setattr(hashing, "BLOCKS", 2)
        monkeypatch.setattr(hashing, "BLOCK", 64)

    def hashes(self, write_config, model: Path):
        return input_hashes(load_config(write_config(model=str(model))))

    def test_training_changes_them(self, write_config, model):
        recorded = self.hashes(write_config, model)
        assert recorded["model"]["files"]["model.safetensors"]["hash"].startswith("sampled-")
        tensors = {name: tensor + 1e-3 for name, tensor in load_file(model / "model.safetensors").items()}
        save_file(tensors, model / "model.safetensors", {"format": "pt"})
        assert changed_inputs(recorded, self.hashes(write_config, model)) == {"model": ["model.safetensors"]}

    def test_another_size_changes_them(self, write_config, model):
        recorded = self.hashes(write_config, model)
        with (model / "model.safetensors").open("ab") as stream:
            stream.write(b"\0")
        assert changed_inputs(recorded, self.hashes(write_config, model)) == {"model": ["model.safetensors"]}

    def test_the_ends_are_read(self, write_config, model):
        recorded = self.hashes(write_config, model)
        file = model / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        assert changed_inputs(recorded, self.hashes(write_config, model)) == {"model": ["model.safetensors"]}

    def test_the_time_of_change_is_a_hint(self, write_config, model):
        recorded = self.hashes(write_config, model)
        assert touched_inputs(recorded, self.hashes(write_config, model)) == []
        touch(model / "model.safetensors")
        current = self.hashes(write_config, model)
        assert changed_inputs(recorded, current) == {}
        assert touched_inputs(recorded, current) == [f"model ({model}): model.safetensors"]


def test_a_model_on_the_hub_is_its_commit_in_the_cache(write_config, tiny_model, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    config = load_config(write_config(model="someone/model"))
    assert input_hashes(config)["model"]["files"] == {}

    def cached(commit: str) -> None:
        repository = tmp_path / "models--someone--model"
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        shutil.copytree(tiny_model, repository / "snapshots" / commit)

    cached("a" * 40)
    recorded = input_hashes(config)
    assert recorded["model"]["files"] == {"commit": {"hash": "a" * 40}}
    cached("b" * 40)
    assert changed_inputs(recorded, input_hashes(config)) == {"model": ["commit"]}


def test_a_whole_run_refuses_to_resume_from_another_model(write_config, model):
    from penchant.training.run import train

    sections = {"model": str(model), "training": {"max_steps": 2}, "data": {"held_out": None}}
    config = load_config(write_config(**sections))
    folder = train(config)
    weights = load_file(folder / "model.safetensors")
    train(config, resume=True)
    assert all(torch.equal(weights[name], tensor) for name, tensor in load_file(folder / "model.safetensors").items())
    alter_weights(model)
    with pytest.raises(ConfigError, match=r"model \(.*start: model\.safetensors\) is not what this run was started"):
        train(config, resume=True)
