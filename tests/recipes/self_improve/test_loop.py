"""The loop with its trainer beside it, at tiny size: killed, filled up, and gone on with."""

from __future__ import annotations

import html
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from penchant.cli import run
from penchant.config_errors import validated
from penchant.engine.folder_lock import folder_lock
from penchant.errors import ConfigError, DataError, DiskFullError, PenchantError, TrainingError
from penchant.recipes import world
from penchant.recipes.self_improve import loop, trainer
from penchant.recipes.self_improve.buffer import ReplayBuffer
from penchant.recipes.self_improve.config import SelfImproveConfig
from penchant.recipes.self_improve.learner import Learner
from penchant.recipes.self_improve.loop import improve, read_rounds
from penchant.recipes.self_improve.measuring import measure
from penchant.recipes.self_improve.parts import open_buffer, open_folder
from penchant.recipes.self_improve.pipeline import self_improve
from penchant.recipes.self_improve.report import alarms, summarise, write_result
from penchant.recipes.self_improve.served import Served, read_served, serve
from penchant.recipes.self_improve.text_medium import TextMedium
from penchant.recipes.self_improve.trainer import idle, next_update, update
from penchant.recipes.self_improve.verifying import Verdict

RULE = "def conditions(prompt, answer):\n    return {'short': len(answer.split()) < 4}\n"


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    """A random Llama that knows the world's words; a handful of its answers are short by chance."""
    folder = tmp_path_factory.mktemp("learner") / "model"
    tokenizer = world.build_tokenizer()
    tokenizer.save_pretrained(folder)
    world.build_model(len(tokenizer), 0).save_pretrained(folder)
    return str(folder)


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
def done(tmp_path_factory, learner):
    folder = tmp_path_factory.mktemp("improve")
    config = configured(folder, learner)
    return config, improve(config), Path(config.output)


def test_a_second_loop_in_the_same_folder_is_refused(tmp_path, learner):
    config = configured(tmp_path, learner)
    with folder_lock(tmp_path / "out"), pytest.raises(ConfigError, match="another process"):
        self_improve(config)
    assert not (tmp_path / "out").exists()


def test_what_it_leaves(done, counted):
    config, rounds, output = done
    assert [each["round"] for each in rounds] == [0, 1, 2]
    parts = json.loads((output / "prompts.json").read_text())
    assert {name: len(part) for name, part in parts.items()} == {"train": 14, "gate": 5, "test": 5, "categories": 24}
    assert len({text for name in ("train", "gate", "test") for text in parts[name].values()}) == 24
    assert counted(output)["judgements"] == rounds[1]["judgements"] + rounds[2]["judgements"]
    updates = next_update(output) - 1
    buffer = open_buffer(config)
    assert updates == buffer.added() // 2 > 0
    assert idle(config, buffer)
    for number in range(1, updates + 1):
        told = json.loads((output / "updates" / str(number) / "result.json").read_text())
        passes = min(told["gate_p"].values()) <= 0.05 / len(told["gate_p"])
        assert (told["served"] != told["from"]) == passes
        assert told["gate"].keys() == {"0", str(told["from"]), str(number)}
        assert (output / "updates" / str(number) / "merged" / "model.safetensors").exists()
    assert read_served(output).update == rounds[-1]["served"] == told["served"]
    # The next round does not start with the prompts of the last.
    names = [set(loop._names(config, parts, number)) for number in (1, 2)]
    assert len(names[0] | names[1]) == 14


def shown(rounds):
    """Answers that the page shows, as it writes them."""
    return [html.escape(each["test"]["answers"][0].strip()) for each in (rounds[0], rounds[-1])]


def test_the_page(done):
    config, rounds, output = done
    found = write_result(config, rounds)
    assert found == summarise(config, rounds)
    first, last = found["rounds"][0], found["rounds"][-1]
    assert first["gained"]["value"] == 0
    before, after = (each["test"]["satisfied"] for each in (rounds[0], rounds[-1]))
    assert last["success"]["value"] == pytest.approx(sum(after) / 5)
    gained = sum(each["prompts"] * each["gained"]["value"] for each in found["categories"].values())
    assert sum(each["prompts"] for each in found["categories"].values()) == 5
    assert gained == pytest.approx(sum(after) - sum(before))
    page = (output / "report.html").read_text()
    assert all(text in page for text in ("Updates, and the gate", "Success on held-out prompts", "Distance from"))
    assert "By category" in page
    assert all(" ".join(said.split()) in " ".join(page.split()) for said in shown(rounds))


def test_done_is_not_done_again(done, counted):
    config, rounds, output = done
    before = counted(output)
    assert improve(config) == rounds == read_rounds(config)
    assert counted(output) == before


def test_another_configuration_of_the_same_folder(done, learner):
    config, _, _ = done
    with pytest.raises(ConfigError, match="the folder is another configuration's"):
        improve(config.model_copy(update={"attempts": 2}))


def test_a_swap_between_batches(learner, done):
    """The same prompts and draws: another answer only where another learner was taken, and then its own."""
    config, _, output = done
    load, other = TextMedium(config).load, str(output / "updates" / "1" / "merged")
    mine = Learner(Served(0, learner), load)
    prompts, numbers = world.prompts(40, 1), range(40)
    first = mine.answer(prompts, numbers)
    assert mine.answer(prompts, numbers) == first
    mine.take(Served(0, learner))
    assert mine.swaps == []
    mine.take(Served(1, other))
    assert len(mine.swaps) == 1
    assert mine.served.update == 1
    assert mine.answer(prompts, numbers) == load(other)(prompts, numbers) != first


def test_a_learner_that_cannot_be_loaded_leaves_the_old_one(learner, done, tmp_path):
    config, _, _ = done
    mine = Learner(Served(0, learner), TextMedium(config).load)
    prompts = world.prompts(3, 1)
    before = mine.answer(prompts, range(3))
    with pytest.raises(Exception, match="no such folder"):
        mine.take(Served(2, str(tmp_path / "none")))
    assert mine.served.update == 0
    assert mine.answer(prompts, range(3)) == before


def test_learners_exchanged_while_they_answer(learner, done, tmp_path, monkeypatch):
    """Another process exchanges the served one all the time: each batch is one learner's, whole, and some of each."""
    config = configured(tmp_path, learner, update={"new": 1000}, rounds=1, attempts=2, batch=2)
    folders = [learner, str(done[2] / "updates" / "1" / "merged")]
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom penchant.recipes.self_improve.served import Served, serve\n"
        "while True:\n    for n in (0, 1):\n        serve(Path(sys.argv[1]), Served(n, sys.argv[2 + n]))\n"
        "        time.sleep(0.01)\n"
    )
    by_folder = {folder: TextMedium(config).load(folder) for folder in folders}
    batches, plain = [], loop.attempt

    def watched(batch, number, answer, *rest, **more):
        def noted(prompts, numbers):
            said = answer(prompts, numbers)
            batches.append((list(prompts), list(numbers), said))
            return said

        return plain(batch, number, noted, *rest, **more)

    monkeypatch.setattr(loop, "attempt", watched)
    open_folder(config)
    exchanging = subprocess.Popen([sys.executable, "-c", script, config.output, *folders])
    try:
        while read_served(Path(config.output)) is None:
            time.sleep(0.01)
        [_, told] = improve(config)
    finally:
        exchanging.kill()
        exchanging.wait()
    mine = [[by_folder[folder](prompts, numbers) for folder in folders] for prompts, numbers, _ in batches]
    assert all(said in both for (_, _, said), both in zip(batches, mine, strict=True))
    assert len(told["swaps"]) >= 1
    differing = [both.index(said) for (_, _, said), both in zip(batches, mine, strict=True) if both[0] != both[1]]
    assert set(differing) == {0, 1}


def test_the_pointer_is_whole_while_it_is_replaced(tmp_path):
    """A thousand exchanges under a reader: it never sees half of one."""
    serve(tmp_path, Served(0, "m" * 5000))
    seen, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            seen.append(read_served(tmp_path))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 1001):
        serve(tmp_path, Served(number, "m" * 5000))
    stop.set()
    reader.join()
    assert all(each is not None and len(each.model) == 5000 for each in seen)
    assert [each.update for each in seen] == sorted(each.update for each in seen)


def ready_to_update(config, done):
    """The buffer of a folder that was begun, with four groups of a run that is done."""
    open_folder(config)
    serve(Path(config.output), Served(0, config.model))
    buffer = open_buffer(config)
    for group in ReplayBuffer(done[2] / "buffer.sqlite", 100).draw(4, seed=0):
        buffer.add(group, 1.0)
    return buffer


def test_an_update_that_was_killed_ends_the_same(done, tmp_path, learner):
    """After the draw and before the decision: the same draw, the same weights."""
    config = configured(tmp_path, learner)
    buffer = ready_to_update(config, done)
    update(config, buffer, 1)
    folder = tmp_path / "out" / "updates" / "1"
    drawn, decided = (folder / "train.jsonl").read_bytes(), json.loads((folder / "result.json").read_text())
    weights = (folder / "merged" / "model.safetensors").read_bytes()
    lowered = buffer.priorities()
    assert sorted(lowered.values()) == [0.5] * 4
    for left in ("result.json", "merged", "run"):
        shutil.rmtree(folder / left) if (folder / left).is_dir() else (folder / left).unlink()
    update(config, buffer, 1)
    again = json.loads((folder / "result.json").read_text())
    assert (folder / "train.jsonl").read_bytes() == drawn
    assert (folder / "merged" / "model.safetensors").read_bytes() == weights
    assert {**again, "seconds": 0} == {**decided, "seconds": 0}
    assert buffer.counts()["draws"] == 4
    assert buffer.priorities() == lowered


def test_an_update_that_finds_no_room(done, tmp_path, learner, monkeypatch):
    """Whoever wrote what did not fit; the trainer would start again after anything but an error in words."""
    config = configured(tmp_path, learner)
    buffer = ready_to_update(config, done)

    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(TextMedium, "tune", full)
    with pytest.raises(DiskFullError, match="the disk is full") as error:
        update(config, buffer, 1)
    assert error.value.fix == "free some space, then go on with: the same command"


def test_an_update_that_was_killed_before_it_began(done, tmp_path, learner, monkeypatch):
    """After the draw: it draws again, and priorities are lowered once."""
    config = configured(tmp_path, learner)
    buffer = ready_to_update(config, done)

    def killed(*_):
        raise KeyboardInterrupt

    for name in ("write_atomically", "lower"):
        with monkeypatch.context() as patched:
            patched.setattr(trainer if name == "write_atomically" else ReplayBuffer, name, killed)
            with pytest.raises(KeyboardInterrupt):
                update(config, buffer, 1)
    update(config, buffer, 1)
    assert set(buffer.priorities().values()) == {0.5}


@pytest.mark.slow
def test_killed_anywhere_no_judgement_is_lost_or_doubled(done, learner, tmp_path, killed_anywhere):
    killed_anywhere(configured(tmp_path, learner), tmp_path)


def test_what_stops_the_trainer_stops_the_loop(learner, tmp_path):
    """A mistake that only the trainer meets: one error, and no process left."""
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
def test_what_could_not_be_tuned_or_answered_is_refused_before_anything_is_made(tmp_path, learner, changes, message):
    config = configured(tmp_path, learner, **changes)
    with pytest.raises(PenchantError, match=message):
        improve(config)
    assert not (tmp_path / "out" / "rounds").exists()
    assert not (tmp_path / "out" / "buffer.sqlite").exists()


def test_a_learner_that_is_an_adapter(tmp_path, learner):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": learner}))
    with pytest.raises(ConfigError, match="model is an adapter folder") as error:
        improve(configured(tmp_path, str(tmp_path / "adapter")))
    assert "penchant merge" in error.value.fix


@pytest.mark.parametrize("what", ["verifier", "model"])
def test_a_run_goes_on_only_with_what_it_began_with(tmp_path, learner, what):
    model = tmp_path / "model"
    shutil.copytree(learner, model)
    config = configured(tmp_path, str(model))
    open_folder(config)
    open_folder(config)
    if what == "verifier":
        (tmp_path / "rule.py").write_text(RULE.replace("< 4", "< 3"))
    else:
        weights = load_file(model / "model.safetensors")
        save_file({name: value + 1 for name, value in weights.items()}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=f"the {what} is no longer what it was when the run began"):
        improve(config)


def test_an_output_that_is_a_file(tmp_path, learner):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ConfigError, match="output cannot be made"):
        improve(configured(tmp_path, learner))


def test_a_verifier_that_is_down_is_no_measurement(tmp_path, learner):
    """Nothing is kept of it: once the verifier is up, the first learner is measured as it is."""
    silence = "from penchant.recipes.self_improve.verifying import Verdict\n"
    silence += "def conditions(prompt, answer):\n    return Verdict((), 0.0, '', failed=True)\n"
    config = configured(tmp_path, learner)
    (tmp_path / "rule.py").write_text(silence)
    with pytest.raises(ConfigError, match="the verifier gave no verdict on 5 of 5 answers"):
        improve(config)
    assert not list((tmp_path / "out" / "rounds").glob("*.json"))


def test_a_few_answers_without_a_verdict_are_counted(tmp_path, learner):
    medium, prompts = TextMedium(configured(tmp_path, learner)), world.prompts(40, 3)

    def but_one(asked, answers):
        return [Verdict((), 0.0, "", failed=True), *[Verdict((True,), 1.0, "")] * (len(asked) - 1)]

    found = measure(medium, learner, learner, prompts, but_one, 0)
    assert (found.unjudged, sum(found.satisfied)) == (1, 39)
    assert measure(medium, learner, learner, prompts, but_one, 0) == found
    assert measure(medium, learner, learner, prompts, but_one, 1).answers != found.answers


def test_a_trainer_that_is_killed_again_and_again(learner, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "RESTARTS", 1)
    config = configured(tmp_path, learner)
    open_folder(config)
    with loop.Trainer(Path(config.output)) as trainer:
        for _ in range(2):
            os.kill(trainer.pid, signal.SIGKILL)
            trainer._process.wait()
            if _ == 0:
                trainer.check()
        with pytest.raises(TrainingError, match=r"the trainer ended 2 times, the last time with -9"):
            trainer.check()


def test_a_trainer_without_room_on_the_disk(learner, tmp_path, monkeypatch, counted):
    """Its files may not grow beyond 200 kB: its weights do not fit, the loop stops, and goes on once there is room."""
    narrow = tmp_path / "narrow"
    narrow.write_text(f"#!/bin/bash\nulimit -f 200\nexec {sys.executable} $@\n")
    narrow.chmod(0o755)
    config = configured(tmp_path, learner)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "RESTARTS", 0)
        patched.setattr(loop.sys, "executable", str(narrow))
        with pytest.raises(TrainingError, match="the trainer stopped: "):
            improve(config)
    assert not (tmp_path / "out" / "updates" / "1" / "result.json").exists()
    assert read_served(tmp_path / "out") == Served(0, learner)
    rounds = improve(config)
    assert counted(tmp_path / "out")["judgements"] == sum(each.get("judgements", 0) for each in rounds)
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
        ({"update": {"training": {"seed": 3}}}, "update.training.seed: each update has its own"),
        ({"sampling": {"samples": 2}}, "sampling.samples and sampling.every are of runs on fresh samples"),
        ({"verifier": {"function": "a.py:f", "threshold": 0.5}}, "threshold is a reward's"),
        ({"verifier": {"reward": {"judge": {"url": "http://x/v1", "model": "m"}}}}, "ratings are 1 to 10"),
    ],
)
def test_a_wrong_configuration(tmp_path, learner, changes, message):
    with pytest.raises(ConfigError) as error:
        configured(tmp_path, learner, **changes)
    assert message in str(error.value)


def test_prompts_of_messages(learner, tmp_path):
    config = configured(tmp_path, learner)
    row = {"prompt": [{"role": "user", "content": "Hello."}]}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match="a prompt is messages"):
        improve(config)


def told(success, amount=10.0, distinct=0.5, old=0.5, distance=0.0):
    signs = {"amount": amount, "distinct": distinct, "distance": distance, "unjudged": 0}
    return {
        "test": {"satisfied": [float(n < success) for n in range(10)], **signs},
        "first round": {"satisfied": [float(n < old * 10) for n in range(10)]},
    }


def test_alarms():
    def found(*rounds):
        return alarms(TextMedium, rounds)

    assert found(told(1), told(3), told(4)) == []
    assert found(told(1), told(3), told(3), told(2)) == ["no better on the test since round 1"]
    assert found(told(1), told(2, distinct=0.2)) == [
        "answers have become alike: distinct pairs of words 0.20, at first 0.50"
    ]
    assert found(told(1), told(2, amount=4)) == ["answers have changed: words 4, at first 10"]
    assert found(told(1, old=0.6), told(2, old=0.3)) == ["the first round's prompts are forgotten: 0.30, at best 0.60"]
    assert found(told(1), told(3, distance=1.0), told(3, distance=1.9)) == []
    assert found(told(1), told(3, distance=1.0), told(2, distance=2.5)) == [
        "far from the first learner for nothing: KL, nats 2.5, 1 at its best"
    ]
    # None was better than the first.
    assert found(told(3), told(2, distance=1.0), told(2, distance=1.9)) == ["no better on the test since round 0"]
    assert found(told(3), told(2, distance=1.0), told(3, distance=2.5)) == [
        "no better on the test since round 0",
        "far from the first learner for nothing: KL, nats 2.5, 1 at first",
    ]
    assert found(told(1), told(2) | {"unjudged": 3}) == [
        "the verifier gave no verdict on 3 answers: none of them is learnt, or counts as right"
    ]


def test_patience(done, tmp_path, learner):
    """A learner that updates make worse, as the gate finds: rounds without an update do not count."""
    never = configured(tmp_path, learner, rounds=3, patience=1, update={"new": 1000})
    assert len(improve(never)) == 4
    folder = tmp_path / "kept"
    folder.mkdir()
    config = configured(folder, learner, rounds=6, patience=2)
    found = [{"round": n, "served": s, "updates": u} for n, (s, u) in enumerate([(0, 0), (1, 1), (1, 1), (1, 3)])]
    assert [loop.stopped(config, found[:n]) for n in range(1, 5)] == [None] * 4
    found.append({"round": 4, "served": 1, "updates": 4})
    why = "stopped after round 4: the gate kept what was served (rounds with updates since the last that passed: 2)"
    assert loop.stopped(config, found) == why
    # All were run that should be.
    assert loop.stopped(config.model_copy(update={"rounds": 4}), found) is None
    assert loop.stopped(config.model_copy(update={"patience": None}), found) is None
    assert loop.stopped(config, [*found, {"round": 5, "served": 5, "updates": 5}]) is None


def test_a_run_that_patience_stopped(tmp_path, learner, monkeypatch):
    """The gate is made to keep the first: it stops, says so, and stays stopped."""
    config = configured(tmp_path, learner, rounds=6, patience=1, update={"new": 1000})
    monkeypatch.setattr(loop, "next_update", lambda output: 1 + len(list((output / "rounds").glob("*.json"))))
    told = []
    rounds = improve(config, told.append)
    why = "stopped after round 1: the gate kept what was served (rounds with updates since the last that passed: 1)"
    assert [each["round"] for each in rounds] == [0, 1]
    assert why in told
    assert improve(config) == rounds
    assert summarise(config, rounds)["alarms"][0] == why


def test_from_the_command_line(done, tmp_path, capsys):
    config, _, _ = done
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert run(["recipe", "self-improve", str(file)]) == 0
    assert "gained" in capsys.readouterr().out
    assert run(["recipe", "self-improve", str(file), "--stage", "rounds"]) == 2
    assert "has rounds and no stages" in capsys.readouterr().err
