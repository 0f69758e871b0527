"""The command line: one function per verb, which parses arguments, calls the library and prints; no logic.

Exit codes: 0 done, 1 unexpected failure, 2 the user's mistake, 130 interrupted, 143 and 129 stopped by SIGTERM and
SIGHUP.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number

from penchant.cli.compare import compare, sweep
from penchant.cli.data import data
from penchant.cli.deploy import export, push, serve
from penchant.cli.evaluate import generate, rank, score
from penchant.cli.flags import ALL, ReadingFlags, available_flags
from penchant.cli.output import (
    VERB,
    Device,
    Json,
    SaveDtype,
    Seed,
    Source,
    Verb,
    advised,
    device_key,
    log_notes,
    print_result,
    show_notices,
)
from penchant.cli.plan import plan
from penchant.cli.recipe import recipe, recipe_keys, recommend
from penchant.cli.review import audit, ratings, review
from penchant.cli.tasks import tasks, tool_calls
from penchant.errors import ConfigError, PenchantError, locate_errors

app = App(
    name="penchant",
    help="Train, measure and compare language models on human preferences.",
    suppress_keyboard_interrupt=False,
    result_action="return_none",
)
app.command(data)
data.command(review)
data.command(audit)
data.command(ratings)
app.command(compare)
app.command(export)
app.command(generate)
app.command(plan)
app.command(push)
app.command(rank)
app.command(recipe)
app.command(recommend)
app.command(serve)
app.command(score)
app.command(sweep)
app.command(tasks)
app.command(tool_calls)


@app.command
def demo(*, output: Path = Path("demo"), seed: Seed = 0, device: Device = "auto", as_json: Json = False) -> None:
    """Train, compare and report on generated data with a known reward, offline.

    Parameters
    ----------
    output
        Output folder for data, models and report.
    seed
        Seed of the data, the models and the runs.
    """
    from penchant.engine.device import use_device
    from penchant.recipes.demo import run_demo

    use_device(device)
    result = run_demo(output, seed=seed)
    print_result(result.to_json(), as_json, result.table)


@app.command
def train(
    run: Path,
    *overrides: str,
    resume: Annotated[bool, Parameter(negative="")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train a model as a run's YAML file describes.

    Parameters
    ----------
    run
        The run's YAML file; with --resume also its output folder.
    overrides
        Dotted keys of the configuration, as in objective.beta=0.2 training.seed=1.
    resume
        Resume the run from its last checkpoint.
    """
    from penchant.config.run import load_config
    from penchant.engine.device import on_device
    from penchant.engine.distributed import is_main_process
    from penchant.planning.train import planned_budget
    from penchant.training.report import write_run_report
    from penchant.training.run import train as train_run

    file = run / "config.yaml" if resume and run.is_dir() else run
    if resume and run.is_dir() and not file.exists():
        raise ConfigError("the folder contains no run", where=str(run), fix="name the run's output folder, or its YAML")
    config = load_config(file, [*overrides, *device_key("device", device)])
    if file != run:
        # Not an override, because those are YAML: a folder may be called 2024, or contain a #.
        config = config.model_copy(update={"output": str(run)})
    with on_device(config.device):
        folder = train_run(config, resume=resume, choose_budget=planned_budget)
        if is_main_process():
            result = write_run_report(folder)
            print_result(result.to_json(), as_json, result.table)


@app.command
def evaluate(
    model: str,
    *,
    data: Source,
    reference: str | None = None,
    per_example: Path | None = None,
    beta: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    flags: Annotated[ReadingFlags, available_flags(*ALL)] = ReadingFlags(),
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a model on held-out preferences: accuracy, AUC and margin, each with a 95 % interval over prompts.

    Parameters
    ----------
    model
        Folder (a run's output, a Hugging Face model, a PEFT adapter), hub id or GGUF file. A reward model is evaluated
        by its rewards.
    reference
        Reference model for implicit rewards; without one, log-probs are compared.
    per_example
        Output file with a JSON line per group.
    beta
        Scale of the implicit reward, for calibration only; 0.1 if not given.
    """
    from penchant.engine.device import use_device
    from penchant.engine.distributed import destroy_process_group, init_process_group
    from penchant.evaluation.preferences import render
    from penchant.evaluation.reward_preferences import measure_model

    use_device(device)
    dataset = flags.load(data)
    log_notes(dataset.notes)
    world = init_process_group()
    try:
        with locate_errors(data):
            report = measure_model(
                model,
                dataset.groups,
                world,
                reference=reference,
                beta=beta,
                reading=flags.reading,
                per_example=per_example,
            )
    finally:
        destroy_process_group(world)
    if report is not None:
        print_result(report.to_json(), as_json, render(report))


@app.command
def merge(adapter: Path, output: Path, *, save_dtype: SaveDtype = "auto") -> None:
    """Merge a LoRA adapter into its base model, and write the result as a model folder.

    Parameters
    ----------
    adapter
        A run's output folder, or any PEFT adapter folder.
    output
        Output folder, a new one.
    save_dtype
        Dtype of the saved weights; auto is that of the base model.
    """
    from penchant.models.lora import merge_adapter
    from penchant.models.model_kind import model_kind
    from penchant.training.model_card import write_merged_card

    merge_adapter(str(adapter), output, save_dtype)
    write_merged_card(adapter, output)
    heads = "".join(f", with its preference head {name}" for name in model_kind(str(output)).heads)
    print_result({}, False, f"{output}: merged{heads}")


@app.command
def residual(adapted: Path, *, base: Path, instruct: Path, output: Path, scale: float = 1.0) -> None:
    """Add the difference between an instruction-tuned model and its base: adapted + scale (instruct - base).

    Parameters
    ----------
    adapted
        Folder of a model trained from the base, as on the text of a domain.
    base
        Folder or hub id of the base model.
    instruct
        Folder or hub id of the instruction-tuned model of the same base.
    output
        Output folder, a new one.
    scale
        Factor of the difference.
    """
    from penchant.models.model_kind import model_kind
    from penchant.models.residual import add_residual

    add_residual(str(adapted), str(base), str(instruct), output, scale=scale)
    print_result({}, False, f"{output}: written")
    if heads := model_kind(str(adapted)).heads:
        reason = "because it was trained on another model"
        log_notes([f"the preference head is left out ({', '.join(heads)}), {reason}"])


NOTICE_PACKAGE = {
    "compare": "penchant.comparison",
    "sweep": "penchant.comparison",
    "demo": "penchant.recipes",
    "recipe": "penchant.recipes",
    "recommend": "penchant.recipes",
}
"""The package whose notices a verb prints, where it trains or measures many models: their notices are in `run.log`."""

app.meta.suppress_keyboard_interrupt = False


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    verbose: Annotated[bool, Parameter(name=("--verbose", "-v"), negative="")] = False,
    quiet: Annotated[bool, Parameter(name=("--quiet", "-q"), negative="")] = False,
) -> None:
    """Run a verb with its notices printed.

    Parameters
    ----------
    verbose
        Print debug messages too, and the notices of all runs within a comparison or a recipe.
    quiet
        Print warnings and the result only.
    """
    if verbose and quiet:
        raise ConfigError("-v and -q are both given", fix="give one of them")
    VERB.set(partial(verb_of, list(tokens)))
    command, bound_arguments, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    on_stderr = command is serve or bool(bound_arguments.arguments.get("as_json"))
    with show_notices(level, NOTICE_PACKAGE.get(command.__name__, "penchant"), on_stderr=on_stderr):
        command(*bound_arguments.args, **bound_arguments.kwargs)


def keep_freed_memory() -> None:
    """Make glibc keep the memory that this process frees, so that its size stays at its peak.

    A training step allocates and frees the same hundreds of megabytes as the step before. By default glibc hands them
    back to the kernel each time, and the kernel fills every page with zeros when it is touched again: a fifth of a
    step's time. Without glibc nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return
    mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: bytes from which a block gets pages of its own.
    mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: free bytes at the heap's end that go back to the kernel.


def main() -> None:
    """Run a command line and exit with its code."""
    keep_freed_memory()
    # Data and names of columns may contain lone surrogates, which are printed with JSON's escapes.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # No progress bars of the libraries beside ours; set before the libraries are imported.
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command line; returns its exit code."""
    running = VERB.set(None)
    try:
        app.meta(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _complain(str(error))
        return 2
    except PenchantError as error:
        _complain(str(advised(error)))
        return 2
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except Exception as error:
        if type(error).__name__ == "Interrupted":
            _complain(str(error))
            return int(getattr(error, "exit_code", 130))
        import traceback

        traceback.print_exc()
        return 1
    finally:
        VERB.reset(running)
    return 0


def verb_of(arguments: list[str]) -> Verb | None:
    """The verb of a command line with its flags; None for a command line without a verb."""
    names, apps, operands = app.parse_commands(arguments)
    if not names or names[0].startswith("-"):
        return None
    options = (argument for argument in apps[-1].assemble_argument_collection() if argument.parse)
    flags = frozenset(name for argument in options for name in argument.names)
    keys = (
        recipe_keys(next((word for word in operands if not word.startswith("-")), "")) if names == ("recipe",) else ()
    )
    return Verb(" ".join(names), flags, keys)


def _complain(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
