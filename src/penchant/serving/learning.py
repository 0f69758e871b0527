"""What the server offers to a program that learns from its answers: each answer of one expert, and a swap of its model.

Serving never waits for learning: answers are handed over by calls that return at once, and a new model is loaded in the
learning program's own thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from penchant.data.messages import Text, context_of
from penchant.serving.requests import ChatRequest

OPTED_OUT, CONSTRAINED, CUT, EMPTY = "opted out", "constrained", "cut", "empty"
"""Reasons to learn nothing from an answer: the client asked for it (``store: false``); tools, a response format, stop
sequences or template variables constrained it; ``max_tokens`` cut it; it has no text."""


class Learning(Protocol):
    """A program that learns from the answers of one expert; `record` and `skip` return at once and raise nothing.

    Attributes:
        expert: name of the expert.
    """

    expert: str

    def start(self, swap: Callable[[str], None]) -> None:
        """Begin to learn.

        Args:
            swap: loads a model folder and lets it give the expert's next answers; it returns once it does, and leaves
                the model at work as it is where it raises an error.
        """
        ...

    def stop(self) -> None:
        """Stop learning; what was recorded stays stored."""
        ...

    def record(self, prompt: Text, answer: str) -> None:
        """Learn from a whole answer to a prompt, which is the text or the messages that the model has read."""
        ...

    def skip(self, reason: str) -> None:
        """Count an answer that nothing is learnt from."""
        ...

    def status(self) -> dict[str, Any]:
        """What is shown at ``/learning``; may take some time."""
        ...


def answer_observer(learning: Learning, chat: ChatRequest, prompt: Text) -> Callable[[str, str], None]:
    """A function of each answer to a request, its text and finish reason, that records or skips it."""
    is_constrained = bool(
        chat.tools or chat.response_format or chat.stops or chat.chat_template_kwargs or context_of(prompt).columns()
    )

    def observe(answer: str, finish_reason: str) -> None:
        if not chat.store:
            learning.skip(OPTED_OUT)
        elif is_constrained:
            learning.skip(CONSTRAINED)
        elif finish_reason != "stop":
            learning.skip(CUT)
        elif not answer.strip():
            learning.skip(EMPTY)
        else:
            learning.record(prompt, answer)

    return observe
