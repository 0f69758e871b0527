"""A comparison taken up again after something it was measured by has changed; and whom the judge compares with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from transformers import AutoModelForCausalLM

from penchant.comparison import run as running
from penchant.comparison.config import load_bench
from penchant.comparison.measure import Measurement
from penchant.comparison.run import compare
from penchant.comparison.write import write_comparison
from penchant.errors import ConfigError
from penchant.evaluation.judges import EndpointJudge, Verdict

CATS = "def score(prompt, responses):\n    return [r.count('cat') + 0.0 for r in responses]\n"
LENGTHS = "def score(prompt, responses):\n    return [len(r) + 0.0 for r in responses]\n"


def run(file: Path, *overrides: str):
    return compare(load_bench(file, overrides), str(file))


def cell_of(comparison, method: str, seed: int = 0):
    return next(c for c in comparison.cells if c.method == method and c.seed == seed)


@pytest.fixture
def judged(bench, tmp_path):
    """Two methods, judged by length against the baseline."""
    (tmp_path / "judge.py").write_text(LENGTHS)

    def write(**keys: object) -> Path:
        measure = {
            "samples": 8,
            "max_new_tokens": 8,
            "judge": {"function": f"{tmp_path / 'judge.py'}:score"},
            "against": "baseline",
        }
        values = {"methods": ["dpo", "ipo", "simpo"], "seeds": [0], "measure": measure, **keys}
        return bench(**values)

    return write


def by_length(ours, theirs) -> dict[str, float]:
    our_samples, their_samples = ours.samples, theirs.samples
    lengths = {i: (len(our_samples[i]), len(their_samples[i])) for i in our_samples}
    return {f"sample {i}": 1.0 if a > b else 0.5 if a == b else 0.0 for i, (a, b) in lengths.items()}


@pytest.fixture
def diverse(monkeypatch):
    """Samples that differ from method to method, as a few steps on a tiny model do not make them."""
    draw = Measurement._draw

    def draw_diverse(self, policy, seed):
        groups = draw(self, policy, seed)
        name = Path(policy.model.config._name_or_path).name
        shift = len(name) if "seed" in name else 0
        from dataclasses import replace

        return [
            replace(item, group=replace(item.group, candidates=("x" * ((i * 7 + shift * 3) % 11 + 1),)))
            for i, item in enumerate(groups)
        ]

    monkeypatch.setattr(Measurement, "_draw", draw_diverse)


class TestRivals:
    @pytest.mark.slow
    def test_no_win_rate_where_the_baselines_cell_failed(self, judged, monkeypatch, failing_cell):
        failing_cell("dpo-n36-seed0")
        comparison = run(judged())
        assert not any("win_rate" in cell.metrics for cell in comparison.cells)
        assert "no win rates at 36 groups, seed 0: the baseline's cell failed" in comparison.notices
        monkeypatch.undo()
        mended = run(judged())
        for method in ("ipo", "simpo"):
            expected = by_length(cell_of(mended, method), cell_of(mended, "dpo"))
            assert cell_of(mended, method).values["win_rate"] == expected
        assert not any("no win rates" in notice for notice in mended.notices)

    @pytest.mark.slow
    def test_another_baseline_is_another_rival(self, judged, monkeypatch, diverse):
        dpo_comparison = run(judged())
        assert cell_of(dpo_comparison, "simpo").values["win_rate"] == by_length(
            cell_of(dpo_comparison, "simpo"), cell_of(dpo_comparison, "dpo")
        )
        monkeypatch.setattr(running, "train", lambda *a, **k: pytest.fail("trained again"))
        monkeypatch.setattr(Measurement, "measure", lambda *a, **k: pytest.fail("measured again"))
        ipo_comparison = run(judged(baseline="ipo"))
        assert "win_rate" not in cell_of(ipo_comparison, "ipo").metrics
        for method in ("dpo", "simpo"):
            expected = by_length(cell_of(ipo_comparison, method), cell_of(ipo_comparison, "ipo"))
            assert cell_of(ipo_comparison, method).values["win_rate"] == expected
        record = json.loads((Path(cell_of(ipo_comparison, "dpo").folder) / "measured.json").read_text())
        assert record["asked"]["rival"] == "ipo-n36-seed0"
        calls = []
        monkeypatch.setattr(Measurement, "_compare", lambda *a: calls.append(1))
        run(judged(baseline="ipo"))
        assert not calls

    @pytest.mark.slow
    def test_other_variants_of_the_baseline_meet_its_first(self, judged):
        grid = {"label": "ipo", "objective": {"name": "ipo"}, "grid": {"objective.beta": [0.1, 1.0]}}
        comparison = run(judged(methods=[grid], baseline="ipo"))
        first_cell, second_cell = (cell for cell in comparison.cells if cell.method == "ipo")
        assert "win_rate" not in first_cell.metrics
        assert second_cell.values["win_rate"] == by_length(second_cell, first_cell)
        assert list(comparison.judge) == ["ipo, beta 1.0, n 36, seed 0"]


class TestAnotherReward:
    @pytest.mark.slow
    def test_is_measured_again_from_the_weights_that_were_kept(self, bench, tmp_path, monkeypatch, notices):
        first_comparison = run(bench(seeds=[0]))
        (tmp_path / "rewards.py").write_text(LENGTHS)
        monkeypatch.setattr(running, "train", lambda *a, **k: pytest.fail("trained again"))
        second_comparison = run(tmp_path / "bench.yaml")
        for cell in second_comparison.cells:
            assert cell.values["reward"] == {f"sample {i}": float(len(text)) for i, text in cell.samples.items()}
        assert [cell.values["words"] for cell in second_comparison.cells] == [
            cell.values["words"] for cell in first_comparison.cells
        ]
        messages = [line for line in notices.messages if "is measured again: it was with another reward" in line]
        assert len(messages) == len(second_comparison.cells)

    @pytest.mark.slow
    def test_is_refused_where_they_were_not(self, bench, tmp_path, monkeypatch):
        run(bench(seeds=[0], keep_weights=False))
        (tmp_path / "rewards.py").write_text(LENGTHS)
        monkeypatch.setattr(running, "train", lambda *a, **k: pytest.fail("trained again"))
        with pytest.raises(ConfigError, match=r"3 cell\(s\) were measured with another reward .* were not kept"):
            run(tmp_path / "bench.yaml")
        (tmp_path / "rewards.py").write_text(CATS)
        assert len(run(tmp_path / "bench.yaml").cells) == 4

    @pytest.mark.slow
    def test_another_number_of_samples_too(self, bench, tmp_path):
        run(bench(seeds=[0], methods=["dpo"]))
        second = run(tmp_path / "bench.yaml", "measure.samples=6")
        assert all(len(cell.samples) == 6 for cell in second.cells)


@pytest.fixture
def start(tmp_path, tiny_model) -> Path:
    """A copy of the tiny model that a test may change."""
    return Path(shutil.copytree(tiny_model, tmp_path / "start"))


def other_weights(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[5] += 0.01
    model.save_pretrained(folder)


class TestAnotherOrigin:
    @pytest.mark.slow
    def test_another_start_under_the_same_path_is_refused(self, bench, start):
        base = yaml.safe_load(bench().read_text())["base"] | {"model": str(start)}
        whole = shutil.copytree(start, start.with_name("whole"))
        comparison = run(bench(seeds=[0], methods=["dpo"], base=base))
        other_weights(start)
        for changes in ({}, {"methods": ["dpo", "ipo"]}, {"seeds": [0, 1]}):
            with pytest.raises(ConfigError, match="begun with another model under the same path") as error:
                run(bench(**{"seeds": [0], "methods": ["dpo"], "base": base, **changes}))
            assert str(start) in str(error.value)
            assert "name a new folder: output=DIR" in str(error.value)
        shutil.rmtree(start)
        shutil.copytree(whole, start)
        (start / "eval.json").write_text("{}")
        assert run(bench(seeds=[0], methods=["dpo"], base=base)).cells == comparison.cells

    @pytest.mark.slow_but("chat_template.jinja")
    @pytest.mark.parametrize(
        ("name", "text"), [("tokenizer_config.json", None), ("chat_template.jinja", "{{ messages }}")]
    )
    def test_so_is_another_tokenizer(self, bench, start, name, text):
        base = yaml.safe_load(bench().read_text())["base"] | {"model": str(start)}
        run(bench(seeds=[0], methods=["dpo"], base=base))
        (start / name).write_text(text or (start / name).read_text() + " ")
        with pytest.raises(ConfigError, match="begun with another model"):
            run(bench(seeds=[0], methods=["dpo"], base=base))

    @pytest.mark.slow
    def test_a_reference_of_a_methods_own(self, bench, start, tmp_path):
        method = {"label": "far", "objective": {"name": "dpo"}, "set": {"reference": str(start)}}
        run(bench(seeds=[0], methods=["dpo", method]))
        other_weights(start)
        with pytest.raises(ConfigError, match="far-n36-seed0 was trained with another reference under") as error:
            run(bench(seeds=[0], methods=["dpo", method]))
        assert "delete that cell's folder" in str(error.value)
        shutil.rmtree(tmp_path / "bench" / "cells" / "far-n36-seed0")
        assert [cell.method for cell in run(bench(seeds=[0], methods=["dpo", method])).cells] == ["start", "dpo", "far"]

    @pytest.mark.slow
    def test_a_training_reward_of_a_methods_own(self, bench, tmp_path, failing_cell, monkeypatch):
        (tmp_path / "own.py").write_text(CATS)
        reward = {"function": f"{tmp_path / 'own.py'}:score"}
        method = {"label": "own", "objective": {"name": "ddo_rm"}, "set": {"reward": reward}}
        failing_cell("own")
        run(bench(seeds=[0], methods=["dpo", method]))
        (tmp_path / "own.py").write_text(LENGTHS)
        monkeypatch.undo()
        assert not any(cell.failed for cell in run(bench(seeds=[0], methods=["dpo", method])).cells)
        (tmp_path / "own.py").write_text(CATS)
        with pytest.raises(ConfigError, match=r"own-n36-seed0 was trained with another reward\.function"):
            run(bench(seeds=[0], methods=["dpo", method]))


class TestAnotherJudge:
    @pytest.mark.slow
    def test_asks_anew_about_the_same_samples_without_weights(self, judged, tmp_path, diverse, monkeypatch):
        first_comparison = run(judged(keep_weights=False))
        (tmp_path / "judge.py").write_text(LENGTHS.replace("len(r)", "-len(r)"))
        monkeypatch.setattr(Measurement, "measure", lambda *a, **k: pytest.fail("measured again"))
        second_comparison = run(tmp_path / "bench.yaml")
        first_cell, second_cell = (cell_of(comparison, "simpo") for comparison in (first_comparison, second_comparison))
        assert second_cell.samples == first_cell.samples
        assert second_cell.values["win_rate"] == {
            name: 1 - value for name, value in first_cell.values["win_rate"].items()
        }
        assert set(first_cell.values["win_rate"].values()) != {0.5}


@pytest.mark.slow
def test_a_judge_that_never_answers_is_told_everywhere(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(EndpointJudge, "compare", lambda self, p, a, b: [Verdict("tie", failed=True) for _ in p])
    measure = {"samples": 4, "max_new_tokens": 6, "judge": {"judge": {"url": "http://localhost:1/v1", "model": "m"}}}
    comparison = run(bench(seeds=[0], methods=["dpo"], measure=measure))
    notice = "judge: 8 of 8 questions were never answered and count as ties"
    assert notice in comparison.notices
    _, table = write_comparison(comparison, tmp_path / "bench")
    with (console := Console(width=200)).capture() as capture:
        console.print(table)
    assert notice in capture.get()
    assert notice in (tmp_path / "bench" / "compare.md").read_text()
    page = (tmp_path / "bench" / "compare.html").read_text()
    assert notice in page
    assert "none judged" in page
    monkeypatch.setattr(EndpointJudge, "compare", lambda self, p, a, b: [Verdict("tie") for _ in p])
    second_comparison = run(bench(seeds=[0], methods=["dpo"], measure=measure))
    assert not second_comparison.notices
    assert cell_of(second_comparison, "dpo").judge["agreement"] == 1.0


@pytest.mark.slow
def test_kl_left_out_is_told(bench):
    measure = {"samples": 4, "max_new_tokens": 4, "temperature": 0.5}
    comparison = run(bench(seeds=[0], methods=["dpo"], measure=measure))
    assert any(notice.startswith("kl is not measured: measure.temperature is 0.5") for notice in comparison.notices)
