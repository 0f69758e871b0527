"""A chat request's way: its body is parsed, an expert chosen, the messages tokenized, an answer given.

Parsing and tokenization run in threads of their own: a large request keeps no other from the event loop.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from penchant.data.messages import Message, content_of
from penchant.data.tokenized import Ids
from penchant.errors import PenchantError
from penchant.serving.answers import ChatAnswer
from penchant.serving.delivery import stream_answer, timed_out, whole_answer
from penchant.serving.experts import Experts
from penchant.serving.jobs import Event, Job
from penchant.serving.limits import Limits
from penchant.serving.parsing import parse, require_json
from penchant.serving.refusals import invalid
from penchant.serving.requests import ChatRequest
from penchant.serving.router import Decision, Router
from penchant.serving.worker import Worker

ROUTER = "router"
"""The model's name that leaves the choice to the router."""

T = TypeVar("T")


class Chat:
    """Answers chat requests.

    Attributes:
        names: the models that can be asked, the router among them.
    """

    def __init__(self, experts: Experts, router: Router | None, worker: Worker, limits: Limits) -> None:
        self._experts, self._router, self._worker, self._limits = experts, router, worker, limits
        self.names = [*experts.names, *([ROUTER] if router is not None else [])]

    def require(self, name: str) -> None:
        """Refuse a model that is not there.

        Raises:
            Refusal: 404.
        """
        if name not in self.names:
            names = ", ".join(self.names)
            raise invalid(
                f"there is no model '{name}'; there are {names}", param="model", code="model_not_found", status=404
            )

    async def respond(self, request: Request) -> Response:
        """The answer, whole or streamed.

        Raises:
            Refusal: the request cannot be answered.
            Overloaded: too many requests wait.
        """
        deadline = time.monotonic() + self._limits.timeout_s
        require_json(request.headers.get("content-type", ""))
        body = await request.body()
        chat = await in_thread(lambda: parse(ChatRequest, body), deadline)
        self.require(chat.model)
        messages = await in_thread(lambda: _conversation(chat), deadline)
        decision = await self._choose(chat, messages, deadline)
        prompt = await in_thread(lambda: self._prompt(messages, decision.expert), deadline)
        events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        job = Job(
            expert=decision.expert,
            prompt=prompt,
            max_tokens=self._max_tokens(chat, decision.expert, len(prompt)),
            temperature=chat.temperature,
            top_p=chat.top_p,
            stops=chat.stops,
            seed=chat.seed if chat.seed is not None else uuid.uuid4().int % 2**32,
            deadline=deadline,
            deliver=deliver,
        )
        if chat.model == ROUTER:
            self._worker.go_on(job)
        else:
            self._worker.submit(job)
        answer = ChatAnswer(chat, decision, len(prompt), chat.model == ROUTER)
        if chat.stream:
            return StreamingResponse(stream_answer(answer, job, events), media_type="text/event-stream")
        return JSONResponse(await whole_answer(answer, job, events, request))

    async def _choose(self, chat: ChatRequest, messages: tuple[Message, ...], deadline: float) -> Decision:
        router = self._router
        if router is None or chat.model != ROUTER:
            return Decision(chat.model, chat.model, 1.0)
        texts = (content_of(message) for message in reversed(messages) if message["role"] == "user")
        question = router.question(next(texts, ""))
        scored = self._worker.call(lambda: self._experts.get(router.asks).log_probs([question]))
        try:
            [log_probs] = await asyncio.wait_for(asyncio.wrap_future(scored), deadline - time.monotonic())
        except TimeoutError:
            raise timed_out("the router took too long") from None
        except PenchantError as error:
            raise invalid(str(error), param="messages", code="context_length_exceeded") from error
        return router.decide(log_probs)

    def _prompt(self, messages: tuple[Message, ...], expert: str) -> Ids:
        try:
            return self._experts.peek(expert).prompt(messages)
        except PenchantError as error:
            raise invalid(str(error), param="messages") from error

    def _max_tokens(self, chat: ChatRequest, expert: str, prompt_tokens: int) -> int:
        """Tokens the answer may have."""
        context, limit = self._experts.peek(expert).context, self._limits.max_tokens
        if context is not None and prompt_tokens >= context:
            raise invalid(
                f"the messages are {prompt_tokens} tokens; the model reads {context}, its answer included",
                param="messages",
                code="context_length_exceeded",
            )
        if chat.limit is not None and chat.limit > limit:
            raise invalid(f"{chat.limit} tokens asked for; at most {limit} are given", param="max_tokens")
        most = chat.limit or limit
        return most if context is None else min(most, context - prompt_tokens)


async def in_thread(function: Callable[[], T], deadline: float) -> T:
    """A function's result, the event loop meanwhile free for others.

    Raises:
        Refusal: it took longer than the deadline, of `time.monotonic`.
    """
    try:
        return await asyncio.wait_for(asyncio.to_thread(function), deadline - time.monotonic())
    except TimeoutError:
        raise timed_out("the request took too long to read") from None


def _conversation(chat: ChatRequest) -> tuple[Message, ...]:
    try:
        return chat.conversation
    except PenchantError as error:
        raise invalid(error.what, param="messages") from error
