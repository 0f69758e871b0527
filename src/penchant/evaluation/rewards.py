"""Rewards: a number for each response to a prompt, from a model, a function of the user's, or a judge.

Also in this module:

- Functions of the user's, named in a configuration as ``package.module:name`` or ``file.py:name``.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from penchant.config.reward import JudgeConfig, RewardConfig
from penchant.data.groups import PreferenceGroup, Text
from penchant.data.rendering import PLAIN
from penchant.data.tokenization import tokenize_groups
from penchant.data.tokenized import TokenizationReport, TokenizedGroup
from penchant.errors import ConfigError, DataError, PenchantError
from penchant.evaluation.held_out import AS_IS, Reading

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class UserFunction:
    """A function that was found.

    Attributes:
        where: as the configuration names it.
        digest: a hash of the file it stands in.
    """

    call: Callable[..., Any]
    where: str
    digest: str


def import_function(where: str, setting: str) -> UserFunction:
    """Import ``package.module:name`` or ``file.py:name``.

    Args:
        setting: the configuration's name for it, as in ``reward.function``; for errors.

    Raises:
        ConfigError: it is not there, cannot be imported, or is no function.
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
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(f"{setting} {where} cannot be imported: {found}", fix="correct it") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        kind = "has no such name" if function is None else "is no function"
        raise ConfigError(f"{setting} {where}: {attribute} {kind}", fix=example)
    # The whole file: what the function calls may stand beside it.
    file = getattr(module, "__file__", None)
    source = Path(file).read_bytes() if file else where.encode()
    return UserFunction(function, where, hashlib.blake2b(source, digest_size=8).hexdigest())


def shown(value: object) -> str:
    """A value, or its start where it is long, for an error."""
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
    """Scores responses; the same arguments give the same numbers."""

    @property
    def name(self) -> str:
        """What it is, and a hash of it: numbers are kept under this name."""
        ...

    def __call__(self, prompts: Sequence[Text], responses: Sequence[Sequence[Text]]) -> list[list[float]]:
        """A finite number for each response to each prompt; higher is better."""
        ...


def open_reward(
    config: RewardConfig,
    *,
    device: torch.device,
    reading: Reading = AS_IS,
) -> Reward:
    """The reward a configuration names.

    Args:
        reading: how a reward model reads the prompts and responses.

    Raises:
        PenchantError: it cannot be loaded or imported.
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
    """A reward's configuration from flags.

    Raises:
        ConfigError: none is given, or several are.
    """
    from pydantic import ValidationError

    try:
        judge = None
        if judge_url is not None or judge_model is not None:
            judge = JudgeConfig.model_validate({"url": judge_url, "model": judge_model})
        return RewardConfig(model=model, label=label, function=function, judge=judge)
    except ValidationError as error:
        found = "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
        fix = "give one of: --model FOLDER; --function FILE.py:NAME; --judge-url URL --judge-model NAME"
        raise ConfigError(found, fix=fix) from error


@dataclass(frozen=True)
class FunctionReward:
    """A user's function ``f(prompt, responses) -> numbers``.

    Attributes:
        where: as the configuration names it.
        name: that, and a hash of the file it stands in.
    """

    function: Callable[[Any, Any], Any]
    where: str
    name: str

    @classmethod
    def load(cls, where: str) -> FunctionReward:
        """Import ``package.module:name`` or ``file.py:name``."""
        found = import_function(where, "reward.function")
        return cls(found.call, where, f"function {where} {found.digest}")

    def __call__(self, prompts: Sequence[Text], responses: Sequence[Sequence[Text]]) -> list[list[float]]:
        return [self._one(i, prompt, given) for i, (prompt, given) in enumerate(zip(prompts, responses, strict=True))]

    def _one(self, number: int, prompt: Text, responses: Sequence[Text]) -> list[float]:
        place = f"{self.where}, prompt {number}"
        try:
            found = self.function(prompt, list(responses))
        except Exception as error:
            what = f"the reward function raised {type(error).__name__}: {' '.join(str(error).split())}"
            raise DataError(what, where=place, fix="correct the function, or leave such prompts out") from error
        try:
            numbers = [float(value) for value in found]
        except (TypeError, ValueError) as error:
            what = f"the reward function returned {shown(found)}, expected {len(responses)} numbers"
            raise DataError(what, where=place, fix="return a list with a number for each response") from error
        if len(numbers) != len(responses):
            raise DataError(
                f"the reward function returned {len(numbers)} numbers for {len(responses)} responses",
                where=place,
                fix="return a list with a number for each response",
            )
        for k, value in enumerate(numbers):
            if not math.isfinite(value):
                raise DataError(
                    f"the reward function returned {value} for response {k}, expected a finite number",
                    where=place,
                    fix="return a finite number for every response, also for an empty one",
                )
        return numbers


@dataclass(frozen=True)
class ModelReward:
    """A sequence-classification model's logit at the token that transformers reads: the last that is no pad token.

    Attributes:
        label: which of the model's outputs.
        reading: how it reads prompts and responses; the token budget is of a padded batch.
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
        """Load the model; errors as in `engine.loading`."""
        import torch

        from penchant.models.loading import load_tokenizer
        from penchant.models.reward_model import load_reward_model
        from penchant.models.special_tokens import pad_token_id
        from penchant.storage.caches import model_fingerprint, tokenizer_fingerprint

        reading = reading.on_one_day(source)
        tokenizer = load_tokenizer(source, chat_template=reading.chat_template)
        weights = torch.bfloat16 if reading.dtype == "bfloat16" else torch.float32
        model = load_reward_model(source, dtype=weights).to(device).eval()
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
            PreferenceGroup(prompt, tuple(given), id=str(i))
            for i, (prompt, given) in enumerate(zip(prompts, responses, strict=True))
        ]
        truncation = "error" if self.reading.truncation == "drop" else self.reading.truncation
        rendering = replace(self.reading.rendering, refused="error")
        tokenized, _ = self._tokenized(groups, replace(self.reading, truncation=truncation, rendering=rendering))
        rows = [[*group.prompt, *response] for group in tokenized for response in group.responses]
        scores = iter(self._score(rows))
        return [[next(scores) for _ in given] for given in responses]

    def rounding_notes(self, groups: Sequence[PreferenceGroup]) -> list[str]:
        """What half precision does to the rewards of the first groups, in a line; nothing in float32."""
        import torch

        from penchant.engine.tree_check import is_half, measure_rounding, rounding_note

        if not is_half(self.model.dtype, "float32") or not groups:
            return []
        prompts, responses = [group.prompt for group in groups[:4]], [group.candidates for group in groups[:4]]

        def rewards() -> torch.Tensor:
            return torch.tensor([value for row in self(prompts, responses) for value in row], dtype=torch.float64)

        with torch.no_grad():
            return [rounding_note(measure_rounding(self.model, rewards, nullcontext))]

    def fitting(self, groups: Sequence[PreferenceGroup]) -> tuple[list[PreferenceGroup], list[str]]:
        """The groups that the model reads, and notes: those too long or refused are dropped where `reading` says so.

        Raises:
            DataError: a group is too long or refused, and may not be dropped.
        """
        # Equal candidates get equal rewards: what is known of their worth is kept from the tokenizer.
        bare = [PreferenceGroup(group.prompt, group.candidates, id=group.id) for group in groups]
        tokenized, report = self._tokenized(bare, self.reading)
        fitting = {id(row.group) for row in tokenized}
        return [group for group, stripped in zip(groups, bare, strict=True) if id(stripped) in fitting], report.lines()

    def comparable(self, groups: Sequence[PreferenceGroup]) -> tuple[list[PreferenceGroup], list[str]]:
        """The groups that the model reads and whose candidates differ, and notes on those that `reading` drops.

        Raises:
            DataError: a group is too long, refused, or has empty or identical candidates, and may not be dropped.
        """
        tokenized, report = self._tokenized(groups, self.reading, self.reading.empty)
        return [row.group for row in tokenized], report.lines()

    def _tokenized(
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

    def _score(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Longest first, so that a batch holds rows of about one length."""
        import torch

        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        found: dict[int, float] = {}
        while order:
            fits = max(1, self.reading.token_budget // len(rows[order[0]]))
            part, order = order[:fits], order[fits:]
            width = len(rows[part[0]])
            ids = torch.zeros(len(part), width, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(part):
                ids[row, : len(rows[i])] = torch.tensor([int(token) for token in rows[i]])
                mask[row, : len(rows[i])] = 1
            with torch.no_grad():
                logits = self._last(ids.to(self.model.device), mask.to(self.model.device))
            found.update(zip(part, logits[:, self.label].double().tolist(), strict=True))
        return [found[i] for i in range(len(rows))]

    def _last(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[N, labels] logits at each row's last token that is not the configuration's pad token."""
        import torch

        from penchant.models.special_tokens import pad_token_id

        backbone = getattr(self.model, self.model.base_model_prefix)
        head = getattr(self.model, "score", None)
        if head is None:  # a bidirectional classifier, whose head reads the first token
            return self.model(input_ids=ids, attention_mask=mask).logits
        hidden = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        pad = pad_token_id(self.model)
        # Not the model's own pooling: these rows are padded with another token.
        counted = mask if pad is None else mask * (ids != pad)
        last = (counted * torch.arange(ids.shape[1], device=ids.device)).argmax(-1)
        return head(hidden[range(len(ids)), last])
