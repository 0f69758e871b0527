"""What the learner's process and the trainer share: configuration, prompts in splits, replay buffer, backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from penchant.api import (
    ConfigError,
    DataError,
    PreferenceGroup,
    locate_errors,
    read_groups,
    read_record,
    split_by_prompt,
    validated,
    weights_fingerprint,
    write_atomically,
)
from penchant.recipes.self_improve.buffer import ReplayBuffer
from penchant.recipes.self_improve.config import LearnerConfig, SelfImproveConfig
from penchant.recipes.self_improve.learner import DAMAGED, LearnerBackend
from penchant.recipes.self_improve.picture_learner import PictureLearner
from penchant.recipes.self_improve.text_learner import TextLearner


def build_backend(config: LearnerConfig) -> LearnerBackend:
    """The picture backend if the configuration has settings for pictures, else the text backend."""
    if isinstance(config, SelfImproveConfig) and config.pictures is not None:
        return PictureLearner(config, config.pictures)
    return TextLearner(config)


CONFIG, INPUTS, BUFFER, PROMPTS = "config.json", "inputs.json", "buffer.sqlite", "prompts.json"

PromptSplits = dict[str, dict[str, str]]
"""Prompts by id in `train`, `gate` and `test`; `categories`: category by id, for prompts whose row has a source."""


def open_run_folder(config: SelfImproveConfig) -> PromptSplits:
    """Create the run's folder, or check that it belongs to this configuration.

    Returns:
        The prompts in their splits.

    Raises:
        ConfigError: the folder belongs to another configuration, the model or verifier has changed, or the folder
            cannot be created.
        DataError: there are too few prompts, or they are not plain text.
    """
    output = make_folder(config)
    if not (output / PROMPTS).exists():
        write_atomically(output / PROMPTS, json.dumps(_split_prompts(config), indent=1, ensure_ascii=False) + "\n")
    record_configuration(config)
    return read_splits(output)


def make_folder(config: LearnerConfig) -> Path:
    """Create the output folder, or check that it belongs to this configuration.

    Raises:
        ConfigError: the folder belongs to another configuration, or cannot be created.
    """
    output = Path(config.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fix = "name another output folder"
        raise ConfigError(f"output cannot be made: {error.strerror}", where=config.output, fix=fix) from error
    if (output / CONFIG).exists() and read_config(output, type(config)) != config:
        raise ConfigError("the folder is another configuration's", where=str(output), fix="name another output folder")
    return output


def record_configuration(config: LearnerConfig) -> None:
    """Write the configuration into its folder, which belongs to it from then on.

    Raises:
        ConfigError: the model or the verifier has changed since.
    """
    output = Path(config.output)
    write_atomically(output / CONFIG, config.model_dump_json(indent=2) + "\n")
    _check_inputs(output / INPUTS, config)


def _check_inputs(file: Path, config: LearnerConfig) -> None:
    """Check that the first learner and the verifier are unchanged, since the rounds are compared with each other."""
    fingerprints = {"model": weights_fingerprint(config.model), "verifier": config.verifier.fingerprint()}
    initial = read_record(file, fingerprints, DAMAGED) if file.exists() else fingerprints
    for name, value in fingerprints.items():
        if initial[name] != value:
            raise ConfigError(
                f"the {name} is no longer what it was when the run began",
                where=str(file.parent),
                fix="put it back as it was, or name another output folder",
            )
    write_atomically(file, json.dumps(fingerprints) + "\n")


Config = TypeVar("Config", bound=LearnerConfig)


def read_config(output: Path, kind: type[Config]) -> Config:
    """The configuration that `record_configuration` wrote."""
    return validated(kind, read_record(output / CONFIG, (), DAMAGED), str(output / CONFIG))


def read_splits(output: Path) -> PromptSplits:
    """The prompts in their splits, as `open_run_folder` wrote them."""
    return read_record(output / PROMPTS, ("train", "gate", "test"), DAMAGED)


def open_buffer(config: LearnerConfig) -> ReplayBuffer:
    """The run folder's replay buffer; every process opens its own connection."""
    return ReplayBuffer(Path(config.output) / BUFFER, config.capacity)


def _split_prompts(config: SelfImproveConfig) -> PromptSplits:
    sources: dict[str, str | None] = {}
    for group in read_groups(config.prompts).groups:
        if not isinstance(group.prompt, str):
            raise DataError(
                "a prompt is messages", where=config.prompts, fix="give plain text, which the verifier reads"
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
