"""The demo: preference training in a text world whose true reward is known, up to the chart of reward against KL.

A small model is trained from scratch on plain English of the world, fine-tuned on demonstrations, and trained by DPO on
groups of four of its own responses, ranked by the true reward. As in the controlled-sentiment experiment of section 6
of arXiv 2305.18290, the true reward of fresh samples and their KL to the reference can then be measured.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penchant.api import (
    Estimate,
    Figure,
    PreferenceGroup,
    PreferenceReport,
    RunConfig,
    RunReport,
    Sample,
    Sampling,
    Table,
    answer,
    folder_lock,
    frontier_chart,
    parse_config,
    resampled_mean,
    resumable_disk_errors,
    run_log,
    score,
    train,
    write_groups,
    write_report,
    write_run_report,
)
from penchant.api import World as Processes
from penchant.recipes import demo_world as world

if TYPE_CHECKING:
    from rich.table import Table as RichTable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DemoSizes:
    """Numbers of texts, prompts and steps; the defaults take about two minutes on two cores.

    Attributes:
        betas: one DPO run for each beta; the table shows the first.
    """

    texts: int = 6000
    demonstrations: int = 2000
    train_prompts: int = 800
    held_out_prompts: int = 200
    pretraining_steps: int = 600
    sft_steps: int = 200
    dpo_steps: int = 100
    betas: tuple[float, ...] = (0.1, 0.3, 1.0)


@dataclass(frozen=True)
class SampleMetrics:
    """Metrics of a model's fresh samples on held-out prompts.

    Attributes:
        reward: mean true reward of a response.
        kl: sequence-level KL to the SFT model in nats: mean of log pi(y|x) - log ref(y|x) over samples of pi.
        length: mean number of words in a response.
    """

    reward: Estimate
    kl: Estimate
    length: Estimate


@dataclass(frozen=True)
class DemoResult:
    """Metrics of the SFT model, and of the DPO model with each beta.

    Attributes:
        dpo: metrics of the DPO models' fresh samples, by beta.
        held_out_sft, held_out_dpo: held-out preferences of the SFT model and of the DPO model with the first beta.
    """

    folder: Path
    sft: SampleMetrics
    dpo: dict[float, SampleMetrics]
    held_out_sft: PreferenceReport
    held_out_dpo: PreferenceReport

    def rows(self) -> list[tuple[str, str, str]]:
        """Rows (metric, SFT, DPO with the first beta) of the table."""
        dpo = next(iter(self.dpo.values()))
        return [
            ("held-out accuracy of rewards", "- (is the reference)", show(self.held_out_dpo.accuracy)),
            (
                "held-out accuracy of log-probs",
                show(self.held_out_sft.metrics["log_prob_accuracy"]),
                show(self.held_out_dpo.metrics["log_prob_accuracy"]),
            ),
            ("true reward of fresh samples", show(self.sft.reward), show(dpo.reward)),
            ("KL to the SFT model, nats", show(self.sft.kl), show(dpo.kl)),
            ("words in a response", show(self.sft.length), show(dpo.length)),
        ]

    def to_json(self) -> dict[str, Any]:
        """The result as JSON: SFT under "before", DPO by beta under "after"."""

        def to_json(metrics: SampleMetrics) -> dict[str, Any]:
            return {name: value.to_json() for name, value in vars(metrics).items()}

        return {
            "output": str(self.folder),
            "held_out": {"before": self.held_out_sft.to_json(), "after": self.held_out_dpo.to_json()},
            "before": to_json(self.sft),
            "after": {str(beta): to_json(metrics) for beta, metrics in self.dpo.items()},
        }

    @property
    def table(self) -> RichTable:
        """The table for the terminal."""
        from rich.table import Table as RichTable

        beta = next(iter(self.dpo))
        table = RichTable("on held-out prompts", "SFT", f"DPO, beta {beta:g}", title=str(self.folder / "report.html"))
        for row in self.rows():
            table.add_row(*row)
        return table


def run_demo(folder: Path, *, seed: int = 0, sizes: DemoSizes = DemoSizes()) -> DemoResult:
    """Run the whole demo in a folder; an interrupted demo resumes where it stopped.

    Returns:
        The metrics, which are also in `result.json` and `report.html`.
    """
    with resumable_disk_errors(folder), folder_lock(folder), run_log() as log:
        log.open(folder)
        return _run_demo(folder, seed, sizes)


def _run_demo(folder: Path, seed: int, sizes: DemoSizes) -> DemoResult:
    start, data = folder / "start", folder / "data"
    if not start.exists():
        tokenizer = world.build_tokenizer()
        world.build_model(len(tokenizer), seed).save_pretrained(start)
        tokenizer.save_pretrained(start)
    train_prompts, held_out_prompts = world.split_prompts(sizes.held_out_prompts, seed)
    train_prompts = train_prompts[: sizes.train_prompts]
    texts = [PreferenceGroup("", (text,)) for text in world.pretraining_texts(sizes.texts, seed)]
    _write(texts, data / "texts.jsonl")
    _write(_demonstrations(train_prompts, sizes.demonstrations, seed), data / "demonstrations.jsonl")

    logger.info("1 of 4: pretraining on plain text of the world")
    pretrained = _run(folder / "pretrained", start, data / "texts.jsonl", "sft", sizes.pretraining_steps, 3e-3, seed)
    logger.info("2 of 4: supervised fine-tuning on demonstrations")
    tuned = _run(folder / "sft", pretrained, data / "demonstrations.jsonl", "sft", sizes.sft_steps, 1e-3, seed)
    logger.info("3 of 4: four responses to each prompt, ranked by the true reward")
    for name, prompts, offset in (("train", train_prompts, 1), ("held_out", held_out_prompts, 2)):
        file = data / f"preferences_{name}.jsonl"
        if not file.exists():
            _write(_preferences(tuned, prompts, seed + offset), file)
    sft_metrics = _measure(tuned, tuned, held_out_prompts, seed)
    dpo_metrics, reports = {}, []
    for beta in sizes.betas:
        logger.info(f"4 of 4: DPO, beta {beta:g}")
        run = folder / f"dpo-beta-{beta:g}"
        aligned = _run(run, tuned, data / "preferences_train.jsonl", "dpo", sizes.dpo_steps, 3e-4, seed, beta, data)
        dpo_metrics[beta] = _measure(aligned, tuned, held_out_prompts, seed)
        reports.append(write_run_report(run))
    held_out = reports[0]
    assert held_out.start_report is not None
    assert held_out.trained_report is not None
    result = DemoResult(folder, sft_metrics, dpo_metrics, held_out.start_report, held_out.trained_report)
    _write_report(result, tuned, folder / f"dpo-beta-{sizes.betas[0]:g}", held_out_prompts[:4], seed)
    (folder / "result.json").write_text(json.dumps(result.to_json(), indent=2), encoding="utf-8")
    return result


def _demonstrations(prompts: Sequence[str], n: int, seed: int) -> list[PreferenceGroup]:
    draw = random.Random(seed)
    repeated = (prompts[i % len(prompts)] for i in range(n))
    return [PreferenceGroup(prompt, (world.demonstration(prompt, draw),)) for prompt in repeated]


def _preferences(model: Path, prompts: Sequence[str], seed: int) -> list[PreferenceGroup]:
    """Groups of up to four distinct responses sampled from the model, with their true rewards as scores."""
    sampling = Sampling(samples=4, max_new_tokens=48, seed=seed, batch_size=64)
    answers = answer(str(model), prompts, sampling)
    groups: list[PreferenceGroup] = []
    for prompt, responses in zip(prompts, answers.responses, strict=True):
        distinct = tuple(dict.fromkeys(response for response in responses if response.strip()))
        scores = tuple(world.true_reward(response) for response in distinct)
        if len(set(scores)) > 1:
            groups.append(PreferenceGroup(prompt, distinct, scores=scores, id=str(len(groups))))
    return groups


def _write(groups: Sequence[PreferenceGroup], file: Path) -> None:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_groups(groups, file)


def _run(
    output: Path,
    model: Path,
    data: Path,
    objective: str,
    steps: int,
    rate: float,
    seed: int,
    beta: float | None = None,
    held_out: Path | None = None,
) -> Path:
    config: RunConfig = parse_config(
        {
            "model": str(model),
            "data": {
                "train": str(data),
                "held_out": str(held_out / "preferences_held_out.jsonl") if held_out else None,
            },
            "output": str(output),
            "objective": {"name": objective} if beta is None else {"name": objective, "beta": beta},
            "training": {
                "max_steps": steps,
                "batch_size": 32,
                "learning_rate": rate,
                "schedule": "cosine",
                "seed": seed,
            },
            "evaluation": {"samples": 0},
        },
        str(output),
    )
    return train(config, resume=(output / "run.json").exists())


def _measure(model: Path, reference: Path, prompts: Sequence[str], seed: int) -> SampleMetrics:
    """Mean true reward, KL and length of one fresh sample for each prompt."""
    sampling = Sampling(max_new_tokens=48, seed=seed + 3, batch_size=64)
    responses = [samples[0] for samples in answer(str(model), prompts, sampling).responses]
    groups = [PreferenceGroup(p, (r,)) for p, r in zip(prompts, responses, strict=True) if r.strip()]
    scored = score(str(model), groups, Processes.single(), reference=str(reference))
    ratios = [group.log_probs[0] - (group.reference_log_probs or (0.0,))[0] for group in scored]

    def mean(values: Sequence[float]) -> Estimate:
        return resampled_mean(np.array(values, dtype=np.float64), np.arange(len(values)))

    rewards = [world.true_reward(response) for response in responses]
    return SampleMetrics(mean(rewards), mean(ratios), mean([len(response.split()) for response in responses]))


def _write_report(result: DemoResult, tuned: Path, aligned: Path, prompts: Sequence[str], seed: int) -> None:
    sampling = Sampling(max_new_tokens=48, seed=seed + 4)
    sft_responses, dpo_responses = (answer(str(model), prompts, sampling).responses for model in (tuned, aligned))
    reference = result.sft.reward
    points = {
        "SFT (the reference)": [(0.0, reference.value, reference.low, reference.high)],
        "DPO, one point for each beta": sorted(
            (m.kl.value, m.reward.value, m.reward.low, m.reward.high) for m in result.dpo.values()
        ),
    }
    note = "Up and to the left is better: more true reward for less distance from the reference."
    write_report(
        result.folder / "report.html",
        RunReport(
            title="Penchant demo: a world whose true reward is known",
            summary=[(name, f"{sft}  →  {dpo}") for name, sft, dpo in result.rows()],
            curves=[],
            tables=[
                Table(
                    "Results by beta",
                    ("beta", "true reward", "KL, nats", "words"),
                    [(f"{b:g}", show(m.reward), show(m.kl), show(m.length)) for b, m in result.dpo.items()],
                    "Means over one fresh sample for each held-out prompt, with 95 % intervals.",
                )
            ],
            samples=[
                Sample(prompt, sft[0], dpo[0])
                for prompt, sft, dpo in zip(prompts, sft_responses, dpo_responses, strict=True)
            ],
            figures=[Figure("True reward against KL", frontier_chart(points), note)],
            notices=[],
            config_yaml=(aligned / "config.yaml").read_text(encoding="utf-8"),
        ),
    )


def show(estimate: Estimate) -> str:
    """Value and 95 % interval as text."""
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
