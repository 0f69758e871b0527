"""A run's output folder: whose it is, what made it, and when it is finished.

OUTPUT/
    config.yaml             the resolved configuration
    run.json                fingerprints of configuration, data and the user's own methods, environment, notes
    metrics.jsonl           what the objective logged
    timing.jsonl            seconds and tokens per second
    checkpoints/            to resume from
    best/                   the best model by held-out evaluation, where it was evaluated during training
    model.safetensors, ...  the final model, in Hugging Face format (or the adapter, in PEFT's)
    evaluation.json         held-out preference metrics before and after
    report.html
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from penchant.config import RunConfig, dump_config
from penchant.config_objective import method_files
from penchant.errors import ConfigError
from penchant.evaluation.files import write_atomically

_STARTED = ("run.json", "config.yaml", "metrics.jsonl", "timing.jsonl")
"""What a run's folder holds before its first step."""


def check(config: RunConfig, fingerprint: str, *, resume: bool) -> bool:
    """Whether the output folder holds this run to go on with, or can be taken for it; writes nothing.

    Args:
        fingerprint: of the run's data.

    Raises:
        ConfigError: it holds another run, or something else; or the run to resume had other data or settings.
    """
    folder = Path(config.output)
    if folder.exists() and not folder.is_dir():
        raise ConfigError("output is a file", where=str(folder), fix="name a folder")
    # Hidden files are what a killed process was writing; config.yaml alone, what it wrote before run.json.
    held = sorted(item.name for item in folder.iterdir() if item.name[0] != ".") if folder.exists() else []
    begun = "run.json" in held
    if not begun and set(held) - {"config.yaml"}:
        raise ConfigError(
            f"the output folder holds something that is no run: {', '.join(held[:3])}",
            where=str(folder),
            fix="name a new folder: output=DIR",
        )
    if begun and not resume:
        raise ConfigError(
            "the output folder holds another run",
            where=str(folder),
            fix=f"go on with it: penchant train --resume {folder}; or name a new folder: output=DIR",
        )
    if resume and not held:
        raise ConfigError("there is no run to resume", where=str(folder), fix="leave out --resume to start one")
    if begun:
        _same_run(folder, config, fingerprint)
    return begun


def take(config: RunConfig, fingerprint: str, notes: list[str]) -> None:
    """Take the output folder for a new run: from here on it holds one."""
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.yaml", dump_config(config))
    record = {
        "config": _config_hash(config),
        "data": fingerprint,
        "methods": method_files(config.objective),
        "environment": environment(),
        "notes": notes,
    }
    write_atomically(folder / "run.json", json.dumps(record, indent=2))


def release(config: RunConfig) -> None:
    """Give the output folder back after a run that failed before its first step: nothing is there to go on with."""
    folder = Path(config.output)
    if any(item.name not in _STARTED for item in folder.iterdir() if item.name[0] != "."):
        return
    for name in _STARTED:
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # Something of another process, or a mount.
        folder.rmdir()


def _same_run(folder: Path, config: RunConfig, fingerprint: str) -> None:
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if record["data"] != fingerprint:
        raise ConfigError(
            "the data (or its tokenization) is not what this run was started with",
            where=str(folder),
            fix="put the old data back to resume, or start a new run: output=DIR",
        )
    if record["config"] != _config_hash(config):
        raise ConfigError(
            f"the configuration is not what this run was started with; it differs in: {_changed(folder, config)}",
            where=str(folder),
            fix=f"resume with the run's own: penchant train --resume {folder}; or start a new run: output=DIR",
        )
    now = method_files(config.objective)
    # A run of an older Penchant did not write them down.
    changed = [file for file, content in record.get("methods", now).items() if now[file] != content]
    if changed:
        raise ConfigError(
            f"the method's file {changed[0]} is not what this run was started with",
            where=str(folder),
            fix="put the old file back to resume, or start a new run: output=DIR",
        )


def _changed(folder: Path, config: RunConfig) -> str:
    import yaml

    before = _flat(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    after = _flat(yaml.safe_load(dump_config(config)))
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return ", ".join(f"{key} (was {before.get(key)}, is {after.get(key)})" for key in keys)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _config_hash(config: RunConfig) -> str:
    # Where the folder stands is not what the run is: a moved folder resumes.
    text = dump_config(config.model_copy(update={"output": ""}))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def environment() -> dict[str, str | int]:
    """Versions and machine, for the record."""
    from importlib.metadata import version

    import torch

    packages = ("penchant", "torch", "transformers", "peft", "tokenizers", "datasets", "numpy")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        **{name: version(name) for name in packages},
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": device,
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
