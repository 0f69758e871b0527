"""One answer during its generation: its random numbers, its text to send, and its end. Shapes: V vocabulary."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from penchant.data.tokenized import Ids
from penchant.serving.experts import Expert
from penchant.serving.jobs import End, Job, Piece, TokenLogProb
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
        log_probs = logits.double().log_softmax(-1)
        values, tokens = log_probs.topk(min(top, len(log_probs)))
        likeliest = zip(tokens.tolist(), values.tolist(), strict=True)
        return TokenLogProb(
            self._decoder.preview(token),
            log_probs[token].item(),
            tuple((self._decoder.preview(candidate), value) for candidate, value in likeliest),
        )
