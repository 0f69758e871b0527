"""The prompts fresh samples answer: those of measured groups, with room for an answer in the model's context."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from penchant.comparison.config import Measure
from penchant.data.groups import PreferenceGroup, Text
from penchant.data.tokenization import tokenize_groups, tokenize_prompts
from penchant.engine.frozen import NO_LIMIT
from penchant.engine.loading import adapter_base, context_length, load_config, load_tokenizer
from penchant.errors import ConfigError
from penchant.evaluation.answering import distinct_prompts
from penchant.evaluation.held_out import Reading


def asked_prompts(
    model: str, held_out: Sequence[PreferenceGroup], reading: Reading, settings: Measure, tell: Callable[[str], None]
) -> list[Text]:
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
            tell(f"{left} of {len(every)} held-out prompts are not sampled from: {why}")
    return found[: settings.samples]
