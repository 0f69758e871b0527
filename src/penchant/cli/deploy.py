"""The verbs that take a trained model elsewhere: serve it over HTTP, export it as a GGUF file, push it to the hub."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from penchant.cli.output import Count, Device, Json, log_notes, print_result

if TYPE_CHECKING:
    from penchant.recipes.self_improve.background import BackgroundLearning
    from penchant.recipes.self_improve.config import TrafficConfig


def serve(
    *sources: Annotated[
        str, Parameter(help="Model folders, as FOLDER or NAME=FOLDER; or the folder of a domain-expert recipe.")
    ],
    host: str = "127.0.0.1",
    port: int = 8000,
    batch: Count = 32,
    waiting: Count = 256,
    max_tokens: Count = 512,
    timeout_s: float = 120.0,
    read_timeout_s: float = 30.0,
    max_body_bytes: Count = 4 * 2**20,
    api_key: Annotated[str | None, Parameter(env_var="PENCHANT_API_KEY")] = None,
    allowed_host: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    learn: Path | None = None,
    device: Device = "auto",
) -> None:
    """Serve one or several models, with a router, through OpenAI's protocol at /v1/chat/completions.

    Parameters
    ----------
    host
        Address to listen at; 0.0.0.0 is every network interface, and needs an API key.
    port
        Port to listen at.
    batch
        Maximum number of answers generated together.
    waiting
        Maximum number of waiting requests; further ones are refused with status 503.
    max_tokens
        Maximum tokens of an answer.
    timeout_s
        Seconds from a request to the end of its answer.
    read_timeout_s
        Seconds a client has to send a request's headers, and as many for its body.
    max_body_bytes
        Maximum bytes of a request; larger ones are refused with status 413.
    api_key
        Key that clients must send as a bearer token. PENCHANT_API_KEY hides it from the list of processes.
    allowed_host
        Host name that clients may use, besides addresses, localhost and --host; repeatable; * allows all names.
    learn
        YAML file of learning from the traffic: answers are judged, and the model that the file names is tuned and
        replaced while it serves, as /learning shows. Without model folders this model alone is served.
    """
    from penchant.engine.device import use_device
    from penchant.errors import ConfigError
    from penchant.serving.access import Access, Limits
    from penchant.serving.run import find_experts
    from penchant.serving.run import serve as run

    config = None if learn is None else _learning_config(learn)
    if config is not None and not sources:
        sources = (config.model,)
    if not sources:
        raise ConfigError("no model is given", fix="penchant serve runs/first")
    use_device(device)
    access = Access.for_host(host, api_key, allowed_host)
    limits = Limits(batch, waiting, max_tokens, timeout_s, read_timeout_s, max_body_bytes)
    folders, router = find_experts(sources)
    names = ", ".join([*folders, *(["router"] if router is not None else [])])
    with nullcontext() if config is None else _open_learning(config, folders) as learning:
        log_notes([f"http://{host}:{port}/v1 answers as {names}"])
        if learning is not None:
            folders[learning.expert] = learning.served.model
            log_notes([f"{learning.expert} learns from its traffic, see /learning; {learning.gate_note}"])
        run(folders, router, limits, access, host=host, port=port, learning=learning)


def _learning_config(file: Path) -> TrafficConfig:
    from penchant.config.run import load_section
    from penchant.recipes.self_improve.config import TrafficConfig

    return load_section(TrafficConfig, file)


def _open_learning(config: TrafficConfig, folders: Mapping[str, str]) -> BackgroundLearning:
    """Learning from the traffic of the served model that the configuration names.

    Raises:
        ConfigError: it is not among the served folders, or several names have it.
    """
    from penchant.errors import ConfigError
    from penchant.recipes.self_improve.background import BackgroundLearning

    names = [name for name, folder in folders.items() if Path(folder).resolve() == Path(config.model).resolve()]
    if len(names) != 1:
        served = ", ".join(f"{name}={folder}" for name, folder in folders.items())
        raise ConfigError(
            f"{config.model} is to learn and is served under {len(names)} names, expected one; served are {served}",
            where="model, in the file of what learns",
            fix=f"penchant serve {config.model} --learn FILE",
        )
    return BackgroundLearning(config, names[0])


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
