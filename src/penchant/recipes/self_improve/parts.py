"""What the learner's process and the trainer's share on disk, beside the buffer and the served learner."""

from __future__ import annotations

import json
from pathlib import Path

from penchant.config_errors import validated
from penchant.data.groups import PreferenceGroup
from penchant.data.reading import read_groups
from penchant.data.splitting import split_by_prompt
from penchant.errors import ConfigError, DataError, locate_errors
from penchant.evaluation.files import read_record, write_atomically
from penchant.recipes.fingerprints import weights_fingerprint
from penchant.recipes.self_improve.buffer import ReplayBuffer
from penchant.recipes.self_improve.config import SelfImproveConfig
from penchant.recipes.self_improve.served import DAMAGED

CONFIG, INPUTS, BUFFER, PROMPTS = "config.json", "inputs.json", "buffer.sqlite", "prompts.json"

Parts = dict[str, dict[str, str]]
"""`train`, `gate` and `test`: prompts by id; `categories`: by id too, of the prompts whose row has a source."""


def open_folder(config: SelfImproveConfig) -> Parts:
    """Make the folder, or find that it is this configuration's.

    Raises:
        ConfigError: it is another's, what the settings name has changed, or it cannot be made.
        DataError: there are too few prompts, or they are no plain text.
    """
    output = Path(config.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fix = "name another output folder"
        raise ConfigError(f"output cannot be made: {error.strerror}", where=config.output, fix=fix) from error
    file = output / CONFIG
    if file.exists() and read_config(output) != config:
        raise ConfigError("the folder is another configuration's", where=str(output), fix="name another output folder")
    if not (output / PROMPTS).exists():
        write_atomically(output / PROMPTS, json.dumps(_parts(config), indent=1, ensure_ascii=False) + "\n")
    write_atomically(file, config.model_dump_json(indent=2) + "\n")
    _check_inputs(output / INPUTS, config)
    return read_parts(output)


def _check_inputs(file: Path, config: SelfImproveConfig) -> None:
    """Rounds are compared with each other: all have to begin with the same learner and be judged by the same rule."""
    found = {"model": weights_fingerprint(config.model), "verifier": config.verifier.fingerprint()}
    began = read_record(file, found, DAMAGED) if file.exists() else found
    for name, value in found.items():
        if began[name] != value:
            raise ConfigError(
                f"the {name} is no longer what it was when the run began",
                where=str(file.parent),
                fix="put it back as it was, or name another output folder",
            )
    write_atomically(file, json.dumps(found) + "\n")


def read_config(output: Path) -> SelfImproveConfig:
    """As `open_folder` kept it."""
    return validated(SelfImproveConfig, read_record(output / CONFIG, (), DAMAGED), str(output / CONFIG))


def read_parts(output: Path) -> Parts:
    """As `open_folder` split them."""
    return read_record(output / PROMPTS, ("train", "gate", "test"), DAMAGED)


def open_buffer(config: SelfImproveConfig) -> ReplayBuffer:
    """The folder's; each process opens its own."""
    return ReplayBuffer(Path(config.output) / BUFFER, config.capacity)


def _parts(config: SelfImproveConfig) -> Parts:
    sources: dict[str, str | None] = {}
    for group in read_groups(config.prompts).groups:
        if not isinstance(group.prompt, str):
            raise DataError(
                "a prompt is messages", where=config.prompts, fix="give plain text, as the verifier reads it"
            )
        sources.setdefault(group.prompt, group.source)
    groups = [PreferenceGroup(prompt, ("",), id=str(n)) for n, prompt in enumerate(sources)]
    with locate_errors(config.prompts):
        train, held_out = split_by_prompt(groups, held_out=config.held_out, seed=config.seed)
        gate, test = split_by_prompt(held_out, held_out=0.5, seed=config.seed)
    sides = {"train": train, "gate": gate, "test": test}
    categories = {str(n): source for n, source in enumerate(sources.values()) if source is not None}
    return {name: {group.id: str(group.prompt) for group in part} for name, part in sides.items()} | {
        "categories": categories
    }
