"""Stages run once and in order, and run again where they were interrupted."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from penchant.errors import ConfigError, DiskFullError
from penchant.recipes import stages as recipe
from penchant.recipes.demo import run_demo
from penchant.recipes.stages import DONE_RECORD, UNFINISHED_RECORD, Stage
from penchant.storage.files import folder_lock


class Killed(BaseException):
    pass


def run_stages(folder, stage_list, finish=lambda results: None, **settings):
    return recipe.run_stages(folder, stage_list, finish, **settings)


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


def test_every_stage_runs_once(tmp_path, notices):
    log = []
    results = run_stages(tmp_path, stages(log))
    assert run_stages(tmp_path, stages(log)) == results == {name: {"size": 1} for name in "abc"}
    assert log == ["a", "b", "c"]
    assert notices.messages[0] == "1 of 3: makes a"
    assert notices.messages[-1] == "3 of 3: makes c: already done"


def test_second_recipe_in_the_same_folder_is_an_error(tmp_path):
    log: list[str] = []
    with folder_lock(tmp_path), pytest.raises(ConfigError, match="another process"):
        run_stages(tmp_path, stages(log))
    assert log == []


def test_second_demo_in_the_same_folder_is_an_error(tmp_path):
    with folder_lock(tmp_path), pytest.raises(ConfigError, match="another process"):
        run_demo(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_in_a_stage_is_reported_and_the_recipe_resumes(tmp_path):
    """The error is recognised although a library has wrapped it."""
    log: list[str] = []
    failures: list[Exception] = [OSError(errno.ENOSPC, "No space left on device")]

    def fail_first(stage_list: list[Stage]) -> list[Stage]:
        def run(folder: Path) -> dict[str, int]:
            if failures:
                raise RuntimeError("cannot write") from failures.pop(0)
            return stage_list[1].run(folder)

        return [stage_list[0], Stage("b", "makes b", {"size": 1}, run), stage_list[2]]

    with pytest.raises(DiskFullError, match="the disk is full") as error:
        run_stages(tmp_path, fail_first(stages(log)))
    assert "give the same command again" in error.value.fix
    assert str(tmp_path) in error.value.where
    run_stages(tmp_path, fail_first(stages(log)))
    assert log == ["a", "b", "c"]


def test_full_disk_in_a_run_suggests_the_recipe_command(tmp_path):
    def run(folder: Path) -> dict[str, int]:
        raise DiskFullError("the disk is full", where="run", fix="free some space, then penchant train --resume run")

    with pytest.raises(DiskFullError) as error:
        run_stages(tmp_path, [Stage("a", "makes a", {}, run)])
    assert "give the same command again" in error.value.fix
    assert error.value.where == "run"


def test_killed_stage_runs_again(tmp_path):
    log: list[str] = []
    with pytest.raises(Killed):
        run_stages(tmp_path, stages(log, kill="b"))
    assert not (tmp_path / "b" / DONE_RECORD).exists()
    run_stages(tmp_path, stages(log))
    assert log == ["a", "b", "b", "c"]


def test_unfinished_stage_with_other_settings_starts_again(tmp_path, notices):
    """For example after Ctrl-C and a change of the starting model's size."""

    def growing(size: int, *, kill: bool = False) -> list[Stage]:
        def run(folder: Path) -> dict[str, int]:
            start = folder / "start" / "size"
            if not start.exists():
                start.parent.mkdir()
                start.write_text(str(size))
            if kill:
                raise Killed
            return {"size": int(start.read_text())}

        return [*stages([])[:1], Stage("model", "a model", {"size": size}, run)]

    for _ in range(2):
        with pytest.raises(Killed):
            run_stages(tmp_path, growing(192, kill=True))
    assert json.loads((tmp_path / "model" / UNFINISHED_RECORD).read_text())["settings"]["model"] == {"size": 192}
    results = run_stages(tmp_path, growing(96))
    assert results["model"] == {"size": 96}
    assert notices.messages[-1] == "the stage was begun when model's size was 192; now it is 96: it starts again"
    assert sorted(item.name for item in (tmp_path / "model").iterdir()) == [DONE_RECORD, "start"]


def test_unfinished_stage_after_changed_stages_starts_again(tmp_path):
    with pytest.raises(Killed):
        run_stages(tmp_path, stages([], kill="b"))
    (tmp_path / "b" / "half").touch()
    shutil.rmtree(tmp_path / "a")
    run_stages(tmp_path, [*stages([], size=2)[:1], *stages([])[1:]])
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a", "b", "c"]
    assert not (tmp_path / "b" / "half").exists()


def test_unfinished_stage_with_the_same_settings_resumes(tmp_path):
    with pytest.raises(Killed):
        run_stages(tmp_path, stages([], kill="b"))
    (tmp_path / "b" / "half").touch()
    run_stages(tmp_path, stages([]))
    assert (tmp_path / "b" / "half").exists()
    assert not (tmp_path / "b" / UNFINISHED_RECORD).exists()


def test_single_stage(tmp_path):
    log: list[str] = []
    with pytest.raises(ConfigError, match="stage 'a' comes before 'b' and is not done"):
        run_stages(tmp_path, stages(log), only_stage="b")
    with pytest.raises(ConfigError, match="there is no stage 'd'"):
        run_stages(tmp_path, stages(log), only_stage="d")
    run_stages(tmp_path, stages(log), only_stage="a")
    assert list(run_stages(tmp_path, stages(log), only_stage="b")) == ["a", "b"]
    assert log == ["a", "b"]


def test_done_stage_with_other_settings_is_an_error(tmp_path):
    run_stages(tmp_path, stages([]))
    with pytest.raises(ConfigError, match="was done when a's size was 1; now it is 2") as error:
        run_stages(tmp_path, stages([], size=2))
    assert error.value.where == str(tmp_path / "a")


def test_done_stage_after_changed_stages_is_an_error(tmp_path):
    run_stages(tmp_path, stages([]))
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(ConfigError, match="was done when a's size was 1; now it is 2") as error:
        run_stages(tmp_path, [*stages([], size=2)[:1], *stages([])[1:]])
    assert error.value.where == str(tmp_path / "b")


@pytest.mark.parametrize("text", ['{"settings": {"a": 1}, "found": 1}', "", "[]", "{}", "null"])
def test_broken_record_of_a_done_stage(tmp_path, text):
    run_stages(tmp_path, stages([]))
    (tmp_path / "b" / DONE_RECORD).write_text(text)
    with pytest.raises(ConfigError, match="not a stage's record"):
        run_stages(tmp_path, stages([]))


def test_broken_record_of_an_unfinished_stage(tmp_path):
    with pytest.raises(Killed):
        run_stages(tmp_path, stages([], kill="b"))
    (tmp_path / "b" / UNFINISHED_RECORD).write_text("{}")
    with pytest.raises(ConfigError, match="not a stage's record"):
        run_stages(tmp_path, stages([]))
    assert (tmp_path / "b" / "made").exists()


def test_record_format(tmp_path):
    run_stages(tmp_path, stages([]))
    assert json.loads((tmp_path / "a" / DONE_RECORD).read_text()) == {
        "settings": {"a": {"size": 1}},
        "found": {"size": 1},
    }


def test_finish_is_called_after_the_last_stage_only(tmp_path):
    finished = []
    run_stages(tmp_path, stages([]), finished.append, only_stage="a")
    run_stages(tmp_path, stages([]), finished.append, only_stage="b")
    assert finished == []
    results = run_stages(tmp_path, stages([]), finished.append)
    assert finished == [results]
    # A finished recipe calls it again, so that a lost report is written again.
    run_stages(tmp_path, stages([]), finished.append)
    assert finished == [results, results]
