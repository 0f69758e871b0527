"""Pairs of the summarisation protocol, from the comparison files of Learning to Summarize from Human Feedback.

    python examples/protocols/tldr.py DATA [--comparisons FOLDER]
    penchant train examples/protocols/tldr_1_sft.yaml
    penchant train examples/protocols/tldr_2_reward.yaml
    penchant compare examples/protocols/tldr_3_compare.yaml
    penchant generate MODEL DATA/held_out.jsonl --best-of 16 --reward REWARD --json

FOLDER holds the published files (arXiv 2009.01325), batch3.json and others: a JSON object a line, with info (id, post,
title, subreddit), two summaries, choice and split. Without it, a few comparisons that are written here in the same
layout go the same way. DATA gets train.jsonl and held_out.jsonl (pairs of the splits train and valid2) and sft.jsonl
(the posts' own summaries). In the configurations DATA is runs/tldr/data.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

PROMPT = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
"""The prompt of the published models (their appendix B)."""

SPLITS = {"train": "train", "valid2": "held_out"}
PROBLEMS = (
    "lost my keys",
    "missed the train",
    "broke a window",
    "forgot a birthday",
    "burnt the dinner",
    "locked the cat out",
)
PEOPLE = ("my sister", "my boss", "a neighbour", "my flatmate", "an old friend")
WISHES = ("how to say sorry", "what to do next", "whether to pay for it", "how to keep calm")


def written_comparisons() -> list[Row]:
    """Comparisons in the published layout, of a summary that says what happened and one that does not."""
    draw, rows = random.Random(0), []
    for number, (problem, person) in enumerate((problem, person) for problem in PROBLEMS for person in PEOPLE):
        wish = draw.choice(WISHES)
        post = f"Last week I {problem} and {person} was upset. We have not talked since. I would like to know {wish}."
        texts = [
            f" I {problem}, {person} is upset, {wish}?",
            draw.choice((" Someone is upset.", " I had a long week and it rained.")),
        ]
        choice = draw.randrange(2)
        rows.append(
            {
                "info": {"id": f"t3_{number}", "post": post, "title": f"I {problem}", "subreddit": "advice"},
                "summaries": [
                    {"text": texts[k ^ choice], "policy": "ref" if k == choice else "sup1", "note": None}
                    for k in (0, 1)
                ],
                "choice": choice,
                "worker": "w1",
                "batch": "batch1",
                "split": "valid2" if number % 5 == 0 else "train",
                "extra": {"confidence": 7},
            }
        )
    return rows


def published_comparisons(folder: Path) -> Iterator[tuple[str, Row]]:
    """The rows of all files of a folder, each with its location."""
    files = sorted(folder.glob("*.json*"))
    if not files:
        raise SystemExit(f"{folder}: no .json files; expected batch3.json and others")
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                yield f"{file.name}, line {number}", json.loads(line)
            except ValueError as error:
                raise SystemExit(f"{file.name}, line {number}: no JSON object ({error})") from error


def convert(rows: Iterator[tuple[str, Row]] | Sequence[tuple[str, Row]]) -> tuple[dict[str, list[Row]], Counter[str]]:
    """Pairs of the parts train and held_out, the posts' own summaries (sft), and counts of what was left out."""
    parts: dict[str, list[Row]] = {"train": [], "held_out": [], "sft": []}
    left_out: Counter[str] = Counter()
    for where, row in rows:
        try:
            info, summaries, choice, split = row["info"], row["summaries"], row["choice"], row["split"]
            if "post" not in info:
                left_out["news articles, which have no post"] += 1
                continue
            prompt = PROMPT.format(subreddit=info["subreddit"], title=info["title"], post=info["post"])
            chosen, rejected = (summaries[k]["text"] for k in (choice, 1 - choice))
            own_summaries = [summary["text"] for summary in summaries if summary["policy"] == "ref"]
        except (KeyError, IndexError, TypeError) as error:
            raise SystemExit(
                f"{where}: no comparison ({error!r}); expected info, summaries of text and policy, choice and split"
            ) from error
        if split not in SPLITS:
            left_out[f"split {split}"] += 1
        elif chosen.strip() == rejected.strip():
            left_out["equal summaries"] += 1
        else:
            pair = {"id": f"{info['id']}/{len(parts['train']) + len(parts['held_out'])}", "prompt": prompt}
            parts[SPLITS[split]].append({**pair, "chosen": chosen, "rejected": rejected})
            if split == "train":
                parts["sft"] += [{"prompt": prompt, "completion": text} for text in own_summaries]
    held_out = {row["prompt"] for row in parts["held_out"]}
    for part in ("train", "sft"):
        remaining_rows = [row for row in parts[part] if row["prompt"] not in held_out]
        left_out[f"{part}: posts of held_out"] = len(parts[part]) - len(remaining_rows)
        parts[part] = remaining_rows
    # A post's own summary is compared several times.
    parts["sft"] = list({(row["prompt"], row["completion"]): row for row in parts["sft"]}.values())
    return parts, left_out


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--comparisons", type=Path, help="folder of the published files")
    options = parser.parse_args(arguments)
    if options.comparisons is None:
        parts, left_out = convert([(f"comparison {i}", row) for i, row in enumerate(written_comparisons())])
    else:
        parts, left_out = convert(published_comparisons(options.comparisons))
    options.data.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (options.data / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{options.data / name}.jsonl: {len(rows)} rows")
    for reason, count in left_out.items():
        if count:
            print(f"left out: {count} x {reason}")


if __name__ == "__main__":
    main()
