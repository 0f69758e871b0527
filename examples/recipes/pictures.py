"""A learner for self_improve_pictures.yaml, and its prompts.

    python examples/recipes/pictures.py OUT

writes OUT/prompts.jsonl, and OUT/learner: a small text-to-picture model from nothing that paints coloured shapes.
"""

from __future__ import annotations

import json
import random
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

from penchant.config.run import TrainingConfig
from penchant.recipes.self_improve.shapes import TASKS, draw_prompts, prompts, render, unique_prompts
from penchant.recipes.self_improve.small_denoiser import Batch, build_denoiser, train_denoiser

SIZE, WIDTHS = 16, (32, 64)
STEPS, BATCH = 2200, 64
PROMPTS = 400
"""Of each task, at most; most tasks have fewer."""


def batch(size: int, step: int) -> Batch:
    """Fresh pictures for each step, the six tasks in equal shares."""
    draw, prompts_drawn = np.random.default_rng(step), draw_prompts(size, seed=step)
    return [prompt.text for prompt in prompts_drawn], torch.from_numpy(
        np.stack([render(prompt, SIZE, draw) for prompt in prompts_drawn])
    )


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    mixed = random.Random(0).sample(all_prompts := prompts(), len(all_prompts))
    single = unique_prompts(mixed)
    chosen_prompts = [
        prompt for task in TASKS for prompt in [prompt for prompt in single if prompt.task == task][:PROMPTS]
    ]
    rows = [{"prompt": prompt.text, "source": prompt.task} for prompt in chosen_prompts]
    (out / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    build_denoiser(out / "start", [prompt.text for prompt in all_prompts], SIZE, WIDTHS, seed=0)
    settings = TrainingConfig(max_steps=STEPS, learning_rate=1.5e-3, schedule="cosine", warmup=0.02)
    train_denoiser(out / "start", partial(batch, BATCH), settings, out / "learner")


if __name__ == "__main__":
    main()
