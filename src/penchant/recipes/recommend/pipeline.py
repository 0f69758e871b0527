"""`penchant recipe recommend`: questions, a model, supervised training, preferences over titles, evaluation.

OUTPUT/questions/        train, validation and test as groups; texts; facts of the test questions
OUTPUT/model/            the starting model, where it is made from nothing
OUTPUT/sft/run/          supervised training on the titles that were taken; sft/merged where it is an adapter
OUTPUT/METHOD/run/       a method's training from the SFT model; METHOD/train.jsonl is its data
OUTPUT/evaluation/       every model's ranks and answers
OUTPUT/report.html, OUTPUT/result.json
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from penchant.data.groups import PreferenceGroup, as_text
from penchant.data.reading import read_groups
from penchant.data.writing import write_anew
from penchant.recipes.checking import check_tuning
from penchant.recipes.fingerprints import file_fingerprint, optional_weights_fingerprint
from penchant.recipes.reading import ModelTokenizer, check_lengths, compute_log_probs, read_stage_groups
from penchant.recipes.recommend.config import START, MethodConfig, RecommendConfig
from penchant.recipes.recommend.evaluation import evaluate, write_result
from penchant.recipes.recommend.prompts import draw_negatives, hardest_negatives
from penchant.recipes.recommend.questions import TEXTS, ask, read_catalogue
from penchant.recipes.recommend.serving import write_wording
from penchant.recipes.small_llama import build_small_llama
from penchant.recipes.stages import Stage, StageResult, run_stages
from penchant.recipes.tuning import TuningConfig, full_model_folder, stage_keys, tune, write_full_model

Tell = Callable[[str], None]


def recommend(
    config: RecommendConfig, *, only: str | None = None, tell: Tell = lambda line: None
) -> dict[str, StageResult]:
    """Run the recipe, or one stage of it; what is done already is not done again.

    Returns:
        What each stage found.

    Raises:
        PenchantError: the data, configuration or models are at fault.
    """
    folder = Path(config.output)
    _check(config)
    return run_stages(folder, stages(config), lambda found: write_result(folder, config, found), only=only, tell=tell)


def stages(config: RecommendConfig) -> list[Stage]:
    """All stages, in order."""
    folder = Path(config.output)
    settings = config.model_dump(mode="json")
    files = {name: file_fingerprint(getattr(config, name)) for name in ("interactions", "titles")}
    start = config.model or str(folder / "model" / "run")
    asked = {key: settings[key] for key in ("questions", "catalogue", "cutoffs", "columns", "seed")} | files
    listed = [
        Stage("questions", "questions from interactions, and what ranks them without language", asked, _asking(config)),
    ]
    if config.model is None:
        listed.append(Stage("model", "a small model from nothing, on histories", settings["new_model"], _new(config)))
    listed.append(
        Stage(
            "sft",
            "supervised training on titles taken",
            {
                "model": config.model,
                "weights": optional_weights_fingerprint(config.model),
                **settings["sft"],
                **config.data.settings,
            },
            _sft(config, start),
        )
    )
    listed += [
        Stage(
            method.name,
            f"{method.name}: {method.negatives} negatives",
            method.model_dump(mode="json") | config.data.settings,
            _tune(config, method),
        )
        for method in config.methods
    ]
    names = [method.name for method in config.methods]
    measured = {key: settings[key] for key in ("answers", "catalogue", "cutoffs")} | {"methods": names}
    measured |= config.data.settings
    listed.append(Stage("evaluation", "ranks and answers on test questions", measured, _evaluating(config, start)))
    return listed


def _check(config: RecommendConfig) -> None:
    """Refuse now what a method would refuse once the SFT model is there."""
    for method in config.methods:
        asked = PreferenceGroup("", ("",) * (1 + method.negatives), preferred=0)
        setting = f"methods.{method.name}"
        check_tuning(setting, method.objective, method, [asked], setting)


def _asking(config: RecommendConfig) -> Callable[[Path], StageResult]:
    def run(folder: Path) -> StageResult:
        counts = ask(config, folder)
        files = [folder / f"{part}.jsonl" for part in ("train", "validation", "test")]
        check_lengths([_reader(config, folder)], read_stage_groups("questions", files), config.data)
        return counts

    return run


def _reader(config: RecommendConfig, questions: Path) -> ModelTokenizer:
    """How the starting model reads."""
    if config.model is not None:
        return ModelTokenizer.load(config.model, config.data)
    sizes = config.new_model.sizes
    name = f"a model of context {sizes.context}"
    return ModelTokenizer.from_scratch(name, _corpus(questions), sizes, config.seed, config.data)


def _corpus(questions: Path) -> list[str]:
    """What the tokenizer of a model from nothing is trained on."""
    groups = [*read_groups(questions / TEXTS).groups, *read_groups(questions / "train.jsonl").groups]
    return [as_text(part) for group in groups for part in (group.prompt, group.candidates[0])]


def _new(config: RecommendConfig) -> Callable[[Path], StageResult]:
    def run(folder: Path) -> StageResult:
        texts = folder.parent / "questions" / TEXTS
        if not (folder / "start" / "config.json").exists():
            build_small_llama(folder / "start", _corpus(texts.parent), config.new_model.sizes, config.seed)
        tuned = TuningConfig(training=config.new_model.training)
        keys = stage_keys("new_model", type(config.new_model))
        tune(folder, str(folder / "start"), texts, None, {"name": "sft"}, tuned, keys=keys)
        return {}

    return run


def _sft(config: RecommendConfig, start: str) -> Callable[[Path], StageResult]:
    def run(folder: Path) -> StageResult:
        _select(folder, lambda groups: [()] * len(groups))
        _tuned(config, folder, start, {"name": "sft"}, config.sft, "sft")
        write_full_model(folder, config.sft)
        return {}

    return run


def _tune(config: RecommendConfig, method: MethodConfig) -> Callable[[Path], StageResult]:
    def run(folder: Path) -> StageResult:
        start = str(full_model_folder(folder.parent / "sft", config.sft))

        def negatives(groups: Sequence[PreferenceGroup]) -> list[tuple[int, ...]]:
            n = method.negatives
            if method.choose == "hard":
                likely = _log_probs(start, groups, config)
                return [hardest_negatives(group, n, scores) for group, scores in zip(groups, likely, strict=True)]
            taken = read_catalogue(folder.parent / "questions")
            if method.choose == "uniform":
                taken = dict.fromkeys(taken, 1)
            weights = [[taken[as_text(title).strip()] for title in group.candidates] for group in groups]
            return [draw_negatives(group, n, each, config.seed) for group, each in zip(groups, weights, strict=True)]

        _select(folder, negatives)
        _tuned(config, folder, start, method.objective, method, f"methods.{method.name}")
        return {}

    return run


def _select(folder: Path, negatives: Callable[[Sequence[PreferenceGroup]], Sequence[Sequence[int]]]) -> None:
    """Write a stage's questions, each with its target and these candidates alone."""
    for part in ("train", "validation"):
        groups = read_groups(folder.parent / "questions" / f"{part}.jsonl").groups
        chosen = [_of(group, others) for group, others in zip(groups, negatives(groups), strict=True)]
        write_anew(chosen, folder / f"{part}.jsonl")


def _tuned(
    config: RecommendConfig, folder: Path, start: str, objective: Mapping[str, Any], tuned: TuningConfig, setting: str
) -> None:
    """Train on what `_select` wrote; `setting` is the stage's path in the configuration."""
    data, held_out, keys = folder / "train.jsonl", folder / "validation.jsonl", stage_keys(setting, type(tuned))
    tune(folder, start, data, held_out, objective, tuned, keys=keys, reading=config.data)
    write_wording(folder / "run", config.questions.wording)


def _evaluating(config: RecommendConfig, start: str) -> Callable[[Path], StageResult]:
    def run(folder: Path) -> StageResult:
        models = {START: start} | {
            name: str(folder.parent / name / "run") for name in ("sft", *(method.name for method in config.methods))
        }
        return evaluate(config, folder, models, _log_probs)

    return run


def _of(group: PreferenceGroup, negatives: Sequence[int]) -> PreferenceGroup:
    """The question with its target and these candidates alone."""
    assert group.preferred is not None
    answers = tuple(group.candidates[k] for k in (group.preferred, *negatives))
    return PreferenceGroup(group.prompt, answers, preferred=0 if negatives else None, id=group.id)


def _log_probs(model: str, groups: Sequence[PreferenceGroup], config: RecommendConfig) -> list[tuple[float, ...]]:
    return [scored.log_probs for scored in compute_log_probs(model, groups, config.token_budget, config.data)]
