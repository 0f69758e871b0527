"""A text-to-picture diffusion model in diffusers' folder format: its noise errors, and pictures from it.

A picture's log-prob cannot be computed; Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908, equation 14) puts minus
the error of the predicted noise in its place. So every pairwise objective works for pictures unchanged.

Shapes: N pictures, L tokens of a prompt, E channels of its encoding; pictures [N, 3, height, width] in [-1, 1], latents
[N, C, h, w]: the VAE's encodings of pictures, or the pictures themselves where the folder has no VAE.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from penchant.errors import ConfigError, DataError, ModelError, require_extra
from penchant.models.loading import loading_errors, refuse_missing
from penchant.storage.files import whole_folder

if TYPE_CHECKING:
    from types import ModuleType

LatentChoice = Literal["mode", "sample"]
"""How latents are taken from the VAE's normal distribution of them: its mode, or a sample."""
INDEX = "model_index.json"
"""A file that every model folder of diffusers has."""
PREDICTION_TYPES = ("epsilon", "v_prediction")
"""Kinds of prediction that `noise_errors` has a target for."""


def diffusers() -> ModuleType:
    """The package `diffusers`, imported when it is needed.

    Raises:
        ConfigError: it is missing.
    """
    with require_extra("diffusion", "pictures need diffusers"):
        import diffusers
    return diffusers


def _part(kind: Any, folder: Path) -> Any:
    """One of a model's parts, in float32.

    Raises:
        ModelError: the folder is missing, or its weights are missing or damaged.
    """
    with loading_errors(str(folder)):
        # Half precision on disk would be half precision in memory, of some parts only.
        part, report = kind.from_pretrained(str(folder), output_loading_info=True, dtype=torch.float32)
    refuse_missing(str(folder), report)
    return part


def _check_folder(path: Path) -> None:
    """Raise ModelError where a part is missing, or the folder is not in diffusers' format."""
    if not (path / INDEX).is_file():
        raise ModelError(
            f"no model of pictures: it has no {INDEX}", where=str(path), fix="name a folder in diffusers' format"
        )
    with loading_errors(str(path)):
        vae_entry = json.loads((path / INDEX).read_text(encoding="utf-8")).get("vae") or [None]
    # Without its VAE, a model of latents looks like one of pictures with four channels.
    for name in ("unet", "text_encoder", "tokenizer", "scheduler", *(["vae"] if vae_entry[0] else [])):
        if not (path / name).is_dir():
            raise ModelError(f"no model of pictures: it has no {name}/", where=str(path), fix="get the whole folder")


def _check_kind(folder: str, unet: Mapping[str, Any], predicts: str, vae: Mapping[str, Any] | None) -> None:
    """Raise ModelError where the UNet needs more than latents, timestep and prompt, or has unknown outputs.

    Args:
        unet: the UNet's configuration; `vae`: the VAE's, None where there is none.
    """
    # Without a setting both have 4 channels in diffusers.
    takes, gives = unet.get("in_channels", 4), unet.get("out_channels", 4)
    channels, owner = (3, "pictures have") if vae is None else (vae.get("latent_channels", 4), "its VAE has")
    size, classes = unet.get("sample_size"), unet.get("num_class_embeds") or unet.get("class_embed_type")
    wrong = {
        "its UNet is given more than a prompt's encoding": unet.get("addition_embed_type") is not None,
        f"its UNet is given a class too ({classes})": classes is not None,
        f"its UNet takes {takes} channels and gives {gives}, {owner} {channels}": (takes, gives) != (channels,) * 2,
        f"its UNet's sample_size is {size}, expected a whole number": not isinstance(size, int),
        f"its UNet predicts {predicts}, expected epsilon or v_prediction": predicts not in PREDICTION_TYPES,
    }
    problems = [problem for problem, is_so in wrong.items() if is_so]
    if problems:
        raise ModelError("; ".join(problems), where=folder, fix="use one shaped like Stable Diffusion 1 or 2")


class Denoiser:
    """A UNet that predicts noise, with the encoders of its prompts and pictures; dropout is off.

    Attributes:
        unet: predicts the noise, or the velocity where the schedule says so.
        text_encoder: encodes prompts.
        schedule: the noise of each timestep, in training and in sampling.
        latent_choice: how a picture's latents are taken from the VAE's distribution; a sample follows torch's seed.

    Args:
        folder: holds unet/, text_encoder/, tokenizer/, scheduler/ and, for a model of latents, vae/.

    Raises:
        ConfigError: diffusers is missing.
        ModelError: the folder or a part is missing or damaged, or the kind of model is unknown here.
    """

    def __init__(self, folder: str, device: torch.device) -> None:
        library, path = diffusers(), Path(folder)
        _check_folder(path)
        from transformers import AutoTokenizer, CLIPTextModel

        with loading_errors(folder):
            self.schedule: Any = library.DDIMScheduler.from_pretrained(path / "scheduler")
            self._tokenizer: Any = AutoTokenizer.from_pretrained(path / "tokenizer")
            unet = library.UNet2DConditionModel.load_config(path / "unet")
            vae = library.AutoencoderKL.load_config(path / "vae") if (path / "vae").is_dir() else None
        _check_kind(folder, unet, self.schedule.config.prediction_type, vae)
        if vae is not None:
            # As Stable Diffusion's pipeline has it: a folder made for another scheduler says neither, and DDIM's own
            # defaults would clip latents, which have no bounds.
            self.schedule.register_to_config(clip_sample=False, steps_offset=1)
        self.unet: Any = _part(library.UNet2DConditionModel, path / "unet")
        self.text_encoder: Any = _part(CLIPTextModel, path / "text_encoder")
        self._vae: Any = None if vae is None else _part(library.AutoencoderKL, path / "vae")
        self._folder, self.device = path, device
        self.latent_choice: LatentChoice = "mode"
        for part in (self.unet, self.text_encoder, self._vae):
            if part is not None:
                part.to(device).eval().requires_grad_(False)

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Encodings [N, L, E] of N prompts, padded to the longest length that the encoder takes.

        Raises:
            DataError: a prompt is longer than that.
        """
        room = self._tokenizer.model_max_length
        ids = self._tokenizer(list(prompts), padding="max_length", max_length=room).input_ids
        longest = max(range(len(ids)), key=lambda index: len(ids[index]))
        if len(ids[longest]) > room:
            raise DataError(
                f"a prompt of more than {room} tokens: {prompts[longest][:60]!r}", fix="shorten it: none is cut"
            )
        encoded: Tensor = self.text_encoder(torch.tensor(ids, device=self.device))[0]
        return encoded

    @torch.no_grad()
    def to_latents(self, pictures: Tensor) -> Tensor:
        """Latents [N, C, h, w] of pictures: the mode of the VAE's distribution or a sample of it, scaled."""
        pictures = pictures.to(self.device)
        if self._vae is None:
            return pictures
        take = getattr(self._vae.encode(pictures).latent_dist, self.latent_choice)
        latents: Tensor = take() * self._vae.config.scaling_factor
        return latents

    def predict(self, latents: Tensor, encoded: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """The UNet's prediction [N, C, h, w] for latents with noise; arguments as in `noise_errors`."""
        noisy = self.schedule.add_noise(latents, noise, timesteps)
        prediction: Tensor = self.unet(noisy, timesteps, encoder_hidden_states=encoded).sample
        return prediction

    def noise_errors(self, latents: Tensor, encoded: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """Errors [N] of the prediction: ``||target - prediction||^2``, the mean over elements (as in Diffusion-DPO).

        Args:
            timesteps: [N] int64.
            noise: [N, C, h, w] standard normal.
        """
        predicted = self.predict(latents, encoded, timesteps, noise)
        velocity = self.schedule.config.prediction_type == "v_prediction"
        target = self.schedule.get_velocity(latents, noise, timesteps) if velocity else noise
        return (predicted - target).square().flatten(1).mean(1)

    @torch.no_grad()
    def generate(self, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float) -> Tensor:
        """Pictures [N, 3, size, size] by DDIM (Song et al. 2021, arXiv 2010.02502), without noise after the first.

        Args:
            seeds: the seed of each picture's first noise, so that a picture does not depend on the others.
            steps: evaluations of the UNet.
            guidance: scale of classifier-free guidance (Ho and Salimans 2022); 1 turns it off.

        Raises:
            ConfigError: there are more steps than timesteps.
            DataError: as in `encode_prompts`.
        """
        self._check_steps(steps)
        channels, side = self.unet.config.in_channels, self.unet.config.sample_size
        noise = [torch.randn(channels, side, side, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        latents = torch.stack(noise).to(self.device) * self.schedule.init_noise_sigma
        encoded, empty_prompt = self.encode_prompts(prompts), self.encode_prompts([""]).expand(len(prompts), -1, -1)
        prompt_pair = torch.cat([empty_prompt, encoded])
        self.schedule.set_timesteps(steps)
        for timestep in self.schedule.timesteps:
            if guidance == 1:
                predicted = self.unet(latents, timestep, encoder_hidden_states=encoded).sample
            else:
                pair = self.unet(torch.cat([latents] * 2), timestep, encoder_hidden_states=prompt_pair).sample
                unconditional, conditional = pair.chunk(2)
                predicted = unconditional + guidance * (conditional - unconditional)
            latents = self.schedule.step(predicted, timestep, latents).prev_sample
        if self._vae is not None:
            latents = self._vae.decode(latents / self._vae.config.scaling_factor).sample
        return latents.clamp(-1, 1)

    def _check_steps(self, steps: int) -> None:
        schedule = self.schedule.config
        # Steps that lead from timestep 0 are all put later by the offset, the last beyond the schedule's end.
        max_steps = schedule.num_train_timesteps - (
            schedule.steps_offset if schedule.timestep_spacing == "leading" else 0
        )
        if steps > max_steps:
            raise ConfigError(
                f"pictures.steps is {steps}, the model's schedule has room for {max_steps}",
                where=str(self._folder / "scheduler"),
                fix=f"lower pictures.steps to at most {max_steps}",
            )

    def save(self, folder: Path) -> None:
        """Write the model folder, all of it or nothing: trained UNet and text encoder, the other parts unchanged."""
        with whole_folder(folder) as temporary:
            trained_parts = shutil.ignore_patterns("unet", "text_encoder")
            shutil.copytree(self._folder, temporary, ignore=trained_parts, dirs_exist_ok=True)
            self.unet.save_pretrained(temporary / "unet")
            self.text_encoder.save_pretrained(temporary / "text_encoder")
