"""An answer's frame by the chat completions protocol.

Every answer says under `penchant` which expert gave it, and with a router how sure the router was.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from penchant.serving.jobs import End
from penchant.serving.requests import ChatRequest
from penchant.serving.router import Decision


class ChatAnswer:
    """An answer's frame.

    Args:
        routed: whether the router chose the expert.

    Attributes:
        includes_usage: whether a stream ends with the tokens it took.
    """

    def __init__(self, chat: ChatRequest, decision: Decision, prompt_tokens: int, routed: bool) -> None:
        self._prompt_tokens = prompt_tokens
        self.includes_usage = chat.stream_options is not None and chat.stream_options.include_usage
        expert: dict[str, Any] = {"expert": decision.expert}
        if routed:
            expert |= {"likeliest": decision.likeliest, "confidence": decision.confidence}
        self._frame = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": decision.expert,
            "penchant": expert,
        }

    def document(self, text: str, end: End) -> dict[str, Any]:
        """The answer in one document."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": end.reason}
        return {**self._frame, "object": "chat.completion", "choices": [choice], "usage": self._usage(end.tokens)}

    def chunk(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        """A part of a stream."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**self._frame, "object": "chat.completion.chunk", "choices": [choice]}

    def usage_chunk(self, tokens: int) -> dict[str, Any]:
        """The last part of a stream whose client asks for usage."""
        return {**self._frame, "object": "chat.completion.chunk", "choices": [], "usage": self._usage(tokens)}

    def _usage(self, tokens: int) -> dict[str, int]:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self._prompt_tokens + tokens,
        }
