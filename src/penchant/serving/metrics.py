"""Metrics of the server, in Prometheus' text format.

A metric that vLLM has too has vLLM's name, so that dashboards for vLLM show it.
"""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
"""Upper bounds of the histograms' buckets."""

HISTOGRAMS: Mapping[str, str] = {
    "time_to_first_token_seconds": "Seconds from a request's arrival to its first token.",
    "inter_token_latency_seconds": "Seconds between two tokens of an answer.",
    "request_queue_time_seconds": "Seconds that a request waited for its turn.",
    "e2e_request_latency_seconds": "Seconds from a request's arrival to its answer's end.",
}

TOKENS: Mapping[str, str] = {
    "prompt_tokens_total": "Tokens of prompts that were read.",
    "generation_tokens_total": "Tokens that were generated.",
}

GAUGES: Mapping[str, str] = {
    "num_requests_running": "Answers that are being generated.",
    "num_requests_waiting": "Answers that wait for their turn.",
}


@dataclass
class Histogram:
    """A histogram of values in seconds.

    Attributes:
        counts: number of values in each bucket of `SECONDS`; the last bucket has the values above all bounds.
        total: sum of the values.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total: float = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect.bisect_left(SECONDS, value)] += 1
        self.total += value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """The lines of Prometheus' format, with cumulative buckets."""
        cumulated = 0
        for upper_bound, count in zip((*map(str, SECONDS), "+Inf"), self.counts, strict=True):
            cumulated += count
            yield f'{name}_bucket{{{labels},le="{upper_bound}"}} {cumulated}'
        yield f"{name}_sum{{{labels}}} {self.total}"
        yield f"{name}_count{{{labels}}} {cumulated}"


class Metrics:
    """Counts and times by expert.

    Attributes:
        histograms: histograms by name in `HISTOGRAMS` and expert.
        tokens: number of tokens by name in `TOKENS` and expert.
        endings: number of answers by expert and reason of their end: stop, length or abort.
    """

    def __init__(self) -> None:
        self.histograms: defaultdict[tuple[str, str], Histogram] = defaultdict(Histogram)
        self.tokens: Counter[tuple[str, str]] = Counter()
        self.endings: Counter[tuple[str, str]] = Counter()

    def observe(self, name: str, expert: str, seconds: float) -> None:
        """Count a time in a histogram of `HISTOGRAMS`."""
        self.histograms[name, expert].observe(seconds)

    def text(self, experts: Sequence[str], load: Mapping[str, Mapping[str, int]]) -> str:
        """All metrics in Prometheus' text format.

        Args:
            experts: names of the experts.
            load: number of jobs by expert, for each metric of `GAUGES`.
        """
        lines: list[str] = []
        for name, description in GAUGES.items():
            lines += _head(name, description, "gauge")
            lines += [f"vllm:{name}{{{_labels(expert)}}} {load[name].get(expert, 0)}" for expert in experts]
        for name, description in TOKENS.items():
            lines += _head(name, description, "counter")
            lines += [f"vllm:{name}{{{_labels(expert)}}} {self.tokens[name, expert]}" for expert in experts]
        lines += _head("request_success_total", "Answers that ended, by reason.", "counter")
        for expert in experts:
            for reason in ("stop", "length", "abort"):
                labels = f'{_labels(expert)},finished_reason="{reason}"'
                lines.append(f"vllm:request_success_total{{{labels}}} {self.endings[expert, reason]}")
        for name, description in HISTOGRAMS.items():
            lines += _head(name, description, "histogram")
            for expert in experts:
                lines += self.histograms[name, expert].lines(f"vllm:{name}", _labels(expert))
        return "\n".join(lines) + "\n"


def _head(name: str, description: str, kind: str) -> list[str]:
    return [f"# HELP vllm:{name} {description}", f"# TYPE vllm:{name} {kind}"]


def _labels(expert: str) -> str:
    escaped = expert.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'model_name="{escaped}"'
