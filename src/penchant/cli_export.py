"""The verb `penchant export`: a model as a GGUF file, for llama.cpp and Ollama."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from penchant.cli_output import Json, deliver, tell_all, teller


def export(
    model: str,
    output: Path,
    *,
    stored: Annotated[Literal["f32", "f16", "q8_0"], Parameter(name="--type")] = "f16",
    as_json: Json = False,
) -> None:
    """Write a model as a GGUF file, which llama.cpp and Ollama read.

    Parameters
    ----------
    model
        Folder (a run's output, a Hugging Face model, a PEFT adapter), hub id or GGUF file; a Llama or a Qwen2.
    output
        A new file, ending in .gguf.
    stored
        How matrices are stored: 4, 2 or about 1 byte a weight. Vectors are always f32.
    """
    from penchant.engine.gguf_writing import export_gguf

    exported = export_gguf(model, output, stored)
    tell_all(teller(as_json), exported.notes)
    if exported.kept_apart:
        teller(as_json)(
            f"{len(exported.kept_apart)} matrices stay f16, their rows are no multiple of 32; "
            f"the first is {exported.kept_apart[0]}"
        )
    kinds = ", ".join(f"{count} in {kind}" for kind, count in exported.tensors.items())
    deliver(exported.to_json(), as_json, f"{output}: {exported.bytes / 2**20:.1f} MiB; tensors: {kinds}")
