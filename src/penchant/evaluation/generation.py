"""Sampling responses from a model, many prompts at a time, on transformers' own generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from penchant.data.tokenized import Ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn.

    Attributes:
        samples: responses for each prompt.
        max_new_tokens: tokens of the longest response.
        temperature: of the softmax; 0 takes the likeliest token each time.
        top_p: the smallest set of tokens with this much probability is drawn from; 1 draws from all.
        seed: the same seed, prompts and batch size give the same responses.
        batch_size: prompts at a time.
    """

    samples: int = 1
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 32


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Ids],
    sampling: Sampling,
    *,
    advance: Callable[[int], None] = lambda prompts: None,
) -> list[list[str]]:
    """Sample responses to tokenized prompts; text without special tokens, the prompt not repeated.

    Args:
        model: as loaded, not one a scorer has taken over.
        prompts: ids as training sees them.
        advance: called with the number of prompts done since the last call.

    Returns:
        For each prompt, `sampling.samples` responses.
    """
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    torch.manual_seed(sampling.seed)
    model.eval()
    responses: list[list[str]] = []
    for start in range(0, len(prompts), sampling.batch_size):
        part = prompts[start : start + sampling.batch_size]
        width = max(map(len, part))
        ids = torch.full((len(part), width), pad, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(part):
            ids[row, width - len(prompt) :] = torch.from_numpy(prompt)
            mask[row, width - len(prompt) :] = 1
        with torch.no_grad():
            out = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=sampling.max_new_tokens,
                num_return_sequences=sampling.samples,
                pad_token_id=pad,
                eos_token_id=_ends(model, tokenizer),
                **(drawn if sampling.temperature > 0 else {"do_sample": False}),
            )
        for row, prompt in enumerate(part):
            mine = out[row * sampling.samples : (row + 1) * sampling.samples, width:].tolist()
            responses.append([_text_after(tokenizer, prompt, response) for response in mine])
        advance(len(part))
    return responses


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    configured = model.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    return sorted({end for end in [*ends, tokenizer.eos_token_id] if end is not None})


def _text_after(tokenizer: PreTrainedTokenizerBase, prompt: Ids, response: Sequence[int]) -> str:
    # Decoded together with the prompt: some tokenizers take a leading space away from whatever is decoded first.
    before = tokenizer.decode(prompt.tolist(), skip_special_tokens=True)
    whole = tokenizer.decode([*prompt.tolist(), *response], skip_special_tokens=True)
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(response, skip_special_tokens=True)
