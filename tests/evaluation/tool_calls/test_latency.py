"""Tests of the latency and memory report."""

from __future__ import annotations

import pytest
import torch

from penchant.errors import ModelError
from penchant.evaluation.tool_calls import latency as edge
from penchant.evaluation.tool_calls.latency import LatencySettings, measure_in_this_process, measure_latency
from penchant.evaluation.tool_calls.questions import read_bfcl
from penchant.models.loading import load_model
from penchant.recipes.small_llama import Sizes, build_small_llama


@pytest.mark.slow
def test_latency_and_memory_of_answers(bfcl, tiny_model):
    report = measure_latency(LatencySettings(str(tiny_model), "signatures", max_new_tokens=4), read_bfcl(bfcl)[0][:3])
    assert report.timed == 3
    assert 0 < report.seconds[0] <= report.seconds[1]
    distinct = {id(parameter): parameter for parameter in load_model(str(tiny_model)).parameters()}.values()
    assert report.weight_bytes >= sum(4 * parameter.numel() for parameter in distinct)
    assert report.peak_bytes > report.above_bytes > report.weight_bytes


def test_the_subprocess_has_as_many_threads(bfcl, tiny_model, monkeypatch):
    subprocess_calls, threads = [], torch.get_num_threads()
    monkeypatch.setattr(
        edge, "run_in_subprocess", lambda function, *arguments: subprocess_calls.append((function, arguments))
    )
    try:
        torch.set_num_threads(3)
        measure_latency(LatencySettings(str(tiny_model), "signatures", max_new_tokens=1), read_bfcl(bfcl)[0][:1])
        torch.set_num_threads(1)
        [(function, arguments)] = subprocess_calls
        function(*arguments)
        assert function is measure_in_this_process
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_an_error_in_the_subprocess_is_raised_here(bfcl):
    with pytest.raises(ModelError, match="there is no such folder"):
        measure_latency(LatencySettings("./nowhere", "signatures"), read_bfcl(bfcl)[0])


@pytest.mark.slow
def test_memory_tells_models_apart(bfcl, tmp_path):
    """A model with ten times the weights needs as many more bytes, and one with int8 weights as many fewer."""
    questions = read_bfcl(bfcl)[0][:2]
    for name, layers in (("small", 2), ("large", 20)):
        build_small_llama(tmp_path / name, ["m.add(a=1)"], Sizes(300, 384, layers, 4, 512), seed=0)
    small, large, eight = (
        measure_latency(
            LatencySettings(str(tmp_path / name), "signatures", eight_bits=bits, max_new_tokens=2), questions
        )
        for name, bits in (("small", False), ("large", False), ("large", True))
    )
    extra_bytes = large.weight_bytes - small.weight_bytes
    assert large.weight_bytes / small.weight_bytes > 8
    assert large.above_bytes - small.above_bytes == pytest.approx(extra_bytes, rel=0.2)
    saved_bytes = large.weight_bytes - eight.weight_bytes
    assert saved_bytes > 0.6 * large.weight_bytes
    assert large.above_bytes - eight.above_bytes == pytest.approx(saved_bytes, rel=0.2)
