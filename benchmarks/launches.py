"""What one optimizer step asks of a card, counted without one: python benchmarks/launches.py [CASE ...] [--budget N]

The real loop runs one step on tensors without data of a CUDA device that computes nothing (`fake_card`), so the code
paths of a card are the ones that run. Counted are kernel launches, copies to the card that block the host, values read
back from it, bytes that the kernels read and write, and casts of weights, by part of the step. The cases of sampling
count some tokens of every row instead, the prompts already read.

A launch count is of kernels as this torch's CUDA build launches them: 1 an operation, other numbers in `KERNELS`. The
milliseconds are a model, no measurement: for every operation the largest of its bytes over the card's memory rate, its
floating-point operations over the matrix rate, and the time of a launch.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "speed")]

import fake_card  # noqa: E402

if __name__ == "__main__":
    fake_card.load()  # before torch is imported by anything

import numpy as np  # noqa: E402
import torch  # noqa: E402
from fused_kernels import graph_kernels, tensor_bytes, weight_casts  # noqa: E402
from torch import Tensor  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # noqa: E402
from torch.fx import GraphModule, Interpreter, Node  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map_only  # noqa: E402
from torch.utils.flop_counter import flop_registry  # noqa: E402
from workloads import WORKLOADS, Workload, llama_config  # noqa: E402

from penchant import parse_config  # noqa: E402
from penchant.config.run import RunConfig  # noqa: E402
from penchant.data.groups import PreferenceGroup  # noqa: E402
from penchant.data.tokenized import TokenizedGroup  # noqa: E402
from penchant.engine import sampling as sampling_module  # noqa: E402
from penchant.engine import tree as tree_module  # noqa: E402
from penchant.engine.distributed import World  # noqa: E402
from penchant.engine.kernels import compiled, layer_fusion, linear_log_probs, output_layer  # noqa: E402
from penchant.engine.kernels.compiled import compile_layers  # noqa: E402
from penchant.engine.memory import replace_tensors  # noqa: E402
from penchant.planning.model import ModelSpec, blank_model, shallow  # noqa: E402
from penchant.training import backward as backward_module  # noqa: E402
from penchant.training import loop as loop_module  # noqa: E402
from penchant.training.batches import FixedDataset, Order, Split  # noqa: E402
from penchant.training.loop import Loop, LoopConfig  # noqa: E402
from penchant.training.stop_signals import StopSignals  # noqa: E402

CARD = torch.device("cuda", 0)

MEMORY_RATE, MATRIX_RATE, ATTENTION_RATE, LAUNCH_SECONDS = 3.6e12, 620e12, 250e12, 2e-6
"""Of an H200: bytes and floating-point operations per second, as `benchmarks/results` measured them."""

VIEWS = {
    "view",
    "_unsafe_view",
    "transpose",
    "t",
    "permute",
    "expand",
    "slice",
    "select",
    "unsqueeze",
    "squeeze",
    "split",
    "split_with_sizes",
    "detach",
    "alias",
    "as_strided",
    "empty",
    "new_empty",
    "empty_like",
    "empty_strided",
    "new_empty_strided",
    "unbind",
    "reshape",
    "_reshape_alias",
    "narrow",
    "diagonal",
    "lift_fresh",
    "unfold",
    "set_",
    "chunk",
    "view_as",
    "resize_",
    "is_same_size",
    "is_pinned",
}
"""Operations that launch nothing."""

WRITTEN_ONLY = {"copy_", "zero_", "fill_", "_foreach_copy_", "_foreach_zero_"}
"""Operations in place that do not read what they replace."""

KERNELS = {
    "segment_reduce": 2,
    "_segment_reduce_backward": 2,
    "index_put": 3,
    "index_put_": 3,
    "embedding_dense_backward": 6,
    "_varlen_attn_backward": 5,
    "_flash_attention_backward": 5,
    "_scaled_dot_product_flash_attention_backward": 3,
    "_scaled_dot_product_efficient_attention_backward": 3,
    "cumsum": 2,
    "sort": 4,
    "nonzero": 3,
}
"""Launches of operations that need several, by a profiler on an H200."""

FORMULA_KERNELS = {"norm_backward": 3}
"""Launches of the compiled formulas that need several."""

FOREACH_BLOCKS, FOREACH_ELEMENTS = 320, 65_536
"""Blocks of a launch of a multi-tensor operation, and elements of a block."""


@dataclass
class Tally:
    """What one part of a step asks of the card.

    Attributes:
        operations: operations that Python or autograd dispatched, views included: the host's work.
        launches: kernels that the host launches.
        copies_in: copies to the card that block the host; `reads`: values read from it, which do too.
        casts: of a weight to another dtype.
        milliseconds: the modelled time of the card.
    """

    operations: int = 0
    launches: float = 0.0
    copies_in: int = 0
    reads: int = 0
    casts: int = 0
    gigabytes: float = 0.0
    teraflops: float = 0.0
    milliseconds: float = 0.0
    by_operation: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, name) + getattr(other, name) for name in vars(self)))

    def __rmul__(self, factor: int) -> Tally:
        numbers = (factor * value for value in [*vars(self).values()][:-1])
        return Tally(*numbers, Counter({name: factor * n for name, n in self.by_operation.items()}))

    def __sub__(self, other: Tally) -> Tally:
        numbers = (a - b for a, b in [*zip(vars(self).values(), vars(other).values(), strict=True)][:-1])
        return Tally(*numbers, self.by_operation - other.by_operation)


class CardCounter(TorchDispatchMode):
    """Adds up what every operation asks of the card, for the part of the step that runs.

    Attributes:
        part: the name that operations are counted under.
        tallies: part -> what it asked for.
        weights: ids of the storages whose casts are counted.
        compilations: graphs of layers that were compiled.
        attention_flops: floating-point operations of one layer's attention, forward, in one micro-batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.part, self.tallies = "other", dict[str, Tally]()
        self.weights: set[int] = set()
        self.attention_flops = 0.0
        self.compilations = 0
        self._silent = False

    @classmethod
    def is_infra_mode(cls) -> bool:
        """True, so that layers are compiled while it is active."""
        return True

    @property
    def tally(self) -> Tally:
        return self.tallies.setdefault(self.part, Tally())

    @contextmanager
    def inside(self, part: str) -> Iterator[None]:
        """Count under this part inside the context."""
        outer, self.part = self.part, part
        try:
            yield
        finally:
            self.part = outer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        if name == "_local_scalar_dense":
            self._read(args[0])
            return _number(args[0])
        if name == "nonzero":
            self._read(args[0])
            return args[0].new_zeros((args[0].numel(), args[0].ndim), dtype=torch.int64)
        if name == "index" and any(mask is not None and mask.dtype == torch.bool for mask in args[1]):
            # How many are chosen is read from the card; without data, all are.
            (mask,) = args[1]
            self._read(mask)
            return args[0].reshape(-1)[: mask.numel()].clone()
        if func.namespace == "penchant":
            # An operator of ours: its kernels are counted, at a call as at the next trace of it.
            self.tally.operations += 1
            with self:
                return func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *args, **kwargs)
        result = func(*args, **kwargs)
        if not self._silent and func.namespace not in ("prim", "profiler"):
            self._count(func, name, args, kwargs, result)
        return result

    def _read(self, tensor: Tensor) -> None:
        if tensor.is_cuda:
            self.tally.reads += 1
            self.tally.launches += 1

    def backend(self, graph: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """A compiler of layers that counts a graph's kernels when it runs, on tensors without data."""
        from functorch.compile import min_cut_rematerialization_partition
        from torch._dynamo.backends.common import aot_autograd
        from torch._inductor.decomposition import select_decomp_table

        self.compilations += 1

        def compiled(traced: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
            def run(arguments: list[Any]) -> Any:
                values = [*arguments]
                arguments.clear()
                result = _Quietly(traced, self).run(*values)
                self.tally.operations += 1
                for kernel in graph_kernels(traced):
                    self.add(kernel.name, kernel.launches, kernel.size, kernel.flops)
                self.tally.casts += weight_casts(traced)
                return result

            run._boxed_call = True  # type: ignore[attr-defined]
            return run

        compiler = aot_autograd(
            fw_compiler=compiled,
            bw_compiler=compiled,
            partition_fn=min_cut_rematerialization_partition,
            decompositions=select_decomp_table(),
        )
        call: Callable[..., Any] = compiler(graph, inputs)
        return call

    def read_list(self, tensor: Tensor) -> Any:
        """A list that stands for a tensor's values, which one copy reads."""
        self._read(tensor)
        return np.ones(tensor.shape, float if tensor.is_floating_point() else int).tolist()

    def _count(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if not any(x.is_cuda for x in inputs + outputs):
            return
        tally = self.tally
        tally.operations += 1
        if name in ("_to_copy", "copy_") and len({x.device.type for x in inputs + outputs}) == 2:
            # A copy from pinned memory does not wait; fake tensors on the host say whether they are pinned.
            is_in = outputs[0].is_cuda
            waits = not (kwargs.get("non_blocking", False) or (name == "copy_" and len(args) > 2 and args[2]))
            tally.copies_in += is_in and waits
            tally.reads += not is_in and waits
            tally.launches += 1
            return
        if name in VIEWS:
            return
        if name == "_to_copy" and inputs[0].untyped_storage()._cdata in self.weights:
            tally.casts += 1
        launches = _launches(name, args)
        size, flops = _bytes(name, args, inputs, outputs), self._flops(func, name, args, kwargs, result)
        self.add(name, launches, size, flops)

    def add(self, name: str, launches: float, size: float, flops: float = 0.0) -> None:
        """Add one operation of so many launches, bytes and floating-point operations."""
        rate = ATTENTION_RATE if "att" in name else MATRIX_RATE
        tally = self.tally
        tally.launches += launches
        tally.gigabytes += size / 1e9
        tally.teraflops += flops / 1e12
        tally.milliseconds += 1e3 * max(size / MEMORY_RATE, flops / rate, LAUNCH_SECONDS * launches)
        tally.by_operation[name] += launches

    def formula(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a compiled formula, which is one kernel however many operations it has."""
        self._silent = True
        try:
            result = call(*arguments)
        finally:
            self._silent = False
        tensors = [x for x in tree_leaves((arguments, result)) if isinstance(x, Tensor)]
        self.tally.operations += 1
        self.add(name, FORMULA_KERNELS.get(name, 1), sum(map(tensor_bytes, tensors)))
        return result

    def _flops(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> float:
        if "attn" in name or "attention" in name:
            calls = 3 if name.startswith("_flash") else 1  # of a row that holds all prompts first
            return self.attention_flops / calls * (2.5 if "backward" in name else 1.0)
        formula = flop_registry.get(func._overloadpacket)
        # A product's dtype and buffer are no operands of it.
        operands = [x for x in args if not isinstance(x, torch.dtype)]
        options = {key: x for key, x in kwargs.items() if key not in ("out", "out_dtype")}
        return 0.0 if formula is None else float(formula(*operands, **options, out_val=result))


class _Quietly(Interpreter):
    """Runs a compiled graph node by node: its own operations were counted as kernels, our operators count here."""

    def __init__(self, graph: GraphModule, counter: CardCounter) -> None:
        super().__init__(graph)
        self._counter = counter

    def run_node(self, n: Node) -> Any:
        is_ours = getattr(n.target, "namespace", "") == "penchant"
        self._counter._silent = not is_ours
        try:
            result = super().run_node(n)
            self._counter._silent = True
            # The sizes of this run, for the kernels' bytes: the traced ones are symbols. A gradient that was held here
            # could not become a parameter's own.
            n.meta["val"] = tree_map_only(Tensor, Tensor.detach, result)
        finally:
            self._counter._silent = False
        return result


def _number(tensor: Tensor) -> float | int | bool:
    """A number that stands for the one that a tensor without data does not have."""
    return 1.0 if tensor.is_floating_point() else tensor.dtype == torch.bool or 1


def _bytes(name: str, args: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    """Bytes that an operation reads and writes."""
    if name == "sort" and _sorts_rows(inputs[0]):
        # 8 bytes of row and column go along with each key. All rows are sorted as one, a byte of the keys a pass, after
        # a look at all keys; then by row, in one pass; the columns and the keys are written last.
        key = inputs[0].element_size()
        return inputs[0].numel() * (8 + key + 2 * key * (key + 8) + 3 * 8 + 8 + 8 + 2 * key)
    if name in ("embedding", "index_select", "gather"):
        return 2 * tensor_bytes(outputs[0])
    if name == "index_add_":
        return 3 * tensor_bytes(args[3])
    if name == "index_put_":
        return 3 * tensor_bytes(args[2])
    if name == "_fused_adamw_":  # reads weight, gradient and two moments, writes all but the gradient
        return 7 * sum(map(tensor_bytes, args[0]))
    replaced_tensors = tree_leaves(args[0]) if name.endswith("_") and name not in WRITTEN_ONLY else []
    tensors = {id(x): x for x in (*inputs, *outputs)}
    return sum(map(tensor_bytes, tensors.values())) + sum(
        tensor_bytes(x) for x in replaced_tensors if isinstance(x, Tensor)
    )


def _sorts_rows(keys: Tensor) -> bool:
    """Whether torch sorts some long rows as one (`segmented_sort_pairs_by_full_sort` in its SortStable.cu)."""
    rows = keys.numel() // max(1, keys.shape[-1])
    return 1 < rows < 128 and keys.shape[-1] > 4096


def _launches(name: str, args: Any) -> float:
    """Launches of one operation; of one on a list of tensors the share of a launch that its blocks or tensors fill."""
    if name == "sort" and _sorts_rows(args[0]):
        return 7 + args[0].element_size()  # As `_bytes` has it: two sorts have two launches each beside their passes.
    if not name.startswith(("_foreach", "_fused_adam")):
        return KERNELS.get(name, 1)
    tensors = tree_leaves(args[0])
    blocks = sum(-(-tensor.numel() // FOREACH_ELEMENTS) for tensor in tensors)
    shares = blocks / FOREACH_BLOCKS, len(tensors) / (36 if "adam" in name else 110)
    return max(shares) + (shares[1] if name == "_foreach_norm" else 0.0)


@dataclass(frozen=True)
class Case:
    """A step to count.

    Attributes:
        shape: transformers configuration of the model.
        prompt, response: tokens of every prompt and response.
        candidates: of every group.
        batch: groups of a step.
        settings: configuration keys besides the model's and the batch's.
    """

    shape: Any
    prompt: int
    response: int
    candidates: int
    batch: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens of a step, prompts once."""
        return self.batch * (self.prompt + self.candidates * self.response)

    def groups(self) -> list[TokenizedGroup]:
        """Groups of random ids."""
        draw, vocabulary = np.random.default_rng(0), self.shape.get_text_config().vocab_size
        preferences = PreferenceGroup("", tuple(map(str, range(self.candidates))), preferred=0)

        def ids(length: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
            return draw.integers(4, vocabulary, length)

        return [
            TokenizedGroup(ids(self.prompt), tuple(ids(self.response) for _ in range(self.candidates)), preferences)
            for _ in range(self.batch)
        ]


@dataclass(frozen=True)
class SamplingCase:
    """Sampled tokens to count.

    Attributes:
        shape: transformers configuration of the model.
        prompts: tokens of every prompt.
        samples: responses to each prompt.
        top_p: probability of the set of tokens to draw from.
    """

    shape: Any
    prompts: tuple[int, ...]
    samples: int
    top_p: float = 1.0


def cases() -> dict[str, Callable[[], Case | SamplingCase]]:
    """The counted steps by name, made when they are asked for."""
    from transformers import Gemma2Config, MistralConfig

    def of_workload(workload: Workload, **settings: Any) -> Callable[[], Case]:
        if workload.rank:
            settings = {"lora": {"rank": workload.rank}, **settings}
        sizes = workload.prompt[0], workload.response[0], 1 + workload.negatives[0], workload.batch

        def case() -> Case:
            shape = llama_config(workload.shape)
            shape.pad_token_id = None  # As in the checkpoints of these shapes: an embedding of it costs two kernels.
            return Case(shape, *sizes, settings)

        return case

    def of_sampling(prompts: tuple[int, ...], top_p: float, tiny: bool = False) -> Callable[[], SamplingCase]:
        workload = WORKLOADS["qwen_0.5b_pairs"]
        shape = replace(workload.tiny().shape, vocabulary=workload.shape.vocabulary) if tiny else workload.shape
        return lambda: SamplingCase(llama_config(shape), prompts, samples=4, top_p=top_p)

    names = ("qwen_0.5b_pairs", "qwen_0.5b_k8", "llama_8b_pairs", "llama_8b_k8")
    return {
        **{name: of_workload(WORKLOADS[name]) for name in names},
        "coupled": of_workload(WORKLOADS["qwen_0.5b_pairs"], objective={"name": "beta_dpo"}),
        "tiny_coupled": of_workload(WORKLOADS["qwen_0.5b_pairs"].tiny(), objective={"name": "beta_dpo"}),
        "gemma2_2b_pairs": lambda: Case(Gemma2Config(num_hidden_layers=26), 256, 256, 2, 16),
        "sampling": of_sampling((512, 512, 512, 512), 1.0),
        "sampling_padded": of_sampling((512, 384, 256, 128), 0.9),
        "tiny_sampling": of_sampling((16, 12, 8, 4), 0.9, tiny=True),
        "mistral_7b_pairs": lambda: Case(MistralConfig(sliding_window=1024), 1280, 256, 2, 8, {"lora": {"rank": 16}}),
    }


def run_config(case: Case, budget: int, output: str) -> RunConfig:
    """The configuration of a step in bfloat16, cut at a token budget."""
    values = {
        "model": "model",
        "data": {"train": "data"},
        "output": output,
        "objective": {"name": "dpo", "beta": 0.1},
        "training": {"dtype": "bfloat16", "token_budget": budget, "batch_size": case.batch, "max_steps": 2},
        "logging": {"every": 1},
        **case.settings,
    }
    return parse_config(values, "the counted step")


PARTS: Sequence[tuple[Any, str, str]] = (
    (tree_module, "pack", "packing"),
    (backward_module, "objective_tables", "masks and references"),
    (backward_module.Result, "add", "metrics"),
    (tree_module, "TreePlan", "plan of the row"),
    (tree_module, "head_log_probs", "head forward"),
    (linear_log_probs._LinearLogProbs, "backward", "head backward"),
    (Tensor, "backward", "layers backward"),
    (loop_module, "gradient_norm", "norm and clipping"),
    (loop_module, "scale_and_clip", "norm and clipping"),
    (Loop, "_reduce", "sums of the step"),
    (torch.optim.AdamW, "step", "optimizer"),
)
"""Functions and the part of the step that they are; the objective and the layers' forward are added to them."""


def in_part(counter: CardCounter, function: Callable[..., Any], part: str) -> Callable[..., Any]:
    """The function, whose operations are counted under a part."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with counter.inside(part):
            return function(*args, **kwargs)

    return call


@contextmanager
def named_parts(counter: CardCounter, loop: Loop) -> Iterator[None]:
    """Name the parts of a step in the counter."""
    layers_of = tree_module.language_model
    objective = loop.objective

    def named_layers(model: Any) -> Callable[..., Any]:
        return in_part(counter, layers_of(model), "layers forward")

    with ExitStack() as stack:
        for owner, name, part in PARTS:
            function = getattr(owner, name)
            wrapped = in_part(counter, function, part)
            is_static = isinstance(vars(owner).get(name), staticmethod)
            stack.enter_context(mock.patch.object(owner, name, staticmethod(wrapped) if is_static else wrapped))
        stack.enter_context(
            mock.patch.object(
                tree_module, "language_model", lambda model: in_part(counter, layers_of(model), "layers forward")
            )
        )
        stack.enter_context(
            mock.patch.object(type(objective), "__call__", in_part(counter, type(objective).__call__, "objective"))
        )
        # Where memory is counted a few passes of the head stand for all; here all are counted.
        stack.enter_context(mock.patch.object(output_layer, "FakeTensor", ()))
        formula_call = compiled._CompiledOnGpu.__call__

        def one_kernel(formula: Any, tensor: Tensor, *arguments: Any) -> Any:
            if not tensor.is_cuda:
                return formula_call(formula, tensor, *arguments)
            return counter.formula(formula._formula.__name__, formula._formula, tensor, *arguments)

        stack.enter_context(mock.patch.object(compiled._CompiledOnGpu, "__call__", one_kernel))
        yield


def _depths(shape: Any) -> tuple[int, int]:
    """Layers of the two models that are counted; deeper ones repeat what the larger has more than the smaller."""
    kinds = getattr(shape.get_text_config(), "layer_types", None) or ["full_attention"]
    period = len(set(kinds))
    return period, 2 * period


def count_step(case: Case, budget: int) -> dict[str, Tally]:
    """What one optimizer step asks of the card, by part, from the counts of two shallow models.

    Args:
        budget: tokens of a micro-batch.
    """
    return _at_full_depth(case.shape, lambda shape: _count_whole(replace(case, shape=shape), budget))


def _at_full_depth(shape: Any, count: Callable[[Any], dict[str, Tally]]) -> dict[str, Tally]:
    """The counts of a model by part, from those of two shallow ones of its shape."""
    depth, vocabulary = shape.get_text_config().num_hidden_layers, shape.get_text_config().vocab_size
    depths = _depths(shape)
    small, large = (count(shallow(shape, layers, vocabulary)) for layers in depths)
    repetitions = (depth - depths[1]) // (depths[1] - depths[0])
    return {part: tally + repetitions * (tally - small.get(part, Tally())) for part, tally in large.items()}


SAMPLED_TOKENS = 8
"""Tokens of every row whose sampling is counted, after as many that are not."""


def count_sampling(case: SamplingCase) -> dict[str, Tally]:
    """What `SAMPLED_TOKENS` tokens of every row ask of the card, by part, prompts not counted."""

    def count(shape: Any) -> dict[str, Tally]:
        # A longer response less a shorter one: its last tokens.
        shorter, longer = (_count_samples(replace(case, shape=shape), n * SAMPLED_TOKENS) for n in (1, 2))
        return {part: tally - shorter.get(part, Tally()) for part, tally in longer.items()}

    return _at_full_depth(case.shape, count)


def _count_samples(case: SamplingCase, tokens: int) -> dict[str, Tally]:
    from transformers import masking_utils

    counter, draw = CardCounter(), np.random.default_rng(0)
    vocabulary = case.shape.get_text_config().vocab_size
    prompts = [draw.integers(4, vocabulary, length) for length in case.prompts]
    with torch.device("meta"):
        model = blank_model(case.shape, False, torch.bfloat16).eval()
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        replace_tensors(model, CARD)
        stack.enter_context(mock.patch.object(FakeTensor, "tolist", lambda x: counter.read_list(x)))
        # Of tensors without data transformers does not ask whether a row is padded; of a card's it does.
        stack.enter_context(mock.patch.object(masking_utils, "is_tracing", return_value=False))
        # A card's attention is one kernel.
        attend = torch.nn.functional.scaled_dot_product_attention

        def attention(*tensors: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
            return counter.formula("attention", functools.partial(attend, **options), *tensors, attn_mask)

        stack.enter_context(mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", attention))
        is_even = len(set(case.prompts)) == 1
        stack.enter_context(mock.patch.object(masking_utils, "fast_all", lambda mask: bool(mask.sum() > 0) and is_even))
        for owner, name, part in (
            (sampling_module, "choose_tokens", "choosing tokens"),
            (model.get_decoder(), "forward", "layers"),
            (model.get_output_embeddings(), "forward", "output layer"),
        ):
            stack.enter_context(mock.patch.object(owner, name, in_part(counter, getattr(owner, name), part)))
        with counter:
            sampling = sampling_module.Sampling(case.samples, tokens, top_p=case.top_p)
            sampling_module.sample(model, prompts, sampling, ends=[])
    return counter.tallies


def _count_whole(case: Case, budget: int) -> dict[str, Tally]:
    counter, groups = CardCounter(), case.groups()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        config = run_config(case, budget, folder)
        # On a card layers are compiled, not fused.
        with mock.patch.object(layer_fusion, "_fuse_modules"):
            scorer: Any = ModelSpec(config, case.shape, None).meta_scorer()  # type: ignore[arg-type]
        # A card takes the norm of all gradients together; torch does not for a subclass of tensors.
        stack.enter_context(mock.patch("torch.nn.utils.clip_grad._has_foreach_support", return_value=True))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        replace_tensors(scorer, CARD)
        compile_layers(scorer.model, counter.backend)
        references = [[[0.0] * case.candidates for _ in groups]]
        source = FixedDataset(Split(groups, references), Order(len(groups), case.batch, 0, shuffle=False))
        state = config.built_objective.initial_state(0)
        sections = LoopConfig(
            folder=Path(folder),
            resume_command="",
            objective=config.built_objective,
            training=config.training,
            evaluation=config.evaluation,
            checkpoints=config.checkpoints,
            logging=config.logging,
            head_decay=0.0,
        )
        loop = Loop(sections, scorer, source, state, Split([], []), None, World(0, 1, CARD), lambda: None)
        stack.enter_context(mock.patch.object(FakeTensor, "tolist", lambda x: counter.read_list(x)))
        signals = StopSignals("", 1.0)
        counter.attention_flops = _attention_flops(case, budget)
        counter.weights = {p.untyped_storage()._cdata for p in scorer.parameters() if p.ndim > 1}
        with named_parts(counter, loop), counter:
            # The optimizer makes its moments at its first step, and they stay.
            for parameter in scorer.parameters():
                parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
            loop.optimizer.step()
            loop.optimizer.zero_grad()
            counter.tallies.clear()
            loop.step(signals)
    return counter.tallies


def _attention_flops(case: Case, budget: int) -> float:
    """Operations of one layer's attention in one micro-batch, forward, averaged over the step."""
    text = case.shape.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    pairs = case.prompt * (case.prompt + 1) // 2 + case.candidates * (
        case.response * case.prompt + case.response * (case.response + 1) // 2
    )
    per_group = case.tokens // case.batch
    micro_batches = -(-case.batch // max(1, budget // per_group))
    return 4.0 * text.num_attention_heads * size * pairs * case.batch / micro_batches


def total(tallies: dict[str, Tally]) -> Tally:
    """The sum over all parts."""
    return functools.reduce(Tally.__add__, tallies.values())


def table(tallies: dict[str, Tally]) -> str:
    """The counts of a step, a line a part."""
    lines = [
        f"{'part':22}{'operations':>11}{'launches':>9}{'copies':>7}{'reads':>6}{'casts':>6}{'GB':>8}{'TFLOP':>8}{'ms':>8}"
    ]
    for part, tally in {**tallies, "total": total(tallies)}.items():
        lines.append(
            f"{part:22}{tally.operations:11}{tally.launches:9.0f}{tally.copies_in:7}{tally.reads:6}{tally.casts:6}"
            f"{tally.gigabytes:8.1f}{tally.teraflops:8.2f}{tally.milliseconds:8.1f}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the counts of some cases."""
    all_cases = cases()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(all_cases)}; default: all")
    parser.add_argument("--budget", type=int, help="tokens of a micro-batch; default: the whole step")
    parser.add_argument("--operations", type=int, default=0, metavar="N", help="list the N most launched by part")
    parser.add_argument("--json", action="store_true", help="the counts as one JSON document")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.cases if name not in all_cases]
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(all_cases)}")
    document = {}
    for name in options.cases or all_cases:
        case = all_cases[name]()
        if isinstance(case, SamplingCase):
            tallies = count_sampling(case)
            title = f"{name}, {SAMPLED_TOKENS} tokens of each of {len(case.prompts) * case.samples} rows"
        else:
            budget = options.budget or case.tokens
            tallies = count_step(case, budget)
            title = f"{name}, {case.tokens} tokens a step, micro-batches of {budget}"
        document[name] = {part: vars(tally) for part, tally in {**tallies, "total": total(tallies)}.items()}
        if options.json:
            continue
        print(f"{title}\n{table(tallies)}\n", flush=True)
        for part, tally in tallies.items() if options.operations else ():
            top_operations = ", ".join(f"{op} {n:.0f}" for op, n in tally.by_operation.most_common(options.operations))
            print(f"  {part}: {top_operations}")
    if options.json:
        print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
