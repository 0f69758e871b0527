"""Requests to a language model behind an OpenAI-compatible HTTP endpoint, with retries."""

from __future__ import annotations

import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

from penchant.config.shared_sections import JudgeConfig
from penchant.errors import ConfigError

T = TypeVar("T")

REDIRECTS = range(300, 400)
RETRIED = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
FIRST_PAUSE = 0.5
"""Pause before the second attempt in seconds; it doubles with each further attempt."""


class Unanswered(Exception):
    """All attempts failed; the message describes the last failure."""


@dataclass(frozen=True)
class Endpoint:
    """A language model at an HTTP endpoint."""

    config: JudgeConfig

    def ask(self, question: str, read: Callable[[str], T | None]) -> T:
        """The parsed answer to a question, requested again until it can be parsed.

        Args:
            read: parser of an answer; it returns None for an unreadable one.

        Raises:
            Unanswered: time-outs, failures of the server or unreadable answers to the last attempt.
            ConfigError: the endpoint refuses the key, the model or the address: no attempt would help.
        """
        failure = ""
        for attempt in range(self.config.retries + 1):
            if attempt:
                time.sleep(FIRST_PAUSE * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
            try:
                answer = self._post(question)
            # Time-outs, refused connections and urllib's own errors are all OSErrors; a reply cut short is none.
            except (OSError, ValueError, http.client.HTTPException) as error:
                failure = self._explain(error)
                continue
            parsed = read(answer)
            if parsed is not None:
                return parsed
            failure = f"an answer without what was asked for: {self._without_key(answer)[:80]!r}"
        raise Unanswered(failure)

    def _post(self, question: str) -> str:
        fields = {"temperature": 0, **self.config.request}
        body = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": question}],
            **{name: value for name, value in fields.items() if value is not None},
        }
        headers = {"Content-Type": "application/json"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            self.config.url.rstrip("/") + "/chat/completions", json.dumps(body).encode(), headers
        )
        with _OPENER.open(request, timeout=self.config.timeout_s) as reply:
            document: Any = json.loads(reply.read())
        try:
            return str(document["choices"][0]["message"]["content"])
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError("a reply that is no chat completion") from error

    def _key(self) -> str:
        """The API key, empty if none is set.

        Raises:
            ConfigError: the key cannot be sent; the error of `http` would reveal it.
        """
        key = os.environ.get(self.config.api_key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(
                "the judge's key has characters that no header can hold",
                where=f"${self.config.api_key_env}",
                fix="set the variable to the key alone",
            )
        return key

    def _without_key(self, text: str) -> str:
        """The text with the API key masked, since servers repeat a key that they refuse."""
        key = self._key()
        return text.replace(key, "***") if key else text

    def _explain(self, error: Exception) -> str:
        if isinstance(error, urllib.error.HTTPError):
            if error.code in REDIRECTS:
                raise ConfigError(
                    f"the judge's endpoint redirects ({error.code}), and a key is sent to no other address",
                    where=self.config.url,
                    fix="name the address that answers itself in the judge's url",
                ) from None
            if error.code < HTTPStatus.INTERNAL_SERVER_ERROR and error.code not in RETRIED:
                raise ConfigError(
                    f"the judge's endpoint refuses: {error.code} {self._without_key(str(error.reason))}",
                    where=self.config.url,
                    fix=f"check url and model ({self.config.model}), and the key in ${self.config.api_key_env}",
                ) from None
            return f"{error.code} {self._without_key(str(error.reason))}"
        return self._without_key(str(error)) or type(error).__name__


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Handler that follows no redirect, which would lose the question and send the key to another host."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)
