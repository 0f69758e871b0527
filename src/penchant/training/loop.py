"""The loop: batches of groups in, optimizer steps out. Reads top to bottom; knows no method and no attention.

Sums are divided once: every micro-batch's backward adds up the gradient of the *total* loss, and the gradient is
divided by the global count just before the step. So the loss does not depend on how a batch was cut, nor on how many
processes shared it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from penchant.config.run import RunConfig
from penchant.data.tokenized import TokenizedGroup
from penchant.engine.distributed import World, reshard
from penchant.engine.scoring import Scorer, micro_batches
from penchant.errors import ConfigError, TrainingError
from penchant.objectives import Objective, State
from penchant.progress import Progress
from penchant.training.backward import Batch, Result, arguments, backward, say
from penchant.training.batches import Order, Source, Split
from penchant.training.checkpoints import Checkpoints
from penchant.training.log import JsonLines, direction
from penchant.training.moving_reference import MovingReference
from penchant.training.optimizer import build_optimizer, learning_rate, scale_and_clip
from penchant.training.stop_signals import STOP_SIGNALS, Interrupted, StopSignals


@dataclass
class LoopState:
    """All the loop remembers between steps; saved with every checkpoint.

    `sums` holds (total, count) of each metric since the last logged step.
    """

    step: int = 0
    tokens: int = 0
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    best: float | None = None
    worse: int = 0
    stopped: bool = False
    log_size: int = 0
    log_digest: str = ""


class Loop:
    """One run's loop.

    Args:
        scorer: the policy; sharded over the world where there are several processes.
        source: the groups of each step.
        order: of the training groups; says how many steps an epoch has.
        state: what the objective remembers before the first step.
        held_out: groups and references; may be empty.
        moving_reference: becomes the policy at each best evaluation; None where the references stay.
        save_best: called when a held-out evaluation during training is the best so far.
    """

    def __init__(
        self,
        config: RunConfig,
        scorer: Scorer,
        source: Source,
        order: Order,
        state: State,
        held_out: Split,
        moving_reference: MovingReference | None,
        world: World,
        folder: Path,
        save_best: Callable[[], None],
    ) -> None:
        settings = config.training
        self.config, self.scorer, self.world, self.folder = config, scorer, world, folder
        self.source, self.order, self.state = source, order, state
        self.held_out, self.save_best = held_out, save_best
        self.moving_reference = moving_reference
        self.objective: Objective = config.method
        self.total = settings.max_steps or max(1, round(settings.epochs * self.order.steps_per_epoch))
        self.optimizer = build_optimizer(scorer, settings, config.head.weight_decay)
        self.at = LoopState()
        self.checkpoints = Checkpoints(folder / "checkpoints", world, config.checkpoints.keep)
        self.metrics = JsonLines(folder / "metrics.jsonl")
        self.timing = JsonLines(folder / "timing.jsonl")

    def resume(self) -> None:
        """Go back to the last complete checkpoint, or to the start where there is none."""
        checkpoint = self.checkpoints.latest()
        if checkpoint is not None:
            self.state, saved = self.checkpoints.load(
                checkpoint, self.scorer, self.optimizer, self.state, self._reference_tensors()
            )
            values = {name: saved[name] for name in vars(self.at)}
            values["sums"] = {name: tuple(pair) for name, pair in saved["sums"].items()}
            self.at = LoopState(**values)
            self._rescore_held_out()
        if self.world.is_main:
            self.metrics.cut(self.at.log_size, self.at.log_digest)
            self.timing.cut_last_part()
        self.world.barrier()

    def run(self) -> None:
        """Train to the end.

        Raises:
            TrainingError: the loss or its gradient is not a number; the last checkpoint is untouched.
            Interrupted: on Ctrl-C, SIGTERM or SIGHUP, after the step in progress was finished and saved.
        """
        if self.at.step == 0 and self.held_out.groups:
            self.evaluate()
        progress = Progress("training", self.total, "steps", start=self.at.step, visible=self.world.is_main)
        with progress, StopSignals(self.folder, self.config.training.grace_seconds) as signals:
            while self.at.step < self.total and not self.at.stopped:
                loss, number = self.step(signals)
                progress.advance(1, f"loss {loss:.4f}")
                if self.held_out.groups and self._due(self.config.evaluation.every):
                    self.evaluate()
                if number or self.at.stopped or self._due(self.config.checkpoints.every):
                    self.save()
                if number:
                    raise Interrupted(f"interrupted; go on with: penchant train --resume {self.folder}", number)

    def step(self, signals: StopSignals) -> tuple[float, int | None]:
        """One optimizer step over one batch.

        Returns:
            The batch's loss, and the number of a stop signal that any process has received.
        """
        started = time.perf_counter()
        settings = self.config.training
        drawn = self.source.batch(self.at.step)
        groups, references = drawn.groups, drawn.references
        if self.moving_reference is not None:
            references = self.moving_reference.rescore(groups, references)
        # Only LoRA's own dropout draws random numbers; a seed of its own for each step leaves nothing to save.
        torch.manual_seed(settings.seed * 1_000_003 + self.at.step)
        batch = Batch(groups, references, settings.token_budget, settings.dtype, drawn.temperature)
        result, self.state = backward(self.scorer, self.objective, self.state, batch, self.world)
        sums, number = self._reduce(result.sums, signals)
        sums.update(drawn.sums)
        total, count = sums["loss"]
        norm = self._scale_gradients(count)
        if not (math.isfinite(total) and math.isfinite(norm)):
            self._refuse(result.broken, groups)
        rate = learning_rate(self.at.step, self.total, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._note(sums, groups, rate, norm, time.perf_counter() - started)
        return total / max(count, 1e-30), number

    def evaluate(self) -> None:
        """Held-out loss and metrics of the policy as it is; the objective's state stays as it is too."""
        settings = self.config.training
        groups = self.held_out.groups
        batch = Batch(groups, self.held_out.references, settings.token_budget, settings.dtype)
        cuts = micro_batches(self.scorer, groups, settings.token_budget)
        self.scorer.eval()
        with Progress("held-out", len(groups), "groups", visible=self.world.is_main) as progress:
            said = say(self.scorer, batch, self.world, cuts, advance=progress.advance)
        self.scorer.train()
        reshard(self.scorer)
        policy, reference, facts = arguments(said, groups, batch.references)
        result = Result()
        result.add(self.objective.evaluate(policy, reference, facts, self.state), groups, counts=True)
        sums = {name: value.tolist() for name, value in result.sums.items()}
        means = {name: total / count for name, (total, count) in sums.items() if count}
        line = {"step": self.at.step, **{f"eval_{name}": value for name, value in means.items()}}
        if self.moving_reference is not None:
            line["reference_step"] = self.moving_reference.step
        if self.world.is_main:
            self.metrics.write(line)
        if self.config.evaluation.every:
            self._judge(means)

    def save(self) -> None:
        """Write a checkpoint of everything."""
        self.at.log_size = self.metrics.size
        self.at.log_digest = self.metrics.digest(self.at.log_size)
        self.checkpoints.save(
            self.at.step, self.scorer, self.optimizer, self.state, self._reference_tensors(), vars(self.at)
        )

    def _due(self, every: int | None) -> bool:
        return self.at.step == self.total or (every is not None and self.at.step % every == 0)

    def _judge(self, means: Mapping[str, float]) -> None:
        metric = self.config.evaluation.metric
        if metric not in means:
            judged = ", ".join(name for name in means if direction(name) is not None)
            raise ConfigError(
                f"evaluation.metric is {metric!r}, and no held-out group has anything that it counts",
                where=str(self.folder),
                fix=f"add held-out groups that have it; or set evaluation.metric to one of: {judged}",
            )
        if self.at.step == 0:
            return  # What training starts from is no checkpoint of it.
        value = means[metric] if direction(metric) == "lower" else -means[metric]
        if self.at.best is None or value < self.at.best:
            self.at.best, self.at.worse = value, 0
            self.save_best()
            if self.moving_reference is not None:
                self.moving_reference.update(self.at.step)
                self._rescore_held_out()
        else:
            self.at.worse += 1
        patience = self.config.evaluation.patience
        self.at.stopped = patience is not None and self.at.worse >= patience

    def _reference_tensors(self) -> Mapping[str, Tensor]:
        return {} if self.moving_reference is None else self.moving_reference.tensors

    def _rescore_held_out(self) -> None:
        """Let the reference that moves read the held-out groups, once for all evaluations until its next update."""
        if self.moving_reference is not None:
            references = self.moving_reference.rescore(self.held_out.groups, self.held_out.references)
            self.held_out = replace(self.held_out, references=references)

    def _reduce(
        self, sums: Mapping[str, Tensor], signals: StopSignals
    ) -> tuple[dict[str, tuple[float, float]], int | None]:
        """Sums over all processes, and the number of a stop signal that any has received, in one exchange."""
        rows = [[float(signals.received == number), 0.0] for number in STOP_SIGNALS]
        received = torch.tensor(rows, dtype=torch.float64, device=self.world.device)
        stacked = self.world.sum(torch.cat([torch.stack([*sums.values()]), received])).tolist()
        counts = zip(STOP_SIGNALS, stacked[len(sums) :], strict=True)
        number = next((number for number, (count, _) in counts if count), None)
        return {name: (row[0], row[1]) for name, row in zip(sums, stacked, strict=False)}, number

    def _scale_gradients(self, count: float) -> float:
        """Divide the gradient of the total by the global count, then clip; returns the norm before clipping."""
        # FSDP averages over processes; the loss is a sum over them.
        factor = self.world.size / max(count, 1e-30)
        return scale_and_clip(self.scorer, factor, self.config.training.max_grad_norm)

    def _refuse(self, broken: Sequence[str], groups: Sequence[TokenizedGroup]) -> None:
        ids = sorted({id for part in self.world.gather(list(broken)) for id in part})
        rows = ids or [group.group.id for group in groups]
        what = "the loss is not a finite number" if ids else "the gradient is not a finite number"
        shown = ", ".join(rows[:10]) + (", ..." if len(rows) > 10 else "")
        saved = self.checkpoints.latest()
        raise TrainingError(
            f"{what} at step {self.at.step + 1}, with the groups {shown}; the weights were not changed by this step"
            + (f", and {saved.name} is the last good checkpoint" if saved else ""),
            where=str(self.folder),
            fix="look at those groups with `penchant data show`; lower training.learning_rate",
        )

    def _note(
        self,
        sums: Mapping[str, tuple[float, float]],
        groups: Sequence[TokenizedGroup],
        rate: float,
        norm: float,
        seconds: float,
    ) -> None:
        at = self.at
        tokens = sum(group.length for group in groups)
        at.step += 1
        at.tokens += tokens
        for name, (total, count) in sums.items():
            before = at.sums.get(name, (0.0, 0.0))
            at.sums[name] = (before[0] + total, before[1] + count)
        if not self._due(self.config.logging.every):
            return
        means = {name: total / count for name, (total, count) in at.sums.items() if count}
        at.sums = {}
        if self.world.is_main:
            epoch = round(at.step / self.order.steps_per_epoch, 4)
            line = {"step": at.step, "epoch": epoch, **means, "grad_norm": norm, "learning_rate": rate}
            self.metrics.write({**line, "num_tokens": at.tokens})
            self.timing.write({"step": at.step, "seconds": seconds, "tokens_per_second": tokens / seconds})
