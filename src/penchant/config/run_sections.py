"""The sections of a run's configuration, with their default values."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from penchant.config.section import Section
from penchant.config.shared_sections import ReadingConfig
from penchant.data.files import MAX_BYTES

Dtype = Literal["float32", "bfloat16", "float16"]
DtypeChoice = Literal["auto", "float32", "bfloat16", "float16"]

SAFE_TOKEN_BUDGET = 8192
"""Tokens of a micro-batch where no memory is planned: on a CPU, and for what a model reads before a run is planned."""


class SourceConfig(Section):
    """The source of the preferences: the first keys of `data` in a saved configuration."""

    train: str = Field(description="file, `datasets` folder or hub id")
    held_out: str | float | None = Field(
        None, description="another file, or the share of the prompts of `train` to hold out (0 < share < 1)"
    )
    reference_held_out: str | float | None = Field(
        None,
        description="another file, or the share of the prompts of `train`, used neither for training nor for "
        "evaluation: multi_reference fits its validation weights to these pairs",
    )
    format: str | None = Field(None, description="one of the formats of docs/data-formats.md; null: detected")
    columns: dict[str, str] = Field({}, description="column names: {OURS: THEIRS}, as in {prompt: question}")
    split: str | None = Field(None, description="split of a `datasets` folder or hub id")
    held_out_split: str | None = Field(
        None, description="split of the file `held_out`, or of `train`'s source where `held_out` is null"
    )
    max_bytes: int = Field(MAX_BYTES, ge=1, description="maximum size of a decompressed file, in bytes")

    @field_validator("held_out", "reference_held_out")
    @classmethod
    def _check_share(cls, value: str | float | None) -> str | float | None:
        if isinstance(value, float) and not 0 < value < 1:
            raise ValueError("a share of prompts must lie between 0 and 1")
        return value


class DataConfig(ReadingConfig, SourceConfig):
    """The source of the preferences, and how they are read."""

    label_noise: float = Field(
        0.0,
        ge=0,
        le=1,
        description="for experiments: share of the training groups whose preference or yes/no label is reversed, drawn "
        "with training.seed; held-out groups stay as they are",
    )


class LoraConfig(Section):
    """Low-rank adapters instead of all weights (through PEFT)."""

    rank: int = Field(16, ge=1, description="rank of the update of each matrix")
    alpha: float = Field(32, gt=0, description="scale of the update: alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of the adapters while training")
    targets: str | list[str] = Field(
        "all-linear",
        description="module names (including the output head and the embedding), a regular expression, or all-linear",
    )


class TrainingConfig(Section):
    """Optimization: steps, batches, learning rate and precision."""

    epochs: float = Field(1, gt=0, description="passes over the training groups; without effect where max_steps is set")
    max_steps: int | None = Field(None, ge=1, description="number of optimizer steps; null: by epochs")
    batch_size: int = Field(32, ge=1, description="groups per optimizer step, over all processes")
    token_budget: int | Literal["auto"] = Field(
        "auto",
        description="maximum tokens of a micro-batch; for pictures, positions of their latents; auto: on a CUDA card "
        "the most that penchant plan fits into 85 % "
        f"of its free memory, at most a step's; {SAFE_TOKEN_BUDGET} elsewhere, and with several processes. Resolved at "
        "the start, and kept when the run is resumed",
    )
    learning_rate: float = Field(1e-6, gt=0, description="peak learning rate of AdamW")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "linear", description="decay of the learning rate after the warm-up"
    )
    warmup: float = Field(0.1, ge=0, description="below 1: share of the steps; otherwise number of steps")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay")
    decay_towards: Literal["zero", "start"] = Field(
        "zero",
        description="the values to which weight_decay pulls the weights: zero, or those that training starts from (a "
        "copy of them stays in memory)",
    )
    betas: tuple[float, float] = Field(
        (0.9, 0.999), description="decay rates of AdamW's moving averages, each in [0, 1)"
    )
    epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    max_grad_norm: float = Field(1.0, gt=0, description="norm to which gradients are clipped")
    dtype: DtypeChoice = Field(
        "auto",
        description="dtype of the matrix products; trained weights stay float32. auto: bfloat16 on CUDA cards of "
        "compute capability 8.0 and more (and on XPU where torch supports it), float16 with a scaled loss on older "
        "ones, float32 on CPU and MPS. Resolved at the start and kept when the run is resumed. float32 is TF32 on CUDA",
    )
    save_dtype: DtypeChoice = Field(
        "auto",
        description="dtype of the saved weights; auto: that of the model training starts from, float32 for adapters; "
        "checkpoints are float32",
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass to save memory")
    shuffle: bool = Field(True, description="a new order each epoch; false: the file's order")
    seed: int = Field(
        0, ge=0, description="seed of all randomness: held-out split, order, new weights, dropout, samples"
    )

    grace_seconds: float = Field(
        25,
        gt=0,
        description="time to finish the step and save after SIGTERM or SIGHUP; then the process exits without saving. "
        "Kubernetes and Slurm kill after 30 s by default",
    )
    rank_timeout_seconds: float = Field(
        1800,
        gt=0,
        description="with several processes: time after which the run ends with an error that names the process that "
        "does not answer, or that the others wait for",
    )

    @property
    def resolved_dtype(self) -> Dtype:
        """`dtype` of a run that has begun, or of a plan; what is ``auto`` is resolved before."""
        if self.dtype == "auto":
            raise ValueError("training.dtype is still auto: it is to be resolved before it is read")
        return self.dtype

    @property
    def resolved_token_budget(self) -> int:
        """`token_budget` of a run that has begun, or of a plan; what is ``auto`` is resolved before."""
        if self.token_budget == "auto":
            raise ValueError("training.token_budget is still auto: it is to be resolved before it is read")
        return self.token_budget

    @property
    def unplanned_token_budget(self) -> int:
        """`token_budget` for other models that read the run's data, whose memory no plan counts."""
        return SAFE_TOKEN_BUDGET if self.token_budget == "auto" else self.token_budget

    @field_validator("token_budget", mode="before")
    @classmethod
    def _check_budget(cls, value: object) -> object:
        if value != "auto" and not (str(value).isdecimal() and int(str(value)) >= 1):
            raise ValueError("expected auto, or a whole number of at least 1")
        return value

    @field_validator("betas")
    @classmethod
    def _check_betas(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("both must lie in [0, 1)")
        return value


class EvaluationConfig(Section):
    """Held-out evaluation during training, choice of the best checkpoint, and early stopping."""

    every: int | None = Field(
        None, ge=1, description="steps between evaluations; null: only before the first step and after the last"
    )
    metric: str = Field(
        "loss",
        description="metric by which the best checkpoint is chosen, where `every` is set: loss, or one of the "
        "objective's; docs/metrics.md lists those for which lower is better",
    )
    patience: int | None = Field(
        None, ge=1, description="number of evaluations without improvement after which training stops; null: never"
    )
    samples: int = Field(
        4, ge=0, description="number of held-out prompts answered before and after training, for the report"
    )
    sample_tokens: int = Field(128, ge=1, description="maximum tokens of these answers")


class CheckpointConfig(Section):
    """Checkpoints of the run's state."""

    every: int = Field(100, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=1, description="number of latest checkpoints to keep")


class LoggingConfig(Section):
    """The frequency of lines in metrics.jsonl."""

    every: int = Field(10, ge=1, description="steps between lines; 1: every step")


class SamplingConfig(Section):
    """Sampling of candidates where `candidates` is ``sampled``."""

    samples: int = Field(4, ge=1, description="candidates per prompt")
    every: int = Field(1, ge=1, description="optimizer steps that reuse the same samples; 1 is on-policy")
    max_new_tokens: int = Field(
        128,
        ge=1,
        description="maximum tokens of a response; prompt + response stay within data.max_length, or data.truncation "
        "decides",
    )
    temperature: float = Field(
        1.0, gt=0, description="temperature of sampling; the loss uses log-probs at the same temperature"
    )
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="nucleus sampling: probability of the set of likeliest tokens to sample from; must be 1 for rloo",
    )


class HeadConfig(Section):
    """The preference head, for objectives that train one."""

    pooling: Literal["identity", "tanh", "dropout_tanh", "swiglu", "swiglu_down"] = Field(
        "identity",
        description="layer between the last token's hidden state and the head's weight; swiglu_down is a whole SwiGLU "
        "block, with its down-projection",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout of the pooling while training")
    freeze_backbone: bool = Field(
        False, description="train only the head, without lora; the language model stays as it is"
    )
    weight_decay: float = Field(0.1, ge=0, description="weight decay of the head")
