"""Compilation of formulas for a GPU; their results are tested beside the CPU's passes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from penchant.engine.kernels import compiled

ON_GPU = SimpleNamespace(is_cuda=True, value=2)


def compiled_by(monkeypatch, compiler):
    """A formula compiled by a function, and the `dynamic` flags that the function gets."""
    dynamic_flags = []
    monkeypatch.setattr(torch, "compile", lambda formula, dynamic: dynamic_flags.append(dynamic) or compiler(formula))
    return compiled._CompiledOnGpu(lambda x, increment: x.value + increment), dynamic_flags


def test_it_is_compiled_once_for_any_sizes_and_only_on_a_gpu(monkeypatch):
    formula, dynamic_flags = compiled_by(monkeypatch, lambda formula_function: lambda *x: -formula_function(*x))
    assert formula(SimpleNamespace(is_cuda=False, value=2), 1) == 3
    assert dynamic_flags == []
    assert [formula(ON_GPU, 1), formula(ON_GPU, 5)] == [-3, -7]
    assert dynamic_flags == [True]


def test_where_compiling_fails_it_stays_as_it_is_and_says_so_once(monkeypatch, caplog):
    attempts = []

    def fails(function):
        def run(*x):
            attempts.append(x)
            raise BackendCompilerFailed(function, RuntimeError("no C compiler"), None)

        return run

    formula, _ = compiled_by(monkeypatch, fails)
    assert formula(ON_GPU, 1) == 3
    assert formula(ON_GPU, 5) == 7
    (line,) = caplog.messages
    assert line.startswith("torch.compile does not work here, which is slower: ")
    assert "no C compiler" in line
    assert len(attempts) == 1


def test_an_error_of_the_formula_itself_is_not_hidden(monkeypatch):
    formula, _ = compiled_by(monkeypatch, lambda function: function)
    with pytest.raises(TypeError):
        formula(ON_GPU, "two")
