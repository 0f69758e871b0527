"""Objectives of the user's own, from a file and from an installed package; and the sum of several."""

from __future__ import annotations

import importlib.metadata
import json
import math
import re
from pathlib import Path

import pytest
import torch

from penchant.config import dump_config, load_config, parse_config
from penchant.config_objective import build_objective, describe_objective
from penchant.errors import ConfigError
from penchant.objectives import DPO, SFT, Part, WeightedSum
from penchant.training.run import train

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "new-method.md"


@pytest.fixture
def method_file(tmp_path: Path) -> Path:
    """The example of docs/new-method.md, as it stands there."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "r_dpo.py"
    file.write_text(code, encoding="utf-8")
    return file


class TestFromAFile:
    def test_the_documents_example_is_short(self, method_file):
        assert len(method_file.read_text().splitlines()) <= 30

    def test_the_documents_example_computes_its_formula(self, method_file, make_pair):
        method = build_objective({"name": "r_dpo", "file": str(method_file), "alpha": 0.5, "beta": 0.1})
        policy, reference, groups = make_pair(chosen=-10.0, rejected=-20.0, tokens=(9, 4))
        output = method.evaluate(policy, reference, groups, {})
        assert float(output.losses[0]) == pytest.approx(math.log1p(math.exp(-(0.1 * 10 - 0.5 * 5))))

    def test_it_trains_and_is_saved_with_its_file(self, method_file, tiny_model, tiny_pairs, write_config, tmp_path):
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
        assert load_config(folder / "config.yaml").method == config.method

    def test_unknown_class_names_those_there_are(self, method_file):
        with pytest.raises(ConfigError, match=r"name = 'rdpo' \(did you mean r_dpo\?\)"):
            build_objective({"name": "rdpo", "file": str(method_file)})

    @pytest.mark.parametrize(
        ("source", "found"),
        [
            ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
            ("def (", "SyntaxError"),
            ("raise RuntimeError('out of paper')", "RuntimeError: out of paper"),
        ],
    )
    def test_a_file_that_cannot_be_imported(self, tmp_path, source, found):
        file = tmp_path / "broken.py"
        file.write_text(source)
        with pytest.raises(ConfigError, match="cannot be imported") as error:
            build_objective({"name": "mine", "file": str(file)})
        assert found in str(error.value)
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
            monkeypatch.setattr("penchant.config_objective.entry_points", lambda group: [point])

        return offer

    def test_it_is_found_by_name(self, installed):
        installed("penchant.objectives.dpo:DPO")
        assert build_objective({"name": "theirs", "beta": 0.3}) == DPO(beta=0.3)

    def test_one_that_fails_to_import(self, installed):
        installed("no_such_package.module:Method")
        with pytest.raises(
            ConfigError, match=r"the plug-in theirs \(no_such_package.module:Method\) cannot be imported"
        ):
            build_objective({"name": "theirs"})

    def test_the_nearest_name_may_be_theirs(self, installed):
        installed("penchant.objectives.dpo:DPO")
        with pytest.raises(ConfigError, match="did you mean theirs"):
            build_objective({"name": "their"})


class TestWeightedSum:
    def test_parts_are_objectives_with_weights(self):
        built = build_objective(
            {"name": "weighted_sum", "parts": [{"name": "dpo", "beta": 0.3}, {"name": "sft", "weight": 0.2}]}
        )
        assert built == WeightedSum((Part(1.0, DPO(beta=0.3)), Part(0.2, SFT())))
        assert build_objective(describe_objective(built)) == built

    @pytest.mark.parametrize(
        ("values", "found"),
        [
            ({"parts": "dpo"}, "takes a list `parts`"),
            ({"parts": [], "beta": 1}, "takes a list `parts`"),
            ({"parts": []}, "at least one objective"),
            ({"parts": [{"name": "dpo", "weight": "much"}]}, "parts.0.weight is 'much'"),
            ({"parts": [{"name": "dpoo"}]}, "did you mean dpo"),
        ],
    )
    def test_bad_parts(self, values, found):
        with pytest.raises(ConfigError) as error:
            build_objective({"name": "weighted_sum", **values})
        assert found in str(error.value)


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
