"""`penchant recipe dialogue`: preferences from dialogues, several models tuned on them, and their answers measured.

OUTPUT/data/              preferences and supervised data in parts, the test's questions, the queue for people
OUTPUT/review/            the training data without what people rejected
OUTPUT/audit/             what style gives away
OUTPUT/MODEL-base/        a base from nothing, where none is named
OUTPUT/MODEL-sft-SEED/run, OUTPUT/MODEL-METHOD-SEED/run
OUTPUT/answers/           every model's answers; sheets/ for people to compare two models by
OUTPUT/evaluation/        every answer's measures
OUTPUT/report.html, OUTPUT/result.json
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from penchant.data.groups import PreferenceGroup
from penchant.recipes.checking import check_tuning
from penchant.recipes.dialogue.config import DialogueConfig, MeasuresConfig, ModelConfig
from penchant.recipes.dialogue.data import audit, construct, review
from penchant.recipes.dialogue.evaluation import Row, answer_all, evaluate
from penchant.recipes.dialogue.report import write_result
from penchant.recipes.fingerprints import (
    encoder_settings,
    file_fingerprint,
    judge_settings,
    optional_weights_fingerprint,
)
from penchant.recipes.new_base import NewBase
from penchant.recipes.reading import ModelTokenizer, check_lengths, read_stage_groups
from penchant.recipes.small_llama import SizesConfig
from penchant.recipes.stages import Stage, StageResult, run_stages
from penchant.recipes.tuning import TuningConfig, full_model_folder, stage_keys, tune, write_full_model

Tell = Callable[[str], None]
Run = Callable[[Path], StageResult]


def dialogue(
    config: DialogueConfig, *, only: str | None = None, tell: Tell = lambda line: None
) -> dict[str, StageResult]:
    """Run the recipe, or one stage of it; what is done already is not done again.

    Returns:
        What each stage found.

    Raises:
        PenchantError: the data, configuration, models or endpoint are at fault.
    """
    folder = Path(config.output)
    _check(config)
    return run_stages(folder, stages(config), lambda found: write_result(folder, config, found), only=only, tell=tell)


def stages(config: DialogueConfig) -> list[Stage]:
    """All stages, in order."""
    settings = config.model_dump(mode="json")
    sources = {
        name: each.model_dump(exclude={"file"}) | {"contents": file_fingerprint(each.file)}
        for name, each in config.sources.items()
    }
    data = {key: settings[key] for key in ("template", "filters", "rewriting", "held_out", "questions", "seed")}
    listed = [
        Stage(
            "data",
            "pairs from dialogues",
            data | {"sources": sources, "queue": config.review.most},
            lambda folder: _constructed(config, folder),
        ),
        Stage(
            "review",
            "what people said of them",
            {"verdicts": config.review.fingerprint()},
            lambda place: review(config, place),
        ),
        Stage("audit", "what style gives away", {}, audit),
    ]
    rows = []
    for name, model in config.models.items():
        start = model.model or str(Path(config.output) / f"{name}-base" / "run")
        rows.append(Row(name, "base", (start,)))
        if model.new is not None:
            new = {
                "sizes": model.new.model_dump(),
                **config.new_models.model_dump(mode="json"),
                "texts": file_fingerprint(str(config.new_models.texts)),
            }
            listed.append(Stage(f"{name}-base", f"{name} from nothing", new, _train_base(config, model.new)))
        weights = optional_weights_fingerprint(model.model)
        tuned = [_stage(config, name, "sft", seed, start, weights) for seed in config.seeds]
        places = {seed: _place(config, name, "sft", seed) for seed in config.seeds}
        rows.append(Row(name, "sft", tuple(places.values())))
        for method in config.methods:
            tuned += [_stage(config, name, method, seed, places[seed], weights) for seed in config.seeds]
            rows.append(Row(name, method, tuple(_place(config, name, method, seed) for seed in config.seeds)))
        listed += tuned
    answered = {key: settings[key] for key in ("answer_tokens", "sheet")} | config.data.settings
    return [
        *listed,
        Stage("answers", "every model's answers", answered, lambda place: answer_all(config, rows, place)),
        Stage("evaluation", "what changed", _measured(config.measures), lambda place: evaluate(config, rows, place)),
    ]


def _check(config: DialogueConfig) -> None:
    """Refuse now what a method would refuse once the SFT models are there."""
    rated = any(source.pairs == "ratings" for source in config.sources.values())
    pair = PreferenceGroup("", ("", ""), scores=(1.0, 0.0) if rated else None, preferred=None if rated else 0)
    rate = f"have rated answers: sources.{next(iter(config.sources))}.pairs=ratings"
    for name, method in config.methods.items():
        setting = f"methods.{name}"
        check_tuning(setting, method.objective, method, [pair], setting, scores_fix=rate)


def _constructed(config: DialogueConfig, folder: Path) -> StageResult:
    """The data, read by every base model at once: a row that is too long is refused before anything is trained."""
    counts = construct(config, folder)
    parts = [f"{kind}_{part}" for kind in ("preferences", "supervised") for part in ("train", "validation")]
    files = [folder / f"{name}.jsonl" for name in [*parts, "preferences_test"]]
    readers = [_reader(config, name, model, folder) for name, model in config.models.items()]
    check_lengths(readers, read_stage_groups("data", files), config.data)
    return counts


def _reader(config: DialogueConfig, name: str, model: ModelConfig, data: Path) -> ModelTokenizer:
    """How a base model reads; `data` is the folder of the supervised data that a tokenizer from nothing learns from."""
    if model.new is None:
        return ModelTokenizer.load(str(model.model), config.data)
    return _new_base(config, model.new, data).tokenizer(f"{name} (context {model.new.context})", config.data)


def _measured(measures: MeasuresConfig) -> dict[str, Any]:
    """What decides measures: files and models by their contents."""
    return {
        "bert_score": encoder_settings(measures.bert_score),
        "sentences": optional_weights_fingerprint(measures.sentences),
        "entailment": optional_weights_fingerprint(measures.entailment),
        "empathic": None if measures.empathic is None else file_fingerprint(measures.empathic),
        "judge": judge_settings(measures.judge),
    }


def _place(config: DialogueConfig, model: str, method: str, seed: int) -> str:
    """Of a tuned model; an adapter is merged where methods go on from it."""
    place = Path(config.output) / f"{model}-{method}-{seed}"
    return str(full_model_folder(place, config.sft) if method == "sft" else place / "run")


def _stage(config: DialogueConfig, model: str, method: str, seed: int, start: str, weights: str | None) -> Stage:
    """Tuning by a method, with a seed, from a model; `weights` are of the base that was named."""
    tuned: TuningConfig = config.sft if method == "sft" else config.methods[method]
    objective: Mapping[str, Any] = {"name": "sft"} if method == "sft" else config.methods[method].objective
    kind = "supervised" if method == "sft" else "preferences"
    keys = stage_keys("sft" if method == "sft" else f"methods.{method}", type(tuned))
    seeded = TuningConfig(training=tuned.training.model_copy(update={"seed": seed}), lora=tuned.lora)

    def run(place: Path) -> StageResult:
        train = place.parent / "review" / f"{kind}_train.jsonl"
        tune(
            place,
            start,
            train,
            place.parent / "data" / f"{kind}_validation.jsonl",
            objective,
            seeded,
            keys=keys,
            reading=config.data,
        )
        if method == "sft":
            write_full_model(place, seeded)
        return {}

    settings = tuned.model_dump(mode="json")
    settings |= {"seed": seed, "model": config.models[model].model, "weights": weights}
    settings |= config.data.settings
    return Stage(f"{model}-{method}-{seed}", f"{model}: {method}, seed {seed}", settings, run)


def _new_base(config: DialogueConfig, sizes: SizesConfig, data: Path) -> NewBase:
    """How a base is made; `data` is the folder of stage data."""
    new, also = config.new_models, [data / "supervised_train.jsonl"]
    keys = stage_keys("new_models", type(new))
    return NewBase(str(new.texts), new.chunk_words, sizes, new.training, also, config.seed, keys)


def _train_base(config: DialogueConfig, sizes: SizesConfig) -> Run:
    return lambda folder: _new_base(config, sizes, folder.parent / "data").train(folder)
