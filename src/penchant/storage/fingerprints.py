"""Fingerprints: hashes of texts, files, models and tokenizers, which say whether a stored result is of the same inputs.

They are stored in caches, records of runs and manifests, and compared later: another hash, size or input would make all
that is stored there count as changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from penchant.errors import DataError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = ("*.safetensors", "*.bin")


def hash_parts(parts: Iterable[ReadableBuffer], size: int = 16) -> bytes:
    """The BLAKE2b hash, of `size` bytes, of parts that follow one another."""
    state = hashlib.blake2b(digest_size=size)
    for part in parts:
        state.update(part)
    return state.digest()


def hash_bytes(content: ReadableBuffer, size: int = 16) -> str:
    """`hash_parts` of one part, in 2 * size hexadecimal digits."""
    return hash_parts([content], size).hex()


def hash_text(text: str, size: int = 16) -> str:
    """`hash_bytes` of a text in UTF-8."""
    return hash_bytes(text.encode(), size)


def hash_file(file: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digits of a file's hash, by an algorithm that hashlib knows.

    Raises:
        OSError: the file cannot be read.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def hash_blocks(file: Path, blocks: int, block: int) -> str:
    """The SHA-256 of a large file's size and of blocks at even distances, the first at its start, the last at its end.

    Args:
        blocks: number of blocks, at least 2.
        block: bytes of a block.

    Raises:
        OSError: the file cannot be read.
    """
    size = file.stat().st_size
    state = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        for number in range(blocks):
            stream.seek((size - block) * number // (blocks - 1))
            state.update(stream.read(block))
    return state.hexdigest()


def file_fingerprint(file: str) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256, for a stage's settings.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return hash_file(Path(file))[:16]
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}", where=file, fix="check the path") from error


def weights_fingerprint(model: str) -> str:
    """16 hexadecimal digits for the weights in a file or folder; the name itself where the model is on the hub."""
    path = Path(model)
    if not path.is_dir():
        return file_fingerprint(model) if path.is_file() else model
    files = sorted(file for pattern in WEIGHTS for file in path.rglob(pattern) if "checkpoints" not in file.parts)
    listing = "".join(f"{file.relative_to(path)} {file_fingerprint(str(file))}\n" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


def optional_weights_fingerprint(model: str | None) -> str | None:
    """`weights_fingerprint` of a model, or None for None; a model retrained under the same name gets another one."""
    return None if model is None else weights_fingerprint(model)


def model_fingerprint(model: PreTrainedModel) -> str:
    """A hash of the model's weights (names, shapes, dtypes, bytes) and of the configuration that gives them meaning."""
    import torch

    volatile = {"_name_or_path", "transformers_version", "_attn_implementation", "use_cache", "dtype"}
    config = {key: value for key, value in model.config.to_dict().items() if key not in volatile}

    def parts() -> Iterator[ReadableBuffer]:
        yield json.dumps(config, sort_keys=True, default=str).encode()
        for name, tensor in sorted(model.state_dict().items()):
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
            yield tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()

    return hash_parts(parts()).hex()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all that decides which ids a text becomes: the tokenizer as it is saved, its chat template with it."""

    def parts(folder: Path) -> Iterator[bytes]:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            yield f"{file.relative_to(folder).as_posix()} {file.stat().st_size} ".encode()
            yield file.read_bytes()

    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return hash_parts(parts(Path(folder))).hex()


@lru_cache(maxsize=1)
def engine_fingerprint() -> str:
    """A hash of the source that computes log-probs, all of engine and models: faster code rounds otherwise."""
    package = Path(__file__).parent.parent
    files = sorted(file for room in ("engine", "models") for file in (package / room).rglob("*.py"))
    return hash_parts((file.read_bytes() for file in files), size=8).hex()
