"""/v1/chat/completions: parse the body, choose an expert, tokenize the messages, and answer.

Parsing and tokenization run in separate threads, so that a large request does not block the event loop.
"""

from __future__ import annotations

from fastapi import Request, Response

from penchant.data.messages import Message, content_of
from penchant.errors import PenchantError
from penchant.serving.answers import ChatForm, answer_frame
from penchant.serving.constraints import answer_guide
from penchant.serving.refusals import invalid
from penchant.serving.requests import ChatRequest
from penchant.serving.service import ROUTER, AnswerPlan, Service, in_thread


async def respond_to_chat(service: Service, request: Request) -> Response:
    """The answer to a chat request, as one document or as a stream.

    Raises:
        Refusal: the request cannot be answered.
        Overloaded: the queue is full.
    """
    deadline = service.new_deadline()
    chat = await service.parse(ChatRequest, request, deadline)
    messages = await in_thread(lambda: _conversation(chat), deadline)
    decision = await service.choose(chat.model, _question(messages), deadline)
    plan = await in_thread(lambda: _plan(service, chat, messages, decision.expert), deadline)
    form = ChatForm(
        answer_frame("chatcmpl", decision.expert, decision if chat.model == ROUTER else None),
        prompt_tokens=sum(map(len, plan.prompts)),
        choices=chat.n,
        tools=chat.callable_tools,
        includes_log_probs=chat.logprobs,
        includes_usage=chat.includes_usage,
    )
    return await service.respond(chat, plan, form, deadline, request)


def _conversation(chat: ChatRequest) -> tuple[Message, ...]:
    try:
        return chat.conversation
    except PenchantError as error:
        raise invalid(error.what, param="messages") from error


def _question(messages: tuple[Message, ...]) -> str:
    """Text of the last user message, by which the router decides."""
    return next((content_of(message) for message in reversed(messages) if message["role"] == "user"), "")


def _plan(service: Service, chat: ChatRequest, messages: tuple[Message, ...], name: str) -> AnswerPlan:
    expert = service.experts.peek(name)
    if chat.offered_tools and not expert.renders_tools:
        raise invalid(
            f"'{name}' cannot use tools: its chat template does not render them; leave tools out",
            param="tools",
            code="unsupported_parameter",
        )
    try:
        prompt = expert.prompt(messages)
    except PenchantError as error:
        raise invalid(str(error), param="messages") from error
    return AnswerPlan(name, [prompt], answer_guide(chat, expert), has_waited=chat.model == ROUTER)
