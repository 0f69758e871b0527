"""A saved folder's README.md: a model card with Hugging Face metadata, so that the folder can be pushed as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from penchant.config.objective import code_runs, describe_objective, names_code, without_code
from penchant.config.run import RunConfig, load_config
from penchant.errors import CheckpointError, reason_of
from penchant.models.loading import adapter_base
from penchant.models.model_kind import ModelKind, model_kind
from penchant.models.saving import stored_types
from penchant.storage.files import read_record, write_atomically
from penchant.training.model_source import ModelSource, describe_source


def held_out_rows(start_metrics: Mapping[str, Any], final_metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value before training and value after it of each metric that has one.

    Args:
        start_metrics, final_metrics: ``before`` and ``after`` of evaluation.json.
    """
    rows = []
    for name in final_metrics["definitions"]:
        cells = [metric_text(document.get(name)) for document in (start_metrics, final_metrics)]
        if any(cells):
            rows.append((name, cells[0] or "", cells[1] or ""))
    return rows


def metric_text(value: object) -> str | None:
    """A metric of evaluation.json with its 95 % interval as text; None where there is no value."""
    if not isinstance(value, dict) or value.get("value") is None:
        return None
    if value.get("low") is None:
        return f"{value['value']:.4f}"
    return f"{value['value']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"


_NAME = '"FOLDER OR ID"'


def loading_code(kind: ModelKind, base: ModelSource) -> str:
    """A code block that loads the folder, and sentences on what the code does not load."""
    code = "\n".join(["```python", *_imports(kind), "", *_calls(kind), "```"])
    return "\n\n".join([code, *_remarks(kind, base)])


def _class(kind: ModelKind) -> str:
    task = "SequenceClassification" if kind.is_reward_model else "CausalLM"
    if kind.is_adapter:
        return f"AutoPeftModelFor{task}"
    multimodal = (kind.architecture or "").endswith("ForConditionalGeneration")
    return "AutoModelForImageTextToText" if multimodal else f"AutoModelFor{task}"


def _imports(kind: ModelKind) -> list[str]:
    if not kind.is_adapter:
        return [f"from transformers import {_class(kind)}, AutoTokenizer"]
    names = "AutoTokenizer" if kind.is_reward_model else "AutoTokenizer, GenerationConfig"
    return [f"from peft import {_class(kind)}", f"from transformers import {names}"]


def _calls(kind: ModelKind) -> list[str]:
    labels = ", num_labels=1" if kind.is_reward_model and kind.is_adapter else ""
    calls = [
        f"model = {_class(kind)}.from_pretrained({_NAME}{labels})",
        f"tokenizer = AutoTokenizer.from_pretrained({_NAME})",
    ]
    if kind.is_adapter and kind.is_reward_model:
        calls.append(
            "model.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # an adapter cannot carry it"
        )
    elif kind.is_adapter:
        calls.append(f"model.generation_config = GenerationConfig.from_pretrained({_NAME})  # where responses end")
    return calls


def _remarks(kind: ModelKind, base: ModelSource) -> list[str]:
    remarks = []
    if kind.is_reward_model:
        remarks.append("The model's one logit is the reward of a prompt with its response.")
    if kind.heads:
        remarks.append(
            "The preference head beside it is read by Penchant: `penchant rank FOLDER --data FILE --by head`, "
            "`penchant generate FOLDER PROMPT --best-of 8`."
        )
    if kind.is_adapter and (base.gguf or base.local):
        remarks.append("adapter_config.json names the base by its path; `penchant merge` writes a whole model.")
    return remarks


CARD_FILE = "README.md"

_TRAINING = (
    *("epochs", "max_steps", "batch_size", "learning_rate", "schedule", "warmup", "weight_decay", "max_grad_norm"),
    *("dtype", "seed"),
)


@dataclass(frozen=True)
class Card:
    """The contents of a model card; empty parts are left out.

    Attributes:
        name: name of the folder.
        summary: one sentence that describes the model.
        base: the model that training started from.
        kind: the kind of model, which decides the metadata and the loading code.
        tags: tags besides `penchant`.
        rows: name and value of the settings of training.
        data: lines on the data.
        held_out: rows of metric, value before and value after.
        notes: sentences under the table of metrics.
        versions: package -> version.
        datasets: hub ids of the data.
    """

    name: str
    summary: str
    base: ModelSource
    kind: ModelKind
    tags: Sequence[str] = ()
    rows: Sequence[tuple[str, str]] = ()
    data: Sequence[str] = ()
    held_out: Sequence[tuple[str, str, str]] = ()
    notes: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    datasets: Sequence[str] = ()

    def text(self) -> str:
        """The text of the file."""
        return "\n\n".join(part for part in (self._front(), *self._body()) if part) + "\n"

    def _front(self) -> str:
        metadata: dict[str, Any] = {
            "base_model": self.base.hub_name,
            "library_name": "peft" if self.kind.is_adapter else "transformers",
            "pipeline_tag": "text-classification" if self.kind.is_reward_model else "text-generation",
            "tags": ["penchant", *self.tags],
        }
        if self.datasets:
            metadata["datasets"] = list(self.datasets)
        metadata |= self.base.license
        return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---"

    def _body(self) -> list[str]:
        return [
            f"# {self.name}",
            self.summary,
            _section("How it was made", _table(("", ""), self.rows)),
            _section("Data", "\n".join(f"- {line}" for line in self.data)),
            _section("Held-out", _table(("metric", "before", "after"), self.held_out), *self.notes),
            _section("Loading", loading_code(self.kind, self.base)),
            _section("Licence", self.base.license_text),
            _section("Versions", ", ".join(f"{name} {version}" for name, version in self.versions.items())),
        ]


def write_model_card(folder: Path, config: RunConfig) -> None:
    """Write the card of a run's folder from its files, with held-out metrics once evaluation.json is there."""
    write_atomically(folder / CARD_FILE, run_card(folder, config, model_kind(str(folder)), folder).text())


def write_merged_card(source: Path, output: Path) -> None:
    """Write the card of a folder that an adapter was merged into.

    Args:
        source: the adapter's folder, a run's or another's.
    """
    kind = model_kind(str(output))
    if (source / "config.yaml").is_file() and (source / "run.json").is_file():
        with without_code():
            card = run_card(source, load_config(source / "config.yaml"), kind, output)
        note = "The numbers are those of the adapter beside its base, before it was merged."
        card = replace(card, name=output.name, notes=[*card.notes, note] if card.held_out else [])
    else:
        base = describe_source(adapter_base(str(source)) or str(source))
        summary = f"{base.name} with the adapter {source.name} merged into its weights."
        card = Card(output.name, summary, base, kind, rows=_weights_rows(output, base))
    write_atomically(output / CARD_FILE, card.text())


def run_card(folder: Path, config: RunConfig, kind: ModelKind, weights: Path) -> Card:
    """The card of a run.

    Args:
        folder: the run's folder.
        weights: the folder with the described weights.
    """
    base, method = describe_source(config.model), method_name(config)
    record = read_record(folder / "run.json", ("data", "environment"), "put the whole file back")
    tags = [method, *(["lora"] if config.lora is not None else [])]
    held_out, notes = _held_out(folder, weights, config)
    return Card(
        name=Path(config.output).name or folder.name,
        summary=f"{_product(kind)} trained from {base.name} with `{method}`.",
        base=base,
        kind=kind,
        tags=[*tags, *(["reward-model"] if kind.is_reward_model else []), *(["preference-head"] if kind.heads else [])],
        rows=[*_method_rows(config, base), *_weights_rows(weights, base)],
        data=[*_data_lines(config), f"fingerprint of all token ids and preferences: `{record['data']}`"],
        held_out=held_out,
        notes=notes,
        versions=_versions(record["environment"]),
        datasets=[config.data.train] if _is_hub_id(config.data.train) else [],
    )


def method_name(config: RunConfig) -> str:
    """The name of the objective; as configured where its code is not run."""
    return (
        config.built_objective.name
        if code_runs() or not names_code(config.objective)
        else str(config.objective["name"])
    )


def _product(kind: ModelKind) -> str:
    if kind.is_reward_model:
        return "A reward model"
    if kind.heads:
        return "A language model with a preference head"
    return "An adapter" if kind.is_adapter else "A language model"


def _method_rows(config: RunConfig, base: ModelSource) -> list[tuple[str, str]]:
    settings = describe_objective(config.built_objective, config.objective)
    hyper_parameters = {name: value for name, value in settings.items() if name not in ("name", "file")}
    rows = [("starting model", base.name), ("method", f"`{method_name(config)}`")]
    if hyper_parameters:
        rows.append(("its hyper-parameters", ", ".join(f"{name} {value}" for name, value in hyper_parameters.items())))
    names = [base.name if source is None else describe_source(source).name for source in config.reference_sources]
    if names:
        names[0] += " (replaced by the policy at each best evaluation)" if config.reference_update == "best" else ""
        rows.append(("reference" if len(names) == 1 else "references", ", ".join(names)))
    if config.reward is not None:
        judge = config.reward.judge
        reward = config.reward.model or config.reward.function or (judge.model if judge is not None else "")
        rows.append(("reward", Path(reward).name))
    if config.lora is not None:
        lora = config.lora
        rows.append(("LoRA", f"rank {lora.rank}, alpha {lora.alpha:g}, targets {lora.targets}"))
    training = config.training.model_dump()
    unused = "epochs" if config.training.max_steps is not None else "max_steps"
    values = [f"{name} {training[name]}" for name in _TRAINING if name != unused]
    return [*rows, ("training", ", ".join(values))]


def _weights_rows(folder: Path, base: ModelSource) -> list[tuple[str, str]]:
    types = ", ".join(stored_types(folder))
    rows = [("weights on disk", types)] if types else []
    if base.gguf is not None:
        noisy = base.gguf not in ("F32", "F16", "BF16")
        noise = "; they carry its rounding, and so does this model" if noisy else ""
        rows.append(("base's weights", f"read from a GGUF file of type {base.gguf}{noise}"))
    return rows


def _data_lines(config: RunConfig) -> list[str]:
    data = config.data
    lines = [f"trained on {_file_name(data.train)}" + (f", split {data.split}" if data.split else "")]
    if isinstance(data.held_out, float):
        lines.append(f"{data.held_out:.0%} of its prompts held out")
    elif data.held_out is not None or data.held_out_split is not None:
        split = f", split {data.held_out_split}" if data.held_out_split else ""
        lines.append(f"held out: {_file_name(data.held_out or data.train)}{split}")
    if isinstance(data.reference_held_out, float):
        lines.append(f"{data.reference_held_out:.0%} of its prompts held out for reference weights")
    elif data.reference_held_out is not None:
        lines.append(f"held out for reference weights: {_file_name(data.reference_held_out)}")
    return lines


def _held_out(folder: Path, weights: Path, config: RunConfig) -> tuple[list[tuple[str, str, str]], list[str]]:
    file = folder / "evaluation.json"
    if not file.is_file():
        return [], []
    fix = "delete it: it is measured again"
    record = read_record(file, (), fix)
    try:
        rows, notes = _held_out_rows(record)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the file is damaged: {reason_of(error)}", where=str(file), fix=fix) from error
    types = stored_types(weights)
    if rows and config.lora is None and types != ["float32"]:
        notes.append(f"Measured on the weights as saved, in {', '.join(types)}; metrics.jsonl holds float32's numbers.")
    return rows, notes


def _held_out_rows(record: Mapping[str, Any]) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Rows of metric, before and after, and notes, from what evaluation.json holds."""
    rows, notes = [], []
    if "after" in record:
        rows += held_out_rows(record["before"], record["after"])
        notes.append(f"{record['after']['groups']} groups; in brackets the 95 % interval over prompts.")
    if (reward_accuracy := metric_text(record.get("reward_accuracy"))) is not None:
        rows.append(("reward_accuracy", "", reward_accuracy))
    return rows, notes


def _versions(environment: Mapping[str, Any]) -> dict[str, str]:
    names = ("penchant", "torch", "transformers", "peft", "tokenizers", "datasets", "python")
    return {name: str(environment[name]) for name in names if name in environment}


def _section(title: str, *parts: str) -> str:
    return "\n\n".join((f"## {title}", *parts)) if parts and parts[0] else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _file_name(source: str) -> str:
    """A file's name without its folders; a hub id as it is."""
    return source if _is_hub_id(source) else Path(source).name


def _is_hub_id(source: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) is not None and not Path(source).exists()
