"""A run's output folder: its files, and whether it belongs to a run that can be resumed.

OUTPUT/
    config.yaml             the resolved configuration
    run.json                fingerprints of configuration, data, and all models and files it names; environment, notes
    metrics.jsonl           what the objective logged
    timing.jsonl            seconds and tokens per second
    run.log                 the notices and warnings of training and report
    checkpoints/            to resume from
    best/                   the best model by held-out evaluation, where it was evaluated during training
    model.safetensors, ...  the final model, in Hugging Face format (or the adapter, in PEFT's)
    README.md               model card, with Hugging Face metadata
    evaluation.json         held-out preference metrics before and after
    report.html
"""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from penchant.config.objective import method_files
from penchant.config.run import RunConfig, dump_config, parse_config
from penchant.config.section import parse_yaml, read_yaml
from penchant.data.template import has_date, reads_clock
from penchant.engine.device import local_device
from penchant.errors import ConfigError
from penchant.evaluation.held_out import recorded_day, today, tokenizers
from penchant.storage.files import read_record, write_atomically
from penchant.storage.fingerprints import hash_text
from penchant.training.input_hashes import SCHEME, Input, changed_inputs, input_hashes, touched_inputs

logger = logging.getLogger(__name__)


def on_one_day(config: RunConfig) -> RunConfig:
    """The configuration with `data.date` set: as configured, else that of the run in its folder, else today.

    None where no chat template of the run's models writes a date.
    """
    if config.data.date is not None:
        return config
    is_started = (Path(config.output) / "run.json").exists()
    day = recorded_day(config.output) if is_started else None
    return with_day(config, day or (today() if run_writes_today(config) else None))


def with_day(config: RunConfig, day: str | None) -> RunConfig:
    """The configuration with this `data.date`."""
    return config.model_copy(update={"data": config.data.model_copy(update={"date": day})})


def run_writes_today(config: RunConfig) -> bool:
    """Whether a chat template of the policy, the references or the reward model writes today's date."""
    return any(map(reads_clock, tokenizers(_models(config))))


def _models(config: RunConfig) -> list[tuple[str, str | None]]:
    template = config.data.chat_template
    models: list[tuple[str, str | None]] = [
        (source, template) for source in dict.fromkeys([config.model, *config.reference_sources]) if source
    ]
    if config.reward is not None and config.reward.model is not None:
        models.append((config.reward.model, None))
    return models


def day_note(config: RunConfig) -> list[str]:
    """A note on the date of the chat templates; empty where none is set."""
    day = config.data.date
    if day is None:
        return []
    if not any(map(has_date, tokenizers(_models(config)))):
        return [f"data.date is {day}, and no chat template of this run writes a date"]
    return [f"the chat template writes {day} as today's date, also when this run is resumed"]


_NO_IDENTITY = {"output": "", "device": "auto"}
"""Keys that do not decide which run it is: a moved one can be resumed, also on another device."""

_STARTED = ("run.json", "config.yaml", "metrics.jsonl", "timing.jsonl", "run.log")
"""Files of a run's folder before its first step."""


def check(
    config: RunConfig,
    fingerprint: str,
    *,
    resume: bool,
) -> bool:
    """Whether the output folder holds this run, to be resumed; false where it is free for a new one. Writes nothing.

    Args:
        fingerprint: hash of the run's data.

    Raises:
        ConfigError: it holds another run, or something else; or the run to resume had other data, settings, models or
            files.
    """
    folder = Path(config.output)
    # Hidden files are left by a killed process, and so is a config.yaml without run.json.
    names = sorted(item.name for item in folder.iterdir() if item.name[0] != ".") if folder.exists() else []
    is_started = "run.json" in names
    if not is_started and set(names) - {"config.yaml"}:
        raise ConfigError(
            f"the output folder holds something that is no run: {', '.join(names[:3])}",
            where=str(folder),
            fix="name a new folder: output=DIR",
        )
    if is_started and not resume:
        raise ConfigError(
            "the output folder holds another run",
            where=str(folder),
            fix=f"resume it: penchant train --resume {folder}; or name a new folder: output=DIR",
        )
    if resume and not names:
        raise ConfigError("there is no run to resume", where=str(folder), fix="leave out --resume to start one")
    if is_started:
        _same_run(folder, config, fingerprint)
    return is_started


def claim_folder(config: RunConfig, fingerprint: str, notes: list[str], inputs: Mapping[str, Input]) -> None:
    """Write config.yaml and run.json: from here on the output folder holds this run.

    Args:
        inputs: hashes of the models and files it is started from, taken before they were loaded.
    """
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.yaml", dump_config(config))
    record = {
        "config": _config_hash(config),
        "data": fingerprint,
        "inputs": {"scheme": SCHEME, **_with_hub_commits(config, inputs)},
        "environment": environment(),
        "notes": notes,
    }
    write_atomically(folder / "run.json", json.dumps(record, indent=2))


def release_folder(config: RunConfig) -> None:
    """Delete the files of a run that failed before its first step, so that the same command can be run again."""
    folder = Path(config.output)
    if any(item.name not in _STARTED for item in folder.iterdir() if item.name[0] != "."):
        return
    for name in _STARTED:
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # Something of another process, or a mount.
        folder.rmdir()


class RunLog(MemoryHandler):
    """Keeps log records in memory until the folder they belong to is open, then writes them to its `run.log`."""

    def open(self, folder: Path) -> None:
        """Append all records so far, and those to come, to the folder's `run.log`; no record makes no file."""
        file = _LogFile(folder / "run.log", encoding="utf-8", delay=True)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.setTarget(file)
        self.flush()

    def close(self) -> None:
        if self.target is not None:
            with suppress(OSError):  # A full disk; see `_LogFile`.
                self.target.close()
        super().close()


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Lose the line: a full disk is reported where the run saves what it needs."""


@contextmanager
def run_log() -> Iterator[RunLog]:
    """Collect log records for a folder that a run owns: those that the level of the logger `penchant` lets through."""
    root, log = logging.getLogger("penchant"), RunLog(capacity=1)
    # Python prints warnings where a program has no handler; with this one it would no longer.
    handlers = [log] if root.hasHandlers() else [log, logging.lastResort]
    for handler in filter(None, handlers):
        root.addHandler(handler)
    try:
        yield log
    finally:
        for handler in filter(None, handlers):
            root.removeHandler(handler)
        log.close()


def _with_hub_commits(config: RunConfig, inputs: Mapping[str, Input]) -> dict[str, Input]:
    """The inputs with the commits of models that were downloaded when they were loaded."""
    fetched = [key for key, value in inputs.items() if not value["files"]]
    return {**inputs, **input_hashes(config, fetched)}


def _same_run(folder: Path, config: RunConfig, fingerprint: str) -> None:
    fix = "put the whole file back, or start a new run: output=DIR"
    record = read_record(folder / "run.json", ("config", "data"), fix)
    if record["data"] != fingerprint:
        raise ConfigError(
            "the data (or its tokenization) is not what this run was started with",
            where=str(folder),
            fix="put the old data back to resume, or start a new run: output=DIR",
        )
    if record["config"] != _config_hash(config) and not _same_but_for_new_keys(folder, config, record["config"]):
        raise ConfigError(
            "the configuration is not what this run was started with; it differs in: "
            + _describe_changes(folder, config),
            where=str(folder),
            fix=f"resume with the run's own: penchant train --resume {folder}; or start a new run: output=DIR",
        )
    _same_inputs(folder, config, record)


def _same_inputs(folder: Path, config: RunConfig, record: Mapping[str, Any]) -> None:
    recorded = dict(record.get("inputs", {}))
    if recorded.pop("scheme", None) != SCHEME:
        logger.warning("this run was started by an older Penchant, which did not record what its models and files held")
        current = method_files(config.objective)
        methods = record.get("methods", {})
        names = [f"objective.file ({file})" for file, content in methods.items() if current.get(file) != content]
    else:
        inputs = input_hashes(config)
        names = [_in_words(key, inputs[key]["path"], files) for key, files in changed_inputs(recorded, inputs).items()]
        for name in touched_inputs(recorded, inputs):
            logger.info(
                f"{name} was written since this run was started; its sampled blocks are the same, so it is used"
            )
    if names:
        raise ConfigError(
            f"{'; '.join(names)} is not what this run was started with",
            where=str(folder),
            fix="put it back as it was to resume, or start a new run: output=DIR",
        )


def _in_words(key: str, path: str, files: list[str]) -> str:
    return f"{key} ({path})" if files == [Path(path).name] else f"{key} ({path}: {', '.join(files)})"


def _same_but_for_new_keys(folder: Path, config: RunConfig, recorded: str) -> bool:
    """Whether a run of an older Penchant differs only in newer keys, which then have their defaults."""
    import yaml

    values = read_yaml(folder / "config.yaml")
    unplaced = {key: _NO_IDENTITY.get(key, value) for key, value in values.items()}
    text = yaml.safe_dump(unplaced, sort_keys=False, allow_unicode=True)
    if hash_text(text) != recorded:
        return False  # the file was changed by hand since
    return _config_hash(parse_config(values, str(folder / "config.yaml"))) == _config_hash(config)


def _describe_changes(folder: Path, config: RunConfig) -> str:
    recorded = _flat(read_yaml(folder / "config.yaml"))
    current = _flat(parse_yaml(dump_config(config)))
    names = (recorded.keys() | current.keys()) - _NO_IDENTITY.keys()
    keys = sorted(key for key in names if recorded.get(key) != current.get(key))
    return ", ".join(f"{key} (was {recorded.get(key)}, is {current.get(key)})" for key in keys)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _config_hash(config: RunConfig) -> str:
    return hash_text(dump_config(config.model_copy(update=_NO_IDENTITY)))


def environment() -> dict[str, str | int]:
    """Versions of packages, and the machine."""
    from importlib.metadata import version

    import torch

    is_cuda = local_device().type == "cuda"
    packages = ("penchant", "torch", "transformers", "peft", "tokenizers", "datasets", "numpy")
    device = torch.cuda.get_device_name() if is_cuda else platform.processor() or platform.machine()
    return {
        **{name: version(name) for name in packages},
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": device,
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
