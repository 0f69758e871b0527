"""Whether a tokenizer's chat template can carry a conversation and end the assistant's turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from penchant.data.template_tokens import TemplateTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TemplateFault = Literal["no_chat_template", "chat_template_fails", "no_end_of_turn"]
TEMPLATE_FAULTS: tuple[TemplateFault, ...] = ("no_chat_template", "chat_template_fails", "no_end_of_turn")


def template_fault(tokenizer: PreTrainedTokenizerBase) -> TemplateFault | None:
    """What is wrong with the template on a question and its answer."""
    if tokenizer.chat_template is None:
        return "no_chat_template"
    tokens = TemplateTokens.of(tokenizer)
    if not tokens.renders:
        return "chat_template_fails"
    return "no_end_of_turn" if tokens.turn_end is None else None
