"""The configuration of a run as a typed object, read from one YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from penchant.config.objective import build_objective, code_runs, describe_objective, names_code
from penchant.config.run_sections import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    HeadConfig,
    LoggingConfig,
    LoraConfig,
    SamplingConfig,
    TrainingConfig,
)
from penchant.config.section import Section, explain, override, read_yaml, refusal, validated
from penchant.config.shared_sections import RewardConfig
from penchant.data.rendering import Rendering
from penchant.errors import ConfigError
from penchant.objectives import MultiReference, Objective


class RunConfig(Section):
    """One training run."""

    model: str = Field(description="folder or hub id of the model that training starts from")
    reference: str | None = Field(
        None, description="folder or hub id of the reference model; null: the model that training starts from"
    )
    references: list[str] = Field(
        [], description="folders or hub ids, the primary reference first, for objectives with several references"
    )
    reference_update: Literal["never", "best"] = Field(
        "never",
        description="best: after each evaluation that is the best so far, the policy becomes the primary reference; "
        "never: the reference stays fixed",
    )
    data: DataConfig
    output: str = Field(description="the run's output folder")
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = Field(
        "auto",
        description="device of all models; auto: the first available of cuda, xpu, mps and cpu. A run may be "
        "resumed on another",
    )
    objective: dict[str, Any] = Field(description="name and hyper-parameters of the objective")
    candidates: Literal["given", "sampled"] = Field(
        "given", description="given: candidates of the data; sampled: responses sampled from the policy during training"
    )
    sampling: SamplingConfig = SamplingConfig()
    reward: RewardConfig | None = Field(
        None,
        description="source of candidates' scores: a reward model, a function or a judge; null: the scores in the data",
    )
    head: HeadConfig = HeadConfig()
    lora: LoraConfig | None = None
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()

    @field_validator("data", mode="before")
    @classmethod
    def _path_as_section(cls, value: object) -> object:
        return {"train": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_references_and_reward(self) -> RunConfig:
        if self.reference is not None and self.references:
            raise ValueError("reference and references are both set; list all of them in references")
        if self.candidates == "sampled" and self.reward is None:
            raise ValueError("candidates: sampled needs a reward, as in reward: {function: my_reward.py:score}")
        return self

    @property
    def rendering(self) -> Rendering:
        """How the run's rows are rendered as text."""
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
        ConfigError: all problems at once, each with its key and the nearest valid name.
    """
    return parse_config(_read(file, overrides), str(file))


def load_section(kind: type[Loaded], file: Path, overrides: Sequence[str] = ()) -> Loaded:
    """`load_config` for a comparison or a recipe.

    Raises:
        ConfigError: all problems at once, each with its key and the nearest valid name.
    """
    return validated(kind, _read(file, overrides), str(file))


def _read(file: Path, overrides: Sequence[str]) -> dict[str, Any]:
    values = read_yaml(file)
    for assignment in overrides:
        override(values, assignment)
    return values


def parse_config(values: dict[str, Any], where: str) -> RunConfig:
    """The configuration that a dictionary describes; errors as in `load_config`."""
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


def with_training(config: RunConfig, **settings: Any) -> RunConfig:
    """The configuration with these keys of `training`."""
    return config.model_copy(update={"training": config.training.model_copy(update=settings)})


def with_recorded_settings(config: RunConfig) -> RunConfig:
    """The configuration with ``auto`` replaced by what the run in its folder was started with; else as it is."""
    folder = Path(config.output)
    automatic = [name for name in ("dtype", "token_budget") if getattr(config.training, name) == "auto"]
    if not automatic or not (folder / "run.json").exists():
        return config
    recorded = read_yaml(folder / "config.yaml").get("training", {})
    return with_training(config, **{name: recorded[name] for name in automatic if name in recorded})


def _without_effect(config: RunConfig) -> list[str]:
    """Messages about settings that have no effect because of other settings."""
    problems, data, evaluation = [], config.data, config.evaluation
    if isinstance(data.held_out, float) and data.held_out_split is not None:
        problems.append(
            f"data.held_out is {data.held_out}, a share of the training data, and data.held_out_split is "
            f"{data.held_out_split!r}: give one of the two"
        )
    if data.label_noise and config.candidates == "sampled":
        problems.append(
            f"data.label_noise is {data.label_noise}, and candidates is sampled, so the data's labels are not used: "
            "leave data.label_noise out"
        )
    if evaluation.every is not None and data.held_out is None and data.held_out_split is None:
        problems.append(f"evaluation.every is {evaluation.every}, and no held-out data is named: give data.held_out")
    for name, value, default in (("patience", evaluation.patience, None), ("metric", evaluation.metric, "loss")):
        if evaluation.every is None and value != default:
            problems.append(
                f"evaluation.{name} is {value!r}, and evaluation.every is null, so there is no evaluation during "
                f"training: give evaluation.every, or leave evaluation.{name} out"
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
                "training.decay_towards is start, which is what weight_decay does with adapters anyway: leave "
                "training.decay_towards out"
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
    """The configuration as YAML, with all default values."""
    values = config.model_dump()
    values["objective"] = describe_objective(config.built_objective, config.objective)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
