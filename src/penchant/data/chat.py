"""A preference group as the texts a model reads: joined plainly, or rendered by the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penchant.data.control_messages import message_events, shielded
from penchant.data.control_text import ControlText
from penchant.data.groups import Message, PreferenceGroup, Text
from penchant.data.rendering import PLAIN, Rendering
from penchant.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASSISTANT = "assistant"


@dataclass(frozen=True)
class GroupText:
    """What the model reads of one group, before tokenization.

    Attributes:
        group: where it comes from.
        prompt: what stands before a response at inference; control text of messages stands in codes, here and in the
            sequences, for `ControlText.encode`.
        sequences: K texts, the prompt with each candidate.
        templated: whether a chat template made them.
        events: what happened on the way, by name.
    """

    group: PreferenceGroup
    prompt: str
    sequences: tuple[str, ...]
    templated: bool
    events: tuple[str, ...] = ()


def group_text(group: PreferenceGroup, tokenizer: PreTrainedTokenizerBase, rendering: Rendering = PLAIN) -> GroupText:
    """The group's texts; plain text is joined with nothing between, messages go through the chat template.

    A candidate that follows an assistant message continues that message.

    Raises:
        DataError: the chat template refuses the messages, or a plain prompt has messages as a candidate.
        ModelError: the tokenizer has no chat template.
    """
    prompt = group.prompt
    if isinstance(prompt, str):
        return GroupText(group, prompt, tuple(_joined(prompt, c, k) for k, c in enumerate(group.candidates)), False)
    turns = [_messages(candidate) for candidate in group.candidates]
    events = []
    if prompt and prompt[-1]["role"] == ASSISTANT:
        events.append("assistant_message_continued")
    if any(message["role"] != ASSISTANT for messages in turns for message in messages):
        events.append("other_roles_in_response")
    events += message_events([*prompt, *(message for messages in turns for message in messages)], tokenizer, rendering)
    sequences = tuple(_render(_conversation(prompt, messages), tokenizer, rendering) for messages in turns)
    return GroupText(group, prompt_text(prompt, tokenizer, rendering), sequences, True, tuple(events))


def prompt_text(prompt: Text, tokenizer: PreTrainedTokenizerBase, rendering: Rendering = PLAIN) -> str:
    """What the model reads before it answers; errors as in `group_text`."""
    if isinstance(prompt, str):
        return prompt
    if not prompt:
        raise DataError("the prompt has no messages", fix="give it at least one: {'role': 'user', 'content': ...}")
    return _render(prompt, tokenizer, rendering, answer_next=True)


def is_blank(candidate: Text) -> bool:
    """Whether a candidate holds nothing but white space."""
    if isinstance(candidate, str):
        return not candidate.strip()
    return not any(message["content"].strip() for message in candidate)


def _joined(prompt: str, candidate: Text, k: int) -> str:
    if isinstance(candidate, str):
        return prompt + candidate
    raise DataError(
        f"candidate {k} is a list of messages, the prompt is plain text",
        fix="make the prompt messages too: [{'role': 'user', 'content': PROMPT}]",
    )


def _messages(candidate: Text) -> tuple[Message, ...]:
    return (Message(role=ASSISTANT, content=candidate),) if isinstance(candidate, str) else candidate


def _conversation(prompt: Sequence[Message], turns: Sequence[Message]) -> list[Message]:
    if not prompt or prompt[-1]["role"] != ASSISTANT or turns[0]["role"] != ASSISTANT:
        return [*prompt, *turns]
    begun, rest = prompt[-1], turns[0]
    whole: Message = {**begun, "content": begun["content"] + rest["content"]}
    return [*prompt[:-1], whole, *turns[1:]]


def _render(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    rendering: Rendering,
    *,
    answer_next: bool = False,
) -> str:
    if tokenizer.chat_template is None:
        raise ModelError(
            "the data is conversational (lists of messages), the tokenizer has no chat template",
            where=tokenizer.name_or_path or None,
            fix="use the chat model's own tokenizer, set tokenizer.chat_template, or name a file: "
            "data.chat_template=FILE",
        )
    continued = answer_next and messages[-1]["role"] == ASSISTANT
    try:
        text: str = tokenizer.apply_chat_template(
            shielded(messages, tokenizer, rendering),
            tokenize=False,
            add_generation_prompt=answer_next and not continued,
            continue_final_message=continued,
            **rendering.template_kwargs,
        )
    except DataError:
        raise
    except Exception as error:  # A template is a program: it can raise anything.
        refusal = ControlText.of(tokenizer).plain(" ".join(str(error).split())) or type(error).__name__
        raise DataError(
            f"the chat template refuses the messages: {refusal}",
            fix="correct the messages (roles, order), or use a template that takes them: data.chat_template=FILE",
        ) from error
    return text
