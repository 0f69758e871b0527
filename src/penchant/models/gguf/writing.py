"""Models as GGUF files, which llama.cpp and Ollama read."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from penchant.data.tokenization import turn_end
from penchant.errors import ModelError
from penchant.models.gguf.reading import gguf_library
from penchant.models.gguf.tensors import FAMILIES, add_sizes, check_architecture, exact_context, named_tensors
from penchant.models.gguf.vocabulary import Vocabulary, build_vocabulary
from penchant.models.loading import adapter_base, check_vocabulary, load_config, load_model, load_tokenizer
from penchant.models.model_kind import model_kind, require_language_model
from penchant.models.multimodal import is_multimodal, text_config, text_model
from penchant.models.special_tokens import as_list

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_LARGEST_F16 = 65504
TEXT_PART = "only the text part is in the file: llama.cpp reads a multimodal model's towers from a file of their own"

StorageType = Literal["f32", "f16", "q8_0"]


@dataclass(frozen=True)
class ExportedGGUF:
    """Content and size of an exported file.

    Attributes:
        tensors: number of tensors stored in each type.
        kept_apart: tensors stored in f16 instead of q8_0, whose rows are no whole number of its blocks of 32.
        bytes: the file's size.
        notes: where llama.cpp makes other tokens of some texts than this tokenizer, and what the file leaves out.
    """

    tensors: dict[str, int]
    kept_apart: list[str]
    bytes: int
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)


def export_gguf(source: str, output: Path, storage_type: StorageType) -> ExportedGGUF:
    """Write a model and its tokenizer as one GGUF file.

    Matrices are stored in `storage_type`; vectors (norms, biases) always in f32. q8_0 holds blocks of 32 weights as
    int8 and one f16 scale, absmax / 127: a weight is off by at most half a step, and by what the scale loses in f16.
    Matrices whose rows are no whole number of blocks are stored in f16 instead.

    Args:
        source: a folder in Hugging Face or PEFT format, a hub id, or a GGUF file.
        output: a new file, ending in .gguf.
        storage_type: the type in which matrices are stored.

    Raises:
        ConfigError: the package `gguf` is missing.
        ModelError: as `load_model`; or a model or a tokenizer that GGUF cannot hold; or the file cannot be
            written, and nothing is left of it.
    """
    _check_output(output)
    require_language_model(source)
    library = gguf_library()
    config = load_config(adapter_base(source) or source)
    check_architecture(text_config(config), source)
    tokenizer = load_tokenizer(source)
    model = text_model(load_model(source))
    check_vocabulary(model, tokenizer, source)
    vocabulary = build_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings, source)
    types = _types(library, model, storage_type)
    ends = _extra_ends(model, tokenizer)

    def write(temporary: Path) -> None:
        writer = library.GGUFWriter(temporary, FAMILIES[model.config.model_type].architecture)
        try:
            _add_metadata(library, writer, model, output.stem, storage_type)
            _add_tokenizer(writer, vocabulary, tokenizer)
            _add_ends(writer, ends)
            _write_tensors(library, writer, model, types)
        finally:
            writer.close()

    _write_atomically(output, write)
    requested_type = library.GGMLQuantizationType[storage_type.upper()]
    return ExportedGGUF(
        tensors={kind.name.lower(): list(types.values()).count(kind) for kind in sorted(set(types.values()))},
        kept_apart=[
            name for name, kind in types.items() if kind not in (requested_type, library.GGMLQuantizationType.F32)
        ],
        bytes=output.stat().st_size,
        notes=[*vocabulary.notes, *_ends_notes(tokenizer, ends), *_left_out_notes(source, config)],
    )


def _left_out_notes(source: str, config: PretrainedConfig) -> list[str]:
    heads = model_kind(source).heads
    lines = [f"GGUF holds the language model alone: the preference head is left out ({', '.join(heads)})"]
    context = exact_context(text_config(config))
    window = f"the file's context is {context} tokens: the model looks back no further, and llama.cpp would"
    windowed = context < text_config(config).max_position_embeddings
    return [*(lines if heads else []), *([TEXT_PART] if is_multimodal(config) else []), *([window] if windowed else [])]


def _check_output(output: Path) -> None:
    if output.suffix != ".gguf":
        raise ModelError("a GGUF file's name ends in .gguf", where=str(output), fix=f"{output.name}.gguf")
    if output.exists():
        raise ModelError("it is there already", where=str(output), fix="name a new file")
    if not output.parent.is_dir():
        raise ModelError("its folder does not exist", where=str(output), fix=f"mkdir -p {output.parent}")


def _write_atomically(output: Path, write: Callable[[Path], None]) -> None:
    """Write a temporary file, then rename it: no partial file is ever visible or left behind."""
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # It may be a link to another file.
        write(temporary)
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, output)
    except OSError as error:
        # numpy reports a short write without the system's reason.
        raise ModelError(
            f"it cannot be written: {error.strerror or error}",
            where=str(output),
            fix="free some space, or name another place",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _types(library: Any, model: PreTrainedModel, storage_type: StorageType) -> dict[str, Any]:
    """The storage type of every tensor, by name."""
    kinds = library.GGMLQuantizationType
    requested_type = kinds[storage_type.upper()]
    block, _ = library.GGML_QUANT_SIZES[requested_type]

    def kind(tensor: torch.Tensor) -> Any:
        if tensor.ndim == 1:
            return kinds.F32
        return requested_type if tensor.shape[-1] % block == 0 else kinds.F16

    return {name: kind(tensor) for name, tensor in named_tensors(library, model)}


def _add_metadata(library: Any, writer: Any, model: PreTrainedModel, name: str, storage_type: StorageType) -> None:
    files = library.LlamaFileType
    writer.add_type(library.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type({"f32": files.ALL_F32, "f16": files.MOSTLY_F16, "q8_0": files.MOSTLY_Q8_0}[storage_type])
    writer.add_quantization_version(library.GGML_QUANT_VERSION)
    add_sizes(library, writer, model.config)


def _add_tokenizer(writer: Any, vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase) -> None:
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.space_prefix)
    for add, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if number is not None:
            add(number)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    if isinstance(tokenizer.chat_template, dict):
        writer.add_chat_template(
            [{"name": name, "template": template} for name, template in tokenizer.chat_template.items()]
        )
    elif tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _extra_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids other than eos that end a response; the chat template's end of turn first."""
    configured = [] if model.generation_config is None else as_list(model.generation_config.eos_token_id)
    turn = turn_end(tokenizer)
    ends = dict.fromkeys([*([] if turn is None else [turn]), *configured])
    return [end for end in ends if end != tokenizer.eos_token_id]


def _add_ends(writer: Any, ends: Sequence[int]) -> None:
    """llama.cpp stops at an end of turn and an end of message as it does at eos."""
    for add, number in zip((writer.add_eot_token_id, writer.add_eom_token_id), ends, strict=False):
        add(number)


def _ends_notes(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> list[str]:
    """A note where a model has more than the two ends beside eos that a GGUF file holds."""
    if len(ends) <= 2:
        return []
    left_out = ", ".join(repr(token) for token in tokenizer.convert_ids_to_tokens(ends[2:]))
    return [f"the model also ends a response with {left_out}; the file has no room for more than three ends"]


def _write_tensors(library: Any, writer: Any, model: PreTrainedModel, types: dict[str, Any]) -> None:
    """Write all descriptions, then all weights, quantised one at a time: memory holds no second model."""
    for name, tensor in named_tensors(library, model):
        block, size = library.GGML_QUANT_SIZES[types[name]]
        writer.add_tensor_info(
            name, tensor.shape, tensor.numpy().dtype, tensor.numel() // block * size, raw_dtype=types[name]
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in named_tensors(library, model):
        weights = tensor.contiguous().numpy()
        if types[name] == library.GGMLQuantizationType.F16 and abs(weights).max() > _LARGEST_F16:
            raise ModelError(
                f"{name} has weights beyond f16's largest, {_LARGEST_F16}",
                where=model.config.name_or_path,
                fix="store them as f32: --type f32",
            )
        writer.write_tensor_data(library.quantize(weights, types[name]))
