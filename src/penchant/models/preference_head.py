"""Preference heads: a reward read off the language model's last hidden state (arXiv 2405.20053, section 3.1).

Shapes: N candidates, D hidden size.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from penchant.errors import ModelError, reason_of

Pooling = Literal["identity", "tanh", "dropout_tanh", "swiglu", "swiglu_down"]
NAME = "preference_head"


class PreferenceHead(nn.Module):
    """``r = w . pool(h)``, w without bias and drawn from N(0, 0.02); in float32 whatever the model's dtype.

    Args:
        size: D.
        pooling: ``identity`` (with dropout), ``tanh`` (linear, tanh, dropout), ``dropout_tanh`` (dropout before and
            after), ``swiglu`` (``silu(gate h) * (dense h)``, tanh, dropout), ``swiglu_down`` (the same of 8/3 D
            values, projected down to D, tanh, dropout: a whole SwiGLU block, as in the authors' code).
        dropout: rate of the pooling's dropout in training.
    """

    def __init__(self, size: int, pooling: Pooling, dropout: float = 0.0) -> None:
        super().__init__()
        self.settings = {"size": size, "pooling": pooling, "dropout": dropout}
        self.input_dropout = nn.Dropout(dropout if pooling == "dropout_tanh" else 0.0)
        width = -(-8 * size // 3) if pooling == "swiglu_down" else size
        self.gate = nn.Linear(size, width) if pooling in ("swiglu", "swiglu_down") else None
        self.dense = nn.Identity() if pooling == "identity" else nn.Linear(size, width)
        self.down = nn.Linear(width, size) if pooling == "swiglu_down" else nn.Identity()
        self.activation = nn.Identity() if pooling == "identity" else nn.Tanh()
        self.output_dropout = nn.Dropout(dropout)
        self.weight = nn.Linear(size, 1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Rewards [N] of hidden states [N, D]."""
        with torch.autocast(hidden.device.type, enabled=False):
            inputs = self.input_dropout(hidden.float())
            pooled = self.dense(inputs)
            if self.gate is not None:
                pooled = pooled * silu(self.gate(inputs))
            rewards: Tensor = self.weight(self.output_dropout(self.activation(self.down(pooled))))[:, 0]
        return rewards


def save_head(folder: Path, head: PreferenceHead, name: str = NAME) -> None:
    """Write a head into its model's folder: NAME.safetensors and NAME.json. Several may share a model."""
    from safetensors.torch import save_file

    weights = {key: value.detach().cpu().contiguous() for key, value in head.state_dict().items()}
    temporary = folder / f".writing-{name}.safetensors"
    temporary.unlink(missing_ok=True)  # It may be a link to another file.
    save_file(weights, temporary)
    temporary.replace(folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(head.settings), encoding="utf-8")


def head_names(folder: str | Path) -> tuple[str, ...]:
    """Names of the preference heads in a local folder, in alphabetical order."""
    return tuple(sorted(file.stem for file in Path(folder).glob("*.json") if _is_head(file)))


def copy_heads(source: str | Path, output: Path) -> tuple[str, ...]:
    """Copy a folder's preference heads to another folder of its model; returns their names."""
    names = head_names(source)
    for name in names:
        for suffix in (".safetensors", ".json"):
            shutil.copyfile(Path(source) / f"{name}{suffix}", output / f"{name}{suffix}")
    return names


def _is_head(settings: Path) -> bool:
    if not settings.with_suffix(".safetensors").is_file():
        return False
    try:
        return {"size", "pooling"} <= json.loads(settings.read_text(encoding="utf-8")).keys()
    except (OSError, ValueError, AttributeError):
        return False


def load_head(folder: str | Path, name: str = NAME) -> PreferenceHead:
    """The preference head of a folder, in evaluation mode.

    Raises:
        ModelError: the folder has no such head, or it is damaged.
    """
    from safetensors.torch import load_file

    file = Path(folder) / f"{name}.safetensors"
    if not file.is_file():
        raise ModelError(
            f"the folder has no preference head ({file.name})",
            where=str(folder),
            fix="name a folder that has one; or train one: penchant train RUN.yaml objective.name=preference_head",
        )
    try:
        settings = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        if settings["pooling"] not in get_args(Pooling):
            raise ValueError(f"unknown pooling {settings['pooling']!r}")
        head = PreferenceHead(**settings)
        head.load_state_dict(load_file(file))
    except Exception as error:
        raise ModelError(
            f"the preference head cannot be read: {reason_of(error)}", where=str(file), fix="train it again"
        ) from error
    return head.eval()
