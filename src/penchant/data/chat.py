"""A preference group as the texts a model reads: plain concatenations, or renderings of the chat template."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from penchant.data.control_text import ControlTextEscaper
from penchant.data.groups import PreferenceGroup
from penchant.data.messages import ASSISTANT, Context, Message, Text, content_of, context_of, response_messages
from penchant.data.rendering import PLAIN, ChatConverter, Learn, Rendering
from penchant.data.template import Template, fixed_date
from penchant.data.template_tokens import TemplateTokens
from penchant.data.tokenized import common_length
from penchant.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Private-use characters that are random in each process, as in `control_text`: no data contains the same ones.
_MARK = "".join(chr(0xF0000 + secrets.randbelow(0xFFFE)) for _ in range(8))

Render = Callable[[Sequence[Message], bool], str]
"""Function from messages, and whether the beginning of the next answer follows, to their text; raises DataError."""


@dataclass(frozen=True)
class Turn:
    """One assistant's turn.

    Attributes:
        prompt: the conversation's text before the turn; None where that is the group's prompt.
        through: the conversation's text up to and including the turn's end-of-turn token.
    """

    prompt: str | None
    through: str


def find_trained_turns(
    messages: Sequence[Message], prompt: int, learn: Learn, text: str, ends: Sequence[str], render: Render
) -> tuple[tuple[Turn, ...], int] | None:
    """The assistant's turns to train on, and the number of turns without a known position.

    The result is None where the whole response is one turn.

    Args:
        messages: a prompt with a response, whose last message is the assistant's.
        prompt: number of messages in the prompt.
        learn: ``last`` takes the response's turns, ``all`` the prompt's turns too.
        text: rendering of all messages.
        ends: texts of the tokens that end a turn.
        render: renders a part of the messages.
    """
    start_index = 0 if learn == "all" else prompt
    turn_numbers = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i >= start_index]
    if turn_numbers == [len(messages) - 1] == [prompt]:
        return None
    turns: list[Turn] = []
    for number in turn_numbers:
        start = None if number == prompt else _turn_start(messages, number, text, render)
        if start is None and number != prompt:
            continue
        through = text
        if number < len(messages) - 1:
            end = _turn_end(messages, number, start or 0, text, ends, render)
            if end is None:
                continue
            through = text[:end]
        turns.append(Turn(None if start is None else text[:start], through))
    return tuple(turns), len(turn_numbers) - len(turns)


def _turn_end(
    messages: Sequence[Message], number: int, start: int, text: str, ends: Sequence[str], render: Render
) -> int | None:
    """Index in the whole text just after the end-of-turn token of an earlier turn."""
    limit = _content_start(messages, number + 1, text, render)
    if limit is None:
        return None
    end = max(
        (position + len(ending) for ending in ends if (position := text.rfind(ending, start, limit)) >= 0), default=None
    )
    if end is None:
        return None
    # Of several end-of-turn tokens in a row the first one belongs to the turn.
    while (shorter := _before_last_end(text[start:end], ends)) is not None:
        end = start + shorter
    return end


def _before_last_end(turn: str, ends: Sequence[str]) -> int | None:
    """Length of the turn without its last end-of-turn token; None where it has only one."""
    last = next(text for text in ends if turn.endswith(text))
    shorter = turn.removesuffix(last).rstrip()
    return len(shorter) if any(shorter.endswith(text) for text in ends) else None


def _turn_start(messages: Sequence[Message], number: int, text: str, render: Render) -> int | None:
    """Index in the whole text where the turn's prompt ends."""
    if number == 0:
        return None
    prompt = _render_or_none(render, messages[:number], True)
    if prompt is None:
        return None
    if text.startswith(prompt):
        return len(prompt)
    # The template writes earlier messages differently once more messages follow, so only the text after the previous
    # message is compared.
    length, header_start = len(prompt), _content_end(messages[:number], number - 1, prompt, render, answer_next=True)
    message_end = _content_end(messages, number - 1, text, render, answer_next=False)
    if header_start is None or message_end is None:
        return None
    header = prompt[header_start:length]
    shared = common_length(header, text[message_end:])
    return message_end + shared if shared or not header else None


def _content_end(
    messages: Sequence[Message], number: int, text: str, render: Render, *, answer_next: bool
) -> int | None:
    """Index in the text where a message's content ends."""
    marked_text = _render_or_none(render, _insert_mark(messages, number, behind=True), answer_next)
    if marked_text is None or _MARK not in marked_text:
        return None
    tail = marked_text.rpartition(_MARK)[2]
    return len(text) - len(tail) if text.endswith(tail) else None


def _content_start(messages: Sequence[Message], number: int, text: str, render: Render) -> int | None:
    """Index in the text where a message's content begins."""
    marked_text = _render_or_none(render, _insert_mark(messages, number, behind=False), False)
    if marked_text is None or _MARK not in marked_text:
        return None
    head = marked_text.partition(_MARK)[0]
    return len(head) if text.startswith(head) else None


def _insert_mark(messages: Sequence[Message], number: int, *, behind: bool) -> list[Message]:
    """The messages with a mark before or after the content of one message."""
    content: Any = messages[number].get("content")
    if isinstance(content, list):
        part = {"type": "text", "text": _MARK}
        content = [*content, part] if behind else [part, *content]
    else:
        content = f"{content or ''}{_MARK}" if behind else f"{_MARK}{content or ''}"
    marked_message: Message = {**messages[number], "content": content}
    return [*messages[:number], marked_message, *messages[number + 1 :]]


def _render_or_none(render: Render, messages: Sequence[Message], answer_next: bool) -> str | None:
    """The messages' text; None where the template refuses them."""
    try:
        return render(messages, answer_next)
    except DataError:
        return None


Finish = Literal["closed", "answer_next", "open"]
"""End of a rendering: the last message's end, the start of the next answer, or the last message without its end."""


@dataclass(frozen=True)
class GroupText:
    """The texts of one group before tokenization.

    Attributes:
        group: the group that the texts come from.
        prompt: the text before a response at inference. Control tokens inside messages are escaped, here and in
            `sequences`; `ControlText.encode` reads such texts.
        sequences: K texts: the prompt with each candidate.
        templated: whether a chat template wrote the texts.
        events: names of the events to count.
        turns: the assistant's turns to train on, for each sequence; None where the whole response is one turn.
    """

    group: PreferenceGroup
    prompt: str
    sequences: tuple[str, ...]
    templated: bool
    events: tuple[str, ...] = ()
    turns: tuple[tuple[Turn, ...] | None, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """All texts to tokenize: the prompt, the sequences, and the beginnings of sequences that bound turns."""
        turns = [turn for sequence_turns in self.turns for turn in sequence_turns or ()]
        bounds = (text for turn in turns for text in (turn.prompt, turn.through) if text)
        return (self.prompt, *self.sequences, *bounds)


class PromptText(NamedTuple):
    """The text a model reads before it answers.

    Attributes:
        text: the text, with control tokens inside messages escaped.
        templated: whether a chat template wrote it.
    """

    text: str
    templated: bool


class ChatRenderer:
    """Renders groups and prompts for one tokenizer, whose special tokens and template are read once.

    Args:
        tokenizer: gives the chat template and the special tokens.
        rendering: settings of the step from rows to text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rendering: Rendering = PLAIN) -> None:
        self._tokenizer = tokenizer
        self._rendering = rendering
        self._as_chat = ChatConverter(tokenizer, rendering)
        self._shield = ControlTextEscaper(tokenizer, rendering)
        self._templates: dict[bool, Template] = {}
        ids = {tokenizer.eos_token_id, *TemplateTokens.from_tokenizer(tokenizer).ends} - {None}
        self._ends = [str(tokenizer.convert_ids_to_tokens(end)) for end in sorted(ids)]

    def group(self, group: PreferenceGroup) -> GroupText:
        """The group's texts: plain text is concatenated, messages are rendered by the chat template.

        A candidate that follows an assistant message continues that message.

        Raises:
            DataError: the chat template refuses the messages, or a plain prompt has messages as a candidate.
            ModelError: the tokenizer has no chat template.
        """
        group_as_read, plain_event = self._as_chat.group(group)
        prompt = group_as_read.prompt
        if isinstance(prompt, str):
            sequences = tuple(_concatenate(prompt, text, k) for k, text in enumerate(group_as_read.candidates))
            return GroupText(group, prompt, sequences, False, () if plain_event is None else (plain_event,))
        template = self._template(context_of(prompt))
        responses = [response_messages(candidate) for candidate in group_as_read.candidates]
        conversations = [_join_conversation(prompt, messages) for messages in responses]
        continues_answer = bool(prompt) and _is_unfinished_answer(prompt[-1])
        events = self._role_events(prompt, responses, continues_answer)
        context, context_events = self._shield.context(context_of(prompt))
        [shielded_prompt, *shielded], message_events = self._shield.conversations([prompt, *conversations])
        events += [*context_events, *message_events]
        events += template.ignored([*prompt, *chain(*responses)], self._rendering, context_of(prompt))
        texts = self._render(shielded, context)
        turns = tuple(
            self._learnt_turns(messages, context, len(prompt) - continues_answer, text, events)
            for messages, text in zip(shielded, texts, strict=True)
        )
        prompt_text = self._render_prompt(shielded_prompt, context)
        return GroupText(group, prompt_text, tuple(texts), True, tuple(dict.fromkeys(events)), turns)

    def prompt(self, prompt: Text) -> PromptText:
        """The text that the model reads before it answers; raises the errors of `group`."""
        prompt = self._as_chat.prompt(prompt)
        if isinstance(prompt, str):
            return PromptText(prompt, False)
        self._template(context_of(prompt))
        context, _ = self._shield.context(context_of(prompt))
        [messages], _ = self._shield.conversations([prompt])
        return PromptText(self._render_prompt(messages, context), True)

    def _role_events(
        self, prompt: Sequence[Message], responses: Sequence[Sequence[Message]], continues_answer: bool
    ) -> list[str]:
        events = ["assistant_message_continued"] if continues_answer else []
        if any(message["role"] != ASSISTANT for messages in responses for message in messages):
            events.append("other_roles_in_response")
        if any(message["role"] == ASSISTANT for message in prompt[: len(prompt) - continues_answer]):
            events.append(f"earlier_assistant_turns_{'' if self._rendering.learn == 'all' else 'not_'}learnt")
        return events

    def _template(self, context: Context) -> Template:
        """The template for conversations with or without tools."""
        if self._tokenizer.chat_template is None:
            raise ModelError(
                "the data is conversational (lists of messages, or read so by data.as_chat=true), the tokenizer has "
                "no chat template",
                where=self._tokenizer.name_or_path or None,
                fix="use the chat model's own tokenizer, set tokenizer.chat_template, or name a file: "
                "data.chat_template=FILE",
            )
        has_tools = bool(context.tools)
        if has_tools not in self._templates:
            self._templates[has_tools] = Template.from_tokenizer(self._tokenizer, has_tools)
        return self._templates[has_tools]

    def _learnt_turns(
        self, messages: Sequence[Message], context: Context, prompt: int, text: str, events: list[str]
    ) -> tuple[Turn, ...] | None:
        """The turns of a conversation to train on; a turn without a known position is left out and counted."""

        def render(part: Sequence[Message], answer_next: bool) -> str:
            [text] = self._render([part], context, "answer_next" if answer_next else "closed")
            return text

        located = find_trained_turns(messages, prompt, self._rendering.learn, text, self._ends, render)
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

    def _render_prompt(self, messages: Sequence[Message], context: Context) -> str:
        if not messages:
            raise DataError("the prompt has no messages", fix="give it at least one: {'role': 'user', 'content': ...}")
        [text] = self._render([messages], context, "open" if _is_unfinished_answer(messages[-1]) else "answer_next")
        return text

    def _render(
        self, conversations: Sequence[Sequence[Message]], context: Context, finish: Finish = "closed"
    ) -> list[str]:
        """Texts of conversations that share one context; control tokens inside messages are already escaped."""
        template = self._template(context)
        if not template.mentions("tool_calls") and any(message.get("tool_calls") for message in chain(*conversations)):
            raise DataError(
                "the messages have tool calls, and the chat template ignores them",
                fix="use a template that does: data.chat_template=FILE; or leave these rows out, counted: "
                "data.refused=drop",
            )
        try:
            with fixed_date(template.source, self._rendering.date):
                texts: list[str] = self._tokenizer.apply_chat_template(
                    [template.messages(messages) for messages in conversations],
                    tools=[dict(tool) for tool in context.tools] or None,
                    documents=[dict(document) for document in context.documents] or None,
                    tokenize=False,
                    add_generation_prompt=finish == "answer_next",
                    continue_final_message=finish == "open",
                    **template.variables(self._rendering, context),
                )
        except Exception as error:  # A template is a program: it can raise anything.
            reason = self._shield.unescape(" ".join(str(error).split())) or type(error).__name__
            raise DataError(
                f"the chat template refuses the messages: {reason}",
                fix="correct the messages (roles, order), or use a template that takes them: data.chat_template=FILE; "
                "or leave these rows out, counted: data.refused=drop",
            ) from error
        return texts


def _concatenate(prompt: str, candidate: Text, k: int) -> str:
    if isinstance(candidate, str):
        return prompt + candidate
    raise DataError(
        f"candidate {k} is a list of messages, the prompt is plain text",
        fix="make the prompt messages too: [{'role': 'user', 'content': PROMPT}]",
    )


def _is_unfinished_answer(last_message: Message) -> bool:
    """Whether a prompt's last message is an answer that a candidate continues; a tool call is complete."""
    return last_message["role"] == ASSISTANT and not last_message.get("tool_calls")


def _join_conversation(prompt: Sequence[Message], turns: Sequence[Message]) -> list[Message]:
    if not prompt or not _is_unfinished_answer(prompt[-1]) or turns[0]["role"] != ASSISTANT:
        return [*prompt, *turns]
    unfinished, continuation = prompt[-1], turns[0]
    joined_message: Message = {
        **unfinished,
        **continuation,
        "content": content_of(unfinished) + content_of(continuation),
    }
    return [*prompt[:-1], joined_message, *turns[1:]]
