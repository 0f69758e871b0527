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
from pathlib import Path
from typing import Any

from measuring import Recorder, Task
from workloads import tokens_by_candidate

OBJECTIVES: dict[str, dict[str, Any]] = {
    "penchant": {"name": "dpo", "average": "pairs"},
    "penchant_lora": {"name": "dpo", "average": "pairs"},
    "penchant_s_dpo": {"name": "s_dpo"},
}


def configuration(task: Task) -> dict[str, Any]:
    """The run's YAML, as a dictionary."""
    training = {
        "max_steps": task.total,
        "batch_size": task.batch,
        "learning_rate": task.rate,
        "schedule": "constant",
        "warmup": 0,
        "shuffle": False,
        "dtype": task.dtype,
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


def main() -> None:
    task, out = Task.read(sys.argv[1]), sys.argv[2]
    os.environ["PENCHANT_CACHE"] = str(Path(task.work) / "cache")

    from penchant.cli.main import main as penchant
    from penchant.engine.tree import TreeScorer
    from penchant.training import model
    from penchant.training.loop import Loop

    recorder = Recorder(task)
    scorers: set[str] = set()
    whole_step = Loop.step

    def step(loop: Loop, pressed: bool = False) -> tuple[float, bool]:
        if not recorder.steps:
            scorers.add(type(loop.scorer).__name__)
            recorder.start()
        groups = loop.source.batch(loop.state.step).groups
        loss, interrupted = whole_step(loop, pressed)
        recorder.end(loss, tokens_by_candidate([(g.prompt, g.responses) for g in groups]))
        if len(recorder.steps) == task.total:
            raise SystemExit(0)
        return loss, interrupted

    Loop.step = step  # type: ignore[method-assign]
    if task.device == "cuda":
        model.model_fingerprint = lambda loaded: "of this process"  # type: ignore[attr-defined]
    run = Path(task.work) / "run.yaml"
    run.write_text(json.dumps(configuration(task)))  # JSON is YAML.
    sys.argv = ["penchant", "train", str(run)]
    try:
        penchant()
    except SystemExit as end:
        if end.code:
            raise
    if scorers != {TreeScorer.__name__}:
        raise SystemExit(f"the tree was not used for this model: {scorers}")
    recorder.write(out)


if __name__ == "__main__":
    main()
