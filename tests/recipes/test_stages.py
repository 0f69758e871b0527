"""Stages are done once, in order, and again where they were cut short."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from penchant.errors import ConfigError
from penchant.recipes import stages as recipe
from penchant.recipes.stages import RECORD, Stage


class Killed(BaseException):
    pass


def run_stages(folder, listed, finish=lambda found: None, **settings):
    return recipe.run_stages(folder, listed, finish, **settings)


def stages(log: list[str], *, size: int = 1, kill: str | None = None) -> list[Stage]:
    def running(name: str):
        def run(folder: Path) -> dict[str, int]:
            log.append(name)
            (folder / "made").write_text(name * size)
            if name == kill:
                raise Killed
            return {"size": size}

        return run

    return [Stage(name, f"makes {name}", {"size": size}, running(name)) for name in ("a", "b", "c")]


def test_each_is_done_once(tmp_path):
    log, told = [], []
    first = run_stages(tmp_path, stages(log), tell=told.append)
    assert run_stages(tmp_path, stages(log), tell=told.append) == first == {name: {"size": 1} for name in "abc"}
    assert log == ["a", "b", "c"]
    assert told[0] == "1 of 3: makes a"
    assert told[-1] == "3 of 3: makes c: done before"


def test_one_that_was_killed_is_run_again(tmp_path):
    log: list[str] = []
    with pytest.raises(Killed):
        run_stages(tmp_path, stages(log, kill="b"))
    assert not (tmp_path / "b" / RECORD).exists()
    run_stages(tmp_path, stages(log))
    assert log == ["a", "b", "b", "c"]


def test_one_alone(tmp_path):
    log: list[str] = []
    with pytest.raises(ConfigError, match="stage 'a' comes before 'b' and is not done"):
        run_stages(tmp_path, stages(log), only="b")
    with pytest.raises(ConfigError, match="there is no stage 'd'"):
        run_stages(tmp_path, stages(log), only="d")
    run_stages(tmp_path, stages(log), only="a")
    assert list(run_stages(tmp_path, stages(log), only="b")) == ["a", "b"]
    assert log == ["a", "b"]


def test_other_settings_are_refused(tmp_path):
    run_stages(tmp_path, stages([]))
    with pytest.raises(ConfigError, match="was done when a's size was 1; now it is 2") as error:
        run_stages(tmp_path, stages([], size=2))
    assert error.value.where == str(tmp_path / "a")


def test_one_done_after_other_stages_is_refused(tmp_path):
    run_stages(tmp_path, stages([]))
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(ConfigError, match="was done when a's size was 1; now it is 2") as error:
        run_stages(tmp_path, [*stages([], size=2)[:1], *stages([])[1:]])
    assert error.value.where == str(tmp_path / "b")


@pytest.mark.parametrize("text", ['{"settings": {"a": 1}, "found": 1}', "", "[]", "{}", "null"])
def test_a_broken_record(tmp_path, text):
    run_stages(tmp_path, stages([]))
    (tmp_path / "b" / RECORD).write_text(text)
    with pytest.raises(ConfigError, match="not a stage's record"):
        run_stages(tmp_path, stages([]))


def test_the_record_is_readable(tmp_path):
    run_stages(tmp_path, stages([]))
    assert json.loads((tmp_path / "a" / RECORD).read_text()) == {
        "settings": {"a": {"size": 1}},
        "found": {"size": 1},
    }


def test_it_is_finished_with_the_last_stage_alone(tmp_path):
    finished = []
    run_stages(tmp_path, stages([]), finished.append, only="a")
    run_stages(tmp_path, stages([]), finished.append, only="b")
    assert finished == []
    found = run_stages(tmp_path, stages([]), finished.append)
    assert finished == [found]
    # Done before, it is finished anew: a page that was lost comes back.
    run_stages(tmp_path, stages([]), finished.append)
    assert finished == [found, found]
