"""The web application: chat completions, completions and models of the OpenAI protocol, /health and /metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from penchant.serving.access import Access
from penchant.serving.chat import respond_to_chat
from penchant.serving.completions import respond_to_completion
from penchant.serving.experts import Experts
from penchant.serving.guard import AccessGuard, BodyGuard
from penchant.serving.limits import Limits
from penchant.serving.refusals import Refusal, invalid
from penchant.serving.router import Router
from penchant.serving.service import Service
from penchant.serving.worker import Overloaded, Worker


def build_app(experts: Experts, router: Router | None, limits: Limits, access: Access | None = None) -> FastAPI:
    """The web application; the thread that runs the models starts with it.

    Args:
        experts: the models that answer.
        router: chooses the expert of a request; None where there is none.
        limits: limits on requests.
        access: conditions for access; None accepts every request.
    """
    worker = Worker(experts, batch=limits.batch, waiting=limits.waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(worker.stop)

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
        return await respond_to_chat(service, request)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await respond_to_completion(service, request)

    return app


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
