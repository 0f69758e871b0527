"""Learners that paint: diffusion models, tuned by Diffusion-DPO. An answer names a file of OUTPUT/pictures/."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penchant.config_objective import build_objective
from penchant.data.reading import read_groups
from penchant.engine.denoising import Denoiser
from penchant.engine.distribution import local_device
from penchant.engine.folders import disk_errors, sync
from penchant.errors import ConfigError, DataError
from penchant.evaluation.report import Figure, Sample
from penchant.recipes.self_improve.config import PicturesConfig, SelfImproveConfig
from penchant.recipes.self_improve.learner import Answer
from penchant.recipes.self_improve.medium import Signs
from penchant.training.denoiser import check_objective, tune_denoiser

Picture = NDArray[np.float32]
"""[3, size, size], RGB in [-1, 1], in steps of 1/127.5."""
FOLDER = "pictures"
INK = 0.1
"""How far from a picture's median colour a pixel is ink."""
SHOWN = 96
"""Width of a picture on the page, pixels."""
AGAIN = "the same command"
"""What goes on with a run that stopped."""


@dataclass(frozen=True)
class PictureMedium:
    """Answers name pictures by their content, so the same picture is kept once; the protocol is `Medium`'s."""

    config: SelfImproveConfig
    settings: PicturesConfig

    amount: ClassVar[str] = "share of ink"
    distinct: ClassVar[str] = "distance between pictures"
    distance: ClassVar[str] = "noise error between the learners"

    def check(self, prompts: Sequence[str]) -> None:
        check_objective(build_objective(self.config.update.objective))

    def load(self, model: str) -> Answer:
        denoiser, settings = Denoiser(model, local_device()), self.settings

        def answer(prompts: Sequence[str], numbers: Sequence[int]) -> list[str]:
            named = []
            for start in range(0, len(prompts), settings.batch):
                part = slice(start, start + settings.batch)
                painted = denoiser.generate(
                    prompts[part], numbers[part], steps=settings.steps, guidance=settings.guidance
                )
                named += [self.keep(picture) for picture in painted.cpu().numpy()]
            return named

        return answer

    def keep(self, picture: NDArray[np.float32]) -> str:
        """Store a picture, [3, height, width] in [-1, 1]; its name.

        Raises:
            DiskFullError: there is no room for it.
            ConfigError: it cannot be stored for another reason.
        """
        from PIL import Image

        stream = io.BytesIO()
        pixels = np.round((picture + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(pixels).save(stream, "png")
        name = f"{hashlib.blake2b(pixels.tobytes(), digest_size=10).hexdigest()}.png"
        file = Path(self.config.output) / FOLDER / name
        if not file.exists():
            # The learner's process and the trainer's may paint the same.
            aside = file.with_name(f".{os.getpid()}-{name}")
            try:
                with disk_errors(file, AGAIN):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    aside.unlink(missing_ok=True)
                    with aside.open("xb") as file_stream:
                        file_stream.write(stream.getvalue())
                    # Judgements name it: after a power cut it must not be an empty file.
                    sync(aside)
                    aside.rename(file)
            except OSError as error:
                raise ConfigError(
                    f"the picture cannot be stored: {error.strerror}",
                    where=str(file),
                    fix=f"see that output is a folder you can write to, then go on with: {AGAIN}",
                ) from error
        return name

    def read(self, answer: str) -> Picture:
        from PIL import Image, UnidentifiedImageError

        file = Path(self.config.output) / FOLDER / answer
        try:
            with Image.open(file) as image:
                return np.asarray(image, np.float32).transpose(2, 0, 1) / 127.5 - 1
        except (OSError, UnidentifiedImageError) as error:
            raise DataError("a picture cannot be read", where=str(file), fix="start anew in another folder") from error

    def tune(self, folder: Path, model: str, seed: int) -> str:
        new, update = folder / "merged", self.config.update
        if not new.exists():
            denoiser = Denoiser(model, local_device())
            tune_denoiser(
                denoiser,
                read_groups(str(folder / "train.jsonl")).groups,
                lambda name: torch.from_numpy(self.read(name)),
                build_objective(update.objective),
                update.training.model_copy(update={"seed": seed}),
                update.lora,
                self.settings.draws,
                folder / "run",
                self.settings.latents,
                self.settings.empty_prompts,
            )
            denoiser.save(new)
        return str(new)

    def signs(self, model: str, first: str, prompts: Sequence[str], answers: Sequence[str]) -> Signs:
        """Pixels unlike the picture's median; root of the mean square between two pictures; of predicted noises."""
        pictures = np.stack([self.read(answer) for answer in answers])
        median = np.median(pictures, axis=(2, 3), keepdims=True)
        # Over all pairs, from the spread about the mean picture: E|x - y|^2 = 2 n / (n - 1) E|x - mean|^2.
        spread = float(np.square(pictures - pictures.mean(0)).mean()) * 2 * len(pictures) / max(1, len(pictures) - 1)
        distance = 0.0 if model == first else self._between(model, first, prompts, torch.from_numpy(pictures))
        return Signs(
            amount=float((np.abs(pictures - median).max(axis=1) > INK).mean()),
            distinct=spread**0.5,
            distance=distance,
        )

    def show(
        self, prompts: Sequence[str], before: Sequence[str], after: Sequence[str]
    ) -> tuple[list[Sample], list[Figure]]:
        rows = [*zip(prompts, before, after, strict=True)]
        step = SHOWN + 8
        parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * step + 320}" height="{len(rows) * step}">']
        for row, (prompt, *named) in enumerate(rows):
            for column, name in enumerate(named):
                data = base64.b64encode((Path(self.config.output) / FOLDER / name).read_bytes()).decode()
                parts.append(
                    f'<image x="{column * step}" y="{row * step}" width="{SHOWN}" height="{SHOWN}" '
                    f'style="image-rendering: pixelated" href="data:image/png;base64,{data}"/>'
                )
            said = prompt.replace("&", "&amp;").replace("<", "&lt;")
            parts.append(f'<text x="{2 * step + 8}" y="{row * step + SHOWN // 2}" font-size="13">{said}</text>')
        return [], [Figure("Before the first round, and after the last", "".join([*parts, "</svg>"]))]

    @torch.no_grad()
    def _between(self, model: str, first: str, prompts: Sequence[str], pictures: Tensor) -> float:
        """Mean square of the difference of two learners' predictions, at each picture's own timestep and noise."""
        ours, theirs = (Denoiser(each, local_device()) for each in (model, first))
        draw = torch.Generator().manual_seed(0)
        total = 0.0
        for start in range(0, len(pictures), self.settings.batch):
            part = slice(start, start + self.settings.batch)
            latents = ours.to_latents(pictures[part])
            timesteps = torch.randint(ours.schedule.config.num_train_timesteps, (len(latents),), generator=draw)
            noise = torch.randn(latents.shape, generator=draw)
            shared = latents, ours.encode_prompts(prompts[part]), timesteps.to(ours.device), noise.to(ours.device)
            apart = (ours.predict(*shared) - theirs.predict(*shared)).square().flatten(1).mean(1)
            total += float(apart.sum())
        return total / len(pictures)
