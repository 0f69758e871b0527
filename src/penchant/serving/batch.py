"""Continuous batching of one expert's answers: a row joins at any token, and leaves when its answer ends.

A failure of one row ends that row only. Shapes: N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from penchant.data.tokenized import Ids
from penchant.engine.decoding import CachedRows, UncachedRows, read_joinable
from penchant.engine.device import to_float64
from penchant.engine.sampling import choose_tokens, limit_logits
from penchant.serving.experts import Expert
from penchant.serving.jobs import End, Failure, Job, Outcomes, Piece, TokenLogProb
from penchant.serving.texts import StopFilter


class Row:
    """The state of one job during its generation.

    Attributes:
        job: the job.
        prompt_key: key of the prompt, equal for equal prompts.
        tokens: ids of the answer so far.
    """

    def __init__(self, job: Job, expert: Expert) -> None:
        self.job, self.prompt_key, self.tokens = job, job.prompt.tobytes(), list[int]()
        self._ends, self._decoder, self._stop_filter = expert.ends, expert.text(job.prompt), StopFilter(job.stops)
        self._guide = None if job.new_guide is None else job.new_guide()
        # The protocol allows negative seeds of any size, numpy only non-negative ones.
        key = (job.index,) if job.index else ()
        self._random = np.random.default_rng(np.random.SeedSequence(job.seed % 2**64, spawn_key=key))
        self._text = ""

    def allowed_ids(self) -> Ids | None:
        """The tokens that may come next; None: any."""
        return None if self._guide is None else self._guide.allowed_tokens(self.tokens)

    def draw_uniform(self) -> float:
        """The uniform random number in [0, 1) that decides the next token."""
        return float(self._random.random())

    def add(self, token: int, logits: Tensor) -> End | None:
        """Add a sampled token and deliver new text; the result is the answer's end, or None where it goes on.

        Args:
            token: id of the token.
            logits: [V] logits that the token was sampled from.
        """
        job = self.job
        self.tokens.append(token)
        is_end, is_full = token in self._ends, len(self.tokens) >= job.max_tokens
        log_probs = () if is_end or job.top_log_probs is None else (self._log_prob(token, logits, job.top_log_probs),)
        if not is_end:
            self._text += self._decoder.add(token)
        if is_end or is_full:
            self._text += self._decoder.finish()
        new, is_stopped = self._stop_filter.read(self._text, last=is_end or is_full)
        if new or log_probs:
            job.deliver(Piece(new, log_probs))
        if is_end or is_stopped or is_full:
            return End("stop" if is_end or is_stopped else "length", len(self.tokens))
        return None

    def _log_prob(self, token: int, logits: Tensor, top: int) -> TokenLogProb:
        log_probs = to_float64(logits).log_softmax(-1)
        values, tokens = log_probs.topk(min(top, len(log_probs)))
        likeliest = zip(tokens.tolist(), values.tolist(), strict=True)
        return TokenLogProb(
            self._decoder.preview(token),
            log_probs[token].item(),
            tuple((self._decoder.preview(candidate), value) for candidate, value in likeliest),
        )


class Batch:
    """Rows that are generated together, one token per step.

    Args:
        outcomes: records the start, the tokens and the end of each row.
    """

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes = outcomes
        self._rows: list[Row] = []
        self._state: CachedRows | UncachedRows | None = None

    def __len__(self) -> int:
        """Number of rows whose answers have not ended; a row leaves the count before its end is delivered."""
        return sum(not row.job.is_finished for row in self._rows)

    @torch.no_grad()
    def add(self, jobs: Sequence[Job], expert: Expert) -> None:
        """Read the prompts of jobs and add their rows to the batch; a job that cannot start fails alone."""
        rows = []
        for job in jobs:
            with self._failing_alone(job):
                rows.append(Row(job, expert))
                self._outcomes.start(job)
        rows = [row for row in rows if not row.job.is_finished]
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
        """Generate one token for each row; rows that have ended or were cancelled leave the batch."""
        self._leave()
        if self._state is None:
            return
        logits = self._state.logits
        tokens = self._draw(logits)
        for index, (row, token) in enumerate(zip(self._rows, tokens, strict=True)):
            if row.job.is_finished:
                continue
            with self._failing_alone(row.job):
                self._outcomes.add_token(row.job)
                end = row.add(token, logits[index])
                if end is not None:
                    self._outcomes.end(row.job, end)
        writing = [index for index, row in enumerate(self._rows) if not row.job.is_finished]
        self._keep(writing)
        if self._state is not None:
            self._state.feed([tokens[index] for index in writing])

    def fail(self, failure: Failure) -> None:
        """End all rows with a failure."""
        for row in self._rows:
            self._outcomes.end(row.job, failure)
        self._keep([])

    def _leave(self) -> None:
        """Remove the rows that were cancelled, or whose deadline has passed."""
        for row in self._rows:
            self._outcomes.end_if_gone(row.job, "it took too long")
        self._keep([index for index, row in enumerate(self._rows) if not row.job.is_finished])

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
        """N sampled tokens from [N, V] logits; a row without finite logits fails, and its token is ignored."""
        # Checked before sampling: from NaN an index out of range is drawn, after which CUDA fails for every row.
        finite = torch.isfinite(logits.amax(-1)).tolist()
        allowed_ids: list[Ids | None] = [None for _ in self._rows]
        by_setting: dict[tuple[float, float], list[int]] = {}
        for index, row in enumerate(self._rows):
            with self._failing_alone(row.job):
                if not finite[index]:
                    raise ValueError("the model's scores are not numbers")
                allowed_ids[index] = row.allowed_ids()
                by_setting.setdefault((row.job.temperature, row.job.top_p), []).append(index)
        if any(ids is not None for ids in allowed_ids):
            logits = limit_logits(logits, allowed_ids)
        tokens = [0] * len(self._rows)
        for (temperature, top_p), indices in by_setting.items():
            uniform = torch.tensor([self._rows[index].draw_uniform() for index in indices], dtype=torch.float64)
            choices = choose_tokens(logits[indices], temperature, top_p, uniform)
            for index, token in zip(indices, choices.tolist(), strict=True):
                tokens[index] = token
        return tokens

    @contextmanager
    def _failing_alone(self, job: Job) -> Iterator[None]:
        """Context in which an exception ends this job only."""
        try:
            yield
        except Exception as error:
            self._outcomes.end(job, Failure.from_error(error))
