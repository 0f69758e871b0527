"""Rewards: a number for each response to a prompt, from a model, a function of the user's, or a judge."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

from penchant.config.shared_sections import JudgeConfig, RewardConfig
from penchant.data.groups import PreferenceGroup, Text
from penchant.data.rendering import PLAIN
from penchant.data.tokenization import tokenize_groups
from penchant.data.tokenized import TokenizationReport, TokenizedGroup
from penchant.engine.reward_scorers import padded_rewards
from penchant.errors import ConfigError, DataError, PenchantError
from penchant.evaluation.held_out import AS_IS, Reading
from penchant.storage.fingerprints import hash_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class UserFunction:
    """An imported function of the user.

    Attributes:
        where: its name in the configuration.
        digest: hash of its source file.
    """

    call: Callable[..., Any]
    where: str
    digest: str


def import_function(where: str, setting: str) -> UserFunction:
    """The function ``package.module:name`` or ``file.py:name``.

    Args:
        setting: the configuration key for error messages, as in ``reward.function``.

    Raises:
        ConfigError: the function does not exist, cannot be imported, or is no function.
    """
    module_name, colon, attribute = where.rpartition(":")
    example = "as in my_file.py:my_function or package.module:function"
    if not colon or not module_name or not attribute:
        raise ConfigError(f"{setting} is {where!r}, expected a module and a name", fix=example)
    try:
        module = _module(module_name, setting)
    except PenchantError:
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(f"{setting} {where} cannot be imported: {message}", fix="correct it") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        kind = "has no such name" if function is None else "is no function"
        raise ConfigError(f"{setting} {where}: {attribute} {kind}", fix=example)
    # The hash is of the whole file, which may hold functions that this one calls.
    file = getattr(module, "__file__", None)
    source = Path(file).read_bytes() if file else where.encode()
    return UserFunction(function, where, hash_bytes(source, 8))


def short_repr(value: object) -> str:
    """The `repr` of a value, shortened to 60 characters, for error messages."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _module(name: str, setting: str) -> Any:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"{setting}: there is no such file", where=name, fix="name the .py file that holds it")
    spec = importlib.util.spec_from_file_location(f"penchant_function_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Reward(Protocol):
    """Protocol of a reward, which scores responses deterministically."""

    @property
    def name(self) -> str:
        """Description and hash of the reward; scores are cached under this name."""
        ...

    def __call__(self, prompts: Sequence[Text], responses: Sequence[Sequence[Text]]) -> list[list[float]]:
        """A finite number for every response to every prompt; higher is better."""
        ...


def open_reward(
    config: RewardConfig,
    *,
    device: torch.device,
    reading: Reading = AS_IS,
) -> Reward:
    """The reward of a configuration.

    Args:
        reading: reading settings of a reward model.

    Raises:
        PenchantError: the reward cannot be loaded or imported.
    """
    if config.function is not None:
        return FunctionReward.load(config.function)
    if config.model is not None:
        return ModelReward.load(config.model, config.label, device, reading)
    from penchant.evaluation.judges import EndpointReward

    assert config.judge is not None
    return EndpointReward(config.judge)


def reward_from(
    *,
    model: str | None = None,
    label: int | None = None,
    function: str | None = None,
    judge_url: str | None = None,
    judge_model: str | None = None,
) -> RewardConfig:
    """A reward's configuration from command-line flags.

    Raises:
        ConfigError: no reward or several rewards are named.
    """
    from pydantic import ValidationError

    try:
        judge = None
        if judge_url is not None or judge_model is not None:
            judge = JudgeConfig.model_validate({"url": judge_url, "model": judge_model})
        return RewardConfig(model=model, label=label, function=function, judge=judge)
    except ValidationError as error:
        message = "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
        fix = "give one of: --model FOLDER; --function FILE.py:NAME; --judge-url URL --judge-model NAME"
        raise ConfigError(message, fix=fix) from error


@dataclass(frozen=True)
class FunctionReward:
    """Reward by a user's function ``f(prompt, responses) -> numbers``.

    Attributes:
        where: the function's name in the configuration.
        name: this name and the hash of the function's source file.
    """

    function: Callable[[Any, Any], Any]
    where: str
    name: str

    @classmethod
    def load(cls, where: str) -> FunctionReward:
        """Reward by the function ``package.module:name`` or ``file.py:name``."""
        function = import_function(where, "reward.function")
        return cls(function.call, where, f"function {where} {function.digest}")

    def __call__(self, prompts: Sequence[Text], responses: Sequence[Sequence[Text]]) -> list[list[float]]:
        return [
            self._call_function(i, prompt, candidates)
            for i, (prompt, candidates) in enumerate(zip(prompts, responses, strict=True))
        ]

    def _call_function(self, number: int, prompt: Text, responses: Sequence[Text]) -> list[float]:
        location = f"{self.where}, prompt {number}"
        try:
            result = self.function(prompt, list(responses))
        except Exception as error:
            message = f"the reward function raised {type(error).__name__}: {' '.join(str(error).split())}"
            raise DataError(message, where=location, fix="correct the function, or leave such prompts out") from error
        try:
            numbers = [float(value) for value in result]
        except (TypeError, ValueError) as error:
            message = f"the reward function returned {short_repr(result)}, expected {len(responses)} numbers"
            raise DataError(message, where=location, fix="return a list with a number for each response") from error
        if len(numbers) != len(responses):
            raise DataError(
                f"the reward function returned {len(numbers)} numbers for {len(responses)} responses",
                where=location,
                fix="return a list with a number for each response",
            )
        for k, value in enumerate(numbers):
            if not math.isfinite(value):
                raise DataError(
                    f"the reward function returned {value} for response {k}, expected a finite number",
                    where=location,
                    fix="return a finite number for every response, also for an empty one",
                )
        return numbers


@dataclass(frozen=True)
class ModelReward:
    """Reward by a sequence-classification model's logit at the last token that is no pad token, as in transformers.

    Attributes:
        label: index of the model's output.
        reading: reading settings; the token budget limits a padded batch.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    label: int
    reading: Reading
    name: str

    @classmethod
    def load(
        cls,
        source: str,
        label: int | None,
        device: torch.device,
        reading: Reading,
    ) -> ModelReward:
        """Reward by a model, loaded with the errors of `models.loading`."""
        from penchant.models.loading import load_tokenizer
        from penchant.models.reward_model import load_reward_model
        from penchant.models.special_tokens import pad_token_id
        from penchant.storage.fingerprints import model_fingerprint, tokenizer_fingerprint

        reading = reading.on_one_day(source)
        tokenizer = load_tokenizer(source, chat_template=reading.chat_template)
        model = load_reward_model(source, dtype=getattr(torch, reading.dtype)).to(device).eval()
        outputs = int(model.config.num_labels)
        if label is None and outputs > 1:
            raise ConfigError(
                f"the reward model has {outputs} outputs: {model.config.id2label}",
                where=source,
                fix="say which is the reward: reward.label=1",
            )
        if (label or 0) >= outputs:
            raise ConfigError(
                f"reward.label is {label}, the model has {outputs} outputs",
                where=source,
                fix=f"name one from 0 to {outputs - 1}",
            )
        weights_and_words = f"{model_fingerprint(model)} {tokenizer_fingerprint(tokenizer)}"
        rendering = "" if reading.rendering == PLAIN else f" {reading.rendering}"
        rendering += f" {reading.max_length} {reading.truncation}" if reading.truncation != "error" else ""
        # The pad token decides which token is read.
        name = f"model {source} {weights_and_words} {label} {reading.dtype}{rendering} pad {pad_token_id(model)}"
        return cls(model, tokenizer, label or 0, reading, name)

    def __call__(self, prompts: Sequence[Text], responses: Sequence[Sequence[Text]]) -> list[list[float]]:
        groups = [
            PreferenceGroup(prompt, tuple(candidates), id=str(i))
            for i, (prompt, candidates) in enumerate(zip(prompts, responses, strict=True))
        ]
        truncation = "error" if self.reading.truncation == "drop" else self.reading.truncation
        rendering = replace(self.reading.rendering, refused="error")
        tokenized, _ = self._tokenize(groups, replace(self.reading, truncation=truncation, rendering=rendering))
        rows = [torch.from_numpy(np.concatenate([row.prompt, ids])) for row in tokenized for ids in row.responses]
        scores = iter(self._score(rows))
        return [[next(scores) for _ in candidates] for candidates in responses]

    def rounding_notes(self, groups: Sequence[PreferenceGroup]) -> list[str]:
        """A line about the rounding error of half precision in the first groups' rewards; empty in float32."""
        from penchant.engine.tree_check import is_half, measure_rounding, rounding_note

        if not is_half(self.model.dtype, "float32") or not groups:
            return []
        prompts, responses = [group.prompt for group in groups[:4]], [group.candidates for group in groups[:4]]

        def rewards() -> torch.Tensor:
            return torch.tensor([value for row in self(prompts, responses) for value in row], dtype=torch.float64)

        with torch.no_grad():
            return [rounding_note(measure_rounding(self.model, rewards, nullcontext))]

    def readable_groups(self, groups: Sequence[PreferenceGroup]) -> tuple[list[PreferenceGroup], list[str]]:
        """The groups that fit the model, and notes; `reading` decides whether too long or refused groups are dropped.

        Raises:
            DataError: a group is too long or refused, and `reading` does not drop it.
        """
        # Without preferences, so that equal candidates are no error: they get equal rewards.
        bare = [PreferenceGroup(group.prompt, group.candidates, id=group.id) for group in groups]
        tokenized, report = self._tokenize(bare, self.reading)
        fitting = {id(row.group) for row in tokenized}
        readable = [group for group, bare_group in zip(groups, bare, strict=True) if id(bare_group) in fitting]
        return readable, report.lines()

    def comparable_groups(self, groups: Sequence[PreferenceGroup]) -> tuple[list[PreferenceGroup], list[str]]:
        """The groups that fit the model and whose candidates differ, and notes on those that `reading` drops.

        Raises:
            DataError: a group is too long, refused, or has empty or equal candidates, and `reading` does not drop it.
        """
        tokenized, report = self._tokenize(groups, self.reading, self.reading.empty)
        return [row.group for row in tokenized], report.lines()

    def _tokenize(
        self, groups: Sequence[PreferenceGroup], reading: Reading, empty: Literal["error", "drop", "keep"] = "keep"
    ) -> tuple[list[TokenizedGroup], TokenizationReport]:
        from penchant.engine.reference_model import NO_LIMIT
        from penchant.models.loading import context_length

        return tokenize_groups(
            groups,
            self.tokenizer,
            max_length=reading.max_length or context_length(self.model.config) or NO_LIMIT,
            rendering=reading.rendering,
            truncation=reading.truncation,
            empty=empty,
            identical=reading.identical,
        )

    def _score(self, rows: Sequence[torch.Tensor]) -> list[float]:
        """Rewards of rows of token ids, in batches of rows of similar length, the longest first."""
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        scores: dict[int, float] = {}
        while order:
            fits = max(1, self.reading.token_budget // len(rows[order[0]]))
            part, order = order[:fits], order[fits:]
            with torch.no_grad():
                rewards = padded_rewards(self.model, [rows[i].to(self.model.device) for i in part], self.label)
            scores.update(zip(part, rewards.tolist(), strict=True))
        return [scores[i] for i in range(len(rows))]
