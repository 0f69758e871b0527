"""`penchant recipe recommend`: questions, a model, supervised training, preferences over titles, evaluation.

OUTPUT/questions/        train, validation and test as groups; texts; facts of the test questions
OUTPUT/model/            the starting model, if it is trained from scratch
OUTPUT/sft/run/          supervised training on the targets; sft/merged if it is an adapter
OUTPUT/METHOD/run/       a method's training from the SFT model; METHOD/train.jsonl is its data
OUTPUT/evaluation/       every model's ranks and answers
OUTPUT/report.html, OUTPUT/result.json
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from penchant.api import (
    PreferenceGroup,
    as_text,
    file_fingerprint,
    optional_weights_fingerprint,
    read_groups,
    write_anew,
)
from penchant.recipes.reading import ModelTokenizer, check_lengths, compute_log_probs, read_stage_groups
from penchant.recipes.recommend.config import START, MethodConfig, RecommendConfig
from penchant.recipes.recommend.evaluation import build_report, evaluate
from penchant.recipes.recommend.prompts import draw_negatives, hardest_negatives, write_wording
from penchant.recipes.recommend.published import published_fingerprint
from penchant.recipes.recommend.questions import TEXTS, read_catalogue, write_questions
from penchant.recipes.small_llama import build_small_llama
from penchant.recipes.stages import Stage, StageResult, run_stages, write_result
from penchant.recipes.tuning import (
    StageData,
    TuningConfig,
    check_tuning,
    full_model_folder,
    stage_keys,
    tune,
    write_full_model,
)


def recommend(config: RecommendConfig, *, only_stage: str | None = None) -> dict[str, StageResult]:
    """The result of every stage by its name, after a run of all unfinished stages, or of the stage `only`.

    Raises:
        PenchantError: the data, configuration or models are at fault.
    """
    folder = Path(config.output)
    _check_methods(config)

    def finish(results: Mapping[str, StageResult]) -> None:
        write_result(folder, config, results, build_report(config, results))

    return run_stages(folder, stages(config), finish, only_stage=only_stage)


def stages(config: RecommendConfig) -> list[Stage]:
    """All stages in order."""
    folder = Path(config.output)
    settings = config.model_dump(mode="json")
    files = _fingerprints(config)
    del settings["questions"]["file"]  # Its fingerprint is recorded instead.
    start = config.model or str(folder / "model" / "run")
    question_settings = {key: settings[key] for key in ("questions", "catalogue", "cutoffs", "columns", "seed")} | files
    origin = "interactions" if config.questions.file is None else config.questions.file
    stage_list = [
        Stage("questions", f"questions from {origin}, and baselines", question_settings, _question_stage(config)),
    ]
    if config.model is None:
        description = "training of a small model from scratch on histories"
        stage_list.append(Stage("model", description, settings["new_model"], _new_model_stage(config)))
    stage_list.append(
        Stage(
            "sft",
            "supervised training on targets",
            {
                "model": config.model,
                "weights": optional_weights_fingerprint(config.model),
                **settings["sft"],
                **config.data.settings,
            },
            _sft_stage(config, start),
        )
    )
    stage_list += [
        Stage(
            method.name,
            f"{method.name}: {method.negatives} negatives",
            method.model_dump(mode="json") | config.data.settings,
            _method_stage(config, method),
        )
        for method in config.methods
    ]
    names = [method.name for method in config.methods]
    evaluation_settings = {key: settings[key] for key in ("answers", "catalogue", "cutoffs")} | {"methods": names}
    evaluation_settings |= config.data.settings
    run = _evaluation_stage(config, start)
    stage_list.append(Stage("evaluation", "ranks and answers on test questions", evaluation_settings, run))
    return stage_list


def _fingerprints(config: RecommendConfig) -> dict[str, str]:
    """Fingerprints of the files that questions are made of, by their keys."""
    if config.questions.file is not None:
        return {"questions.file": published_fingerprint(config.questions.file)}
    return {name: file_fingerprint(getattr(config, name)) for name in ("interactions", "titles")}


def _check_methods(config: RecommendConfig) -> None:
    """Raise the errors now that a method would raise after the SFT stage."""
    for method in config.methods:
        example = PreferenceGroup("", ("",) * (1 + method.negatives), preferred=0)
        setting = f"methods.{method.name}"
        check_tuning(setting, method.objective, method, [example], setting)


def _question_stage(config: RecommendConfig) -> Callable[[Path], StageResult]:
    def run(folder: Path) -> StageResult:
        counts = write_questions(config, folder)
        files = [folder / f"{part}.jsonl" for part in ("train", "validation", "test")]
        check_lengths([_reader(config, folder)], read_stage_groups("questions", files), config.data)
        return counts

    return run


def _reader(config: RecommendConfig, questions: Path) -> ModelTokenizer:
    """The tokenizer and limits of the starting model."""
    if config.model is not None:
        return ModelTokenizer.load(config.model, config.data)
    sizes = config.new_model.sizes
    name = f"a model of context {sizes.context}"
    return ModelTokenizer.from_scratch(name, _corpus(questions), sizes, config.seed, config.data)


def _corpus(questions: Path) -> list[str]:
    """The texts that the tokenizer of a model trained from scratch learns from."""
    groups = [*read_groups(questions / TEXTS).groups, *read_groups(questions / "train.jsonl").groups]
    return [as_text(part) for group in groups for part in (group.prompt, group.candidates[0])]


def _new_model_stage(config: RecommendConfig) -> Callable[[Path], StageResult]:
    def run(folder: Path) -> StageResult:
        texts = folder.parent / "questions" / TEXTS
        if not (folder / "start" / "config.json").exists():
            build_small_llama(folder / "start", _corpus(texts.parent), config.new_model.sizes, config.seed)
        tuned = TuningConfig(training=config.new_model.training)
        keys = stage_keys("new_model", type(config.new_model))
        tune(folder, str(folder / "start"), StageData(texts), {"name": "sft"}, tuned, keys=keys)
        return {}

    return run


def _sft_stage(config: RecommendConfig, start: str) -> Callable[[Path], StageResult]:
    def run(folder: Path) -> StageResult:
        _write_selected(folder, lambda groups: [()] * len(groups))
        _tune_on_selected(config, folder, start, {"name": "sft"}, config.sft, "sft")
        write_full_model(folder, config.sft)
        return {}

    return run


def _method_stage(config: RecommendConfig, method: MethodConfig) -> Callable[[Path], StageResult]:
    def run(folder: Path) -> StageResult:
        start = str(full_model_folder(folder.parent / "sft", config.sft))

        def negatives(groups: Sequence[PreferenceGroup]) -> list[tuple[int, ...]]:
            n = method.negatives
            if method.choose == "hard":
                log_probs = _log_probs(start, groups, config)
                return [hardest_negatives(group, n, scores) for group, scores in zip(groups, log_probs, strict=True)]
            counts = read_catalogue(folder.parent / "questions")
            if method.choose == "uniform":
                counts = dict.fromkeys(counts, 1)
            weights = [[counts[as_text(title).strip()] for title in group.candidates] for group in groups]
            return [
                draw_negatives(group, n, group_weights, config.seed)
                for group, group_weights in zip(groups, weights, strict=True)
            ]

        _write_selected(folder, negatives)
        _tune_on_selected(config, folder, start, method.objective, method, f"methods.{method.name}")
        return {}

    return run


def _write_selected(folder: Path, negatives: Callable[[Sequence[PreferenceGroup]], Sequence[Sequence[int]]]) -> None:
    """Write a stage's questions with their targets and the chosen negatives as the only candidates.

    Args:
        negatives: returns the indices of the negatives for every group.
    """
    for part in ("train", "validation"):
        groups = read_groups(folder.parent / "questions" / f"{part}.jsonl").groups
        chosen = [_with_candidates(group, indices) for group, indices in zip(groups, negatives(groups), strict=True)]
        write_anew(chosen, folder / f"{part}.jsonl")


def _tune_on_selected(
    config: RecommendConfig, folder: Path, start: str, objective: Mapping[str, Any], tuned: TuningConfig, setting: str
) -> None:
    """Train on the questions of `_write_selected`; `setting` is the stage's path in the configuration."""
    data = StageData(folder / "train.jsonl", folder / "validation.jsonl", config.data)
    tune(folder, start, data, objective, tuned, keys=stage_keys(setting, type(tuned)))
    write_wording(folder / "run", config.questions.wording)


def _evaluation_stage(config: RecommendConfig, start: str) -> Callable[[Path], StageResult]:
    def run(folder: Path) -> StageResult:
        models = {START: start} | {
            name: str(folder.parent / name / "run") for name in ("sft", *(method.name for method in config.methods))
        }
        return evaluate(config, folder, models, _log_probs)

    return run


def _with_candidates(group: PreferenceGroup, negatives: Sequence[int]) -> PreferenceGroup:
    """The question with its target and the negatives with these indices as the only candidates."""
    assert group.preferred is not None
    answers = tuple(group.candidates[k] for k in (group.preferred, *negatives))
    return PreferenceGroup(group.prompt, answers, preferred=0 if negatives else None, id=group.id)


def _log_probs(model: str, groups: Sequence[PreferenceGroup], config: RecommendConfig) -> list[tuple[float, ...]]:
    return [scored.log_probs for scored in compute_log_probs(model, groups, config.token_budget, config.data)]
