"""A batch at work: each row's draws, its text on the way out, and whether it has ended.

What fails for one row ends that row and no other. Shapes: N rows, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penchant.engine.sampling import choose
from penchant.serving.experts import Expert
from penchant.serving.jobs import End, Failure, Job, Outcomes, Piece
from penchant.serving.texts import Outgoing


class _Row:
    """One job at work."""

    def __init__(self, job: Job) -> None:
        self.job, self.prompt, self.text = job, torch.from_numpy(job.prompt), Outgoing(job.stops)
        # By the protocol a seed may be negative, and of any size; numpy's may not be negative.
        self._chances = np.random.default_rng(job.seed % 2**64)
        self.done = False

    def draw(self, scores: Tensor) -> Tensor:
        """[1] token from [1, V] scores."""
        return choose(scores, self.job.temperature, self.job.top_p, torch.tensor([self._chances.random()]))


class Rows:
    """The rows of those jobs that could be made ready; the others have failed."""

    def __init__(self, jobs: Sequence[Job], expert: Expert, outcomes: Outcomes) -> None:
        self._expert, self._outcomes = expert, outcomes
        self._rows: list[_Row] = []
        for job in jobs:
            try:
                self._rows.append(_Row(job))
                outcomes.start(job)
            except Exception as error:
                outcomes.end(job, Failure.of(error))
        self._width = max((len(row.prompt) for row in self._rows), default=0)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def max_tokens(self) -> int:
        """Of the row that may have the most."""
        return max(row.job.max_tokens for row in self._rows)

    def prompts(self) -> tuple[Tensor, Tensor]:
        """[N, width] ids, padded on the left, and their mask."""
        ids = torch.zeros(len(self._rows), self._width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(self._rows):
            ids[number, self._width - len(row.prompt) :] = row.prompt
            mask[number, self._width - len(row.prompt) :] = 1
        return ids, mask

    def draw(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """A logits processor: all but the token that is drawn become impossible."""
        # Looked at before anything is drawn: from NaN an index out of range is drawn, after which CUDA answers nobody.
        sound = torch.isfinite(scores.amax(-1)).tolist()
        tokens = torch.zeros(len(scores), 1, dtype=torch.int64, device=scores.device)
        for number, row in enumerate(self._rows):
            with self._alone(row):
                if not row.done and not sound[number]:
                    raise ValueError("the model's scores are not numbers")
                if not row.done:
                    tokens[number] = row.draw(scores[number : number + 1])
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens, 0.0)

    def watch(self, input_ids: Tensor, scores: Any, **others: Any) -> Tensor:
        """A stopping criterion: hands out what is new, and says which rows have ended."""
        for number, row in enumerate(self._rows):
            with self._alone(row):
                if not row.done:
                    row.done = self._read(row, input_ids[number, self._width :].tolist())
        return torch.tensor([row.done for row in self._rows], device=input_ids.device)

    @contextmanager
    def _alone(self, row: _Row) -> Iterator[None]:
        """A failure in here is this row's end."""
        try:
            yield
        except Exception as error:
            row.done = True
            self._outcomes.end(row.job, Failure.of(error))

    def _read(self, row: _Row, tokens: list[int]) -> bool:
        """Whether the row has ended."""
        job = row.job
        self._outcomes.add_token(job)
        if job.cancelled.is_set():
            self._outcomes.cancel(job)
            return True
        if time.monotonic() > job.deadline:
            self._outcomes.end(job, Failure("it took too long", timed_out=True))
            return True
        ended = tokens[-1] in self._expert.ends
        full = len(tokens) >= job.max_tokens
        text = self._expert.decode(job.prompt, tokens[:-1] if ended else tokens)
        new, stopped = row.text.read(text, last=ended or full)
        if new:
            job.deliver(Piece(new))
        if ended or stopped or full:
            self._outcomes.end(job, End("stop" if ended or stopped else "length", len(tokens)))
            return True
        return False
