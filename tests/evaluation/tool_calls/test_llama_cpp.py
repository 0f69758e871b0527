"""Tests of answers by llama.cpp: with a stand-in for its package, and with the package where it is installed."""

from __future__ import annotations

import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from penchant.cli.main import run
from penchant.errors import ConfigError, ModelError
from penchant.evaluation.answering import Sampling, generate
from penchant.evaluation.tool_calls import llama_cpp
from penchant.evaluation.tool_calls.llama_cpp import answer_in_this_process, answer_with_llama_cpp
from penchant.models.gguf.writing import export_gguf
from penchant.models.loading import load_model, load_tokenizer
from penchant.recipes.small_llama import Sizes, build_small_llama


class Server:
    """A server that answers with the number of its prompt's tokens, and takes a number of seconds that is given."""

    def __init__(self, parameters):
        if parameters.model.path.endswith("bad.gguf"):
            raise RuntimeError("no magic")
        self.parameters = parameters

    def handle_completions(self, request):
        assert (request["temperature"], request["cache_prompt"]) == (0, False)
        assert len(request["prompt"]) + request["n_predict"] < self.parameters.n_ctx
        text = f"{len(request['prompt'])} of {self.parameters.cpuparams.n_threads}"
        return {"choices": [{"text": text}], "usage": {"completion_tokens": request["n_predict"]}}


@pytest.fixture
def stand_in(monkeypatch):
    package = ModuleType("xllamacpp")
    package.Server = Server
    package.CommonParams = lambda: SimpleNamespace(
        model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace()
    )
    monkeypatch.setitem(sys.modules, "xllamacpp", package)
    # A process that starts 10 s before each answer: the second takes 10 s more than the first.
    clock = iter(float(n * n) for n in range(100))
    monkeypatch.setattr(llama_cpp.time, "perf_counter", lambda: next(clock))


def test_answers_and_times(stand_in, tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"x" * 123)
    answers = answer_in_this_process(str(file), [[1, 2], [3], [4, 5, 6]], 7, 2)
    assert answers.texts == ("2 of 2", "1 of 2", "3 of 2")
    report = answers.report
    # The clock's squares: the warm-up takes 1 s, the answers 9 - 4, 25 - 16 and 49 - 36.
    assert report.seconds == pytest.approx((9, 9 + 0.9 * 4))
    assert report.tokens_per_second == pytest.approx(21 / 27)
    assert (report.weight_bytes, report.timed) == (123, 3)
    with pytest.raises(ModelError, match="no magic"):
        answer_in_this_process(str(tmp_path / "bad.gguf"), [[1]], 7, 2)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ConfigError, match="need xllamacpp") as caught:
        answer_with_llama_cpp("model.gguf", [np.array([1])], 1)
    assert "penchant[llama-cpp]" in str(caught.value.fix)


def test_the_package_answers_as_transformers(tmp_path):
    pytest.importorskip("xllamacpp")
    build_small_llama(tmp_path / "m", ["m.add(a=1)  # the sum of 1 and 2"], Sizes(300, 64, 2, 2, 512), seed=0)
    file = tmp_path / "m.gguf"
    export_gguf(str(tmp_path / "m"), file, "f32")
    tokenizer = load_tokenizer(str(file))
    prompts = [np.array(tokenizer(text)["input_ids"]) for text in ("the sum of 1 and 2", "m.add(a=1)")]
    answers = answer_with_llama_cpp(str(file), prompts, 8)
    expected = generate(load_model(str(file)), tokenizer, prompts, Sampling(temperature=0, max_new_tokens=8))
    assert [[text] for text in answers.texts] == expected
    assert answers.report.peak_bytes > answers.report.above_bytes > 0


def test_the_verb_measures_a_gguf_file_by_llama_cpp(bfcl, tmp_path, capsys, monkeypatch, latency_in_this_process):
    build_small_llama(tmp_path / "m", ["m.add(a=1)  # the sum of 1 and 2"], Sizes(300, 32, 1, 2, 512), seed=0)
    export_gguf(str(tmp_path / "m"), tmp_path / "m.gguf", "q8_0")
    command = ["tool-calls", str(tmp_path / "m.gguf"), "--data", str(bfcl), "--style", "signatures", "--timed", "2"]
    command += ["--max-new-tokens", "2", "--limit", "1"]
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "xllamacpp" else find_spec(name, *a)
    )
    assert run([*command, "--json"]) == 0
    out, stderr = capsys.readouterr()
    assert json.loads(out)["llama_cpp"] is None
    assert "penchant[llama-cpp]" in stderr
