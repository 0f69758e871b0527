"""The verb `penchant export`: a model as a GGUF file, for llama.cpp and Ollama.

Also in this module:

- The verb `penchant push`: a saved folder to the Hugging Face hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from penchant.cli.output import Json, log_notes, print_result


def push(
    run: Path,
    repo: str,
    *,
    private: Annotated[bool, Parameter(negative="")] = False,
    revision: str | None = None,
    message: str | None = None,
    as_json: Json = False,
) -> None:
    """Upload a run's model, its card, configuration and metrics to the Hugging Face hub.

    Parameters
    ----------
    run
        A run's output folder, or any folder with a model or an adapter.
    repo
        The repository, as in organisation/name; created where there is none.
    private
        Create it as a private one; one that is there stays as it is.
    revision
        A branch, created where there is none.
    message
        Of the commit.
    """
    from penchant.training.push import push_folder

    pushed = push_folder(run, repo, private=private, revision=revision, message=message)
    print_result(pushed.to_json(), as_json, f"{pushed.url}: {len(pushed.files)} files")


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
    from penchant.models.gguf.writing import export_gguf

    exported = export_gguf(model, output, stored)
    log_notes(exported.notes)
    if exported.kept_apart:
        count, example = len(exported.kept_apart), exported.kept_apart[0]
        log_notes([f"{count} matrices stay f16, their rows are no multiple of 32; the first is {example}"])
    kinds = ", ".join(f"{count} in {kind}" for kind, count in exported.tensors.items())
    print_result(exported.to_json(), as_json, f"{output}: {exported.bytes / 2**20:.1f} MiB; tensors: {kinds}")
