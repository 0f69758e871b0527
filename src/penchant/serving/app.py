"""The address: /v1/chat/completions and /v1/models by the OpenAI protocol, /health, /metrics.

Every answer says under `penchant` which expert gave it, and with a router how sure the router was.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from penchant.data.messages import Message, content_of
from penchant.errors import PenchantError
from penchant.serving.experts import Experts
from penchant.serving.jobs import End, Event, Failure, Job, Piece
from penchant.serving.limits import Limits
from penchant.serving.refusals import Refusal, invalid, invalid_field
from penchant.serving.requests import ChatRequest
from penchant.serving.router import Decision, Router
from penchant.serving.worker import Overloaded, Worker

ROUTER = "router"
"""The model's name that leaves the choice to the router."""

LISTENING_SECONDS = 0.5
"""How often a silent answer looks whether its client is still there."""


def build_app(experts: Experts, router: Router | None, limits: Limits) -> FastAPI:
    """The application; its thread of models starts with it."""
    worker = Worker(experts, batch=limits.batch, waiting=limits.waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(worker.stop)

    app = FastAPI(title="Penchant", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    names = [*experts.names, *([ROUTER] if router is not None else [])]
    born = int(time.time())

    @app.exception_handler(Refusal)
    async def refuse(request: Request, error: Refusal) -> JSONResponse:
        return JSONResponse(error.body, error.status)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        refusal = invalid_field(first["type"], first["msg"], first["loc"][1:], error.body)
        return JSONResponse(refusal.body, refusal.status)

    @app.exception_handler(HTTPException)
    async def no_such_place(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(invalid(str(error.detail)).body, error.status_code)

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> JSONResponse:
        # The framework raises it anew after the answer, so that the log has where it came from.
        found = Refusal(500, "server_error", f"{type(error).__name__}: {error}")
        return JSONResponse(found.body, found.status)

    @app.exception_handler(Overloaded)
    async def overloaded(request: Request, error: Overloaded) -> JSONResponse:
        found = Refusal(503, "server_error", "too many requests wait; try again later", code="overloaded")
        return JSONResponse(found.body, found.status)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        lines = [f"penchant_running {worker.running}", f"penchant_waiting {worker.waiting}"]
        lines += [
            f"penchant_{name}_total {worker.counts[name]}" for name in ("answered", "failed", "cancelled", "tokens")
        ]
        return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    def described(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": born, "owned_by": "penchant"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [described(name) for name in names]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        _known(name, names)
        return described(name)

    @app.post("/v1/chat/completions")
    async def chat(asked: ChatRequest, request: Request) -> Response:
        deadline = time.monotonic() + limits.timeout_s
        _known(asked.model, names)
        chosen = await _choose(asked, router, experts, worker, deadline)
        prompt = _prompt(asked, experts, chosen.expert)
        answer = _Answer(asked, chosen, len(prompt), asked.model == ROUTER)
        events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        job = Job(
            expert=chosen.expert,
            prompt=prompt,
            max_tokens=_room(asked, experts, chosen.expert, len(prompt), limits),
            temperature=asked.temperature,
            top_p=asked.top_p,
            stops=asked.stops,
            seed=asked.seed if asked.seed is not None else uuid.uuid4().int % 2**32,
            deadline=deadline,
            deliver=deliver,
        )
        if asked.model == ROUTER:
            worker.go_on(job)
        else:
            worker.submit(job)
        if asked.stream:
            return StreamingResponse(_streamed(answer, job, events), media_type="text/event-stream")
        return JSONResponse(await _whole(answer, job, events, request))

    return app


def _known(name: str, names: list[str]) -> None:
    if name not in names:
        raise invalid(
            f"there is no model '{name}'; there are {', '.join(names)}",
            param="model",
            code="model_not_found",
            status=404,
        )


async def _choose(
    asked: ChatRequest, router: Router | None, experts: Experts, worker: Worker, deadline: float
) -> Decision:
    if router is None or asked.model != ROUTER:
        return Decision(asked.model, asked.model, 1.0)
    heard = (content_of(m) for m in reversed(_conversation(asked)) if m["role"] == "user")
    question = router.question(next(heard, ""))
    found = worker.call(lambda: experts.get(router.asks).log_probs([question]))
    try:
        [log_probs] = await asyncio.wait_for(asyncio.wrap_future(found), deadline - time.monotonic())
        return router.decide(log_probs)
    except TimeoutError:
        raise _failed(Failure("the router took too long", timed_out=True)) from None
    except PenchantError as error:
        raise invalid(str(error), param="messages", code="context_length_exceeded") from error


def _prompt(asked: ChatRequest, experts: Experts, name: str) -> Any:
    messages = _conversation(asked)
    try:
        return experts.peek(name).prompt(messages)
    except PenchantError as error:
        raise invalid(str(error), param="messages") from error


def _conversation(asked: ChatRequest) -> tuple[Message, ...]:
    try:
        return asked.conversation
    except PenchantError as error:
        raise invalid(error.what, param="messages") from error


def _room(asked: ChatRequest, experts: Experts, name: str, prompt: int, limits: Limits) -> int:
    """Tokens the answer may have."""
    context = experts.peek(name).context
    if context is not None and prompt >= context:
        raise invalid(
            f"the messages are {prompt} tokens; the model reads {context}, its answer included",
            param="messages",
            code="context_length_exceeded",
        )
    if asked.limit is not None and asked.limit > limits.max_tokens:
        raise invalid(f"{asked.limit} tokens asked for; at most {limits.max_tokens} are given", param="max_tokens")
    most = asked.limit or limits.max_tokens
    return most if context is None else min(most, context - prompt)


class _Answer:
    """An answer's frame."""

    def __init__(self, asked: ChatRequest, chosen: Decision, prompt_tokens: int, routed: bool) -> None:
        self.asked, self.prompt_tokens = asked, prompt_tokens
        expert: dict[str, Any] = {"expert": chosen.expert}
        if routed:
            expert |= {"likeliest": chosen.likeliest, "confidence": chosen.confidence}
        self._frame = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": chosen.expert,
            "penchant": expert,
        }

    def usage(self, tokens: int) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
        }

    def whole(self, text: str, end: End) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": end.reason}
        return {**self._frame, "object": "chat.completion", "choices": [choice], "usage": self.usage(end.tokens)}

    def chunk(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**self._frame, "object": "chat.completion.chunk", "choices": [choice]}

    def last(self, tokens: int) -> dict[str, Any]:
        return {**self._frame, "object": "chat.completion.chunk", "choices": [], "usage": self.usage(tokens)}


def _failed(failure: Failure) -> Refusal:
    if failure.timed_out:
        return Refusal(504, "timeout", failure.message, code="timeout")
    return Refusal(500, "server_error", failure.message)


async def _whole(answer: _Answer, job: Job, events: asyncio.Queue[Event], request: Request) -> dict[str, Any]:
    text = ""
    try:
        while True:
            try:
                event = await asyncio.wait_for(events.get(), LISTENING_SECONDS)
            except TimeoutError:
                if await request.is_disconnected():
                    raise Refusal(499, "cancelled", "the client has gone") from None
                continue
            if isinstance(event, Piece):
                text += event.text
            elif isinstance(event, Failure):
                raise _failed(event)
            else:
                return answer.whole(text, event)
    finally:
        job.cancelled.set()


async def _streamed(answer: _Answer, job: Job, events: asyncio.Queue[Event]) -> AsyncIterator[str]:
    def line(body: dict[str, Any]) -> str:
        return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"

    try:
        yield line(answer.chunk({"role": "assistant", "content": ""}))
        while True:
            event = await events.get()
            if isinstance(event, Piece):
                yield line(answer.chunk({"content": event.text}))
                continue
            if isinstance(event, Failure):
                yield line(_failed(event).body)
                return
            yield line(answer.chunk({}, event.reason))
            if answer.asked.stream_options is not None and answer.asked.stream_options.include_usage:
                yield line(answer.last(event.tokens))
            yield "data: [DONE]\n\n"
            return
    finally:
        # Also where the client has gone: the row then ends with its next token.
        job.cancelled.set()
