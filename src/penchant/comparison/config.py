"""A comparison's configuration: methods x seeds x hyper-parameters x data sizes, from one starting model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from penchant.config.run import load_section
from penchant.config.section import Section, nearest
from penchant.config.shared_sections import RewardConfig

START = "start"
"""The name of the starting model's row, which may be the baseline."""


SHARED = {
    "model": "base.model",
    "output": "output",
    "training.seed": "seeds",
    **{f"data.{key}": "base.data" for key in ("train", "held_out", "split", "held_out_split", "format", "columns")},
    "data.reference_held_out": "base.data",
}
"""Keys of a run that are the same for all methods -> the key that sets them."""


NO_VERDICT = {
    "kl": "far from the start is neither better nor worse",
    "kl_error": "it is an error of kl",
    "words": "longer is neither better nor worse",
    "length_accuracy": "it is the data's own, the same for every model",
}
"""Metric on which there is no verdict -> reason."""


class Method(Section):
    """One method; with a grid, one variant for every combination."""

    label: str = Field(description="name in tables", min_length=1)
    objective: dict[str, Any] = Field(description="objective, as in a run")
    set: dict[str, Any] = Field({}, description="further keys of the run, dotted, for this method only")
    grid: dict[str, list[Any]] = Field({}, description="dotted key: values to try")

    @model_validator(mode="before")
    @classmethod
    def _name(cls, value: object) -> object:
        if isinstance(value, str):
            return {"label": value, "objective": {"name": value}}
        if isinstance(value, dict) and "label" not in value and isinstance(value.get("objective"), dict):
            return {"label": str(value["objective"].get("name")), **value}
        return value

    @field_validator("set")
    @classmethod
    def _refuse_shared_set(cls, value: dict[str, Any]) -> dict[str, Any]:
        _refuse_shared(value)
        return value

    @field_validator("grid")
    @classmethod
    def _check_grid(cls, value: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, values in value.items():
            if not values:
                raise ValueError(f"{key} has no values")
            for item in values:
                _refuse_shared({key: item})
        return value


class Measure(Section):
    """Measurements of every trained model besides its held-out preferences."""

    samples: int = Field(64, ge=0, description="number of held-out prompts to sample a response to; 0: no samples")
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(1.0, gt=0)
    reward: RewardConfig | None = Field(None, description="reward of a sample")
    judge: RewardConfig | None = Field(
        None, description="judge that compares a sample with the other model's, in both orders"
    )
    against: Literal["start", "baseline"] = Field("start", description="model whose samples the judge compares with")
    primary: str = Field("accuracy", description="metric of the verdict")

    @field_validator("primary")
    @classmethod
    def _ranks(cls, value: str) -> str:
        if value in NO_VERDICT:
            could = "accuracy, margin, auc (each also with log_prob_ or mean_log_prob_), reward or win_rate"
            raise ValueError(f"there is no verdict on {value}: {NO_VERDICT[value]}; use {could}")
        return value


class Range(Section):
    """A range of numbers to draw from."""

    low: float
    high: float
    scale: Literal["linear", "log"] = "linear"

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high or (self.scale == "log" and self.low <= 0):
            raise ValueError("expected low < high, and low above 0 on a log scale")
        return self


class Budget(Section):
    """The budget after which no new cell is started; a started cell is finished."""

    trials: int | None = Field(None, ge=1, description="maximum number of variants, each with all seeds and sizes")
    tokens: float | None = Field(None, gt=0, description="maximum trained tokens over all cells")
    hours: float | None = Field(None, gt=0)


class Search(Section):
    """The search for every method's variants in a sweep."""

    method: Literal["grid", "random"] = "grid"
    parameters: dict[str, list[Any] | Range] = Field(description="dotted key: values, or a range to draw from")
    trials: int = Field(20, ge=1, description="variants drawn per method, for a random search")
    seed: int = Field(0, ge=0)
    budget: Budget = Budget()

    @model_validator(mode="after")
    def _check_parameters(self) -> Search:
        ranged = [key for key, values in self.parameters.items() if isinstance(values, Range)]
        if self.method == "grid" and ranged:
            raise ValueError(f"a grid takes lists of values, and {ranged[0]} is a range; or use method: random")
        if not self.parameters or any(values == [] for values in self.parameters.values()):
            raise ValueError("parameters names nothing to vary")
        for key in self.parameters:
            _refuse_shared({key: None})
        return self


class Bench(Section):
    """One comparison."""

    output: str = Field(description="folder of the comparison")
    base: dict[str, Any] = Field(description="keys of a run that all cells share")
    methods: list[Method] = Field(min_length=1)
    baseline: str = Field(description="label of a method (its first variant), or start: the starting model")
    seeds: list[int] = Field([0, 1, 2, 3, 4], min_length=1)
    sizes: list[int | float] = Field([1.0], min_length=1, description="shares (up to 1.0) or counts of training groups")
    measure: Measure = Measure()
    search: Search | None = None
    keep_weights: bool = Field(True, description="false: every model is deleted once it is measured")

    @field_validator("sizes")
    @classmethod
    def _sizes(cls, value: list[int | float]) -> list[int | float]:
        for size in value:
            if size <= 0 or (isinstance(size, float) and size > 1):
                raise ValueError(f"{size} is neither a share in (0, 1] nor a count")
        return value

    @model_validator(mode="after")
    def _agrees(self) -> Bench:
        labels = [method.label for method in self.methods]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"two methods have the label {label!r}; give each its own")
        if START in labels:
            raise ValueError(f"{START!r} is the starting model's row; give the method another label")
        if self.baseline not in [START, *labels]:
            raise ValueError(f"baseline {self.baseline!r} is no label{nearest(self.baseline, [START, *labels])}")
        if self.measure.primary == "win_rate":
            _check_win_rate(self)
        for name in ("seeds", "sizes"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names a value twice")
        for key in ("output", "objective"):
            if key in self.base:
                raise ValueError(f"base.{key} is set by the comparison itself")
        return self


def _check_win_rate(bench: Bench) -> None:
    """Refuse a verdict on win rates where the baseline has no win rate."""
    if bench.measure.judge is None or not bench.measure.samples:
        raise ValueError("measure.primary is win_rate, which needs measure.judge and measure.samples above 0")
    if bench.baseline == START or bench.measure.against == "baseline":
        opponent = "the start" if bench.baseline == START else "the baseline"
        raise ValueError(
            f"measure.primary is win_rate, and the judge compares with {opponent}, which has no win rate against "
            "itself to differ from; use measure.against: start and a method as baseline"
        )


def load_bench(file: Path, overrides: Sequence[str] = ()) -> Bench:
    """Read a comparison's YAML, apply ``key=value`` overrides, and check all of it except the runs.

    Raises:
        ConfigError: all errors at once.
    """
    return load_section(Bench, file, overrides)


def dump_bench(bench: Bench) -> str:
    """The configuration as YAML, with all default values."""
    return yaml.safe_dump(bench.model_dump(), sort_keys=False, allow_unicode=True)


def _refuse_shared(values: dict[str, Any], prefix: str = "") -> None:
    """Refuse keys, dotted or nested, that would give a method another starting model or other data than the others."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if path in SHARED or (path == "data" and not isinstance(value, dict)):
            raise ValueError(f"{path} is the same for all methods; set it once: {SHARED.get(path, 'base.data')}")
        if isinstance(value, dict):
            _refuse_shared(value, f"{path}.")


def log_uniform(low: float, high: float, share: float) -> float:
    """The number at a share of the way from low to high on a log scale."""
    return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
