"""A learner for self_improve_pictures.yaml, and its prompts.

    python examples/recipes/pictures.py OUT

writes OUT/prompts.jsonl, and OUT/learner: a small text-to-picture model from nothing that paints coloured shapes.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

from penchant.config import TrainingConfig
from penchant.recipes.self_improve.shapes import draw_prompts, prompts, render
from penchant.recipes.self_improve.small_denoiser import Batch, build_denoiser, train_denoiser

SIZE, WIDTHS = 16, (32, 64)
STEPS, BATCH = 4000, 64
PROMPTS = 900


def batch(size: int, step: int) -> Batch:
    """Fresh pictures for each step, the six tasks in equal shares."""
    draw, told = np.random.default_rng(step), draw_prompts(size, seed=step)
    return [prompt.text for prompt in told], torch.from_numpy(np.stack([render(prompt, SIZE, draw) for prompt in told]))


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    asked = {prompt.text: prompt.task for prompt in draw_prompts(4 * PROMPTS, seed=-1)}
    rows = [{"prompt": text, "source": task} for text, task in list(asked.items())[:PROMPTS]]
    (out / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    build_denoiser(out / "start", [prompt.text for prompt in prompts()], SIZE, WIDTHS, seed=0)
    settings = TrainingConfig(max_steps=STEPS, learning_rate=1.5e-3, schedule="cosine", warmup=0.02)
    train_denoiser(out / "start", partial(batch, BATCH), settings, out / "learner")


if __name__ == "__main__":
    main()
