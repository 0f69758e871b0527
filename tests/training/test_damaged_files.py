"""Files of a run that were damaged since they were written: one clear error that names the file."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from penchant.cli.main import run
from penchant.config.run import load_config, parse_config
from penchant.errors import CheckpointError
from penchant.training.report import write_run_report
from penchant.training.run import train


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_pairs: Path) -> Path:
    """A run of six steps with a checkpoint every second one and a report; not to be changed."""
    values = {
        "model": str(tiny_model),
        "data": {"train": str(tiny_pairs), "held_out": 0.25},
        "output": str(tmp_path_factory.mktemp("finished") / "run"),
        "objective": {"name": "dpo"},
        "training": {"max_steps": 6, "batch_size": 8, "token_budget": 128, "learning_rate": 1e-3},
        "evaluation": {"samples": 1, "sample_tokens": 4},
        "logging": {"every": 1},
        "checkpoints": {"every": 2, "keep": 5},
    }
    folder = train(parse_config(values, "run"))
    write_run_report(folder)
    return folder


@pytest.fixture
def folder(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace(str(finished_run), str(copy)))
    return copy


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "the file is damaged"),
        (lambda file: file.write_text("[]"), "it holds no object, but list"),
        (lambda file: file.write_text("{}"), "it lacks config, data"),
        (lambda file: file.write_bytes(b"\0" * 100), "the file is damaged"),
        (lambda file: file.write_bytes(b"\xff\xfe{"), "the file is damaged"),
    ],
    ids=["cut", "list", "empty", "zeros", "no text"],
)
def test_run_json(folder, damage: Callable[[Path], None], message, capsys):
    damage(folder / "run.json")
    assert run(["train", "--resume", str(folder)]) == 2
    message_text = capsys.readouterr().err
    assert f"error: {folder / 'run.json'}: " in message_text
    assert message in message_text
    assert "what to do: put the whole file back" in message_text


@pytest.mark.slow_but("cut")
@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        lambda file: file.write_text("[]"),
        lambda file: file.write_text(file.read_text().replace('"definitions"', '"definitionr"')),
        lambda file: file.write_text('{"before": 1, "after": {"definitions": {"accuracy": ""}, "groups": 3}}'),
    ],
    ids=["cut", "list", "another key", "another type"],
)
def test_evaluation_json(folder, damage: Callable[[Path], None], capsys):
    damage(folder / "evaluation.json")
    assert run(["train", "--resume", str(folder)]) == 2
    message_text = capsys.readouterr().err
    assert f"error: {folder / 'evaluation.json'}: the file is damaged" in message_text
    assert "delete it: it is measured again" in message_text
    (folder / "evaluation.json").unlink()
    assert run(["train", "--resume", str(folder)]) == 0
    assert json.loads((folder / "evaluation.json").read_text())["after"]


@pytest.mark.slow
def test_a_log_shorter_than_when_the_checkpoint_was_made(folder):
    """It was filled up with zeros."""
    for name in ("step-00000004", "step-00000006"):
        shutil.rmtree(folder / "checkpoints" / name)
    log = folder / "metrics.jsonl"
    recorded = json.loads((folder / "checkpoints" / "step-00000002" / "state.json").read_text())["log_size"]
    os.truncate(log, recorded - 7)
    with pytest.raises(CheckpointError, match=f"has {recorded - 7} bytes, and had {recorded} when") as error:
        train(load_config(folder / "config.yaml", []), resume=True)
    assert error.value.where == str(log)
    log.unlink()
    with pytest.raises(CheckpointError, match=f"has 0 bytes, and had {recorded} when"):
        train(load_config(folder / "config.yaml", []), resume=True)
    shutil.rmtree(folder / "checkpoints")
    train(load_config(folder / "config.yaml", []), resume=True)
    assert json.loads(log.read_text().splitlines()[-1])["step"] == 6


def test_a_log_of_other_bytes_than_when_the_checkpoint_was_made(folder):
    """A digit that is another one reads well, and went on into the report."""
    log = folder / "metrics.jsonl"
    content = log.read_bytes()
    position = content.index(b'"loss": ') + len(b'"loss": ')
    log.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
    with pytest.raises(CheckpointError, match="are not those it had when the checkpoint was made") as error:
        train(load_config(folder / "config.yaml", []), resume=True)
    assert error.value.where == str(log)
    log.write_bytes(content)
    train(load_config(folder / "config.yaml", []), resume=True)
    assert log.read_bytes() == content


def test_a_log_with_a_line_that_is_none(folder):
    log = folder / "metrics.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:2], b"\0\0\0\n", *lines[2:]]))
    with pytest.raises(CheckpointError, match="the file is damaged: line 3") as error:
        write_run_report(folder)
    assert error.value.where == str(log)


def test_a_time_that_was_half_written_is_dropped(folder):
    times = (folder / "timing.jsonl").read_bytes()
    (folder / "timing.jsonl").write_bytes(times[:-5])
    train(load_config(folder / "config.yaml", []), resume=True)
    assert (folder / "timing.jsonl").read_bytes() == times[: times[:-1].rindex(b"\n") + 1]


@pytest.mark.slow_but("short")
@pytest.mark.parametrize(
    "damage",
    [lambda value: bytes([*value[:-3], value[-3] ^ 1, *value[-2:]]), lambda value: value[:-8], lambda value: b""],
    ids=["a flipped bit", "short", "empty"],
)
def test_cached_log_probs_are_computed_again(write_config, tmp_path, caplog, damage):
    """A flipped bit of a reference's log-prob would train to other weights without a word."""
    file = write_config()
    expected = train(load_config(file, [f"output={tmp_path / 'expected'}"]))
    cache = Path(os.environ["PENCHANT_CACHE"]) / "log_probs.sqlite"
    with sqlite3.connect(cache) as connection:
        rows = connection.execute("SELECT key, value FROM log_probs").fetchall()
        connection.execute("UPDATE log_probs SET value = ? WHERE key = ?", (damage(rows[0][1]), rows[0][0]))
    with caplog.at_level(logging.WARNING):
        folder = train(load_config(file, [f"output={tmp_path / 'damaged'}"]))
    assert f"{cache}: 1 cached log-probs are damaged; they are computed again" in caplog.text
    assert (folder / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()
    with sqlite3.connect(cache) as connection:
        assert sorted(connection.execute("SELECT key, value FROM log_probs")) == sorted(rows)
