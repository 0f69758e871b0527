"""Whether a tokenizer's chat template can carry a conversation and end the assistant's turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TemplateFault = Literal["no_chat_template", "chat_template_fails", "no_end_of_turn"]
TEMPLATE_FAULTS: tuple[TemplateFault, ...] = ("no_chat_template", "chat_template_fails", "no_end_of_turn")

_ANSWER = "penchant"


def template_fault(tokenizer: PreTrainedTokenizerBase) -> TemplateFault | None:
    """What is wrong with the template on a question and its answer; the turn ends where a special token follows."""
    if tokenizer.chat_template is None:
        return "no_chat_template"
    conversation = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text: str = tokenizer.apply_chat_template(conversation, tokenize=False)
    except Exception:  # A template is a program: it can raise anything.
        return "chat_template_fails"
    _, answer, after = text.rpartition(_ANSWER)
    if not answer:
        return "chat_template_fails"
    return None if any(token in after for token in _end_tokens(tokenizer)) else "no_end_of_turn"


def _end_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    never = {tokenizer.bos_token, tokenizer.pad_token, tokenizer.unk_token} - {tokenizer.eos_token}
    return (added | set(tokenizer.all_special_tokens)) - never
