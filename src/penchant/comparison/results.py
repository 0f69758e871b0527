"""What a comparison comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Cell:
    """One trained and measured model.

    Attributes:
        values: metric -> held-out group or fresh sample -> value.
        sources: held-out group -> where the data says it comes from.
        samples: prompt number -> the model's fresh response.
        judge: what the judge said of them, counted.
    """

    method: str
    settings: dict[str, Any]
    size: int
    seed: int
    folder: str
    metrics: dict[str, float]
    values: dict[str, dict[str, float]]
    sources: dict[str, str]
    curves: dict[str, list[tuple[int, float]]]
    cost: dict[str, float]
    failed: str | None
    samples: dict[str, str] = field(default_factory=dict)
    judge: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """All cells, and how to read them.

    Attributes:
        prompts: held-out group -> the first group of the same prompt.
    """

    title: str
    baseline: str
    model: str
    data: str
    cells: Sequence[Cell]
    prompts: Mapping[str, str]
    definitions: dict[str, str]
    primary: str
    notices: list[str]
    config_yaml: str
    judge: dict[str, Any] | None
