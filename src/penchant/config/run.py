"""A run's configuration: one YAML file <-> one typed object. Every default lives here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from penchant.config.objective import build_objective, code_runs, describe_objective, names_code
from penchant.config.reading import ReadingConfig
from penchant.config.reward import RewardConfig
from penchant.config.section import Section, explain, refusal, validated
from penchant.config.yaml_files import override, parse_yaml
from penchant.data.files import MAX_BYTES
from penchant.data.rendering import Rendering
from penchant.errors import ConfigError
from penchant.objectives import MultiReference, Objective


class SourceConfig(Section):
    """Where the preferences are: the keys of `data` that come first where a configuration is written."""

    train: str = Field(description="file, `datasets` folder or hub id")
    held_out: str | float | None = Field(
        None, description="another file; or the share of prompts to hold out of `train` (0 < share < 1)"
    )
    reference_held_out: str | float | None = Field(
        None,
        description="another file, or the share of the prompts of `train`, neither trained on nor tested on: "
        "multi_reference fits its validation weights to these pairs",
    )
    format: str | None = Field(None, description="one of the formats of docs/data-formats.md; null detects it")
    columns: dict[str, str] = Field({}, description="our column name: the file's")
    split: str | None = Field(None, description="split of a `datasets` folder or hub id")
    held_out_split: str | None = Field(
        None, description="split of the file `held_out`, or of `train`'s source where `held_out` is null"
    )
    max_bytes: int = Field(MAX_BYTES, ge=1, description="what a compressed file may unpack to, in bytes")

    @field_validator("held_out", "reference_held_out")
    @classmethod
    def _share(cls, value: str | float | None) -> str | float | None:
        if isinstance(value, float) and not 0 < value < 1:
            raise ValueError("a share of prompts lies between 0 and 1")
        return value


class DataConfig(ReadingConfig, SourceConfig):
    """Where the preferences are, and how they are read."""


class LoraConfig(Section):
    """Low-rank adapters instead of all weights (through PEFT)."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str | list[str] = Field(
        "all-linear",
        description="module names (the output head and the embedding too), a regular expression, or all-linear",
    )


class TrainingConfig(Section):
    """The loop."""

    epochs: float = Field(1, gt=0, description="passes over the training groups; unused where max_steps is set")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps")
    batch_size: int = Field(32, ge=1, description="groups in an optimizer step, over all processes")
    token_budget: int = Field(8192, ge=1, description="tokens in a micro-batch")
    learning_rate: float = Field(1e-6, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    warmup: float = Field(0.1, ge=0, description="below 1: share of the steps; else steps")
    weight_decay: float = Field(0.0, ge=0)
    decay_towards: Literal["zero", "start"] = Field(
        "zero",
        description="what weight_decay pulls the weights to: zero, or those that training starts from (a copy of them "
        "stays in memory)",
    )
    betas: tuple[float, float] = Field((0.9, 0.999), description="of AdamW's moving averages, each in [0, 1)")
    epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the matrix products; trained weights stay float32"
    )
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="of the weights on disk; auto: that of the model training starts from, float32 for adapters; "
        "checkpoints are float32",
    )
    gradient_checkpointing: bool = Field(False, description="recompute layers in the backward, for memory")
    shuffle: bool = Field(True, description="a new order each epoch; false keeps the file's")
    seed: int = Field(0, ge=0)

    grace_seconds: float = Field(
        25,
        gt=0,
        description="time to finish the step and save after SIGTERM or SIGHUP; then the process leaves without saving. "
        "Kubernetes and Slurm kill after 30 s by default",
    )
    rank_timeout_seconds: float = Field(
        1800,
        gt=0,
        description="of several processes: how long one may not answer, or keep the others waiting, before the run "
        "ends with an error that names it",
    )

    @field_validator("betas")
    @classmethod
    def _decays(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("each of the two lies in [0, 1)")
        return value


class EvaluationConfig(Section):
    """Held-out evaluation during training, and what follows from it."""

    every: int | None = Field(None, ge=1, description="steps; null: before the first step and after the last")
    metric: str = Field(
        "loss",
        description="decides which checkpoint is best, where `every` is given: loss, or an objective's metric; "
        "docs/metrics.md says which are better lower",
    )
    patience: int | None = Field(
        None, ge=1, description="stop after so many evaluations, `every` steps apart, without a better one"
    )
    samples: int = Field(4, ge=0, description="held-out prompts answered before and after, for the report")
    sample_tokens: int = Field(128, ge=1, description="longest sampled answer")


class CheckpointConfig(Section):
    """When the run's state is saved."""

    every: int = Field(100, ge=1, description="steps")
    keep: int = Field(2, ge=1, description="how many of the last are kept")


class LoggingConfig(Section):
    """What is written to metrics.jsonl."""

    every: int = Field(10, ge=1, description="steps; 1 logs each")


class SamplingConfig(Section):
    """How candidates are drawn where `candidates` is ``sampled``."""

    samples: int = Field(4, ge=1, description="candidates for each prompt")
    every: int = Field(1, ge=1, description="optimizer steps that use one draw; 1 is on-policy")
    max_new_tokens: int = Field(
        128, ge=1, description="longest response; with its prompt within data.max_length, or data.truncation decides"
    )
    temperature: float = Field(
        1.0, gt=0, description="of the softmax; the log-probs that samples are learnt from by are at it too"
    )
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="the likeliest tokens with this much probability are drawn from; below 1 refused for rloo",
    )


class HeadConfig(Section):
    """The preference head, for objectives that train one."""

    pooling: Literal["identity", "tanh", "dropout_tanh", "swiglu", "swiglu_down"] = Field(
        "identity",
        description="between the last token's hidden state and the head's weight; swiglu_down is a whole SwiGLU block, "
        "with its down-projection",
    )
    dropout: float = Field(0.0, ge=0, lt=1)
    freeze_backbone: bool = Field(
        False, description="train the head alone, without lora; the language model cannot change"
    )
    weight_decay: float = Field(0.1, ge=0, description="of the head's weights")


class RunConfig(Section):
    """One training run."""

    model: str = Field(description="folder or hub id; training starts from it")
    reference: str | None = Field(None, description="folder or hub id; null: the model training starts from")
    references: list[str] = Field(
        [], description="folders or hub ids, the first is the primary, for objectives of several references"
    )
    reference_update: Literal["never", "best"] = Field(
        "never",
        description="best: at each evaluation while training that is the best so far, the policy becomes the primary "
        "reference; never: it stays the one that is named",
    )
    data: DataConfig
    output: str = Field(description="the run's folder")
    objective: dict[str, Any] = Field(description="name, and the hyper-parameters of that objective")
    candidates: Literal["given", "sampled"] = Field(
        "given", description="the data's, or fresh ones drawn from the policy while it trains"
    )
    sampling: SamplingConfig = SamplingConfig()
    reward: RewardConfig | None = Field(
        None, description="gives scores to candidates: a reward model, a function or a judge; null: the data's scores"
    )
    head: HeadConfig = HeadConfig()
    lora: LoraConfig | None = None
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()

    @field_validator("data", mode="before")
    @classmethod
    def _path(cls, value: object) -> object:
        return {"train": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _agrees(self) -> RunConfig:
        if self.reference is not None and self.references:
            raise ValueError("reference and references are both given; references alone names them all")
        if self.candidates == "sampled" and self.reward is None:
            raise ValueError("candidates: sampled needs a reward, as in reward: {function: my_reward.py:score}")
        return self

    @property
    def rendering(self) -> Rendering:
        """How the run's rows become text."""
        return self.data.rendering("all" if self.objective.get("name") == "sft" else "last")

    @property
    def built_objective(self) -> Objective:
        """The objective with its hyper-parameters, built once for a configuration and its copies.

        Inside `without_code` a stand-in takes the place of an objective of the user's own.
        """
        key = code_runs(), repr(self.objective), len(self.references) > 1
        if key not in self._objectives:
            runs_code, _, has_many_references = key
            stands_in = not runs_code and names_code(self.objective) and has_many_references
            self._objectives[key] = MultiReference() if stands_in else build_objective(self.objective)
        return self._objectives[key]

    @property
    def reference_sources(self) -> list[str | None]:
        """The references' folders or hub ids, in order; None is the model training starts from."""
        if not self.built_objective.needs.references:
            return []
        return list(self.references) or [self.reference]

    @cached_property
    def _objectives(self) -> dict[tuple[bool, str, bool], Objective]:
        """What was built so far; `model_copy` hands it on, so that its keys hold all that decides."""
        return {}


Loaded = TypeVar("Loaded", bound=Section)


def load_config(file: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML, apply ``key=value`` overrides (dotted keys, YAML values), and check all of it.

    Raises:
        ConfigError: everything that is wrong, at once, each with its key and the nearest valid name.
    """
    return parse_config(_read(file, overrides), str(file))


def load_section(kind: type[Loaded], file: Path, overrides: Sequence[str] = ()) -> Loaded:
    """`load_config` for another kind of file: a comparison, a recipe.

    Raises:
        ConfigError: everything that is wrong, at once, each with its key and the nearest valid name.
    """
    return validated(kind, _read(file, overrides), str(file))


def _read(file: Path, overrides: Sequence[str]) -> dict[str, Any]:
    values = read_yaml(file)
    for each in overrides:
        override(values, each)
    return values


def read_yaml(file: Path) -> dict[str, Any]:
    """The keys of a YAML file; everything that can be wrong with it as one ConfigError."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError("there is no such file", where=str(file), fix="name the run's YAML file") from error
    except IsADirectoryError as error:
        raise ConfigError(
            "this is a folder", where=str(file), fix=f"to go on with a run, type: penchant train --resume {file}"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"byte {error.start} is not UTF-8", where=str(file), fix="save it as UTF-8") from error
    try:
        values = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"this is not YAML: {' '.join(str(error).split())}",
            where=str(file),
            fix="correct the line named; a text that holds a colon or a bracket stands in quotes",
        ) from error
    if not isinstance(values, dict):
        raise ConfigError("the file holds no keys", where=str(file), fix="see examples/dpo.yaml for the least it needs")
    return values


def parse_config(values: dict[str, Any], where: str) -> RunConfig:
    """Check a configuration given as a dictionary; see `load_config`."""
    problems: list[str] = []
    config: RunConfig | None = None
    try:
        config = RunConfig.model_validate(values)
        problems += _without_effect(config)
    except ValidationError as error:
        problems += [explain(dict(problem), RunConfig) for problem in error.errors()]
    try:
        if config is not None:
            _ = config.built_objective
        elif isinstance(values.get("objective"), dict):
            build_objective(values["objective"])
    except ConfigError as error:
        problems.append(str(error).replace("\n  what to do: ", "; "))
    if problems or config is None:
        raise refusal(problems, where)
    return config


def _without_effect(config: RunConfig) -> list[str]:
    """Settings that others make void."""
    problems, data, evaluation = [], config.data, config.evaluation
    if isinstance(data.held_out, float) and data.held_out_split is not None:
        problems.append(
            f"data.held_out is {data.held_out}, a share of the training data, and data.held_out_split is "
            f"{data.held_out_split!r}: give one of the two"
        )
    if evaluation.every is not None and data.held_out is None and data.held_out_split is None:
        problems.append(f"evaluation.every is {evaluation.every}, and no held-out data is named: give data.held_out")
    for name, value, default in (("patience", evaluation.patience, None), ("metric", evaluation.metric, "loss")):
        if evaluation.every is None and value != default:
            problems.append(
                f"evaluation.{name} is {value!r}, and evaluation.every is null, so nothing is judged while training: "
                f"give evaluation.every, or leave evaluation.{name} out"
            )
    if config.reference_update == "best" and evaluation.every is None:
        problems.append(
            "reference_update is best, and evaluation.every is null, so no evaluation is the best: give "
            "evaluation.every and data.held_out, or leave reference_update out"
        )
    if config.training.decay_towards == "start":
        if not config.training.weight_decay:
            problems.append(
                "training.decay_towards is start, and training.weight_decay is 0: give both, or leave "
                "training.decay_towards out"
            )
        if config.lora is not None:
            problems.append(
                "training.decay_towards is start, and an adapter's weights are differences from it, which decay to it "
                "by themselves: leave training.decay_towards out"
            )
        if config.head.freeze_backbone:
            problems.append(
                "training.decay_towards is start, and head.freeze_backbone trains no weight of the model: leave one of "
                "them out"
            )
    if config.lora is not None and config.head.freeze_backbone:
        problems.append("head.freeze_backbone is true, so lora would train nothing: leave one of them out")
    return problems


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML, every default spelt out."""
    values = config.model_dump()
    values["objective"] = describe_objective(config.built_objective, config.objective)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
