"""`penchant recipe domain-expert`: adapt to a field, follow instructions again, two experts, a router before them.

OUTPUT/data/           the field's text and every set of groups, in parts
OUTPUT/base/, OUTPUT/instruct/    both trained from nothing, where they are not named
OUTPUT/adapted/        the base, trained on the field's text
OUTPUT/residual/model  the adapted model with the instruction residual; the scales tried are in its stage.json
OUTPUT/conversation/run, OUTPUT/structured/run    the experts
OUTPUT/router/         router.json, and every test request's decision
OUTPUT/evaluation/     every model's answers
OUTPUT/report.html, OUTPUT/result.json
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from penchant.data.reading import read_groups
from penchant.data.writing import write_anew
from penchant.engine.residual import add_residual
from penchant.recipes.checking import check_tuning
from penchant.recipes.domain_expert.config import DomainExpertConfig
from penchant.recipes.domain_expert.data import prepare, read_preferences
from penchant.recipes.domain_expert.evaluation import evaluate, write_result
from penchant.recipes.domain_expert.measures import Asked, perplexity
from penchant.recipes.domain_expert.routing import lessons, route
from penchant.recipes.fingerprints import (
    encoder_settings,
    file_fingerprint,
    judge_settings,
    optional_weights_fingerprint,
)
from penchant.recipes.new_base import NewBase
from penchant.recipes.reading import ModelTokenizer, check_lengths, read_stage_groups
from penchant.recipes.stages import Stage, StageResult, run_stages
from penchant.recipes.tuning import TuningConfig, full_model_folder, stage_keys, tune, write_full_model

Tell = Callable[[str], None]
Run = Callable[[Path], StageResult]


def domain_expert(
    config: DomainExpertConfig, *, only: str | None = None, tell: Tell = lambda line: None
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


def stages(config: DomainExpertConfig) -> list[Stage]:
    """All stages, in order."""
    folder = Path(config.output)
    settings = config.model_dump(mode="json")
    files = {name: getattr(config, name) for name in ("instructions", "preferences", "tasks")}
    files |= {"texts": config.texts.file} | ({"excluded": config.texts.excluded} if config.texts.excluded else {})
    data: dict[str, Any] = {name: file_fingerprint(file) for name, file in files.items()}
    data |= {"rules": config.texts.model_dump(exclude={"file", "excluded"})}
    data |= {key: settings[key] for key in ("held_out", "seed", "base", "instruct")}
    measured = {key: settings[key] for key in ("answers", "answer_tokens")}
    base, instruct = config.base or str(folder / "base" / "run"), config.instruct or str(folder / "instruct" / "run")
    chosen = str(folder / "residual" / "model")
    listed = [Stage("data", "text and groups in parts", data, lambda folder: _prepared(config, folder))]
    if config.base is None:
        new = settings["new_models"] | {"texts": file_fingerprint(str(config.new_models.texts))}
        listed += [
            Stage("base", "a base from nothing", new, _train_base(config)),
            Stage("instruct", "its instruct sibling", config.data.settings, _new_instruct(config, base)),
        ]
    conversation = stage_keys("conversation", type(config.conversation))
    return [
        *listed,
        Stage(
            "adapted",
            "pretraining on the field's text",
            settings["adaptation"] | {"base": optional_weights_fingerprint(config.base)} | config.data.settings,
            _adapt(config, base),
        ),
        Stage(
            "residual",
            "the instruction residual, at several scales",
            settings["residual"] | measured | {"instruct": optional_weights_fingerprint(config.instruct)},
            _residual(config, base, instruct),
        ),
        Stage(
            "conversation",
            "the expert in conversation",
            settings["conversation"],
            _expert(config, "preferences", chosen, config.conversation.objective, config.conversation, conversation),
        ),
        Stage(
            "structured",
            "the expert in structured tasks",
            settings["structured"] | {key: settings["router"][key] for key in ("taught", "shots", "names")},
            _structured(config, chosen),
        ),
        Stage("router", "who answers which request", settings["router"], lambda place: route(config, place)),
        Stage(
            "evaluation",
            "every model on what was held out",
            {"bert_score": encoder_settings(config.bert_score), "judge": judge_settings(config.judge)},
            lambda place: evaluate(config, place, base, instruct, str(adapted(config))),
        ),
    ]


def _check(config: DomainExpertConfig) -> None:
    """Refuse now what the expert in conversation would refuse after all stages before it."""
    expert, file = config.conversation, config.preferences
    score = f"write scores beside the preferences: penchant score {file} --output NEW.jsonl --model MODEL"
    scores_fix = f"{score}, then preferences=NEW.jsonl"
    check_tuning("conversation", expert.objective, expert, read_preferences(file), file, scores_fix=scores_fix)


def _prepared(config: DomainExpertConfig, folder: Path) -> StageResult:
    """The data, read by the base and its sibling at once: a row that is too long is refused before training."""
    counts = prepare(config, folder)
    check_lengths(_readers(config, folder), read_stage_groups("data", sorted(folder.glob("*.jsonl"))), config.data)
    return counts


def _readers(config: DomainExpertConfig, data: Path) -> list[ModelTokenizer]:
    """How the base and its sibling read; `data` is the folder that the tokenizer of a base from nothing learns from."""
    if config.base is not None:
        sources = dict.fromkeys((config.base, str(config.instruct)))
        return [ModelTokenizer.load(source, config.data) for source in sources]
    name = f"the base from nothing (context {config.new_models.context})"
    return [_new_base(config, data).tokenizer(name, config.data)]


def _new_base(config: DomainExpertConfig, data: Path) -> NewBase:
    """How the base is made; `data` is the folder of stage data."""
    new, also = config.new_models, [data / f"{name}_train.jsonl" for name in ("instructions", "tasks")]
    keys = stage_keys("new_models", type(new))
    return NewBase(str(new.texts), config.texts.chunk_words, new, new.training, also, config.seed, keys)


def adapted(config: DomainExpertConfig) -> Path:
    """The adapted model's folder; an adapter is merged."""
    return full_model_folder(Path(config.output) / "adapted", config.adaptation)


def _train_base(config: DomainExpertConfig) -> Run:
    return lambda folder: _new_base(config, folder.parent / "data").train(folder)


def _new_instruct(config: DomainExpertConfig, base: str) -> Run:
    tuned, keys = TuningConfig(training=config.new_models.instruct), {"training.": "new_models.instruct."}
    return _expert(config, "instructions", base, {"name": "sft"}, tuned, keys)


def _adapt(config: DomainExpertConfig, base: str) -> Run:
    def run(place: Path) -> StageResult:
        data = place.parent / "data"
        train, held_out = data / "texts_train.jsonl", data / "texts_held_out.jsonl"
        keys = stage_keys("adaptation")
        tune(place, base, train, held_out, {"name": "sft"}, config.adaptation, keys=keys, reading=config.data)
        write_full_model(place, config.adaptation)
        return {
            "perplexity_before": perplexity(base, held_out, config).to_json(),
            "perplexity": perplexity(str(adapted(config)), held_out, config).to_json(),
        }

    return run


def _residual(config: DomainExpertConfig, base: str, instruct: str) -> Run:
    def run(place: Path) -> StageResult:
        data = place.parent / "data"
        asked = Asked.of(data / "instructions_validation.jsonl", config.answers)
        tried, scores = [], []
        for scale in config.residual.scales:
            model = place / f"scale-{scale:g}"
            shutil.rmtree(model, ignore_errors=True)
            add_residual(str(adapted(config)), base, instruct, model, scale=scale)
            answers = asked.answered(str(model), config)
            f1 = asked.measures("instructions", answers)["instructions_f1"]
            scores.append(f1.value)
            tried.append(
                {
                    "scale": scale,
                    "instructions_f1": f1.to_json(),
                    "perplexity": perplexity(str(model), data / "texts_held_out.jsonl", config).to_json(),
                }
            )
        # Of equals the smallest, which is tried first.
        best = config.residual.scales[max(range(len(tried)), key=lambda n: scores[n])]
        shutil.rmtree(place / "model", ignore_errors=True)
        for scale in config.residual.scales:
            model = place / f"scale-{scale:g}"
            if scale == best:
                model.rename(place / "model")
            else:
                shutil.rmtree(model)
        return {"scales": tried, "chosen": best}

    return run


def _structured(config: DomainExpertConfig, start: str) -> Run:
    def run(place: Path) -> StageResult:
        data = place.parent / "data"
        taught = lessons(config, data)
        write_anew([*read_groups(data / "tasks_train.jsonl").groups, *taught], place / "train.jsonl")
        files = place / "train.jsonl", data / "tasks_validation.jsonl"
        keys = stage_keys("structured")
        tune(place, start, *files, {"name": "sft"}, config.structured, keys=keys, reading=config.data)
        return {"routing_rows": len(taught)}

    return run


def _expert(
    config: DomainExpertConfig,
    name: str,
    start: str,
    objective: Mapping[str, object],
    tuned: TuningConfig,
    keys: Mapping[str, str],
) -> Run:
    def run(place: Path) -> StageResult:
        data = place.parent / "data"
        files = data / f"{name}_train.jsonl", data / f"{name}_validation.jsonl"
        tune(place, start, *files, objective, tuned, keys=keys, reading=config.data)
        return {}

    return run
