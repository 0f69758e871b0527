"""`penchant plan`: the memory and time of a run before any weights are read, and changes that make it fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import transformers

from penchant.config.objective import code_runs, names_code
from penchant.config.run import RunConfig, parse_config, with_training
from penchant.config.run_sections import SAFE_TOKEN_BUDGET
from penchant.config.section import override
from penchant.data.tokenized import TokenizedGroup
from penchant.engine.device import best_dtype, local_device, on_device, training_products
from penchant.engine.memory import available_bytes, process_bytes
from penchant.engine.reference_model import NO_LIMIT
from penchant.engine.scorer_choice import sample_groups
from penchant.models.loading import adapter_base
from penchant.planning.memory import Memory, Surroundings, count_memory
from penchant.planning.model import ModelSpec, read_shape
from penchant.planning.time import InsufficientMemory, StepCosts, check_tree, measure_step_costs
from penchant.planning.work import CARD_SHARE, Workload, largest_budget, plan_batches
from penchant.training.inputs import Inputs
from penchant.training.model import choose_dtype
from penchant.training.run import read_run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS = 4.0
"""Seconds of timing for the run; a quarter of them for each proposal."""

KERNELS = 70 << 20
"""Bytes that a process holds once matrix products have run on the CPU: their code and work space."""


@dataclass(frozen=True)
class Forecast:
    """The predicted memory and time of one configuration.

    Attributes:
        changes: ``key=value`` changes to the run's configuration.
        seconds: phase -> seconds; empty where timing was not possible.
        step_seconds: mean seconds of an optimizer step.
        available: bytes that the run may use.
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
        dtype, token_budget: those of `training`, with ``auto`` resolved.
        tokens: tokens of training over all steps, prompts counted once.
        micro_batches: mean number of micro-batches of a step.
        rate: floating-point operations per second of the model's matrix products.
        proposals: forecasts with changes; empty where the run fits as it is.
        notes: notes on what is not predicted.
    """

    forecast: Forecast
    device: torch.device
    dtype: str
    token_budget: int
    steps: int
    tokens: int
    micro_batches: float
    rate: float | None
    proposals: list[Forecast]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """The JSON document; memory in MB of 2**20 bytes."""
        forecast = self.forecast
        return {
            "memory_mb": _megabytes(forecast.memory),
            "available_mb": round(forecast.available / 2**20, 1),
            "fits": forecast.fits,
            "seconds": _rounded(forecast.total_seconds),
            "seconds_by_phase": {name: _rounded(value) for name, value in forecast.seconds.items()},
            "step_seconds": _rounded(forecast.step_seconds),
            "steps": self.steps,
            "tokens": self.tokens,
            "micro_batches": round(self.micro_batches, 2),
            "device": str(self.device),
            "dtype": self.dtype,
            "token_budget": self.token_budget,
            "matrix_gflops": None if self.rate is None else round(self.rate / 1e9, 1),
            "proposals": [
                {
                    "set": list(proposal.changes),
                    "memory_mb": _megabytes(proposal.memory),
                    "seconds": _rounded(proposal.total_seconds),
                    "fits": proposal.fits,
                }
                for proposal in self.proposals
            ],
            "notes": self.notes,
        }


@dataclass
class Planner:
    """Forecasts of a run and of its changes, on one device.

    Attributes:
        config: the run with its dtype and token budget resolved.
        budget_warning: message that no token budget fits; None where one does, or is configured.
    """

    config: RunConfig
    inputs: Inputs
    limit: int
    spec: ModelSpec
    device: torch.device
    available: int
    baseline: int
    notes: list[str] = field(default_factory=list)
    budget_warning: str | None = None

    def workload(self, config: RunConfig) -> Workload:
        def padded(group: TokenizedGroup) -> int:
            return len(group.responses) * group.longest

        def packed(group: TokenizedGroup) -> int:
            return group.length

        return plan_batches(config, self.inputs, self.limit, padded if self.spec.padded else packed)

    def memory(self, config: RunConfig, approximate: bool = False) -> Memory:
        """The memory of a configuration; where `approximate`, from fewer micro-batches."""
        workload = self.workload(config)
        sampled = config.candidates == "sampled" and bool(config.built_objective.needs.references)
        adapters_reference = config.lora is not None and config.reference is None
        live_reference = (config.reference or config.model) if sampled and not adapters_reference else None
        return count_memory(
            replace(self.spec, config=config),
            workload.peak_batches().reduced if approximate else workload.peak_batches(),
            Surroundings(workload.references, live_reference, self.device, self.baseline),
        )

    def forecast(
        self, changes: Sequence[str], seconds: float, memory: Memory | None = None
    ) -> tuple[Forecast, StepCosts | None]:
        """The forecast of the run with some changes, and its step costs where they could be measured."""
        config = apply_changes(self.config, changes)
        workload, memory = self.workload(config), memory or self.memory(config)
        try:
            costs = measure_step_costs(replace(self.spec, config=config), workload.typical, self.device, seconds)
        except InsufficientMemory as error:
            if (note := f"time is not predicted: {error.what}") not in self.notes:
                self.notes.append(note)
            return Forecast(tuple(changes), memory, {}, None, self.available), None
        if costs.note is not None and costs.note not in self.notes:
            self.notes.append(costs.note)
        phases, step = self._seconds(config, workload, costs)
        return Forecast(tuple(changes), memory, phases, step, self.available), costs

    def _seconds(self, config: RunConfig, workload: Workload, costs: StepCosts) -> tuple[dict[str, float], float]:
        layers = self.spec.layers
        forward = layers * costs.layer_forward + costs.non_layer_forward
        scorer = replace(self.spec, config=config).meta_scorer()
        trained = sum(p.numel() for p in scorer.parameters() if p.requires_grad)
        reading = workload.reading()
        step = (
            workload.tokens * (layers * costs.layer + costs.non_layer)
            + workload.micro_batches * costs.fixed
            + trained * costs.update
            + reading["training"] / workload.steps * forward
        )
        return {
            "reference_pass": reading["reference_pass"] * forward,
            "training": step * workload.steps,
            "held_out": reading["held_out"] * forward,
        }, step

    def fitting_budget(self) -> int:
        """The largest token budget whose peak fits into `CARD_SHARE` of the available memory, at most a step's tokens.

        Where none fits it is the longest group, which is never split, and `budget_warning` says so.
        """
        uncut = self.workload(with_training(self.config, token_budget=NO_LIMIT))
        groups = [*uncut.train, *uncut.held_out, *uncut.reference_held_out]
        smallest, step_tokens = max(map(uncut.cost, groups)), max(uncut.step_tokens)
        room = int(CARD_SHARE * self.available)

        def peak_of(budget: int) -> int:
            return self.memory(with_training(self.config, token_budget=budget)).peak

        budget = largest_budget(peak_of, smallest, step_tokens, room)
        if budget is None:
            self.budget_warning = (
                f"training.token_budget: auto is {smallest:,}, the longest group, and even that is planned to take "
                f"{peak_of(smallest) >> 20:,} MB, above {room >> 20:,} MB, {CARD_SHARE:.0%} of the free memory; "
                "penchant plan RUN.yaml proposes changes"
            )
        return smallest if budget is None else budget

    def proposals(self) -> list[Forecast]:
        """Forecasts of changes that make the run fit: single changes, or where none does, several together."""
        config = self.config
        single = [self._smaller_budget(())]
        if not config.training.gradient_checkpointing:
            single.append(("training.gradient_checkpointing=true",))
        if config.training.dtype == "float32":
            half = "float16" if best_dtype(self.device) == "float16" else "bfloat16"
            single.append((f"training.dtype={half}",))
        if config.lora is None and adapter_base(config.model) is None and not config.head.freeze_backbone:
            single.append(("lora.rank=16",))
        alone = [change for change in single if change]
        fitting = self._that_fit(alone)
        if fitting:
            return fitting
        other_changes = [change for change in alone if not change[0].startswith("training.token_budget")]
        together: list[tuple[str, ...]] = []
        for change in other_changes:
            together.append((*(together[-1] if together else ()), *change))
        cut_too = [self._smaller_budget(change) for change in [*alone[1:], *together]]
        return self._that_fit([*together[1:], *(change for change in cut_too if change)])[:4]

    def _that_fit(self, candidates: Sequence[tuple[str, ...]]) -> list[Forecast]:
        forecasts = []
        for changes in dict.fromkeys(candidates):
            memory = self.memory(apply_changes(self.config, changes), approximate=True)
            if memory.peak <= self.available:
                forecasts.append(self.forecast(changes, SECONDS / 4, memory)[0])
        return forecasts

    def _smaller_budget(self, changes: tuple[str, ...]) -> tuple[str, ...]:
        """The changes with the largest halved token budget that fits; empty where the longest group does not fit."""
        config = apply_changes(self.config, changes)
        workload = self.workload(config)
        longest = max(map(workload.cost, workload.train))
        budget = min(
            config.training.resolved_token_budget,
            max(sum(map(workload.cost, groups)) for s in workload.sampled_steps for groups in s),
        )
        for _ in range(4):
            if budget <= longest:
                break
            budget = max(budget // 2, longest)
            smaller = (*changes, f"training.token_budget={budget}")
            if self.memory(apply_changes(self.config, smaller), approximate=True).peak <= self.available:
                return smaller
        return ()


def apply_changes(config: RunConfig, changes: Sequence[str]) -> RunConfig:
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
        available: bytes that the run may use; None: those of the device.

    Raises:
        PenchantError: the configuration, the data or the model's folder is at fault.
    """
    with on_device(config.device):
        device = local_device()
        config = with_training(config, dtype=choose_dtype(config.training.dtype, device))
        inputs, tokenizer, limit = read_run(config, 1, weights=False)
        room = available_bytes(device) if available is None else available
        planner = new_planner(config, inputs, tokenizer, limit, device, room)
        return _plan(planner)


def new_planner(
    config: RunConfig,
    inputs: Inputs,
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    device: torch.device,
    available: int,
) -> Planner:
    """The planner of a run, with a token budget that fits where it is ``auto``.

    Args:
        config: its dtype is resolved.
        inputs, tokenizer, limit: as `read_run` returns them.
        available: bytes that the run may use.
    """
    shape = read_shape(config.model)
    # Loaded now, so that the process is as large as the run's will be.
    transformers.AutoModelForCausalLM  # noqa: B018
    baseline = process_bytes(device) + (KERNELS if device.type == "cpu" else 0)
    spec = ModelSpec(config, shape, tokenizer)
    planner = Planner(config, inputs, limit, spec, device, available, baseline, not_predicted(config))
    if config.training.token_budget == "auto" and device.type != "cuda":
        planner.config = with_training(config, token_budget=SAFE_TOKEN_BUDGET)
    try:
        planner.spec = check_tree(spec, sample_groups(planner.workload(config).train), device)
        planner.notes += planner.spec.notes
    except InsufficientMemory:
        planner.notes.append("not checked for want of memory: the packed tree is assumed to be exact for the model")
    if planner.config.training.token_budget == "auto":
        planner.config = with_training(config, token_budget=planner.fitting_budget())
    planner.spec = replace(planner.spec, config=planner.config)
    return planner


def _plan(planner: Planner) -> Plan:
    workload = planner.workload(planner.config)
    with training_products(planner.device):
        forecast, costs = planner.forecast((), SECONDS)
    return Plan(
        forecast,
        planner.device,
        planner.config.training.resolved_dtype,
        planner.config.training.resolved_token_budget,
        workload.steps,
        round(workload.tokens * workload.steps),
        workload.micro_batches,
        costs.rate if costs else None,
        [] if forecast.fits else planner.proposals(),
        [*planner.notes, *filter(None, [planner.budget_warning])],
    )


def not_predicted(config: RunConfig) -> list[str]:
    """Notes on what a forecast does not include."""
    notes = []
    if not code_runs() and names_code(config.objective):
        name = config.objective["name"]
        notes.append(f"a plan runs no code of yours: {name} is taken to need what {config.built_objective.name} needs")
    if not code_runs() and config.reward is not None:
        notes.append("rewards are not computed: all candidates are assumed to score differently")
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
