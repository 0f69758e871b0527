"""Learner backend of pictures: diffusion models trained by Diffusion-DPO.

An answer is the name of a file in OUTPUT/pictures/.
"""

from __future__ import annotations

import base64
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

from penchant.api import (
    CheckpointConfig,
    ConfigError,
    DataError,
    Denoiser,
    Draws,
    Figure,
    LoggingConfig,
    LoopConfig,
    Sample,
    Text,
    as_text,
    build_objective,
    check_objective,
    disk_errors,
    hash_bytes,
    local_device,
    read_groups,
    rename_options_in_errors,
    sync,
    tune_denoiser,
)
from penchant.recipes.self_improve.config import PicturesConfig, SelfImproveConfig, UpdateConfig
from penchant.recipes.self_improve.learner import AnswerFunction, CollapseMetrics
from penchant.recipes.tuning import stage_keys

Picture = NDArray[np.float32]
"""[3, size, size], RGB in [-1, 1], in steps of 1/127.5."""
PICTURES = "pictures"
INK_THRESHOLD = 0.1
"""Minimum distance of an ink pixel from the picture's median colour, for values in [-1, 1]."""
DISPLAY_WIDTH = 96
"""Width of a picture in the report, in pixels."""
CHECKPOINT_STEPS = 10
"""Steps of an update between two checkpoints: a step has many pictures and draws, and adapters are small."""
RERUN = "the same command"
"""How to resume a stopped run, for error messages."""


@dataclass(frozen=True)
class PictureLearner:
    """The backend of pictures. Answers are names derived from the pixels, so equal pictures are stored once."""

    config: SelfImproveConfig
    settings: PicturesConfig

    amount: ClassVar[str] = "share of ink"
    distinct: ClassVar[str] = "distance between pictures"
    distance: ClassVar[str] = "noise error between the learners"

    def check(self, prompts: Sequence[str]) -> None:
        check_objective(build_objective(self.config.update.objective))

    def load(self, model: str) -> AnswerFunction:
        denoiser, settings = Denoiser(model, local_device()), self.settings

        def answer(prompts: Sequence[Text], seeds: Sequence[int]) -> list[str]:
            names, texts = [], list(map(as_text, prompts))
            for start in range(0, len(texts), settings.batch):
                batch = slice(start, start + settings.batch)
                pictures = denoiser.generate(
                    texts[batch], seeds[batch], steps=settings.steps, guidance=settings.guidance
                )
                names += [self.keep(picture) for picture in pictures.cpu().numpy()]
            return names

        return answer

    def keep(self, picture: NDArray[np.float32]) -> str:
        """Store a picture, [3, height, width] in [-1, 1], and return its name.

        Raises:
            DiskFullError: the disk is full.
            ConfigError: the picture cannot be stored for another reason.
        """
        from PIL import Image

        stream = io.BytesIO()
        pixels = np.round((picture + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(pixels).save(stream, "png")
        name = f"{hash_bytes(pixels.tobytes(), 10)}.png"
        file = Path(self.config.output) / PICTURES / name
        if not file.exists():
            # The learner's process and the trainer's may write the same picture at once.
            aside = file.with_name(f".{os.getpid()}-{name}")
            try:
                with disk_errors(file, RERUN):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    aside.unlink(missing_ok=True)
                    with aside.open("xb") as file_stream:
                        file_stream.write(stream.getvalue())
                    # Judgements name the file, so after a power cut it must not be empty.
                    sync(aside)
                    aside.rename(file)
            except OSError as error:
                raise ConfigError(
                    f"the picture cannot be stored: {error.strerror}",
                    where=str(file),
                    fix=f"see that output is a folder you can write to, then resume with: {RERUN}",
                ) from error
        return name

    def verifier_input(self, answer: str) -> Picture:
        from PIL import Image, UnidentifiedImageError

        file = Path(self.config.output) / PICTURES / answer
        try:
            with Image.open(file) as image:
                return np.asarray(image, np.float32).transpose(2, 0, 1) / 127.5 - 1
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(
                "a picture cannot be read", where=str(file), fix="start again with another output folder"
            ) from error

    def tune(self, folder: Path, model: str, seed: int) -> str:
        new, update = folder / "merged", self.config.update
        if not new.exists():
            denoiser = Denoiser(model, local_device())
            config = LoopConfig(
                folder=folder / "run",
                resume_command=RERUN,
                objective=build_objective(update.objective),
                training=update.training.model_copy(update={"seed": seed}),
                checkpoints=CheckpointConfig(every=CHECKPOINT_STEPS),
                logging=LoggingConfig(every=1),
            )
            groups = read_groups(str(folder / "train.jsonl")).groups
            draws = Draws(self.settings.draws, self.settings.latents, self.settings.empty_prompts)
            with rename_options_in_errors(stage_keys("update", UpdateConfig)):
                tune_denoiser(
                    denoiser,
                    groups,
                    lambda name: torch.from_numpy(self.verifier_input(name)),
                    config,
                    update.lora,
                    draws,
                )
            denoiser.save(new)
        return str(new)

    def collapse_metrics(
        self, model: str, first_model: str, prompts: Sequence[Text], answers: Sequence[str]
    ) -> CollapseMetrics:
        """Share of ink pixels; root mean square distance between pictures; distance of noise predictions."""
        pictures = np.stack([self.verifier_input(answer) for answer in answers])
        median = np.median(pictures, axis=(2, 3), keepdims=True)
        # Over all pairs, from the spread about the mean picture: E|x - y|^2 = 2 n / (n - 1) E|x - mean|^2.
        mean_square = (
            float(np.square(pictures - pictures.mean(0)).mean()) * 2 * len(pictures) / max(1, len(pictures) - 1)
        )
        distance = (
            0.0
            if model == first_model
            else self._prediction_distance(model, first_model, list(map(as_text, prompts)), torch.from_numpy(pictures))
        )
        return CollapseMetrics(
            amount=float((np.abs(pictures - median).max(axis=1) > INK_THRESHOLD).mean()),
            distinct=mean_square**0.5,
            distance=distance,
        )

    def show(
        self, prompts: Sequence[str], first_answers: Sequence[str], last_answers: Sequence[str]
    ) -> tuple[list[Sample], list[Figure]]:
        rows = [*zip(prompts, first_answers, last_answers, strict=True)]
        step = DISPLAY_WIDTH + 8
        parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * step + 320}" height="{len(rows) * step}">']
        for row, (prompt, *names) in enumerate(rows):
            for column, name in enumerate(names):
                data = base64.b64encode((Path(self.config.output) / PICTURES / name).read_bytes()).decode()
                parts.append(
                    f'<image x="{column * step}" y="{row * step}" width="{DISPLAY_WIDTH}" height="{DISPLAY_WIDTH}" '
                    f'style="image-rendering: pixelated" href="data:image/png;base64,{data}"/>'
                )
            text = prompt.replace("&", "&amp;").replace("<", "&lt;")
            parts.append(f'<text x="{2 * step + 8}" y="{row * step + DISPLAY_WIDTH // 2}" font-size="13">{text}</text>')
        return [], [Figure("Before the first round, and after the last", "".join([*parts, "</svg>"]))]

    @torch.no_grad()
    def _prediction_distance(self, model: str, first_model: str, prompts: Sequence[str], pictures: Tensor) -> float:
        """Mean squared difference of two learners' noise predictions, with a random timestep and noise per picture."""
        model_denoiser, first_denoiser = (Denoiser(source, local_device()) for source in (model, first_model))
        draw = torch.Generator().manual_seed(0)
        total = 0.0
        for start in range(0, len(pictures), self.settings.batch):
            batch = slice(start, start + self.settings.batch)
            latents = model_denoiser.to_latents(pictures[batch])
            timesteps = torch.randint(
                model_denoiser.schedule.config.num_train_timesteps, (len(latents),), generator=draw
            )
            noise = torch.randn(latents.shape, generator=draw)
            inputs = (
                latents,
                model_denoiser.encode_prompts(prompts[batch]),
                timesteps.to(model_denoiser.device),
                noise.to(model_denoiser.device),
            )
            errors = (model_denoiser.predict(*inputs) - first_denoiser.predict(*inputs)).square().flatten(1).mean(1)
            total += float(errors.sum())
        return total / len(pictures)
