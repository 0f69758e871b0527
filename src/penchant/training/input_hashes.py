"""Hashes of the models and files that a run is started from, which may change under the same path.

A file's hash is that of its bytes. One larger than `WHOLE_FILE_BYTES` is hashed by its size, its first and last block
and `BLOCKS` blocks between them, a few megabytes: training changes every weight, and so some of these blocks, but a
change of a few bytes may be missed. The time of the last change is recorded as a hint and never decides.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from penchant.config.objective import method_files
from penchant.config.run import RunConfig
from penchant.errors import ConfigError
from penchant.models.loading import adapter_base
from penchant.storage.fingerprints import hash_blocks, hash_file

WHOLE_FILE_BYTES = 256 * 2**20
"""Maximum bytes of a file that is hashed whole."""

BLOCKS, BLOCK = 510, 2**14
"""Number of blocks sampled from a larger file besides its ends, and their bytes."""

SCHEME = 2
"""Version of these records; older ones were hashed differently."""

_PARTS = (
    "*.safetensors",
    "*.bin",
    "*.jinja",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "spiece.model",
)
"""The hashed files of a model's folder; a run's folder holds many others, some written later."""

_HUB_FILES = ("config.json", "adapter_config.json", "tokenizer_config.json")

Stamp = Mapping[str, Any]
"""``hash``, ``size`` in bytes and ``modified`` in nanoseconds of a file; only ``hash``, the commit, of a hub model."""

Input = Mapping[str, Any]
"""``path`` of one key of the configuration, and ``files``: name -> stamp."""


def input_hashes(config: RunConfig, keys: Collection[str] | None = None) -> dict[str, Input]:
    """Hashes of all files and models of a configuration except its data, by key of the configuration.

    A model on the hub is hashed by its commit in the local cache; one that is not in the cache has no files.

    Args:
        keys: the keys to hash; None: all.

    Raises:
        ConfigError: a file cannot be read.
    """
    return {
        key: {"path": path, "files": stamps(path)}
        for key, (path, stamps) in _sources(config).items()
        if keys is None or key in keys
    }


def named_paths(config: RunConfig) -> dict[str, str]:
    """Key of the configuration -> its file, function or model, except its data."""
    return {key: path for key, (path, _) in _sources(config).items()}


def changed_inputs(recorded: Mapping[str, Input], current: Mapping[str, Input]) -> dict[str, list[str]]:
    """Key -> names of files that changed, appeared or disappeared; only of keys that both records have."""
    changes = {}
    for key in recorded.keys() & current.keys():
        old, new = recorded[key]["files"], current[key]["files"]
        # A model on the hub that was not in the cache cannot be compared.
        names = old.keys() | new.keys() if old and new else ()
        differ = [name for name in sorted(names) if _hash(old, name) != _hash(new, name)]
        if differ:
            changes[key] = differ
    return dict(sorted(changes.items()))


def touched_inputs(recorded: Mapping[str, Input], current: Mapping[str, Input]) -> list[str]:
    """Large files with a newer time of change and the same sampled blocks."""
    return [
        f"{key} ({current[key]['path']}): {name}"
        for key in sorted(recorded.keys() & current.keys())
        for name, stamp in current[key]["files"].items()
        if str(stamp["hash"]).startswith("sampled-")
        and _hash(recorded[key]["files"], name) == stamp["hash"]
        and recorded[key]["files"][name].get("modified") != stamp.get("modified")
    ]


def _hash(files: Mapping[str, Stamp], name: str) -> str | None:
    return files[name]["hash"] if name in files else None


def _sources(config: RunConfig) -> dict[str, tuple[str, Callable[[str], dict[str, Stamp]]]]:
    """Key of the configuration -> its path, and the function that hashes the files there."""
    reward = config.reward
    judge = None if reward is None else reward.judge
    entries: dict[str, tuple[str | None, Callable[[str], dict[str, Stamp]]]] = {
        "model": (config.model, _model_stamps),
        "reference": (config.reference, _model_stamps),
        **{f"references.{i}": (name, _model_stamps) for i, name in enumerate(config.references)},
        "reward.model": (None if reward is None else reward.model, _model_stamps),
        "reward.function": (None if reward is None else reward.function, _function_stamps),
        "reward.judge.prompt": (None if judge is None else judge.prompt, _file_stamps),
        "data.chat_template": (config.data.chat_template, _file_stamps),
    }
    methods = list(method_files(config.objective))
    for number, file in enumerate(methods):
        entries["objective.file" if len(methods) == 1 else f"objective.file.{number}"] = (file, _file_stamps)
    return {key: (path, stamps) for key, (path, stamps) in entries.items() if path is not None}


def _model_stamps(source: str) -> dict[str, Stamp]:
    """Stamps of a folder's files (an adapter's base too), of a file, or of a model on the hub."""
    path = Path(source)
    if path.is_file():
        return _file_stamps(source)
    if not path.is_dir():
        commit = _hub_commit(source)
        return {} if commit is None else {"commit": {"hash": commit}}
    files = sorted({file for part in _PARTS for file in path.glob(part) if file.is_file()})
    stamps = {file.name: _stamp(file) for file in files}
    if (base := adapter_base(source)) is not None:
        stamps.update({f"base {base}: {name}": stamp for name, stamp in _model_stamps(base).items()})
    return stamps


def _function_stamps(where: str) -> dict[str, Stamp]:
    """Stamp of the file that defines a function; its module is not run."""
    module = where.rpartition(":")[0]
    if module.endswith(".py"):
        return _file_stamps(module)
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # reported where the function is called
        return {}
    return {} if spec is None or spec.origin is None or not Path(spec.origin).is_file() else _file_stamps(spec.origin)


def _file_stamps(path: str) -> dict[str, Stamp]:
    return {Path(path).name: _stamp(Path(path))}


def _stamp(file: Path) -> Stamp:
    try:
        status = file.stat()
        if status.st_size <= WHOLE_FILE_BYTES:
            content_hash = hash_file(file)[:32]
        else:
            content_hash = f"sampled-{hash_blocks(file, BLOCKS + 2, BLOCK)[:32]}"
    except OSError as error:
        raise ConfigError(f"it cannot be read: {error.strerror}", where=str(file), fix="check the path") from error
    return {"hash": content_hash, "size": status.st_size, "modified": status.st_mtime_ns}


def _hub_commit(source: str) -> str | None:
    """The commit of a hub id in the local cache; None where it is not cached."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        files = [try_to_load_from_cache(source, name) for name in _HUB_FILES]
    except HFValidationError:
        return None
    return next((Path(file).parent.name for file in files if isinstance(file, str)), None)
