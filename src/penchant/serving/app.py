"""The web application: chat completions, completions and models of the OpenAI protocol, /health and /metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from penchant.data.messages import Message, content_of
from penchant.data.tokenized import Ids
from penchant.errors import PenchantError
from penchant.serving.access import Access, AccessGuard, BodyGuard, Limits
from penchant.serving.answers import ChatForm, CompletionForm, answer_frame
from penchant.serving.constraints import answer_guide
from penchant.serving.experts import Expert, Experts
from penchant.serving.learning import Learning, answer_observer
from penchant.serving.requests import ChatRequest, CompletionRequest, Refusal, invalid
from penchant.serving.router import Router
from penchant.serving.service import ROUTER, AnswerPlan, Service, in_thread
from penchant.serving.worker import Overloaded, Worker


async def respond_to_completion(service: Service, request: Request) -> Response:
    """The answer to a completion request, as one document or as a stream.

    Raises:
        Refusal: the request cannot be answered.
        Overloaded: the queue is full.
    """
    deadline = service.new_deadline()
    completion = await service.parse(CompletionRequest, request, deadline)
    if completion.model == ROUTER:
        raise invalid("the router chooses by messages: ask it at /v1/chat/completions", param="model")
    expert = service.experts.peek(completion.model)
    prompts = await in_thread(lambda: [_ids(prompt, expert) for prompt in completion.prompts], deadline)
    form = CompletionForm(
        answer_frame("cmpl", completion.model, None),
        prompt_tokens=sum(map(len, prompts)),
        choices=len(prompts) * completion.n,
        includes_log_probs=completion.logprobs is not None,
        includes_usage=completion.includes_usage,
    )
    return await service.respond(completion, AnswerPlan(completion.model, prompts), form, deadline, request)


def _ids(prompt: str | list[int], expert: Expert) -> Ids:
    if isinstance(prompt, str):
        try:
            return expert.plain_prompt(prompt)
        except PenchantError as error:
            raise invalid(str(error), param="prompt") from error
    size = expert.vocabulary_size
    unknown = [token for token in prompt if not 0 <= token < size]
    if unknown:
        raise invalid(f"the model has no token {unknown[0]}; its ids are 0 to {size - 1}", param="prompt")
    return np.array(prompt, dtype=np.int64)


async def respond_to_chat(service: Service, learning: Learning | None, request: Request) -> Response:
    """The answer to a chat request, as one document or as a stream.

    Args:
        learning: what learns from the answers of one expert; None where nothing does.

    Raises:
        Refusal: the request cannot be answered.
        Overloaded: the queue is full.
    """
    deadline = service.new_deadline()
    chat = await service.parse(ChatRequest, request, deadline)
    messages = await in_thread(lambda: _conversation(chat), deadline)
    decision = await service.choose(chat.model, _question(messages), deadline)
    plan = await in_thread(lambda: _plan(service, chat, messages, decision.expert), deadline)
    observe: Callable[[str, str], None] = _ignore
    if learning is not None and learning.expert == decision.expert:
        observe = answer_observer(learning, chat, service.experts.peek(decision.expert).prompt_text(messages))
    form = ChatForm(
        answer_frame("chatcmpl", decision.expert, decision if chat.model == ROUTER else None),
        prompt_tokens=sum(map(len, plan.prompts)),
        choices=chat.n,
        tools=chat.callable_tools,
        includes_log_probs=chat.logprobs,
        includes_usage=chat.includes_usage,
        observe=observe,
    )
    return await service.respond(chat, plan, form, deadline, request)


def _ignore(answer: str, finish_reason: str) -> None:
    """The observer of answers that nothing learns from."""


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


def build_app(
    experts: Experts,
    router: Router | None,
    limits: Limits,
    access: Access | None = None,
    learning: Learning | None = None,
) -> FastAPI:
    """The web application; the thread that runs the models starts with it.

    Args:
        experts: the models that answer.
        router: chooses the expert of a request; None where there is none.
        limits: limits on requests.
        access: conditions for access; None accepts every request.
        learning: learns from the answers of one expert, shown at /learning; None where nothing does.
    """
    worker = Worker(experts, batch=limits.batch, waiting=limits.waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if learning is not None:
            learning.start(partial(experts.replace, learning.expert))
        yield
        await asyncio.to_thread(worker.stop)
        if learning is not None:
            await asyncio.to_thread(learning.stop)

    app = FastAPI(title="Penchant", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(BodyGuard, limits=limits)
    if access is not None:
        # Access is checked first, so that the body of a refused request is not read.
        app.add_middleware(AccessGuard, access=access)
    service = Service(experts, router, worker, limits)
    _answer_errors(app)
    _add_models(app, service)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        lines = [f"penchant_running {worker.running}", f"penchant_waiting {worker.waiting}"]
        lines += [
            f"penchant_{name}_total {worker.counts[name]}" for name in ("answered", "failed", "cancelled", "tokens")
        ]
        text = worker.metrics.text(experts.names, worker.load())
        return Response("\n".join(lines) + "\n" + text, media_type="text/plain; version=0.0.4")

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await respond_to_chat(service, learning, request)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await respond_to_completion(service, request)

    if learning is not None:
        _add_learning(app, learning)
    return app


def _add_learning(app: FastAPI, learning: Learning) -> None:
    """Add the route that shows what was learnt."""

    @app.get("/learning")
    async def status() -> dict[str, Any]:
        return await asyncio.to_thread(learning.status)


def _add_models(app: FastAPI, service: Service) -> None:
    """Add the routes that list the models."""
    created = int(time.time())

    def described(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": created, "owned_by": "penchant"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [described(name) for name in service.names]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        service.require(name)
        return described(name)


def _answer_errors(app: FastAPI) -> None:
    """Answer every error in the protocol's form."""

    def answer(refusal: Refusal) -> JSONResponse:
        return JSONResponse(refusal.body, refusal.status)

    @app.exception_handler(Refusal)
    async def refuse(request: Request, error: Refusal) -> JSONResponse:
        return answer(error)

    @app.exception_handler(HTTPException)
    async def no_such_path(request: Request, error: HTTPException) -> JSONResponse:
        return answer(invalid(str(error.detail), status=error.status_code))

    @app.exception_handler(Overloaded)
    async def overloaded(request: Request, error: Overloaded) -> JSONResponse:
        return answer(Refusal(503, "server_error", "too many requests wait; try again later", code="overloaded"))

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> JSONResponse:
        # The framework raises the error again after the answer, so the log has its traceback.
        return answer(Refusal(500, "server_error", f"{type(error).__name__}: {error}"))
