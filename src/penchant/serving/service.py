"""The common part of both endpoints: parsing of a body, the available models, the expert, the jobs of an answer."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ValidationError

from penchant.data.tokenized import Ids
from penchant.engine.sampling import Guide
from penchant.errors import PenchantError
from penchant.serving.access import Limits
from penchant.serving.delivery import Form, Mailbox, stream_answer, timed_out, whole_answer
from penchant.serving.experts import Experts
from penchant.serving.jobs import Job
from penchant.serving.requests import ChatRequest, CompletionRequest, CompletionSettings, invalid, invalid_field
from penchant.serving.router import Decision, Router
from penchant.serving.worker import Worker

Model = TypeVar("Model", bound=BaseModel)

MAX_DEPTH = 64
"""Maximum depth of nested objects and lists, which are later processed recursively."""


def parse(kind: type[Model], body: bytes) -> Model:
    """The request in a body.

    Args:
        kind: pydantic model of the request.
        body: the body's bytes.

    Raises:
        Refusal: the body is not JSON in UTF-8, or does not fit the model.
    """
    value = read_json(body)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise invalid_field(problem["type"], problem["msg"], problem["loc"], value) from error


def require_json(content_type: str) -> None:
    """Refuse a body that is not JSON, because a page of another origin can send forms and plain text without consent.

    Raises:
        Refusal: the content type is another one (status 415).
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json":
        raise invalid(
            f"the body is of type '{kind}'; expected Content-Type: application/json",
            code="unsupported_media_type",
            status=415,
        )


def read_json(body: bytes) -> Any:
    """The JSON value of a body, without lone surrogates in its texts.

    Raises:
        Refusal: the body is not JSON in UTF-8, contains half of a surrogate pair, or is nested too deeply.
    """
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not JSON in UTF-8: {error}") from error
    _check_values(value)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _check_values(value: object) -> None:
    """Refuse lone surrogates, which no tokenizer reads, and values that are nested too deeply."""
    pending: list[tuple[object, tuple[str, ...]]] = [(value, ())]
    while pending:
        node, path = pending.pop()
        field = ".".join(path) or None
        if len(path) > MAX_DEPTH:
            raise invalid(f"{path[0]} is nested more than {MAX_DEPTH} deep", param=path[0])
        if isinstance(node, str):
            _check_text(node, field)
        elif isinstance(node, dict):
            for name, item in node.items():
                _check_text(name, field)
                pending.append((item, (*path, name)))
        elif isinstance(node, list):
            pending += [(item, (*path, str(index))) for index, item in enumerate(node)]


def _check_text(text: str, field: str | None) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise invalid(
            f"{field or 'the body'}: half of a surrogate pair, {code} at character {error.start}; send both halves",
            param=field,
        ) from error


ROUTER = "router"
"""The model name by which a client leaves the choice to the router."""

T = TypeVar("T")
Parsed = TypeVar("Parsed", bound=CompletionSettings)


@dataclass(frozen=True)
class AnswerPlan:
    """The plan of the answer to a request.

    Attributes:
        expert: name of the expert that answers.
        prompts: token ids of the prompts, each of which gets `n` answers.
        new_guide: makes the guide that constrains an answer; None for no constraint.
        has_waited: whether the request already waited in the queue for the router.
    """

    expert: str
    prompts: Sequence[Ids]
    new_guide: Callable[[], Guide] | None = None
    has_waited: bool = False


class Service:
    """The models behind the endpoints.

    Attributes:
        experts: the models.
        names: names of the available models, including the router.
    """

    def __init__(self, experts: Experts, router: Router | None, worker: Worker, limits: Limits) -> None:
        self.experts, self._router, self._worker, self._limits = experts, router, worker, limits
        self.names = [*experts.names, *([ROUTER] if router is not None else [])]

    def new_deadline(self) -> float:
        """Time by which a request that arrives now must be answered, on the clock of `time.monotonic`."""
        return time.monotonic() + self._limits.timeout_s

    def require(self, name: str) -> None:
        """Check that a model is available.

        Raises:
            Refusal: there is no model with this name (status 404).
        """
        if name not in self.names:
            names = ", ".join(self.names)
            raise invalid(
                f"there is no model '{name}'; there are {names}", param="model", code="model_not_found", status=404
            )

    async def parse(self, kind: type[Parsed], request: Request, deadline: float) -> Parsed:
        """The request in a body, for an available model.

        Raises:
            Refusal: the body is not a valid request, or names an unknown model.
        """
        require_json(request.headers.get("content-type", ""))
        body = await request.body()
        parsed = await in_thread(lambda: parse(kind, body), deadline)
        self.require(parsed.model)
        return parsed

    async def choose(self, name: str, question: str, deadline: float) -> Decision:
        """The decision on the expert: the one that the client names, or the router's choice.

        Args:
            name: model name of the request.
            question: text by which the router decides.
            deadline: time by which the request must be answered, on the clock of `time.monotonic`.

        Raises:
            Refusal: the router took too long, or the question is too long for it.
            Overloaded: the queue is full.
        """
        router = self._router
        if router is None or name != ROUTER:
            return Decision(name, name, 1.0)
        group = router.question(question)
        scored = self._worker.call(lambda: self.experts.get(router.asks).log_probs([group]))
        try:
            [log_probs] = await asyncio.wait_for(asyncio.wrap_future(scored), deadline - time.monotonic())
        except TimeoutError:
            raise timed_out("the router took too long") from None
        except PenchantError as error:
            raise invalid(str(error), param="messages", code="context_length_exceeded") from error
        return router.decide(log_probs)

    async def respond(
        self,
        settings: ChatRequest | CompletionRequest,
        plan: AnswerPlan,
        form: Form,
        deadline: float,
        request: Request,
    ) -> Response:
        """The answer, as one document or as a stream.

        Raises:
            Refusal: a prompt or an answer is too long; a job failed; or the client has disconnected.
            Overloaded: the queue is full.
        """
        mailbox = Mailbox(asyncio.get_running_loop())
        seed = settings.seed if settings.seed is not None else uuid.uuid4().int % 2**32
        jobs = []
        for number, prompt in enumerate(plan.prompts):
            max_tokens = self._max_tokens(settings, plan.expert, len(prompt))
            for sample in range(settings.n):
                index = number * settings.n + sample
                jobs.append(
                    Job(
                        expert=plan.expert,
                        prompt=prompt,
                        max_tokens=max_tokens,
                        temperature=settings.temperature,
                        top_p=settings.top_p,
                        stops=settings.stops,
                        seed=seed,
                        deadline=deadline,
                        deliver=mailbox.slot(index),
                        index=index,
                        top_log_probs=settings.top,
                        new_guide=plan.new_guide,
                        arrived=deadline - self._limits.timeout_s,
                    )
                )
        (self._worker.resubmit if plan.has_waited else self._worker.submit)(*jobs)
        if settings.stream:
            return StreamingResponse(stream_answer(form, jobs, mailbox), media_type="text/event-stream")
        return JSONResponse(await whole_answer(form, jobs, mailbox, request))

    def _max_tokens(self, settings: ChatRequest | CompletionRequest, expert: str, prompt_tokens: int) -> int:
        """Maximum number of tokens of the answer."""
        requested = settings.limit
        context, limit = self.experts.peek(expert).context, self._limits.max_tokens
        if context is not None and prompt_tokens >= context:
            raise invalid(
                f"the prompt is {prompt_tokens} tokens; the model reads {context}, its answer included",
                param=settings.prompt_field,
                code="context_length_exceeded",
            )
        if requested is not None and requested > limit:
            raise invalid(f"{requested} tokens requested; at most {limit} are allowed", param="max_tokens")
        max_tokens = requested or limit
        return max_tokens if context is None else min(max_tokens, context - prompt_tokens)


async def in_thread(function: Callable[[], T], deadline: float) -> T:
    """The result of a function that runs in a thread, so that the event loop is not blocked.

    Args:
        function: the function to run.
        deadline: time by which it must end, on the clock of `time.monotonic`.

    Raises:
        Refusal: the deadline has passed.
    """
    try:
        return await asyncio.wait_for(asyncio.to_thread(function), deadline - time.monotonic())
    except TimeoutError:
        raise timed_out("the request took too long to read") from None
