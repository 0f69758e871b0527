"""The loop and its trainer with tiny models: results, kills, full disks and resumed runs."""

from __future__ import annotations

import html
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from penchant.cli.main import run
from penchant.config.section import validated
from penchant.errors import ConfigError, DataError, DiskFullError, PenchantError, TrainingError
from penchant.recipes import demo_world as world
from penchant.recipes.self_improve import gate, loop, trainer
from penchant.recipes.self_improve.buffer import Judgement, ReplayBuffer
from penchant.recipes.self_improve.config import SelfImproveConfig
from penchant.recipes.self_improve.gate import evaluate_learner
from penchant.recipes.self_improve.learner import Learner, ServedModel, read_served, write_served
from penchant.recipes.self_improve.loop import improve, read_rounds, self_improve
from penchant.recipes.self_improve.report import alarms, report_rounds, summarise
from penchant.recipes.self_improve.run_folder import open_buffer, open_run_folder, read_splits
from penchant.recipes.self_improve.text_learner import TextLearner
from penchant.recipes.self_improve.trainer import is_idle, is_up_to_date, next_update, run_update
from penchant.recipes.self_improve.verifying import Verdict
from penchant.storage.files import folder_lock

from .conftest import START_TRAINER

RULE = "def conditions(prompt, answer):\n    return {'short': len(answer.split()) < 4}\n"


def configured(folder, learner, **changes):
    (folder / "rule.py").write_text(RULE)
    rows = [{"prompt": prompt, "source": f"kind {n % 2}"} for n, prompt in enumerate(world.prompts(24, 0))]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": learner,
        "prompts": str(folder / "prompts.jsonl"),
        "output": str(folder / "out"),
        "verifier": {"function": f"{folder / 'rule.py'}:conditions"},
        "rounds": 2,
        "prompts_per_round": 10,
        "attempts": 4,
        "batch": 5,
        "sampling": {"max_new_tokens": 4, "temperature": 1.5},
        "held_out": 0.4,
        "update": {
            "new": 2,
            "groups": 4,
            "training": {"max_steps": 2, "batch_size": 2, "learning_rate": 1e-3},
            "lora": {"rank": 2},
        },
        **changes,
    }
    return validated(SelfImproveConfig, values, "test")


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, learner):
    folder = tmp_path_factory.mktemp("improve")
    config = configured(folder, learner)
    return config, improve(config), Path(config.output)


def test_second_loop_in_the_same_folder_is_an_error(tmp_path, learner):
    config = configured(tmp_path, learner)
    with folder_lock(tmp_path / "out"), pytest.raises(ConfigError, match="another process"):
        self_improve(config)
    assert not (tmp_path / "out").exists()


def test_files_of_a_run(finished_run, buffer_counts):
    config, rounds, output = finished_run
    assert [round_["round"] for round_ in rounds] == [0, 1, 2]
    splits = json.loads((output / "prompts.json").read_text())
    assert {name: len(part) for name, part in splits.items()} == {"train": 14, "gate": 5, "test": 5, "categories": 24}
    assert len({text for name in ("train", "gate", "test") for text in splits[name].values()}) == 24
    assert buffer_counts(output)["judgements"] == rounds[1]["judgements"] + rounds[2]["judgements"]
    updates = next_update(output) - 1
    buffer = open_buffer(config)
    assert 0 < updates <= buffer.count_added() // 2
    assert is_idle(config, buffer)
    for number in range(1, updates + 1):
        result = json.loads((output / "updates" / str(number) / "result.json").read_text())
        passes = min(result["gate_p"].values()) <= 0.05 / len(result["gate_p"])
        assert (result["served"] != result["from"]) == passes
        assert result["gate"].keys() == {"0", str(result["from"]), str(number)}
        assert (output / "updates" / str(number) / "merged" / "model.safetensors").exists()
    assert read_served(output).update == rounds[-1]["served"] == result["served"]
    # The second round does not start with the prompts of the first.
    names = [set(loop._names(config, splits, number)) for number in (1, 2)]
    assert len(names[0] | names[1]) == 14


def test_further_prompts_are_the_others_and_then_all_again():
    train = {str(n): f"prompt {n}" for n in range(7)}
    round_names = ["2", "5", "0"]
    further = list(itertools.islice(loop.further_prompts(train, round_names, 0), 21))
    assert [name.partition("+")[2] for name, _ in further] == ["1"] * 7 + ["2"] * 7 + ["3"] * 7
    assert {name for name, _ in further[:4]} == {"1+1", "3+1", "4+1", "6+1"}
    assert len({name for name, _ in further}) == 21
    assert all(text == train[name.partition("+")[0]] for name, text in further)


@pytest.mark.parametrize(("while_tuning", "tries_on"), [("try", True), ("wait", False)])
def test_what_the_learner_does_while_an_update_runs(
    finished_run, tmp_path, learner, monkeypatch, while_tuning, tries_on
):
    """In the round before the last it goes on trying until the updates of the round's own groups have ended."""
    config = configured(tmp_path, learner, while_tuning=while_tuning, batch=10)
    buffer, splits, batches = ready_to_update(config, finished_run), open_run_folder(config), []
    monkeypatch.setattr(loop, "attempt_prompts", lambda batch, *_, **__: batches.append(list(batch)))
    monkeypatch.setattr(loop, "is_up_to_date", lambda config, groups: groups == 4 and next(answers))
    monkeypatch.setattr(loop, "_measure_round", lambda config, splits, number, details: waits.append(details["waited"]))
    monkeypatch.setattr(
        ReplayBuffer, "judgements_of_round", lambda *_: [Judgement(1, "a", 1, "p", "a", (True,), 1.0, "")]
    )
    waits, trainer_process = [], SimpleNamespace(check=lambda: None, confirm_progress=lambda: None)
    for number, tries in ((1, tries_on), (2, False)):
        batches.clear()
        answers = iter([False, False, False, True])
        loop._round(config, splits, number, buffer, trainer_process)
        assert batches[0] == loop._names(config, splits, number)
        assert [len(batch) for batch in batches[1:]] == [10, 10, 10] * tries
        assert all("+" in name for batch in batches[1:] for name in batch)
        assert (waits[-1] > 0) != tries


def test_one_update_takes_all_groups_that_have_come_since_the_last(finished_run, tmp_path, learner):
    config = configured(tmp_path, learner)
    buffer = ready_to_update(config, finished_run)
    assert [is_up_to_date(config, groups) for groups in (0, 1, 2, 4)] == [True, True, False, False]
    run_update(config, buffer, 1, gate_prompts(config))
    assert json.loads((tmp_path / "out" / "updates" / "1" / "begun.json").read_text())["added"] == 4
    assert [is_up_to_date(config, groups) for groups in (4, 5, 6)] == [True, True, False]
    assert is_idle(config, buffer)


def shown_answers(rounds):
    """Answers in the report, as HTML."""
    return [html.escape(round_["test"]["answers"][0].strip()) for round_ in (rounds[0], rounds[-1])]


def test_report(finished_run):
    config, rounds, output = finished_run
    result = report_rounds(config, rounds)
    assert result == summarise(config, rounds)
    first_row, last_row = result["rounds"][0], result["rounds"][-1]
    assert first_row["gained"]["value"] == 0
    first_shares, last_shares = (round_["test"]["satisfied"] for round_ in (rounds[0], rounds[-1]))
    assert last_row["success"]["value"] == pytest.approx(sum(last_shares) / 5)
    gained = sum(row["prompts"] * row["gained"]["value"] for row in result["categories"].values())
    assert sum(row["prompts"] for row in result["categories"].values()) == 5
    assert gained == pytest.approx(sum(last_shares) - sum(first_shares))
    page = (output / "report.html").read_text()
    assert all(text in page for text in ("Updates, and the gate", "Success on held-out prompts", "Distance from"))
    assert "By category" in page
    assert all(" ".join(answer.split()) in " ".join(page.split()) for answer in shown_answers(rounds))


def test_done_is_not_done_again(finished_run, buffer_counts):
    config, rounds, output = finished_run
    counts = buffer_counts(output)
    assert improve(config) == rounds == read_rounds(config)
    assert buffer_counts(output) == counts


def test_other_configuration_in_the_same_folder_is_an_error(finished_run, learner):
    config, _, _ = finished_run
    with pytest.raises(ConfigError, match="the folder is another configuration's"):
        improve(config.model_copy(update={"attempts": 2}))


def test_learner_is_replaced_between_batches(learner, finished_run):
    """With the same prompts and seeds, answers change only when another learner is loaded, and to its answers."""
    config, _, output = finished_run
    load, updated = TextLearner(config).load, str(output / "updates" / "1" / "merged")
    mine = Learner(ServedModel(0, learner), load)
    prompts, seeds = world.prompts(40, 1), range(40)
    answers = mine.answer(prompts, seeds)
    assert mine.answer(prompts, seeds) == answers
    mine.switch_to(ServedModel(0, learner))
    assert mine.swaps == []
    mine.switch_to(ServedModel(1, updated))
    assert len(mine.swaps) == 1
    assert mine.served.update == 1
    assert mine.answer(prompts, seeds) == load(updated)(prompts, seeds) != answers


def test_failed_load_keeps_the_old_learner(learner, finished_run, tmp_path):
    config, _, _ = finished_run
    mine = Learner(ServedModel(0, learner), TextLearner(config).load)
    prompts = world.prompts(3, 1)
    answers = mine.answer(prompts, range(3))
    with pytest.raises(Exception, match="no such folder"):
        mine.switch_to(ServedModel(2, str(tmp_path / "none")))
    assert mine.served.update == 0
    assert mine.answer(prompts, range(3)) == answers


@pytest.mark.slow
def test_learners_replaced_while_they_answer(learner, finished_run, tmp_path, monkeypatch):
    """Another process replaces the served learner all the time: each batch comes from one learner, and both occur."""
    config = configured(tmp_path, learner, update={"new": 1000}, rounds=1, attempts=2, batch=2)
    folders = [learner, str(finished_run[2] / "updates" / "1" / "merged")]
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom penchant.recipes.self_improve.learner import "
        "ServedModel, write_served\n"
        "while True:\n    for n in (0, 1):\n        write_served(Path(sys.argv[1]), ServedModel(n, sys.argv[2 + n]))\n"
        "        time.sleep(0.01)\n"
    )
    by_folder = {folder: TextLearner(config).load(folder) for folder in folders}
    batches, attempt_prompts = [], loop.attempt_prompts

    def watched(batch, number, answer, *arguments, **options):
        def noted(prompts, numbers):
            answers = answer(prompts, numbers)
            batches.append((list(prompts), list(numbers), answers))
            return answers

        return attempt_prompts(batch, number, noted, *arguments, **options)

    monkeypatch.setattr(loop, "attempt_prompts", watched)
    open_run_folder(config)
    replacer = subprocess.Popen([sys.executable, "-c", script, config.output, *folders])
    try:
        while read_served(Path(config.output)) is None:
            time.sleep(0.01)
        [_, last_round] = improve(config)
    finally:
        replacer.kill()
        replacer.wait()
    expected = [[by_folder[folder](prompts, numbers) for folder in folders] for prompts, numbers, _ in batches]
    assert all(answers in both for (_, _, answers), both in zip(batches, expected, strict=True))
    assert len(last_round["swaps"]) >= 1
    differing = [
        both.index(answers) for (_, _, answers), both in zip(batches, expected, strict=True) if both[0] != both[1]
    ]
    assert set(differing) == {0, 1}


@pytest.mark.slow
def test_served_file_is_replaced_atomically(tmp_path):
    """A reader never sees a partly written file during a thousand replacements."""
    write_served(tmp_path, ServedModel(0, "m" * 5000))
    served_models, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            served_models.append(read_served(tmp_path))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 1001):
        write_served(tmp_path, ServedModel(number, "m" * 5000))
    stop.set()
    reader.join()
    assert all(served is not None and len(served.model) == 5000 for served in served_models)
    assert [served.update for served in served_models] == sorted(served.update for served in served_models)


def gate_prompts(config):
    return list(read_splits(Path(config.output))["gate"].values())


def ready_to_update(config, finished_run):
    """The buffer of a new run folder, with four groups of the finished run."""
    open_run_folder(config)
    write_served(Path(config.output), ServedModel(0, config.model))
    buffer = open_buffer(config)
    for group in ReplayBuffer(finished_run[2] / "buffer.sqlite", 100).draw(4, seed=0):
        buffer.add(group, 1.0)
    return buffer


def test_killed_update_resumes_to_the_same_result(finished_run, tmp_path, learner):
    """A kill between draw and decision: the repeated update has the same data and weights."""
    config = configured(tmp_path, learner)
    buffer = ready_to_update(config, finished_run)
    run_update(config, buffer, 1, gate_prompts(config))
    folder = tmp_path / "out" / "updates" / "1"
    training_data, decided = (folder / "train.jsonl").read_bytes(), json.loads((folder / "result.json").read_text())
    weights = (folder / "merged" / "model.safetensors").read_bytes()
    lowered = buffer.priorities()
    assert sorted(lowered.values()) == [0.5] * 4
    for left in ("result.json", "merged", "run"):
        shutil.rmtree(folder / left) if (folder / left).is_dir() else (folder / left).unlink()
    run_update(config, buffer, 1, gate_prompts(config))
    repeated = json.loads((folder / "result.json").read_text())
    assert (folder / "train.jsonl").read_bytes() == training_data
    assert (folder / "merged" / "model.safetensors").read_bytes() == weights
    assert {**repeated, "seconds": 0} == {**decided, "seconds": 0}
    assert buffer.counts()["draws"] == 4
    assert buffer.priorities() == lowered


def test_update_on_a_full_disk(finished_run, tmp_path, learner, monkeypatch):
    """The error is recognised whichever library raised it; any other exception would restart the trainer."""
    config = configured(tmp_path, learner)
    buffer = ready_to_update(config, finished_run)

    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(TextLearner, "tune", full)
    with pytest.raises(DiskFullError, match="the disk is full") as error:
        run_update(config, buffer, 1, gate_prompts(config))
    assert error.value.fix == "free some space, then resume with: the same command"


def test_update_killed_before_its_record_is_written(finished_run, tmp_path, learner, monkeypatch):
    """After a kill between draw and record the groups are drawn again, and priorities are lowered once."""
    config = configured(tmp_path, learner)
    buffer = ready_to_update(config, finished_run)

    def killed(*_):
        raise KeyboardInterrupt

    for name in ("write_atomically", "lower_priorities"):
        with monkeypatch.context() as patched:
            patched.setattr(trainer if name == "write_atomically" else ReplayBuffer, name, killed)
            with pytest.raises(KeyboardInterrupt):
                run_update(config, buffer, 1, gate_prompts(config))
    run_update(config, buffer, 1, gate_prompts(config))
    assert set(buffer.priorities().values()) == {0.5}


@pytest.mark.slow
def test_kills_lose_and_duplicate_no_judgement(finished_run, learner, tmp_path, check_resume_after_kills):
    check_resume_after_kills(configured(tmp_path, learner), tmp_path)


@pytest.mark.slow
def test_trainer_error_stops_the_loop(learner, tmp_path):
    """An error that only the trainer can detect is raised once, and no process is left."""
    targets = {"rank": 2, "targets": ["no_such_layer"]}
    config = configured(tmp_path, learner, update={"new": 2, "lora": targets, "training": {"max_steps": 2}})
    with pytest.raises(TrainingError, match=r"the trainer stopped: .*no_such_layer"):
        improve(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"update": {"objective": {"name": "dpoo"}}}, "objective"),
        ({"update": {"objective": {"name": "rloo"}}}, "rloo"),
        ({"update": {"objective": {"name": "preference_head"}}}, "does not train a language model"),
        ({"update": {"objective": {"name": "multi_reference"}}}, "mixes references"),
        ({"sampling": {"max_new_tokens": 100_000}}, "sampling.max_new_tokens is 100000: with a prompt of"),
    ],
)
def test_configuration_errors_are_raised_before_the_first_round(tmp_path, learner, changes, message):
    config = configured(tmp_path, learner, **changes)
    with pytest.raises(PenchantError, match=message):
        improve(config)
    assert not (tmp_path / "out" / "rounds").exists()
    assert not (tmp_path / "out" / "buffer.sqlite").exists()


def test_learner_that_is_an_adapter_is_an_error(tmp_path, learner):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": learner}))
    with pytest.raises(ConfigError, match="model is an adapter folder") as error:
        improve(configured(tmp_path, str(tmp_path / "adapter")))
    assert "penchant merge" in error.value.fix


@pytest.mark.parametrize("changed_part", ["verifier", "model"])
def test_changed_model_or_verifier_is_an_error(tmp_path, learner, changed_part):
    model = tmp_path / "model"
    shutil.copytree(learner, model)
    config = configured(tmp_path, str(model))
    open_run_folder(config)
    open_run_folder(config)
    if changed_part == "verifier":
        (tmp_path / "rule.py").write_text(RULE.replace("< 4", "< 3"))
    else:
        weights = load_file(model / "model.safetensors")
        save_file({name: value + 1 for name, value in weights.items()}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=f"the {changed_part} is no longer what it was when the run began"):
        improve(config)


def test_output_that_is_a_file_is_an_error(tmp_path, learner):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ConfigError, match="output cannot be made"):
        improve(configured(tmp_path, learner))


def test_evaluation_without_verdicts_is_an_error(tmp_path, learner):
    """No metrics are written, so the first learner is evaluated once the verifier is up."""
    silence = "from penchant.recipes.self_improve.verifying import Verdict\n"
    silence += "def conditions(prompt, answer):\n    return Verdict((), 0.0, '', failed=True)\n"
    config = configured(tmp_path, learner)
    (tmp_path / "rule.py").write_text(silence)
    with pytest.raises(ConfigError, match="the verifier gave no verdict on 5 of 5 answers"):
        improve(config)
    assert not list((tmp_path / "out" / "rounds").glob("*.json"))


def test_unjudged_answers_are_counted(tmp_path, learner):
    backend, prompts = TextLearner(configured(tmp_path, learner)), world.prompts(40, 3)

    def but_one(prompts, answers):
        return [Verdict((), 0.0, "", failed=True), *[Verdict((True,), 1.0, "")] * (len(prompts) - 1)]

    metrics = evaluate_learner(backend, learner, learner, prompts, but_one, 0)
    assert (metrics.unjudged, sum(metrics.satisfied)) == (1, 39)
    assert evaluate_learner(backend, learner, learner, prompts, but_one, 0) == metrics
    assert evaluate_learner(backend, learner, learner, prompts, but_one, 1).answers != metrics.answers


def test_trainer_that_is_killed_too_often_is_an_error(learner, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "RESTARTS", 1)
    config = configured(tmp_path, learner)
    open_run_folder(config)
    with loop.TrainerProcess(Path(config.output)) as trainer:
        for _ in range(2):
            os.kill(trainer.pid, signal.SIGKILL)
            trainer._process.wait()
            if _ == 0:
                trainer.check()
        with pytest.raises(TrainingError, match=r"the trainer ended 2 times, the last time with -9"):
            trainer.check()


@pytest.mark.slow
def test_trainer_on_a_full_disk(learner, tmp_path, monkeypatch, buffer_counts):
    """With files of at most 200 kB the weights do not fit: the loop stops, and resumes once there is room."""
    narrow = tmp_path / "narrow"
    narrow.write_text(f"#!/bin/bash\nulimit -f 200\nexec {sys.executable} $@\n")
    narrow.chmod(0o755)
    config = configured(tmp_path, learner)
    with monkeypatch.context() as patched:
        patched.setattr(loop.TrainerProcess, "_start", START_TRAINER)
        patched.setattr(loop, "RESTARTS", 0)
        patched.setattr(loop.sys, "executable", str(narrow))
        with pytest.raises(TrainingError, match="the trainer stopped: "):
            improve(config)
    assert not (tmp_path / "out" / "updates" / "1" / "result.json").exists()
    assert read_served(tmp_path / "out") == ServedModel(0, learner)
    rounds = improve(config)
    assert buffer_counts(tmp_path / "out")["judgements"] == sum(round_.get("judgements", 0) for round_ in rounds)
    assert next_update(tmp_path / "out") > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verifier": {}}, "expected one of function, reward and endpoint, found none"),
        (
            {"verifier": {"function": "a.py:f", "endpoint": {"url": "http://x/v1", "model": "m"}}},
            "function and endpoint",
        ),
        ({"memory": "{prompt} again"}, "memory: expected a template"),
        ({"attempts": 1}, "attempts"),
        ({"update": {"training": {"seed": 3}}}, "update.training.seed: every update derives its own"),
        ({"sampling": {"samples": 2}}, "sampling.samples and sampling.every belong to runs on fresh samples"),
        ({"verifier": {"function": "a.py:f", "threshold": 0.5}}, "threshold is a reward's"),
        ({"verifier": {"reward": {"judge": {"url": "http://x/v1", "model": "m"}}}}, "ratings are 1 to 10"),
    ],
)
def test_invalid_configuration(tmp_path, learner, changes, message):
    with pytest.raises(ConfigError) as error:
        configured(tmp_path, learner, **changes)
    assert message in str(error.value)


def test_prompts_of_messages_are_an_error(learner, tmp_path):
    config = configured(tmp_path, learner)
    row = {"prompt": [{"role": "user", "content": "Hello."}]}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match="a prompt is messages"):
        improve(config)


def round_result(success, amount=10.0, distinct=0.5, first_round=0.5, distance=0.0):
    metrics = {"amount": amount, "distinct": distinct, "distance": distance, "unjudged": 0}
    return {
        "test": {"satisfied": [float(n < success) for n in range(10)], **metrics},
        "first round": {"satisfied": [float(n < first_round * 10) for n in range(10)]},
    }


def test_alarms():
    def alarms_of(*rounds):
        return alarms(TextLearner, rounds)

    assert alarms_of(round_result(1), round_result(3), round_result(4)) == []
    assert alarms_of(round_result(1), round_result(3), round_result(3), round_result(2)) == [
        "no better on the test since round 1"
    ]
    assert alarms_of(round_result(1), round_result(2, distinct=0.2)) == [
        "answers have become alike: distinct pairs of words 0.20, at first 0.50"
    ]
    assert alarms_of(round_result(1), round_result(2, amount=4)) == ["answers have changed: words 4, at first 10"]
    assert alarms_of(round_result(1, first_round=0.6), round_result(2, first_round=0.3)) == [
        "the first round's prompts are forgotten: 0.30, at best 0.60"
    ]
    assert alarms_of(round_result(1), round_result(3, distance=1.0), round_result(3, distance=1.9)) == []
    assert alarms_of(round_result(1), round_result(3, distance=1.0), round_result(2, distance=2.5)) == [
        "far from the first learner without a better result: KL, nats 2.5, 1 at its best"
    ]
    # No learner was better than the first.
    assert alarms_of(round_result(3), round_result(2, distance=1.0), round_result(2, distance=1.9)) == [
        "no better on the test since round 0"
    ]
    assert alarms_of(round_result(3), round_result(2, distance=1.0), round_result(3, distance=2.5)) == [
        "no better on the test since round 0",
        "far from the first learner without a better result: KL, nats 2.5, 1 at first",
    ]
    assert alarms_of(round_result(1), round_result(2) | {"unjudged": 3}) == [
        "the verifier gave no verdict on 3 answers: they are not trained on and count as failures"
    ]


@pytest.mark.slow
def test_patience(finished_run, tmp_path, learner):
    """The loop stops after rounds whose updates the gate rejected; rounds without an update do not count."""
    no_updates = configured(tmp_path, learner, rounds=3, patience=1, update={"new": 1000})
    assert len(improve(no_updates)) == 4
    folder = tmp_path / "kept"
    folder.mkdir()
    config = configured(folder, learner, rounds=6, patience=2)
    rounds = [{"round": n, "served": s, "updates": u} for n, (s, u) in enumerate([(0, 0), (1, 1), (1, 1), (1, 3)])]
    assert [gate.stop_reason(config, rounds[:n]) for n in range(1, 5)] == [None] * 4
    rounds.append({"round": 4, "served": 1, "updates": 4})
    reason = "stopped after round 4: the gate kept what was served (rounds with updates since the last that passed: 2)"
    assert gate.stop_reason(config, rounds) == reason
    # All rounds were run.
    assert gate.stop_reason(config.model_copy(update={"rounds": 4}), rounds) is None
    assert gate.stop_reason(config.model_copy(update={"patience": None}), rounds) is None
    assert gate.stop_reason(config, [*rounds, {"round": 5, "served": 5, "updates": 5}]) is None


@pytest.mark.slow
def test_run_stopped_by_patience(tmp_path, learner, monkeypatch, notices):
    """A gate that keeps the first learner stops the run with a message, and the run stays stopped."""
    config = configured(tmp_path, learner, rounds=6, patience=1, update={"new": 1000})
    monkeypatch.setattr(loop, "next_update", lambda output: 1 + len(list((output / "rounds").glob("*.json"))))
    rounds = improve(config)
    reason = "stopped after round 1: the gate kept what was served (rounds with updates since the last that passed: 1)"
    assert [round_["round"] for round_ in rounds] == [0, 1]
    assert reason in notices.messages
    assert improve(config) == rounds
    assert summarise(config, rounds)["alarms"][0] == reason


def test_command_line(finished_run, tmp_path, capsys):
    config, _, _ = finished_run
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert run(["recipe", "self-improve", str(file)]) == 0
    assert "gained" in capsys.readouterr().out
    assert run(["recipe", "self-improve", str(file), "--stage", "rounds"]) == 2
    assert "has rounds and no stages" in capsys.readouterr().err
