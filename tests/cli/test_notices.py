"""Notices: printed as -v and -q say, written to a run's `run.log`, and left to a library caller's logging."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from penchant.cli.main import run
from penchant.config.run import load_config
from penchant.errors import ConfigError
from penchant.training.folder import run_log
from penchant.training.run import train

DATED = ["data.date=2001-02-03", "evaluation.samples=0", "training.max_steps=1"]
NOTICE = "data.date is 2001-02-03, and no chat template of this run writes a date"


def log_lines(folder: Path) -> list[tuple[str, str]]:
    """Level and message of every line of the folder's `run.log`."""
    lines = (folder / "run.log").read_text(encoding="utf-8").splitlines()
    return [(line.split()[2], line.split(": ", 1)[1]) for line in lines]


class TestPrinting:
    def test_notices_are_on_the_stream_that_json_leaves_free(self, write_config, capsys, tmp_path):
        file = write_config()
        assert run(["train", str(file), *DATED, f"output={tmp_path / 'a'}"]) == 0
        printed = capsys.readouterr()
        assert NOTICE in printed.out.splitlines()
        assert NOTICE not in printed.err
        assert run(["train", str(file), *DATED, f"output={tmp_path / 'b'}", "--json"]) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out)["steps"] == 1
        assert NOTICE in printed.err.splitlines()

    @pytest.mark.parametrize("flag", ["-q", "--quiet"])
    def test_quiet_leaves_the_result(self, write_config, capsys, tmp_path, flag):
        file = write_config()
        assert run([flag, "train", str(file), *DATED, f"output={tmp_path / 'a'}", "--json"]) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out)["steps"] == 1
        assert ("INFO", NOTICE) in log_lines(tmp_path / "a")
        assert not {message for _, message in log_lines(tmp_path / "a")} & set(printed.err.splitlines())

    @pytest.mark.slow
    def test_quiet_leaves_warnings(self, write_config, capsys):
        file = write_config(lora={"rank": 4}, training={"learning_rate": 1e-60})
        assert run(["train", str(file), "evaluation.samples=0", "--json", "-q"]) == 0
        printed = capsys.readouterr().err
        lines = [message for _, message in log_lines(Path(load_config(file).output)) if message in printed]
        assert len(lines) == 1
        assert lines[0].startswith("14 adapters are as before training")

    @pytest.mark.slow
    def test_verbose_prints_debug_messages(self, write_config, capsys, tmp_path):
        file = write_config()
        for flags, expected in (([], 0), (["-v"], 1)):
            arguments = ["train", str(file), *DATED, f"output={tmp_path / f'run{expected}'}", "--json", *flags]
            assert run(arguments) == 0
            scorers = [line for line in capsys.readouterr().err.splitlines() if line.startswith("scored by TreeScorer")]
            assert len(scorers) == expected
        assert ("DEBUG", scorers[0]) in log_lines(tmp_path / "run1")
        assert all(level == "INFO" for level, _ in log_lines(tmp_path / "run0"))

    def test_both_flags_are_an_error(self, tiny_pairs, capsys):
        assert run(["data", "check", str(tiny_pairs), "-q", "-v"]) == 2
        assert "-v and -q are both given" in capsys.readouterr().err

    @pytest.mark.parametrize(("rank", "expected"), [("0", ["a notice", "a warning"]), ("1", ["rank 1: a warning"])])
    def test_other_ranks_print_warnings(self, monkeypatch, capsys, rank, expected):
        from penchant.cli.output import show_notices

        monkeypatch.setenv("RANK", rank)
        logger = logging.getLogger("penchant.training.run")
        with show_notices(logging.INFO, "penchant", on_stderr=False):
            logger.info("a notice")
            logger.warning("a warning")
        assert capsys.readouterr().out.splitlines() == expected


class TestRunLog:
    @pytest.mark.slow
    def test_resumed_it_is_continued(self, write_config, tmp_path):
        file, folder = write_config(), tmp_path / "run"
        arguments = [*DATED, f"output={folder}"]
        assert run(["train", str(file), *arguments]) == 0
        log_text = (folder / "run.log").read_text()
        assert log_lines(folder)[-1] == ("INFO", f"report: {folder / 'report.html'}")
        assert run(["train", str(folder), "--resume"]) == 0
        assert (folder / "run.log").read_text().startswith(log_text)
        assert ("INFO", "resumed after step 1 of 1") in log_lines(folder)
        assert len([1 for line in log_lines(folder) if line == ("INFO", NOTICE)]) == 2

    def test_a_refused_run_leaves_another_runs_log_as_it_was(self, write_config, tmp_path):
        file, folder = write_config(), tmp_path / "run"
        assert run(["train", str(file), *DATED, f"output={folder}"]) == 0
        log_bytes = (folder / "run.log").read_bytes()
        assert run(["train", str(file), *DATED, f"output={folder}"]) == 2
        assert (folder / "run.log").read_bytes() == log_bytes

    def test_records_wait_for_the_folder(self, notices, tmp_path):
        logger = logging.getLogger("penchant.training")
        with run_log() as log:
            logger.info("early")
            assert list(tmp_path.iterdir()) == []
            log.open(tmp_path)
            logger.info("late")
        logger.info("after")
        assert log_lines(tmp_path) == [("INFO", "early"), ("INFO", "late")]
        with run_log() as log:
            logger.info("never")
        assert log_lines(tmp_path) == [("INFO", "early"), ("INFO", "late")]

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this device")
    def test_a_full_disk_loses_a_line_and_no_run(self, notices, tmp_path, capsys):
        (tmp_path / "run.log").symlink_to("/dev/full")
        with run_log() as log:
            log.open(tmp_path)
            logging.getLogger("penchant.training").info("lost")
        assert capsys.readouterr().err == ""

    @pytest.mark.slow
    def test_two_processes_write_it_by_the_first(self, write_config, tmp_path, start_ranks):
        ranks = start_ranks(2, "train", write_config(), *DATED, f"output={tmp_path / 'run'}", "--json")
        codes = [process.wait(90) for process, _, _ in ranks]
        printed = "".join(stdout.read_text() for _, stdout, _ in ranks)
        errors = "".join(stderr.read_text() for _, _, stderr in ranks)
        assert codes == [0, 0], errors[-3000:]
        assert json.loads(printed)["steps"] == 1
        assert errors.count(NOTICE) == 1
        assert [line for line in log_lines(tmp_path / "run") if line[1] == NOTICE] == [("INFO", NOTICE)]


class TestLibrary:
    @pytest.mark.slow
    def test_an_import_adds_no_handler(self):
        code = (
            "import logging, penchant, penchant.api, penchant.cli.main, penchant.training.run\n"
            "loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.Logger.manager.loggerDict))]\n"
            "ours = [logger for logger in loggers if logger.name.split('.')[0] in ('root', 'penchant')]\n"
            "print([logger.name for logger in ours if logger.handlers or (logger.level and logger.name != 'root')])\n"
            "print(logging.getLogger('penchant').propagate, len(ours) > 10)"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert result.stdout.splitlines() == ["[]", "True True"]

    def test_a_program_without_logging_prints_warnings_alone(self, write_config, run_penchant):
        file = write_config(lora={"rank": 4}, training={"learning_rate": 1e-60})
        code = (
            "import sys\nfrom pathlib import Path\n"
            "from penchant.config.run import load_config\nfrom penchant.training.run import train\n"
            "train(load_config(Path(sys.argv[1])))"
        )
        result = run_penchant("-c", code, file)
        assert result.returncode == 0
        assert [line for line in result.stderr.splitlines() if line.startswith("14 adapters are as before training")]
        assert "held-out: " not in result.stderr
        assert result.stdout == ""
        assert [level for level, _ in log_lines(Path(load_config(file).output))] == ["WARNING"]

    def test_handlers_and_level_are_as_before(self, write_config, capsys):
        logger, handler = logging.getLogger("penchant"), logging.NullHandler()
        logger.addHandler(handler)
        try:
            logger_state = logger.level, list(logger.handlers), logger.propagate
            folder = train(load_config(write_config(training={"max_steps": 1})))
            assert (logger.level, logger.handlers, logger.propagate) == logger_state
            with pytest.raises(ConfigError):
                train(load_config(folder / "config.yaml"))
            assert run(["evaluate", str(folder), "--data", "missing.jsonl"]) == 2
            assert (logger.level, logger.handlers, logger.propagate) == logger_state
        finally:
            logger.removeHandler(handler)
