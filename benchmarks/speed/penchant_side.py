"""`penchant train`, watched from outside: python penchant_side.py TASK.json OUT.json

Nothing of the steps is changed: command line and configuration are a user's, references' log-probs are found before the
first step, metrics are logged as by default. `Loop.step` is wrapped to read the clock between steps. After the last one
the process ends: checkpoint, model files and report are not made. On a GPU the weights, gigabytes of them, are not
hashed before the first: the hash names them in a cache, which is empty.

    penchant         dpo, beta 0.1; each comparison weighs the same, as each pair does for a peer that knows only pairs
    penchant_s_dpo   s_dpo, beta 1: the group at once, as the S-DPO layout has it
    penchant_lora    dpo, with adapters alone trained
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from measuring import Recorder, Task
from workloads import tokens_by_candidate

if TYPE_CHECKING:
    from penchant.training.loop import Loop

OBJECTIVES: dict[str, dict[str, Any]] = {
    "penchant": {"name": "dpo", "average": "pairs"},
    "penchant_lora": {"name": "dpo", "average": "pairs"},
    "penchant_s_dpo": {"name": "s_dpo"},
}


def configuration(task: Task, further_steps: int) -> dict[str, Any]:
    """The run's YAML, as a dictionary.

    Args:
        further_steps: number of steps after those that are recorded.
    """
    training = {
        "max_steps": task.total + further_steps,
        "batch_size": task.batch,
        "learning_rate": task.rate,
        "schedule": "constant",
        "warmup": 0,
        "shuffle": False,
        "dtype": task.dtype,
        "token_budget": task.token_budget,
    }
    return {
        "model": f"{task.folder}/model",
        "data": f"{task.folder}/groups.jsonl",
        "output": f"{task.work}/run",
        "objective": {**OBJECTIVES[task.side], "beta": task.beta},
        "training": training,
        "checkpoints": {"every": 1_000_000},
        "lora": {"rank": task.rank} if task.side == "penchant_lora" else None,
    }


def train_and_record(
    task: Task,
    recorder: Recorder,
    further_steps: Sequence[AbstractContextManager[Any]] = (),
    at_end: Callable[[Loop], None] = lambda loop: None,
) -> None:
    """Run `penchant train` of a task in this process and record its steps.

    Args:
        further_steps: contexts of steps after the recorded ones, one step in each.
        at_end: called with the loop after the last step.

    Raises:
        SystemExit: the command failed, or the model was not trained by the tree.
    """
    os.environ["PENCHANT_CACHE"] = str(Path(task.work) / "cache")

    from penchant.cli.main import main as penchant
    from penchant.engine.tree import TreeScorer
    from penchant.training import model
    from penchant.training.loop import Loop

    scorers: set[str] = set()
    whole_step, contexts = Loop.step, [*further_steps]

    def step(loop: Loop, signals: Any) -> tuple[float, int | None]:
        if len(recorder.steps) == task.total:
            with contexts.pop(0):
                loss, number = whole_step(loop, signals)
        else:
            if not recorder.steps:
                scorers.add(type(loop.scorer).__name__)
                recorder.start()
            groups = loop.source.batch(loop.state.step).groups
            loss, number = whole_step(loop, signals)
            recorder.end(loss, tokens_by_candidate([(g.prompt, g.responses) for g in groups]))
        if len(recorder.steps) == task.total and not contexts:
            at_end(loop)
            raise SystemExit(0)
        return loss, number

    hash_weights = model.model_fingerprint if task.device == "cpu" else lambda loaded: "of this process"
    run = Path(task.work) / "run.yaml"
    run.write_text(json.dumps(configuration(task, len(contexts))))  # JSON is YAML.
    try:
        with (
            mock.patch.object(Loop, "step", step),
            mock.patch.object(model, "model_fingerprint", hash_weights),
            mock.patch.object(sys, "argv", ["penchant", "train", str(run), "--device", task.device]),
        ):
            penchant()
    except SystemExit as end:
        if end.code:
            raise
    if scorers != {TreeScorer.__name__}:
        raise SystemExit(f"the tree was not used for this model: {scorers}")


def main() -> None:
    task, out = Task.read(sys.argv[1]), sys.argv[2]
    recorder = Recorder(task)
    train_and_record(task, recorder)
    recorder.write(out)


if __name__ == "__main__":
    main()
