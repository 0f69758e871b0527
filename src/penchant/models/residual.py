"""The instruction residual: the change that tuning made to a base model, added to another model of the same base.

    theta = theta_adapted + scale (theta_instruct - theta_base)

(MortgageLLM, arXiv 2511.21101; "chat vector", Huang et al., arXiv 2310.04799.) A model that was trained on the text of
a field and forgot to follow instructions follows them again, without instruction data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from penchant.errors import ModelError
from penchant.models.loading import adapter_base, check_folder, load_tokenizer
from penchant.models.model_kind import require_language_model
from penchant.models.saving import copy_processors
from penchant.models.special_tokens import GENERATION_CONFIG
from penchant.storage.files import whole_folder

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"

Shapes = dict[str, tuple[int, ...]]


def add_residual(adapted: str, base: str, instruct: str, output: Path, *, scale: float = 1.0) -> None:
    """Write a model folder: the adapted model plus the instruction residual.

    The adapted model's weights are read a file at a time, the others' a tensor at a time. Configuration and dtype are
    the adapted model's; tokenizer, chat template and generation settings are the instruct model's. Rows of the
    embedding that tuning has added to the base's are copied.

    Args:
        adapted, base, instruct: model folders or hub ids.
        scale: 0 is the adapted model itself.

    Raises:
        ModelError: the models differ in their weights' names or shapes, or their tokenizers number a token differently.
    """
    if output.exists():
        raise ModelError("it is there already", where=str(output), fix="name a new folder")
    ours, of_base, of_instruct = (_local(name) for name in (adapted, base, instruct))
    _check_token_ids(base, instruct)
    _check_token_ids(base, adapted)
    rows = _check_shapes([(adapted, _shapes(ours)), (base, _shapes(of_base)), (instruct, _shapes(of_instruct))])
    with whole_folder(output) as temporary:
        with _open_tensors(of_base) as theirs, _open_tensors(of_instruct) as tuned:
            _write(ours, theirs, tuned, temporary, scale)
        config = json.loads((ours / "config.json").read_text(encoding="utf-8"))
        if rows is not None:
            config.get("text_config", config)["vocab_size"] = rows
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        copy_processors(adapted, temporary)
        load_tokenizer(instruct).save_pretrained(temporary)
        # End tokens and sampling settings belong to the instruct model's template.
        for folder in (of_instruct, ours):
            if (folder / GENERATION_CONFIG).is_file():
                (temporary / GENERATION_CONFIG).write_bytes((folder / GENERATION_CONFIG).read_bytes())
                break


def _write(adapted: Path, base: Mapping[str, Any], instruct: Mapping[str, Any], output: Path, scale: float) -> None:
    """Write every file of the adapted model with the residual added to its tensors."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    for file in sorted(set(_tensor_files(adapted).values())):
        with safe_open(adapted / file, framework="pt") as tensors:  # has keys, and is no mapping
            tensors_with_residual = {
                name: _plus_residual(
                    tensors.get_tensor(name), base[name].get_tensor(name), instruct[name].get_tensor(name), scale
                )
                for name in tensors.keys()  # noqa: SIM118
            }
            save_file(tensors_with_residual, output / file, tensors.metadata())
    if (adapted / _INDEX).exists():
        (output / _INDEX).write_bytes((adapted / _INDEX).read_bytes())


def _plus_residual(adapted: Tensor, base: Tensor, instruct: Tensor, scale: float) -> Tensor:
    """``adapted + scale (instruct - base)``, computed in float32; rows that only the instruct model has are copied."""
    common, further = (instruct[: len(base)], instruct[len(base) :]) if adapted.ndim else (instruct, None)
    result = (adapted.float() + scale * (common.float() - base.float())).to(adapted.dtype)
    return result if further is None or not len(further) else torch.cat([result, further.to(adapted.dtype)])


def _local(source: str) -> Path:
    """The folder of a model with safetensors; a hub id is fetched.

    Raises:
        ModelError: there is none, it is an adapter, or its weights are in another format.
    """
    check_folder(source)
    require_language_model(source)
    if adapter_base(source) is not None:
        raise ModelError("this is an adapter", where=source, fix=f"merge it first: penchant merge {source} MERGED")
    folder = Path(source)
    if not folder.exists():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors"]))
    if not (folder / _SINGLE).exists() and not (folder / _INDEX).exists():
        raise ModelError(
            f"it has neither {_SINGLE} nor {_INDEX}",
            where=source,
            fix="save it anew with save_pretrained, which writes safetensors",
        )
    return folder


def _tensor_files(folder: Path) -> dict[str, str]:
    """The file name of every tensor, by the tensor's name."""
    from safetensors import safe_open

    if (folder / _INDEX).exists():
        file_names: dict[str, str] = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
        return file_names
    with safe_open(folder / _SINGLE, framework="pt") as tensors:
        return dict.fromkeys(tensors.keys(), _SINGLE)


@contextmanager
def _open_tensors(folder: Path) -> Iterator[dict[str, Any]]:
    """The open file of every tensor, by the tensor's name."""
    from safetensors import safe_open

    file_names = _tensor_files(folder)
    with ExitStack() as stack:
        files = {
            file: stack.enter_context(safe_open(folder / file, framework="pt")) for file in set(file_names.values())
        }
        yield {name: files[file] for name, file in file_names.items()}


def _shapes(folder: Path) -> Shapes:
    with _open_tensors(folder) as tensors:
        return {name: tuple(file.get_slice(name).get_shape()) for name, file in tensors.items()}


def _check_shapes(models: Sequence[tuple[str, Shapes]]) -> int | None:
    """Number of rows of the instruct model's embedding where tuning added some; None elsewhere.

    Args:
        models: name and shapes of the adapted, the base and the instruct model.
    """
    (adapted, ours), *other_models = models
    for other, theirs in other_models:
        for (complete_model, required_shapes), (incomplete_model, other_shapes) in (
            ((adapted, ours), (other, theirs)),
            ((other, theirs), (adapted, ours)),
        ):
            missing_names = sorted(required_shapes.keys() - other_shapes.keys())
            if missing_names:
                raise ModelError(
                    f"it has no {missing_names[0]}, which {complete_model} has ({len(missing_names)} such weights)",
                    where=incomplete_model,
                    fix="name three models of one architecture: a base, and two that were trained from it",
                )
    rows = None
    for name, shape in ours.items():
        base, instruct = (theirs[name] for _, theirs in other_models)
        grown = len(shape) == 2 and shape == base and shape[1:] == instruct[1:] and instruct[0] > shape[0]
        if grown:
            rows = instruct[0]
        elif not shape == base == instruct:
            shape_list = ", ".join(f"{list(shapes[name])} in {model}" for model, shapes in models)
            raise ModelError(
                f"{name} is {shape_list}; expected is one shape, "
                "or more rows of the embedding in the instruct model alone",
                fix="name three models of one size: a base, and two that were trained from it",
            )
    return rows


def _check_token_ids(base: str, other: str) -> None:
    base_ids, other_ids = (load_tokenizer(source).get_vocab() for source in (base, other))
    renumbered = [token for token, number in base_ids.items() if other_ids.get(token) != number]
    if renumbered:
        raise ModelError(
            f"token {renumbered[0]!r} is number {other_ids.get(renumbered[0])} here and {base_ids[renumbered[0]]} "
            f"in {base} ({len(renumbered)} such tokens); rows of the embedding would be mixed up",
            where=other,
            fix="name models of one tokenizer; a tuned one may only have added tokens at its end",
        )
