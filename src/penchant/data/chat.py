"""A preference group as the texts a model reads: joined plainly, or rendered by the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penchant.data.groups import PreferenceGroup
from penchant.data.messages import ASSISTANT, Context, Message, Text, content_of, context_of, is_blank, spoken
from penchant.data.rendering import PLAIN, Rendering
from penchant.data.template import Template, on_day
from penchant.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["GroupText", "group_text", "is_blank", "prompt_text"]


@dataclass(frozen=True)
class GroupText:
    """What the model reads of one group, before tokenization.

    Attributes:
        group: where it comes from.
        prompt: what stands before a response at inference.
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
    turns = [spoken(candidate) for candidate in group.candidates]
    events, context = [], context_of(prompt)
    if prompt and _is_begun(prompt[-1]):
        events.append("assistant_message_continued")
    if any(message["role"] != ASSISTANT for messages in turns for message in messages):
        events.append("other_roles_in_response")
    whole = [_conversation(prompt, messages) for messages in turns]
    sequences = tuple(_render(messages, context, tokenizer, rendering) for messages in whole)
    template = Template.of(tokenizer, bool(context.tools))
    events += dict.fromkeys(event for messages in whole for event in template.ignored(messages, rendering, context))
    return GroupText(group, prompt_text(prompt, tokenizer, rendering), sequences, True, tuple(events))


def prompt_text(prompt: Text, tokenizer: PreTrainedTokenizerBase, rendering: Rendering = PLAIN) -> str:
    """What the model reads before it answers; errors as in `group_text`."""
    if isinstance(prompt, str):
        return prompt
    if not prompt:
        raise DataError("the prompt has no messages", fix="give it at least one: {'role': 'user', 'content': ...}")
    return _render(prompt, context_of(prompt), tokenizer, rendering, answer_next=True)


def _joined(prompt: str, candidate: Text, k: int) -> str:
    if isinstance(candidate, str):
        return prompt + candidate
    raise DataError(
        f"candidate {k} is a list of messages, the prompt is plain text",
        fix="make the prompt messages too: [{'role': 'user', 'content': PROMPT}]",
    )


def _is_begun(last: Message) -> bool:
    """Whether a prompt's last message is an answer to go on with; a call is whole."""
    return last["role"] == ASSISTANT and not last.get("tool_calls")


def _conversation(prompt: Sequence[Message], turns: Sequence[Message]) -> list[Message]:
    if not prompt or not _is_begun(prompt[-1]) or turns[0]["role"] != ASSISTANT:
        return [*prompt, *turns]
    begun, rest = prompt[-1], turns[0]
    whole: Message = {**begun, **rest, "content": content_of(begun) + content_of(rest)}
    return [*prompt[:-1], whole, *turns[1:]]


def _render(
    messages: Sequence[Message],
    context: Context,
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
    continued = answer_next and _is_begun(messages[-1])
    template = Template.of(tokenizer, bool(context.tools))
    if any(message.get("tool_calls") for message in messages) and not template.mentions("tool_calls"):
        raise DataError(
            "the messages have tool calls, and the chat template writes none",
            fix="use a template that does: data.chat_template=FILE; or leave these rows out, counted: "
            "data.refused=drop",
        )
    try:
        with on_day(template.source, rendering.date):
            text: str = tokenizer.apply_chat_template(
                template.messages(messages),
                tools=[dict(tool) for tool in context.tools] or None,
                documents=[dict(document) for document in context.documents] or None,
                tokenize=False,
                add_generation_prompt=answer_next and not continued,
                continue_final_message=continued,
                **template.variables(rendering, context),
            )
    except Exception as error:  # A template is a program: it can raise anything.
        raise DataError(
            f"the chat template refuses the messages: {' '.join(str(error).split()) or type(error).__name__}",
            fix="correct the messages (roles, order), or use a template that takes them: data.chat_template=FILE; or "
            "leave these rows out, counted: data.refused=drop",
        ) from error
    return text
