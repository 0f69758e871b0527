"""A preference group as the texts a model reads: joined plainly, or rendered by the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from penchant.data.as_chat import chat_group, chat_prompt
from penchant.data.assistant_turns import Turn, learnt_turns
from penchant.data.control_messages import message_events, shielded, shielded_context
from penchant.data.control_text import ControlText
from penchant.data.groups import PreferenceGroup
from penchant.data.messages import ASSISTANT, Context, Message, Text, content_of, context_of, is_blank, spoken
from penchant.data.rendering import PLAIN, Rendering
from penchant.data.template import Template, on_day
from penchant.data.template_tokens import TemplateTokens
from penchant.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["GroupText", "group_text", "is_blank", "prompt_text"]

Finish = Literal["closed", "asked", "open"]
"""After the last message: nothing more, the beginning of the next answer, or its own end left out, to go on with it."""


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
        turns: for each sequence, the assistant's turns that are learnt; None where all behind the prompt is one.
    """

    group: PreferenceGroup
    prompt: str
    sequences: tuple[str, ...]
    templated: bool
    events: tuple[str, ...] = ()
    turns: tuple[tuple[Turn, ...] | None, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """All texts that are tokenized: the prompt, the sequences, and where turns begin and end."""
        turns = [turn for of in self.turns for turn in of or ()]
        return (self.prompt, *self.sequences, *(part for t in turns for part in (t.before, t.through) if part))


def group_text(group: PreferenceGroup, tokenizer: PreTrainedTokenizerBase, rendering: Rendering = PLAIN) -> GroupText:
    """The group's texts; plain text is joined with nothing between, messages go through the chat template.

    A candidate that follows an assistant message continues that message.

    Raises:
        DataError: the chat template refuses the messages, or a plain prompt has messages as a candidate.
        ModelError: the tokenizer has no chat template.
    """
    read, plain = chat_group(group, tokenizer, rendering)
    prompt = read.prompt
    if isinstance(prompt, str):
        sequences = tuple(_joined(prompt, c, k) for k, c in enumerate(read.candidates))
        return GroupText(group, prompt, sequences, False, () if plain is None else (plain,))
    turns = [spoken(candidate) for candidate in read.candidates]
    events, context = [], context_of(prompt)
    if prompt and _is_begun(prompt[-1]):
        events.append("assistant_message_continued")
    if any(message["role"] != ASSISTANT for messages in turns for message in messages):
        events.append("other_roles_in_response")
    said = [*prompt, *(message for messages in turns for message in messages)]
    events += message_events(said, tokenizer, rendering, context)
    whole = [_conversation(prompt, messages) for messages in turns]
    sequences = tuple(_render(messages, context, tokenizer, rendering) for messages in whole)
    template = Template.of(tokenizer, bool(context.tools))
    events += [event for messages in whole for event in template.ignored(messages, rendering, context)]
    size = len(prompt) - ("assistant_message_continued" in events)
    if any(message["role"] == ASSISTANT for message in prompt[:size]):
        events.append(f"earlier_assistant_turns_{'' if rendering.learn == 'all' else 'not_'}learnt")
    learnt = [
        _learnt(m, context, size, text, tokenizer, rendering, events) for m, text in zip(whole, sequences, strict=True)
    ]
    asked = prompt_text(prompt, tokenizer, rendering)
    return GroupText(group, asked, sequences, True, tuple(dict.fromkeys(events)), tuple(learnt))


def prompt_text(prompt: Text, tokenizer: PreTrainedTokenizerBase, rendering: Rendering = PLAIN) -> str:
    """What the model reads before it answers; errors as in `group_text`."""
    prompt = chat_prompt(prompt, tokenizer, rendering)
    if isinstance(prompt, str):
        return prompt
    if not prompt:
        raise DataError("the prompt has no messages", fix="give it at least one: {'role': 'user', 'content': ...}")
    return _render(prompt, context_of(prompt), tokenizer, rendering, "open" if _is_begun(prompt[-1]) else "asked")


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


def _learnt(
    messages: Sequence[Message],
    context: Context,
    prompt: int,
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    rendering: Rendering,
    events: list[str],
) -> tuple[Turn, ...] | None:
    """The turns of a conversation that are learnt; what is not found is not learnt, and noted."""

    def render(part: Sequence[Message], answer_next: bool) -> str:
        return _render(part, context, tokenizer, rendering, "asked" if answer_next else "closed")

    ids = sorted({tokenizer.eos_token_id, *TemplateTokens.of(tokenizer).ends})
    ends = [str(tokenizer.convert_ids_to_tokens(end)) for end in ids]
    located = learnt_turns(messages, prompt, rendering.learn, text, ends, render)
    if located is None:
        return None
    turns, missing = located
    if missing:
        events.append("assistant_turn_without_bounds_not_learnt")
    if not turns:
        raise DataError(
            "none of the assistant's turns is found in what the chat template writes of them",
            fix="use a template that ends each turn with an end-of-turn token: data.chat_template=FILE",
        )
    return turns


def _render(
    messages: Sequence[Message],
    context: Context,
    tokenizer: PreTrainedTokenizerBase,
    rendering: Rendering,
    finish: Finish = "closed",
) -> str:
    if tokenizer.chat_template is None:
        raise ModelError(
            "the data is conversational (lists of messages, or read so by data.as_chat=true), the tokenizer has "
            "no chat template",
            where=tokenizer.name_or_path or None,
            fix="use the chat model's own tokenizer, set tokenizer.chat_template, or name a file: "
            "data.chat_template=FILE",
        )
    template = Template.of(tokenizer, bool(context.tools))
    if any(message.get("tool_calls") for message in messages) and not template.mentions("tool_calls"):
        raise DataError(
            "the messages have tool calls, and the chat template writes none",
            fix="use a template that does: data.chat_template=FILE; or leave these rows out, counted: "
            "data.refused=drop",
        )
    beside = shielded_context(context, tokenizer, rendering)
    try:
        with on_day(template.source, rendering.date):
            text: str = tokenizer.apply_chat_template(
                template.messages(shielded(messages, tokenizer, rendering)),
                tools=[dict(tool) for tool in beside.tools] or None,
                documents=[dict(document) for document in beside.documents] or None,
                tokenize=False,
                add_generation_prompt=finish == "asked",
                continue_final_message=finish == "open",
                **template.variables(rendering, beside),
            )
    except DataError:
        raise
    except Exception as error:  # A template is a program: it can raise anything.
        refusal = ControlText.of(tokenizer).plain(" ".join(str(error).split())) or type(error).__name__
        raise DataError(
            f"the chat template refuses the messages: {refusal}",
            fix="correct the messages (roles, order), or use a template that takes them: data.chat_template=FILE; or "
            "leave these rows out, counted: data.refused=drop",
        ) from error
    return text
