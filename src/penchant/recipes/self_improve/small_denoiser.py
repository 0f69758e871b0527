"""A small text-to-picture model from nothing, in diffusers' format, for where none can be downloaded."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from penchant.config import TrainingConfig
from penchant.engine.denoising import INDEX, Denoiser, diffusers
from penchant.engine.distribution import local_device
from penchant.engine.folders import disk_errors, sync
from penchant.engine.progress import Progress
from penchant.errors import ConfigError, TrainingError
from penchant.evaluation.files import write_atomically
from penchant.recipes.fingerprints import file_fingerprint, weights_fingerprint
from penchant.training.optimizer import build_optimizer, learning_rate, scale_and_clip

LONGEST, WIDTH = 12, 64
"""Tokens of a prompt, its beginning and end included; the width of its encoding."""
WITHOUT = 0.1
"""Share of pictures shown without their prompt, so that painting can be guided."""
EVERY = 250
"""Steps between two checkpoints."""
AGAIN = "the same command"
"""What goes on with training that stopped."""

Batch = tuple[Sequence[str], Tensor]
"""Prompts, and pictures [N, 3, size, size] in [-1, 1]."""


def build_denoiser(folder: Path, prompts: Iterable[str], size: int, widths: tuple[int, ...], seed: int) -> None:
    """Random weights, with a token for each word of the prompts; works on pixels, without a VAE.

    Args:
        size: height and width of its pictures, pixels.
        widths: channels of the UNet at full size, at half, and so on; multiples of 8.
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
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LONGEST,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    schedule = library.DDIMScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing")
    parts = {"unet": unet, "text_encoder": encoder, "tokenizer": tokenizer, "scheduler": schedule}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    # Not by diffusers' own pipeline: it would forbid the schedule to keep pixels within bounds, as befits latents.
    index = {name: [type(part).__module__.partition(".")[0], type(part).__name__] for name, part in parts.items()}
    written = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": library.__version__, **index}
    write_atomically(folder / INDEX, json.dumps(written, indent=2) + "\n")


def train_denoiser(start: Path, batch: Callable[[int], Batch], settings: TrainingConfig, folder: Path) -> None:
    """Train UNet and text encoder on pictures with prompts; what was interrupted goes on to the same bits.

    Args:
        batch: of a 0-based step; the same each time it is asked.
        settings: of `max_steps`; `batch_size` and what is of texts is not used.
        folder: where the model goes; FOLDER.json beside it says from what and by which settings.

    Raises:
        ConfigError: what is there was made from another start or by other settings.
        TrainingError: the loss is not a finite number, or the disk is full.
    """
    schedule = file_fingerprint(str(start / "scheduler" / "scheduler_config.json"))
    made = {"start": weights_fingerprint(str(start)), "noise_schedule": schedule, **settings.model_dump(mode="json")}
    record = folder.with_name(f"{folder.name}.json")
    if folder.exists():
        _refuse_other(made, _recorded(record), folder)
        return
    denoiser = Denoiser(str(start), local_device())
    trained = torch.nn.ModuleList([denoiser.unet, denoiser.text_encoder]).requires_grad_(True)
    optimizer = build_optimizer(trained, settings)
    saved, total = folder.with_name(f"{folder.name}.checkpoint"), settings.max_steps or 1
    first = 0
    if saved.exists():
        state: dict[str, Any] = torch.load(saved, weights_only=True)
        _refuse_other(made, state.get("made", {}), saved)
        trained.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    with Progress("training", total, "steps", start=first) as progress:
        for step in range(first, total):
            loss = _step(denoiser, *batch(step), seed=settings.seed * 1_000_003 + step)
            loss.backward()
            norm = scale_and_clip(trained, 1.0, settings.max_grad_norm)
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
            if (step + 1) % EVERY == 0:
                state = {"weights": trained.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
                _save({**state, "made": made}, saved)
    with disk_errors(folder, AGAIN):
        # First: a model whose making is not told counts as another's.
        write_atomically(record, json.dumps(made, indent=2) + "\n")
        denoiser.save(folder)
    saved.unlink(missing_ok=True)


def _save(state: dict[str, Any], file: Path) -> None:
    """Raises DiskFullError; what was saved before stays."""
    aside = file.with_name(f".writing-{file.name}")
    with disk_errors(file, AGAIN):
        # Given a name in place of a stream, torch tells a full disk without its number.
        aside.unlink(missing_ok=True)  # It may be a link to another file.
        with aside.open("xb") as stream:
            torch.save(state, stream)
        sync(aside)
        aside.rename(file)


def _recorded(file: Path) -> dict[str, Any]:
    """How a model was made; nothing where that is not told."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _refuse_other(made: dict[str, Any], found: dict[str, Any], where: Path) -> None:
    """Raise ConfigError where what was found was made otherwise."""
    other = [name for name, value in made.items() if name not in found or found[name] != value]
    if other:
        raise ConfigError(
            f"the learner there was made with other settings: {', '.join(other) if found else 'it does not say which'}",
            where=str(where),
            fix="name another folder or remove it",
        )


def _step(denoiser: Denoiser, prompts: Sequence[str], pictures: Tensor, seed: int) -> Tensor:
    """Mean noise error of a batch; some pictures without their prompt."""
    draw = torch.Generator().manual_seed(seed)
    without = torch.rand(len(prompts), generator=draw) < WITHOUT
    encoded = denoiser.encode_prompts(["" if alone else prompt for prompt, alone in zip(prompts, without, strict=True)])
    latents = denoiser.to_latents(pictures)
    steps = denoiser.schedule.config.num_train_timesteps
    timesteps = torch.randint(steps, (len(prompts),), generator=draw).to(denoiser.device)
    noise = torch.randn(latents.shape, generator=draw).to(denoiser.device)
    return denoiser.noise_errors(latents, encoded, timesteps, noise).mean()


def word_tokenizer(prompts: Iterable[str]) -> Any:
    """A token for each word, after CLIP's fashion."""
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
        model_max_length=LONGEST,
    )
