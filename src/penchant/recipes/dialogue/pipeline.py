"""`penchant recipe dialogue`: preferences from dialogues, several models trained on them, and an evaluation.

OUTPUT/data/              preferences and supervised data in parts, the test questions, the queue for review
OUTPUT/review/            the training data without the pairs that people rejected
OUTPUT/audit/             how well style alone predicts the better answer
OUTPUT/MODEL-base/        a base model trained from scratch, where none is named
OUTPUT/MODEL-sft-SEED/run, OUTPUT/MODEL-METHOD-SEED/run
OUTPUT/answers/           every model's answers; sheets/ for people who compare two models
OUTPUT/evaluation/        every answer's metrics
OUTPUT/report.html, OUTPUT/result.json
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from penchant.api import (
    DataError,
    PreferenceGroup,
    file_fingerprint,
    optional_weights_fingerprint,
    read_groups,
    write_anew,
)
from penchant.recipes.dialogue.config import DialogueConfig, MeasuresConfig, MethodConfig, ModelConfig
from penchant.recipes.dialogue.data import apply_review, audit_style, build_preference_data
from penchant.recipes.dialogue.evaluation import ModelVariant, evaluate, write_answers
from penchant.recipes.dialogue.report import build_report
from penchant.recipes.reading import ModelTokenizer, check_lengths, encoder_settings, judge_settings, read_stage_groups
from penchant.recipes.small_llama import SizesConfig
from penchant.recipes.stages import Stage, StageResult, run_stages, write_result
from penchant.recipes.texts import NewBase
from penchant.recipes.tuning import (
    StageData,
    TuningConfig,
    check_tuning,
    full_model_folder,
    stage_keys,
    tune,
    write_full_model,
)

Run = Callable[[Path], StageResult]


def dialogue(config: DialogueConfig, *, only_stage: str | None = None) -> dict[str, StageResult]:
    """The result of every stage by its name, after a run of all unfinished stages, or of the stage `only`.

    Raises:
        PenchantError: the data, configuration, models or endpoint have an error.
    """
    folder = Path(config.output)
    _check(config)

    def finish(results: Mapping[str, StageResult]) -> None:
        write_result(folder, config, results, build_report(folder, config, results))

    return run_stages(folder, stages(config), finish, only_stage=only_stage)


def stages(config: DialogueConfig) -> list[Stage]:
    """All stages of the recipe, in order."""
    settings = config.model_dump(mode="json")
    sources = {
        name: source.model_dump(exclude={"file"}) | {"contents": file_fingerprint(source.file)}
        for name, source in config.sources.items()
    }
    data = {key: settings[key] for key in ("template", "filters", "rewriting", "held_out", "questions", "seed")}
    all_stages = [
        Stage(
            "data",
            "pairs from dialogues",
            data | {"sources": sources, "queue": config.review.most},
            lambda folder: _build_checked_data(config, folder),
        ),
        Stage(
            "review",
            "people's review of the pairs",
            {"verdicts": config.review.fingerprint()},
            lambda folder: apply_review(config, folder),
        ),
        Stage("audit", "how well style alone predicts the better answer", {}, audit_style),
    ]
    variants = []
    for name, model in config.trained_models.items():
        start = model.model or str(Path(config.output) / f"{name}-base" / "run")
        variants.append(ModelVariant(name, "base", (start,)))
        if model.new is not None:
            new = {
                "sizes": model.new.model_dump(),
                **config.new_models.model_dump(mode="json"),
                "texts": file_fingerprint(str(config.new_models.texts)),
            }
            all_stages.append(Stage(f"{name}-base", f"{name} from scratch", new, _train_base(config, model.new)))
        weights = optional_weights_fingerprint(model.model)
        tuned = [_stage(config, name, "sft", seed, start, weights) for seed in config.seeds]
        sft_folders = {seed: _model_folder(config, name, "sft", seed) for seed in config.seeds}
        variants.append(ModelVariant(name, "sft", tuple(sft_folders.values())))
        for method in config.methods:
            tuned += [_stage(config, name, method, seed, sft_folders[seed], weights) for seed in config.seeds]
            variants.append(
                ModelVariant(name, method, tuple(_model_folder(config, name, method, seed) for seed in config.seeds))
            )
        all_stages += tuned
    answer_settings = {key: settings[key] for key in ("answer_tokens", "sheet")} | config.data.settings
    answer_settings |= {f"endpoint {name}": judge_settings(endpoint) for name, endpoint in config.endpoints.items()}
    return [
        *all_stages,
        Stage(
            "answers", "every model's answers", answer_settings, lambda folder: write_answers(config, variants, folder)
        ),
        Stage(
            "evaluation",
            "metrics of the answers",
            _metric_settings(config.measures),
            lambda folder: evaluate(config, variants, folder),
        ),
    ]


def _check(config: DialogueConfig) -> None:
    """Check every method's objective now, not only when the SFT models are trained."""
    for name, method in config.methods.items():
        sources = method.sources or list(config.sources)
        rated = any(config.sources[source].pairs == "ratings" for source in sources)
        pair = PreferenceGroup("", ("", ""), scores=(1.0, 0.0) if rated else None, preferred=None if rated else 0)
        rate = f"have rated answers: sources.{sources[0]}.pairs=ratings"
        setting = f"methods.{name}"
        check_tuning(setting, method.objective, method, [pair], setting, scores_fix=rate)


def _build_checked_data(config: DialogueConfig, folder: Path) -> StageResult:
    """Build the data and check that every base model can read it, before any model is trained."""
    counts = build_preference_data(config, folder)
    parts = [f"{kind}_{part}" for kind in ("preferences", "supervised") for part in ("train", "validation")]
    files = [folder / f"{name}.jsonl" for name in [*parts, "preferences_test"]]
    tokenizers = [_tokenizer(config, name, model, folder) for name, model in config.trained_models.items()]
    check_lengths(tokenizers, read_stage_groups("data", files), config.data)
    return counts


def _tokenizer(config: DialogueConfig, name: str, model: ModelConfig, data: Path) -> ModelTokenizer:
    """A base model's tokenizer; a new model's is trained on the supervised data in the folder `data`."""
    if model.new is None:
        return ModelTokenizer.load(str(model.model), config.data)
    return _new_base(config, model.new, data).tokenizer(f"{name} (context {model.new.context})", config.data)


def _metric_settings(measures: MeasuresConfig) -> dict[str, Any]:
    """Settings that decide the metrics, with fingerprints of files and models."""
    return {
        "bert_score": encoder_settings(measures.bert_score),
        "sentences": optional_weights_fingerprint(measures.sentences),
        "entailment": optional_weights_fingerprint(measures.entailment),
        "empathic": None if measures.empathic is None else file_fingerprint(measures.empathic),
        "judge": judge_settings(measures.judge),
        "rating": judge_settings(measures.rating),
    }


def _model_folder(config: DialogueConfig, model: str, method: str, seed: int) -> str:
    """The folder of a trained model; an SFT adapter is merged, since methods start from the full model."""
    folder = Path(config.output) / f"{model}-{method}-{seed}"
    return str(full_model_folder(folder, config.sft) if method == "sft" else folder / "run")


def _stage(config: DialogueConfig, model: str, method: str, seed: int, start: str, weights: str | None) -> Stage:
    """The stage that trains one model by a method; `weights` is the fingerprint of the base model's weights."""
    tuned: TuningConfig = config.sft if method == "sft" else config.methods[method]
    objective: Mapping[str, Any] = {"name": "sft"} if method == "sft" else config.methods[method].objective
    kind = "supervised" if method == "sft" else "preferences"
    keys = stage_keys("sft" if method == "sft" else f"methods.{method}", type(tuned))
    seeded = TuningConfig(training=tuned.training.model_copy(update={"seed": seed}), lora=tuned.lora)

    def run(folder: Path) -> StageResult:
        train = folder.parent / "review" / f"{kind}_train.jsonl"
        validation = folder.parent / "data" / f"{kind}_validation.jsonl"
        if isinstance(tuned, MethodConfig) and tuned.sources is not None:
            train, validation = (_write_pairs_of(tuned.sources, file, folder) for file in (train, validation))
        tune(folder, start, StageData(train, validation, config.data), objective, seeded, keys=keys)
        if method == "sft":
            write_full_model(folder, seeded)
        return {}

    settings = tuned.model_dump(mode="json")
    settings |= {"seed": seed, "model": config.models[model].model, "weights": weights}
    settings |= config.data.settings
    return Stage(f"{model}-{method}-{seed}", f"{model}: {method}, seed {seed}", settings, run)


def _write_pairs_of(sources: Sequence[str], file: Path, folder: Path) -> Path:
    """Write the pairs of some sources into a folder, under the name of the file that holds those of all.

    Raises:
        DataError: there is none.
    """
    groups = [group for group in read_groups(file).groups if group.source in sources]
    if not groups:
        raise DataError(
            f"no pair is of {', '.join(sources)}", where=str(file), fix="name more sources, or give more data"
        )
    write_anew(groups, folder / file.name)
    return folder / file.name


def _new_base(config: DialogueConfig, sizes: SizesConfig, data: Path) -> NewBase:
    """Settings of a new base model; `data` is the folder of the stage data."""
    new, tokenizer_files = config.new_models, [data / "supervised_train.jsonl"]
    keys = stage_keys("new_models", type(new))
    return NewBase(str(new.texts), new.chunk_words, sizes, new.training, tokenizer_files, config.seed, keys)


def _train_base(config: DialogueConfig, sizes: SizesConfig) -> Run:
    return lambda folder: _new_base(config, sizes, folder.parent / "data").train(folder)
