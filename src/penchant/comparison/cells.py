"""The cells of a comparison: ordinary runs in their own folders, which `penchant train` can reproduce."""

from __future__ import annotations

import copy
import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penchant.comparison.config import Bench, Method, Range, Search, log_uniform
from penchant.config.run import RunConfig, parse_config
from penchant.config.section import set_key
from penchant.config.shared_sections import ReadingConfig
from penchant.data.groups import PreferenceGroup, as_text
from penchant.data.writing import write_groups
from penchant.errors import ConfigError, PenchantError
from penchant.training.inputs import DataParts, check_inputs, read_inputs


@dataclass(frozen=True)
class Variant:
    """A method with its hyper-parameters.

    Attributes:
        settings: the hyper-parameters that vary within the method.
    """

    method: Method
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """The name for folders: label and settings, in letters, digits, dots and dashes."""
        settings = [f"{key.rsplit('.', 1)[-1]}-{value}" for key, value in self.settings.items()]
        return re.sub(r"[^A-Za-z0-9.]+", "-", " ".join([self.method.label, *settings])).strip("-").lower()


@dataclass(frozen=True)
class PlannedCell:
    """One cell to train and measure.

    Attributes:
        size: number of training groups.
        config: configuration of the run.
    """

    variant: Variant
    size: int
    seed: int
    config: RunConfig

    @property
    def folder(self) -> Path:
        return Path(self.config.output)


@dataclass(frozen=True)
class SharedData:
    """The data that all cells share, as files.

    Attributes:
        train: (number of groups, file) of every size; a larger set contains the smaller ones.
        held_out: groups that every model is measured on.
        base: the base of all cells, as a run of SFT.
        reference_held_out_file: groups that only reference weights are fitted to; None where there are none.
    """

    train: list[tuple[int, Path]]
    held_out_file: Path
    held_out: list[PreferenceGroup]
    base: RunConfig
    notes: list[str]
    reference_held_out_file: Path | None = None

    @property
    def files(self) -> dict[str, str]:
        """Key of a run's data -> the file that all cells share."""
        files = {"held_out": self.held_out_file, "reference_held_out": self.reference_held_out_file}
        return {key: str(file) for key, file in files.items() if file is not None}


def variants(bench: Bench) -> list[Variant]:
    """Every method with every combination of its grid and of the search's parameters."""
    all_variants = []
    for method in bench.methods:
        for settings in _grid(method.grid):
            all_variants += [
                Variant(method, {**settings, **searched_settings})
                for searched_settings in _search_settings(bench.search)
            ]
    return all_variants


def _grid(values: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def _search_settings(search: Search | None) -> list[dict[str, Any]]:
    if search is None:
        return [{}]
    if search.method == "grid":
        return list(_grid({key: list(values) for key, values in search.parameters.items() if isinstance(values, list)}))
    draw = random.Random(search.seed)
    draws = [
        {key: _draw_value(values, draw) for key, values in search.parameters.items()} for _ in range(search.trials)
    ]
    return list({repr(settings): settings for settings in draws}.values())


def repeats(bench: Bench) -> list[str]:
    """A note where a random search drew a variant more than once."""
    search = bench.search
    if search is None or search.method == "grid":
        return []
    distinct = len(_search_settings(search))
    line = f"search: {distinct} distinct variants of each method, for {search.trials} draws repeat some"
    return [f"{line}; name more values or a range, or use method: grid"] if distinct < search.trials else []


def _draw_value(values: list[Any] | Range, draw: random.Random) -> Any:
    if isinstance(values, list):
        return draw.choice(values)
    share = draw.random()
    if values.scale == "log":
        return float(f"{log_uniform(values.low, values.high, share):.4g}")
    return float(f"{values.low + share * (values.high - values.low):.4g}")


def prepare(bench: Bench, where: str) -> tuple[SharedData, list[PlannedCell]]:
    """Check every cell's run and its data, then write the shared data.

    Raises:
        ConfigError: all errors in the methods, by label; nothing is written then.
    """
    folder = Path(bench.output)
    base = _run(bench, {"objective": {"name": "sft"}}, folder, where)
    all_variants = variants(bench)
    configs = _configs(bench, all_variants, where)
    data = _read_data(base)
    parts, notes = _parts(bench, data.train, base.training.seed), data.notes
    _refuse(_data_problems(configs, parts, data.held_out), where)
    for name in (name for name, config in configs.items() if config.built_objective.needs.head):
        notes.append(f"{name}: its language model is compared; its preference head by: penchant rank RUN --by head")
    shared = _share(base, parts, data, folder / "data")
    cells = []
    for size, file in shared.train:
        for seed in bench.seeds:
            for variant in all_variants:
                # The size also where it is the only one: another may be added later.
                name = f"{variant.name}-n{size}-seed{seed}"
                values = _values(variant, seed)
                values.setdefault("data", {}).update(shared.files, train=str(file))
                cells.append(PlannedCell(variant, size, seed, _run(bench, values, folder / "cells" / name, where)))
    return shared, cells


def configurations(bench: Bench, where: str) -> list[RunConfig]:
    """The runs of the base and of every variant, on the base's data.

    Raises:
        ConfigError: all errors in the methods.
    """
    base = _run(bench, {"objective": {"name": "sft"}}, Path(bench.output), where)
    return [base, *_configs(bench, variants(bench), where).values()]


def _configs(bench: Bench, all_variants: Sequence[Variant], where: str) -> dict[str, RunConfig]:
    """Name of a variant -> its run on the base's data."""
    names = [variant.name for variant in all_variants]
    problems = [f"{name}: two variants have this name" for name in sorted(set(names)) if names.count(name) > 1]
    configs = {}
    for variant in all_variants:
        try:
            config = _run(bench, _values(variant, bench.seeds[0]), Path(bench.output), where)
        except ConfigError as error:
            problems.append(f"{variant.name}: {error.what}")
            continue
        if config.built_objective.needs.trains == "rewards":
            problem = f"{config.built_objective.name} trains a reward model, which is no policy to compare"
            problems.append(f"{variant.name}: {problem}")
        configs[variant.name] = config
    _refuse(problems, where)
    return configs


def _data_problems(
    configs: dict[str, RunConfig], parts: Sequence[list[PreferenceGroup]], held_out: list[PreferenceGroup]
) -> list[str]:
    """Messages on variants that cannot learn from some size of the data, or from the held-out part."""
    problems = []
    for name, config in configs.items():
        try:
            for part in parts:
                check_inputs(config, part, held_out)
        except PenchantError as error:
            location = f" ({error.where})" if error.where else ""
            problems.append(f"{name}: {error.what}{location}" + (f"; {error.fix}" if error.fix else ""))
    return problems


def _refuse(problems: Sequence[str], where: str) -> None:
    if problems:
        raise ConfigError(
            "\n  - ".join([f"{len(problems)} problem(s) in the methods", *problems]),
            where=where,
            fix="correct these methods",
        )


def _values(variant: Variant, seed: int) -> dict[str, Any]:
    values: dict[str, Any] = {"objective": dict(variant.method.objective)}
    for key, value in {**variant.method.set, **variant.settings, "training.seed": seed}.items():
        set_key(values, key, value)
    return values


def _run(bench: Bench, values: dict[str, Any], output: Path, where: str) -> RunConfig:
    """The run of the base's keys updated by these values; new data files are in Penchant's own format."""
    merged = copy.deepcopy(bench.base)
    data = merged.get("data", {})
    if isinstance(data, str):
        merged["data"] = {"train": data}
    if "train" in values.get("data", {}):
        # Only the keys that decide how groups become tokens.
        merged["data"] = {key: value for key, value in merged["data"].items() if key in ReadingConfig.model_fields}
    _merge(merged, values)
    merged.setdefault("evaluation", {}).setdefault("samples", 0)
    return parse_config({**merged, "output": str(output)}, where)


def _merge(into: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict) and key != "objective":
            _merge(into[key], value)
        else:
            into[key] = value


def _read_data(base: RunConfig) -> DataParts:
    data = read_inputs(base)
    if not data.held_out:
        raise ConfigError(
            "base.data has no held-out part, so nothing could be measured",
            fix="name a file, or a share of the prompts: base.data.held_out=0.2",
        )
    return data


def _parts(bench: Bench, groups: Sequence[PreferenceGroup], seed: int) -> list[list[PreferenceGroup]]:
    """The training groups of every size, smallest first."""
    sizes = sorted(bench.sizes, key=lambda size: size if isinstance(size, int) else size * len(groups))
    parts = [subset(groups, size, seed) for size in sizes]
    for smaller, larger in itertools.pairwise(parts):
        if len(smaller) == len(larger):
            raise ConfigError(f"sizes: two of them come to {len(larger)} groups", fix="name each size once")
    return parts


def _share(
    base: RunConfig,
    parts: Sequence[list[PreferenceGroup]],
    data: DataParts,
    folder: Path,
) -> SharedData:
    folder.mkdir(parents=True, exist_ok=True)
    held_out_file = folder / "held_out.jsonl"
    _write(data.held_out, held_out_file)
    reference_file = folder / "reference_held_out.jsonl" if data.reference_held_out else None
    if reference_file is not None:
        _write(data.reference_held_out, reference_file)
    train = [(len(part), folder / f"train-{len(part)}.jsonl") for part in parts]
    for part, (_, file) in zip(parts, train, strict=True):
        _write(part, file)
    return SharedData(train, held_out_file, data.held_out, base, data.notes, reference_file)


def _write(groups: Sequence[PreferenceGroup], file: Path) -> None:
    """Write groups to a file, or check that an existing file has the same."""
    aside = file.with_name(f"new-{file.name}")
    aside.unlink(missing_ok=True)
    write_groups(groups, aside)
    if file.exists() and file.read_bytes() != aside.read_bytes():
        aside.unlink()
        raise ConfigError(
            "the comparison's folder was begun with other data", where=str(file), fix="name a new folder: output=DIR"
        )
    aside.replace(file)


def subset(groups: Sequence[PreferenceGroup], size: int | float, seed: int) -> list[PreferenceGroup]:
    """A subset of the groups, of whole prompts, in the order of the data.

    Prompts are taken in a random order of the seed, so that a larger subset contains every smaller one.

    Args:
        size: number of groups, or a share of them.

    Raises:
        ConfigError: there are fewer groups.
    """
    count = size if isinstance(size, int) else max(1, round(size * len(groups)))
    if count > len(groups):
        raise ConfigError(
            f"sizes: {size} groups are asked for, and the data has {len(groups)}", fix="use fewer, or 1.0"
        )
    prompts = list(dict.fromkeys(as_text(group.prompt) for group in groups))
    rank_of_prompt = {prompts[i]: rank for rank, i in enumerate(np.random.default_rng(seed).permutation(len(prompts)))}
    by_turn = sorted(range(len(groups)), key=lambda i: (rank_of_prompt[as_text(groups[i].prompt)], i))
    chosen, last_prompt = set(by_turn[:count]), as_text(groups[by_turn[count - 1]].prompt)
    # A prompt is never cut in two.
    chosen |= {i for i in by_turn[count:] if as_text(groups[i].prompt) == last_prompt}
    return [group for i, group in enumerate(groups) if i in chosen]
