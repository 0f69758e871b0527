"""The command line: one function for each verb. It parses, calls the library and prints; it holds no logic.

Exit codes: 0 done, 1 unexpected failure, 2 the user's mistake, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number

from penchant.errors import ConfigError, DataError, PenchantError, located

if TYPE_CHECKING:
    from rich.console import Console

app = App(
    name="penchant",
    help="Train, measure and compare language models on human preferences.",
    suppress_keyboard_interrupt=False,
    result_action="return_none",
)
data = App(name="data", help="Look into a preference file: check, show, split, convert.")
app.command(data)

Json = Annotated[bool, Parameter(negative="", help="Print one JSON document on standard output.")]
Rows = Literal["error", "drop"]
Truncation = Literal["error", "drop", "keep_end_of_prompt"]
Dtype = Literal["float32", "bfloat16"]
Count = Annotated[int, Parameter(validator=Number(gte=1))]
Length = Annotated[int, Parameter(validator=Number(gte=2))]
Seed = Annotated[int, Parameter(validator=Number(gte=0))]


@app.command
def demo(
    *, output: Path = Path("demo"), seed: Seed = 0, as_json: Annotated[Json, Parameter(name="--json")] = False
) -> None:
    """Run the embedded default, offline: a small world whose true reward is known, from data to report.

    Parameters
    ----------
    output
        Folder for the data, the models and the report.
    seed
        Of the world, the models and the runs.
    """
    from penchant.recipes.demo import run_demo

    result = run_demo(output, seed=seed, tell=_teller(as_json))
    _answer(result.to_json(), as_json, result.table)


@app.command
def train(
    run: Path,
    *overrides: str,
    resume: Annotated[bool, Parameter(negative="")] = False,
    as_json: Annotated[Json, Parameter(name="--json")] = False,
) -> None:
    """Train one run.

    Parameters
    ----------
    run
        The run's YAML file; with --resume, its output folder will do.
    overrides
        Dotted keys of the configuration, as in objective.beta=0.2 training.seed=1.
    resume
        Go on with the run in the output folder, from its last checkpoint.
    """
    from penchant.config import load_config
    from penchant.engine.distribution import is_main_process
    from penchant.training.report import write_run_report
    from penchant.training.run import train as train_run

    file = run / "config.yaml" if resume and run.is_dir() else run
    if resume and run.is_dir() and not file.exists():
        raise ConfigError("the folder holds no run", where=str(run), fix="name the run's output folder, or its YAML")
    config = load_config(file, [*overrides, f"output={run}"] if file != run else overrides)
    tell = _teller(as_json)
    folder = train_run(config, resume=resume, tell=tell)
    if is_main_process():
        result = write_run_report(folder, tell)
        _answer(result.to_json(), as_json, result.table)


@app.command
def evaluate(
    model: str,
    *,
    data: str,
    reference: str | None = None,
    per_example: Path | None = None,
    format: str | None = None,
    split: str | None = None,
    beta: Annotated[float, Parameter(validator=Number(gt=0))] = 0.1,
    max_length: Length | None = None,
    truncation: Truncation = "error",
    empty: Rows = "error",
    identical: Rows = "error",
    chat_template: str | None = None,
    token_budget: Count = 8192,
    dtype: Dtype = "float32",
    as_json: Annotated[Json, Parameter(name="--json")] = False,
) -> None:
    """Measure a model on held-out preferences: accuracy, AUC and margin, each with a 95 % interval over prompts.

    Parameters
    ----------
    model
        Folder (a run's output, a Hugging Face model, a PEFT adapter) or hub id.
    data
        Preference file, `datasets` folder or hub id.
    reference
        Frozen model to measure implicit rewards against; without one, log-probs are compared.
    per_example
        Write a JSON line for each group to this file.
    format
        The data's format, where it should not be detected.
    split
        Split of a `datasets` folder or hub id.
    beta
        Scale of the implicit reward, for calibration only.
    max_length
        Tokens of prompt + response; the model's context if not given.
    truncation
        What to do with longer rows.
    empty
        What to do with empty candidates.
    identical
        What to do where chosen equals rejected.
    chat_template
        File with a Jinja chat template.
    token_budget
        Tokens in a micro-batch.
    dtype
        Of the matrix products.
    """
    from penchant.data.reading import read_groups
    from penchant.engine.distribution import enter_world, leave_world
    from penchant.evaluation.held_out import Reading, score
    from penchant.evaluation.preferences import evaluate_preferences, write_per_example
    from penchant.evaluation.preferences_table import render

    tell = _teller(as_json)
    read = read_groups(data, format=format, split=split)
    _tell_all(tell, read.notes)
    reading = Reading(max_length, truncation, empty, identical, chat_template, token_budget, dtype)
    world = enter_world()
    try:
        with located(data):
            scored = score(model, read.groups, world, reference=reference, reading=reading, tell=tell)
    finally:
        leave_world(world)
    if not world.is_main:
        return
    report = evaluate_preferences(scored, beta=beta)
    if per_example is not None:
        write_per_example(scored, per_example)
    _answer(report.to_json(), as_json, render(report))


@app.command
def generate(
    model: str,
    prompts: str,
    *,
    samples: Count = 1,
    max_new_tokens: Count = 128,
    temperature: Annotated[float, Parameter(validator=Number(gte=0))] = 1.0,
    top_p: Annotated[float, Parameter(validator=Number(gt=0, lte=1))] = 1.0,
    seed: Seed = 0,
    batch_size: Count = 32,
    limit: Count | None = None,
    chat_template: str | None = None,
    as_json: Annotated[Json, Parameter(name="--json")] = False,
) -> None:
    """Sample responses to prompts.

    Parameters
    ----------
    model
        Folder or hub id.
    prompts
        A preference file whose prompts are used, or a prompt's text.
    samples
        Responses for each prompt.
    max_new_tokens
        Tokens of the longest response.
    temperature
        0 takes the likeliest token each time.
    top_p
        Draw from the smallest set of tokens with this much probability.
    seed
        The same seed gives the same responses.
    batch_size
        Prompts at a time.
    limit
        Only the first so many prompts.
    chat_template
        File with a Jinja chat template.
    """
    from penchant.evaluation.answering import answer, read_prompts
    from penchant.evaluation.generation import Sampling

    sampling = Sampling(samples, max_new_tokens, temperature, top_p, seed, batch_size)
    asked = read_prompts(prompts)[:limit]
    answers = answer(model, asked, sampling, chat_template=chat_template)
    _answer(answers.to_json(), as_json, answers.table)


@app.command
def merge(adapter: Path, output: Path) -> None:
    """Merge a LoRA adapter into its base model, and write an ordinary model folder.

    Parameters
    ----------
    adapter
        A run's output folder, or any PEFT adapter folder.
    output
        A new folder.
    """
    from penchant.engine.loading import merge_adapter

    merge_adapter(str(adapter), output)
    _teller(False)(f"{output}: merged")


@data.command
def check(
    file: str,
    *,
    held_out: str | None = None,
    tokenizer: str | None = None,
    max_length: Length | None = None,
    format: str | None = None,
    split: str | None = None,
    as_json: Annotated[Json, Parameter(name="--json")] = False,
) -> None:
    """Check a preference file: counts, lengths, duplicates, contradictions, leaks, length bias.

    Parameters
    ----------
    file
        Preference file, `datasets` folder or hub id.
    held_out
        Another one, to find prompts that are in both.
    tokenizer
        Folder or hub id, to count in tokens and check its chat template.
    max_length
        Count rows longer than this many tokens.
    format
        The data's format, where it should not be detected.
    split
        Split of a `datasets` folder or hub id.
    """
    from penchant.data.check_table import render
    from penchant.data.checks import check_groups
    from penchant.data.reading import read_groups

    if max_length is not None and tokenizer is None:
        raise ConfigError("--max-length counts tokens, and no tokenizer is named", fix="add: --tokenizer MODEL")
    tell = _teller(as_json)
    read = read_groups(file, format=format, split=split)
    _tell_all(tell, read.notes)
    other = read_groups(held_out, format=format, split=split).groups if held_out else ()
    loaded = None
    if tokenizer is not None:
        from penchant.engine.loading import load_tokenizer

        loaded = load_tokenizer(tokenizer)
    report = check_groups(read.groups, held_out=other, tokenizer=loaded, max_length=max_length)
    _answer(report.to_json(), as_json, render(report))


@data.command
def show(
    file: str,
    *ids: str,
    first: Count = 3,
    tokenizer: str | None = None,
    chat_template: str | None = None,
    format: str | None = None,
    split: str | None = None,
) -> None:
    """Print groups as a person reads them.

    Parameters
    ----------
    file
        Preference file, `datasets` folder or hub id.
    ids
        Which groups; the first few if none is named.
    first
        How many, where no id is named.
    tokenizer
        Folder or hub id, to mark token boundaries.
    chat_template
        File with a Jinja chat template.
    format
        The data's format, where it should not be detected.
    split
        Split of a `datasets` folder or hub id.
    """
    from penchant.data.reading import read_groups
    from penchant.data.show import show_group
    from penchant.data.tokenization import tokenize_groups

    read = read_groups(file, format=format, split=split)
    by_id = {group.id: group for group in read.groups}
    absent = [name for name in ids if name not in by_id]
    if absent:
        raise DataError(
            f"no group has the id {absent[0]}", where=file, fix="ids are the file's, or 0-based row numbers"
        )
    groups = [by_id[name] for name in ids] if ids else list(read.groups[:first])
    console = _console(False)
    console.print("\n".join(read.notes), markup=False)
    if tokenizer is None:
        for group in groups:
            console.print(show_group(group))
        return
    from penchant.engine.loading import load_tokenizer

    loaded = load_tokenizer(tokenizer, chat_template=chat_template)
    for tokenized in tokenize_groups(groups, loaded, max_length=sys.maxsize)[0]:
        console.print(show_group(tokenized.group, tokenized, loaded))


@data.command(name="split")
def split_file(
    file: str,
    *,
    held_out: float = 0.1,
    seed: Seed = 0,
    train_output: Path,
    held_out_output: Path,
    format: str | None = None,
    split: str | None = None,
    as_json: Annotated[Json, Parameter(name="--json")] = False,
) -> None:
    """Split a file by prompt, never by row: no prompt is on both sides.

    Parameters
    ----------
    file
        Preference file, `datasets` folder or hub id.
    held_out
        Share of the prompts to hold out.
    seed
        The same seed and prompts give the same split, in any order of rows.
    train_output
        Where the training groups are written (.jsonl or .jsonl.gz).
    held_out_output
        Where the held-out groups are written.
    format
        The data's format, where it should not be detected.
    split
        Split of a `datasets` folder or hub id.
    """
    from penchant.data.reading import read_groups
    from penchant.data.splitting import split_by_prompt
    from penchant.data.writing import write_groups

    read = read_groups(file, format=format, split=split)
    kept, out = split_by_prompt(read.groups, held_out=held_out, seed=seed)
    write_groups(kept, train_output)
    try:
        write_groups(out, held_out_output)
    except DataError:  # Both files or none.
        train_output.unlink()
        raise
    lines = f"{train_output}: {len(kept)} groups\n{held_out_output}: {len(out)} groups"
    _answer({"train": len(kept), "held_out": len(out)}, as_json, lines)


@data.command
def convert(
    file: str,
    output: Path,
    *,
    format: str | None = None,
    split: str | None = None,
    as_json: Annotated[Json, Parameter(name="--json")] = False,
) -> None:
    """Write any format we read as our own JSON lines.

    Parameters
    ----------
    file
        Preference file, `datasets` folder or hub id.
    output
        Where to write (.jsonl or .jsonl.gz).
    format
        The data's format, where it should not be detected.
    split
        Split of a `datasets` folder or hub id.
    """
    from penchant.data.reading import read_groups
    from penchant.data.writing import write_groups

    read = read_groups(file, format=format, split=split)
    write_groups(read.groups, output)
    notes = list(read.notes)
    _answer(
        {"groups": len(read.groups), "format": read.format, "notes": notes},
        as_json,
        "\n".join([*notes, f"{output}: {len(read.groups)} groups"]),
    )


def main() -> None:
    """Run a command line and exit with its code."""
    # Quiet where we say it ourselves; set before the libraries are imported.
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command line; returns its exit code."""
    try:
        app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _complain(str(error))
        return 2
    except PenchantError as error:
        _complain(str(error))
        return 2
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except Exception as error:
        if type(error).__name__ == "Interrupted":
            _complain(str(error))
            return 130
        import traceback

        traceback.print_exc()
        return 1
    return 0


def _complain(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)


def _console(as_json: bool) -> Console:
    from rich.console import Console

    return Console(stderr=as_json, soft_wrap=False)


def _teller(as_json: bool) -> Any:
    """Prints a line for people: on standard output, or on standard error where that is kept for JSON."""
    console = _console(as_json)
    return lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)


def _tell_all(tell: Any, lines: tuple[str, ...]) -> None:
    for line in lines:
        tell(line)


def _answer(document: dict[str, Any], as_json: bool, people: Any) -> None:
    """The verb's result: one JSON document, or what a person reads."""
    if as_json:
        print(json.dumps(document, ensure_ascii=False, allow_nan=False))
    else:
        # A line that names a file is not broken up, and its brackets are not markup.
        plain = isinstance(people, str)
        _console(False).print(people, soft_wrap=plain, markup=not plain, highlight=not plain)
