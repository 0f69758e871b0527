"""The verbs `penchant export`, a model as a GGUF file, and `penchant push`, a saved folder to the Hugging Face hub."""

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
        Repository, as in organisation/name; created where it does not exist.
    private
        Create a private repository; an existing one keeps its visibility.
    revision
        Branch to upload to; created where it does not exist.
    message
        Message of the commit.
    """
    from penchant.training.push import push_folder

    pushed = push_folder(run, repo, private=private, revision=revision, message=message)
    print_result(pushed.to_json(), as_json, f"{pushed.url}: {len(pushed.files)} files")


def export(
    model: str,
    output: Path,
    *,
    matrix_type: Annotated[Literal["f32", "f16", "q8_0"], Parameter(name="--type")] = "f16",
    as_json: Json = False,
) -> None:
    """Write a model as a GGUF file, which llama.cpp and Ollama read.

    Parameters
    ----------
    model
        Folder (a run's output, a Hugging Face model, a PEFT adapter), hub id or GGUF file; a Llama, Mistral, Qwen2,
        Qwen3, Gemma 2 or Gemma 3.
    output
        Output file, a new file that ends in .gguf.
    matrix_type
        Type of stored matrices, with 4, 2 or about 1 byte per weight. Vectors are always f32.
    """
    from penchant.models.gguf.writing import export_gguf

    exported = export_gguf(model, output, matrix_type)
    log_notes(exported.notes)
    if exported.kept_apart:
        reason = "because the length of their rows is no multiple of 32"
        count, example = len(exported.kept_apart), exported.kept_apart[0]
        log_notes([f"{count} matrices stay f16, {reason}; the first is {example}"])
    kinds = ", ".join(f"{count} in {kind}" for kind, count in exported.tensors.items())
    print_result(exported.to_json(), as_json, f"{output}: {exported.bytes / 2**20:.1f} MiB; tensors: {kinds}")
