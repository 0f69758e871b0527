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
    every = [
        f"Once upon a time, {name} had a {thing}. One day, {name} went to the {place}."
        for name, thing, place in itertools.product(NAMES, THINGS, PLACES)
    ]
    order = np.random.default_rng(0).permutation(len(every))
    return [every[i] for i in order[:n]]


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
    given = parser.parse_args()
    asked = prompts(given.prompts + given.prompts // 4)
    training, held_out = asked[: given.prompts], asked[given.prompts :]

    stories = answer(given.model, training, Sampling(samples=4, max_new_tokens=120, batch_size=50)).responses
    groups = [
        PreferenceGroup(prompt, tuple(dict.fromkeys(of)), scores=tuple(reward(s) for s in dict.fromkeys(of)), id=str(i))
        for i, (prompt, of) in enumerate(zip(training, stories, strict=True))
    ]
    given.output.mkdir(parents=True, exist_ok=True)
    write_groups(groups, given.output / "stories.jsonl")
    values = {
        "model": given.model,
        "data": {"train": str(given.output / "stories.jsonl"), "held_out": 0.1},
        "output": str(given.output / "run"),
        "objective": {"name": "dpo", "beta": 0.1},
        "training": {"max_steps": given.steps, "batch_size": 16, "learning_rate": 3e-4},
    }
    trained = train(parse_config(values, "examples/happy_stories.py"))

    fresh = Sampling(max_new_tokens=120, seed=1, batch_size=50)
    for name, model in (("before", given.model), ("after", str(trained))):
        told = [responses[0] for responses in answer(model, held_out, fresh).responses]
        of = bootstrap_mean(np.array([reward(story) for story in told]), np.arange(len(told)))
        words = np.mean([len(story.split()) for story in told])
        print(f"{name:>6}: reward {of.value:.3f} [{of.low:.3f}, {of.high:.3f}], {words:.0f} words, n = {of.n}")
        print(f"        {told[0]!r}")


if __name__ == "__main__":
    main()
