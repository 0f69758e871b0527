"""Responses as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from penchant.data.template_tokens import TemplateTokens
from penchant.data.tokenized import Ids
from penchant.engine.sampling import Sampling, sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
    """Sample responses to tokenized prompts; text without what ends it, the prompt not repeated.

    Args:
        prompts: ids as training sees them.
        numbers: each prompt's, which with the seed decides its draws; by default its place.
        advance: called with the number of prompts done since the last call.

    Returns:
        For each prompt, `sampling.samples` responses.
    """
    drawn = sample(model, prompts, sampling, ends=ends_of(model, tokenizer), numbers=numbers, advance=advance)
    return [
        [text_after(tokenizer, prompt, response.content) for response in responses]
        for prompt, responses in zip(prompts, drawn, strict=True)
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
    """A response's text without what ends it, BOS and padding; special tokens that are content stay.

    Args:
        response: without an end that only the model's generation configuration knows: `SampledResponse.content`.
    """
    silent = silent_ids(tokenizer)
    # Decoded together with the prompt: some tokenizers take a leading space away from whatever is decoded first.
    prompt_ids, response_ids = ([i for i in ids if i not in silent] for ids in (prompt.tolist(), response))
    prompt_text, text = tokenizer.decode(prompt_ids), tokenizer.decode([*prompt_ids, *response_ids])
    return text[len(prompt_text) :] if text.startswith(prompt_text) else tokenizer.decode(response_ids)


def silent_ids(tokenizer: PreTrainedTokenizerBase) -> set[int | None]:
    """The ids that no response's text shows: what ends it, BOS, padding and the unknown token; None where one lacks."""
    basic = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    return basic | TemplateTokens.from_tokenizer(tokenizer).ends
