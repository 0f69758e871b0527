"""A model's answers to prompts, from its folder, as text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.data.files import is_data_file
from penchant.data.groups import PreferenceGroup, Text, as_text
from penchant.data.messages import context_of
from penchant.data.rendering import PLAIN_TEXT, SWITCH, ChatConverter
from penchant.data.special_tokens import SpecialTokens
from penchant.data.template_tokens import TemplateTokens
from penchant.data.tokenization import readable_prompts, tokenize_prompts
from penchant.data.tokenized import Ids, keep_last_ids
from penchant.engine.device import local_device
from penchant.engine.reference_model import NO_LIMIT
from penchant.engine.sampling import Sampling, sample
from penchant.errors import ConfigError, DataError
from penchant.evaluation.held_out import AS_IS, Reading
from penchant.models.loading import adapter_base, context_length, load_config, load_model, load_tokenizer
from penchant.progress import Progress

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

__all__ = ["Sampling", "ends_of", "generate", "text_after"]


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Ids],
    sampling: Sampling,
    *,
    numbers: Sequence[int] | None = None,
    advance: Callable[[int], None] = lambda prompts: None,
) -> list[list[str]]:
    """Texts of sampled responses to tokenized prompts, without end tokens and without the prompt.

    Args:
        prompts: [T] token ids of every prompt.
        numbers: a number for every prompt, which with the seed decides its draws; by default its index.
        advance: called with the number of prompts done since the last call.

    Returns:
        For each prompt, `sampling.samples` responses.
    """
    samples = sample(model, prompts, sampling, ends=ends_of(model, tokenizer), numbers=numbers, advance=advance)
    return [
        [text_after(tokenizer, prompt, response.content) for response in responses]
        for prompt, responses in zip(prompts, samples, strict=True)
    ]


def ends_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end a response: the generation configuration's, the tokenizer's, and the chat template's.

    A base model with a chat template that was trained here ends its turns with the template's token, and never gives
    its own end-of-sequence token.
    """
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = configured if isinstance(configured, list) else [configured]
    template_ends = TemplateTokens.from_tokenizer(tokenizer).ends
    return sorted({end for end in [*ends, tokenizer.eos_token_id, *template_ends] if end is not None})


def text_after(tokenizer: PreTrainedTokenizerBase, prompt: Ids, response: Sequence[int]) -> str:
    """A response's text without end, BOS and padding tokens; special tokens that are content stay.

    Args:
        prompt: [T] token ids.
        response: token ids as in `SampledResponse.content`.
    """
    silent = silent_ids(tokenizer)
    # Decoded together with the prompt: some tokenizers take a leading space away from whatever is decoded first.
    prompt_ids, response_ids = ([i for i in ids if i not in silent] for ids in (prompt.tolist(), response))
    prompt_text, text = tokenizer.decode(prompt_ids), tokenizer.decode([*prompt_ids, *response_ids])
    return text[len(prompt_text) :] if text.startswith(prompt_text) else tokenizer.decode(response_ids)


def silent_ids(tokenizer: PreTrainedTokenizerBase) -> set[int | None]:
    """Ids left out of a response's text: end, BOS, padding and unknown tokens; None stands for a missing one."""
    basic = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    return basic | TemplateTokens.from_tokenizer(tokenizer).ends


NEW_TOKENS = 128
"""Default limit on the tokens of an answer."""


@dataclass(frozen=True)
class Answers:
    """Prompts and the responses to each of them."""

    prompts: tuple[Text, ...]
    responses: tuple[tuple[str, ...], ...]

    def to_json(self) -> dict[str, Any]:
        pairs = zip(self.prompts, self.responses, strict=True)
        return {"answers": [{**_row(prompt), "responses": list(responses)} for prompt, responses in pairs]}

    @property
    def table(self) -> Table:
        from rich.table import Table
        from rich.text import Text as Plain

        table = Table("prompt", "responses", show_lines=True)
        for prompt, responses in zip(self.prompts, self.responses, strict=True):
            table.add_row(Plain(as_text(prompt)), Plain("\n\n".join(responses)))
        return table


def _row(prompt: Text) -> dict[str, Any]:
    return {"prompt": prompt, **context_of(prompt).columns()}


def names_a_file(source: str) -> bool:
    """Whether a command line's prompt names a file to read prompts from, and is no prompt itself.

    Raises:
        DataError: it is empty.
    """
    if not source:
        raise DataError("the prompt is empty", fix="give a text or a preference file")
    path = Path(source)
    return (" " not in source and is_data_file(path)) or (len(source) < 256 and path.exists())


def distinct_prompts(groups: Sequence[PreferenceGroup]) -> list[Text]:
    """Distinct prompts of the groups in their order, without empty ones."""
    return [prompt for prompt in {as_text(group.prompt): group.prompt for group in groups}.values() if prompt]


@dataclass(frozen=True)
class AnswerablePrompts:
    """The prompts that a model can answer, and how many it cannot.

    Attributes:
        refused_count: number of prompts that the chat template or the tokenizer refuses.
        too_long_count: number of prompts that leave no room for an answer in the model's context.
    """

    prompts: list[Text]
    refused_count: int
    too_long_count: int


def answerable_prompts(
    model: str, prompts: Sequence[Text], new_tokens: int, reading: Reading = AS_IS
) -> AnswerablePrompts:
    """The prompts that a model reads with room for `new_tokens` tokens more in its context."""
    tokenizer = load_tokenizer(model, chat_template=reading.chat_template)
    readable = readable_prompts(prompts, tokenizer, reading.rendering)
    ids = tokenize_prompts(readable, tokenizer, reading.rendering)
    limit = context_length(load_config(adapter_base(model) or model, weights=False)) or NO_LIMIT
    fitting = [prompt for prompt, tokens in zip(readable, ids, strict=True) if len(tokens) + new_tokens <= limit]
    return AnswerablePrompts(fitting, len(prompts) - len(readable), len(readable) - len(fitting))


def typed_rendering(model: str, prompt: str, reading: Reading) -> Reading:
    """Reading of a prompt typed on the command line: as a user's message if the model has a chat template."""
    if reading.rendering.as_chat != "auto":
        return reading
    tokenizer = load_tokenizer(model, chat_template=reading.chat_template)
    if not ChatConverter(tokenizer, reading.rendering).count_plain([prompt]):
        return reading
    logger.info(
        "the prompt is read as a user's message, by the model's chat template; as plain text: data.as_chat=false"
    )
    return replace(reading, rendering=replace(reading.rendering, as_chat="true"))


@dataclass(frozen=True)
class FittedPrompts:
    """Prompts with room for an answer.

    Attributes:
        ids: [T] token ids of every prompt, shortened where the truncation setting says so.
        new_tokens: limit on the tokens of an answer.
    """

    prompts: list[Text]
    ids: list[Ids]
    new_tokens: int


def fit_prompts(model: str, prompts: Sequence[Text], new_tokens: int | None, reading: Reading) -> FittedPrompts:
    """Tokenized prompts that leave room for an answer; `reading.truncation` decides about longer ones.

    Prompts that the chat template or the tokenizer refuses are dropped and counted where `reading.rendering` says so.

    Args:
        new_tokens: limit on the tokens of an answer; None means `NEW_TOKENS`, or as many as the longest prompt leaves.

    Raises:
        DataError: a prompt is refused, or too long and `reading.truncation` is ``error``; or no prompt is left.
        ConfigError: no prompt would have room.
    """
    tokenizer = load_tokenizer(model, chat_template=reading.chat_template)
    if plain := ChatConverter(tokenizer, reading.rendering).count_plain(prompts):
        logger.info(f"{PLAIN_TEXT.replace('_', ' ')}: {plain} of {len(prompts)} prompts; {SWITCH}")
    prompts = _readable_prompts(prompts, tokenizer, reading)
    ids = tokenize_prompts(prompts, tokenizer, reading.rendering)
    limit = reading.max_length or context_length(load_config(adapter_base(model) or model, weights=False))
    if limit is None:
        return FittedPrompts(list(prompts), ids, new_tokens or NEW_TOKENS)
    longest = max(map(len, ids), default=0)
    if new_tokens is None:
        new_tokens = NEW_TOKENS
        if longest + NEW_TOKENS > limit > longest and reading.truncation == "error":
            new_tokens = limit - longest
            logger.info(f"answers have at most {new_tokens} tokens: {limit} fit, the longest prompt has {longest}")
    special = SpecialTokens.from_tokenizer(tokenizer)
    room = limit - new_tokens
    if room < 1 + max(len(special.start), 1):
        fix = f"sampling.max_new_tokens={max(1, limit // 2)}, or less"
        raise ConfigError(
            f"{limit} tokens fit, the answer may have {new_tokens}: no room is left", where=model, fix=fix
        )
    long = [number for number, prompt in enumerate(ids) if len(prompt) > room]
    if long and reading.truncation == "error":
        raise _too_long_error(longest, len(long), len(ids), new_tokens, limit)
    if long and reading.truncation == "drop":
        return _drop_long_prompts(long, prompts, ids, new_tokens)
    if long:
        logger.info(f"prompt truncated: {len(long)} of {len(prompts)} prompts")
    fitted_ids = [prompt if len(prompt) <= room else keep_last_ids(prompt, room, special) for prompt in ids]
    return FittedPrompts(list(prompts), fitted_ids, new_tokens)


def _readable_prompts(prompts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, reading: Reading) -> Sequence[Text]:
    readable = readable_prompts(prompts, tokenizer, reading.rendering)
    if prompts and not readable:
        raise DataError(
            "no prompt is left: the chat template or the tokenizer refuses all",
            fix="correct the prompts, or use a template that takes them: data.chat_template=FILE",
        )
    if len(readable) < len(prompts):
        logger.info(f"refused dropped: {len(prompts) - len(readable)} of {len(prompts)} prompts")
    return readable


def _drop_long_prompts(
    long: Sequence[int], prompts: Sequence[Text], ids: Sequence[Ids], new_tokens: int
) -> FittedPrompts:
    logger.info(f"too long dropped: {len(long)} of {len(prompts)} prompts")
    kept_indices = sorted(set(range(len(ids))) - set(long))
    if not kept_indices:
        raise DataError("no prompt is left: all are too long", fix="data.truncation=keep_end_of_prompt")
    return FittedPrompts(
        [prompts[number] for number in kept_indices], [ids[number] for number in kept_indices], new_tokens
    )


def _too_long_error(longest: int, count: int, prompts: int, new_tokens: int, limit: int) -> DataError:
    """Error for prompts that are too long; it advises fewer new tokens only where that suffices."""
    shorter = f"sampling.max_new_tokens={limit - longest}, or " if longest < limit else ""
    return DataError(
        f"the longest prompt has {longest} tokens, its answer up to {new_tokens}, and {limit} fit "
        f"({count} of {prompts} prompts are too long)",
        fix=f"{shorter}leave such prompts out, counted: data.truncation=drop, or cut their beginnings: "
        "data.truncation=keep_end_of_prompt",
    )


def answer(
    model: str,
    prompts: Sequence[Text],
    sampling: Sampling,
    reading: Reading = AS_IS,
    ids: Sequence[Ids] | None = None,
) -> Answers:
    """Responses sampled from a model, which is loaded for this call only.

    Args:
        ids: [T] token ids of every prompt if `fit_prompts` has computed them.
    """
    reading = reading.on_one_day(model)
    tokenizer = load_tokenizer(model, chat_template=reading.chat_template)
    loaded = load_model(model).to(local_device())
    with Progress("generating", len(prompts), "prompts") as progress:
        if ids is None:
            ids = tokenize_prompts(prompts, tokenizer, reading.rendering)
        responses = generate(loaded, tokenizer, ids, sampling, advance=progress.advance)
    return Answers(tuple(prompts), tuple(map(tuple, responses)))
