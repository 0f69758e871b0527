"""Does a GPU compute what the CPU does? python benchmarks/gpu_checks.py [--device cpu]

A table of what was compared, how far apart it is and what is allowed; exit status 1 where anything is further apart or
fails. With `--device cpu` the same is done on the CPU with its own kernels, so that the script can be tried anywhere.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import io
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks" / "speed")]

from workloads import WORKLOADS, build  # noqa: E402

from penchant import parse_config, train  # noqa: E402
from penchant.data.groups import PreferenceGroup  # noqa: E402
from penchant.data.tokenized import TokenizedGroup  # noqa: E402
from penchant.data.trees import TreeBatch, pack, with_prompts_first  # noqa: E402
from penchant.engine import attention  # noqa: E402
from penchant.engine.kernels.layer_fusion import fuse_layers  # noqa: E402
from penchant.engine.scoring import precision  # noqa: E402
from penchant.engine.tree import TreeScorer, reorder_for_attention  # noqa: E402
from penchant.engine.tree_plan import TreePlan  # noqa: E402
from penchant.training.loop import Interrupted, Loop  # noqa: E402

Row = tuple[str, float, float]
"""What was compared, how far apart it is, and what is allowed."""

SHAPES = {
    "ragged": [(37, (12, 60, 5)), (1, (90,)), (300, (7, 64, 65, 128, 1, 33, 2, 19))],
    "pairs": [(128, (64, 64)), (256, (200, 31))],
}
CPU, NAN = torch.device("cpu"), float("nan")
WRITTEN_OUT = {"gemma2"}
"""Families whose attention no kernel computes."""


def packed(shapes: list[tuple[int, tuple[int, ...]]]) -> TreeBatch:
    """Groups of random ids."""
    draw, empty_group = np.random.default_rng(1), PreferenceGroup("", ("a", "b"), preferred=0)
    return pack(
        [
            TokenizedGroup(draw.integers(3, 61, p), tuple(draw.integers(3, 61, n) for n in r), empty_group)
            for p, r in shapes
        ]
    )


def apart(actual: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of what is expected."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    return float((actual - expected).norm() / expected.norm())


def hidden(device: torch.device) -> Any:
    """No card is seen inside, where the device is the CPU."""
    return mock.patch("torch.cuda.is_available", return_value=False) if device == CPU else nullcontext()


def counted_kernels() -> list[None]:
    """A list that grows with every call of attention by a card's kernels, from now on."""
    calls: list[None] = []

    def counting(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: Any) -> Tensor:
            calls.append(None)
            return function(*arguments)

        return call

    for name in ("_variable_length", "shared_prompt_attention"):
        setattr(attention, name, counting(getattr(attention, name)))
    return calls


def attention_rows(device: torch.device, calls: list[None]) -> Iterator[Row]:
    """The tree's attention in bfloat16, there and back, against softmax written out in float64.

    A row lies group after group, or all prompts come first; there attention has no window.
    """
    cases = [
        (s, heads_and_kv, size, window, arrange)
        for s in SHAPES
        for heads_and_kv in ((4, 4), (14, 2))
        for size in (64, 128)
        for window, arrange in ((None, None), (50, None), (None, with_prompts_first))
    ]
    for name, (heads, kv), size, window, arrange in cases:
        batch = packed(SHAPES[name])
        n, places = len(batch.input_ids), torch.arange(len(batch.input_ids))
        visible = (places <= places[:, None]) & (places[:, None] < batch.reach)
        if window is not None:
            visible &= batch.positions[:, None] - batch.positions < window
        torch.manual_seed(0)
        *tensors, upstream = (torch.randn(1, h, n, size).bfloat16() for h in (heads, kv, kv, heads))
        exact = [x.double().to(device).requires_grad_() for x in tensors]
        k, v = (x.repeat_interleave(heads // kv, 1) for x in exact[1:])
        scores = (exact[0] @ k.transpose(2, 3) * size**-0.5).masked_fill(~visible.to(device), -torch.inf)
        expected = scores.softmax(-1) @ v
        expected.backward(upstream.double().to(device))
        inputs = [x.to(device).requires_grad_() for x in tensors]
        laid_out = batch if arrange is None else arrange(batch)
        # Of the tokens of the row as it lies, those of the row group after group, and back.
        order, inverse_order = (
            torch.arange(n) if laid_out.prompts_first is None else getattr(laid_out.prompts_first, index)
            for index in ("order", "inverse_order")
        )
        calls_before, plan = len(calls), TreePlan(laid_out.to(device))
        row = [x.index_select(2, order.to(device)) for x in inputs]
        out, _ = attention.tree_attention(torch.nn.Module(), *row, None, tree=plan, sliding_window=window)
        out = out.transpose(1, 2).index_select(2, inverse_order.to(device))
        out.backward(upstream.to(device))
        differences = [apart(out, expected)]
        differences += [
            apart(a.grad, b.grad) for a, b in zip(inputs, exact, strict=True) if a.grad is not None is not b.grad
        ]
        ran = device == CPU or len(calls) > calls_before
        layout = "group after group" if arrange is None else "prompts first"
        label = f"attention, {name}, {heads}/{kv} heads of {size}, window {window}, {layout}"
        yield label, max(differences) if ran else NAN, 1e-2


def model_rows(device: torch.device, calls: list[None], families: Collection[str] | None = None) -> Iterator[Row]:
    """Log-probs and gradients of tiny models: float32 against the CPU's float64, bfloat16 against float32.

    Args:
        families: names in the engine tests' table of configurations; None: all.
    """
    spec = importlib.util.spec_from_file_location("engine_tests", ROOT / "tests" / "engine" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    batch = packed([(30, (12, 20)), (9, (4, 7, 1)), (64, (25, 3))])
    weights = torch.randn(batch.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def scored(model: Any, where: torch.device, dtype: torch.dtype, run: str) -> tuple[Tensor, Tensor]:
        model = copy.deepcopy(model).to(where, dtype)
        with precision(where, run):
            log_probs = TreeScorer(model)(reorder_for_attention(batch, model).to(where))
        (log_probs * weights.to(where)).sum().backward()
        return log_probs, torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])

    for family, config in tests.CONFIGS.items():
        if families is not None and family not in families:
            continue
        torch.manual_seed(0)
        model = tests.hf.AutoModelForCausalLM.from_config(config(), attn_implementation=attention.TREE).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3.0 if parameter.ndim == 2 else 1.0)  # Attention is nearly uniform otherwise.
        fuse_layers(model)
        exact, single = scored(model, CPU, torch.float64, "float32"), scored(model, device, torch.float32, "float32")
        calls_before = len(calls)
        half = scored(model, device, torch.float32, "bfloat16")
        ran = device == CPU or family in WRITTEN_OUT or len(calls) > calls_before
        yield f"{family}, float32", max(map(apart, single, exact)), 1e-4
        # On the CPU no family is further apart than half of this.
        yield f"{family}, bfloat16", max(map(apart, half, single)) if ran else NAN, 5e-2


def run_rows(device: torch.device, folder: Path) -> Iterator[Row]:
    """Runs of `penchant train` on the device against the same on the CPU, and verbs on what they made."""
    build(WORKLOADS["pairs"].tiny(), folder / "data", steps=12)
    model, data = str(folder / "data" / "model"), str(folder / "data" / "groups.jsonl")
    (folder / "worth.py").write_text("def score(prompt, responses):\n    return [len(r) % 7.0 for r in responses]\n")

    def configuration(name: str, dtype: str, training: dict[str, Any], **sections: Any) -> dict[str, Any]:
        settings = {"max_steps": 6, "batch_size": 4, "token_budget": 128, "learning_rate": 3e-4, "dtype": dtype}
        both = {"model": model, "output": str(folder / name), "data": {"train": data, "held_out": 0.25}}
        return {
            **both,
            "objective": {"name": "dpo"},
            "training": settings | training,
            "logging": {"every": 1},
            **sections,
        }

    def losses(on: torch.device, name: str, dtype: str = "float32", **sections: Any) -> Tensor:
        os.environ["PENCHANT_CACHE"] = str(folder / f"cache-{name}")
        config = parse_config(configuration(name, dtype, sections.pop("training", {}), **sections), "here")
        # Not in TF32, by which a run in float32 multiplies on a card: its rounding is above what is allowed here.
        with hidden(on), mock.patch("penchant.training.run.training_products", return_value=nullcontext()):
            train(config, resume=(folder / name).exists())
        lines = map(json.loads, (folder / name / "metrics.jsonl").read_text().splitlines())
        return torch.tensor([line.get("loss", line.get("eval_loss")) for line in lines])

    def interrupted(loop: Loop, pressed: bool = False, plain_step: Callable[..., Any] = Loop.step) -> Any:
        if loop.state.step == 2:
            signal.raise_signal(signal.SIGINT)
        return plain_step(loop, pressed)

    lora, checkpointing = {"lora": {"rank": 4}}, {"training": {"gradient_checkpointing": True}}
    kinds: dict[str, dict[str, Any]] = {
        "all weights": {},
        "LoRA": lora,
        "checkpointing": checkpointing,
        "both": lora | checkpointing,
    }
    for kind, kind_sections in kinds.items():
        for dtype, tolerance in (("float32", 1e-4), ("bfloat16", 3e-2)):
            actual, expected = (
                losses(on, f"{kind} {dtype} {i}", dtype, **kind_sections) for i, on in enumerate((device, CPU))
            )
            yield f"run, {kind}, {dtype}: losses", float((actual - expected).abs().max()), tolerance
    try:
        with mock.patch.object(Loop, "step", interrupted):
            losses(device, "cut")
        yield "run, interrupted", NAN, 0.0
    except Interrupted:
        difference = losses(device, "cut") - losses(device, "whole")
        yield "run, interrupted and resumed: losses", float(difference.abs().max()), 1e-4
    online = {"candidates": "sampled", "data": {"train": data}, "objective": {"name": "rloo", "beta": 0.05}}
    online |= {"sampling": {"samples": 2, "max_new_tokens": 8}, "reward": {"function": f"{folder}/worth.py:score"}}
    fine = losses(device, "online", "bfloat16", training={"max_steps": 2}, **online).isfinite().all()
    yield "run on its own samples", 0.0 if fine else NAN, 0.0
    (folder / "plan.yaml").write_text(json.dumps(configuration("planned", "bfloat16", {})))  # JSON is YAML.
    whole, adapter = (str(folder / f"{kind} bfloat16 0") for kind in ("all weights", "LoRA"))
    yield verb(device, "plan", f"{folder}/plan.yaml")
    yield verb(device, "evaluate", whole, "--data", data, "--reference", model, "--dtype", "bfloat16")
    yield verb(device, "evaluate", adapter, "--data", data)
    yield verb(device, "generate", whole, data, "--limit", "3", "--samples", "2", "--max-new-tokens", "8")


def verb(device: torch.device, *words: str) -> Row:
    """Whether a command fails."""
    from penchant.cli.main import main as penchant

    code: Any = 0
    try:
        with hidden(device), mock.patch.object(sys, "argv", ["penchant", *words]), redirect_stdout(io.StringIO()):
            penchant()
    except SystemExit as end:
        code = end.code or 0
    return f"penchant {words[0]}", float(code), 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device, start = torch.device(parser.parse_args().device), time.perf_counter()
    calls, rows = counted_kernels(), list[Row]()
    with tempfile.TemporaryDirectory() as folder:
        parts = {
            "attention": attention_rows(device, calls),
            "models": model_rows(device, calls),
            "runs": run_rows(device, Path(folder)),
        }
        for part, part_rows in parts.items():
            try:
                for row in part_rows:
                    rows.append(row)
            except Exception:
                traceback.print_exc()
                rows.append((f"{part} failed", NAN, 0.0))
    width = max(len(name) for name, _, _ in rows)
    for name, difference, tolerance in rows:
        print(f"{name:{width}}  {difference:8.1e}  {tolerance:8.1e}  {'ok' if difference <= tolerance else 'FAILED'}")
    # `not <=`: what is not a number is no agreement.
    failed = sum(not difference <= tolerance for _, difference, tolerance in rows)
    card = "the CPU" if device == CPU else torch.cuda.get_device_name()
    print(f"{failed} of {len(rows)} failed; {card}, torch {torch.__version__}, {time.perf_counter() - start:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
