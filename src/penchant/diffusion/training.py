"""Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908): a denoiser's adapters, tuned on preferred pictures.

``L = -log sigma(-beta_T [(d_w - d_w_ref) - (d_l - d_l_ref)])``, with ``d = ||noise - prediction||^2`` as a mean over
elements, at one timestep and noise that a group's pictures share. With ``log pi = -d`` this is DPO with
``beta = beta_T``, and other methods of preference are carried over alike. ``beta_T``, thousands for Stable Diffusion,
holds the number of timesteps and their weight; small models want far less. The authors' code multiplies by a half
besides: its ``beta_dpo`` of 5000 is a ``beta`` of 2500 here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from penchant.config.run import LoraConfig, TrainingConfig
from penchant.data.groups import PreferenceGroup
from penchant.diffusion.denoising import Denoiser, LatentChoice
from penchant.errors import ConfigError, TrainingError
from penchant.models.lora import add_adapters, sort_modules
from penchant.objectives import FittedObjective, Groups, Objective, State, Sum, WeightedSum
from penchant.progress import Progress
from penchant.training.batches import Order, group_tensors
from penchant.training.log import JsonLines
from penchant.training.optimizer import build_optimizer, learning_rate, scale_and_clip


@dataclass(frozen=True)
class Draws:
    """The random draws of a timestep and noise that a group's loss is averaged over.

    Attributes:
        number: draws for each group in a step.
        latents: how a picture's latents are taken from the VAE's distribution; as in `Denoiser`.
        empty_prompts: share of draws of a group in which its prompt is empty, in [0, 1); guidance needs the UNet
            without a prompt too.
    """

    number: int
    latents: LatentChoice = "mode"
    empty_prompts: float = 0.0


def tune_denoiser(
    denoiser: Denoiser,
    groups: Sequence[PreferenceGroup],
    read: Callable[[str], Tensor],
    objective: Objective,
    settings: TrainingConfig,
    lora: LoraConfig,
    draws: Draws,
    folder: Path,
) -> None:
    """Tune the UNet's adapters and merge them; a run from the same arguments ends with the same bits.

    Args:
        groups: their candidates name pictures.
        read: a named picture, [3, size, size] in [-1, 1].
        objective: of one reference: the UNet as it was.
        settings: `token_budget`, `dtype` and `gradient_checkpointing` are not used.
        folder: for the adapters, and metrics.jsonl.

    Raises:
        ConfigError: the objective needs more than pairs and one reference, or the UNet lacks the adapters' layers.
        TrainingError: the loss is not a finite number.
    """
    check_objective(objective)
    torch.manual_seed(settings.seed)
    denoiser.latent_choice = draws.latents
    targets = linear_layers(denoiser.unet) if lora.targets == "all-linear" else lora.targets
    model = denoiser.unet = add_adapters(
        denoiser.unet, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=targets
    )
    order = Order(len(groups), settings.batch_size, settings.seed, settings.shuffle)
    total = settings.max_steps or max(1, round(settings.epochs * order.steps_per_epoch))
    optimizer, state = build_optimizer(model, settings), objective.initial_state(settings.seed)
    folder.mkdir(parents=True, exist_ok=True)
    metrics = JsonLines(folder / "metrics.jsonl")
    metrics.truncate(0)
    with Progress("training", total, "steps") as progress:
        for step in range(total):
            members = [groups[i] for i in order.batch(step)]
            seed = (settings.seed * 1_000_003 + step) * draws.number
            seeds = range(seed, seed + draws.number)
            batch = DrawnBatch(denoiser, members, read, draws.empty_prompts, seeds)
            backward = _backward_of_all_draws if objective.coupled else _backward_by_draw
            sums, state = backward(batch, objective, state)
            means = {name: (value.total / value.count).item() for name, value in sums.items()}
            norm = scale_and_clip(model, 1 / sums["loss"].count.item(), settings.max_grad_norm)
            if not math.isfinite(means["loss"] + norm):
                raise TrainingError(
                    f"the loss or its gradient is not a finite number at step {step + 1}",
                    where=str(folder),
                    fix="lower the learning rate or beta",
                )
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, total, settings)
            optimizer.step()
            optimizer.zero_grad()
            metrics.write({"step": step + 1, **means, "grad_norm": norm})
            progress.advance(1, f"loss {means['loss']:.4f}")
    model.save_pretrained(folder)
    sort_modules(folder)
    denoiser.unet = model.merge_and_unload().requires_grad_(False)


@dataclass(frozen=True)
class DrawnBatch:
    """A step's groups with their draws of a timestep and noise; a draw is a function of its seed.

    Attributes:
        load_picture: a named picture.
        empty_prompts: share of the groups whose prompt is empty in a draw.
        seeds: of each draw.
    """

    denoiser: Denoiser
    groups: Sequence[PreferenceGroup]
    load_picture: Callable[[str], Tensor]
    empty_prompts: float
    seeds: Sequence[int]

    def log_probs(self, seed: int) -> tuple[Tensor, Tensor]:
        """[G, K] of the policy and of the reference, of one draw."""
        torch.manual_seed(seed)
        empty = torch.rand(len(self.groups)) < self.empty_prompts
        rows = zip(self.groups, empty.tolist(), strict=True)
        groups = [replace(group, prompt="") if is_empty else group for group, is_empty in rows]
        return _log_probs(self.denoiser, groups, self.load_picture)


def _backward_by_draw(batch: DrawnBatch, objective: Objective, state: State) -> tuple[Mapping[str, Sum], State]:
    """Add the gradient of the draws' total loss, a draw at a time; the metrics, summed, and the state."""
    outputs = []
    for seed in batch.seeds:
        policy, reference = batch.log_probs(seed)
        facts = _facts(batch.groups, policy)
        output, state = objective(policy, reference[None], facts, state)
        output.loss.total.backward()
        outputs.append({"loss": output.loss, **output.metrics})
    return {name: Sum(*_totals([output[name] for output in outputs])) for name in outputs[0]}, state


def _backward_of_all_draws(batch: DrawnBatch, objective: Objective, state: State) -> tuple[Mapping[str, Sum], State]:
    """The same for an objective of the whole batch: all draws are one batch, so that its state moves once a step.

    Log-probs come first, without a graph; each draw is made again with its part of their gradient.
    """
    with torch.no_grad():
        pairs = [batch.log_probs(seed) for seed in batch.seeds]
    policy, reference = (torch.cat(tables) for tables in zip(*pairs, strict=True))
    policy.requires_grad_()
    facts = _facts(list(batch.groups) * len(batch.seeds), policy)
    output, state = objective(policy, reference[None], facts, state)
    (gradient,) = torch.autograd.grad(output.loss.total, policy)
    for seed, part in zip(batch.seeds, gradient.chunk(len(batch.seeds)), strict=True):
        batch.log_probs(seed)[0].backward(part)
    return {"loss": output.loss, **output.metrics}, state


def _facts(groups: Sequence[PreferenceGroup], policy: Tensor) -> Groups:
    return group_tensors(groups, [[1] * len(group.candidates) for group in groups]).to(policy.device)


def _totals(values: Sequence[Sum]) -> tuple[Tensor, Tensor]:
    detached = [(value.total.detach(), value.count) for value in values]
    return tuple(torch.stack(column).sum() for column in zip(*detached, strict=True))  # type: ignore[return-value]


def check_objective(objective: Objective) -> None:
    """Refuse what has no meaning for pictures."""
    needs = objective.needs
    fine = needs.pairs and needs.references == 1 and needs.trains == "log_probs"
    further_needs = needs.many_references or needs.scores or needs.labels or needs.mismatched or needs.head
    if not fine or further_needs or _is_fitted(objective):
        raise ConfigError(
            f"the objective {objective.name} does not tune pictures",
            fix="use one of pairs and one reference, as dpo, ipo, hinge or s_dpo, or a weighted_sum of one and sft",
        )


def _is_fitted(objective: Objective) -> bool:
    """Whether it, or a part of it, is to be fitted to all groups before the first step: here none has log-probs yet."""
    if isinstance(objective, WeightedSum):
        return any(_is_fitted(part.objective) for part in objective.parts)
    return isinstance(objective, FittedObjective)


def linear_layers(unet: torch.nn.Module) -> list[str]:
    """Names of all linear layers; a UNet's are in its attention, its time embedding and its blocks' shifts by it."""
    return [name for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear)]


def _log_probs(
    denoiser: Denoiser, groups: Sequence[PreferenceGroup], read: Callable[[str], Tensor]
) -> tuple[Tensor, Tensor]:
    """[G, K] minus the noise errors, of the adapted UNet and of that without adapters; a draw for each group."""
    sizes = [len(group.candidates) for group in groups]
    pictures = torch.stack([read(str(name)) for group in groups for name in group.candidates])
    latents = denoiser.to_latents(pictures)
    encoded = denoiser.encode_prompts([str(group.prompt) for group in groups])
    timesteps = torch.randint(denoiser.schedule.config.num_train_timesteps, (len(groups),))
    noise = torch.randn(len(groups), *latents.shape[1:])
    row = torch.tensor([index for index, size in enumerate(sizes) for _ in range(size)])
    inputs = latents, encoded[row], timesteps[row].to(denoiser.device), noise[row].to(denoiser.device)
    with torch.no_grad(), denoiser.unet.disable_adapter():
        reference = -denoiser.noise_errors(*inputs)
    policy = -denoiser.noise_errors(*inputs)
    column = torch.tensor([index for size in sizes for index in range(size)])
    shape = len(groups), max(sizes)
    return tuple(values.new_zeros(shape).index_put((row, column), values) for values in (policy, reference))  # type: ignore[return-value]
