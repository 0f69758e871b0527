"""/v1/completions: prompts are text or token ids, without a chat template."""

from __future__ import annotations

import numpy as np
from fastapi import Request, Response

from penchant.data.tokenized import Ids
from penchant.errors import PenchantError
from penchant.serving.answers import CompletionForm, answer_frame
from penchant.serving.experts import Expert
from penchant.serving.refusals import invalid
from penchant.serving.requests import CompletionRequest
from penchant.serving.service import ROUTER, AnswerPlan, Service, in_thread


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
