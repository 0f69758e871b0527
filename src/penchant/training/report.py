"""The held-out metrics, samples and report.html of a finished run."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.config.run import RunConfig, load_config
from penchant.config.shared_sections import RewardConfig
from penchant.data.groups import PreferenceGroup, as_text
from penchant.engine.distributed import World
from penchant.evaluation.answering import Sampling, answer, answerable_prompts, distinct_prompts
from penchant.evaluation.held_out import Reading, log_new_notes, score_with_notes
from penchant.evaluation.preferences import LIKELIHOOD, PreferenceReport, evaluate_preferences, with_likelihood
from penchant.evaluation.ranking import rank, rank_by_reward
from penchant.evaluation.report import Curve, RunReport, Sample, Table, write_report
from penchant.evaluation.rewards import ModelReward, open_reward
from penchant.evaluation.statistics import Estimate
from penchant.storage.files import disk_errors, read_record, read_records, resume_command, write_atomically
from penchant.training.folder import run_log
from penchant.training.inputs import read_inputs
from penchant.training.model_card import held_out_rows, metric_text, write_model_card

if TYPE_CHECKING:
    from rich.table import Table as RichTable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """The results of a finished run.

    Attributes:
        start_report, trained_report: held-out metrics of the model training started from, and of the trained one; None
            without held-out data, or where a reward model was trained.
        reward_accuracy: share of held-out pairs that the trained reward model or preference head orders rightly; None
            where neither was trained.
    """

    folder: Path
    steps: int
    loss: float | None
    start_report: PreferenceReport | None
    trained_report: PreferenceReport | None
    reward_accuracy: Estimate | None = None

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {"output": str(self.folder), "steps": self.steps, "loss": self.loss}
        for name, report in (("before", self.start_report), ("after", self.trained_report)):
            if report is not None:
                document[name] = report.to_json()
        if self.reward_accuracy is not None:
            document["reward_accuracy"] = self.reward_accuracy.to_json()
        return document

    @property
    def table(self) -> RichTable:
        from rich.table import Table as RichTable

        table = RichTable("held-out", "before", "after", title=f"{self.folder}: {self.steps} steps")
        if self.start_report is not None and self.trained_report is not None:
            for row in held_out_rows(self.start_report.to_json(), self.trained_report.to_json()):
                table.add_row(*row)
        if self.reward_accuracy is not None:
            table.add_row("reward accuracy", "", metric_text(self.reward_accuracy.to_json()) or "")
        return table


def write_run_report(folder: Path) -> RunResult:
    """Measure the run's model on its held-out data, answer a few prompts before and after, and write report.html.

    Raises:
        PenchantError: the run's data or models are at fault, or the disk is full.
    """
    config = load_config(folder / "config.yaml").model_copy(update={"output": str(folder)})
    with disk_errors(folder, resume_command(f"penchant train --resume {folder}")), run_log() as log:
        log.open(folder)
        return _write_run_report(folder, config)


def _write_run_report(folder: Path, config: RunConfig) -> RunResult:
    lines = read_records(folder / "metrics.jsonl", f"penchant train --resume {folder}")
    steps = [line for line in lines if "loss" in line]
    fix = "put the whole file back, or start a new run: output=DIR"
    notes = read_record(folder / "run.json", ("notes",), fix)["notes"]
    held_out = read_inputs(config).held_out
    start_report, trained_report, reward_accuracy, samples = None, None, None, []
    needs = config.built_objective.needs
    document: dict[str, Any] = {}
    new_notes: list[str] = []
    if held_out and needs.trains == "log_probs":
        start_report, trained_report, new_notes = _held_out(config, held_out, notes)
        document = {"before": start_report.to_json(), "after": trained_report.to_json()}
        samples = _samples(config, held_out)
    if held_out and (needs.head or needs.trains == "rewards"):
        reward_accuracy, head_notes = _reward_accuracy(config, held_out, [*notes, *new_notes])
        new_notes += head_notes
        document["reward_accuracy"] = None if reward_accuracy is None else reward_accuracy.to_json()
    if document:
        document |= {"notes": new_notes} if new_notes else {}
        write_atomically(folder / "evaluation.json", json.dumps(document, indent=2, ensure_ascii=False))
    result = RunResult(
        folder,
        steps=steps[-1]["step"] if steps else 0,
        loss=steps[-1]["loss"] if steps else None,
        start_report=start_report,
        trained_report=trained_report,
        reward_accuracy=reward_accuracy,
    )
    write_model_card(folder, config)
    write_report(folder / "report.html", _run_report(config, result, lines, samples, [*notes, *new_notes]))
    logger.info(f"report: {folder / 'report.html'}")
    return result


def _held_out(
    config: RunConfig, held_out: Sequence[PreferenceGroup], logged: Sequence[str]
) -> tuple[PreferenceReport, PreferenceReport, list[str]]:
    """Held-out metrics before and after training, and the notes that are not `logged` yet."""
    world, reading = World.single(), Reading.of_run(config)
    sources = config.reference_sources
    reference = (sources[0] or config.model) if sources else None
    beta = float(getattr(config.built_objective, "beta", 0.1))
    reports, notes = [], list[str]()
    for model in (config.model, config.output):
        scored, lines = score_with_notes(
            model, held_out, world, reference=reference, reading=reading, logged=[*logged, *notes]
        )
        notes += lines
        report = evaluate_preferences(scored, beta=beta)
        reports.append(with_likelihood(report, scored) if config.built_objective.name == "sft" else report)
    logger.info(f"held-out: {_describe_size(reports[1])}")
    return reports[0], reports[1], notes


def _describe_size(report: PreferenceReport) -> str:
    """The number of evaluated groups, and the loss where it is one of single responses."""
    size = f"{report.groups} groups of {report.prompts} prompts"
    if not report.groups:
        size = f"{report.groups_without_pairs} groups without a pair"
    loss = [f"{name} {metric_text(report.metrics[name].to_json())}" for name in LIKELIHOOD if name in report.metrics]
    return ", ".join([size, *loss])


def _reward_accuracy(
    config: RunConfig, held_out: Sequence[PreferenceGroup], logged: Sequence[str]
) -> tuple[Estimate | None, list[str]]:
    """Accuracy of the trained reward model or head on the held-out pairs that fit the model, and new notes."""
    world, reading = World.single(), replace(Reading.of_run(config), identical="drop")
    if config.built_objective.needs.head:
        ranking = rank(config.output, held_out, world, by="head", reading=reading, logged=logged)
        return ranking.accuracy, list(ranking.notes)
    reading = replace(reading, truncation="drop", empty="drop")
    reward = open_reward(RewardConfig(model=config.output), device=world.device, reading=reading)
    assert isinstance(reward, ModelReward)
    groups, lines = reward.comparable_groups(held_out)
    notes = log_new_notes([*lines, *reward.rounding_notes(groups)], logged)
    return rank_by_reward(groups, reward).accuracy, notes


def _samples(config: RunConfig, held_out: Sequence[PreferenceGroup]) -> list[Sample]:
    limit, tokens = config.evaluation.samples, config.evaluation.sample_tokens
    all_prompts = distinct_prompts(held_out) if limit else []
    # A model with learned positions fails beyond its context; others were not trained there.
    reading = Reading.of_run(config)
    answerable = answerable_prompts(config.model, all_prompts, tokens, reading)
    prompts = answerable.prompts[:limit]
    if len(prompts) < min(limit, len(all_prompts)):
        reasons = {
            "refused by the chat template or the tokenizer": answerable.refused_count,
            f"without room for evaluation.sample_tokens={tokens} in the context": answerable.too_long_count,
        }
        counts = ", ".join(
            f"{reason}: {count} of {len(all_prompts)} prompts" for reason, count in reasons.items() if count
        )
        logger.info(f"{len(prompts)} of {min(limit, len(all_prompts))} samples ({counts})")
    if not prompts:
        return []
    sampling = Sampling(max_new_tokens=tokens, seed=config.training.seed)
    answers = [answer(model, prompts, sampling, reading).responses for model in (config.model, config.output)]
    triples = zip(prompts, *answers, strict=True)
    return [
        Sample(as_text(prompt), start_answers[0], trained_answers[0])
        for prompt, start_answers, trained_answers in triples
    ]


def _run_report(
    config: RunConfig,
    result: RunResult,
    lines: Sequence[dict[str, Any]],
    samples: Sequence[Sample],
    notes: Sequence[str],
) -> RunReport:
    tables = []
    if result.reward_accuracy is not None:
        row = ("reward accuracy", metric_text(result.reward_accuracy.to_json()) or "", str(result.reward_accuracy.n))
        note = "Share of held-out pairs whose preferred response has the higher reward (a tie is wrong): mean over a "
        note += "group's pairs, then over groups, with the 95 % interval over prompts."
        tables.append(Table("Held-out reward accuracy", ("metric", "value", "groups"), [row], note))
    if result.start_report is not None and result.trained_report is not None:
        documents = result.start_report.to_json(), result.trained_report.to_json()
        rows = [(*row, documents[1]["definitions"][row[0]]) for row in held_out_rows(*documents)]
        note = f"{_describe_size(result.trained_report)}; in brackets the 95 % interval over prompts."
        if result.trained_report.groups:
            note += " If length_accuracy is far from a half, compare accuracy with it: a model that learnt only length "
            note += "reaches that."
        tables.append(Table("Held-out preferences", ("metric", "before", "after", "what it is"), rows, note))
    summary = [
        ("model", config.model),
        ("objective", config.built_objective.name),
        ("data", config.data.train),
        ("steps", str(result.steps)),
        ("last loss", "" if result.loss is None else f"{result.loss:.4f}"),
    ]
    return RunReport(
        title=f"{config.built_objective.name}: {result.folder.name}",
        summary=summary,
        curves=_curves(lines),
        tables=tables,
        samples=samples,
        figures=[],
        notices=list(notes),
        config_yaml=(result.folder / "config.yaml").read_text(encoding="utf-8"),
    )


def _curves(lines: Sequence[dict[str, Any]]) -> list[Curve]:
    """Charts of metrics over the steps, training and held-out in one chart."""
    pictures = {
        "Loss": ("nats", ("loss",)),
        "Reward accuracy": ("share of pairs", ("rewards/accuracies", "head/accuracies")),
        "Reward of fresh samples": ("", ("sampled/reward", "sampled/reward_best")),
        "Length of fresh samples": ("tokens", ("sampled/length",)),
        "Reward margin": ("nats", ("rewards/margins",)),
        "Rewards": ("nats", ("rewards/chosen", "rewards/rejected")),
        "Log-probs": ("nats", ("logps/chosen", "logps/rejected")),
        "Gradient norm": ("", ("grad_norm",)),
        "Learning rate": ("", ("learning_rate",)),
    }
    curves = []
    for title, (unit, names) in pictures.items():
        series = {}
        for name in names:
            for key, label in ((name, name), (f"eval_{name}", f"held-out {name}")):
                points = [(line["step"], line[key]) for line in lines if key in line]
                if points:
                    series[label] = ([x for x, _ in points], [y for _, y in points])
        if series:
            curves.append(Curve(title, unit, series))
    return curves
