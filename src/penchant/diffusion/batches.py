"""Groups of pictures for the training loop: random draws of a step, and the scorer that gives their noise errors.

Shapes: G groups, K pictures (the most any group has), N pictures in all, L tokens of a prompt, E channels of its
encoding; latents [C, h, w] of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from penchant.config.run_sections import TrainingConfig
from penchant.data.groups import PreferenceGroup
from penchant.data.trees import split_into_micro_batches
from penchant.diffusion.denoising import Denoiser, LatentChoice
from penchant.engine.device import to_float64
from penchant.engine.distributed import World
from penchant.engine.scoring import Scorer
from penchant.training.backward import Batch, score_batch
from penchant.training.batches import Order, StepBatch


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


@dataclass(frozen=True)
class DrawnGroup:
    """A group's pictures with one draw of a timestep and noise, which they share.

    Attributes:
        latents: [K, C, h, w] of its pictures.
        encoded: [L, E] encoding of its prompt, or of the empty one.
        timestep: scalar int64.
        noise: [C, h, w] standard normal.
    """

    group: PreferenceGroup
    latents: Tensor
    encoded: Tensor
    timestep: Tensor
    noise: Tensor

    @property
    def tokens(self) -> tuple[int, ...]:
        """Number of tokens of each picture's log-prob, which is a mean over elements: 1."""
        return (1,) * len(self.latents)

    @property
    def length(self) -> int:
        """Positions of the latents, h x w for each picture: what a UNet computes, and its attention's tokens."""
        return len(self.latents) * self.noise[0].numel()


@dataclass(frozen=True)
class PictureBatch:
    """Pictures of G groups with their draws, as `Denoiser.noise_errors` takes them.

    Attributes:
        latents, noise: [N, C, h, w].
        encoded: [N, L, E].
        timesteps: [N] int64.
        sizes: number of pictures of each group.
    """

    latents: Tensor
    encoded: Tensor
    timesteps: Tensor
    noise: Tensor
    sizes: tuple[int, ...]

    def to(self, device: torch.device) -> PictureBatch:
        """The batch with its tensors on a device."""
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)


class DenoiserScorer(Scorer):
    """Minus the noise errors of pictures, which stand for their log-probs."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        # The denoiser is no module; what is trained is its UNet.
        self.denoiser, self.unet = denoiser, denoiser.unet

    def cost(self, group: DrawnGroup) -> int:
        """Positions of latents that the group takes in a micro-batch."""
        return group.length

    def collate(self, groups: Sequence[DrawnGroup], temperature: float) -> PictureBatch:
        """The groups' pictures as one batch; noise errors have no temperature."""
        sizes = tuple(len(group.latents) for group in groups)
        row = torch.tensor([index for index, size in enumerate(sizes) for _ in range(size)])
        encoded, timesteps, noise = (
            torch.stack([getattr(group, name) for group in groups])[row] for name in ("encoded", "timestep", "noise")
        )
        return PictureBatch(torch.cat([group.latents for group in groups]), encoded, timesteps, noise, sizes)

    def forward(self, batch: PictureBatch) -> Tensor:
        """Minus the noise errors [G, K], in float64; 0 in empty slots."""
        errors = self.denoiser.noise_errors(batch.latents, batch.encoded, batch.timesteps, batch.noise)
        return pad_sequence(to_float64(-errors).split(batch.sizes), batch_first=True)


@dataclass(frozen=True)
class DrawnBatches:
    """Every step's groups, each with `draws.number` draws, which are functions of the seed and the step.

    Attributes:
        scorer: the policy; without its adapters it is the reference.
        groups: their candidates name pictures.
        read: a named picture, [3, size, size] in [-1, 1].
    """

    scorer: DenoiserScorer
    groups: Sequence[PreferenceGroup]
    read: Callable[[str], Tensor]
    draws: Draws
    order: Order
    settings: TrainingConfig

    def batch(self, step: int) -> StepBatch:
        """The drawn groups of a 0-based step, draw after draw, and their noise errors by the UNet without adapters."""
        members = [self.groups[i] for i in self.order.batch(step)]
        pictures = torch.stack([self.read(str(name)) for group in members for name in group.candidates])
        first = (self.settings.seed * 1_000_003 + step) * self.draws.number
        seeds = range(first, first + self.draws.number)
        drawn_groups = [group for seed in seeds for group in self._draw(members, pictures, seed)]
        return StepBatch(drawn_groups, [self._reference(drawn_groups)])

    def _draw(self, groups: Sequence[PreferenceGroup], pictures: Tensor, seed: int) -> list[DrawnGroup]:
        """One draw of every group; all of a step's are drawn at once, so that no micro-batch changes them."""
        denoiser = self.scorer.denoiser
        torch.manual_seed(seed)
        is_empty = (torch.rand(len(groups)) < self.draws.empty_prompts).tolist()
        latents = denoiser.to_latents(pictures)
        prompts = ["" if empty else str(group.prompt) for group, empty in zip(groups, is_empty, strict=True)]
        encoded = denoiser.encode_prompts(prompts)
        timesteps = torch.randint(denoiser.schedule.config.num_train_timesteps, (len(groups),))
        noise = torch.randn(len(groups), *latents.shape[1:])
        parts = latents.split([len(group.candidates) for group in groups])
        return [
            DrawnGroup(*row)
            for row in zip(
                groups, parts, encoded, timesteps.to(denoiser.device), noise.to(denoiser.device), strict=True
            )
        ]

    def _reference(self, drawn_groups: Sequence[DrawnGroup]) -> list[list[float]]:
        """[groups][pictures] minus the noise errors without adapters, in the policy's micro-batches: equal bits."""
        budget, dtype = self.settings.resolved_token_budget, self.settings.resolved_dtype
        cuts = split_into_micro_batches([self.scorer.cost(group) for group in drawn_groups], budget)
        world = World(0, 1, self.scorer.denoiser.device)
        with self.scorer.unet.disable_adapter():
            table = score_batch(self.scorer, Batch(drawn_groups, [], budget, dtype), world, cuts)
        return [row[: len(group.tokens)] for row, group in zip(table.tolist(), drawn_groups, strict=True)]
