"""Rows that are decoded token by token on one key-value cache: prompts read once, rows that leave and join.

Shapes: N rows, L columns of the cache, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from penchant.data.tokenized import Ids
from penchant.engine.attention import TREE
from penchant.engine.padded import pad_left
from penchant.models.multimodal import set_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class CachedRows:
    """N rows that share one key-value cache.

    Attributes:
        mask: [N, L], 0 where a column holds no token of the row.
        padding: of every row the columns on the left that hold no token of it.
        positions: [N] of the latest token.
        logits: [N, V] of the next token.
    """

    model: PreTrainedModel
    cache: Any
    mask: Tensor
    padding: list[int]
    positions: Tensor
    logits: Tensor

    def feed(self, tokens: Sequence[int] | Tensor) -> None:
        """Append one token to each row and compute the logits of the next.

        Args:
            tokens: [N] ids; nothing waits for a tensor on the model's device.
        """
        device = self.mask.device
        self.mask = torch.cat([self.mask, torch.ones(len(tokens), 1, dtype=self.mask.dtype, device=device)], 1)
        self.positions = self.positions + 1
        with mask_of_padding(any(self.padding)):
            out = self.model(
                input_ids=torch.as_tensor(tokens, device=device)[:, None],
                attention_mask=self.mask,
                past_key_values=self.cache,
                use_cache=True,
                **accepted_arguments(self.model, position_ids=self.positions[:, None]),
            )
        self.cache, self.logits = out.past_key_values, out.logits[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows only; a row may come several times."""
        index = torch.tensor(rows, device=self.mask.device)
        _select_rows(self.cache, index)
        self.padding = [self.padding[row] for row in rows]
        self.mask, self.positions, self.logits = self.mask[index], self.positions[index], self.logits[index]

    def join(self, newcomers: CachedRows) -> None:
        """Append other rows of the same model; both caches are of `joinable_cache`."""
        width = max(self.mask.shape[1], newcomers.mask.shape[1])
        for layer, addition in zip(self.cache.layers, newcomers.cache.layers, strict=True):
            _join_layers(layer, addition, width)
        row_sets = (self, newcomers)
        self.padding = [width - rows.mask.shape[1] + columns for rows in row_sets for columns in rows.padding]
        self.mask = torch.cat([pad_left(rows.mask, width) for rows in row_sets])
        self.positions = torch.cat([self.positions, newcomers.positions])
        self.logits = torch.cat([self.logits, newcomers.logits])

    def trim(self) -> None:
        """Drop columns on the left that no row uses any more; the cache is of `joinable_cache`."""
        unused = min(self.padding)
        if unused:
            for layer in self.cache.layers:
                if getattr(layer, "keys", None) is not None:
                    layer.keys, layer.values = layer.keys[..., unused:, :], layer.values[..., unused:, :]
            self.padding = [columns - unused for columns in self.padding]
            self.mask = self.mask[:, unused:]


@dataclass
class UncachedRows:
    """`CachedRows` for a model whose cache cannot be shared (Mamba): every token reads every row anew, unpadded.

    Attributes:
        rows: the tokens of every row, each [T] on the model's device.
        logits: [N, V] of the next token.
    """

    model: PreTrainedModel
    rows: list[Tensor]
    logits: Tensor

    @classmethod
    def from_prompts(cls, model: PreTrainedModel, prompts: Sequence[Ids]) -> UncachedRows:
        """One row for each prompt."""
        rows = [torch.from_numpy(prompt).to(model.device) for prompt in prompts]
        return cls(model, rows, torch.stack([next_logits(model, row) for row in rows]))

    def feed(self, tokens: Sequence[int] | Tensor) -> None:
        """Append one of the tokens [N] to each row and compute the logits of the next."""
        new_ids = torch.as_tensor(tokens, device=self.logits.device)[:, None]
        self.rows = [torch.cat([row, token]) for row, token in zip(self.rows, new_ids, strict=True)]
        self.logits = torch.stack([next_logits(self.model, row) for row in self.rows])

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows only; a row may come several times."""
        self.rows, self.logits = [self.rows[row] for row in rows], self.logits[list(rows)]

    def join(self, newcomers: UncachedRows) -> None:
        """Append other rows of the same model."""
        self.rows = [*self.rows, *newcomers.rows]
        self.logits = torch.cat([self.logits, newcomers.logits])

    def trim(self) -> None:
        """Do nothing: there is no cache."""


def next_logits(model: PreTrainedModel, row: Tensor) -> Tensor:
    """Logits [V] of the token after one row of ids [T] on the model's device, computed from the whole row."""
    last: Tensor = model(input_ids=row[None], use_cache=False).logits[0, -1]
    return last


def read_prompts(model: PreTrainedModel, prompts: Sequence[Ids], cache: Any = None) -> CachedRows | UncachedRows:
    """One row for each prompt, all read in one padded batch.

    Args:
        cache: the cache to fill; by default the one that the model makes.
    """
    width = max(map(len, prompts))
    rows = [torch.from_numpy(prompt) for prompt in prompts]
    ids = torch.stack([pad_left(row, width) for row in rows]).to(model.device)
    mask = torch.stack([pad_left(torch.ones_like(row), width) for row in rows]).to(model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = model(
        input_ids=ids,
        attention_mask=mask,
        use_cache=True,
        **({} if cache is None else {"past_key_values": cache}),
        **accepted_arguments(model, position_ids=positions, logits_to_keep=1),
    )
    filled = getattr(out, "past_key_values", None)
    if filled is None or not hasattr(filled, "batch_repeat_interleave"):
        return UncachedRows.from_prompts(model, prompts)
    padding = [width - len(prompt) for prompt in prompts]
    return CachedRows(model, filled, mask, padding, positions[:, -1], out.logits[:, -1])


def read_joinable(model: PreTrainedModel, prompts: Sequence[Ids]) -> CachedRows | UncachedRows:
    """`read_prompts` for rows that `join` others."""
    cache = joinable_cache(model)
    return UncachedRows.from_prompts(model, prompts) if cache is None else read_prompts(model, prompts, cache)


def joinable_cache(model: PreTrainedModel) -> Any:
    """An empty cache whose rows may be of different lengths; None where the model has no such cache.

    Layers with a sliding window hold the whole row: the attention mask has the window.
    """
    from transformers.cache_utils import (
        DynamicCache,
        DynamicLayer,
        DynamicSlidingWindowLayer,
        LinearAttentionAndFullAttentionLayer,
        LinearAttentionLayer,
    )

    if "past_key_values" not in _argument_names(model):
        return None
    try:
        cache = DynamicCache(config=model.config)
    except (KeyError, AttributeError, ValueError):  # Layers of a kind that the library has no cache for.
        return None
    cache.layers = [DynamicLayer() if type(layer) is DynamicSlidingWindowLayer else layer for layer in cache.layers]
    joinable = {DynamicLayer, LinearAttentionLayer, LinearAttentionAndFullAttentionLayer}
    return cache if {type(layer) for layer in cache.layers} <= joinable else None


def accepted_arguments(model: PreTrainedModel, **arguments: Any) -> dict[str, Any]:
    """The arguments that this model's forward accepts; some models compute positions from the mask themselves."""
    names = _argument_names(model)
    return {name: value for name, value in arguments.items() if name in names}


def _argument_names(model: Any) -> frozenset[str]:
    """Argument names of a model's forward; for an adapter, which passes all on, of its base model's."""
    forward = model.get_base_model().forward if hasattr(model, "get_base_model") else model.forward
    return _names_of(getattr(forward, "__func__", forward))


@lru_cache(maxsize=16)
def _names_of(function: Callable[..., Any]) -> frozenset[str]:
    """A function's argument names, cached because every token needs them."""
    return frozenset(signature(function).parameters)


def _select_rows(cache: Any, index: Tensor) -> None:
    """Keep these rows of the cache only; a row may come several times."""
    if all(hasattr(layer, "batch_select_indices") for layer in cache.layers):
        cache.batch_select_indices(index)
    else:  # Layers of linear attention hold states, which only beam search's way of selecting knows.
        cache.reorder_cache(index)


def _join_layers(layer: Any, addition: Any, width: int) -> None:
    """Append another layer's rows to a layer: keys and values padded to `width` columns, states unchanged."""
    if getattr(layer, "keys", None) is not None:
        for name in ("keys", "values"):
            tensors = (getattr(part, name) for part in (layer, addition))
            setattr(layer, name, torch.cat([pad_left(tensor, width, dim=-2) for tensor in tensors]))
    for name in ("conv_states", "recurrent_states"):
        states = getattr(layer, name, {})
        for index, state in states.items():
            if state is not None:
                states[index] = torch.cat([state, getattr(addition, name)[index]])


_IS_PADDED: ContextVar[bool | None] = ContextVar("is_padded", default=None)
"""Whether a row of the mask that transformers is given is padded; None where only the mask itself says it."""


@contextmanager
def mask_of_padding(is_padded: bool) -> Iterator[None]:
    """Tell transformers whether a row is padded; it would read the mask, for which the host waits at every token."""
    _register_mask()
    token = _IS_PADDED.set(is_padded)
    try:
        yield
    finally:
        _IS_PADDED.reset(token)


@lru_cache(maxsize=1)
def _register_mask() -> None:
    """Put a mask that knows `_IS_PADDED` in front of transformers' own, which it equals."""
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    def mask(
        *args: Any, attention_mask: Tensor | None = None, allow_is_causal_skip: bool = True, **options: Any
    ) -> Tensor | None:
        is_padded = _IS_PADDED.get()
        if is_padded is not None:
            # transformers reads a mask to learn whether it can do without: not where there is none, or it must keep it.
            attention_mask = attention_mask if is_padded else None
            allow_is_causal_skip = allow_is_causal_skip and not is_padded
        library_mask: Tensor | None = sdpa_mask(
            *args, attention_mask=attention_mask, allow_is_causal_skip=allow_is_causal_skip, **options
        )
        return library_mask

    AttentionMaskInterface.register("sdpa", mask)


@contextmanager
def plain_layers(model: PreTrainedModel) -> Iterator[None]:
    """Use the library's attention while tokens are generated: the tree computes whole rows only."""
    implementation = model.config._attn_implementation
    if implementation == TREE:
        set_attention(model, "sdpa" if model._supports_sdpa else "eager")
    try:
        yield
    finally:
        if implementation == TREE:
            set_attention(model, implementation)
