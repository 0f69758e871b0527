"""`penchant recipe tool-calling`: small agents, trained in several ways and in sequences of steps.

OUTPUT/data/              questions split into parts (in the leaderboard's form), supervised groups
OUTPUT/base/              the base trained from scratch, if none is named
OUTPUT/STEP-...-SEED/run  a path's model after each of its steps
OUTPUT/pairs/, OUTPUT/review/    pairs of right and wrong answers, and those that people accepted
OUTPUT/reward/            prompts, and the reward function of their answers
OUTPUT/evaluation/        every model's answers to the test questions
OUTPUT/report.html, OUTPUT/result.json
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from penchant.api import (
    STYLES,
    DataError,
    PreferenceGroup,
    Tags,
    ToolQuestion,
    as_text,
    file_fingerprint,
    gguf_library,
    grammar_library,
    llama_cpp_library,
    optional_weights_fingerprint,
    prompts_to_answer,
    read_bfcl,
    rename_options_in_errors,
    require_readable_calls,
    write_anew,
    write_atomically,
    write_bfcl,
)
from penchant.recipes.reading import ModelTokenizer, check_lengths, read_stage_groups
from penchant.recipes.stages import Stage, StageResult, run_stages, write_result
from penchant.recipes.texts import NewBase
from penchant.recipes.tool_calling.config import StepConfig, ToolCallingConfig
from penchant.recipes.tool_calling.data import PAIRED, REWARDED, as_group, fresh_questions, prepare
from penchant.recipes.tool_calling.evaluation import Row, build_report, evaluate
from penchant.recipes.tool_calling.pairs import make_pairs, review
from penchant.recipes.tuning import (
    StageData,
    TuningConfig,
    full_model_folder,
    stage_keys,
    tune,
    tuning_run,
    write_full_model,
)

Reward = Callable[[object, Sequence[object]], list[float]]

MODULE = '''"""Written by the recipe: the reward of an answer to these questions."""

from pathlib import Path

from penchant.recipes.tool_calling.pipeline import reward_of

score = reward_of(Path(__file__).parent / "questions", "{style}")
'''


def prepare_reward(config: ToolCallingConfig, folder: Path) -> StageResult:
    """Write the prompts, their questions and the reward function in `reward.py`; the result counts the prompts."""
    candidates = fresh_questions(config, folder.parent / "data", REWARDED)
    # The reward function finds a question by its prompt: of two questions with one prompt the first counts.
    by_prompt = {as_text(as_group(config, question).prompt): question for question in reversed(candidates)}
    questions = [*reversed(by_prompt.values())]
    write_bfcl(questions, folder / "questions")
    write_anew([as_group(config, question) for question in questions], folder / "train.jsonl")
    write_atomically(folder / "reward.py", MODULE.replace("{style}", config.style))
    return {"prompts": len(questions)}


def reward_of(folder: Path, style_name: str) -> Reward:
    """The reward function of a folder's questions, which finds a question by the text of its prompt.

    Args:
        style_name: the style of prompts and answers.

    Raises:
        DataError: the reward function is called with a prompt of no question.
    """
    style = STYLES[style_name]
    by_prompt: dict[str, ToolQuestion] = {}
    for question in read_bfcl(folder)[0]:
        by_prompt.setdefault(as_text(style.ask(question)), question)

    def score(prompt: object, responses: Sequence[object]) -> list[float]:
        question = by_prompt.get(as_text(prompt))  # type: ignore[arg-type]
        if question is None:
            raise DataError("a prompt belongs to no question", where=str(folder), fix="run the stage again")
        texts = (as_text(response) for response in responses)  # type: ignore[arg-type]
        return [float(question.fault(style.read(text, question)) is None) for text in texts]

    return score


def prepare_checked(config: ToolCallingConfig, folder: Path) -> StageResult:
    """The counts of `prepare`, after every stage's questions were tokenized and checked with the base's tokenizer.

    Raises:
        DataError: a question with its right answer is too long, or cannot be read.
        ConfigError: a question leaves no room for the answers that a step samples.
    """
    counts = prepare(config, folder)
    if config.model is not None:
        reader = ModelTokenizer.load(config.model, config.data)
        if config.style == "native":
            require_readable_calls(reader.tokenizer, config.data.rendering("last"))
    else:
        name = f"the base trained from scratch (context {config.new_model.context})"
        reader = new_base(config, folder).tokenizer(name, config.data)
    groups = read_stage_groups("data", [folder / f"supervised_{part}.jsonl" for part in ("train", "validation")])
    questions = {"the questions of stage evaluation": read_bfcl(folder / "test")[0]}
    kinds = {step.learns for step in config.steps.values()}
    if "pairs" in kinds:
        questions["the questions of stage pairs"] = fresh_questions(config, folder, PAIRED)
    if "reward" in kinds:
        questions["the prompts of stage reward"] = fresh_questions(config, folder, REWARDED)
    groups |= {source: [as_group(config, question) for question in part] for source, part in questions.items()}
    check_lengths([reader], groups, config.data)
    for name, step in config.steps.items():
        if step.learns == "reward":
            _check_room(config, name, step, reader, groups["the prompts of stage reward"])
    return counts


def new_base(config: ToolCallingConfig, data: Path) -> NewBase:
    """The settings of a base model trained from scratch.

    Args:
        data: the folder of stage data.
    """
    new, vocabulary_files = config.new_model, [data / "supervised_train.jsonl"]
    keys = stage_keys("new_model", type(new))
    return NewBase(str(new.texts), new.chunk_words, new, new.training, vocabulary_files, config.seed, keys)


def _check_room(
    config: ToolCallingConfig, name: str, step: StepConfig, reader: ModelTokenizer, prompts: Sequence[PreferenceGroup]
) -> None:
    """Raise a ConfigError if a prompt leaves no room for the answers that a step samples."""
    keys = stage_keys(f"steps.{name}", StepConfig)
    # The check reads neither the file of prompts nor the reward function.
    online = {"sampling": step.sampling.model_dump(), "reward": {"function": "reward.py:score"}}
    data = StageData(Path("the prompts of stage reward"), reading=config.data)
    run = tuning_run(Path(name), "", data, step.objective, step, keys=keys, online=online)
    with rename_options_in_errors(keys):
        prompts_to_answer(run, prompts, reader.tokenizer, reader.max_tokens(config.data))


Run = Callable[[Path], StageResult]
Steps = tuple[str, ...]

FILES = {
    "answers": ("data/supervised_train.jsonl", "data/supervised_validation.jsonl"),
    "pairs": ("review/train.jsonl", "pairs/validation.jsonl"),
    "reward": ("reward/train.jsonl", None),
}
"""The training and validation files by what a step learns from; sampled answers have no validation file."""


def tool_calling(config: ToolCallingConfig, *, only_stage: str | None = None) -> dict[str, StageResult]:
    """The result of every stage by its name, after a run of all unfinished stages, or of the stage `only`.

    Raises:
        PenchantError: the data, configuration or models are at fault; the package `llguidance` is missing.
    """
    folder = Path(config.output)
    _check(config)

    def finish(results: Mapping[str, StageResult]) -> None:
        write_result(folder, config, results, build_report(results))

    return run_stages(folder, stages(config), finish, only_stage=only_stage)


def stages(config: ToolCallingConfig) -> list[Stage]:
    """All stages in order: steps that learn answers, then pairs and prompts, then the steps that need these."""
    settings = config.model_dump(mode="json")
    base = config.model or str(Path(config.output) / "base" / "run")
    stage_list = [
        Stage(
            "data",
            "split of questions into parts",
            _data_settings(config, settings),
            lambda folder: prepare_checked(config, folder),
        )
    ]
    if config.model is None:
        new = settings["new_model"] | {"texts": file_fingerprint(str(config.new_model.texts))}
        stage_list.append(Stage("base", "training of a base from scratch", new, _train_base(config)))
    sequences = list(
        dict.fromkeys(tuple(steps[:n]) for steps in config.paths.values() for n in range(1, len(steps) + 1))
    )
    signals = {config.steps[step].learns for steps in sequences for step in steps}
    answers = [steps for steps in sequences if all(config.steps[step].learns == "answers" for step in steps)]
    stage_list += [_stage(config, steps, seed, base) for steps in answers for seed in config.seeds]
    if "pairs" in signals:
        weaker = config.pairs.weaker
        pair_settings = settings["pairs"] | {"queue": config.review.most, "answer_tokens": config.answer_tokens}
        if weaker in config.paths:
            pair_settings |= {"weaker_steps": config.paths[weaker], "seed": config.seeds[0]}
            weaker = str(_model(config, tuple(config.paths[weaker]), config.seeds[0]))
        elif weaker == "base":
            weaker = base
        stage_list += [
            Stage(
                "pairs",
                "pairs of right and wrong answers",
                pair_settings,
                lambda folder: make_pairs(config, weaker, folder),
            ),
            Stage(
                "review",
                "verdicts of people on the pairs",
                {"verdicts": config.review.fingerprint()},
                lambda folder: review(config, folder),
            ),
        ]
    if "reward" in signals:
        reward_settings = {"variants": config.pairs.variants}
        description = "prompts and their reward function"
        stage_list.append(Stage("reward", description, reward_settings, lambda folder: prepare_reward(config, folder)))
    stage_list += [
        _stage(config, steps, seed, base) for steps in sequences if steps not in answers for seed in config.seeds
    ]
    rows = [Row("base", (base,))]
    for name, steps in config.paths.items():
        rows.append(Row(name, tuple(str(_model(config, tuple(steps), seed)) for seed in config.seeds)))
    evaluation_settings = {key: settings[key] for key in ("paths", "seeds", "answer_tokens", "timed", "constrained")}
    evaluation_settings |= config.data.settings
    # Left out where it is off: evaluations that were done before the setting existed stay valid.
    evaluation_settings |= {"llama_cpp": True} if config.llama_cpp else {}
    # Every path is compared with the first one, and the saved dict of paths does not keep their order.
    evaluation_settings["order"] = list(config.paths)
    return [
        *stage_list,
        Stage(
            "evaluation",
            "answers on held-out functions",
            evaluation_settings,
            lambda folder: evaluate(config, rows, folder),
        ),
    ]


def _check(config: ToolCallingConfig) -> None:
    """Raise the errors now that the last stage would raise."""
    if config.llama_cpp:
        llama_cpp_library()
        gguf_library()
    if config.constrained:
        grammar_library()
        for question in read_bfcl(Path(config.questions))[0]:
            STYLES[config.style].grammar(question, Tags(None, None))


def _data_settings(config: ToolCallingConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings and file hashes that decide the result of stage data."""
    data_settings = {key: settings[key] for key in ("style", "held_out", "variants", "mismatched", "seed")}
    files = sorted(Path(config.questions).rglob("BFCL_v*"))
    data_settings["questions"] = {
        str(file.relative_to(config.questions)): file_fingerprint(str(file)) for file in files
    }
    data_settings["trajectories"] = None if config.trajectories is None else file_fingerprint(config.trajectories)
    return data_settings


def _step_folder(config: ToolCallingConfig, steps: Steps, seed: int) -> Path:
    return Path(config.output) / f"{'-'.join(steps)}-{seed}"


def _model(config: ToolCallingConfig, steps: Steps, seed: int) -> Path:
    """The folder of the model after some steps; an adapter is merged."""
    return full_model_folder(_step_folder(config, steps, seed), config.steps[steps[-1]])


def _stage(config: ToolCallingConfig, steps: Steps, seed: int, base: str) -> Stage:
    """The stage of the last of some steps, which starts from the model of the steps before it."""
    step = config.steps[steps[-1]]
    start = str(_model(config, steps[:-1], seed)) if steps[:-1] else base
    tuned = TuningConfig(training=step.training.model_copy(update={"seed": seed}), lora=step.lora)

    def run(folder: Path) -> StageResult:
        train, validation = FILES[step.learns]
        online = None
        if step.learns == "reward":
            score = f"{(folder.parent / 'reward' / 'reward.py').resolve()}:score"
            online = {"sampling": step.sampling.model_dump(), "reward": {"function": score}}
        held_out = None if validation is None else folder.parent / validation
        data = StageData(folder.parent / train, held_out, config.data)
        keys = stage_keys(f"steps.{steps[-1]}", type(step))
        tune(folder, start, data, step.objective, tuned, keys=keys, online=online)
        write_full_model(folder, tuned)
        return {}

    settings = step.model_dump(mode="json") | {"seed": seed, "model": optional_weights_fingerprint(config.model)}
    settings |= config.data.settings
    name = "-".join(steps)
    return Stage(f"{name}-{seed}", f"{' then '.join(steps)}, seed {seed}", settings, run)


def _train_base(config: ToolCallingConfig) -> Run:
    return lambda folder: new_base(config, folder.parent / "data").train(folder)
