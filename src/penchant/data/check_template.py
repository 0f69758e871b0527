"""Checks of a tokenizer's chat template: its faults, groups to which it is not applied, control tokens in messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from penchant.data.as_chat import PLAIN_TEXT, AsChat
from penchant.data.check_corpus import Corpus
from penchant.data.check_report import Hits
from penchant.data.control_text import ControlText
from penchant.data.rendering import Rendering
from penchant.data.template_tokens import TemplateTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TemplateFault = Literal["no_chat_template", "chat_template_fails", "no_end_of_turn"]
TEMPLATE_FAULTS: tuple[TemplateFault, ...] = ("no_chat_template", "chat_template_fails", "no_end_of_turn")


def template_checks(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, rendering: Rendering) -> dict[str, Hits]:
    """Hits by name of check: conversations affected by a fault of the template, and plain groups without template."""
    as_chat = AsChat(tokenizer, rendering)
    groups_as_read = [as_chat.group(group) for group in corpus.groups]
    conversational = [i for i, (group, _) in enumerate(groups_as_read) if not isinstance(group.prompt, str)]
    plain = [i for i, (_, event) in enumerate(groups_as_read) if event is not None]
    hits = {PLAIN_TEXT: corpus.hits(plain, len(corpus.groups))} if plain else {}
    if not conversational:
        return hits
    fault = template_fault(tokenizer)
    for name in TEMPLATE_FAULTS:
        hits[name] = corpus.hits(conversational if name == fault else (), len(conversational))
    return hits | {"control_text": _control_text(corpus, conversational, tokenizer)}


def _control_text(corpus: Corpus, conversational: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Hits:
    """Messages that contain control tokens, with the count of each token; out of all messages."""
    control, token_counts = ControlText.from_tokenizer(tokenizer), Counter[str]()
    numbers: list[int] = []
    messages = 0
    for number in conversational:
        group = corpus.groups[number]
        for text in (group.prompt, *group.candidates):
            for content in (text,) if isinstance(text, str) else text:
                messages += 1
                present = control.find_tokens(content)
                token_counts.update(present)
                numbers += [number] * bool(present)
    names = tuple(f"{token}: {count}" for token, count in token_counts.most_common())
    return replace(corpus.hits(numbers, messages), names=names)


def template_fault(tokenizer: PreTrainedTokenizerBase) -> TemplateFault | None:
    """The fault of the template on a question and its answer; None where there is none."""
    if tokenizer.chat_template is None:
        return "no_chat_template"
    tokens = TemplateTokens.from_tokenizer(tokenizer)
    if not tokens.renders:
        return "chat_template_fails"
    return "no_end_of_turn" if tokens.turn_end is None else None
