"""Training of a small model of pictures from scratch: learning, resuming, and checks of an existing model."""

from __future__ import annotations

import json
import math
import resource
import shutil

import numpy as np
import pictures as module
import pytest
import shapes
import torch
from pictures import train_denoiser
from safetensors.torch import load_file, save_file

from penchant.config.run_sections import TrainingConfig
from penchant.diffusion.denoising import Denoiser
from penchant.errors import ConfigError, DiskFullError, TrainingError

CPU = torch.device("cpu")


class Interrupted(Exception):
    pass


def noise(step, last=math.inf):
    """Two random pictures, until the last step."""
    if step == last:
        raise Interrupted
    draw = torch.Generator().manual_seed(step)
    return ["a circle", "a red square"], torch.rand(2, 3, 16, 16, generator=draw) * 2 - 1


def test_resumed_training_gives_the_same_weights(tmp_path, small_denoiser, monkeypatch):
    monkeypatch.setattr(module, "CHECKPOINT_STEPS", 2)
    settings = TrainingConfig(max_steps=5, learning_rate=1e-3)
    train_denoiser(small_denoiser, noise, settings, tmp_path / "whole")
    checkpoint, synced = tmp_path / "cut.checkpoint", []
    monkeypatch.setattr(module, "sync", lambda file: synced.append((file.stat().st_size, checkpoint.exists())))
    with pytest.raises(Interrupted):
        train_denoiser(small_denoiser, lambda step: noise(step, 3), settings, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    # The checkpoint was synced to disk before it got its name.
    assert synced == [(checkpoint.stat().st_size, False)]
    steps = []
    train_denoiser(small_denoiser, lambda step: steps.append(step) or noise(step), settings, tmp_path / "cut")
    assert steps == [2, 3, 4]
    for name in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
        assert (tmp_path / "whole" / name).read_bytes() != (small_denoiser / name).read_bytes()


def test_existing_model_with_other_settings_is_an_error(tmp_path, small_denoiser, monkeypatch):
    monkeypatch.setattr(module, "CHECKPOINT_STEPS", 1)
    settings, folder = TrainingConfig(max_steps=2, learning_rate=1e-3), tmp_path / "new"
    other_settings = settings.model_copy(update={"learning_rate": 1e-2, "seed": 1})
    start = tmp_path / "start"
    shutil.copytree(small_denoiser, start)
    with pytest.raises(Interrupted):
        train_denoiser(start, lambda step: noise(step, 1), settings, folder)
    with pytest.raises(ConfigError, match="was made with other settings: learning_rate, seed") as error:
        train_denoiser(start, noise, other_settings, folder)
    assert error.value.where == str(tmp_path / "new.checkpoint")
    assert error.value.fix == "name another folder or remove it"
    train_denoiser(start, noise, settings, folder)
    assert json.loads((tmp_path / "new.json").read_text())["learning_rate"] == 1e-3
    train_denoiser(start, lambda step: noise(step, step), settings, folder)
    with pytest.raises(ConfigError, match="was made with other settings: learning_rate, seed") as error:
        train_denoiser(start, noise, other_settings, folder)
    assert error.value.where == str(folder)
    (start / "scheduler" / "scheduler_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="was made with other settings: noise_schedule"):
        train_denoiser(start, noise, settings, folder)
    (tmp_path / "new.json").unlink()
    with pytest.raises(ConfigError, match="was made with other settings: it has no record of them"):
        train_denoiser(small_denoiser, noise, settings, folder)


def test_existing_model_from_another_start_is_an_error(tmp_path, small_denoiser):
    start, settings = tmp_path / "start", TrainingConfig(max_steps=1, learning_rate=1e-3)
    shutil.copytree(small_denoiser, start)
    train_denoiser(start, noise, settings, tmp_path / "new")
    file = start / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: 2 * weight for name, weight in load_file(file).items()}, file)
    with pytest.raises(ConfigError, match="was made with other settings: start\n"):
        train_denoiser(start, noise, settings, tmp_path / "new")


def test_loss_that_is_not_finite_is_an_error(tmp_path, small_denoiser):
    def nan_batch(step):
        prompts, pictures = noise(step)
        return prompts, pictures * (math.nan if step == 1 else 1)

    settings = TrainingConfig(max_steps=3, learning_rate=1e-3)
    with pytest.raises(TrainingError, match="the loss or its gradient is not a finite number at step 2"):
        train_denoiser(small_denoiser, nan_batch, settings, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_full_disk_during_training(tmp_path, small_denoiser, monkeypatch):
    """The second checkpoint does not fit; training resumes from the first."""
    monkeypatch.setattr(module, "CHECKPOINT_STEPS", 1)
    settings, limits = TrainingConfig(max_steps=3, learning_rate=1e-3), resource.getrlimit(resource.RLIMIT_FSIZE)

    def batch(step):
        if step == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        return noise(step)

    try:
        with pytest.raises(DiskFullError, match="the disk is full; what was saved before is untouched"):
            train_denoiser(small_denoiser, batch, settings, tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    steps = []
    train_denoiser(small_denoiser, lambda step: steps.append(step) or noise(step), settings, tmp_path / "new")
    assert steps == [1, 2]


def test_full_disk_at_the_end_of_training(tmp_path, small_denoiser, monkeypatch):
    def full(self, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Denoiser, "save", full)
    with pytest.raises(DiskFullError, match="the disk is full") as error:
        train_denoiser(small_denoiser, noise, TrainingConfig(max_steps=1), tmp_path / "new")
    assert error.value.where == str(tmp_path / "new")


@pytest.mark.slow
def test_training_lowers_the_noise_error(tmp_path, small_denoiser):
    """The noise error on training pictures falls well below that of random weights, which is about 1."""
    picture = torch.from_numpy(shapes.render(shapes.prompts()[0], 16, np.random.default_rng(0)))
    settings = TrainingConfig(max_steps=40, learning_rate=3e-3, schedule="constant")
    train_denoiser(
        small_denoiser, lambda step: (["a circle"] * 8, picture.expand(8, -1, -1, -1)), settings, tmp_path / "new"
    )
    errors = []
    for folder in (small_denoiser, tmp_path / "new"):
        denoiser = Denoiser(str(folder), CPU)
        torch.manual_seed(0)
        noise, times = torch.randn(32, 3, 16, 16), torch.randint(1000, (32,))
        with torch.no_grad():
            encoded = denoiser.encode_prompts(["a circle"] * 32)
            errors.append(float(denoiser.noise_errors(picture.expand(32, -1, -1, -1), encoded, times, noise).mean()))
    assert errors[0] > 0.8
    assert errors[1] < 0.5 * errors[0]
    assert math.isfinite(errors[1])
