"""What is measured of a trained model: held-out preferences and fresh samples, against one fixed reference.

The reference is the model the comparison starts from, whatever the method's own references, so that every model is
measured by the same yardstick.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penchant.comparison.config import Measure
from penchant.config import RunConfig
from penchant.data.groups import PreferenceGroup, Text
from penchant.engine.distribution import World, local_device
from penchant.evaluation.answering import answer, distinct_prompts
from penchant.evaluation.generation import Sampling
from penchant.evaluation.held_out import Reading, score
from penchant.evaluation.preferences import ScoredGroup
from penchant.evaluation.statistics import roc_auc

if TYPE_CHECKING:
    from penchant.evaluation.rewards import Reward

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
    "reward": "mean reward of one fresh sample for each prompt",
    "kl": "mean of log pi(y|x) - log start(y|x) over the fresh samples, nats: the sequence-level KL to the start",
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
        values: name -> group id (or prompt number, for samples) -> value.
        samples: prompt number -> the model's fresh response.
        judge: what the judge said, counted; empty without one.
    """

    metrics: dict[str, float]
    values: dict[str, dict[str, float]]
    samples: dict[str, str] = field(default_factory=dict)
    judge: dict[str, Any] = field(default_factory=dict)


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
    tell: Callable[[str], None]

    @cached_property
    def prompts(self) -> list[Text]:
        """What fresh samples answer."""
        return distinct_prompts(self.held_out)[: self.settings.samples]

    def measure(self, model: str, seed: int, rival: Measured | None) -> Measured:
        """Measure a model.

        Args:
            model: its folder.
            seed: of the samples: the same for all models of a seed.
            rival: whose samples the judge compares with; None compares with none.
        """
        samples = self._sample(model, seed)
        groups = [
            *self.held_out,
            *(
                PreferenceGroup(self.prompts[i], (text,), id=f"sample {i}")
                for i, text in samples.items()
                if text.strip()
            ),
        ]
        scored = score(model, groups, World(0, 1, local_device()), reference=self.base.model, reading=self._reading)
        own = [each for each in scored if not each.group.id.startswith("sample ")]
        fresh = [each for each in scored if each.group.id.startswith("sample ")]
        metrics, values = pair_values(own)
        if model == self.base.model:
            # The reference has no log-ratio to itself.
            for name in ("accuracy", "margin", "auc"):
                metrics.pop(name, None)
                values.pop(name, None)
        values.update(self._of_samples(samples, fresh))
        metrics.update({name: _mean(of) for name, of in values.items() if of})
        if values.get("kl"):
            kl = np.array(list(values["kl"].values()))
            metrics["kl_error"] = float(kl.std(ddof=1) / math.sqrt(len(kl))) if len(kl) > 1 else math.nan
        judged: dict[str, Any] = {}
        if self._judge is not None and rival is not None:
            win_values, judged = self._compare(samples, rival)
            values["win_rate"], metrics["win_rate"] = win_values, _mean(win_values)
        return Measured(metrics, values, {str(i): text for i, text in samples.items()}, judged)

    def _sample(self, model: str, seed: int) -> dict[int, str]:
        if not self.prompts:
            return {}
        settings = self.settings
        sampling = Sampling(
            max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, seed=seed, batch_size=64
        )
        answers = answer(model, self.prompts, sampling, chat_template=self.base.data.chat_template)
        return {i: responses[0] for i, responses in enumerate(answers.responses)}

    def _of_samples(self, samples: dict[int, str], fresh: Sequence[ScoredGroup]) -> dict[str, dict[str, float]]:
        if not samples:
            return {}
        values = {
            "words": {f"sample {i}": float(len(text.split())) for i, text in samples.items()},
            "kl": {each.group.id: each.log_probs[0] - (each.reference_log_probs or (0.0,))[0] for each in fresh},
        }
        if self._reward is not None:
            rewards = self._reward([self.prompts[i] for i in samples], [[text] for text in samples.values()])
            values["reward"] = {f"sample {i}": given[0] for i, given in zip(samples, rewards, strict=True)}
        return values

    def _compare(self, samples: dict[int, str], rival: Measured) -> tuple[dict[str, float], dict[str, Any]]:
        from penchant.evaluation.win_rate import win_rate

        both = [i for i in samples if str(i) in rival.samples]
        result = win_rate(
            self._judge,
            [self.prompts[i] for i in both],
            [samples[i] for i in both],
            [rival.samples[str(i)] for i in both],
        )
        return {f"sample {i}": value for i, value in zip(both, result.values, strict=True)}, result.to_json()

    @cached_property
    def _reward(self) -> Reward | None:
        if self.settings.reward is None:
            return None
        from penchant.evaluation.rewards import open_reward

        return open_reward(self.settings.reward, device=local_device())

    @cached_property
    def _judge(self) -> Any:
        if self.settings.judge is None:
            return None
        from penchant.evaluation.judges import open_judge

        return open_judge(self.settings.judge, device=local_device())

    @cached_property
    def _reading(self) -> Reading:
        data, training = self.base.data, self.base.training
        return Reading(
            data.max_length,
            data.truncation,
            data.empty,
            data.identical,
            data.chat_template,
            training.token_budget,
            training.dtype,
        )


def pair_values(scored: Sequence[ScoredGroup]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Pooled AUCs, and each group's accuracy and margin by every score; groups without a pair are left out."""
    metrics: dict[str, float] = {}
    values: dict[str, dict[str, float]] = {}
    measured = [each for each in scored if each.group.pairs]
    for prefix, of in _SCORES.items():
        positive, negative = [], []
        right: dict[str, float] = {}
        margin: dict[str, float] = {}
        for each in measured:
            numbers = of(each)
            pairs = [(numbers[i], numbers[j]) for i, j in each.group.pairs]
            positive += [i for i, _ in pairs]
            negative += [j for _, j in pairs]
            right[each.group.id] = sum(i > j for i, j in pairs) / len(pairs)
            margin[each.group.id] = sum(i - j for i, j in pairs) / len(pairs)
        values[f"{prefix}accuracy"] = right
        if prefix != "length_":
            values[f"{prefix}margin"] = margin
            metrics[f"{prefix}auc"] = roc_auc(positive, negative)
    return metrics, values


def _ratio(each: ScoredGroup) -> list[float]:
    references = each.reference_log_probs or ()
    return [own - other for own, other in zip(each.log_probs, references, strict=True)]


_SCORES: dict[str, Callable[[ScoredGroup], Sequence[float]]] = {
    "": _ratio,
    "log_prob_": lambda each: each.log_probs,
    "mean_log_prob_": lambda each: [own / n for own, n in zip(each.log_probs, each.tokens, strict=True)],
    "length_": lambda each: each.tokens,
}


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)


def throw_away_weights(folder: Path) -> None:
    """Delete all of a run's weights: the last, the best, and the checkpoints'."""
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    # A checkpoint without its weights would be a damaged one.
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
