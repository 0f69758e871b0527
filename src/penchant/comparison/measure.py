"""Measurement of a trained model: held-out preferences and fresh samples, against one fixed reference.

The reference is the model the comparison starts from, whatever the method's own references, so that every model is
measured in the same way.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from penchant.comparison.config import Measure
from penchant.comparison.pair_values import Values, names, pair_values
from penchant.config.run import RunConfig
from penchant.data.groups import PreferenceGroup, Text, as_text
from penchant.data.tokenization import tokenize_groups, tokenize_prompts
from penchant.data.tokenized import TokenizedGroup
from penchant.engine.device import local_device
from penchant.engine.distributed import World
from penchant.engine.reference_model import NO_LIMIT, FrozenModel
from penchant.engine.sampling import sample
from penchant.errors import ConfigError
from penchant.evaluation.answering import Sampling, distinct_prompts, ends_of, text_after
from penchant.evaluation.held_out import Reading, ScoredGroup, read_held_out, scored_groups
from penchant.evaluation.orders import ORDER_METRICS, ORDERED
from penchant.models.loading import adapter_base, context_length, load_config, load_tokenizer
from penchant.progress import Progress
from penchant.storage.fingerprints import hash_text

if TYPE_CHECKING:
    from penchant.evaluation.judges import Judge
    from penchant.evaluation.rewards import Reward

logger = logging.getLogger(__name__)


def prompts_to_sample(
    model: str, held_out: Sequence[PreferenceGroup], reading: Reading, settings: Measure
) -> list[Text]:
    """The first `settings.samples` prompts to sample from, in the order of the data; reads no weights.

    Prompts whose groups are all dropped (mostly as too long), and those that with `max_new_tokens` are longer than the
    context, are left out with a message.

    Raises:
        ConfigError: no prompt is left to sample from.
    """
    all_prompts = distinct_prompts(held_out)
    if not settings.samples or not all_prompts:
        return []
    tokenizer = load_tokenizer(model, chat_template=reading.chat_template)
    context = context_length(load_config(adapter_base(model) or model)) or NO_LIMIT
    tokenized, _ = tokenize_groups(
        held_out,
        tokenizer,
        max_length=reading.max_length or context,
        rendering=reading.rendering,
        truncation=reading.truncation,
        empty=reading.empty,
        identical=reading.identical,
    )
    measured_prompts = distinct_prompts([entry.group for entry in tokenized])
    lengths = [len(ids) for ids in tokenize_prompts(measured_prompts, tokenizer, reading.rendering)]
    new = settings.max_new_tokens
    fitting = [prompt for prompt, length in zip(measured_prompts, lengths, strict=True) if length + new <= context]
    if not fitting:
        raise ConfigError(
            f"no held-out prompt leaves room for a sample of measure.max_new_tokens={new}: the shortest has "
            f"{min(lengths, default=0)} tokens, the model's context is {context}",
            where=model,
            fix="lower measure.max_new_tokens, or sample nothing: measure.samples=0",
        )
    for count, reason in (
        (len(all_prompts) - len(measured_prompts), "their groups are dropped"),
        (
            len(measured_prompts) - len(fitting),
            f"with max_new_tokens={new} they are longer than the context of {context} tokens",
        ),
    ):
        if count:
            logger.info(f"{count} of {len(all_prompts)} held-out prompts are not sampled from: {reason}")
    return fitting[: settings.samples]


RATIO_METRICS = ("accuracy", "margin", "auc", *ORDER_METRICS)
"""Metrics of log pi - log start, which the start does not have."""

_SCORE_NAMES = {"": "log pi - log start", "log_prob_": "summed log-prob", "mean_log_prob_": "log-prob per token"}

DEFINITIONS = {
    "accuracy": "share of pairs whose preferred response has the higher log pi - log start (a tie is wrong)",
    "margin": "log pi - log start: preferred minus other response, nats",
    "auc": "ROC-AUC of log pi - log start, pooled over the pairs of all prompts (a tie is half)",
    "log_prob_accuracy": "share of pairs whose preferred response has the higher summed log-prob (a tie is wrong)",
    "log_prob_margin": "summed log-prob: preferred minus other response, nats",
    "log_prob_auc": "ROC-AUC of summed log-probs, pooled over the pairs of all prompts (a tie is half)",
    "mean_log_prob_accuracy": "share of pairs whose preferred response has the higher log-prob per token, end included",
    "mean_log_prob_margin": "log-prob per token: preferred minus other response, nats per token",
    "mean_log_prob_auc": "ROC-AUC of log-probs per token, pooled over the pairs of all prompts (a tie is half)",
    "length_accuracy": "share of pairs whose preferred response has more tokens: what length alone reaches",
    **{
        f"{prefix}{name}": f"{line.format(score=score)}; mean {ORDERED}"
        for prefix, score in _SCORE_NAMES.items()
        for name, line in ORDER_METRICS.items()
    },
    "reward": "mean reward of one fresh sample for each prompt",
    "kl": "mean of log pi(y|x) - log start(y|x) over the fresh samples' own tokens, nats: the sequence-level KL to the "
    "start, up to max_new_tokens",
    "kl_error": "standard error of kl over prompts, nats",
    "words": "mean words of a fresh sample",
    "win_rate": "share of prompts where the judge prefers this model's sample (a tie is half), asked in both orders",
}
"""Metric -> its definition in one line; pair metrics are a mean over a group's pairs, then over groups."""


@dataclass(frozen=True)
class Measured:
    """The results of one model.

    Attributes:
        metrics: name -> value over all prompts.
        values: name -> "group 7" or "sample 7" -> value, by index in the held-out data and among its prompts.
        samples: prompt number -> the model's fresh response.
        judge: counts of the judge's verdicts; empty without a judge.
        by: settings of the measurement, as `Measurement.by`.
        asked: the judge and the samples that it compared with; empty without a judge.
    """

    metrics: dict[str, float]
    values: Values
    samples: dict[str, str] = field(default_factory=dict)
    judge: dict[str, Any] = field(default_factory=dict)
    by: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class JudgeOpponent:
    """The model whose samples the judge compares with: `name` is ``start`` or that of a cell's folder."""

    name: str
    samples: dict[str, str]

    @property
    def fingerprint(self) -> str:
        return hash_text(json.dumps(self.samples, sort_keys=True))


@dataclass(frozen=True)
class Measurement:
    """The measurement of every model of a comparison.

    Attributes:
        base: the run that all cells start from; its model is the reference.
        held_out: the measured groups.
    """

    base: RunConfig
    held_out: Sequence[PreferenceGroup]
    settings: Measure

    @cached_property
    def by(self) -> dict[str, Any]:
        """The settings that decide a model's results besides the model and the data."""
        settings = self.settings
        numbers = {name: getattr(settings, name) for name in ("samples", "max_new_tokens", "temperature")}
        prompts = hash_text(json.dumps([as_text(prompt) for prompt in self.prompts]), 8)
        return {**numbers, "prompts": prompts, "reward": None if self._reward is None else self._reward.name}

    def open(self) -> None:
        """Load the reward, the judge's template and the prompts, so that errors come before any training."""
        _ = self.by, self.judge_name

    @cached_property
    def judge_name(self) -> str | None:
        return None if self._judge is None else self._judge.name

    @cached_property
    def prompts(self) -> list[Text]:
        """The prompts of the fresh samples."""
        return prompts_to_sample(self.base.model, self.held_out, self._reading, self.settings)

    def measure(self, model: str, seed: int) -> Measured:
        """The results of a model without its win rate.

        Args:
            model: the model's folder.
            seed: seed of the samples.
        """
        held_out, fresh = self._score(model, seed)
        metrics, values = pair_values(names(self.held_out, [entry.group for entry in held_out]), held_out)
        if model == self.base.model:
            # The reference has no log-ratio to itself.
            for name in RATIO_METRICS:
                metrics.pop(name, None)
                values.pop(name, None)
        values.update(self._of_samples(fresh))
        metrics.update({name: _mean(numbers) for name, numbers in values.items() if numbers})
        if values.get("kl"):
            kl = np.array(list(values["kl"].values()))
            metrics["kl_error"] = float(kl.std(ddof=1) / math.sqrt(len(kl))) if len(kl) > 1 else math.nan
        samples = {str(i): _text(entry) for i, entry in enumerate(fresh)}
        return Measured(metrics, values, samples, by=self.by)

    def judged(self, result: Measured, opponent: JudgeOpponent | None) -> Measured:
        """The result with its win rate against the opponent's samples; without one where there is no opponent.

        Earlier verdicts are reused: where all are there, the same object is returned.
        """
        question: dict[str, str] = {}
        if self._judge is not None and opponent is not None and result.samples:
            question = {"judge": str(self.judge_name), "rival": opponent.name, "samples": opponent.fingerprint}
        if result.asked == question and not result.judge.get("failed"):
            return result
        metrics = {name: value for name, value in result.metrics.items() if name != "win_rate"}
        values = {name: numbers for name, numbers in result.values.items() if name != "win_rate"}
        judge: dict[str, Any] = {}
        if opponent is not None and question:
            values["win_rate"], judge = self._compare(result.samples, opponent.samples)
            metrics["win_rate"] = _mean(values["win_rate"])
        return replace(result, metrics=metrics, values=values, judge=judge, asked=question)

    def _score(self, model: str, seed: int) -> tuple[list[ScoredGroup], list[ScoredGroup]]:
        """Held-out groups and fresh samples scored by the model and by the start, one of them in memory at a time."""
        reading, world = self._reading, World.single()
        policy = FrozenModel.load(model, world, reading.dtype, reading.chat_template, reading.rendering)
        fresh = self._draw(policy, seed)
        held_out, row_notes = read_held_out(policy, model, self.held_out, reading)
        budget = (world, reading.token_budget, reading.dtype)
        log_probs, model_notes = policy.log_probs([*held_out, *fresh], *budget)
        del policy
        start = FrozenModel.load(self.base.model, world, reading.dtype, reading.chat_template, reading.rendering)
        # The sampled token ids: a text tokenized again may give others, and a cut one has no end.
        start_groups, _ = start.retokenize(held_out, reading.truncation)
        start_log_probs, start_notes = start.log_probs([*start_groups, *fresh], *budget)
        for note in [*row_notes, *model_notes, *start_notes]:
            logger.info(note)
        scored = scored_groups([*held_out, *fresh], log_probs, start_log_probs)
        return scored[: len(held_out)], scored[len(held_out) :]

    def _draw(self, policy: FrozenModel, seed: int) -> list[TokenizedGroup]:
        """A group with one fresh response for each prompt."""
        settings, tokenizer = self.settings, policy.tokenizer
        if not self.prompts:
            return []
        draw = Sampling(
            max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, seed=seed, batch_size=64
        )
        prompt_ids = tokenize_prompts(self.prompts, tokenizer, policy.rendering)
        with Progress("generating", len(prompt_ids), "prompts") as progress:
            ends = ends_of(policy.model, tokenizer)
            responses = sample(policy.model, prompt_ids, draw, ends=ends, advance=progress.advance)
        groups = []
        for prompt, ids, (response,) in zip(self.prompts, prompt_ids, responses, strict=True):
            text = text_after(tokenizer, ids, response.content)
            groups.append(TokenizedGroup(ids, (response.ids,), PreferenceGroup(prompt, (text,))))
        return groups

    def _of_samples(self, fresh: Sequence[ScoredGroup]) -> Values:
        if not fresh:
            return {}
        numbers = {"words": [float(len(_text(entry).split())) for entry in fresh]}
        if self.settings.temperature == 1:  # Otherwise the samples are not from pi.
            numbers["kl"] = [entry.log_probs[0] - (entry.reference_log_probs or (0.0,))[0] for entry in fresh]
        if self._reward is not None:
            rewards = self._reward(self.prompts, [[_text(entry)] for entry in fresh])
            numbers["reward"] = [reward for (reward,) in rewards]
        return {name: {f"sample {i}": number for i, number in enumerate(values)} for name, values in numbers.items()}

    def _compare(
        self, samples: dict[str, str], opponent_samples: dict[str, str]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        from penchant.evaluation.win_rate import win_rate

        assert self._judge is not None
        common_numbers = [i for i in samples if i in opponent_samples]
        result = win_rate(
            self._judge,
            [self.prompts[int(i)] for i in common_numbers],
            [samples[i] for i in common_numbers],
            [opponent_samples[i] for i in common_numbers],
        )
        return {f"sample {i}": value for i, value in zip(common_numbers, result.values, strict=True)}, result.to_json()

    @cached_property
    def _reward(self) -> Reward | None:
        if self.settings.reward is None:
            return None
        from penchant.evaluation.rewards import open_reward

        reading = Reading(rendering=self._reading.rendering)
        return open_reward(self.settings.reward, device=local_device(), reading=reading)

    @cached_property
    def _judge(self) -> Judge | None:
        if self.settings.judge is None:
            return None
        from penchant.evaluation.judges import open_judge

        return open_judge(self.settings.judge, device=local_device(), rendering=self._reading.rendering)

    @cached_property
    def _reading(self) -> Reading:
        return Reading.of_run(self.base)


def _text(sampled: ScoredGroup) -> str:
    (text,) = sampled.group.candidates
    assert isinstance(text, str)
    return text


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)
