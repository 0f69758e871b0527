"""Metrics in Prometheus' format."""

from __future__ import annotations

import re

import pytest
from fastapi.testclient import TestClient

from penchant.serving.access import Limits
from penchant.serving.app import build_app
from penchant.serving.experts import Experts
from penchant.serving.jobs import SECONDS, Histogram, Metrics

REQUEST = {"model": "m", "messages": [{"role": "user", "content": "the old cat"}], "temperature": 0}


def test_buckets_count_values_up_to_their_bound() -> None:
    histogram = Histogram()
    for value in (0.0005, 0.001, 0.0011, 5.0, 1000.0):
        histogram.observe(value)
    lines = dict(line.rsplit(" ", 1) for line in histogram.lines("n", 'a="b"'))
    assert next(iter(lines)) == 'n_bucket{a="b",le="0.001"}'
    assert lines['n_bucket{a="b",le="0.001"}'] == "2"
    assert lines['n_bucket{a="b",le="0.005"}'] == "3"
    assert lines['n_bucket{a="b",le="5.0"}'] == "4"
    assert lines['n_bucket{a="b",le="160.0"}'] == "4"
    assert lines['n_bucket{a="b",le="+Inf"}'] == lines['n_count{a="b"}'] == "5"
    assert float(lines['n_sum{a="b"}']) == pytest.approx(1005.0026)
    assert list(SECONDS) == sorted(SECONDS)


def test_a_name_may_hold_any_character() -> None:
    text = Metrics().text(['a"b\\c\nd'], {"num_requests_running": {}, "num_requests_waiting": {}})
    assert 'model_name="a\\"b\\\\c\\nd"' in text
    assert all(re.fullmatch(r"# .*|[a-z_:0-9]+\{.*\} [-+.e\d]+", line) for line in text.splitlines())


def test_answers_are_counted_under_vllms_names(tiny_model) -> None:
    with TestClient(build_app(Experts({"m": str(tiny_model)}), None, Limits())) as client:
        usages = [
            client.post("/v1/chat/completions", json={**REQUEST, "max_tokens": n}).json()["usage"] for n in (3, 5)
        ]
        text = client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    label = 'model_name="m"'
    tokens = sum(usage["completion_tokens"] for usage in usages)
    assert tokens == 8
    assert values["penchant_answered_total"] == "2"
    assert values["penchant_tokens_total"] == values[f"vllm:generation_tokens_total{{{label}}}"] == "8"
    assert int(values[f"vllm:prompt_tokens_total{{{label}}}"]) == sum(usage["prompt_tokens"] for usage in usages)
    assert values[f'vllm:request_success_total{{{label},finished_reason="length"}}'] == "2"
    assert values[f'vllm:request_success_total{{{label},finished_reason="stop"}}'] == "0"
    assert values[f"vllm:num_requests_running{{{label}}}"] == values[f"vllm:num_requests_waiting{{{label}}}"] == "0"
    assert values[f"vllm:time_to_first_token_seconds_count{{{label}}}"] == "2"
    assert values[f"vllm:inter_token_latency_seconds_count{{{label}}}"] == "6"
    assert values[f"vllm:e2e_request_latency_seconds_count{{{label}}}"] == "2"
    first_token_seconds = float(values[f"vllm:time_to_first_token_seconds_sum{{{label}}}"])
    assert 0 < first_token_seconds < float(values[f"vllm:e2e_request_latency_seconds_sum{{{label}}}"])
