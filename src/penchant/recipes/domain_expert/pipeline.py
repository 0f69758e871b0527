"""`penchant recipe domain-expert`: adapt a base to a domain, restore instruction following, train experts and a router.

OUTPUT/data/           the domain's text and every set of groups, split into parts
OUTPUT/base/           trained from scratch, if none is named
OUTPUT/instruct/       the base, trained on the instructions, if no sibling is named
OUTPUT/adapted/        the base, trained on the domain's text
OUTPUT/residual/model  the adapted model with the instruction residual; the tried scales are in its stage.json
OUTPUT/conversation/run, OUTPUT/structured/run    the experts
OUTPUT/single/run      one model for all of it, in place of the two experts
OUTPUT/router/         router.json, and every test request's decision
OUTPUT/evaluation/     every model's answers
OUTPUT/report.html, OUTPUT/result.json
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from penchant.api import (
    DataError,
    PreferenceGroup,
    add_residual,
    file_fingerprint,
    locate_errors,
    merge_adapter,
    optional_weights_fingerprint,
    read_groups,
    split_by_prompt,
    write_anew,
)
from penchant.recipes.domain_expert.config import DomainExpertConfig
from penchant.recipes.domain_expert.evaluation import build_report, evaluate
from penchant.recipes.domain_expert.routing import PromptSet, mean_values, perplexity, route, routing_groups
from penchant.recipes.reading import ModelTokenizer, check_lengths, encoder_settings, judge_settings, read_stage_groups
from penchant.recipes.stages import Stage, StageResult, run_stages, write_result
from penchant.recipes.texts import NewBase, clean_passages, read_passages, split_by_section, text_groups
from penchant.recipes.tuning import (
    StageData,
    TuningConfig,
    check_tuning,
    full_model_folder,
    stage_keys,
    tune,
    write_full_model,
)

PARTS = ("train", "validation", "test")


def prepare(config: DomainExpertConfig, folder: Path) -> StageResult:
    """Write the texts in two parts and every set of groups in three; the result counts what was left out."""
    rules = config.texts
    passages = read_passages(rules.file, text=rules.text, section=rules.section)
    excluded = [] if rules.excluded is None else [passage.text for passage in read_passages(rules.excluded)]
    remaining_passages, dropped = clean_passages(passages, excluded, rules.cleaning)
    counts = {}
    train_passages, held_out_passages = split_by_section(remaining_passages, rules.held_out, config.seed)
    for name, part in (("texts_train", train_passages), ("texts_held_out", held_out_passages)):
        counts[name] = _write(folder / f"{name}.jsonl", text_groups(part, rules.chunk_words))
    for name in config.sets:
        file = getattr(config, name)
        groups = read_preferences(file) if name == "preferences" else read_groups(file).groups
        with locate_errors(file):
            training_and_validation, test = split_by_prompt(groups, held_out=config.held_out, seed=config.seed)
            share = config.held_out / (1 - config.held_out)
            train, validation = split_by_prompt(training_and_validation, held_out=share, seed=config.seed)
        for part_name, split in zip(PARTS, (train, validation, test), strict=True):
            counts[f"{name}_{part_name}"] = _write(folder / f"{name}_{part_name}.jsonl", split)
    return {"passages": len(passages), "left_out": dropped, "groups": counts}


def read_preferences(file: str) -> list[PreferenceGroup]:
    """The groups of a file, all of which must prefer an answer.

    Raises:
        DataError: a group prefers no answer, or the file cannot be read.
    """
    groups = read_groups(file).groups
    if not all(group.pairs for group in groups):
        raise DataError("a group prefers no answer", where=file, fix="give chosen and rejected")
    return list(groups)


def _write(file: Path, groups: Sequence[PreferenceGroup]) -> int:
    write_anew(groups, file)
    return len(groups)


Run = Callable[[Path], StageResult]


def domain_expert(config: DomainExpertConfig, *, only_stage: str | None = None) -> dict[str, StageResult]:
    """The result of every stage by its name, after a run of all unfinished stages, or of the stage `only`.

    Raises:
        PenchantError: the data, configuration or models are at fault.
    """
    folder = Path(config.output)
    _check_preferences(config)

    def finish(results: Mapping[str, StageResult]) -> None:
        write_result(folder, config, results, build_report(results))

    return run_stages(folder, stages(config), finish, only_stage=only_stage)


def stages(config: DomainExpertConfig) -> list[Stage]:
    """All stages in order."""
    folder = Path(config.output)
    settings = config.model_dump(mode="json")
    files = {name: getattr(config, name) for name in config.sets}
    files |= {"texts": config.texts.file} | ({"excluded": config.texts.excluded} if config.texts.excluded else {})
    data: dict[str, Any] = {name: file_fingerprint(file) for name, file in files.items()}
    data |= {"rules": config.texts.model_dump(exclude={"file", "excluded"})}
    data |= {key: settings[key] for key in ("held_out", "seed", "base", "instruct")}
    answer_settings = {key: settings[key] for key in ("answers", "answer_tokens")}
    base, instruct = config.base or str(folder / "base" / "run"), config.instruct or str(folder / "instruct" / "run")
    chosen = str(folder / "residual" / "model")
    stage_list = [
        Stage("data", "split of text and groups into parts", data, lambda folder: _prepare_checked(config, folder))
    ]
    if config.base is None:
        new = settings["new_models"] | {"texts": file_fingerprint(str(config.new_models.texts))}
        stage_list.append(Stage("base", "training of a base from scratch", new, _base_stage(config)))
    if config.instruct is None:
        sibling = config.data.settings
        if config.base is not None:
            sibling |= {
                "training": settings["new_models"]["instruct"],
                "base": optional_weights_fingerprint(config.base),
            }
        stage_list.append(Stage("instruct", "training of its instruct sibling", sibling, _instruct_stage(config, base)))
    conversation = stage_keys("conversation", type(config.conversation))
    return [
        *stage_list,
        Stage(
            "adapted",
            "pretraining on the domain's text",
            settings["adaptation"] | {"base": optional_weights_fingerprint(config.base)} | config.data.settings,
            _adapted_stage(config, base),
        ),
        Stage(
            "residual",
            "the instruction residual, at several scales",
            settings["residual"] | answer_settings | {"instruct": optional_weights_fingerprint(config.instruct)},
            _residual_stage(config, base, instruct),
        ),
        Stage(
            "conversation",
            "the expert in conversation",
            settings["conversation"],
            _expert_stage(
                config, "preferences", chosen, config.conversation.objective, config.conversation, conversation
            ),
        ),
        Stage(
            "structured",
            "the expert in structured tasks",
            settings["structured"] | {key: settings["router"][key] for key in ("taught", "shots", "names")},
            _structured_stage(config, chosen),
        ),
        Stage(
            "single",
            "one model for all that the experts do",
            {},
            _single_stage(config, conversation),
        ),
        Stage(
            "router",
            "the router and its decisions",
            settings["router"],
            lambda stage_folder: route(config, stage_folder),
        ),
        Stage(
            "evaluation",
            "every model on held-out data",
            {
                "bert_score": encoder_settings(config.bert_score),
                "judge": judge_settings(config.judge),
                "rating": judge_settings(config.rating),
            },
            lambda stage_folder: evaluate(config, stage_folder, base, instruct, str(adapted(config))),
        ),
    ]


def _check_preferences(config: DomainExpertConfig) -> None:
    """Raise the errors now that the expert in conversation would raise after the earlier stages."""
    expert, file = config.conversation, config.preferences
    score = f"write scores beside the preferences: penchant score {file} --output NEW.jsonl --model MODEL"
    scores_fix = f"{score}, then preferences=NEW.jsonl"
    check_tuning("conversation", expert.objective, expert, read_preferences(file), file, scores_fix=scores_fix)


def _prepare_checked(config: DomainExpertConfig, folder: Path) -> StageResult:
    """The counts of `prepare`, after a check that the base and its sibling can read every row at its length."""
    counts = prepare(config, folder)
    check_lengths(_readers(config, folder), read_stage_groups("data", sorted(folder.glob("*.jsonl"))), config.data)
    return counts


def _readers(config: DomainExpertConfig, data: Path) -> list[ModelTokenizer]:
    """The tokenizers and limits of the base and its sibling.

    Args:
        data: the folder of stage data, which the tokenizer of a base trained from scratch learns from.
    """
    if config.base is not None:
        sources = dict.fromkeys(filter(None, (config.base, config.instruct)))
        return [ModelTokenizer.load(source, config.data) for source in sources]
    name = f"the base trained from scratch (context {config.new_models.context})"
    return [_new_base(config, data).tokenizer(name, config.data)]


def _new_base(config: DomainExpertConfig, data: Path) -> NewBase:
    """The settings of a base trained from scratch; `data` is the folder of stage data."""
    new, vocabulary_files = config.new_models, [data / f"{name}_train.jsonl" for name in ("instructions", "tasks")]
    keys = stage_keys("new_models", type(new))
    return NewBase(str(new.texts), config.texts.chunk_words, new, new.training, vocabulary_files, config.seed, keys)


def adapted(config: DomainExpertConfig) -> Path:
    """The adapted model's folder; an adapter is merged."""
    return full_model_folder(Path(config.output) / "adapted", config.adaptation)


def _base_stage(config: DomainExpertConfig) -> Run:
    return lambda folder: _new_base(config, folder.parent / "data").train(folder)


def _instruct_stage(config: DomainExpertConfig, base: str) -> Run:
    tuned, keys = TuningConfig(training=config.new_models.instruct), {"training.": "new_models.instruct."}
    return _expert_stage(config, "instructions", base, {"name": "sft"}, tuned, keys)


def _adapted_stage(config: DomainExpertConfig, base: str) -> Run:
    def run(folder: Path) -> StageResult:
        data = folder.parent / "data"
        held_out = data / "texts_held_out.jsonl"
        texts = StageData(data / "texts_train.jsonl", held_out, config.data)
        tune(folder, base, texts, {"name": "sft"}, config.adaptation, keys=stage_keys("adaptation"))
        write_full_model(folder, config.adaptation)
        return {
            "perplexity_before": perplexity(base, held_out, config).to_json(),
            "perplexity": perplexity(str(adapted(config)), held_out, config).to_json(),
        }

    return run


def _residual_stage(config: DomainExpertConfig, base: str, instruct: str) -> Run:
    def run(folder: Path) -> StageResult:
        data = folder.parent / "data"
        prompts = PromptSet.from_file(data / "instructions_validation.jsonl", config.answers)
        results, scores = [], []
        for scale in config.residual.scales:
            model = folder / f"scale-{scale:g}"
            shutil.rmtree(model, ignore_errors=True)
            add_residual(str(adapted(config)), base, instruct, model, scale=scale)
            answers = prompts.answer(str(model), config)
            f1 = mean_values(prompts.values("instructions", answers))["instructions_f1"]
            scores.append(f1.value)
            results.append(
                {
                    "scale": scale,
                    "instructions_f1": f1.to_json(),
                    "perplexity": perplexity(str(model), data / "texts_held_out.jsonl", config).to_json(),
                }
            )
        # The scales are sorted, so that of equal ones the smallest is chosen.
        best = config.residual.scales[max(range(len(results)), key=lambda n: scores[n])]
        shutil.rmtree(folder / "model", ignore_errors=True)
        for scale in config.residual.scales:
            model = folder / f"scale-{scale:g}"
            if scale == best:
                model.rename(folder / "model")
            else:
                shutil.rmtree(model)
        return {"scales": results, "chosen": best}

    return run


def _structured_stage(config: DomainExpertConfig, start: str) -> Run:
    def run(folder: Path) -> StageResult:
        data, sets = folder.parent / "data", config.sets_by_expert["structured"]
        train, held_out = (
            [group for name in sets for group in read_groups(data / f"{name}_{part}.jsonl").groups]
            for part in ("train", "validation")
        )
        groups = routing_groups(config, data)
        write_anew([*train, *groups], folder / "train.jsonl")
        write_anew(held_out, folder / "validation.jsonl")
        tasks = StageData(folder / "train.jsonl", folder / "validation.jsonl", config.data)
        tune(folder, start, tasks, {"name": "sft"}, config.structured, keys=stage_keys("structured"))
        return {"routing_rows": len(groups)}

    return run


def _single_stage(config: DomainExpertConfig, keys: Mapping[str, str]) -> Run:
    """The conversation expert's training, from the structured expert: one model, with the data and steps of both."""

    def run(folder: Path) -> StageResult:
        start = folder.parent / "structured" / "run"
        if config.structured.lora is not None:
            start = folder / "start"
            if not start.exists():
                merge_adapter(str(folder.parent / "structured" / "run"), start)
        expert = config.conversation
        return _expert_stage(config, "preferences", str(start), expert.objective, expert, keys)(folder)

    return run


def _expert_stage(
    config: DomainExpertConfig,
    name: str,
    start: str,
    objective: Mapping[str, object],
    tuned: TuningConfig,
    keys: Mapping[str, str],
) -> Run:
    def run(folder: Path) -> StageResult:
        data = folder.parent / "data"
        groups = StageData(data / f"{name}_train.jsonl", data / f"{name}_validation.jsonl", config.data)
        tune(folder, start, groups, objective, tuned, keys=keys)
        return {}

    return run
