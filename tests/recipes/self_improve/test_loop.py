"""The loop with its trainer beside it, at tiny size: killed, filled up, and gone on with."""

from __future__ import annotations

import html
import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import yaml

from penchant.cli import run
from penchant.config_errors import validated
from penchant.errors import ConfigError, DataError, TrainingError
from penchant.recipes import world
from penchant.recipes.self_improve import loop
from penchant.recipes.self_improve.buffer import ReplayBuffer
from penchant.recipes.self_improve.config import SelfImproveConfig
from penchant.recipes.self_improve.learner import Learner
from penchant.recipes.self_improve.loop import improve, read_rounds
from penchant.recipes.self_improve.parts import open_buffer, open_folder
from penchant.recipes.self_improve.report import alarms, summarise, write_result
from penchant.recipes.self_improve.served import Served, read_served, serve
from penchant.recipes.self_improve.text_medium import TextMedium
from penchant.recipes.self_improve.trainer import idle, next_update, update

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
        assert told["gate"][str(told["served"])] == max(told["gate"].values())
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
    """The same prompts and draws: another answer only where another learner was taken."""
    config, _, output = done
    mine = Learner(Served(0, learner), TextMedium(config).load)
    prompts = world.prompts(6, 1)
    first = mine.answer(prompts, 3)
    assert mine.answer(prompts, 3) == first
    mine.take(Served(0, learner))
    assert mine.swaps == []
    mine.take(Served(1, str(output / "updates" / "1" / "merged")))
    assert len(mine.swaps) == 1
    assert mine.served.update == 1


def test_a_learner_that_cannot_be_loaded_leaves_the_old_one(learner, done, tmp_path):
    config, _, _ = done
    mine = Learner(Served(0, learner), TextMedium(config).load)
    prompts = world.prompts(3, 1)
    before = mine.answer(prompts, 0)
    with pytest.raises(Exception, match="no such folder"):
        mine.take(Served(2, str(tmp_path / "none")))
    assert mine.served.update == 0
    assert mine.answer(prompts, 0) == before


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


def test_an_update_that_was_killed_ends_the_same(done, tmp_path, learner):
    """After the draw and before the decision: the same draw, the same weights."""
    config = configured(tmp_path, learner)
    open_folder(config)
    serve(tmp_path / "out", Served(0, learner))
    source = ReplayBuffer(done[2] / "buffer.sqlite", 100)
    buffer = open_buffer(config)
    for group in source.draw(4, seed=0):
        buffer.add(group, 1.0)
    update(config, buffer, 1)
    folder = tmp_path / "out" / "updates" / "1"
    drawn, decided = (folder / "train.jsonl").read_bytes(), json.loads((folder / "result.json").read_text())
    weights = (folder / "merged" / "model.safetensors").read_bytes()
    (folder / "result.json").unlink()
    update(config, buffer, 1)
    again = json.loads((folder / "result.json").read_text())
    assert (folder / "train.jsonl").read_bytes() == drawn
    assert (folder / "merged" / "model.safetensors").read_bytes() == weights
    assert {**again, "seconds": 0} == {**decided, "seconds": 0}
    assert buffer.counts()["draws"] == 4


@pytest.mark.slow
def test_killed_anywhere_no_judgement_is_lost_or_doubled(done, learner, tmp_path, killed_anywhere):
    killed_anywhere(configured(tmp_path, learner), tmp_path)


def test_what_stops_the_trainer_stops_the_loop(learner, tmp_path):
    """A user's mistake that only the trainer meets: one error, and no process left."""
    config = configured(tmp_path, learner, update={"new": 2, "objective": {"name": "nothing"}})
    with pytest.raises(TrainingError, match="the trainer stopped:"):
        improve(config)


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
        with pytest.raises(TrainingError, match=r"the trainer (stopped|ended 1 times)"):
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
    signs = {"amount": amount, "distinct": distinct, "distance": distance}
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


def test_patience(done, tmp_path, learner):
    """Where no update is ever tried, what is served stays: two rounds of six."""
    config = configured(tmp_path, learner, rounds=6, patience=2, update={"new": 1000})
    told = []
    rounds = improve(config, told.append)
    why = "stopped after round 2: for 2 rounds the gate kept what was served"
    assert [each["round"] for each in rounds] == [0, 1, 2]
    assert why in told
    assert improve(config) == rounds
    assert summarise(config, rounds)["alarms"][0] == why
    served = [{"round": n, "served": update} for n, update in enumerate((0, 1, 1, 2, 2))]
    assert [loop.stopped(config, served[:n]) for n in range(1, 6)] == [None] * 5
    still = {"round": 5, "served": 2}
    assert loop.stopped(config, [*served, still]) == why.replace("round 2", "round 5")
    # All were run that should be.
    assert loop.stopped(config.model_copy(update={"rounds": 5}), [*served, still]) is None


def test_from_the_command_line(done, tmp_path, capsys):
    config, _, _ = done
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert run(["recipe", "self-improve", str(file)]) == 0
    assert "gained" in capsys.readouterr().out
    assert run(["recipe", "self-improve", str(file), "--stage", "rounds"]) == 2
    assert "has rounds and no stages" in capsys.readouterr().err
