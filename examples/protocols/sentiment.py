"""Data of the controlled-sentiment protocol: reviews, their beginnings, and pairs of a known reward.

Section 6 of Direct Preference Optimization (arXiv 2305.18290), with rewards that anyone can check, in these steps:

    python examples/protocols/sentiment.py reviews DATA [--file FILE]
    penchant train examples/protocols/sentiment_1_sft.yaml
    python examples/protocols/sentiment.py pairs DATA MODEL
    penchant train examples/protocols/sentiment_2_reward.yaml
    penchant compare examples/protocols/sentiment_frontier.yaml
    penchant generate MODEL DATA/test_prompts.jsonl --best-of 16 --reward REWARD --json > best.json
    python examples/protocols/sentiment.py measure best.json

In the configurations DATA is runs/sentiment/data, MODEL runs/sentiment/sft and REWARD runs/sentiment/reward. FILE is a
public one of film reviews: IMDB's in the layout of the Hugging Face hub (columns text, label) or of Kaggle (review,
sentiment), as CSV, JSONL or Parquet. Without it reviews are written here, from a few dozen phrases.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from penchant import PenchantError, PreferenceGroup, Sampling, answer, bootstrap_mean, write_groups
from penchant.api import read_rows

GOOD = ("good", "great", "wonderful", "lovely", "funny", "warm", "brilliant", "moving", "clever", "fresh", "superb")
POOR = ("bad", "poor", "dull", "boring", "cold", "awful", "weak", "clumsy", "stale", "slow", "silly", "tedious")
LIKED, DISLIKED = ("enjoyed", "loved"), ("hated", "regretted")
SUBJECTS = (
    "film",
    "story",
    "music",
    "cast",
    "ending",
    "script",
    "camera work",
    "first half",
    "second half",
    "dialogue",
)
BEGINNINGS = (
    "I saw this last night and",
    "A friend told me to see it, and",
    "After the long wait",
    "For a small film",
    "To be fair",
)
LINKS = ("The {} was {}.", "I thought the {} was {}.", "Most of the {} felt {}.", "Sadly or not, the {} seemed {}.")


def reward(prompt: object, responses: Sequence[str]) -> list[float]:
    """The share of good words less that of poor ones among the words of opinion, in [-1, 1]; 0 without any."""
    values = []
    for response in responses:
        words = re.findall(r"[a-z]+", f"{prompt} {response}".lower())
        good, poor = (sum(word in kind for word in words) for kind in (GOOD + LIKED, POOR + DISLIKED))
        values.append((good - poor) / (good + poor) if good + poor else 0.0)
    return values


def written_reviews(count: int, draw: random.Random) -> list[str]:
    """Reviews from phrases, each with a leaning of its own, as often towards good as towards poor."""
    reviews = []
    for _ in range(count):
        leaning = draw.random()
        verb = draw.choice(LIKED if draw.random() < leaning else DISLIKED)
        parts = [f"{draw.choice(BEGINNINGS)} I {verb} it."]
        for subject in draw.sample(SUBJECTS, draw.randint(2, 4)):
            word = draw.choice(GOOD if draw.random() < leaning else POOR)
            parts.append(draw.choice(LINKS).format(subject, word))
        reviews.append(" ".join(parts))
    return reviews


def public_reviews(file: Path) -> list[str]:
    """The reviews of a published file, without its line-break tags."""
    texts = []
    for where, row in read_rows(file):
        text = next((row[column] for column in ("text", "review") if isinstance(row.get(column), str)), None)
        if text is None:
            raise SystemExit(f"{where}: no column text or review; it has {', '.join(row)}")
        texts.append(" ".join(re.sub(r"<br ?/?>", " ", text).split()))
    return texts


def write_reviews(out: Path, file: Path | None, count: int) -> None:
    """Write reviews to imitate and their beginnings of two to eight words, and those of a tenth that is kept apart."""
    draw = random.Random(0)
    reviews = list(dict.fromkeys(written_reviews(count, draw) if file is None else public_reviews(file)))
    draw.shuffle(reviews)
    test = max(1, len(reviews) // 10)
    out.mkdir(parents=True, exist_ok=True)
    for prefix, part in (("", reviews[test:]), ("test_", reviews[:test])):
        write_rows(out / f"{prefix}reviews.jsonl", [{"text": review} for review in part])
        beginnings = dict.fromkeys(" ".join(review.split()[: draw.randint(2, 8)]) for review in part)
        write_rows(out / f"{prefix}prompts.jsonl", [{"prompt": beginning} for beginning in beginnings])
    print(f"{out}: {len(reviews) - test} reviews to imitate, {test} kept apart")


def write_pairs(out: Path, model: str, count: int, sampling: Sampling) -> None:
    """Write the model's own completions of beginnings with their rewards: four give up to six pairs, as published."""
    prompts = [json.loads(line)["prompt"] for line in (out / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    groups = []
    for prompt, responses in zip(prompts[:count], answer(model, prompts[:count], sampling).responses, strict=True):
        distinct = tuple(dict.fromkeys(text for text in responses if text.strip()))
        if distinct:
            groups.append(
                PreferenceGroup(prompt, distinct, scores=tuple(reward(prompt, distinct)), id=str(len(groups)))
            )
    groups = [group for group in groups if group.pairs]
    if not groups:
        raise SystemExit(f"{model}: no two completions of a prompt differ in reward; train it on reviews first")
    (out / "pairs.jsonl").unlink(missing_ok=True)
    write_groups(groups, out / "pairs.jsonl")
    print(f"{out / 'pairs.jsonl'}: {len(groups)} prompts, {sum(len(group.pairs) for group in groups)} pairs")


def measure(file: Path) -> None:
    """Print the mean known reward of the answers that `penchant generate --json` wrote."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["answers"]
        rewards = [value for row in rows for value in reward(row["prompt"], row["responses"])]
        prompts = [i for i, row in enumerate(rows) for _ in row["responses"]]
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{file}: no answers of penchant generate --json ({error!r})") from error
    mean = bootstrap_mean(np.array(rewards), np.array(prompts))
    print(f"reward {mean.value:.4f} [{mean.low:.4f}, {mean.high:.4f}] of {mean.n} answers")


def write_rows(file: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write a JSON line for every row."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the three steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    reviews, pairs, measure_parser = (steps.add_parser(name) for name in ("reviews", "pairs", "measure"))
    reviews.add_argument("data", type=Path)
    reviews.add_argument("--file", type=Path, help="public file of reviews")
    reviews.add_argument("--count", type=int, default=4000, help="reviews to write where there is no file")
    pairs.add_argument("data", type=Path)
    pairs.add_argument("model")
    pairs.add_argument("--count", type=int, default=2000, help="prompts, from the start of the file")
    pairs.add_argument("--max-new-tokens", type=int, default=48)
    measure_parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.step == "reviews":
            write_reviews(options.data, options.file, options.count)
        elif options.step == "pairs":
            sampling = Sampling(samples=4, max_new_tokens=options.max_new_tokens)
            write_pairs(options.data, options.model, options.count, sampling)
        else:
            measure(options.file)
    except (PenchantError, OSError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
