"""Objectives of the user's own, from a file and from an installed package; and the sum of several."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from penchant.cli.main import run
from penchant.config.objective import build_objective, describe_objective, without_code
from penchant.config.run import dump_config, load_config, parse_config
from penchant.errors import ConfigError
from penchant.objectives import DPO, SFT, Part, WeightedSum
from penchant.training.report import write_run_report
from penchant.training.run import train

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "new-method.md"


@pytest.fixture
def method_file(tmp_path: Path) -> Path:
    """The example of docs/new-method.md, as it stands there."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "r_dpo.py"
    file.write_text(code, encoding="utf-8")
    return file


class TestFromAFile:
    def test_example_of_the_docs_is_short(self, method_file):
        assert len(method_file.read_text().splitlines()) <= 30

    def test_example_of_the_docs_computes_its_formula(self, method_file, make_pair):
        method = build_objective({"name": "r_dpo", "file": str(method_file), "alpha": 0.5, "beta": 0.1})
        policy, reference, groups = make_pair(chosen=-10.0, rejected=-20.0, tokens=(9, 4))
        output = method.evaluate(policy, reference, groups, {})
        assert float(output.losses[0]) == pytest.approx(math.log1p(math.exp(-(0.1 * 10 - 0.5 * 5))))

    def test_user_objective_trains_and_is_saved_with_its_file(
        self, method_file, tiny_model, tiny_pairs, write_config, tmp_path
    ):
        config = load_config(
            write_config(
                objective={"name": "r_dpo", "file": str(method_file)}, training={"max_steps": 3, "batch_size": 8}
            )
        )
        folder = train(config)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        assert len(losses) == 3
        assert all(math.isfinite(loss) for loss in losses)
        assert load_config(folder / "config.yaml").built_objective == config.built_objective

    def test_a_run_builds_it_once(self, method_file, write_config, monkeypatch):
        calls = []
        monkeypatch.setattr(
            "penchant.config.run.build_objective",
            lambda values: calls.append(values) or build_objective(values),
        )
        config = load_config(
            write_config(objective={"name": "r_dpo", "file": str(method_file)}, training={"max_steps": 1})
        )
        train(config)
        assert len(calls) == 1

    def test_a_stand_in_is_not_kept_for_training(self, method_file, write_config):
        file = write_config(objective={"name": "r_dpo", "file": str(method_file)})
        with without_code():
            config = load_config(file)
            assert config.built_objective == DPO()
        assert config.built_objective.name == "r_dpo"
        sft_config = config.model_copy(update={"objective": {"name": "sft"}})
        assert sft_config.built_objective == SFT()

    def test_run_with_a_user_objective_reports_and_resumes(self, method_file, write_config):
        """As a part of a sum, beside a sum with another of them: saved, reported, resumed."""
        parts = [{"name": "r_dpo", "file": str(method_file), "alpha": 0.5}, {"name": "sft", "weight": 0.2}]
        deeper = {"name": "weighted_sum", "parts": [{"name": "r_dpo", "file": str(method_file), "weight": 0.1}]}
        objective = {"name": "weighted_sum", "parts": [*parts, deeper]}
        config = load_config(write_config(objective=objective, training={"max_steps": 3}, checkpoints={"every": 1}))
        folder = train(config)
        assert write_run_report(folder).steps == 3
        saved = load_config(folder / "config.yaml")
        assert saved.built_objective == config.built_objective
        values = saved.objective["parts"]
        assert [values[0]["file"], values[2]["parts"][0]["file"]] == [str(method_file)] * 2
        assert "file" not in values[1]
        log = (folder / "metrics.jsonl").read_bytes()
        shutil.rmtree(folder / "checkpoints" / "step-00000003")
        assert run(["train", str(folder), "--resume"]) == 0
        assert (folder / "metrics.jsonl").read_bytes() == log

    @pytest.mark.parametrize("in_a_sum", [False, True])
    def test_a_run_is_not_resumed_with_another_formula(self, method_file, write_config, in_a_sum, capsys):
        method = {"name": "r_dpo", "file": str(method_file)}
        objective = {"name": "weighted_sum", "parts": [{"name": "sft"}, method]} if in_a_sum else method
        folder = train(load_config(write_config(objective=objective, training={"max_steps": 2})))
        log = (folder / "metrics.jsonl").read_bytes()
        text = method_file.read_text()
        assert text.count("self.alpha * ") == 1
        method_file.write_text(text.replace("self.alpha * ", "self.alpha / "))
        assert run(["train", str(folder), "--resume"]) == 2
        message = capsys.readouterr().err
        assert f"{folder}: objective.file ({method_file}) is not what this run was started with" in message
        assert "put it back as it was to resume" in message
        assert (folder / "metrics.jsonl").read_bytes() == log
        method_file.write_text(text)
        assert train(load_config(folder / "config.yaml"), resume=True) == folder

    def test_run_without_recorded_method_files_resumes(self, method_file, write_config):
        objective = {"name": "r_dpo", "file": str(method_file)}
        folder = train(load_config(write_config(objective=objective, training={"max_steps": 2})))
        record = json.loads((folder / "run.json").read_text())
        (stamp,) = record.pop("inputs")["objective.file"]["files"].values()
        assert re.fullmatch("[0-9a-f]{32}", stamp["hash"])
        (folder / "run.json").write_text(json.dumps(record))
        assert train(load_config(folder / "config.yaml"), resume=True) == folder

    def test_an_edit_within_the_same_second_is_read(self, method_file, monkeypatch):
        """Python's own import would find the file of the same length compiled, and go on with the number before."""
        monkeypatch.setattr("sys.dont_write_bytecode", False)
        text = method_file.read_text()
        assert "alpha: float = 0.01" in text
        for alpha in (0.03, 0.04, 0.05):
            method_file.write_text(text.replace("alpha: float = 0.01", f"alpha: float = {alpha}"))
            assert build_objective({"name": "r_dpo", "file": str(method_file)}).alpha == alpha
        assert not (method_file.parent / "__pycache__").exists()

    def test_module_has_its_path_and_annotations(self, tmp_path):
        """It may read a file beside it, and its annotations are evaluated in its own module."""
        file = tmp_path / "mine.py"
        file.write_text(
            "from dataclasses import dataclass, fields\n"
            "from penchant.objectives import DPO\n"
            "@dataclass(frozen=True)\nclass Mine(DPO):\n    name = 'mine'\n    size: int = len(open(__file__).read())\n"
        )
        method = build_objective({"name": "mine", "file": str(file)})
        assert method.size == len(file.read_text())
        assert {field.name: field.type for field in dataclasses.fields(method)}["size"] is int

    def test_a_file_of_another_kind(self, tmp_path):
        file = tmp_path / "method.txt"
        file.write_text("x = 1")
        with pytest.raises(ConfigError, match="this is no Python file") as error:
            build_objective({"name": "mine", "file": str(file)})
        assert error.value.where == str(file)

    def test_error_for_an_unknown_class_lists_the_classes(self, method_file):
        with pytest.raises(ConfigError, match=r"name = 'rdpo' \(did you mean r_dpo\?\)"):
            build_objective({"name": "rdpo", "file": str(method_file)})

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
            ("def (", "SyntaxError"),
            ("raise RuntimeError('out of paper')", "RuntimeError: out of paper"),
        ],
    )
    def test_a_file_that_cannot_be_imported(self, tmp_path, source, message):
        file = tmp_path / "broken.py"
        file.write_text(source)
        with pytest.raises(ConfigError, match="cannot be imported") as error:
            build_objective({"name": "mine", "file": str(file)})
        assert message in str(error.value)
        assert "broken.py" in str(error.value)

    def test_a_class_that_lacks_a_member(self, tmp_path):
        file = tmp_path / "short.py"
        file.write_text("from dataclasses import dataclass\n@dataclass(frozen=True)\nclass A:\n    name = 'mine'\n")
        with pytest.raises(ConfigError, match="lacks needs, coupled, initial_state, evaluate"):
            build_objective({"name": "mine", "file": str(file)})

    def test_no_such_file(self):
        with pytest.raises(ConfigError, match="no such file"):
            build_objective({"name": "mine", "file": "nowhere.py"})


class TestFromAPackage:
    @pytest.fixture
    def installed(self, monkeypatch):
        """Offer an entry point, as an installed package does."""

        def offer(value: str) -> None:
            point = importlib.metadata.EntryPoint("theirs", value, "penchant.objectives")
            monkeypatch.setattr("penchant.config.objective.entry_points", lambda group: [point])

        return offer

    def test_plugin_is_loaded_by_name(self, installed):
        installed("penchant.objectives.dpo:DPO")
        assert build_objective({"name": "theirs", "beta": 0.3}) == DPO(beta=0.3)

    def test_a_saved_configuration_keeps_the_packages_name(self, installed):
        """The class's own name may differ from the entry point's."""
        installed("penchant.objectives.dpo:DPO")
        for objective in ({"name": "theirs"}, {"name": "weighted_sum", "parts": [{"name": "theirs"}]}):
            values = {"model": "m", "data": "d", "output": "o", "objective": objective}
            saved = yaml.safe_load(dump_config(parse_config(values, "here")))["objective"]
            assert saved.get("parts", [saved])[0]["name"] == "theirs"

    def test_plugin_that_fails_to_import(self, installed):
        installed("no_such_package.module:Method")
        with pytest.raises(
            ConfigError, match=r"the plug-in theirs \(no_such_package.module:Method\) cannot be imported"
        ):
            build_objective({"name": "theirs"})

    def test_suggested_name_may_be_a_plugin(self, installed):
        installed("penchant.objectives.dpo:DPO")
        with pytest.raises(ConfigError, match="did you mean theirs"):
            build_objective({"name": "their"})


class TestWeightedSum:
    def test_parts_are_objectives_with_weights(self):
        objective = build_objective(
            {"name": "weighted_sum", "parts": [{"name": "dpo", "beta": 0.3}, {"name": "sft", "weight": 0.2}]}
        )
        assert objective == WeightedSum((Part(1.0, DPO(beta=0.3)), Part(0.2, SFT())))
        assert build_objective(describe_objective(objective)) == objective

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"parts": "dpo"}, "takes a list `parts`"),
            ({"parts": [], "beta": 1}, "takes a list `parts`"),
            ({"parts": []}, "at least one objective"),
            ({"parts": [{"name": "dpo", "weight": "much"}]}, "parts.0.weight is 'much'"),
            ({"parts": [{"name": "dpoo"}]}, "did you mean dpo"),
        ],
    )
    def test_bad_parts(self, values, message):
        with pytest.raises(ConfigError) as error:
            build_objective({"name": "weighted_sum", **values})
        assert message in str(error.value)


@pytest.fixture
def make_pair():
    """One pair's log-probs against a reference of zeros."""
    from penchant.objectives import Groups

    def make(chosen: float, rejected: float, tokens: tuple[int, int]):
        groups = Groups(
            mask=torch.ones(1, 2, dtype=torch.bool),
            tokens=torch.tensor([tokens]),
            better=torch.tensor([[[False, True], [False, False]]]),
            scores=torch.zeros(1, 2),
            scored=torch.zeros(1, 2, dtype=torch.bool),
            labels=torch.zeros(1, 2, dtype=torch.int64),
            weights=torch.ones(1),
        )
        return torch.tensor([[chosen, rejected]]), torch.zeros(1, 1, 2), groups

    return make


def test_a_saved_configuration_keeps_the_file(method_file):
    values = {"model": "m", "data": "d", "output": "o", "objective": {"name": "r_dpo", "file": str(method_file)}}
    assert f"file: {method_file}" in dump_config(parse_config(values, "here"))
