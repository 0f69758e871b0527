"""A comparison from its YAML to its page, on a tiny model: resumable cell by cell, each cell reproducible alone."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml

from penchant.cli.main import run as command_line
from penchant.comparison import run as running
from penchant.comparison.config import load_bench
from penchant.comparison.run import compare
from penchant.comparison.write import write_comparison
from penchant.config.run import load_config
from penchant.data.reading import read_groups
from penchant.engine.distributed import World
from penchant.errors import ConfigError, DiskFullError
from penchant.evaluation.held_out import score
from penchant.evaluation.preferences import evaluate_preferences
from penchant.storage.files import folder_lock
from penchant.training.run import train


def run(file: Path, *overrides: str):
    return compare(load_bench(file, overrides), str(file))


def numbers(comparison) -> list[tuple]:
    return [(c.method, c.settings, c.size, c.seed, c.metrics, c.values, c.failed) for c in comparison.cells]


@pytest.mark.slow
class TestACampaign:
    @pytest.fixture(scope="class")
    def finished(self, tmp_path_factory, write_bench):
        """Two methods (one at two betas), two sizes, two seeds, with a reward as judge."""
        folder = tmp_path_factory.mktemp("campaign")
        (folder / "rewards.py").write_text(
            "def score(prompt, responses):\n    return [len(r) + 0.0 for r in responses]\n"
        )
        reward = {"function": f"{folder / 'rewards.py'}:score"}
        file = write_bench(
            folder,
            methods=["kto", {"label": "ipo", "objective": {"name": "ipo"}, "grid": {"objective.beta": [0.1, 1.0]}}],
            baseline="kto",
            sizes=[0.5, 1.0],
            measure={"samples": 4, "max_new_tokens": 6, "reward": reward, "judge": reward, "against": "baseline"},
        )
        comparison = run(file)
        document, _ = write_comparison(comparison, folder / "bench")
        return folder, file, comparison, document

    def test_every_cell_is_there(self, finished):
        _, _, comparison, _ = finished
        cell_keys = {(c.method, tuple(c.settings.values()), c.size, c.seed) for c in comparison.cells}
        sizes = sorted({c.size for c in comparison.cells})
        variants = [("start", ()), ("kto", ()), ("ipo", (0.1,)), ("ipo", (1.0,))]
        assert cell_keys == {(*v, n, s) for v in variants for n in sizes for s in (0, 1)}
        assert sizes == [18, 36]

    def test_the_smaller_data_is_in_the_larger_and_the_held_out_in_neither(self, finished):
        folder = finished[0] / "bench" / "data"
        small, large, held_out = (
            {g.id for g in read_groups(str(folder / f"{name}.jsonl")).groups}
            for name in ("train-18", "train-36", "held_out")
        )
        assert small < large
        assert not large & held_out
        prompts = [
            {str(g.prompt) for g in read_groups(str(folder / f"{n}.jsonl")).groups} for n in ("train-36", "held_out")
        ]
        assert not prompts[0] & prompts[1]

    def test_metrics_are_those_of_a_direct_evaluation(self, finished):
        folder, _, comparison, _ = finished
        cell = next(c for c in comparison.cells if c.method == "ipo")
        groups = read_groups(str(folder / "bench" / "data" / "held_out.jsonl")).groups
        scored = score(cell.folder, groups, World.single(), reference=comparison.model)
        report = evaluate_preferences(scored)
        for name in ("accuracy", "margin", "auc", "log_prob_accuracy", "mean_log_prob_auc", "mean_log_prob_margin"):
            assert cell.metrics[name] == pytest.approx(report.metrics[name].value, rel=1e-9), name
        assert cell.metrics["length_accuracy"] == pytest.approx(report.metrics["length_accuracy"].value)

    def test_samples_reward_and_kl(self, finished):
        _, _, comparison, _ = finished
        for cell in comparison.cells:
            assert set(cell.values["words"]) == {f"sample {i}" for i in range(4)}
            assert cell.metrics["reward"] == pytest.approx(sum(cell.values["reward"].values()) / 4)
            if cell.method == "start":
                assert cell.metrics["kl"] == 0
                assert "accuracy" not in cell.metrics
            else:
                assert cell.metrics["kl_error"] >= 0

    def test_the_judge_compares_with_the_baseline_of_the_same_seed_and_size(self, finished):
        _, _, comparison, _ = finished
        by = {(c.method, tuple(c.settings.values()), c.size, c.seed): c for c in comparison.cells}
        for key, cell in by.items():
            if key[0] in ("start", "kto"):
                assert "win_rate" not in cell.metrics
                continue
            rival = by["kto", (), *key[2:]]
            pairs = [(cell.values["reward"][k], rival.values["reward"][k]) for k in cell.values["reward"]]
            expected = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)
            assert cell.metrics["win_rate"] == pytest.approx(expected)

    def test_a_cell_alone_is_the_same_run(self, finished, tmp_path):
        _, _, comparison, _ = finished
        cell = next(c for c in comparison.cells if c.method == "ipo")
        alone = train(load_config(Path(cell.folder) / "config.yaml", [f"output={tmp_path / 'alone'}"]))
        assert (alone / "metrics.jsonl").read_bytes() == (Path(cell.folder) / "metrics.jsonl").read_bytes()

    def test_again_it_trains_and_measures_nothing(self, finished, monkeypatch):
        _, file, comparison, _ = finished
        monkeypatch.setattr(running, "train", lambda *a, **k: pytest.fail("trained again"))
        second_comparison = run(file)
        assert numbers(second_comparison) == numbers(comparison)

    def test_its_files(self, finished):
        folder, _, _, document = finished
        saved_document = json.loads((folder / "bench" / "compare.json").read_text())
        assert saved_document == json.loads(json.dumps(document))
        row = next(v for v in saved_document["variants"] if v["variant"] == "ipo, beta 1.0")
        assert row["metrics"]["accuracy"].keys() == {"value", "low", "high", "n"}
        assert row["metrics"]["accuracy"]["n"] == 2
        assert row["difference"]["low"] <= row["difference"]["value"] <= row["difference"]["high"]
        assert row["corrected"]["low"] <= row["difference"]["low"]
        page = (folder / "bench" / "compare.html").read_text()
        assert page.count("<svg") >= 3
        assert not re.search(r"(src|href)=\"http", page)
        for text in (
            "Reward against KL",
            "accuracy by data size",
            "Verdicts of the judge",
            "Cost of training",
            "ipo, beta 1.0",
        ):
            assert text in page
        assert (folder / "bench" / "compare.md").read_text().count("| ipo, beta 0.1 |") == 2
        assert r"\toprule" in (folder / "bench" / "compare.tex").read_text()


@pytest.mark.slow
def test_interrupted_between_cells_it_goes_on_to_the_same(bench, tmp_path, monkeypatch):
    file = bench(seeds=[0])
    whole = run(file, f"output={tmp_path / 'whole'}")
    calls = []

    def failing(config, **keywords):
        calls.append(config.output)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(config, **keywords)

    monkeypatch.setattr(running, "train", failing)
    with pytest.raises(KeyboardInterrupt):
        run(file)
    resumed = run(file)
    assert len(calls) == len(set(calls)) + 1
    assert numbers(resumed) == numbers(whole)


@pytest.mark.slow
def test_a_cell_that_fails_is_told_and_the_rest_go_on(bench, failing_cell):
    failing_cell("ipo-beta-1.0-n36-seed1")
    ipo = {"label": "ipo", "objective": {"name": "ipo"}, "grid": {"objective.beta": [1.0]}}
    comparison = run(bench(methods=["dpo", ipo]))
    failed = [cell for cell in comparison.cells if cell.failed]
    assert [(cell.method, cell.settings, cell.seed) for cell in failed] == [("ipo", {"objective.beta": 1.0}, 1)]
    assert "ipo, seed 1: the loss is not a finite number at step 2" in comparison.notices
    document, _ = write_comparison(comparison, Path(comparison.cells[0].folder).parent)
    row = next(v for v in document["variants"] if v["variant"] == "ipo, beta 1.0")
    assert row["seeds"] == [0]
    assert row["failed"] == {"1": "the loss is not a finite number at step 2"}


@pytest.mark.slow
def test_a_full_disk_stops_the_comparison_and_it_goes_on_after(bench, monkeypatch, full_at_the_second_save):
    file = bench(seeds=[0])
    with pytest.raises(DiskFullError, match="the disk is full") as error:
        run(file)
    assert "give the same command again" in str(error.value)
    assert "--resume" not in str(error.value)
    assert len(full_at_the_second_save) == 2
    monkeypatch.undo()
    assert [cell.failed for cell in run(file).cells] == [None] * 4


def test_a_second_comparison_in_the_same_folder_is_refused(bench, tmp_path):
    file = bench(seeds=[0])
    with folder_lock(tmp_path / "bench"), pytest.raises(ConfigError, match=f"another process.*{os.getpid()}"):
        run(file)
    assert not (tmp_path / "bench").exists()


@pytest.mark.slow
def test_weights_may_be_thrown_away(bench, tmp_path):
    """All of them: the last, the best and the checkpoints'."""
    base = yaml.safe_load(bench().read_text())["base"] | {"evaluation": {"every": 1}}
    with_weights = run(bench(seeds=[0], base=base), f"output={tmp_path / 'kept'}")
    assert (Path(with_weights.cells[-1].folder) / "best" / "model.safetensors").exists()
    comparison = run(bench(keep_weights=False, seeds=[0], base=base))
    cells = [Path(cell.folder) for cell in comparison.cells if cell.method != "start"]
    large = [file for folder in cells for file in folder.rglob("*") if file.is_file() and file.stat().st_size > 16_000]
    assert {file.name for file in large} <= {"tokenizer.json", "report.html"}
    assert not [folder for folder in cells if list((folder / "checkpoints").glob("*"))]
    assert all((folder / "measured.json").exists() for folder in cells)
    assert numbers(run(bench(keep_weights=False, seeds=[0], base=base))) == numbers(comparison)


class TestRefuses:
    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"methods": ["dpo", "dpoo"]}, "dpoo: 1 problem(s) in the configuration"),
            ({"methods": ["dpo", "bradley_terry"]}, "bradley_terry trains a reward model"),
            ({"measure": {"samples": 0, "primary": "reward"}}, "measure.primary is 'reward', which is not measured"),
            ({"measure": {"samples": 0, "primary": "acuracy"}}, "measure.primary is 'acuracy'"),
            ({"sizes": [100]}, "100 groups are asked for, and the data has 36"),
            ({"baseline": "start"}, "baseline is start, which has no accuracy"),
            (
                {"methods": ["dpo", "ddo_rm", {"label": "mine", "objective": {"name": "rloo"}}]},
                "ddo-rm: ddo_rm learns from scores, and no group has any (training groups); write them",
            ),
            (
                {"methods": ["dpo", "ddo_rm", {"label": "mine", "objective": {"name": "rloo"}}]},
                "2 problem(s) in the methods",
            ),
            (
                {"methods": ["dpo", {"label": "b", "objective": {"name": "dpo"}, "set": {"references": ["x", "y"]}}]},
                "b: references names 2 models, dpo takes 1",
            ),
        ],
    )
    def test_before_anything_is_trained(self, bench, keys, message, monkeypatch):
        monkeypatch.setattr(running, "train", lambda *a, **k: pytest.fail("trained"))
        with pytest.raises(ConfigError) as error:
            run(bench(**keys))
        assert message in str(error.value)

    def test_nothing_is_written_then(self, bench, tmp_path):
        with pytest.raises(ConfigError, match="learns from scores"):
            run(bench(methods=["dpo", "ddo_rm"]))
        assert not (tmp_path / "bench").exists()

    @pytest.mark.slow
    def test_a_method_with_a_reward_of_its_own_has_scores(self, bench, tmp_path):
        reward = {"function": f"{tmp_path / 'rewards.py'}:score"}
        offline_method = {"label": "ddo_rm", "objective": {"name": "ddo_rm"}, "set": {"reward": reward}}
        online_method = {
            "label": "online",
            "objective": {"name": "rloo"},
            "set": {"reward": reward, "candidates": "sampled", "sampling": {"samples": 2, "max_new_tokens": 4}},
        }
        comparison = run(bench(methods=["dpo", offline_method, online_method], seeds=[0]))
        assert [cell.failed for cell in comparison.cells] == [None] * 4

    @pytest.mark.slow
    def test_a_folder_of_another_comparison(self, bench, tiny_model):
        run(bench(seeds=[0], methods=["dpo"]))
        file = bench(seeds=[0], methods=["dpo"])
        with pytest.raises(ConfigError, match="another base"):
            run(file, "base.training.max_steps=4")

    @pytest.mark.slow
    def test_numbers_of_another_configuration(self, bench):
        run(bench(seeds=[0], methods=["dpo"]))
        methods = [{"label": "dpo", "objective": {"name": "dpo", "beta": 0.7}}]
        with pytest.raises(ConfigError, match="dpo-n36-seed0 was trained with another objective"):
            run(bench(seeds=[0], methods=methods))

    def test_two_sizes_that_are_one(self, bench):
        with pytest.raises(ConfigError, match="two of them come to 36 groups"):
            run(bench(sizes=[36, 1.0]))

    def test_several_processes(self, bench, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ConfigError, match="without torchrun"):
            run(bench())

    @pytest.mark.slow
    def test_methods_and_seeds_may_be_added(self, bench):
        first_comparison = run(bench(seeds=[0], methods=["dpo"]))
        second_comparison = run(bench(seeds=[0, 1], methods=["dpo", "simpo"]))
        assert len(second_comparison.cells) == 6
        dpo_cell = next(c for c in first_comparison.cells if c.method == "dpo")
        assert dpo_cell in second_comparison.cells

    def test_a_size_may_be_added(self, bench, monkeypatch):
        first_comparison = run(bench(seeds=[0], methods=["dpo"]))
        trained: list[str] = []

        def train_and_record(config, **keywords):
            trained.append(Path(config.output).name)
            return train(config, **keywords)

        monkeypatch.setattr(running, "train", train_and_record)
        second_comparison = run(bench(seeds=[0], methods=["dpo"], sizes=[0.5, 1.0]))
        assert trained == ["dpo-n18-seed0"]
        assert next(c for c in first_comparison.cells if c.method == "dpo") in second_comparison.cells

    @pytest.mark.slow
    def test_another_size_is_trained_on_its_own_data(self, bench):
        small = run(bench(seeds=[0], methods=["dpo"], sizes=[0.5]))
        large = run(bench(seeds=[0], methods=["dpo"], sizes=[1.0]))
        for comparison, size in ((small, 18), (large, 36)):
            cell = next(c for c in comparison.cells if c.method == "dpo")
            assert cell.size == size
            data = load_config(Path(cell.folder) / "config.yaml").data.train
            assert len(read_groups(data).groups) == size
        assert small.cells[1].metrics["margin"] != large.cells[1].metrics["margin"]

    @pytest.mark.slow
    def test_numbers_of_another_size(self, bench, tmp_path):
        run(bench(seeds=[0], methods=["dpo"], sizes=[0.5]))
        cells = tmp_path / "bench" / "cells"
        (cells / "dpo-n18-seed0").rename(cells / "dpo-n36-seed0")
        with pytest.raises(ConfigError, match="dpo-n36-seed0 was trained with another data"):
            run(bench(seeds=[0], methods=["dpo"], sizes=[1.0]))


class TestSweep:
    @pytest.mark.slow
    def test_a_grid(self, bench):
        search = {
            "method": "grid",
            "parameters": {"objective.beta": [0.1, 0.5], "training.learning_rate": [1e-4, 1e-3]},
        }
        comparison = run(bench(methods=["dpo"], seeds=[0], search=search))
        settings = [tuple(c.settings.values()) for c in comparison.cells if c.method == "dpo"]
        assert sorted(settings) == [(0.1, 1e-4), (0.1, 1e-3), (0.5, 1e-4), (0.5, 1e-3)]

    @pytest.mark.slow
    def test_random_draws_within_their_ranges_and_budget(self, bench):
        search = {
            "method": "random",
            "trials": 6,
            "parameters": {"objective.beta": {"low": 0.01, "high": 1.0, "scale": "log"}, "training.batch_size": [4, 8]},
            "budget": {"trials": 2},
        }
        comparison = run(bench(methods=["dpo"], seeds=[0], search=search))
        settings = [c.settings for c in comparison.cells if c.method == "dpo"]
        assert len(settings) == 2
        assert all(0.01 <= s["objective.beta"] <= 1.0 and s["training.batch_size"] in (4, 8) for s in settings)
        assert any("the budget of 2 trials is spent: 4 of 6 cells" in notice for notice in comparison.notices)
        assert settings == [c.settings for c in run(bench(methods=["dpo"], seeds=[0], search=search)).cells][1:]

    @pytest.mark.slow
    def test_a_trial_is_a_variant_with_all_its_seeds(self, bench):
        search = {"parameters": {"objective.beta": [0.1, 0.2, 0.3]}, "budget": {"trials": 2}}
        comparison = run(bench(methods=["dpo"], seeds=[0, 1, 2], search=search))
        trained = {(c.settings["objective.beta"], c.seed) for c in comparison.cells if c.method == "dpo"}
        assert trained == {(beta, seed) for beta in (0.1, 0.2) for seed in (0, 1, 2)}
        assert "the budget of 2 trials is spent: 3 of 9 cells were not begun" in comparison.notices

    @pytest.mark.slow
    def test_draws_that_repeat_are_one_variant(self, bench, notices):
        search = {"method": "random", "trials": 8, "parameters": {"objective.beta": [0.1, 0.2]}}
        file = bench(methods=["dpo"], seeds=[0], search=search)
        comparison = compare(load_bench(file), str(file))
        betas = [c.settings["objective.beta"] for c in comparison.cells if c.method == "dpo"]
        assert sorted(betas) == [0.1, 0.2]
        message = "search: 2 distinct variants of each method, for 8 draws repeat some"
        for lines in (notices.messages, comparison.notices):
            assert len([line for line in lines if line.startswith(message)]) == 1

    @pytest.mark.slow
    def test_a_budget_of_tokens(self, bench):
        search = {"parameters": {"objective.beta": [0.1, 0.2, 0.3]}, "budget": {"tokens": 1}}
        comparison = run(bench(methods=["dpo"], seeds=[0], search=search))
        assert len([c for c in comparison.cells if c.method == "dpo"]) == 1


@pytest.mark.slow_but("flags1")
@pytest.mark.parametrize(("flags", "count"), [((), 1), (("-v",), 2)])
def test_the_verb_prints_the_notices_of_the_comparison_alone(bench, capsys, tmp_path, flags, count):
    """Those of the cell's run are printed with -v, and are in the `run.log` of the cell and of the comparison."""
    file, notice = bench(seeds=[0], methods=["dpo"]), "data.date is 2001-02-03, and no chat template"
    assert command_line(["compare", str(file), "base.data.date=2001-02-03", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1 cells: 1 variants, 1 seeds, 1 sizes" in lines
    assert len([line for line in lines if notice in line]) == count
    logs = {log.parent.name: log.read_text(encoding="utf-8").count(notice) for log in tmp_path.rglob("run.log")}
    assert list(logs.values()) == [2, 1]
    assert next(iter(logs)) == "bench"


def test_the_verb_prints_one_json_document(bench, run_penchant):
    result = run_penchant("compare", bench(seeds=[0], methods=["dpo"]), "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert [v["variant"] for v in document["variants"]] == ["start", "dpo"]
    assert math.isfinite(document["variants"][1]["metrics"]["accuracy"]["value"])


def test_a_sweep_without_a_search_is_refused(bench, run_penchant):
    result = run_penchant("sweep", bench())
    assert result.returncode == 2
    assert "no search section" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_folders_are_copied_without_meaning(tmp_path, bench):
    """A comparison's folder may be moved: what is measured is in it."""
    file = bench(seeds=[0], methods=["dpo"])
    first_comparison = run(file)
    moved_folder = tmp_path / "moved"
    shutil.move(tmp_path / "bench", moved_folder)
    second_comparison = run(file, f"output={moved_folder}")
    assert [c.metrics for c in second_comparison.cells] == [c.metrics for c in first_comparison.cells]
