"""A run's model without its weights: whole on fake tensors, or shallow with random weights.

It gets adapters, checkpointing and head as in `training.model`, so that the counted and timed model is the one to run.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from penchant.config.run import RunConfig
from penchant.engine.padded import PaddedScorer
from penchant.engine.policy import Policy
from penchant.engine.reward_scorers import PaddedRewardScorer, TreeRewardScorer
from penchant.engine.scoring import Scorer
from penchant.engine.tree import TreeScorer, use_tree
from penchant.models.adapter_loading import rows_of_adapter
from penchant.models.loading import adapter_base, load_config, loading_errors, remove_dropout
from penchant.models.multimodal import (
    blank_language_model,
    classification_class,
    generation_class,
    text_config,
)
from penchant.training.model import adapt, add_head, weights_dtype

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


PERIOD = 1_000_003
"""How many random numbers are drawn for random weights; they are repeated."""


@dataclass(frozen=True)
class ModelSpec:
    """The description of a run's model, from which it is built without weights.

    Attributes:
        shape: the model's transformers configuration.
        padded: whether the model runs padded because the packed tree is not exact for it.
        notes: notes on what is not predicted.
    """

    config: RunConfig
    shape: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    padded: bool = False
    notes: tuple[str, ...] = field(default=())

    @property
    def rewards(self) -> bool:
        """Whether a reward model is trained."""
        return self.config.built_objective.needs.trains == "rewards"

    @property
    def layers(self) -> int:
        return int(text_config(self.shape).num_hidden_layers)

    @property
    def vocabulary(self) -> int:
        return int(text_config(self.shape).vocab_size)

    def scorer(self, model: PreTrainedModel) -> Scorer:
        """The model's scorer with the configured adapters, checkpointing and head, in training mode."""
        policy = Policy(model, self.tokenizer)
        scorer = _scorer(model, self.padded, self.rewards)
        adapt(self.config, policy)
        if self.config.built_objective.needs.head:
            assert isinstance(scorer, (TreeScorer, PaddedScorer))
            scorer = add_head(self.config, policy, scorer)
        return scorer.train()

    def meta_scorer(self) -> Scorer:
        """The whole model on the ``meta`` device."""
        with torch.device("meta"):
            return self.scorer(blank_model(self.shape, self.rewards, weights_dtype(self.config)))


def read_shape(source: str) -> PretrainedConfig:
    """A model's transformers configuration, without its weights; for an adapter its base's, with a grown vocabulary."""
    base = adapter_base(source)
    if base is None:
        return load_config(source, weights=False)
    shape = read_shape(base)
    with torch.device("meta"):
        model = blank_model(shape, False, torch.float32)
    rows = rows_of_adapter(model, source)
    if rows is not None:
        shape.get_text_config().vocab_size = rows
    return shape


def blank_model(shape: PretrainedConfig, rewards: bool, dtype: torch.dtype) -> PreTrainedModel:
    """A model of this configuration with random weights, on the default device; its dropout off."""
    shape = copy.deepcopy(shape)
    if rewards:
        shape.num_labels = 1
        shape.pad_token_id = text_config(shape).pad_token_id = None
    source = str(shape.name_or_path or shape.model_type)
    with loading_errors(source):
        family = classification_class(shape, source) if rewards else generation_class(shape)
        model = blank_language_model(family, shape, dtype)
    remove_dropout(model)
    return model


def random_model(shape: PretrainedConfig, rewards: bool, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """`blank_model` on a device, filled with repeated random numbers, which is faster than drawing every weight."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = blank_model(shape, rewards, dtype)
    source = torch.Generator().manual_seed(0)
    # Rows of the weights start at different offsets in it, so that no two are equal.
    random_values = torch.randn(PERIOD, generator=source).to(device, dtype) * getattr(shape, "initializer_range", 0.02)
    parameters: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in parameters:
                values = torch.empty(parameter.shape, dtype=dtype, device=device)
                _fill(values, random_values, name)
                parameters[id(parameter)] = torch.nn.Parameter(values)
            if parameter is not None:
                module._parameters[name] = parameters[id(parameter)]
    placed_model: PreTrainedModel = model.to(device)
    return placed_model


def _fill(values: torch.Tensor, random_values: torch.Tensor, name: str) -> None:
    """Fill matrices with random numbers, scales of norms with ones, biases with zeros."""
    if values.ndim < 2:
        values.fill_(float(name == "weight"))
        return
    flat = values.view(-1)
    for start in range(0, len(flat), PERIOD):
        part = flat[start : start + PERIOD]
        part.copy_(random_values[: len(part)])


def meta_reference(shape: PretrainedConfig, padded: bool, dtype: torch.dtype) -> Scorer:
    """A named reference on the ``meta`` device."""
    with torch.device("meta"):
        return _scorer(blank_model(shape, False, dtype), padded, False).eval()


def shallow(shape: PretrainedConfig, layers: int, vocabulary: int) -> PretrainedConfig:
    """The configuration with fewer layers and rows of the embedding; lists with an entry for each layer are cut too."""
    smaller = copy.deepcopy(shape)
    text = text_config(smaller)
    depth = int(text.num_hidden_layers)
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == depth:
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    text.vocab_size = vocabulary
    return smaller


def _scorer(model: PreTrainedModel, padded: bool, rewards: bool) -> Any:
    if padded:
        return PaddedRewardScorer(model) if rewards else PaddedScorer(model)
    use_tree(model)
    return TreeRewardScorer(model) if rewards else TreeScorer(model)
