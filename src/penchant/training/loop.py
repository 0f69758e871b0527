"""The training loop: batches of groups in, optimizer steps out. It knows no objective and no attention.

Sums are divided once: every micro-batch's backward adds up the gradient of the *total* loss, and the gradient is
divided by the global count just before the step. So the loss does not depend on how a batch was cut, nor on how many
processes shared it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from penchant.config.run_sections import CheckpointConfig, EvaluationConfig, LoggingConfig, TrainingConfig
from penchant.engine.device import float64_device, to_float64
from penchant.engine.distributed import World, reshard
from penchant.engine.scoring import CandidateGroup, Scorer, micro_batches
from penchant.engine.working_weights import working_weights
from penchant.errors import ConfigError, TrainingError
from penchant.objectives import Objective, State
from penchant.progress import Progress
from penchant.training.backward import Batch, Result, backward, objective_inputs, score_batch
from penchant.training.batches import BatchSource, Split
from penchant.training.checkpoints import Checkpoints
from penchant.training.log import JsonLines, direction
from penchant.training.optimizer import (
    NO_SCALE,
    LossScale,
    build_optimizer,
    gradient_norm,
    learning_rate,
    scale_and_clip,
)
from penchant.training.references import MovingReference
from penchant.training.stop_signals import STOP_SIGNALS, Interrupted, StopSignals


@dataclass(frozen=True)
class LoopConfig:
    """What the loop reads of a run's configuration.

    Attributes:
        folder: the run's folder.
        resume_command: what to type to resume the run, for messages.
        head_decay: weight decay of a preference head.
    """

    folder: Path
    resume_command: str
    objective: Objective
    training: TrainingConfig
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    head_decay: float = 0.0


logger = logging.getLogger(__name__)


@dataclass
class LoopState:
    """The loop's state between steps, saved with every checkpoint.

    Attributes:
        sums: metric -> (total, count) since the last logged step.
        best: value of the best evaluation, lower is better; None before the first.
        worse: evaluations since the best one.
        stopped: whether patience has ended the run.
        log_size, log_digest: bytes of metrics.jsonl at the checkpoint, and their hash.
        loss_scale, scale_steps: `LossScale` of the next step under float16.
    """

    step: int = 0
    tokens: int = 0
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    best: float | None = None
    worse: int = 0
    stopped: bool = False
    log_size: int = 0
    log_digest: str = ""
    loss_scale: float = LossScale.factor
    scale_steps: int = 0


class Loop:
    """The loop of one run.

    Args:
        scorer: the policy; sharded over the world where there are several processes.
        source: the groups of each step.
        state: the objective's state before the first step.
        held_out: groups and references; may be empty.
        moving_reference: the reference that becomes the policy at each best evaluation; None where all are fixed.
        save_best: called when a held-out evaluation during training is the best so far.
    """

    def __init__(
        self,
        config: LoopConfig,
        scorer: Scorer,
        source: BatchSource,
        state: State,
        held_out: Split,
        moving_reference: MovingReference | None,
        world: World,
        save_best: Callable[[], None],
    ) -> None:
        settings = config.training
        self.config, self.scorer, self.world, self.folder = config, scorer, world, config.folder
        self.source, self.objective_state = source, state
        self.held_out, self.save_best = held_out, save_best
        self.moving_reference = moving_reference
        self.objective = config.objective
        self.total = settings.max_steps or max(1, round(settings.epochs * source.order.steps_per_epoch))
        self.budget, self.dtype = settings.resolved_token_budget, settings.resolved_dtype
        self.is_scaled = self.dtype == "float16"
        self.optimizer = build_optimizer(scorer, settings, config.head_decay)
        self.weights = working_weights(scorer, world.device, self.dtype, world.size)
        self.state = LoopState()
        self.checkpoints = Checkpoints(
            self.folder / "checkpoints", world, config.checkpoints.keep, config.resume_command
        )
        self.metrics = JsonLines(self.folder / "metrics.jsonl")
        self.timing = JsonLines(self.folder / "timing.jsonl")

    def resume(self) -> None:
        """Load the latest complete checkpoint, if there is one."""
        checkpoint = self.checkpoints.latest()
        if checkpoint is not None:
            self.objective_state, saved = self.checkpoints.load(
                checkpoint, self.scorer, self.optimizer, self.objective_state, self._reference_tensors()
            )
            values = {name: saved[name] for name in vars(self.state) if name in saved}
            values["sums"] = {name: tuple(pair) for name, pair in saved["sums"].items()}
            self.state = LoopState(**values)
            self._rescore_held_out()
        if self.world.is_main:
            self.metrics.truncate(self.state.log_size, self.state.log_digest)
            self.timing.drop_partial_line()
        self.world.barrier()

    def run(self) -> None:
        """Train to the end.

        Raises:
            TrainingError: the loss or its gradient is not a finite number; the last checkpoint is untouched.
            Interrupted: on Ctrl-C, SIGTERM or SIGHUP, after the step in progress was finished and saved.
        """
        if self.state.step == 0 and self.held_out.groups:
            self.evaluate()
        progress = Progress("training", self.total, "steps", start=self.state.step, visible=self.world.is_main)
        with progress, StopSignals(self.config.resume_command, self.config.training.grace_seconds) as signals:
            while self.state.step < self.total and not self.state.stopped:
                loss, number = self.step(signals)
                progress.advance(1, f"loss {loss:.4f}")
                if self.held_out.groups and self._is_due(self.config.evaluation.every):
                    self.evaluate()
                if number or self.state.stopped or self._is_due(self.config.checkpoints.every):
                    self.save()
                if number:
                    raise Interrupted(f"interrupted; resume with: {self.config.resume_command}", number)

    def step(self, signals: StopSignals) -> tuple[float, int | None]:
        """One optimizer step over one batch.

        Returns:
            The batch's loss, and the number of a stop signal that any process has received.
        """
        start_time = time.perf_counter()
        settings = self.config.training
        step_batch = self.source.batch(self.state.step)
        groups, references = step_batch.groups, step_batch.references
        if self.moving_reference is not None:
            references = self.moving_reference.rescore(groups, references)
        # Only LoRA's dropout draws random numbers; a seed for each step leaves no generator to save.
        torch.manual_seed(settings.seed * 1_000_003 + self.state.step)
        scale = LossScale(self.state.loss_scale, self.state.scale_steps) if self.is_scaled else NO_SCALE
        batch = Batch(groups, references, self.budget, self.dtype, step_batch.temperature, scale.factor)
        result, self.objective_state = backward(
            self.scorer, self.objective, self.objective_state, batch, self.world, self.weights
        )
        sums, norm, number = self._reduce(result.sums, gradient_norm(self.scorer), signals)
        sums.update(step_batch.sums)
        total, count = sums["loss"]
        # FSDP averages over processes; the loss is a sum over them.
        factor = self.world.size / max(count * scale.factor, 1e-30)
        norm = scale_and_clip(self.scorer, factor, norm, settings.max_grad_norm)
        is_skipped = self.is_scaled and math.isfinite(total) and not math.isfinite(norm) and scale.factor > 1
        if not is_skipped and not (math.isfinite(total) and math.isfinite(norm)):
            self._raise_non_finite(result.non_finite_ids, groups)
        rate = learning_rate(self.state.step, self.total, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if not is_skipped:
            self.optimizer.step()
        self.optimizer.zero_grad()
        if self.is_scaled:
            self._update_scale(scale.next_scale(not is_skipped), is_skipped)
        self._log_step(sums, groups, rate, norm, time.perf_counter() - start_time)
        return total / max(count, 1e-30), number

    def evaluate(self) -> None:
        """Log held-out loss and metrics of the policy; the objective's state is not changed."""
        groups = self.held_out.groups
        batch = Batch(groups, self.held_out.references, self.budget, self.dtype)
        cuts = micro_batches(self.scorer, groups, self.budget)
        self.scorer.eval()
        with Progress("held-out", len(groups), "groups", visible=self.world.is_main) as progress:
            scores = score_batch(self.scorer, batch, self.world, cuts, advance=progress.advance)
        self.scorer.train()
        reshard(self.scorer)
        policy, reference, tensors = objective_inputs(scores, groups, batch.references)
        result = Result()
        result.add(self.objective.evaluate(policy, reference, tensors, self.objective_state), groups, counts=True)
        sums = {name: value.tolist() for name, value in result.sums.items()}
        # A total of -0.0 is logged as 0.0.
        means = {name: total / count + 0.0 for name, (total, count) in sums.items() if count}
        line = {"step": self.state.step, **{f"eval_{name}": value for name, value in means.items()}}
        if self.moving_reference is not None:
            line["reference_step"] = self.moving_reference.step
        if self.world.is_main:
            self.metrics.write(line)
        if self.config.evaluation.every:
            self._update_best(means)

    def save(self) -> None:
        """Write a checkpoint."""
        self.state.log_size = self.metrics.size
        self.state.log_digest = self.metrics.digest(self.state.log_size)
        self.checkpoints.save(
            self.state.step,
            self.scorer,
            self.optimizer,
            self.objective_state,
            self._reference_tensors(),
            vars(self.state),
        )

    def _is_due(self, interval: int | None) -> bool:
        return self.state.step == self.total or (interval is not None and self.state.step % interval == 0)

    def _update_best(self, means: Mapping[str, float]) -> None:
        metric = self.config.evaluation.metric
        if metric not in means:
            judged = ", ".join(name for name in means if direction(name) is not None)
            raise ConfigError(
                f"evaluation.metric is {metric!r}, and no held-out group has anything that it counts",
                where=str(self.folder),
                fix=f"add held-out groups that have it; or set evaluation.metric to one of: {judged}",
            )
        if self.state.step == 0:
            return  # The starting model is not a checkpoint of the run.
        value = means[metric] if direction(metric) == "lower" else -means[metric]
        if self.state.best is None or value < self.state.best:
            self.state.best, self.state.worse = value, 0
            self.save_best()
            if self.moving_reference is not None:
                self.moving_reference.update(self.state.step)
                self._rescore_held_out()
        else:
            self.state.worse += 1
        patience = self.config.evaluation.patience
        self.state.stopped = patience is not None and self.state.worse >= patience

    def _reference_tensors(self) -> Mapping[str, Tensor]:
        return {} if self.moving_reference is None else self.moving_reference.tensors

    def _rescore_held_out(self) -> None:
        """Compute the moving reference's held-out log-probs, once for all evaluations until its next update."""
        if self.moving_reference is not None:
            references = self.moving_reference.rescore(self.held_out.groups, self.held_out.references)
            self.held_out = replace(self.held_out, references=references)

    def _reduce(
        self, sums: Mapping[str, Tensor], norm: Tensor, signals: StopSignals
    ) -> tuple[dict[str, tuple[float, float]], float, int | None]:
        """Sums over all processes, the gradients' norm, and the number of a stop signal that any has received.

        One all-reduce, and the one time in a step that the host waits for the device.
        """
        # A coupled objective's sums are on the host.
        norm = to_float64(norm).to(next(iter(sums.values())).device)
        values = torch.cat([*sums.values(), norm[None]])
        stop_number = signals.signal_number
        if self.world.size > 1:
            if not self.world.is_main:
                values[-1] = 0.0  # The norm is the same on every process.
            flags = torch.tensor([float(signals.signal_number == number) for number in STOP_SIGNALS])
            values = self.world.sum(torch.cat([values, flags.to(values)]).to(float64_device(self.world.device)))
        numbers = values.tolist()
        if self.world.size > 1:
            counts = zip(STOP_SIGNALS, numbers[-len(STOP_SIGNALS) :], strict=True)
            stop_number = next((number for number, count in counts if count), None)
        pairs = zip(numbers[::2], numbers[1::2], strict=False)
        return dict(zip(sums, pairs, strict=False)), numbers[2 * len(sums)], stop_number

    def _update_scale(self, scale: LossScale, is_skipped: bool) -> None:
        self.state.loss_scale, self.state.scale_steps = scale.factor, scale.steps
        if is_skipped and self.world.is_main:
            logger.info(
                f"step {self.state.step + 1} is skipped: a gradient is beyond float16's range; the loss is now scaled "
                f"by {scale.factor:g}"
            )

    def _raise_non_finite(self, group_ids: Sequence[str], groups: Sequence[CandidateGroup]) -> None:
        ids = sorted({id for part in self.world.gather(list(group_ids)) for id in part})
        rows = ids or list(dict.fromkeys(group.group.id for group in groups))
        problem = "the loss is not a finite number" if ids else "the gradient is not a finite number"
        row_list = ", ".join(rows[:10]) + (", ..." if len(rows) > 10 else "")
        checkpoint = self.checkpoints.latest()
        raise TrainingError(
            f"{problem} at step {self.state.step + 1}, with the groups {row_list}; the weights were not changed by "
            "this step" + (f", and {checkpoint.name} is the last good checkpoint" if checkpoint else ""),
            where=str(self.folder),
            fix="look at those groups with `penchant data show`; lower training.learning_rate"
            + ("; or set training.dtype=float32: float16 ends at 65,504" if self.is_scaled else ""),
        )

    def _log_step(
        self,
        sums: Mapping[str, tuple[float, float]],
        groups: Sequence[CandidateGroup],
        rate: float,
        norm: float,
        seconds: float,
    ) -> None:
        state = self.state
        tokens = sum(group.length for group in groups)
        state.step += 1
        state.tokens += tokens
        for name, (total, count) in sums.items():
            previous = state.sums.get(name, (0.0, 0.0))
            state.sums[name] = (previous[0] + total, previous[1] + count)
        if not self._is_due(self.config.logging.every):
            return
        means = {name: total / count for name, (total, count) in state.sums.items() if count}
        state.sums = {}
        if self.world.is_main:
            epoch = round(state.step / self.source.order.steps_per_epoch, 4)
            norms = {"grad_norm": norm} if math.isfinite(norm) else {}  # A skipped step has none, and JSON no infinity.
            line = {"step": state.step, "epoch": epoch, **means, **norms, "learning_rate": rate}
            self.metrics.write({**line, "num_tokens": state.tokens})
            self.timing.write({"step": state.step, "seconds": seconds, "tokens_per_second": tokens / seconds})
