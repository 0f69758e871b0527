"""`penchant plan`: the memory and time of a run before any weights are read, and what would make it fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers

from penchant.config.objective import code_runs, names_code
from penchant.config.run import RunConfig, parse_config
from penchant.config.yaml_files import override
from penchant.data.tokenized import TokenizedGroup
from penchant.engine.distributed import local_device
from penchant.engine.memory import available_bytes, process_bytes
from penchant.engine.scoring import sample_groups
from penchant.models.loading import adapter_base
from penchant.planning.memory import Memory, Surroundings, count_memory
from penchant.planning.model import Blueprint, read_shape
from penchant.planning.time import NoRoom, Pace, check_tree, measure_pace
from penchant.planning.work import Work, lay_out
from penchant.training.inputs import Inputs
from penchant.training.run import read_run

SECONDS = 4.0
"""About how long the run's pace is measured, and a quarter of it for each proposal."""

KERNELS = 70 << 20
"""What a process holds more once matrix products have run on the CPU: their code, and their work space."""


@dataclass(frozen=True)
class Forecast:
    """What one configuration will take.

    Attributes:
        seconds: of each phase; empty where the pace could not be measured.
        step_seconds: of an optimizer step, on average.
    """

    changes: tuple[str, ...]
    memory: Memory
    seconds: dict[str, float]
    step_seconds: float | None
    available: int

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.available

    @property
    def total_seconds(self) -> float | None:
        return sum(self.seconds.values()) if self.seconds else None


@dataclass(frozen=True)
class Plan:
    """A run's forecast, and those of the changes that make it fit.

    Attributes:
        tokens: of the whole run's training, prompts once.
        proposals: each with its changes as ``key=value``; empty where the run fits as it is.
        notes: what is not predicted, and why.
    """

    forecast: Forecast
    device: torch.device
    steps: int
    tokens: int
    micro_batches: float
    rate: float | None
    proposals: list[Forecast]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """One document; memory in MB of 2**20 bytes."""
        now = self.forecast
        return {
            "memory_mb": _megabytes(now.memory),
            "available_mb": round(now.available / 2**20, 1),
            "fits": now.fits,
            "seconds": _rounded(now.total_seconds),
            "seconds_by_phase": {name: _rounded(value) for name, value in now.seconds.items()},
            "step_seconds": _rounded(now.step_seconds),
            "steps": self.steps,
            "tokens": self.tokens,
            "micro_batches": round(self.micro_batches, 2),
            "device": str(self.device),
            "matrix_gflops": None if self.rate is None else round(self.rate / 1e9, 1),
            "proposals": [
                {
                    "set": list(each.changes),
                    "memory_mb": _megabytes(each.memory),
                    "seconds": _rounded(each.total_seconds),
                    "fits": each.fits,
                }
                for each in self.proposals
            ],
            "notes": self.notes,
        }


@dataclass
class Planner:
    """Forecasts of a run and of its changes, on one device."""

    config: RunConfig
    inputs: Inputs
    limit: int
    blueprint: Blueprint
    device: torch.device
    available: int
    baseline: int
    notes: list[str] = field(default_factory=list)

    def work(self, config: RunConfig) -> Work:
        def padded(group: TokenizedGroup) -> int:
            return len(group.responses) * group.longest

        def packed(group: TokenizedGroup) -> int:
            return group.length

        return lay_out(config, self.inputs, self.limit, padded if self.blueprint.padded else packed)

    def memory(self, config: RunConfig, roughly: bool = False) -> Memory:
        """What a configuration will hold; roughly, from fewer micro-batches."""
        work = self.work(config)
        sampled = config.candidates == "sampled" and bool(config.method.needs.references)
        own = config.lora is not None and config.reference is None
        live = (config.reference or config.model) if sampled and not own else None
        return count_memory(
            replace(self.blueprint, config=config),
            work.load().lightened if roughly else work.load(),
            Surroundings(work.references, live, self.device, self.baseline),
        )

    def forecast(
        self, changes: Sequence[str], seconds: float, memory: Memory | None = None
    ) -> tuple[Forecast, Pace | None]:
        """What the run will take with some changes."""
        config = changed(self.config, changes)
        work, memory = self.work(config), memory or self.memory(config)
        try:
            pace = measure_pace(replace(self.blueprint, config=config), work.typical, self.device, seconds)
        except NoRoom as error:
            if (note := f"time is not predicted: {error.what}") not in self.notes:
                self.notes.append(note)
            return Forecast(tuple(changes), memory, {}, None, self.available), None
        phases, step = self._seconds(config, work, pace)
        return Forecast(tuple(changes), memory, phases, step, self.available), pace

    def _seconds(self, config: RunConfig, work: Work, pace: Pace) -> tuple[dict[str, float], float]:
        layers = self.blueprint.layers
        forward = layers * pace.layer_forward + pace.rest_forward
        scorer = replace(self.blueprint, config=config).meta_scorer()
        trained = sum(p.numel() for p in scorer.parameters() if p.requires_grad)
        reading = work.reading()
        step = (
            work.tokens * (layers * pace.layer + pace.rest)
            + work.micro_batches * pace.fixed
            + trained * pace.update
            + reading["training"] / work.steps * forward
        )
        return {
            "reference_pass": reading["reference_pass"] * forward,
            "training": step * work.steps,
            "held_out": reading["held_out"] * forward,
        }, step

    def proposals(self) -> list[Forecast]:
        """Changes that make the run fit: each alone, or where none does, together."""
        config = self.config
        single = [self._smaller_budget(())]
        if not config.training.gradient_checkpointing:
            single.append(("training.gradient_checkpointing=true",))
        if config.training.dtype == "float32":
            single.append(("training.dtype=bfloat16",))
        if config.lora is None and adapter_base(config.model) is None and not config.head.freeze_backbone:
            single.append(("lora.rank=16",))
        alone = [change for change in single if change]
        found = self._that_fit(alone)
        if found:
            return found
        others = [change for change in alone if not change[0].startswith("training.token_budget")]
        together: list[tuple[str, ...]] = []
        for change in others:
            together.append((*(together[-1] if together else ()), *change))
        cut_too = [self._smaller_budget(change) for change in [*alone[1:], *together]]
        return self._that_fit([*together[1:], *(change for change in cut_too if change)])[:4]

    def _that_fit(self, candidates: Sequence[tuple[str, ...]]) -> list[Forecast]:
        found = []
        for changes in dict.fromkeys(candidates):
            memory = self.memory(changed(self.config, changes), roughly=True)
            if memory.peak <= self.available:
                found.append(self.forecast(changes, SECONDS / 4, memory)[0])
        return found

    def _smaller_budget(self, changes: tuple[str, ...]) -> tuple[str, ...]:
        """The changes with the largest halved budget that fits; none where even the longest group does not."""
        config = changed(self.config, changes)
        work = self.work(config)
        longest = max(map(work.cost, work.train))
        budget = min(config.training.token_budget, max(sum(map(work.cost, groups)) for s in work.seen for groups in s))
        for _ in range(4):
            if budget <= longest:
                break
            budget = max(budget // 2, longest)
            cut = (*changes, f"training.token_budget={budget}")
            if self.memory(changed(self.config, cut), roughly=True).peak <= self.available:
                return cut
        return ()


def changed(config: RunConfig, changes: Sequence[str]) -> RunConfig:
    """The configuration with ``key=value`` changes."""
    if not changes:
        return config
    values = config.model_dump()
    for change in changes:
        override(values, change)
    return parse_config(values, "the proposal")


def plan(config: RunConfig, *, available: int | None = None) -> Plan:
    """Predict the memory and time of a run on this machine; weights are not read, and need not be there.

    Args:
        available: bytes the run may hold; None is what the device has.

    Raises:
        PenchantError: the configuration, the data or the model's folder is at fault.
    """
    device = local_device()
    inputs, tokenizer, limit = read_run(config, 1, weights=False)
    shape = read_shape(config.model)
    # Loaded now, so that the process is as large as the run's will be, and no larger.
    transformers.AutoModelForCausalLM  # noqa: B018
    baseline = process_bytes(device) + (KERNELS if device.type == "cpu" else 0)
    if available is None:
        available = available_bytes(device)
    blueprint = Blueprint(config, shape, tokenizer)
    planner = Planner(config, inputs, limit, blueprint, device, available, baseline, not_predicted(config))
    work = planner.work(config)
    try:
        planner.blueprint = check_tree(blueprint, sample_groups(work.train), device)
        planner.notes += planner.blueprint.notes
    except NoRoom:
        planner.notes.append("it is taken that the packed tree is exact for the model: no room to try")
    work = planner.work(config)
    forecast, pace = planner.forecast((), SECONDS)
    return Plan(
        forecast,
        device,
        work.steps,
        round(work.tokens * work.steps),
        work.micro_batches,
        pace.rate if pace else None,
        [] if forecast.fits else planner.proposals(),
        planner.notes,
    )


def not_predicted(config: RunConfig) -> list[str]:
    """What a forecast leaves out, in words."""
    notes = []
    if not code_runs() and names_code(config.objective):
        name = config.objective["name"]
        notes.append(f"a plan runs no code of yours: {name} is taken to need what {config.method.name} needs")
    if not code_runs() and config.reward is not None:
        notes.append("a plan asks no reward: it is taken to tell all candidates apart")
    if config.candidates == "sampled":
        tokens = config.sampling.max_new_tokens
        notes.append(f"candidates are drawn while training: each is taken to be {tokens} tokens long, the longest")
        notes.append("not predicted: the time and memory of drawing candidates and of scoring them")
    elif config.reward is not None:
        notes.append("not predicted: the time and memory of scoring the data before training")
    if config.reference_update == "best":
        notes.append("each evaluation is taken to be the best so far: the reference is updated at all of them")
    if any(source is not None for source in [config.reference, *config.references]):
        notes.append("a named reference is taken to read the policy's tokens, at the policy's pace")
    return notes


def _megabytes(memory: Memory) -> dict[str, float]:
    return {name: round(value / 2**20, 2) for name, value in {**vars(memory), "peak": memory.peak}.items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
