"""Stage data of the tool-calling recipe, with a check of the lengths that later stages need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from penchant.data.groups import PreferenceGroup
from penchant.errors import rename_options_in_errors
from penchant.evaluation.tool_calls.questions import read_bfcl
from penchant.recipes.new_base import NewBase
from penchant.recipes.reading import ModelTokenizer, check_lengths, read_stage_groups
from penchant.recipes.stages import StageResult
from penchant.recipes.tool_calling.config import StepConfig, ToolCallingConfig
from penchant.recipes.tool_calling.data import PAIRED, REWARDED, as_group, fresh_questions, prepare
from penchant.recipes.tuning import stage_keys, tuning_run
from penchant.training.prompts import prompts_to_answer


def prepare_checked(config: ToolCallingConfig, folder: Path) -> StageResult:
    """The counts of `prepare`, after every stage's questions were tokenized and checked with the base's tokenizer.

    Raises:
        DataError: a question with its right answer is too long, or cannot be read.
        ConfigError: a question leaves no room for the answers that a step samples.
    """
    counts = prepare(config, folder)
    if config.model is not None:
        reader = ModelTokenizer.load(config.model, config.data)
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
    source = Path("the prompts of stage reward")
    run = tuning_run(Path(name), "", source, None, step.objective, step, keys=keys, online=online, reading=config.data)
    with rename_options_in_errors(keys):
        prompts_to_answer(run, prompts, reader.tokenizer, reader.max_tokens(config.data))
