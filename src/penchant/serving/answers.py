"""Answers in the OpenAI protocol's form: chat completions and completions, as one document or as chunks of a stream.

The field `penchant` of every answer names the expert that wrote it, and the router's confidence where there is one.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from penchant.serving.constraints import AnswerText
from penchant.serving.jobs import End, Piece, TokenLogProb
from penchant.serving.requests import Tool
from penchant.serving.router import Decision


def answer_frame(prefix: str, expert: str, decision: Decision | None) -> dict[str, Any]:
    """The fields that all chunks of an answer have in common.

    Args:
        prefix: beginning of the answer's id.
        expert: name of the expert that answers.
        decision: the router's decision; None where the client named the expert.
    """
    choice = {} if decision is None else {"likeliest": decision.likeliest, "confidence": decision.confidence}
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": expert,
        "penchant": {"expert": expert, **choice},
    }


def usage(prompt_tokens: int, tokens: int) -> dict[str, int]:
    """The protocol's `usage`: numbers of tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens,
    }


class ChatForm:
    """The form of a chat completion.

    Args:
        frame: the fields of `answer_frame`.
        prompt_tokens: number of tokens of the prompts.
        choices: number of answers to the request.
        tools: tools whose calls are accepted.
        includes_log_probs: whether the client asks for log-probs.
        includes_usage: whether the client asks for the number of tokens at the end of a stream.
        observe: called with the text and the finish reason of each answer that ends.

    Attributes:
        includes_usage: whether a stream ends with a chunk of usage.
    """

    def __init__(
        self,
        frame: Mapping[str, Any],
        *,
        prompt_tokens: int,
        choices: int,
        tools: Sequence[Tool],
        includes_log_probs: bool,
        includes_usage: bool,
        observe: Callable[[str, str], None],
    ) -> None:
        self._frame, self._prompt_tokens, self._includes_log_probs = frame, prompt_tokens, includes_log_probs
        self._observe = observe
        self.includes_usage = includes_usage
        self._choices = [_ChatChoice(index, AnswerText(tools)) for index in range(choices)]

    def opening(self) -> list[dict[str, Any]]:
        """The first chunks of a stream."""
        return [self._chunk(choice.index, {"role": "assistant", "content": ""}) for choice in self._choices]

    def add(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """Add a piece of a choice's answer; the result is the stream's chunks for it."""
        choice = self._choices[index]
        text = choice.answer.add(piece.text)
        choice.content += text
        choice.log_probs += map(_chat_log_prob, piece.log_probs)
        if not text and not piece.log_probs:
            return []
        return [self._chunk(index, {"content": text}, log_probs=list(map(_chat_log_prob, piece.log_probs)))]

    def end(self, index: int, end: End) -> list[dict[str, Any]]:
        """End a choice's answer; the result is the stream's chunks for it."""
        choice = self._choices[index]
        text, choice.calls = choice.answer.finish()
        choice.content += text
        choice.tokens = end.tokens
        choice.reason = "tool_calls" if choice.calls and end.reason == "stop" else end.reason
        self._observe(choice.content, choice.reason)
        chunks = [self._chunk(index, {"content": text})] if text else []
        if choice.calls:
            calls = [{"index": number, **call} for number, call in enumerate(choice.calls)]
            chunks.append(self._chunk(index, {"tool_calls": calls}))
        return [*chunks, self._chunk(index, {}, reason=choice.reason)]

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk of a stream whose client asks for usage."""
        return {**self._frame, "object": "chat.completion.chunk", "choices": [], "usage": self._usage()}

    def document(self) -> dict[str, Any]:
        """The answer as one document."""
        choices = [choice.document(self._includes_log_probs) for choice in self._choices]
        return {**self._frame, "object": "chat.completion", "choices": choices, "usage": self._usage()}

    def _usage(self) -> dict[str, int]:
        return usage(self._prompt_tokens, sum(choice.tokens for choice in self._choices))

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        reason: str | None = None,
        log_probs: Sequence[dict[str, Any]] = (),
    ) -> dict[str, Any]:
        logprobs = {"content": list(log_probs), "refusal": None} if log_probs else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**self._frame, "object": "chat.completion.chunk", "choices": [choice]}


class _ChatChoice:
    """One of the answers to a request."""

    def __init__(self, index: int, answer: AnswerText) -> None:
        self.index, self.answer = index, answer
        self.content, self.reason, self.tokens = "", "", 0
        self.calls: list[dict[str, Any]] = []
        self.log_probs: list[dict[str, Any]] = []

    def document(self, includes_log_probs: bool) -> dict[str, Any]:
        """The choice as a part of the answer's document."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content, "refusal": None}
        if self.calls:
            message |= {"content": self.content or None, "tool_calls": self.calls}
        log_probs = {"content": self.log_probs, "refusal": None} if includes_log_probs else None
        return {"index": self.index, "message": message, "logprobs": log_probs, "finish_reason": self.reason}


class CompletionForm:
    """The form of a completion; as `ChatForm`, without tools."""

    def __init__(
        self,
        frame: Mapping[str, Any],
        *,
        prompt_tokens: int,
        choices: int,
        includes_log_probs: bool,
        includes_usage: bool,
    ) -> None:
        self._frame = {**frame, "object": "text_completion"}
        self._prompt_tokens, self._includes_log_probs = prompt_tokens, includes_log_probs
        self.includes_usage = includes_usage
        self._texts = [""] * choices
        self._log_probs: list[list[TokenLogProb]] = [[] for _ in range(choices)]
        self._ends: list[End | None] = [None] * choices

    def opening(self) -> list[dict[str, Any]]:
        """The first chunks of a stream: none."""
        return []

    def add(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """Add a piece of a choice's answer; the result is the stream's chunks for it."""
        offset = sum(len(token.text) for token in self._log_probs[index])
        self._texts[index] += piece.text
        self._log_probs[index] += piece.log_probs
        return [self._part([self._choice(index, piece.text, piece.log_probs, None, offset)])]

    def end(self, index: int, end: End) -> list[dict[str, Any]]:
        """End a choice's answer; the result is the stream's chunks for it."""
        self._ends[index] = end
        return [self._part([self._choice(index, "", (), end.reason, 0)])]

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk of a stream whose client asks for usage."""
        return self._part([]) | {"usage": self._usage()}

    def document(self) -> dict[str, Any]:
        """The answer as one document."""
        choices = [
            self._choice(index, text, self._log_probs[index], end.reason if end is not None else None, 0)
            for index, (text, end) in enumerate(zip(self._texts, self._ends, strict=True))
        ]
        return self._part(choices) | {"usage": self._usage()}

    def _usage(self) -> dict[str, int]:
        return usage(self._prompt_tokens, sum(end.tokens for end in self._ends if end is not None))

    def _part(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._frame, "choices": choices}

    def _choice(
        self, index: int, text: str, log_probs: Sequence[TokenLogProb], reason: str | None, offset: int
    ) -> dict[str, Any]:
        logprobs = _completion_log_probs(log_probs, offset) if self._includes_log_probs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _chat_log_prob(token: TokenLogProb) -> dict[str, Any]:
    return {
        **_token_entry(token.text, token.log_prob),
        "top_logprobs": [_token_entry(text, log_prob) for text, log_prob in token.top],
    }


def _token_entry(text: str, log_prob: float) -> dict[str, Any]:
    # The bytes of a token that is a part of a character cannot be derived from its text.
    return {"token": text, "logprob": log_prob, "bytes": None if "\ufffd" in text else list(text.encode())}


def _completion_log_probs(tokens: Sequence[TokenLogProb], offset: int) -> dict[str, Any]:
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.log_prob for token in tokens],
        "top_logprobs": [dict(token.top) for token in tokens],
        "text_offset": offsets,
    }
