"""How fast a step could be: the floating-point operations it needs, over the machine's measured matrix rate.

What is counted is what the loss needs, whatever a side does: each prompt once, each query with the keys it must see,
the head for the tokens of responses only; backward is twice forward. Left out: everything that is not a matrix product
(norms, softmax, the optimizer), and that the last layer needs no more of a prompt than keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence

from workloads import Group, Shape


def step_flops(shape: Shape, step: Sequence[Group], rank: int | None = None) -> int:
    """Floating-point operations of one training step.

    Args:
        rank: of the adapters where only these are trained: a frozen weight's own gradient is then not needed.
    """
    forward = _forward_flops(shape, step)
    if rank is None:
        return 3 * forward
    tree = sum(len(prompt) + sum(map(len, responses)) for prompt, responses in step)
    # Activations' gradients cost as much as forward; of attention's products both operands have gradients.
    return 2 * forward + _attention_flops(shape, step) + 3 * 2 * _adapter_weights(shape, rank) * tree


def _forward_flops(shape: Shape, step: Sequence[Group]) -> int:
    targets = sum(len(r) for _, responses in step for r in responses)
    tree = targets + sum(len(prompt) for prompt, _ in step)
    return 2 * (shape.backbone_weights * tree + shape.head_weights * targets) + _attention_flops(shape, step)


def _attention_flops(shape: Shape, step: Sequence[Group]) -> int:
    """Of the scores and of the weighted sums, each 2 operations a query, key, head and element."""
    pairs = sum(seen_keys(len(prompt), [len(r) for r in responses]) for prompt, responses in step)
    return 2 * 2 * shape.layers * shape.heads * shape.head_size * pairs


def seen_keys(prompt: int, responses: Sequence[int]) -> int:
    """(query, key) pairs of one group: a prompt's tokens see those before them, a response's also the whole prompt."""
    return prompt * (prompt + 1) // 2 + sum(n * prompt + n * (n + 1) // 2 for n in responses)


def _adapter_weights(shape: Shape, rank: int) -> int:
    """Of rank-r adapters on every linear layer: r (inputs + outputs) each."""
    inner, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    sides = 2 * (shape.hidden + inner) + 2 * (shape.hidden + kv) + 3 * (shape.hidden + shape.intermediate)
    return shape.layers * rank * sides
