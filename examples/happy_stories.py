"""DPO on a model's own samples, ranked by a reward anyone can check: a story is short and ends happily.

    python examples/happy_stories.py MODEL OUTPUT [--prompts 200] [--steps 60]

MODEL is a small story model in Hugging Face format (made for the 260k-parameter TinyStories Llama). Writes the
preference file and the run into OUTPUT, and prints the reward of fresh stories before and after.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np

from penchant import PreferenceGroup, Sampling, answer, bootstrap_mean, parse_config, train, write_groups

NAMES = ("Lily", "Tom", "Mia", "Ben", "Sue", "Max", "Anna", "Tim", "Sam", "Jane")
THINGS = ("ball", "dog", "cat", "bird", "car", "tree", "hat", "cake", "boat", "flower")
PLACES = ("park", "house", "garden", "forest", "school", "beach")
HAPPY = ("happy", "smiled", "friends", "love", "fun", "hugged", "laughed")


def prompts(n: int) -> list[str]:
    """Beginnings of stories, the same ones each time, in an order that mixes them."""
    all_prompts = [
        f"Once upon a time, {name} had a {noun}. One day, {name} went to the {location}."
        for name, noun, location in itertools.product(NAMES, THINGS, PLACES)
    ]
    order = np.random.default_rng(0).permutation(len(all_prompts))
    return [all_prompts[i] for i in order[:n]]


def reward(story: str) -> float:
    """1 for a happy word in the last two sentences, less 1/100 for each word beyond 40, 1 less if it never ends."""
    sentences = [sentence for sentence in story.split(".") if sentence.strip()]
    ending = ".".join(sentences[-2:]).lower()
    happy = any(word in ending for word in HAPPY)
    unfinished = not story.rstrip().endswith((".", "!", '"'))
    return float(happy) - max(0, len(story.split()) - 40) / 100 - float(unfinished)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    all_prompts = prompts(options.prompts + options.prompts // 4)
    training, held_out = all_prompts[: options.prompts], all_prompts[options.prompts :]

    stories = answer(options.model, training, Sampling(samples=4, max_new_tokens=120, batch_size=50)).responses
    groups = [
        PreferenceGroup(
            prompt,
            tuple(dict.fromkeys(responses)),
            scores=tuple(reward(s) for s in dict.fromkeys(responses)),
            id=str(i),
        )
        for i, (prompt, responses) in enumerate(zip(training, stories, strict=True))
    ]
    options.output.mkdir(parents=True, exist_ok=True)
    write_groups(groups, options.output / "stories.jsonl")
    values = {
        "model": options.model,
        "data": {"train": str(options.output / "stories.jsonl"), "held_out": 0.1},
        "output": str(options.output / "run"),
        "objective": {"name": "dpo", "beta": 0.1},
        "training": {"max_steps": options.steps, "batch_size": 16, "learning_rate": 3e-4},
    }
    trained = train(parse_config(values, "examples/happy_stories.py"))

    fresh = Sampling(max_new_tokens=120, seed=1, batch_size=50)
    for name, model in (("before", options.model), ("after", str(trained))):
        answers = [responses[0] for responses in answer(model, held_out, fresh).responses]
        estimate = bootstrap_mean(np.array([reward(story) for story in answers]), np.arange(len(answers)))
        words = np.mean([len(story.split()) for story in answers])
        interval = f"[{estimate.low:.3f}, {estimate.high:.3f}]"
        print(f"{name:>6}: reward {estimate.value:.3f} {interval}, {words:.0f} words, n = {estimate.n}")
        print(f"        {answers[0]!r}")


if __name__ == "__main__":
    main()
