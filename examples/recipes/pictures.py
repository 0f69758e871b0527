"""A learner for self_improve_pictures.yaml, and its prompts.

    python examples/recipes/pictures.py OUT

writes OUT/prompts.jsonl, and OUT/learner: a small text-to-picture model, trained from scratch, of coloured shapes.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from public_files import run_script
from shapes import TASKS, draw_prompts, prompts, render, unique_prompts
from torch import Tensor

from penchant.api import (
    INDEX,
    ConfigError,
    Denoiser,
    Progress,
    TrainingConfig,
    TrainingError,
    build_optimizer,
    diffusers,
    disk_errors,
    file_fingerprint,
    gradient_norm,
    learning_rate,
    local_device,
    scale_and_clip,
    sync,
    weights_fingerprint,
    write_atomically,
)

SIZE, WIDTHS = 16, (32, 64)
STEPS, BATCH = 2200, 64
PROMPTS = 400
"""Maximum number of prompts of a task; most tasks have fewer."""
MAX_PROMPT_TOKENS, ENCODING_WIDTH = 12, 64
"""Maximum tokens of a prompt with its start and end tokens; width of the text encoding."""
EMPTY_PROMPT_SHARE = 0.1
"""Share of training pictures with an empty prompt, for classifier-free guidance."""
CHECKPOINT_STEPS = 250
"""Steps between two checkpoints."""
RERUN = "the same command"
"""How to resume stopped training, for error messages."""

Batch = tuple[Sequence[str], Tensor]
"""Prompts, and pictures [N, 3, size, size] in [-1, 1]."""


def build_denoiser(folder: Path, prompts: Iterable[str], size: int, widths: tuple[int, ...], seed: int) -> None:
    """Write a model with random weights and a token for each word of the prompts; it works on pixels, without a VAE.

    Args:
        size: height and width of the pictures in pixels.
        widths: channels of the UNet at full resolution, at half, and so on; multiples of 8.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    library, tokenizer = diffusers(), word_tokenizer(prompts)
    torch.manual_seed(seed)
    blocks = len(widths)
    unet = library.UNet2DConditionModel(
        sample_size=size,
        in_channels=3,
        out_channels=3,
        block_out_channels=widths,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * (blocks - 1)),
        up_block_types=(*["CrossAttnUpBlock2D"] * (blocks - 1), "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=ENCODING_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=ENCODING_WIDTH,
            intermediate_size=2 * ENCODING_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_PROMPT_TOKENS,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    schedule = library.DDIMScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing")
    parts = {"unet": unet, "text_encoder": encoder, "tokenizer": tokenizer, "scheduler": schedule}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    # diffusers' pipeline is not used: for latents it turns off the schedule's clipping, which pixels need.
    index = {name: [type(part).__module__.partition(".")[0], type(part).__name__] for name, part in parts.items()}
    index_record = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": library.__version__, **index}
    write_atomically(folder / INDEX, json.dumps(index_record, indent=2) + "\n")


def train_denoiser(start: Path, batch: Callable[[int], Batch], settings: TrainingConfig, folder: Path) -> None:
    """Train UNet and text encoder on pictures with prompts; resumed training gives the same weights.

    Args:
        batch: function from a 0-based step to its batch; it must return the same batch every time.
        settings: training settings; `batch_size` and settings for text have no effect.
        folder: folder of the trained model; FOLDER.json beside it records the start and the settings.

    Raises:
        ConfigError: the existing model or checkpoint has another start or other settings.
        TrainingError: the loss is not a finite number, or the disk is full.
    """
    schedule = file_fingerprint(str(start / "scheduler" / "scheduler_config.json"))
    recipe = {"start": weights_fingerprint(str(start)), "noise_schedule": schedule, **settings.model_dump(mode="json")}
    record = folder.with_name(f"{folder.name}.json")
    if folder.exists():
        _check_recipe(recipe, _read_recipe(record), folder)
        return
    denoiser = Denoiser(str(start), local_device())
    trained = torch.nn.ModuleList([denoiser.unet, denoiser.text_encoder]).requires_grad_(True)
    optimizer = build_optimizer(trained, settings)
    checkpoint, total = folder.with_name(f"{folder.name}.checkpoint"), settings.max_steps or 1
    first_step = 0
    if checkpoint.exists():
        state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        _check_recipe(recipe, state.get("made", {}), checkpoint)
        trained.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        first_step = state["step"]
    with Progress("training", total, "steps", start=first_step) as progress:
        for step in range(first_step, total):
            loss = _step(denoiser, *batch(step), seed=settings.seed * 1_000_003 + step)
            loss.backward()
            norm = scale_and_clip(trained, 1.0, float(gradient_norm(trained)), settings.max_grad_norm)
            if not math.isfinite(loss.item() + norm):
                raise TrainingError(
                    f"the loss or its gradient is not a finite number at step {step + 1}",
                    where=str(folder),
                    fix="lower the learning rate",
                )
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, total, settings)
            optimizer.step()
            optimizer.zero_grad()
            progress.advance(1, f"loss {loss.item():.4f}")
            if (step + 1) % CHECKPOINT_STEPS == 0:
                state = {"weights": trained.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
                _save({**state, "made": recipe}, checkpoint)
    with disk_errors(folder, RERUN):
        # The record is written first: a model without a record counts as one with other settings.
        write_atomically(record, json.dumps(recipe, indent=2) + "\n")
        denoiser.save(folder)
    checkpoint.unlink(missing_ok=True)


def _save(state: dict[str, Any], file: Path) -> None:
    """Save a checkpoint atomically.

    Raises:
        DiskFullError: the disk is full; the previous checkpoint stays.
    """
    aside = file.with_name(f".writing-{file.name}")
    with disk_errors(file, RERUN):
        # With a file name in place of a stream, torch's error for a full disk has no errno.
        aside.unlink(missing_ok=True)  # It may be a link to another file.
        with aside.open("xb") as stream:
            torch.save(state, stream)
        sync(aside)
        aside.rename(file)


def _read_recipe(file: Path) -> dict[str, Any]:
    """The recorded start and settings of a model; empty without a record."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _check_recipe(recipe: dict[str, Any], recorded: dict[str, Any], where: Path) -> None:
    """Raise ConfigError if the recorded start or settings differ."""
    differing = [name for name, value in recipe.items() if name not in recorded or recorded[name] != value]
    if differing:
        raise ConfigError(
            f"the learner there was made with other settings: "
            f"{', '.join(differing) if recorded else 'it has no record of them'}",
            where=str(where),
            fix="name another folder or remove it",
        )


def _step(denoiser: Denoiser, prompts: Sequence[str], pictures: Tensor, seed: int) -> Tensor:
    """Mean noise error of a batch, with an empty prompt for some pictures."""
    draw = torch.Generator().manual_seed(seed)
    empty = torch.rand(len(prompts), generator=draw) < EMPTY_PROMPT_SHARE
    encoded = denoiser.encode_prompts(
        ["" if is_empty else prompt for prompt, is_empty in zip(prompts, empty, strict=True)]
    )
    latents = denoiser.to_latents(pictures)
    steps = denoiser.schedule.config.num_train_timesteps
    timesteps = torch.randint(steps, (len(prompts),), generator=draw).to(denoiser.device)
    noise = torch.randn(latents.shape, generator=draw).to(denoiser.device)
    return denoiser.noise_errors(latents, encoded, timesteps, noise).mean()


def word_tokenizer(prompts: Iterable[str]) -> Any:
    """A tokenizer with one token per word, and CLIP's special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = sorted({word for prompt in prompts for word in re.findall(r"\S+", prompt)})
    raw = Tokenizer(models.WordLevel({word: n for n, word in enumerate([*special, *words])}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=MAX_PROMPT_TOKENS,
    )


def batch(size: int, step: int) -> Batch:
    """Fresh pictures for each step, the six tasks in equal shares."""
    rng, drawn_prompts = np.random.default_rng(step), draw_prompts(size, seed=step)
    pictures = np.stack([render(prompt, SIZE, rng) for prompt in drawn_prompts])
    return [prompt.text for prompt in drawn_prompts], torch.from_numpy(pictures)


def make_files(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    all_prompts = prompts()
    unique = unique_prompts(random.Random(0).sample(all_prompts, len(all_prompts)))
    by_task = [[prompt for prompt in unique if prompt.task == task] for task in TASKS]
    rows = [{"prompt": prompt.text, "source": prompt.task} for task in by_task for prompt in task[:PROMPTS]]
    (out / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    build_denoiser(out / "start", [prompt.text for prompt in all_prompts], SIZE, WIDTHS, seed=0)
    settings = TrainingConfig(max_steps=STEPS, learning_rate=1.5e-3, schedule="cosine", warmup=0.02)
    train_denoiser(out / "start", partial(batch, BATCH), settings, out / "learner")


if __name__ == "__main__":
    run_script(make_files, __doc__)
