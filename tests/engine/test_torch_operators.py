"""Private operators of torch: the calls that are made of them fit torch 2.11 to 2.14, and each can be done without."""

from __future__ import annotations

import inspect
import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import penchant
from penchant.data.trees import pack, with_prompts_first
from penchant.engine import attention, tree
from penchant.engine.device import OperatorCall, has_keyword, has_operator, has_operators, takes
from penchant.engine.kernels import cpu_attention, output_layer, shared_prompts
from penchant.engine.tree import reorder_for_attention
from penchant.engine.tree_plan import GatheredSegments, TreePlan

FLASH_FORWARD = """
aten::_flash_attention_forward(
    Tensor query, Tensor key, Tensor value, Tensor? cum_seq_q, Tensor? cum_seq_k, SymInt max_q, SymInt max_k,
    float dropout_p, bool is_causal, bool return_debug_mask, *, float? scale=None, SymInt? window_size_left=None,
    SymInt? window_size_right=None, Tensor? seqused_k=None, Tensor? alibi_slopes=None{})
    -> (Tensor output, Tensor softmax_logsumexp, Tensor rng_state, Tensor unused, Tensor debug_attn_mask)
"""
OTHERS = """
aten::_flash_attention_backward(
    Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, Tensor logsumexp, Tensor cum_seq_q,
    Tensor cum_seq_k, SymInt max_q, SymInt max_k, float dropout_p, bool is_causal, Tensor rng_state, Tensor unused, *,
    float? scale=None, SymInt? window_size_left=None, SymInt? window_size_right=None) -> (Tensor, Tensor, Tensor)
aten::_scaled_dot_product_flash_attention_for_cpu(
    Tensor query, Tensor key, Tensor value, float dropout_p=0., bool is_causal=False, *, Tensor? attn_mask=None,
    float? scale=None) -> (Tensor output, Tensor logsumexp)
aten::_scaled_dot_product_flash_attention_for_cpu_backward(
    Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, Tensor logsumexp, float dropout_p,
    bool is_causal, *, Tensor? attn_mask=None, float? scale=None)
    -> (Tensor grad_query, Tensor grad_key, Tensor grad_value)
aten::mm.dtype_out(Tensor self, Tensor mat2, ScalarType out_dtype, *, Tensor(a!) out) -> Tensor(a!)
aten::addmm.dtype_out(
    Tensor self, Tensor mat1, Tensor mat2, ScalarType out_dtype, *, Scalar beta=1, Scalar alpha=1, Tensor(a!) out)
    -> Tensor(a!)
aten::_foreach_copy_(Tensor(a!)[] self, Tensor[] src, bool non_blocking=False) -> ()
aten::_foreach_add_.List(Tensor(a!)[] self, Tensor[] other, *, Scalar alpha=1) -> ()
aten::_foreach_mul_.Scalar(Tensor(a!)[] self, Scalar scalar) -> ()
aten::_grouped_mm(Tensor self, Tensor mat2, Tensor? offs=None, Tensor? bias=None, ScalarType? out_dtype=None) -> Tensor
aten::silu.out(Tensor self, *, Tensor(a!) out) -> Tensor(a!)
aten::silu_backward.grad_input(Tensor grad_output, Tensor self, *, Tensor(a!) grad_input) -> Tensor(a!)
aten::_standard_gamma(Tensor self, Generator? generator=None) -> Tensor
"""
"""The same in all versions."""

NEWER = FLASH_FORWARD.format(", Tensor? block_table=None, int? num_splits=None") + OTHERS
SCHEMAS = {"2.11": FLASH_FORWARD.format("") + OTHERS, "2.12": NEWER, "2.13": NEWER, "2.14": NEWER}
"""`torch.ops.aten.NAME.OVERLOAD._schema` of torch 2.11.0, 2.12.1, 2.13.0 and 2.14.1."""

VARLEN = "query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)"
NEWER_VARLEN = f"{VARLEN}, enable_gqa=False, seqused_k=None, block_table=None, num_splits=None"
VARLEN_PARAMETERS = {"2.11": VARLEN, "2.12": NEWER_VARLEN, "2.13": NEWER_VARLEN, "2.14": NEWER_VARLEN}
"""Of `torch.nn.attention.varlen.varlen_attn`."""

REPLACED_CALLS = (*shared_prompts.FLASH_CALLS, *cpu_attention.CPU_CALLS, *output_layer.FLOAT32_CALLS)
"""Calls that another path replaces where torch lacks the operator."""

CALLS = (
    *REPLACED_CALLS,
    OperatorCall("_foreach_copy_", "self src"),
    OperatorCall("_foreach_add_.List", "self other"),
    OperatorCall("_foreach_mul_.Scalar", "self scalar"),
    OperatorCall("_grouped_mm", "self mat2"),
    OperatorCall("silu.out", "self out"),
    OperatorCall("silu_backward.grad_input", "grad_output self grad_input"),
    OperatorCall("_standard_gamma", "self generator"),
)
NAMES = [call.operator for call in CALLS]

SCALE = 0.3


@pytest.fixture(autouse=True)
def asked_anew():
    """What torch has is asked again before and after every test."""
    clearing = [function.cache_clear for function in (has_operators, attention._varlen_attn)]
    for clear in clearing:
        clear()
    yield
    for clear in clearing:
        clear()


@pytest.fixture
def remove(monkeypatch):
    """A function that takes an operator away from torch, as a later version may."""
    namespace = type(torch.ops.aten)
    look_up = namespace.__getattr__

    def remove(name: str) -> None:
        def look_up_others(self: Any, operator: str) -> Any:
            if operator == name:
                raise AttributeError(operator)
            return look_up(self, operator)

        monkeypatch.delitem(vars(torch.ops.aten), name, raising=False)
        monkeypatch.setattr(namespace, "__getattr__", look_up_others)

    return remove


def schema_of(operator: str, version: str) -> Any:
    """A recorded schema."""
    texts = (" ".join(text.split()) for text in SCHEMAS[version].split("aten::"))
    return torch._C.parse_schema(next(f"aten::{text}" for text in texts if text.partition("(")[0] == operator))


@pytest.mark.parametrize("version", SCHEMAS)
@pytest.mark.parametrize("call", CALLS, ids=NAMES)
def test_a_version_takes_the_calls(version, call):
    assert takes(schema_of(call.operator, version), call.arguments)


@pytest.mark.parametrize("call", CALLS, ids=NAMES)
def test_the_installed_torch_takes_the_calls(call):
    """As the recorded versions do; a later one may return more after what is read, and take more."""
    assert has_operator(call)
    name, _, overload = call.operator.partition(".")
    live = getattr(getattr(torch.ops.aten, name), overload or "default")._schema
    recorded = schema_of(call.operator, "2.13")
    names = call.arguments.split()
    kinds = [{a.name: str(a.type) for a in schema.arguments if a.name in names} for schema in (live, recorded)]
    assert kinds[0] == kinds[1]
    returned = [[str(result.type) for result in schema.returns] for schema in (live, recorded)]
    assert returned[0][: len(returned[1])] == returned[1]
    version = ".".join(torch.__version__.split(".")[:2])
    if version in SCHEMAS:
        assert str(live) == str(schema_of(call.operator, version))


def test_varlen_attn_takes_what_is_passed():
    """In the recorded versions, and in this one; queries with more heads than keys are announced where they must be."""
    from torch.nn.attention.varlen import varlen_attn

    functions = [eval(f"lambda {text}: None") for text in VARLEN_PARAMETERS.values()]
    for function in (*functions, varlen_attn):
        names = {"scale", "window_size"} | ({"enable_gqa"} & set(inspect.signature(function).parameters))
        assert has_keyword(function, "enable_gqa") == ("enable_gqa" in names)
        inspect.signature(function).bind(*range(7), **dict.fromkeys(names))
    assert [has_keyword(function, "enable_gqa") for function in functions] == [False, True, True, True]


def test_no_other_private_operator_is_called():
    """An operator that the package calls has its schema recorded here for every version."""
    sources = "\n".join(path.read_text() for path in Path(penchant.__file__).parent.rglob("*.py"))
    operators = set(re.findall(r"torch\.ops\.aten\.(\w+)", sources))
    operators |= set(re.findall(r"\btorch\.(_[a-z]\w*)\(", sources))
    operators |= set(re.findall(r"torch\.ops\.aten, \"(\w+)\"", sources))
    operators |= {"mm", "addmm"}  # Public, but for the dtype of their result.
    assert operators == {name.partition(".")[0] for name in NAMES}


@pytest.mark.parametrize(
    "schema",
    [
        "aten::f(Tensor query, Tensor key) -> Tensor",
        "aten::f(Tensor query, *, float? softmax_scale=None) -> Tensor",
        "aten::f(Tensor query, bool fast, *, float? scale=None) -> Tensor",
    ],
    ids=["without scale", "renamed", "asks for more"],
)
def test_an_operator_with_other_arguments_counts_as_missing(schema):
    assert not takes(torch._C.parse_schema(schema), "query scale")
    assert takes(
        torch._C.parse_schema("aten::f(Tensor query, *, float? scale=None, int? more=None) -> ()"), "query scale"
    )


class Recorder:
    """Stands for an operator: records the names of its arguments, and computes by a function."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, compute: Any) -> None:
        self.calls: list[dict[str, Any]] = []
        self._compute = compute
        monkeypatch.setattr(torch.ops.aten, name, self)

    def __call__(self, **arguments: Any) -> Any:
        self.calls.append(arguments)
        return self._compute(**arguments)


def random_heads(tokens: int) -> list[Tensor]:
    """Queries and upstream of 4 heads, keys and values of 2, [T, H, 8]: q, k, v, upstream."""
    torch.manual_seed(0)
    return [torch.randn(tokens, heads, 8, dtype=torch.float64) for heads in (4, 2, 2, 4)]


def dense(q: Tensor, k: Tensor, v: Tensor, batch: Any) -> Tensor:
    """Attention [T, H, D] of a row that lies group after group, as one softmax with a mask."""
    row = torch.arange(len(batch.input_ids))
    visible = (row <= row[:, None]) & (row[:, None] < batch.reach)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * SCALE
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, -torch.inf).softmax(-1), v)


@pytest.fixture
def batch(make_groups):
    return pack(make_groups([(5, (3, 6)), (1, (2,)), (8, (4, 1, 1))], 0))


def test_flash_attention_is_called_by_these_names(batch, monkeypatch):
    """Which rows ask which keys, three calls forward and three back; the kernels' stead is attention written out."""
    layout = with_prompts_first(batch).prompts_first
    segments = shared_prompts.Segments(layout.prompts, layout.groups, layout.candidates, layout.tokens, *layout.longest)
    all_rows = slice(None)

    def call_of(options: dict[str, Any]) -> Any:
        ends, longest = ((options[f"{name}_q"], options[f"{name}_k"]) for name in ("cum_seq", "max"))
        return shared_prompts._AttentionCall(all_rows, all_rows, ends, longest, options["is_causal"])

    def forward(*, query, key, value, scale, dropout_p, return_debug_mask, **options):
        assert (dropout_p, return_debug_mask) == (0.0, False)
        out, sums = shared_prompts._EagerAttention.forward(query, key, value, call_of(options), scale)
        return out, sums, None, None, None

    def backward(*, grad_out, query, key, value, out, logsumexp, scale, dropout_p, rng_state, unused, **options):
        assert dropout_p == 0.0
        tensors = (grad_out, query, key, value, out, logsumexp)
        return shared_prompts._EagerAttention.backward(*tensors, call_of(options), scale)

    *inputs, upstream = random_heads(len(batch.input_ids))
    results = []
    recorders = [
        Recorder(monkeypatch, call.operator, compute)
        for call, compute in zip(shared_prompts.FLASH_CALLS, (forward, backward), strict=True)
    ]
    for kernel in (shared_prompts._Flash, shared_prompts._EagerAttention):
        saved = (*inputs, *shared_prompts.forward(kernel, *inputs, segments, SCALE))
        results.append((saved, shared_prompts.backward(kernel, upstream, saved, segments, SCALE)))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    for recorder, call in zip(recorders, shared_prompts.FLASH_CALLS, strict=True):
        assert [set(arguments) for arguments in recorder.calls] == [set(call.arguments.split())] * 3
        sizes = [(len(x["query"]), len(x["key"]), x["max_q"], x["max_k"], x["is_causal"]) for x in recorder.calls]
        assert sizes == [(14, 14, 8, 8, True), (17, 14, 9, 8, False), (17, 17, 6, 6, True)]


def test_the_installed_flash_attention_takes_tensors_without_data(batch):
    """torch's own dispatch of both calls, and the shapes that it tells."""
    layout = with_prompts_first(batch).to(torch.device("meta")).prompts_first
    segments = shared_prompts.Segments(layout.prompts, layout.groups, layout.candidates, layout.tokens, *layout.longest)
    tokens, kernel = len(batch.input_ids), shared_prompts._Flash
    q, k, v, upstream = (torch.empty(tokens, h, 64, dtype=torch.bfloat16, device="meta") for h in (4, 2, 2, 4))
    for call in shared_prompts._attention_calls(segments):
        rows = len(q[call.rows])
        out, sums = kernel.forward(q, k, v, call, SCALE)
        assert out.shape == (rows, 4, 64)
        assert sums.shape == (4, rows)
        gradients = kernel.backward(upstream, q, k, v, torch.empty_like(q), sums, call, SCALE)
        assert [len(gradient) for gradient in gradients] == [rows, len(k[call.keys]), len(k[call.keys])]


@pytest.mark.parametrize("window", [None, 5])
def test_the_installed_varlen_attn_takes_tensors_without_data(batch, window):
    """With fewer heads of keys than of queries, which versions from 2.12 on refuse unless they are told."""
    tokens, segments = len(batch.input_ids), GatheredSegments.of_row(batch.branches, torch.device("meta"))
    q, k, v = (
        torch.empty(1, h, tokens, 64, dtype=torch.bfloat16, device="meta", requires_grad=True) for h in (4, 2, 2)
    )
    out = attention._variable_length(q, k, v, segments, window, SCALE)
    assert out.shape == (1, tokens, 4, 64)
    out.sum().backward()
    assert [x.grad.shape for x in (q, k, v)] == [x.shape for x in (q, k, v)]


def test_the_cpus_attention_is_called_by_these_names(batch, monkeypatch):
    operators = [getattr(torch.ops.aten, call.operator) for call in cpu_attention.CPU_CALLS]
    recorders = [
        Recorder(monkeypatch, call.operator, operator)
        for call, operator in zip(cpu_attention.CPU_CALLS, operators, strict=True)
    ]
    q, k, v, upstream = (x.transpose(0, 1)[None].requires_grad_() for x in random_heads(len(batch.input_ids)))
    out = cpu_attention.tiled_attention(q, k, v, TreePlan(batch).tiling(None), SCALE)
    out.backward(upstream.transpose(1, 2))
    for recorder, call in zip(recorders, cpu_attention.CPU_CALLS, strict=True):
        assert recorder.calls
        assert all(set(arguments) == set(call.arguments.split()) for arguments in recorder.calls)


class Capture(TorchDispatchMode):
    """Records the operators that are called instead of running them, with the names of their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[OperatorCall] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = [argument.name for argument in func._schema.arguments[: len(args)]]
        name = str(func).removeprefix("aten.").removesuffix(".default")
        self.calls.append(OperatorCall(name, " ".join([*names, *kwargs])))
        return kwargs["out"]


@pytest.mark.parametrize(("overwrite", "call"), zip((True, False), output_layer.FLOAT32_CALLS, strict=True))
def test_products_in_float32_are_called_by_these_names(monkeypatch, overwrite, call):
    monkeypatch.setattr(output_layer, "_has_float32_kernel", lambda factor: True)
    a, b, out = torch.ones(2, 3).bfloat16(), torch.ones(3, 4).bfloat16(), torch.zeros(2, 4)
    with Capture() as capture:
        output_layer._add_float32_product(out, a, b, overwrite=overwrite)
    assert capture.calls == [call]


@pytest.mark.parametrize("call", shared_prompts.FLASH_CALLS, ids=lambda call: call.operator)
def test_without_flash_attention_keys_are_gathered(batch, config_of, remove, caplog, monkeypatch, call):
    """A GPU's row then lies group after group; one warning says so, however often it is asked."""
    monkeypatch.setattr(tree, "has_flash_attention", lambda device: True)
    model: Any = SimpleNamespace(config=config_of("llama"), device=torch.device("cuda"))
    assert reorder_for_attention(batch, model).prompts_first is not None
    has_operators.cache_clear()
    remove(call.operator)
    with caplog.at_level(logging.WARNING):
        assert all(reorder_for_attention(batch, model) is batch for _ in range(3))
    assert len(caplog.messages) == 1
    assert f"has no {call.operator} as Penchant calls it: attention on a GPU takes keys" in caplog.messages[0]


def flash_of_variable_lengths(q, k, v, ends_q, ends_k, longest_q, longest_k, *, scale, window_size, **options):
    """`varlen_attn` written out: causal from the bottom right."""
    assert window_size == (-1, 0)
    out = torch.empty_like(q)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    for (a, b), (c, d) in zip(*(torch.stack([x[:-1], x[1:]], 1).tolist() for x in (ends_q, ends_k)), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q[a:b], k[c:d]) * scale
        hidden = torch.ones(b - a, d - c).triu(1 + (d - c) - (b - a)).bool()
        out[a:b] = torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v[c:d])
    return out


@pytest.mark.parametrize("has_varlen", [True, False])
def test_a_gpus_row_by_group_is_the_dense_softmax(batch, monkeypatch, caplog, has_varlen):
    """By gathered keys; where torch has no kernel for them tile by tile, and one warning says so."""
    plan = TreePlan(batch)
    plan.segments = GatheredSegments.of_row(batch.branches, torch.device("cpu"))
    monkeypatch.setattr(attention, "has_cpu_operators", lambda: False)  # The branch of other devices.
    monkeypatch.setattr(attention, "is_flash_size", lambda query, value: True)
    if has_varlen:
        monkeypatch.setattr(attention, "_varlen_attn", lambda: flash_of_variable_lengths)
    else:
        monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    by_tile, over_tiles = [], attention._over_tiles
    monkeypatch.setattr(attention, "_over_tiles", lambda *arguments: by_tile.append(1) or over_tiles(*arguments))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert_dense(batch, plan)
    assert len(by_tile) == (0 if has_varlen else 3)
    assert len(caplog.messages) == (0 if has_varlen else 1)
    assert all("no torch.nn.attention.varlen.varlen_attn" in message for message in caplog.messages)


def test_without_the_cpus_operators_attention_is_the_same(batch, remove, caplog):
    remove(cpu_attention.CPU_CALLS[1].operator)
    with caplog.at_level(logging.WARNING):
        assert_dense(batch, TreePlan(batch))
        assert_dense(with_prompts_first(batch), TreePlan(batch))
    assert len(caplog.messages) == 1
    assert "_scaled_dot_product_flash_attention_for_cpu_backward as Penchant calls it" in caplog.messages[0]


def assert_dense(batch: Any, plan: TreePlan) -> None:
    """`tree_attention` and its gradients, group after group, are those of `dense`, in float64."""
    *inputs, upstream = random_heads(len(batch.input_ids))
    for x in inputs:
        x.requires_grad_()
    by_head = [x.transpose(0, 1)[None] for x in inputs]
    out, _ = attention.tree_attention(torch.nn.Module(), *by_head, None, tree=plan, scaling=SCALE)
    expected = dense(*inputs, batch)
    torch.testing.assert_close(out[0], expected, rtol=1e-12, atol=1e-13)
    gradients = [torch.autograd.grad(result, inputs, upstream) for result in (out[0], expected)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("name", ["mm", "addmm"])
def test_without_products_in_float32_factors_are_copied(remove, caplog, monkeypatch, name, overwrite):
    """With the numbers of float64 products of the same rounded factors."""
    monkeypatch.setattr(torch.version, "hip", None)
    on_card: Any = SimpleNamespace(is_cuda=True)
    assert output_layer._has_float32_kernel(on_card)
    has_operators.cache_clear()
    remove(name)
    with caplog.at_level(logging.WARNING):
        assert not any(output_layer._has_float32_kernel(on_card) for _ in range(3))
    assert len(caplog.messages) == 1
    assert f"has no {name}.dtype_out as Penchant calls it" in caplog.messages[0]
    torch.manual_seed(0)
    a, b = torch.randn(5, 40).bfloat16(), torch.randn(40, 7).bfloat16()
    out = start = torch.randn(5, 7)
    expected = a.double() @ b.double() + (0 if overwrite else start.double())
    output_layer._add_float32_product(out, a, b, overwrite=overwrite)
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-6)
