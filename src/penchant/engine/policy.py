"""The model in training: weights, perhaps LoRA adapters, and how it is saved."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from penchant.engine.distributed import World
from penchant.engine.kernels.lora_linear import fuse_adapters
from penchant.models.loading import remove_dropout
from penchant.models.lora import add_adapters, sort_modules
from penchant.models.multimodal import qualify_targets
from penchant.models.saving import SavedDtype, save_model
from penchant.models.special_tokens import TrainedResponses, write_generation_config
from penchant.storage.files import new_folder

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Policy:
    """A model to train.

    Attributes:
        model: the causal language model; with LoRA its layers hold the adapters.
        adapters: PEFT's wrapper around it, or None where all weights are trained.
        trained_responses: ends and lengths of the responses it is trained on, from which the saved generation
            configuration is made; None leaves that configuration as it is.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    adapters: PeftModel | None = None
    trained_responses: TrainedResponses | None = None

    def add_lora(
        self,
        *,
        rank: int,
        alpha: float,
        dropout: float,
        targets: str | list[str],
        task: Literal["CAUSAL_LM", "SEQ_CLS"] = "CAUSAL_LM",
    ) -> None:
        """Freeze the weights and add low-rank adapters to train, which start as the identity.

        Args:
            task: PEFT's name of the model's task; a reward model's head is trained fully.

        Raises:
            ConfigError: no module has the name of a target.
        """
        remove_dropout(self.model)
        self.adapters = add_adapters(self.model, rank=rank, alpha=alpha, dropout=dropout, targets=targets, task=task)
        qualify_targets(self.adapters)
        fuse_adapters(self.adapters)

    def save(self, folder: Path, scorer: nn.Module, world: World, dtype: torch.dtype | SavedDtype) -> None:
        """Write the model in Hugging Face format, or the adapter in PEFT's, with its tokenizer.

        Files are written to a temporary folder and then moved in, so that a folder never holds half a file.

        Args:
            scorer: the module that holds the weights, sharded where the world has several processes.
            dtype: of the weights on disk.
        """
        weights = _full_weights(scorer, self.model, world)
        if world.is_main:
            temporary = folder / ".writing-model"
            new_folder(temporary)
            weights = {name: tensor for name, tensor in weights.items() if not _is_tied(self.model, name)}
            disk_dtype = (dtype if isinstance(dtype, SavedDtype) else SavedDtype(dtype)).safe_for(weights)
            weights = {name: disk_dtype.cast(name, tensor) for name, tensor in weights.items()}
            if self.adapters is not None:
                _save_adapter(self.adapters, temporary, weights)
            else:
                save_model(self.model, temporary, weights, disk_dtype.dtype)
            if self.trained_responses is not None:
                write_generation_config(temporary, self.model, self.tokenizer, self.trained_responses)
            self.tokenizer.save_pretrained(temporary)
            for file in sorted(temporary.iterdir()):
                os.replace(file, folder / file.name)
            temporary.rmdir()
        world.barrier()


def _save_adapter(adapters: PeftModel, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write an adapter in PEFT's format; its base's folder is written as an absolute path."""
    state: dict[str, Any] = {f"base_model.model.{name}": tensor for name, tensor in weights.items()}
    config = adapters.peft_config["default"]
    if config.base_model_name_or_path and Path(config.base_model_name_or_path).exists():
        config.base_model_name_or_path = str(Path(config.base_model_name_or_path).resolve())
    # The base's embedding stays as it is: under an adapter it need not be written, nor rounded.
    adapters.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
    sort_modules(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's, which would replace the run's own


def _is_tied(model: nn.Module, name: str) -> bool:
    """Whether a weight is tied to another, by the model's own list and in fact."""
    ties: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    if name not in ties:
        return False
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return name in parameters and parameters[name] is parameters.get(ties[name])


def _full_weights(scorer: nn.Module, model: nn.Module, world: World) -> dict[str, Tensor]:
    """The model's own state dict, gathered from all processes."""
    if world.size == 1:
        return dict(model.state_dict())
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state_dict: dict[str, Any] = get_model_state_dict(scorer, options=options)
    return {name.removeprefix("model."): tensor for name, tensor in state_dict.items()}
