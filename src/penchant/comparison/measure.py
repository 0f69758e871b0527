"""What is measured of a trained model: held-out preferences and fresh samples, against one fixed reference.

The reference is the model the comparison starts from, whatever the method's own references, so that every model is
measured by the same yardstick.

Also in this module:

- The prompts fresh samples answer: those of measured groups, with room for an answer in the model's context.
"""

from __future__ import annotations

import hashlib
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
from penchant.engine.distributed import World, local_device
from penchant.engine.reference_model import NO_LIMIT, FrozenModel
from penchant.engine.sampling import sample
from penchant.errors import ConfigError
from penchant.evaluation.answering import Sampling, distinct_prompts, ends_of, text_after
from penchant.evaluation.held_out import Reading, ScoredGroup, read_held_out, scored_groups
from penchant.evaluation.orders import ORDER_METRICS, ORDERED
from penchant.models.loading import adapter_base, context_length, load_config, load_tokenizer
from penchant.progress import Progress

if TYPE_CHECKING:
    from penchant.evaluation.judges import Judge
    from penchant.evaluation.rewards import Reward

logger = logging.getLogger(__name__)


def asked_prompts(model: str, held_out: Sequence[PreferenceGroup], reading: Reading, settings: Measure) -> list[Text]:
    """The first `settings.samples` of them, in the order of the data; reads the model's tokenizer, not its weights.

    Left out, and told, are prompts whose groups are all dropped (as too long, most often), and those that with
    `max_new_tokens` are longer than the context.

    Raises:
        ConfigError: samples are asked for, and no prompt is left.
    """
    every = distinct_prompts(held_out)
    if not settings.samples or not every:
        return []
    tokenizer = load_tokenizer(model, chat_template=reading.chat_template)
    context = context_length(load_config(adapter_base(model) or model)) or NO_LIMIT
    kept, _ = tokenize_groups(
        held_out,
        tokenizer,
        max_length=reading.max_length or context,
        rendering=reading.rendering,
        truncation=reading.truncation,
        empty=reading.empty,
        identical=reading.identical,
    )
    measured = distinct_prompts([each.group for each in kept])
    lengths = [len(ids) for ids in tokenize_prompts(measured, tokenizer, reading.rendering)]
    new = settings.max_new_tokens
    found = [prompt for prompt, length in zip(measured, lengths, strict=True) if length + new <= context]
    if not found:
        raise ConfigError(
            f"no held-out prompt leaves room for a sample of measure.max_new_tokens={new}: the shortest has "
            f"{min(lengths, default=0)} tokens, the model's context is {context}",
            where=model,
            fix="lower measure.max_new_tokens, or sample nothing: measure.samples=0",
        )
    for left, why in (
        (len(every) - len(measured), "their groups are dropped"),
        (len(measured) - len(found), f"with max_new_tokens={new} they are longer than the context of {context} tokens"),
    ):
        if left:
            logger.info(f"{left} of {len(every)} held-out prompts are not sampled from: {why}")
    return found[: settings.samples]


RATIO_METRICS = ("accuracy", "margin", "auc", *ORDER_METRICS)
"""Of log pi - log start, which the start has none of."""

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
"""Each metric in one line; pair metrics are a mean over a group's pairs, then over groups."""


@dataclass(frozen=True)
class Measured:
    """One model's numbers.

    Attributes:
        metrics: name -> value over all prompts.
        values: name -> "group 7" or "sample 7" -> value; numbers are places in the held-out data and among its prompts.
        samples: prompt number -> the model's fresh response.
        judge: what the judge said, counted; empty without one.
        by: what the numbers were measured by, as `Yardstick.by`.
        asked: who judged against which samples; empty where nobody did.
    """

    metrics: dict[str, float]
    values: Values
    samples: dict[str, str] = field(default_factory=dict)
    judge: dict[str, Any] = field(default_factory=dict)
    by: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rival:
    """Whose samples the judge compares with: `name` is the start's or a cell's folder's."""

    name: str
    samples: dict[str, str]

    @property
    def fingerprint(self) -> str:
        text = json.dumps(self.samples, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Yardstick:
    """How every model of a comparison is measured.

    Attributes:
        base: the run all cells start from: its model is the reference.
        held_out: the groups.
    """

    base: RunConfig
    held_out: Sequence[PreferenceGroup]
    settings: Measure

    @cached_property
    def by(self) -> dict[str, Any]:
        """What a model's numbers come from besides the model and the data: under another, they are others."""
        settings = self.settings
        numbers = {name: getattr(settings, name) for name in ("samples", "max_new_tokens", "temperature")}
        texts = json.dumps([as_text(prompt) for prompt in self.prompts])
        prompts = hashlib.blake2b(texts.encode(), digest_size=8).hexdigest()
        return {**numbers, "prompts": prompts, "reward": None if self._reward is None else self._reward.name}

    def open(self) -> None:
        """Load the reward, read the judge's template and the prompts; what is wrong is told before any training."""
        _ = self.by, self.judge_name

    @cached_property
    def judge_name(self) -> str | None:
        return None if self._judge is None else self._judge.name

    @cached_property
    def prompts(self) -> list[Text]:
        """What fresh samples answer."""
        return asked_prompts(self.base.model, self.held_out, self._reading, self.settings)

    def measure(self, model: str, seed: int) -> Measured:
        """Measure a model but for its win rate.

        Args:
            model: its folder.
            seed: of the samples: the same for all models of a seed.
        """
        own, fresh = self._score(model, seed)
        metrics, values = pair_values(names(self.held_out, [each.group for each in own]), own)
        if model == self.base.model:
            # The reference has no log-ratio to itself.
            for name in RATIO_METRICS:
                metrics.pop(name, None)
                values.pop(name, None)
        values.update(self._of_samples(fresh))
        metrics.update({name: _mean(of) for name, of in values.items() if of})
        if values.get("kl"):
            kl = np.array(list(values["kl"].values()))
            metrics["kl_error"] = float(kl.std(ddof=1) / math.sqrt(len(kl))) if len(kl) > 1 else math.nan
        samples = {str(i): _text(each) for i, each in enumerate(fresh)}
        return Measured(metrics, values, samples, by=self.by)

    def judged(self, measured: Measured, rival: Rival | None) -> Measured:
        """The same with its win rate against the rival's samples, or with none where nobody is to be compared with.

        What was answered before is not asked again: where all was, the very same object is returned.
        """
        asked: dict[str, str] = {}
        if self._judge is not None and rival is not None and measured.samples:
            asked = {"judge": str(self.judge_name), "rival": rival.name, "samples": rival.fingerprint}
        if measured.asked == asked and not measured.judge.get("failed"):
            return measured
        metrics = {name: value for name, value in measured.metrics.items() if name != "win_rate"}
        values = {name: of for name, of in measured.values.items() if name != "win_rate"}
        judge: dict[str, Any] = {}
        if rival is not None and asked:
            values["win_rate"], judge = self._compare(measured.samples, rival.samples)
            metrics["win_rate"] = _mean(values["win_rate"])
        return replace(measured, metrics=metrics, values=values, judge=judge, asked=asked)

    def _score(self, model: str, seed: int) -> tuple[list[ScoredGroup], list[ScoredGroup]]:
        """The held-out groups and fresh samples, under the model and under the start; one in memory at a time."""
        reading, world = self._reading, World(0, 1, local_device())
        policy = FrozenModel.load(model, world, reading.dtype, reading.chat_template, reading.rendering)
        fresh = self._draw(policy, seed)
        own, row_notes = read_held_out(policy, model, self.held_out, reading)
        budget = (world, reading.token_budget, reading.dtype)
        log_probs, model_notes = policy.log_probs([*own, *fresh], *budget)
        del policy
        start = FrozenModel.load(self.base.model, world, reading.dtype, reading.chat_template, reading.rendering)
        # The very tokens that were drawn: a text tokenized again may be others, and one that was cut has no end.
        theirs, start_notes = start.log_probs([*start.retokenize(own, reading.truncation)[0], *fresh], *budget)
        for note in [*row_notes, *model_notes, *start_notes]:
            logger.info(note)
        scored = scored_groups([*own, *fresh], log_probs, theirs)
        return scored[: len(own)], scored[len(own) :]

    def _draw(self, policy: FrozenModel, seed: int) -> list[TokenizedGroup]:
        """A fresh response to each prompt, as a group of its own."""
        settings, tokenizer = self.settings, policy.tokenizer
        if not self.prompts:
            return []
        draw = Sampling(
            max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, seed=seed, batch_size=64
        )
        prompt_ids = tokenize_prompts(self.prompts, tokenizer, policy.rendering)
        with Progress("generating", len(prompt_ids), "prompts") as progress:
            ends = ends_of(policy.model, tokenizer)
            drawn = sample(policy.model, prompt_ids, draw, ends=ends, advance=progress.advance)
        groups = []
        for prompt, ids, (response,) in zip(self.prompts, prompt_ids, drawn, strict=True):
            text = text_after(tokenizer, ids, response.content)
            groups.append(TokenizedGroup(ids, (response.ids,), PreferenceGroup(prompt, (text,))))
        return groups

    def _of_samples(self, fresh: Sequence[ScoredGroup]) -> Values:
        if not fresh:
            return {}
        numbers = {"words": [float(len(_text(each).split())) for each in fresh]}
        if self.settings.temperature == 1:  # Else the samples are of another distribution than pi.
            numbers["kl"] = [each.log_probs[0] - (each.reference_log_probs or (0.0,))[0] for each in fresh]
        if self._reward is not None:
            rewards = self._reward(self.prompts, [[_text(each)] for each in fresh])
            numbers["reward"] = [given for (given,) in rewards]
        return {name: {f"sample {i}": number for i, number in enumerate(of)} for name, of in numbers.items()}

    def _compare(self, samples: dict[str, str], others: dict[str, str]) -> tuple[dict[str, float], dict[str, Any]]:
        from penchant.evaluation.win_rate import win_rate

        assert self._judge is not None
        both = [i for i in samples if i in others]
        result = win_rate(
            self._judge,
            [self.prompts[int(i)] for i in both],
            [samples[i] for i in both],
            [others[i] for i in both],
        )
        return {f"sample {i}": value for i, value in zip(both, result.values, strict=True)}, result.to_json()

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
