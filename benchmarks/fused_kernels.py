"""Kernels that a compiler makes of a graph: a model of torch's inductor, which needs a card to generate code for one.

Operations on elements and reductions of the last dimension that hang together, without a matrix product or another
whole kernel between them, become one kernel; so do a reduction and what is computed of its result. A reduction of
another dimension (a weight's gradient over tokens) is two kernels, or one more of a part that reads the same. Views are
none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils.flop_counter import flop_registry

VIEWS = {
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "unsqueeze", "squeeze", "slice", "select",
    "alias", "detach", "getitem", "as_strided", "split", "split_with_sizes", "unbind", "sym_size", "lift_fresh_copy",
}  # fmt: skip
CONSTANTS = {"full", "scalar_tensor", "arange", "iota", "zeros", "ones"}
"""Tensors that every kernel makes for itself."""

WHOLE = {
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "_grouped_mm",
    "index_put",
    "embedding",
    "sort",
    "topk",
    "cumsum",
    "index_add",
}
"""Operations that are kernels of their own."""


@dataclass(frozen=True)
class Kernel:
    """One launch of a graph, or several of the same.

    Attributes:
        size: bytes read and written.
        flops: floating-point operations of a matrix product.
    """

    name: str
    launches: int
    size: int
    flops: float = 0.0


def graph_kernels(graph: GraphModule) -> list[Kernel]:
    """The kernels of a graph of aten operations; not those of our own operators, which count when they run."""
    nodes = [node for node in graph.graph.nodes if node.op == "call_function" and tensors_of(node)]
    level = _levels(nodes)
    cluster = {node: node for node in nodes if _kind(node) == "fused"}
    for node in cluster:
        for source in map(_source, node.all_input_nodes):
            if source in cluster and level[source] == level[node]:
                _join(cluster, source, node)
    _join_siblings(cluster, level)
    members: dict[Node, list[Node]] = {}
    for node in cluster:
        members.setdefault(_root(cluster, node), []).append(node)
    part_of = {node: set(part) for part in members.values() for node in part}
    kernels = [_fused_kernel(part) for part in members.values() if not _is_epilogue(part)]
    for node in nodes:
        if _kind(node) == "whole":
            formula = flop_registry.get(getattr(node.target, "overloadpacket", None))
            arguments = torch.fx.map_arg(node.args, lambda n: n.meta["val"])
            flops = 0.0 if formula is None else float(formula(*arguments, out_val=node.meta["val"]))
            size = sum(tensor_bytes(value) for part in (node, *node.all_input_nodes) for value in tensors_of(part))
            kernels.append(Kernel(_name(node), 1, size, flops))
        elif _kind(node) == "across":
            kernels.append(_reduction_kernel(node, part_of))
    return kernels


def _levels(nodes: Sequence[Node]) -> dict[Node, int]:
    """For every node how many kernels of another kind must have run before it.

    What is fused waits for the first that reads it: a compiler computes it there.
    """
    level: dict[Node, int] = {}
    for node in nodes:
        sources = [source for source in map(_source, node.all_input_nodes) if source in level]
        level[node] = max((level[source] + (_kind(source) != "fused") for source in sources), default=0)
    for node in reversed(nodes):
        if _kind(node) == "fused":
            readers = [level[user] for user in _users(node) if user in level]
            level[node] = max(level[node], min(readers, default=level[node]))
    return level


def _join_siblings(cluster: dict[Node, Node], level: dict[Node, int]) -> None:
    """Join parts of one level that read the same large tensor element by element: a compiler reads it once."""
    reader: dict[tuple[int, Node, int], Node] = {}
    for node in cluster:
        for source in map(_source, node.all_input_nodes):
            sizes = {int(value.numel()) for part in (node, source) for value in tensors_of(part)}
            if source not in cluster and len(sizes) == 1:
                _join(cluster, reader.setdefault((level[node], source, max(sizes)), node), node)


def _is_epilogue(part: Sequence[Node]) -> bool:
    """Whether a part only changes the sums of a reduction over rows, whose last kernel does that."""
    sources = {source for node in part for source in map(_source, node.all_input_nodes)} - set(part)
    return bool(sources) and all(_kind(source) == "across" for source in sources)


def weight_casts(graph: GraphModule) -> int:
    """Number of casts of weights: of matrices among the graph's inputs that go into products, transposed or not."""
    return sum(
        _name(node) in ("convert_element_type", "_to_copy")
        and _source(node.all_input_nodes[0]).op == "placeholder"
        and tensors_of(node)[0].ndim == 2
        and all(_name(user) in (*WHOLE, *VIEWS) for user in node.users)
        for node in graph.graph.nodes
        if node.op == "call_function"
    )


def tensors_of(node: Node) -> list[Tensor]:
    """The tensors that a node of a traced graph gives."""
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else [value]
    return [part for part in values if isinstance(part, Tensor)]


def _name(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).split(".")[0]


def _kind(node: Node) -> str:
    """``view``, ``ours``, ``whole`` (a kernel of its own), ``across`` (a reduction over rows) or ``fused``."""
    name = _name(node)
    if node.op != "call_function" or name in VIEWS or name in CONSTANTS:
        return "view"
    if getattr(node.target, "namespace", "") == "penchant":
        return "ours"
    if name in WHOLE:
        return "whole"
    if name in ("sum", "mean") and len(node.args) > 1:
        (value, *_), dimensions = tensors_of(node.all_input_nodes[0]), node.args[1]
        last = [d % value.ndim for d in dimensions] == [value.ndim - 1]  # type: ignore[union-attr]
        return "fused" if last else "across"
    return "fused"


def _source(node: Node) -> Node:
    """The node that computed what a chain of views shows."""
    while node.op == "call_function" and _kind(node) == "view" and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _fused_kernel(part: Sequence[Node]) -> Kernel:
    inside = set(part)
    read_tensors = {piece for node in part for piece in _read_pieces(node, inside)}
    outputs = [node for node in part if _is_output(node, inside)]
    size = sum(tensor_bytes(value) for node in (*read_tensors, *outputs) for value in tensors_of(node))
    return Kernel("fused", 1, size)


def _reduction_kernel(node: Node, part_of: Mapping[Node, set[Node]]) -> Kernel:
    """The kernels of a reduction over rows.

    Where a part reduces the last dimension of the same tensors, both are one kernel, which reads them once, and a small
    one that adds up its sums: `mix_order_reduction` of torch 2.11 and later, without its least sizes.
    """
    read_tensors = {*_read_by_reduction(node, part_of)}
    elements = tensors_of(node.all_input_nodes[0])[0].numel()
    for part in part_of.values():
        pieces = {piece for member in part for piece in _read_pieces(member, part)}
        shared = {piece for piece in pieces & read_tensors if tensors_of(piece)[0].numel() == elements}
        if shared and any(_name(member) in ("sum", "mean") for member in part):
            return Kernel(
                "sum",
                1,
                sum(tensor_bytes(value) for piece in {node, *read_tensors - shared} for value in tensors_of(piece)),
            )
    return Kernel("sum", 2, sum(tensor_bytes(value) for piece in {node, *read_tensors} for value in tensors_of(piece)))


def _read_by_reduction(node: Node, part_of: Mapping[Node, set[Node]]) -> Iterator[Node]:
    """What a reduction over rows reads: the inputs of the operations on elements that lead to it and are not kept."""
    for source in map(_source, node.all_input_nodes):
        part = part_of.get(source)
        if part is None or _name(source) in ("sum", "mean") or _is_output(source, part):
            yield source
        else:
            yield from _read_by_reduction(source, part_of)


def _is_output(node: Node, part: set[Node]) -> bool:
    """Whether a part's kernel writes a node's result: only a reduction over rows computes it anew as it reads."""
    return any(user not in part and _kind(user) != "across" for user in _users(node))


def _read_pieces(node: Node, inside: set[Node]) -> Iterator[Node]:
    """What a node reads of results of other kernels: of one that was split only the pieces that it reads."""
    for source in node.all_input_nodes:
        while source not in inside and source.op == "call_function" and _kind(source) == "view":
            if _name(source) == "getitem" and _name(source.all_input_nodes[0]).startswith("split"):
                break
            source = source.all_input_nodes[0]
        if source not in inside and _source(source) not in inside:
            yield source


def _users(node: Node) -> Iterator[Node]:
    """The nodes that read a node's result, also through views."""
    for user in node.users:
        if user.op == "call_function" and _kind(user) == "view":
            yield from _users(user)
        else:
            yield user


def _join(cluster: dict[Node, Node], a: Node, b: Node) -> None:
    cluster[_root(cluster, a)] = _root(cluster, b)


def _root(cluster: dict[Node, Node], node: Node) -> Node:
    while cluster[node] is not node:
        node = cluster[node]
    return node


def tensor_bytes(tensor: Any) -> int:
    """Bytes of a tensor's elements in memory: expanded ones count once."""
    elements = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= int(length) if stride else 1
    return elements * tensor.element_size()
