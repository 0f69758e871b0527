"""A learner for self_improve.yaml, its prompts, and the conditions its answers are judged by.

    python examples/recipes/reviews.py OUT

writes OUT/prompts.jsonl, and OUT/learner/run: a small Llama trained from scratch that writes reviews of places, meals,
shows and people, in any mood.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from penchant.config.run import parse_config
from penchant.recipes import demo_world as world
from penchant.training.run import train

TEXTS, PRETRAINING, DEMONSTRATIONS, TUNING = 4000, 400, 2000, 200
PROMPTS = 600


def conditions(prompt: str, answer: str) -> dict[str, bool]:
    """What a review is to be; a condition's name says what is missing where it is not met."""
    words = re.findall(r"[a-z]+", answer.lower())
    sentences = [part for part in answer.split(".") if part.strip()]
    prompt_words = {word for word in re.findall(r"[a-z]+", prompt.lower()) if len(word) > 3}
    return {
        "it is favourable": world.true_reward(answer) >= 0.5,
        "it is two or three whole sentences": 2 <= len(sentences) <= 3 and answer.rstrip().endswith("."),
        "it says what it is about": bool(prompt_words & set(words)),
    }


def write(file: Path, rows: list[dict[str, str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def tune(folder: Path, model: Path, data: Path, steps: int, rate: float) -> Path:
    run = {
        "model": str(model),
        "data": str(data),
        "output": str(folder),
        "objective": {"name": "sft"},
        "training": {"max_steps": steps, "batch_size": 32, "learning_rate": rate, "schedule": "cosine"},
        "evaluation": {"samples": 0},
    }
    return train(parse_config(run, str(folder)), resume=(folder / "run.json").exists())


def make_files(out: Path) -> None:
    draw = random.Random(0)
    training_prompts, _ = world.split_prompts(0, 0)
    demonstration_prompts, prompts = training_prompts[PROMPTS:], training_prompts[:PROMPTS]
    write(out / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    write(out / "texts.jsonl", [{"text": text} for text in world.pretraining_texts(TEXTS, 0)])
    drawn_prompts = [draw.choice(demonstration_prompts) for _ in range(DEMONSTRATIONS)]
    rows = [{"prompt": prompt, "completion": world.demonstration(prompt, draw)} for prompt in drawn_prompts]
    write(out / "demonstrations.jsonl", rows)
    if not (out / "start" / "config.json").exists():
        tokenizer = world.build_tokenizer()
        tokenizer.save_pretrained(out / "start")
        world.build_model(len(tokenizer), 0).save_pretrained(out / "start")
    pretrained = tune(out / "pretrained", out / "start", out / "texts.jsonl", PRETRAINING, 3e-3)
    tune(out / "learner" / "run", pretrained, out / "demonstrations.jsonl", TUNING, 1e-3)


if __name__ == "__main__":
    # Penchant imports `conditions` from this file alone, without the folder it is in.
    from public_files import run_script

    run_script(make_files, __doc__)
