"""The answers of one expert that are written together; another joins at the next token, and each leaves at its own end.

What fails for one row ends that row and no other. Shapes: N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from penchant.data.tokenized import Ids
from penchant.engine.decoding import CachedRows, RereadRows, read_joinable
from penchant.engine.sampling import choose, limit_logits
from penchant.serving.experts import Expert
from penchant.serving.jobs import Failure, Job, Outcomes
from penchant.serving.rows import Row


class Batch:
    """Rows that write a token at a time.

    Args:
        outcomes: is told of each row's start, tokens and end.
    """

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes = outcomes
        self._rows: list[Row] = []
        self._state: CachedRows | RereadRows | None = None

    def __len__(self) -> int:
        """Rows whose answers have not ended; a row leaves the count before its end is delivered."""
        return sum(not row.job.ended for row in self._rows)

    @torch.no_grad()
    def add(self, jobs: Sequence[Job], expert: Expert) -> None:
        """Read the prompts of jobs, whose rows then stand beside the others; a job that cannot be begun fails alone."""
        rows = []
        for job in jobs:
            with self._failing_alone(job):
                rows.append(Row(job, expert))
                self._outcomes.start(job)
        rows = [row for row in rows if not row.job.ended]
        if not rows:
            return
        # The answers to one request have one prompt, which is read once.
        prompts = {row.prompt_key: row.job.prompt for row in rows}
        order = {key: index for index, key in enumerate(prompts)}
        newcomers = read_joinable(expert.model, list(prompts.values()))
        if len(rows) != len(prompts):
            newcomers.keep([order[row.prompt_key] for row in rows])
        if self._state is None:
            self._state = newcomers
        else:
            self._state.join(newcomers)  # type: ignore[arg-type]  # of one model, so of one kind
        self._rows += rows

    @torch.no_grad()
    def step(self) -> None:
        """Write one token in each row; rows that have ended, or that nobody waits for, leave."""
        self._leave()
        if self._state is None:
            return
        logits = self._state.logits
        tokens = self._draw(logits)
        for index, (row, token) in enumerate(zip(self._rows, tokens, strict=True)):
            if row.job.ended:
                continue
            with self._failing_alone(row.job):
                self._outcomes.add_token(row.job)
                end = row.add(token, logits[index])
                if end is not None:
                    self._outcomes.end(row.job, end)
        writing = [index for index, row in enumerate(self._rows) if not row.job.ended]
        self._keep(writing)
        if self._state is not None:
            self._state.feed([tokens[index] for index in writing])

    def fail(self, failure: Failure) -> None:
        """End all rows."""
        for row in self._rows:
            self._outcomes.end(row.job, failure)
        self._keep([])

    def _leave(self) -> None:
        """Take out the rows that nobody waits for, or whose time is over."""
        for row in self._rows:
            self._outcomes.end_if_gone(row.job, "it took too long")
        self._keep([index for index, row in enumerate(self._rows) if not row.job.ended])

    def _keep(self, indices: Sequence[int]) -> None:
        if len(indices) == len(self._rows):
            return
        self._rows = [self._rows[index] for index in indices]
        if not indices:
            self._state = None
        elif self._state is not None:
            self._state.keep(indices)
            self._state.trim()

    def _draw(self, logits: Tensor) -> list[int]:
        """N tokens from [N, V] logits; a row that has none fails, and what is drawn for it means nothing."""
        # Looked at before anything is drawn: from NaN an index out of range is drawn, after which CUDA answers nobody.
        finite = torch.isfinite(logits.amax(-1)).tolist()
        allowed: list[Ids | None] = [None for _ in self._rows]
        by_setting: dict[tuple[float, float], list[int]] = {}
        for index, row in enumerate(self._rows):
            with self._failing_alone(row.job):
                if not finite[index]:
                    raise ValueError("the model's scores are not numbers")
                allowed[index] = row.allowed()
                by_setting.setdefault((row.job.temperature, row.job.top_p), []).append(index)
        if any(ids is not None for ids in allowed):
            logits = limit_logits(logits, allowed)
        tokens = [0] * len(self._rows)
        for (temperature, top_p), indices in by_setting.items():
            uniform = torch.tensor([self._rows[index].draw_uniform() for index in indices], dtype=torch.float64)
            drawn = choose(logits[indices], temperature, top_p, uniform)
            for index, token in zip(indices, drawn.tolist(), strict=True):
                tokens[index] = token
        return tokens

    @contextmanager
    def _failing_alone(self, job: Job) -> Iterator[None]:
        """A failure in here is this job's end."""
        try:
            yield
        except Exception as error:
            self._outcomes.end(job, Failure.of(error))
