"""The kind of model in a folder: a language model or a classifier (a reward model), whole or as an adapter, with heads.

Verbs that need a language model ask here, through `models.loading.load_model`, so that none runs on a reward model.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from penchant.errors import ModelError
from penchant.models.gguf.reading import is_gguf
from penchant.models.preference_head import head_names

_CLASSIFIER = re.compile(r"For(Sequence|Token)Classification|RewardModel")
_SCORE_HEAD = re.compile(r"(^|\.)(score|classifier|v_head|regression_head)\.")


@dataclass(frozen=True)
class ModelKind:
    """The kind of model in a folder or hub id.

    Attributes:
        task: ``language_model`` generates; ``reward_model`` is any classifier, which only scores.
        architecture: the class or PEFT task by which the kind is known; None without one.
        is_adapter: whether it is a PEFT adapter.
        heads: names of the preference heads beside a language model.
    """

    task: Literal["language_model", "reward_model"]
    architecture: str | None
    is_adapter: bool
    heads: tuple[str, ...]

    @property
    def is_reward_model(self) -> bool:
        """Whether it only scores responses."""
        return self.task == "reward_model"


def model_kind(source: str) -> ModelKind:
    """The kind of model in a local folder, hub id or GGUF file, by its JSON files and its tensors' names.

    A source that cannot be read counts as a language model: loading it raises the error.
    """
    folder = Path(source)
    if is_gguf(source):
        return ModelKind("language_model", None, False, ())
    heads = head_names(folder)
    adapter = _json(folder / "adapter_config.json")
    if adapter is not None:
        return ModelKind(_adapter_task(folder, adapter), adapter.get("task_type"), True, heads)
    config = _json(folder / "config.json") if folder.exists() else _hub_config(source)
    architectures = [str(name) for name in (config or {}).get("architectures") or ()]
    if architectures:
        is_classifier = any(_CLASSIFIER.search(name) for name in architectures)
    else:
        is_classifier = any(_SCORE_HEAD.search(name) for name in _tensor_names(folder, "model"))
    task: Literal["language_model", "reward_model"] = "reward_model" if is_classifier else "language_model"
    return ModelKind(task, architectures[0] if architectures else None, False, heads)


def require_language_model(source: str) -> None:
    """Refuse a reward model where a language model is needed.

    Raises:
        ModelError: names the architecture, and the verbs that read a reward model.
    """
    kind = model_kind(source)
    if kind.is_reward_model:
        shape = f"reward model's adapter ({kind.architecture})" if kind.is_adapter else kind.architecture
        raise ModelError(
            f"this is a reward model, a {shape or 'classifier'}: it scores responses and cannot write any; "
            "a language model is needed here",
            where=source,
            fix=f"name a language model; measure this one with: penchant evaluate {source} --data FILE, or "
            f"penchant rank {source} --data FILE --by reward",
        )


def _adapter_task(folder: Path, config: dict[str, Any]) -> Literal["language_model", "reward_model"]:
    task = config.get("task_type")
    if task in ("SEQ_CLS", "TOKEN_CLS"):
        return "reward_model"
    if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        return "language_model"
    names = [f"{name}." for name in config.get("modules_to_save") or ()] + _tensor_names(folder, "adapter_model")
    if any(_SCORE_HEAD.search(name) for name in names):
        return "reward_model"
    base = config.get("base_model_name_or_path")
    return model_kind(base).task if base and base != str(folder) else "language_model"


def _json(file: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


@cache
def _hub_config(source: str) -> dict[str, Any] | None:
    from transformers import PretrainedConfig

    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        return None
    try:
        return PretrainedConfig.get_config_dict(source)[0]
    except Exception:
        return None  # Loading reports whatever the hub's client raises.


def _tensor_names(folder: Path, stem: str) -> list[str]:
    """Names of the tensors in ``STEM.safetensors`` or its index; empty where there is none that can be read."""
    from safetensors import SafetensorError, safe_open

    index = _json(folder / f"{stem}.safetensors.index.json")
    if index is not None:
        return list(index.get("weight_map") or ())
    try:
        with safe_open(folder / f"{stem}.safetensors", framework="pt") as tensors:
            return list(tensors.keys())
    except (OSError, SafetensorError):
        return []
