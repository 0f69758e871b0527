"""`penchant recipe tool-calling`: small agents, taught in several ways and in sequences of them.

OUTPUT/data/              questions in parts (in the leaderboard's form), supervised groups
OUTPUT/base/              a base from nothing, where none is named
OUTPUT/STEP-...-SEED/run  a path's model after each of its steps
OUTPUT/pairs/, OUTPUT/review/    right answers above wrong ones, and what people left of them
OUTPUT/reward/            prompts, and the reward of an answer to them
OUTPUT/evaluation/        every model's answers to the test
OUTPUT/report.html, OUTPUT/result.json
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from penchant.engine.grammars import grammar_library
from penchant.evaluation.tool_calls.grammars import python_calls
from penchant.evaluation.tool_calls.questions import read_bfcl
from penchant.recipes.fingerprints import file_fingerprint, optional_weights_fingerprint
from penchant.recipes.stages import Stage, StageResult, run_stages
from penchant.recipes.tool_calling.checking import new_base, prepare_checked
from penchant.recipes.tool_calling.config import ToolCallingConfig
from penchant.recipes.tool_calling.evaluation import Row, evaluate
from penchant.recipes.tool_calling.pairs import make_pairs, review
from penchant.recipes.tool_calling.report import write_result
from penchant.recipes.tool_calling.rewarding import prepare_reward
from penchant.recipes.tuning import TuningConfig, full_model_folder, stage_keys, tune, write_full_model

Tell = Callable[[str], None]
Run = Callable[[Path], StageResult]
Steps = tuple[str, ...]

FILES = {
    "answers": ("data/supervised_train.jsonl", "data/supervised_validation.jsonl"),
    "pairs": ("review/train.jsonl", "pairs/validation.jsonl"),
    "reward": ("reward/train.jsonl", None),
}
"""By what a step learns from: to train on, and held out; fresh answers are not."""


def tool_calling(
    config: ToolCallingConfig, *, only: str | None = None, tell: Tell = lambda line: None
) -> dict[str, StageResult]:
    """Run the recipe, or one stage of it; what is done already is not done again.

    Returns:
        What each stage found.

    Raises:
        PenchantError: the data, configuration or models are at fault; the package `llguidance` is missing.
    """
    folder = Path(config.output)
    _check(config)
    return run_stages(folder, stages(config), lambda found: write_result(folder, config, found), only=only, tell=tell)


def stages(config: ToolCallingConfig) -> list[Stage]:
    """All stages, in order: first steps, then pairs and prompts, then what goes on from the first steps."""
    settings = config.model_dump(mode="json")
    base = config.model or str(Path(config.output) / "base" / "run")
    listed = [
        Stage("data", "questions in parts", _asked(config, settings), lambda folder: prepare_checked(config, folder))
    ]
    if config.model is None:
        new = settings["new_model"] | {"texts": file_fingerprint(str(config.new_model.texts))}
        listed.append(Stage("base", "a base from nothing", new, _train_base(config)))
    begun = list(dict.fromkeys(tuple(steps[:n]) for steps in config.paths.values() for n in range(1, len(steps) + 1)))
    learnt = {config.steps[step].learns for steps in begun for step in steps}
    answers = [steps for steps in begun if all(config.steps[step].learns == "answers" for step in steps)]
    listed += [_stage(config, steps, seed, base) for steps in answers for seed in config.seeds]
    if "pairs" in learnt:
        weaker = config.pairs.weaker
        made = settings["pairs"] | {"queue": config.review.most, "answer_tokens": config.answer_tokens}
        if weaker in config.paths:
            made |= {"weaker_steps": config.paths[weaker], "seed": config.seeds[0]}
            weaker = str(_model(config, tuple(config.paths[weaker]), config.seeds[0]))
        elif weaker == "base":
            weaker = base
        listed += [
            Stage("pairs", "right answers above wrong ones", made, lambda place: make_pairs(config, weaker, place)),
            Stage(
                "review",
                "what people said of them",
                {"verdicts": config.review.fingerprint()},
                lambda place: review(config, place),
            ),
        ]
    if "reward" in learnt:
        fresh = {"variants": config.pairs.variants}
        listed.append(Stage("reward", "prompts to answer", fresh, lambda place: prepare_reward(config, place)))
    listed += [_stage(config, steps, seed, base) for steps in begun if steps not in answers for seed in config.seeds]
    rows = [Row("base", (base,))]
    for name, steps in config.paths.items():
        rows.append(Row(name, tuple(str(_model(config, tuple(steps), seed)) for seed in config.seeds)))
    measured = {key: settings[key] for key in ("paths", "seeds", "answer_tokens", "timed", "constrained")}
    measured |= config.data.settings
    # Everything is compared with the first path, which settings that are a dict do not tell.
    measured["order"] = list(config.paths)
    return [*listed, Stage("evaluation", "functions never seen", measured, lambda place: evaluate(config, rows, place))]


def _check(config: ToolCallingConfig) -> None:
    """Refuse now what the last stage would refuse."""
    if config.constrained:
        grammar_library()
        for question in read_bfcl(Path(config.questions))[0]:
            python_calls(question, prose=config.style == "messages")


def _asked(config: ToolCallingConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    asked = {key: settings[key] for key in ("style", "held_out", "variants", "mismatched", "seed")}
    files = sorted(Path(config.questions).rglob("BFCL_v*"))
    asked["questions"] = {str(file.relative_to(config.questions)): file_fingerprint(str(file)) for file in files}
    asked["trajectories"] = None if config.trajectories is None else file_fingerprint(config.trajectories)
    return asked


def _place(config: ToolCallingConfig, steps: Steps, seed: int) -> Path:
    return Path(config.output) / f"{'-'.join(steps)}-{seed}"


def _model(config: ToolCallingConfig, steps: Steps, seed: int) -> Path:
    """Where a path's model is; an adapter is merged."""
    return full_model_folder(_place(config, steps, seed), config.steps[steps[-1]])


def _stage(config: ToolCallingConfig, steps: Steps, seed: int, base: str) -> Stage:
    """The last of some steps, from where those before it have come to."""
    step = config.steps[steps[-1]]
    start = str(_model(config, steps[:-1], seed)) if steps[:-1] else base
    tuned = TuningConfig(training=step.training.model_copy(update={"seed": seed}), lora=step.lora)

    def run(place: Path) -> StageResult:
        train, validation = FILES[step.learns]
        online = None
        if step.learns == "reward":
            score = f"{(place.parent / 'reward' / 'reward.py').resolve()}:score"
            online = {"sampling": step.sampling.model_dump(), "reward": {"function": score}}
        held_out = None if validation is None else place.parent / validation
        data, keys = place.parent / train, stage_keys(f"steps.{steps[-1]}", type(step))
        tune(place, start, data, held_out, step.objective, tuned, keys=keys, online=online, reading=config.data)
        write_full_model(place, tuned)
        return {}

    settings = step.model_dump(mode="json") | {"seed": seed, "model": optional_weights_fingerprint(config.model)}
    settings |= config.data.settings
    name = "-".join(steps)
    return Stage(f"{name}-{seed}", f"{' then '.join(steps)}, seed {seed}", settings, run)


def _train_base(config: ToolCallingConfig) -> Run:
    return lambda folder: new_base(config, folder.parent / "data").train(folder)
