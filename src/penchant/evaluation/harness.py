"""A Penchant model for lm-evaluation-harness (the optional package lm-eval): by log-probs, or by its preference head.

    from lm_eval import simple_evaluate
    results = simple_evaluate(model=log_prob_lm("runs/dpo"), tasks=["piqa"])

The requests of one document with one context are a preference group, so the engine reads their context once.

Also in this module:

- The requests of lm-evaluation-harness: grouped by context, cut into windows, their settings read.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import torch

from penchant.data.groups import PreferenceGroup
from penchant.data.messages import NO_CONTEXT
from penchant.data.rendering import Rendering
from penchant.data.special_tokens import SpecialTokens
from penchant.data.template import Template, fixed_date
from penchant.data.tokenization import tokenize_groups, tokenize_prompts
from penchant.data.tokenized import Ids, TokenizedGroup
from penchant.engine.distributed import World, local_device
from penchant.engine.reference_model import FrozenModel
from penchant.engine.scoring import precision
from penchant.errors import ConfigError, DataError
from penchant.evaluation.answering import Sampling, generate
from penchant.evaluation.choices_scoring import OptionScorer, load_scorer, without_end
from penchant.evaluation.held_out import AS_IS, Reading
from penchant.models.multimodal import set_attention

logger = logging.getLogger(__name__)

DEFAULT_NEW_TOKENS = 256
"""Tokens to generate where a task does not say, as the harness's own models have it."""


class Request(Protocol):
    """What is used of the harness's `Instance`."""

    task_name: str | None
    doc_id: int | None

    @property
    def args(self) -> tuple[Any, ...]: ...


def by_context(requests: Sequence[Request]) -> list[list[int]]:
    """Indices of the requests of each document's context, in order: these are one preference group."""
    groups: dict[tuple[str | None, int | None, str], list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault((request.task_name, request.doc_id, request.args[0]), []).append(i)
    return list(groups.values())


def rolling_windows(ids: Ids, start: int, length: int) -> list[tuple[Ids, Ids]]:
    """(context, predicted) windows of at most `length` tokens in which each id is predicted exactly once.

    The first window's context is the token `start`, that of the others the one token before; the last window, which
    has fewer tokens to predict, has as many before them as fit.
    """
    windows = []
    done = 0
    while done < len(ids):
        end = min(done + length - 1, len(ids))
        context = ids[max(0, end - length) : done] if done else np.array([start], dtype=np.int64)
        windows.append((context, ids[done:end]))
        done = end
    return windows


@dataclass(frozen=True)
class Generation:
    """A request's settings: how to draw, and at which strings to stop."""

    sampling: Sampling
    stops: tuple[str, ...]

    @classmethod
    def of(cls, settings: Mapping[str, Any], where: str) -> Generation:
        """From the harness's dictionary.

        Raises:
            ConfigError: it has a setting that is not known here.
        """
        known = {"until", "max_gen_toks", "do_sample", "temperature", "top_p"}
        if unknown := sorted(set(settings) - known):
            raise ConfigError(
                f"generation settings {', '.join(unknown)} are not known; known are {', '.join(sorted(known))}",
                where=where,
                fix="take them out of the task's generation_kwargs",
            )
        until = settings.get("until") or ()
        temperature = float(settings.get("temperature", 1.0)) if settings.get("do_sample", False) else 0.0
        sampling = Sampling(
            max_new_tokens=int(settings.get("max_gen_toks", DEFAULT_NEW_TOKENS)),
            temperature=temperature,
            top_p=float(settings.get("top_p", 1.0)),
        )
        return cls(sampling, (until,) if isinstance(until, str) else tuple(until))

    def cut(self, text: str) -> str:
        """The text before the first of the strings to stop at."""
        return text[: min((at for stop in self.stops if stop and (at := text.find(stop)) >= 0), default=len(text))]


def named(request: Request) -> str:
    return f"{request.task_name}, document {request.doc_id}"


def log_prob_lm(model: str, *, reading: Reading = AS_IS) -> Any:
    """An `lm_eval.api.model.LM` that answers every kind of request by the model's log-probs and samples.

    Args:
        model: a folder (a run's output, a Hugging Face model, a PEFT adapter) or hub id.
        reading: ``truncation="keep_end_of_prompt"`` cuts the beginning of contexts that are too long, counted.

    Raises:
        ConfigError: lm-eval is not installed, or `reading` would drop requests.
        ModelError: the model cannot be loaded.
    """
    base = _lm_class()
    loaded = Loaded.of(model, reading)
    return _as_lm(base, LogProbs(loaded), loaded)


def head_lm(model: str, *, reading: Reading = AS_IS) -> Any:
    """An `lm_eval.api.model.LM` whose "log-likelihood" of a continuation is its reward by the preference head.

    For multiple-choice tasks and their `acc` alone: rewards are no log-probs, so what is divided by a length
    (`acc_norm`), made a perplexity or subtracted (`acc_mutual_info`) means nothing. Arguments and errors as in
    `log_prob_lm`.
    """
    base = _lm_class()
    loaded = Loaded.of(model, reading)
    return _as_lm(base, Rewards(loaded, model), loaded)


def _lm_class() -> Any:
    try:
        return import_module("lm_eval.api.model").LM
    except ImportError as error:
        raise ConfigError(
            f"lm-evaluation-harness cannot be imported: {error}",
            where="lm_eval",
            fix="it comes with an extra: pip install 'penchant[eval]'",
        ) from error


def _as_lm(base: Any, answers: LogProbs | Rewards, loaded: Loaded) -> Any:
    methods: dict[str, Callable[..., Any]] = {
        "loglikelihood": answers.loglikelihood,
        "loglikelihood_rolling": answers.loglikelihood_rolling,
        "generate_until": answers.generate_until,
        "apply_chat_template": loaded.apply_chat_template,
        "chat_template": loaded.chat_template,
    }
    namespace: dict[str, Any] = {name: staticmethod(method) for name, method in methods.items()}
    return type("PenchantLM", (base,), {**namespace, "tokenizer_name": loaded.frozen.tokenizer.name_or_path})()


@dataclass(frozen=True)
class Loaded:
    """A model as the harness's requests find it: one process, its attention the model's own between requests."""

    frozen: FrozenModel
    world: World
    reading: Reading

    @classmethod
    def of(cls, model: str, reading: Reading) -> Loaded:
        if "drop" in (reading.truncation, reading.empty, reading.rendering.refused):
            raise ConfigError(
                "every request of the harness wants an answer, so none can be dropped",
                where="reading",
                fix='Reading(truncation="keep_end_of_prompt") cuts the beginning of long contexts',
            )
        world, reading = World(0, 1, local_device()), reading.on_one_day(model)
        return cls(
            FrozenModel.load(model, world, reading.dtype, reading.chat_template, reading.rendering),
            world,
            reading,
        )

    @property
    def limit(self) -> int:
        return self.reading.max_length or self.frozen.context

    @property
    def rendering(self) -> Rendering:
        """The harness applies chat templates itself, where it is asked to."""
        return replace(self.reading.rendering, as_chat="false")

    def tokenize(self, requests: Sequence[Request], members: Sequence[Sequence[int]]) -> list[TokenizedGroup]:
        """Token ids of groups of requests."""
        texts = [
            PreferenceGroup(requests[of[0]].args[0], tuple(requests[i].args[1] for i in of), id=named(requests[of[0]]))
            for of in members
        ]
        groups, report = tokenize_groups(
            texts,
            self.frozen.tokenizer,
            max_length=self.limit,
            rendering=self.rendering,
            truncation=self.reading.truncation,
        )
        for event, count in sorted(report.counts.items()):
            logger.info(f"{event.replace('_', ' ')}: {count} of {report.groups} contexts")
        return groups

    def scored(
        self, groups: Sequence[TokenizedGroup], head: str | None, ask: Callable[[OptionScorer], list[list[float]]]
    ) -> list[list[float]]:
        """What is asked of a scorer for these groups; the model's own attention is put back after."""
        model = self.frozen.model
        own = model.config._attn_implementation
        try:
            return ask(load_scorer(self.frozen, groups, self.world, head, self.reading))
        finally:
            if model.config._attn_implementation != own:
                set_attention(model, own)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text; without a generation prompt its last message is left open."""
        template, rendering = Template.from_tokenizer(self.frozen.tokenizer), self.reading.rendering
        with fixed_date(template.source, rendering.date):
            text: str = self.frozen.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **template.variables(rendering, NO_CONTEXT),
            )
        return text

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The tokenizer's template, for the harness's records."""
        return str(self.frozen.tokenizer.chat_template or "")


@dataclass(frozen=True)
class LogProbs:
    """The harness's requests, answered by log-probs."""

    loaded: Loaded

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """For each (context, continuation): its summed log-prob, and whether greedy decoding would give it.

        The end-of-turn token is no part of a continuation.
        """
        if not requests:
            return []
        members = by_context(requests)
        groups = [without_end(group) for group in self.loaded.tokenize(requests, members)]
        log_probs = self.loaded.scored(groups, None, lambda scorer: scorer.log_probs(groups))
        answers: dict[int, tuple[float, bool]] = {}
        for of, group, values in zip(members, groups, log_probs, strict=True):
            answers.update(zip(of, zip(values, self._greedy(group), strict=True), strict=True))
        return [answers[i] for i in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Request]) -> list[float]:
        """The log-prob of each whole text, window by window; see `rolling_windows`."""
        tokenizer = self.loaded.frozen.tokenizer
        start = SpecialTokens.from_tokenizer(tokenizer).fallback_start
        groups, owners = [], []
        for i, request in enumerate(requests):
            [text] = request.args
            ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)
            for prompt, response in rolling_windows(ids, start, self.loaded.limit):
                groups.append(TokenizedGroup(prompt, (response,), PreferenceGroup("", (text,), id=named(request))))
                owners.append(i)
        totals = [0.0] * len(requests)
        if groups:
            found = self.loaded.scored(groups, None, lambda scorer: scorer.log_probs(groups))
            for owner, [value] in zip(owners, found, strict=True):
                totals[owner] += value
        return totals

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """A response to each (context, settings), cut before the first of the strings it is to stop at."""
        settings = [Generation.of(request.args[1], named(request)) for request in requests]
        responses = [""] * len(requests)
        for wanted in dict.fromkeys(each.sampling for each in settings):
            mine = [i for i, each in enumerate(settings) if each.sampling == wanted]
            prompts = [self._prompt(requests[i], wanted) for i in mine]
            texts = generate(self.loaded.frozen.model, self.loaded.frozen.tokenizer, prompts, wanted)
            for i, [text] in zip(mine, texts, strict=True):
                responses[i] = settings[i].cut(text)
        return responses

    def _prompt(self, request: Request, sampling: Sampling) -> Ids:
        [ids] = tokenize_prompts([request.args[0]], self.loaded.frozen.tokenizer, self.loaded.rendering)
        room = self.loaded.limit - sampling.max_new_tokens
        if len(ids) <= room:
            return ids
        found = f"{len(ids)} tokens of context and {sampling.max_new_tokens} to generate; {self.loaded.limit} fit"
        if self.loaded.reading.truncation == "error" or room < 1:
            fix = 'Reading(truncation="keep_end_of_prompt") cuts the beginning, or ask for fewer: max_gen_toks'
            raise DataError(found, where=named(request), fix=fix)
        logger.info(f"{named(request)}: {found}; the beginning is cut")
        return ids[-room:]

    def _greedy(self, group: TokenizedGroup) -> list[bool]:
        """Whether each response is what greedy decoding gives after the prompt.

        Most are settled by their first token, so one pass over the prompt does for a whole group.
        """
        first = self._likeliest(group.prompt)[-1]
        last = len(group.prompt) - 1
        return [
            bool(ids[0] == first)
            and (len(ids) == 1 or bool((self._likeliest(np.concatenate([group.prompt, ids[:-1]]))[last:] == ids).all()))
            for ids in group.responses
        ]

    @torch.no_grad()
    def _likeliest(self, ids: Ids) -> Ids:
        """The likeliest next token at every position."""
        loaded = self.loaded
        with precision(loaded.world.device, loaded.reading.dtype):
            logits = loaded.frozen.model(input_ids=torch.from_numpy(ids)[None].to(loaded.world.device)).logits[0]
        likeliest: Ids = logits.argmax(-1).cpu().numpy()
        return likeliest


@dataclass(frozen=True)
class Rewards:
    """The harness's multiple-choice requests, answered by a preference head.

    Attributes:
        head: the folder that holds it.
    """

    loaded: Loaded
    head: str

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """For each (context, continuation): the reward of the continuation with its end-of-turn token, and False."""
        if not requests:
            return []
        options = Counter((request.task_name, request.doc_id) for request in requests)
        alone = next((r for r in requests if options[r.task_name, r.doc_id] == 1), None)
        if alone is not None:
            raise _refused(f"{named(alone)} has one continuation, so there is nothing to choose from")
        members = by_context(requests)
        groups = self.loaded.tokenize(requests, members)

        def ask(scorer: OptionScorer) -> list[list[float]]:
            if scorer.rewards is None:
                raise RuntimeError("a scorer loaded with a head gives rewards")
            return scorer.rewards(groups)

        rewards = self.loaded.scored(groups, self.head, ask)
        answers = {i: r for of, row in zip(members, rewards, strict=True) for i, r in zip(of, row, strict=True)}
        return [(answers[i], False) for i in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Request]) -> list[float]:
        raise _refused("a task asks for the log-prob of whole texts")

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        raise _refused("a task asks for generated text")


def _refused(found: str) -> ConfigError:
    return ConfigError(
        f"{found}; a preference head answers multiple-choice tasks only",
        where="head_lm",
        fix="run this task with log_prob_lm(MODEL)",
    )
