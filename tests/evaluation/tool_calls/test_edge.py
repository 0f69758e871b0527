"""What an answer costs, and what tells models apart."""

from __future__ import annotations

import pytest
import torch

from penchant.engine.loading import load_model
from penchant.errors import ModelError
from penchant.evaluation.tool_calls import edge
from penchant.evaluation.tool_calls.edge import Setting, measure_edge, measure_here
from penchant.evaluation.tool_calls.questions import read_bfcl
from penchant.recipes.small_llama import Sizes, build_small_llama


def test_what_an_answer_costs(bfcl, tiny_model):
    found = measure_edge(Setting(str(tiny_model), "signatures", max_new_tokens=4), read_bfcl(bfcl)[0][:3])
    assert found.timed == 3
    assert 0 < found.seconds[0] <= found.seconds[1]
    distinct = {id(each): each for each in load_model(str(tiny_model)).parameters()}.values()
    assert found.weight_bytes >= sum(4 * each.numel() for each in distinct)
    assert found.peak_bytes > found.above_bytes > found.weight_bytes


def test_it_has_as_many_threads(bfcl, tiny_model, monkeypatch):
    asked, before = [], torch.get_num_threads()
    monkeypatch.setattr(edge, "alone", lambda function, *arguments: asked.append((function, arguments)))
    try:
        torch.set_num_threads(3)
        measure_edge(Setting(str(tiny_model), "signatures", max_new_tokens=1), read_bfcl(bfcl)[0][:1])
        torch.set_num_threads(1)
        [(function, arguments)] = asked
        function(*arguments)
        assert function is measure_here
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_mistake_is_told_as_it_would_be_here(bfcl):
    with pytest.raises(ModelError, match="there is no such folder"):
        measure_edge(Setting("./nowhere", "signatures"), read_bfcl(bfcl)[0])


@pytest.mark.slow
def test_memory_tells_models_apart(bfcl, tmp_path):
    """Ten times the weights, and a quarter of the bytes for each."""
    questions = read_bfcl(bfcl)[0][:2]
    for name, layers in (("small", 2), ("large", 20)):
        build_small_llama(tmp_path / name, ["m.add(a=1)"], Sizes(300, 384, layers, 4, 512), seed=0)
    small, large, eight = (
        measure_edge(Setting(str(tmp_path / name), "signatures", eight_bits=bits, max_new_tokens=2), questions)
        for name, bits in (("small", False), ("large", False), ("large", True))
    )
    more = large.weight_bytes - small.weight_bytes
    assert large.weight_bytes / small.weight_bytes > 8
    assert large.above_bytes - small.above_bytes == pytest.approx(more, rel=0.2)
    saved = large.weight_bytes - eight.weight_bytes
    assert saved > 0.6 * large.weight_bytes
    assert large.above_bytes - eight.above_bytes == pytest.approx(saved, rel=0.2)
