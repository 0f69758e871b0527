"""Multiple-choice questions as preference groups: the right option is preferred to the others.

    python examples/real/choices.py openbookqa=TRAIN.jsonl runs/real/openbookqa_train.jsonl --limit 1000

NAME=FILE as `penchant tasks --task` reads it (docs/tasks.md); a question is the user's message, an option the
assistant's.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from penchant.api import write_groups
from penchant.evaluation.choices import chat_group
from penchant.evaluation.choices_readers import read_questions


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help="NAME=FILE")
    parser.add_argument("output", type=Path)
    parser.add_argument("--limit", type=int, help="number of questions, drawn from the file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    name, _, file = options.task.partition("=")
    questions = list(read_questions(name, Path(file)).questions)
    random.Random(options.seed).shuffle(questions)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_groups([chat_group(question) for question in questions[: options.limit]], options.output)


if __name__ == "__main__":
    main()
