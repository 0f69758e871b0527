"""The cache's key covers everything that determines a log-prob, and several processes can use its file."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from penchant.data.groups import PreferenceGroup
from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import pack
from penchant.storage import caches as reference_cache
from penchant.storage.caches import LogProbCache, cache_folder
from penchant.storage.fingerprints import model_fingerprint


def test_gives_back_what_was_kept(make_groups, tmp_path):
    cache = LogProbCache("model", "how", tmp_path)
    batches = [pack(make_groups([(3, (2, 4))], seed)) for seed in range(600)]
    for number, batch in enumerate(batches[::2]):
        cache.keep(batch, [-1.0 * number, -0.1])
    log_probs = cache.look_up(batches)
    assert sorted(log_probs) == list(range(0, 600, 2))
    assert log_probs[4] == [-2.0, -0.1]


@pytest.mark.parametrize(("model", "method"), [("other", "how"), ("model", "how bfloat16")])
def test_another_model_or_way_is_another_key(make_groups, tmp_path, model, method):
    batch = pack(make_groups([(3, (2, 4))], 0))
    LogProbCache("model", "how", tmp_path).keep(batch, [-1.0, -2.0])
    assert LogProbCache(model, method, tmp_path).look_up([batch]) == {}


def test_another_engine_is_another_key(make_groups, tmp_path, monkeypatch):
    """Faster code rounds otherwise: log-probs stored by an older Penchant are not mixed with this one's."""
    batch = pack(make_groups([(3, (2, 4))], 0))
    LogProbCache("model", "how", tmp_path).keep(batch, [-1.0, -2.0])
    monkeypatch.setattr(reference_cache, "engine_fingerprint", lambda: "older")
    assert LogProbCache("model", "how", tmp_path).look_up([batch]) == {}


def test_another_token_or_boundary_is_another_key(make_groups, tmp_path):
    (group,) = make_groups([(3, (2, 4))], 0)
    cache = LogProbCache("model", "how", tmp_path)
    cache.keep(pack([group]), [-1.0, -2.0])
    token = TokenizedGroup(group.prompt + 1, group.responses, group.group)
    response, other_response = group.responses
    boundary = TokenizedGroup(group.prompt[:-1], (np.append(group.prompt[-1:], response), other_response), group.group)
    shorter = TokenizedGroup(group.prompt, (response[:1], other_response), group.group)
    assert cache.look_up([pack([token]), pack([boundary]), pack([shorter])]) == {}
    assert cache.look_up([pack([group])]) == {0: [-1.0, -2.0]}


def test_fingerprint_is_of_the_weights_and_the_configuration(build):
    model, same_model = build("llama"), build("llama")
    assert model_fingerprint(model) == model_fingerprint(same_model)
    with torch.no_grad():
        same_model.lm_head.weight[0, 0] += 1e-7
    assert model_fingerprint(model) != model_fingerprint(same_model)
    third = build("llama")
    third.config.rms_norm_eps *= 2
    assert model_fingerprint(model) != model_fingerprint(third)
    third.config.rms_norm_eps /= 2
    third.set_attn_implementation("sdpa")
    assert model_fingerprint(model) == model_fingerprint(third)


def test_two_processes_write_and_read_at_once(start_penchant, tmp_path):
    code = """
import sys, numpy as np
from pathlib import Path
from penchant.data.groups import PreferenceGroup
from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import pack
from penchant.storage.caches import LogProbCache
cache = LogProbCache("model", "how", Path(sys.argv[1]))
for number in range(int(sys.argv[2]), 400, 2):
    group = TokenizedGroup(np.array([number]), (np.array([1]),), PreferenceGroup("x", ("y",)))
    cache.keep(pack([group]), [-float(number)])
    cache.look_up([pack([group])])
"""
    errors = tmp_path / "errors"
    processes = [start_penchant("-c", code, tmp_path, turn, stderr=errors) for turn in (0, 1)]
    for process in processes:
        assert process.wait(60) == 0, errors.read_text()
    groups = [TokenizedGroup(np.array([n]), (np.array([1]),), PreferenceGroup("x", ("y",))) for n in range(400)]
    log_probs = LogProbCache("model", "how", tmp_path).look_up(pack([group]) for group in groups)
    assert log_probs == {number: [-float(number)] for number in range(400)}


def test_folder_is_the_users_or_the_environments(monkeypatch, tmp_path):
    monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("PENCHANT_CACHE")
    assert cache_folder().parts[-2:] == (".cache", "penchant")
