"""A Penchant model for lm-evaluation-harness (the optional package lm-eval): by log-probs, or by its preference head.

    from lm_eval import simple_evaluate
    results = simple_evaluate(model=log_prob_lm("runs/dpo"), tasks=["piqa"])

The requests of one document with one context are a preference group, so the engine reads their context once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penchant.data.groups import PreferenceGroup
from penchant.data.messages import NO_CONTEXT
from penchant.data.rendering import Rendering
from penchant.data.special_tokens import SpecialTokens
from penchant.data.template import Template, fixed_date
from penchant.data.tokenization import tokenize_groups, tokenize_prompts
from penchant.data.tokenized import Ids, TokenizedGroup
from penchant.engine.distributed import World
from penchant.engine.reference_model import FrozenModel
from penchant.engine.scoring import precision
from penchant.errors import ConfigError, DataError
from penchant.evaluation.answering import Sampling, generate
from penchant.evaluation.choices_scoring import OptionScorer, load_scorer, without_end
from penchant.evaluation.harness_requests import Generation, Request, by_context, request_name, rolling_windows
from penchant.evaluation.held_out import AS_IS, Reading
from penchant.models.multimodal import set_attention

logger = logging.getLogger(__name__)


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
    loaded = HarnessModel.load(model, reading)
    return _as_lm(base, LogProbs(loaded), loaded)


def head_lm(model: str, *, reading: Reading = AS_IS) -> Any:
    """An `lm_eval.api.model.LM` whose "log-likelihood" of a continuation is its reward by the preference head.

    For multiple-choice tasks and their `acc` alone: rewards are no log-probs, so what is divided by a length
    (`acc_norm`), made a perplexity or subtracted (`acc_mutual_info`) means nothing. Arguments and errors as in
    `log_prob_lm`.
    """
    base = _lm_class()
    loaded = HarnessModel.load(model, reading)
    return _as_lm(base, Rewards(loaded, model), loaded)


def local_tasks(files: Mapping[str, str | Path]) -> dict[str, Any]:
    """A group of the harness's tasks that read local files, worded and scored as the harness defines them.

    Nothing is downloaded; a file has the columns of the task's own data set. For `lm_eval.simple_evaluate`:
    ``tasks=[local_tasks({"piqa": "validation.jsonl"})]``.

    Args:
        files: name of a registered task -> a .json, .jsonl or .parquet file of labelled rows.

    Raises:
        DataError: a file does not exist or is of another kind.
    """
    members = []
    for name, file in files.items():
        path = Path(file).absolute()
        builder = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}.get(path.suffix)
        if builder is None or not path.is_file():
            problem = "there is no such file" if builder else "a task's file is a .json, .jsonl or .parquet file"
            raise DataError(problem, where=str(file), fix=f'name one: local_tasks({{"{name}": "FILE.jsonl"}})')
        splits = {"test_split": "test", "validation_split": None, "training_split": None, "fewshot_split": None}
        source = {"dataset_path": builder, "dataset_name": None, "dataset_kwargs": {"data_files": {"test": str(path)}}}
        members.append({"task": name, **source, **splits})
    return {"group": "local_files", "task": members}


def _lm_class() -> Any:
    try:
        return import_module("lm_eval.api.model").LM
    except ImportError as error:
        raise ConfigError(
            f"lm-evaluation-harness cannot be imported: {error}",
            where="lm_eval",
            fix="it comes with an extra: pip install 'penchant[eval]'",
        ) from error


def _as_lm(base: Any, answers: LogProbs | Rewards, loaded: HarnessModel) -> Any:
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
class HarnessModel:
    """A loaded model on one process; between requests its attention implementation is the original one."""

    frozen: FrozenModel
    world: World
    reading: Reading

    @classmethod
    def load(cls, model: str, reading: Reading) -> HarnessModel:
        """Load a model; `reading` must not drop requests."""
        if "drop" in (reading.truncation, reading.empty, reading.rendering.refused):
            raise ConfigError(
                "every request of the harness wants an answer, so none can be dropped",
                where="reading",
                fix='Reading(truncation="keep_end_of_prompt") cuts the beginning of long contexts',
            )
        world, reading = World.single(), reading.on_one_day(model)
        return cls(
            FrozenModel.load(model, world, reading.dtype, reading.chat_template, reading.rendering),
            world,
            reading,
        )

    @property
    def limit(self) -> int:
        """Maximal number of tokens of context and continuation."""
        return self.reading.max_length or self.frozen.context

    @property
    def rendering(self) -> Rendering:
        """Rendering without a chat template, which the harness applies itself if requested."""
        return replace(self.reading.rendering, as_chat="false")

    def tokenize(self, requests: Sequence[Request], members: Sequence[Sequence[int]]) -> list[TokenizedGroup]:
        """Token ids of groups of requests, given by the requests' indices."""
        texts = [
            PreferenceGroup(group[0].args[0], tuple(request.args[1] for request in group), id=request_name(group[0]))
            for group in ([requests[i] for i in indices] for indices in members)
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

    def score(
        self, groups: Sequence[TokenizedGroup], head: str | None, ask: Callable[[OptionScorer], list[list[float]]]
    ) -> list[list[float]]:
        """Numbers that `ask` gets from a scorer of the groups; the original attention is restored afterwards."""
        model = self.frozen.model
        original_attention = model.config._attn_implementation
        try:
            return ask(load_scorer(self.frozen, groups, self.world, head, self.reading))
        finally:
            if model.config._attn_implementation != original_attention:
                set_attention(model, original_attention)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text; without a generation prompt its last message is not closed."""
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
    """Answers to the harness's requests by log-probs."""

    loaded: HarnessModel

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Summed log-prob in nats of every (context, continuation), and whether greedy decoding would give it.

        The end-of-turn token is no part of a continuation.
        """
        if not requests:
            return []
        members = by_context(requests)
        groups = [without_end(group) for group in self.loaded.tokenize(requests, members)]
        log_probs = self.loaded.score(groups, None, lambda scorer: scorer.log_probs(groups))
        answers: dict[int, tuple[float, bool]] = {}
        for indices, group, values in zip(members, groups, log_probs, strict=True):
            answers.update(zip(indices, zip(values, self._greedy(group), strict=True), strict=True))
        return [answers[i] for i in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Request]) -> list[float]:
        """Log-prob in nats of every whole text, summed over windows; see `rolling_windows`."""
        tokenizer = self.loaded.frozen.tokenizer
        start = SpecialTokens.from_tokenizer(tokenizer).fallback_start
        groups, owners = [], []
        for i, request in enumerate(requests):
            [text] = request.args
            ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)
            for prompt, response in rolling_windows(ids, start, self.loaded.limit):
                group = PreferenceGroup("", (text,), id=request_name(request))
                groups.append(TokenizedGroup(prompt, (response,), group))
                owners.append(i)
        totals = [0.0] * len(requests)
        if groups:
            log_probs = self.loaded.score(groups, None, lambda scorer: scorer.log_probs(groups))
            for owner, [value] in zip(owners, log_probs, strict=True):
                totals[owner] += value
        return totals

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """A response to every (context, settings), cut before the first stop string."""
        settings = [Generation.from_settings(request.args[1], request_name(request)) for request in requests]
        responses = [""] * len(requests)
        for sampling in dict.fromkeys(generation.sampling for generation in settings):
            mine = [i for i, generation in enumerate(settings) if generation.sampling == sampling]
            prompts = [self._prompt(requests[i], sampling) for i in mine]
            texts = generate(self.loaded.frozen.model, self.loaded.frozen.tokenizer, prompts, sampling)
            for i, [text] in zip(mine, texts, strict=True):
                responses[i] = settings[i].truncate(text)
        return responses

    def _prompt(self, request: Request, sampling: Sampling) -> Ids:
        [ids] = tokenize_prompts([request.args[0]], self.loaded.frozen.tokenizer, self.loaded.rendering)
        room = self.loaded.limit - sampling.max_new_tokens
        if len(ids) <= room:
            return ids
        message = f"{len(ids)} tokens of context and {sampling.max_new_tokens} to generate; {self.loaded.limit} fit"
        if self.loaded.reading.truncation == "error" or room < 1:
            fix = 'Reading(truncation="keep_end_of_prompt") cuts the beginning, or ask for fewer: max_gen_toks'
            raise DataError(message, where=request_name(request), fix=fix)
        logger.info(f"{request_name(request)}: {message}; the beginning is cut")
        return ids[-room:]

    def _greedy(self, group: TokenizedGroup) -> list[bool]:
        """Whether greedy decoding after the prompt gives the response, for every response.

        Most are settled by their first token, so one pass over the prompt does for a whole group.
        """
        first_token = self._likeliest(group.prompt)[-1]
        last = len(group.prompt) - 1
        return [
            bool(ids[0] == first_token)
            and (len(ids) == 1 or bool((self._likeliest(np.concatenate([group.prompt, ids[:-1]]))[last:] == ids).all()))
            for ids in group.responses
        ]

    @torch.no_grad()
    def _likeliest(self, ids: Ids) -> Ids:
        """[T] most likely next token after every prefix of [T] ids."""
        loaded = self.loaded
        with precision(loaded.world.device, loaded.reading.dtype):
            logits = loaded.frozen.model(input_ids=torch.from_numpy(ids)[None].to(loaded.world.device)).logits[0]
        likeliest: Ids = logits.argmax(-1).cpu().numpy()
        return likeliest


@dataclass(frozen=True)
class Rewards:
    """Answers to the harness's multiple-choice requests by a preference head.

    Attributes:
        head: folder of the preference head.
    """

    loaded: HarnessModel
    head: str

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Reward of every (context, continuation) with its end-of-turn token, paired with False for greedy."""
        if not requests:
            return []
        options = Counter((request.task_name, request.doc_id) for request in requests)
        alone = next((r for r in requests if options[r.task_name, r.doc_id] == 1), None)
        if alone is not None:
            raise _unsupported(f"{request_name(alone)} has one continuation, so there is nothing to choose from")
        members = by_context(requests)
        groups = self.loaded.tokenize(requests, members)

        def ask(scorer: OptionScorer) -> list[list[float]]:
            if scorer.rewards is None:
                raise RuntimeError("a scorer loaded with a head gives rewards")
            return scorer.rewards(groups)

        rewards = self.loaded.score(groups, self.head, ask)
        answers = {
            i: reward
            for indices, row in zip(members, rewards, strict=True)
            for i, reward in zip(indices, row, strict=True)
        }
        return [(answers[i], False) for i in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Request]) -> list[float]:
        """Raise a ConfigError, since a head has no log-probs."""
        raise _unsupported("a task asks for the log-prob of whole texts")

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """Raise a ConfigError, since a head generates no text."""
        raise _unsupported("a task asks for generated text")


def _unsupported(message: str) -> ConfigError:
    return ConfigError(
        f"{message}; a preference head answers multiple-choice tasks only",
        where="head_lm",
        fix="run this task with log_prob_lm(MODEL)",
    )
