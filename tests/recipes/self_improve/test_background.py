"""Learning beside a server: judgements and pairs, the gate, resumed work, crashes, and the swap of the served model."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from penchant.config.section import validated
from penchant.errors import ConfigError, DiskFullError, PenchantError
from penchant.recipes.self_improve import background, trainer
from penchant.recipes.self_improve.background import BackgroundLearning
from penchant.recipes.self_improve.background_process import TrafficLearner, open_traffic
from penchant.recipes.self_improve.config import TrafficConfig
from penchant.recipes.self_improve.learner import CollapseMetrics, ServedModel, read_served, write_served
from penchant.recipes.self_improve.run_folder import make_folder, open_buffer, record_configuration
from penchant.recipes.self_improve.text_learner import TextLearner
from penchant.recipes.self_improve.traffic import NewAnswer

RULE = "def conditions(prompt, answer):\n    return {'short': len(answer.split()) < 4}\n"
LONG, SHORT = "a long and winding answer", "a short one"


def configured(folder, learner, **changes):
    (folder / "rule.py").write_text(RULE)
    values = {
        "model": learner,
        "output": str(folder / "out"),
        "verifier": {"function": f"{folder / 'rule.py'}:conditions"},
        "attempts": 3,
        "batch": 50,
        "sampling": {"max_new_tokens": 4},
        "held_out": 0.5,
        "checks": 8,
        "update": {"new": 4, "groups": 4},
        **changes,
    }
    return validated(TrafficConfig, values, "test")


@pytest.fixture
def config(tmp_path, learner):
    """A folder as a server opens it."""
    config = configured(tmp_path, learner)
    make_folder(config)
    record_configuration(config)
    write_served(Path(config.output), ServedModel(0, learner))
    return config


def answer_by(script, monkeypatch):
    """Let learners answer by a function of the model's folder, and cost nothing else."""
    constant = CollapseMetrics(1.0, 1.0, 0.0)
    monkeypatch.setattr(TextLearner, "collapse_metrics", lambda *_: constant)

    def load(self, model):
        return lambda prompts, seeds: [script(model) for _ in prompts]

    monkeypatch.setattr(TextLearner, "load", load)


def add_traffic(config, n, answer):
    """The prompts of n answers, those held out and the others."""
    traffic = open_traffic(config)
    answers = [NewAnswer(f"prompt {number}", answer, 0) for number in range(n)]
    traffic.add(answers, {})
    held_out = {a.prompt for a in answers if traffic.is_held_out(json.dumps(a.prompt))}
    return held_out, {a.prompt for a in answers} - held_out


def test_a_failed_answer_and_a_satisfying_attempt_make_a_pair(config, monkeypatch):
    answer_by(lambda model: SHORT, monkeypatch)
    held_out, trained_on = add_traffic(config, 20, LONG)
    traffic_learner = TrafficLearner(config)
    assert traffic_learner.step()
    groups = open_buffer(config).draw(99, seed=0)
    assert {group.prompt for group in groups} == trained_on
    assert {(group.candidates, group.preferred) for group in groups} == {((SHORT, LONG), 0)}
    assert len(held_out) >= 8
    assert set(open_traffic(config).checks()) <= held_out
    [row] = open_traffic(config).success()
    assert (row["judged"], row["satisfied"]["value"]) == (20, 0)
    # The texts of judgements are not needed any more.
    assert open_buffer(config).counts()["judgements"] == 0


def test_a_satisfying_answer_is_counted_and_nothing_is_tried(config, monkeypatch):
    def refuse(model):
        raise AssertionError

    answer_by(refuse, monkeypatch)
    add_traffic(config, 20, SHORT)
    traffic_learner = TrafficLearner(config)
    assert traffic_learner.step()
    assert not traffic_learner.step()
    assert open_buffer(config).count_added() == 0
    assert open_traffic(config).success()[0]["satisfied"]["value"] == 1


def test_a_prompt_without_room_for_another_answer_is_not_tried(config, monkeypatch):
    answer_by(lambda model: SHORT, monkeypatch)
    traffic = open_traffic(config)
    prompts = [f"{'the ' * 70}{number}" for number in range(4)]
    traffic.add([NewAnswer(prompt, LONG, 0) for prompt in prompts], {})
    monkeypatch.setattr(TrafficLearner, "_context", 72)
    TrafficLearner(config).step()
    assert open_buffer(config).count_added() == 0
    assert open_traffic(config).success()[0]["judged"] == 4


def test_a_killed_judgement_goes_on_from_what_is_stored(config, monkeypatch):
    """No judgement is lost or doubled, and the verdicts are those it began with."""
    calls = []

    def killed_at_the_second_attempt(model):
        calls.append(model)
        if len(calls) > len(trained_on):
            raise KeyboardInterrupt
        return LONG + " indeed"

    answer_by(killed_at_the_second_attempt, monkeypatch)
    _, trained_on = add_traffic(config, 20, LONG)
    with pytest.raises(KeyboardInterrupt):
        TrafficLearner(config).step()
    assert open_buffer(config).counts()["judgements"] == 2 * len(trained_on)
    assert open_traffic(config).counts()["waiting"] == 20
    answer_by(lambda model: SHORT, monkeypatch)
    TrafficLearner(config).step()
    groups = open_buffer(config).draw(99, seed=0)
    assert {group.candidates for group in groups} == {(SHORT, LONG, LONG + " indeed")}
    assert len(groups) == len(trained_on)
    assert open_traffic(config).success()[0]["judged"] == 20


def test_a_verifier_that_is_down_leaves_the_answers_waiting(config, monkeypatch):
    from penchant.recipes.self_improve.verifying import FAILED

    add_traffic(config, 5, LONG)
    traffic_learner = TrafficLearner(config)
    traffic_learner._verifier = lambda prompts, answers: [FAILED] * len(prompts)
    for _ in range(5):
        with pytest.raises(ConfigError, match="no verdict on 5 answers"):
            traffic_learner.step()
    assert open_traffic(config).counts()["waiting"] == 5


@pytest.fixture
def ready(config, monkeypatch):
    """A folder with pairs and checks for an update; a tuned model answers as its folder's file says."""

    def tune(self, folder, model, seed):
        (folder / "merged").mkdir(parents=True)
        (folder / "train.jsonl").exists()
        return str(folder / "merged")

    monkeypatch.setattr(TextLearner, "tune", tune)
    answer_by(lambda model: SHORT, monkeypatch)
    add_traffic(config, 40, LONG)
    TrafficLearner(config).step()
    return config


def result(config, number):
    return json.loads((Path(config.output) / "updates" / str(number) / "result.json").read_text())


def test_the_gate_lets_a_better_learner_through(ready, monkeypatch):
    answer_by(lambda model: SHORT if "updates" in model else LONG, monkeypatch)
    TrafficLearner(ready).step()
    decision = result(ready, 1)
    assert (decision["from"], decision["served"], decision["checks"]) == (0, 1, 8)
    assert decision["gate"] == {"0": 0.0, "1": 1.0}
    assert decision["gate_p"] == {"1": 0.5**8}
    assert decision["gained"]["1"]["value"] == 1.0
    assert 0 < decision["gained"]["1"]["low"] < 1
    served = read_served(Path(ready.output))
    assert (served.update, Path(served.model).is_dir()) == (1, True)


def test_the_gate_refuses_a_worse_learner(ready, monkeypatch):
    answer_by(lambda model: LONG if "updates" in model else SHORT, monkeypatch)
    TrafficLearner(ready).step()
    decision = result(ready, 1)
    assert (decision["served"], decision["gate"], decision["gate_p"]) == (0, {"0": 1.0, "1": 0.0}, {"1": 1.0})
    assert decision["gained"]["1"]["value"] == -1.0
    assert read_served(Path(ready.output)) == ServedModel(0, ready.model)
    # What was refused leaves its numbers behind, and no weights and texts.
    assert {path.name for path in (Path(ready.output) / "updates" / "1").iterdir()} == {"begun.json", "result.json"}


def test_no_update_starts_without_enough_checks(ready):
    config = ready.model_copy(update={"checks": 30})
    assert not TrafficLearner(config).step()
    assert not (Path(ready.output) / "updates").exists()


def test_the_groups_of_an_update_start_no_other_one(ready, monkeypatch):
    answer_by(lambda model: LONG, monkeypatch)
    traffic_learner = TrafficLearner(ready)
    added = open_buffer(ready).count_added()
    assert added >= 8
    assert traffic_learner.step()
    assert json.loads((Path(ready.output) / "updates" / "1" / "begun.json").read_text())["added"] == added
    assert not traffic_learner.step()


def test_a_killed_update_resumes_with_the_same_checks(ready, monkeypatch):
    checked = []

    def evaluate(backend, model, first_model, prompts, *arguments):
        checked.append(prompts)
        if len(checked) == 1:
            raise KeyboardInterrupt
        return real(backend, model, first_model, prompts, *arguments)

    real = trainer.evaluate_learner
    monkeypatch.setattr(trainer, "evaluate_learner", evaluate)
    with pytest.raises(KeyboardInterrupt):
        TrafficLearner(ready).step()
    open_traffic(ready).add([NewAnswer(f"later {n}", SHORT, 0) for n in range(40)], {})
    monkeypatch.setattr(TextLearner, "tune", lambda self, folder, model, seed: str(folder / "merged"))
    TrafficLearner(ready).step()
    assert len(checked) == 3
    assert checked[0] == checked[1] == checked[2]
    assert result(ready, 1)["checks"] == 8


@pytest.fixture
def process(monkeypatch):
    """A list of Python programs that stand in for the process, one a start; the last one is repeated."""
    programs = ["import time; time.sleep(60)"]

    def start(self):
        program = programs.pop(0) if len(programs) > 1 else programs[0]
        return subprocess.Popen([sys.executable, "-S", "-c", program])

    monkeypatch.setattr(BackgroundLearning, "_start", start)
    monkeypatch.setattr(background, "PAUSE", 0.01)
    return programs


@pytest.fixture
def swaps():
    return []


@pytest.fixture
def wait_until():
    """A function that waits until a condition holds, and fails after 20 seconds."""

    def wait(condition):
        deadline = time.perf_counter() + 20
        while not condition():
            assert time.perf_counter() < deadline
            time.sleep(0.01)

    return wait


@pytest.fixture
def learning(tmp_path, learner, process, swaps, wait_until):
    with BackgroundLearning(configured(tmp_path, learner), "m") as in_background:
        in_background.start(swaps.append)
        wait_until(lambda: in_background._process is not None)
        yield in_background
        in_background.stop()


def test_recorded_answers_are_stored_and_shown(learning, wait_until):
    learning.record("prompt", "answer")
    learning.skip("opted out")
    wait_until(lambda: learning.status()["traffic"].get("recorded") == 1)
    status = learning.status()
    assert status["traffic"] == {
        "dropped": 0, "opted out": 1, "recorded": 1, "waiting": 1, "lost": 0,
    }  # fmt: skip
    assert status["activity"] == "judging"
    assert status["loaded"]["update"] == status["served"]["update"] == 0
    assert (status["error"], status["updates"], status["judged"], status["swaps"]) == (None, [], 0, 0)


def test_recording_never_waits(tmp_path, learner, process, monkeypatch):
    """Beyond what memory holds, answers are counted as lost, even while the disk does not answer."""
    monkeypatch.setattr(background, "MAX_QUEUE", 3)
    release = threading.Event()
    with BackgroundLearning(configured(tmp_path, learner), "m") as in_background:
        monkeypatch.setattr(in_background._traffic, "add", lambda *_: release.wait(20))
        in_background.start(lambda folder: None)
        for _ in range(100):
            in_background.record("prompt", "answer")
        assert in_background.status()["traffic"]["lost"] >= 94
        release.set()
        in_background.stop()


def test_what_was_recorded_is_stored_when_the_server_stops(tmp_path, learner, process):
    config = configured(tmp_path, learner)
    with BackgroundLearning(config, "m") as in_background:
        in_background.start(lambda folder: None)
        in_background.record("prompt", "answer")
        in_background.stop()
        process_left = in_background._process
    assert open_traffic(config).counts()["waiting"] == 1
    assert process_left is None or process_left.poll() is not None


def test_a_crash_is_shown_and_the_process_started_again(learning, process, wait_until, notices):
    process[:] = ["import sys; sys.exit(3)", "import time; time.sleep(60)"]
    learning._process.kill()
    wait_until(lambda: learning.status()["restarts"] == 2)
    error = learning.status()["error"]["message"]
    assert error.startswith("the process that learns ended with 3; see ")
    assert any("ended with -9" in message for message in notices.messages)
    learning.record("prompt", "answer")
    wait_until(lambda: learning.status()["traffic"]["waiting"] == 1)
    wait_until(lambda: learning.status()["activity"] == "judging")


class Ended:
    """A process that has ended."""

    def poll(self):
        return 1


def test_pauses_between_starts_double(tmp_path, learner, monkeypatch):
    """They begin anew after a process that lived for long."""
    starts, seconds = [], [1000.0]
    monkeypatch.setattr(background.time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(BackgroundLearning, "_start", lambda self: starts.append(seconds[0]) or Ended())
    with BackgroundLearning(configured(tmp_path, learner), "m") as in_background:
        for _ in range(64):
            in_background._watch_process()
            seconds[0] += 0.5
        assert [later - earlier for earlier, later in itertools.pairwise(starts)] == [1.5, 2.5, 4.5, 8.5]
        for pause in (background.MAX_RESTART_PAUSE, background.MAX_RESTART_PAUSE + 1, 1.0):
            seconds[0] += pause
            in_background._watch_process()
        assert starts[-1] - starts[-2] == background.MAX_RESTART_PAUSE + 2


def test_the_error_that_the_process_wrote_is_shown(learning, wait_until, tmp_path):
    (tmp_path / "out" / trainer.ERROR).write_text(json.dumps({"error": "the verifier is down"}))
    learning._process.kill()
    wait_until(lambda: learning.status()["error"] is not None)
    assert learning.status()["error"]["message"] == "the verifier is down"


def test_a_full_disk_is_shown_and_the_answers_are_stored_later(learning, wait_until, monkeypatch):
    add, errors = learning._traffic.add, [DiskFullError("the disk is full"), None]

    def full_once(*arguments):
        if (error := errors.pop(0) if errors else None) is not None:
            raise error
        add(*arguments)

    monkeypatch.setattr(learning._traffic, "add", full_once)
    learning.record("prompt", "answer")
    wait_until(lambda: learning.status()["traffic"].get("recorded") == 1)
    assert "the disk is full" in learning.status()["error"]["message"]


def test_the_server_loads_what_the_gate_chose(learning, swaps, wait_until, tmp_path):
    write_served(tmp_path / "out", ServedModel(1, "updates/1/merged"))
    wait_until(lambda: learning.status()["swaps"] == 1)
    assert swaps == ["updates/1/merged"]
    assert learning.status()["loaded"] == {"update": 1, "model": "updates/1/merged"}
    learning.record("prompt", "answer")
    wait_until(lambda: learning.status()["traffic"].get("recorded") == 1)
    [answer] = learning._traffic.begin(1)
    assert answer.served == 1


def test_a_failed_load_is_shown_and_the_old_model_stays(learning, wait_until, tmp_path):
    def swap(folder):
        raise OSError("no such folder")

    learning._swap = swap
    write_served(tmp_path / "out", ServedModel(1, "gone"))
    wait_until(lambda: learning.status()["error"] is not None)
    assert learning.status()["error"]["message"] == "OSError: no such folder"
    assert learning.status()["loaded"]["update"] == 0


def test_a_restarted_server_goes_on_with_the_learner_that_was_served(tmp_path, learner, process):
    config = configured(tmp_path, learner)
    with BackgroundLearning(config, "m") as in_background:
        assert in_background.served == ServedModel(0, learner)
    write_served(tmp_path / "out", ServedModel(3, "updates/3/merged"))
    with BackgroundLearning(config, "m") as in_background:
        assert in_background.served == ServedModel(3, "updates/3/merged")


def test_a_second_server_in_the_folder_is_an_error(tmp_path, learner, process):
    config = configured(tmp_path, learner)
    with BackgroundLearning(config, "m"), pytest.raises(ConfigError, match="another process"):
        BackgroundLearning(config, "m")


def test_the_folder_of_another_configuration_is_an_error(tmp_path, learner, process):
    with BackgroundLearning(configured(tmp_path, learner), "m"):
        pass
    with pytest.raises(ConfigError, match="another configuration's"):
        BackgroundLearning(configured(tmp_path, learner, attempts=5), "m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"as_chat": True}}, "data.as_chat: chats are read by the served model's own template"),
        ({"checks": 4}, "checks"),
        ({"prompts": "file.jsonl"}, "prompts"),
        ({"memory": "{prompt} again"}, "memory: expected a template"),
    ],
)
def test_invalid_configuration(tmp_path, learner, changes, message):
    with pytest.raises(ConfigError) as error:
        configured(tmp_path, learner, **changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"update": {"objective": {"name": "rloo"}}}, "rloo"),
        ({"verifier": {"function": "missing.py:f"}}, "missing.py"),
        ({"sampling": {"max_new_tokens": 100_000}}, "sampling.max_new_tokens is 100000"),
    ],
)
def test_errors_come_before_the_server_starts_and_leave_no_folder(tmp_path, learner, changes, message):
    with pytest.raises(PenchantError, match=message):
        BackgroundLearning(configured(tmp_path, learner, **changes), "m")
    assert not (tmp_path / "out").exists()
