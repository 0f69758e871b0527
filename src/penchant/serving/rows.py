"""One answer while it is written: its draws, its text on the way out, and whether it has ended. V: vocabulary."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from penchant.data.tokenized import Ids
from penchant.serving.experts import Expert
from penchant.serving.jobs import End, Job, Piece, TokenLogProb
from penchant.serving.texts import Outgoing


class Row:
    """One job at work.

    Attributes:
        prompt_key: equal for equal prompts.
        tokens: those that were drawn.
    """

    def __init__(self, job: Job, expert: Expert) -> None:
        self.job, self.prompt_key, self.tokens = job, job.prompt.tobytes(), list[int]()
        self._ends, self._decoder, self._outgoing = expert.ends, expert.text(job.prompt), Outgoing(job.stops)
        self._guide = None if job.new_guide is None else job.new_guide()
        # By the protocol a seed may be negative, and of any size; numpy's may not be negative.
        key = (job.index,) if job.index else ()
        self._random = np.random.default_rng(np.random.SeedSequence(job.seed % 2**64, spawn_key=key))
        self._text = ""

    def allowed(self) -> Ids | None:
        """The tokens that may come next; None: any."""
        return None if self._guide is None else self._guide.allowed_tokens(self.tokens)

    def draw_uniform(self) -> float:
        """The uniform number that the next token is drawn by."""
        return float(self._random.random())

    def add(self, token: int, logits: Tensor) -> End | None:
        """Read the token that was drawn; deliver what is new, and say how the row has ended, if it has.

        Args:
            logits: [V] that the model gave for it.
        """
        job = self.job
        self.tokens.append(token)
        ended, full = token in self._ends, len(self.tokens) >= job.max_tokens
        log_probs = () if ended or job.top_log_probs is None else (self._log_prob(token, logits, job.top_log_probs),)
        if not ended:
            self._text += self._decoder.add(token)
        if ended or full:
            self._text += self._decoder.finish()
        new, stopped = self._outgoing.read(self._text, last=ended or full)
        if new or log_probs:
            job.deliver(Piece(new, log_probs))
        if ended or stopped or full:
            return End("stop" if ended or stopped else "length", len(self.tokens))
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
