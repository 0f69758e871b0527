"""The device that is chosen, the numbers it computes with, and sums where a device has no float64."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from penchant.data.trees import pack
from penchant.engine import device
from penchant.engine.device import (
    available_devices,
    best_dtype,
    float64_device,
    local_device,
    on_device,
    products_name,
    require_dtype,
    training_products,
    use_device,
)
from penchant.engine.distributed import init_process_group
from penchant.engine.memory import replace_tensors
from penchant.engine.padded import PaddedScorer
from penchant.engine.reward_scorers import HeadedScorer, TreeRewardScorer
from penchant.engine.tree import TreeScorer, use_tree
from penchant.errors import ConfigError
from penchant.models.preference_head import PreferenceHead
from penchant.objectives import OBJECTIVES
from penchant.training.backward import objective_inputs

Machine = Callable[..., None]
CARD, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture(autouse=True)
def _choose_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(device.DEVICE_VARIABLE, "auto")
    monkeypatch.delenv("LOCAL_RANK", raising=False)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Pretend that this machine has these types of devices besides its CPU."""

    def pretend(*types: str, capability: tuple[int, int] = (9, 0), bfloat16: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in types)
        monkeypatch.setattr(torch.xpu, "is_available", lambda: "xpu" in types)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in types)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "A Card")
        monkeypatch.setattr(torch.xpu, "is_bf16_supported", lambda including_emulation=True: bfloat16)

    return pretend


class TestChoice:
    @pytest.mark.parametrize(
        ("types", "expected"),
        [((), "cpu"), (("mps",), "mps"), (("xpu", "mps"), "xpu:0"), (("mps", "cuda", "xpu"), "cuda:0")],
    )
    def test_auto_is_the_first_of_cuda_xpu_mps_and_cpu(self, machine, types, expected):
        machine(*types)
        assert str(local_device()) == expected

    def test_torchrun_picks_the_card(self, machine, monkeypatch):
        machine("cuda")
        monkeypatch.setenv("LOCAL_RANK", "3")
        assert local_device() == torch.device("cuda", 3)
        use_device("cpu")
        assert local_device() == CPU

    @pytest.mark.parametrize("choose", [use_device, lambda choice: on_device(choice).__enter__()])
    def test_a_device_that_is_not_there_is_refused_with_those_that_are(self, machine, choose):
        machine("cuda")
        with pytest.raises(ConfigError, match=r"found xpu, .* it has: cuda, cpu"):
            choose("xpu")
        assert local_device() == CARD

    def test_a_configuration_is_followed_inside_its_run_only(self, machine):
        machine("cuda", "mps")
        use_device("mps")
        with on_device("auto"):
            assert local_device().type == "mps"
        with on_device("cpu"), on_device("auto"):
            assert local_device().type == "cpu"
        assert local_device().type == "mps"
        use_device("auto")
        assert local_device().type == "cuda"
        assert available_devices() == ["cuda", "mps", "cpu"]

    def test_processes_that_are_started_have_the_same(self, monkeypatch):
        monkeypatch.setenv(device.DEVICE_VARIABLE, "gpu")
        with pytest.raises(ConfigError, match="PENCHANT_DEVICE: found gpu"):
            local_device()

    def test_several_processes_need_collectives(self, machine, monkeypatch):
        machine("mps")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ConfigError, match="2 processes cannot share the device mps"):
            init_process_group()


class TestDtype:
    @pytest.mark.parametrize(
        ("name", "capability", "expected"),
        [("cuda", (9, 0), "bfloat16"), ("cuda", (8, 0), "bfloat16"), ("cuda", (7, 5), "float16"),
         ("xpu", (0, 0), "bfloat16"), ("mps", (0, 0), "float32"), ("cpu", (0, 0), "float32")],
    )  # fmt: skip
    def test_best(self, machine, name, capability, expected):
        machine(name, capability=capability)
        assert best_dtype(torch.device(name)) == expected

    def test_xpu_without_bfloat16(self, machine):
        machine("xpu", bfloat16=False)
        assert best_dtype(torch.device("xpu")) == "float32"

    def test_bfloat16_is_refused_on_an_old_card(self, machine):
        machine("cuda", capability=(7, 5))
        with pytest.raises(ConfigError, match=r"bfloat16 needs .* 8\.0, and A Card has 7\.5") as raised:
            require_dtype("bfloat16", CARD)
        assert "training.dtype=float16" in raised.value.fix
        for dtype in ("float32", "float16"):
            require_dtype(dtype, CARD)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_a_cpu_computes_all(self, dtype):
        require_dtype(dtype, CPU)

    def test_no_mixed_precision(self, monkeypatch):
        monkeypatch.setattr(torch.amp, "is_autocast_available", lambda name: False)
        require_dtype("float32", CPU)
        with pytest.raises(ConfigError, match="no mixed precision on cpu, and float16"):
            require_dtype("float16", CPU)


def test_training_multiplies_in_tf32_on_cards_only():
    assert products_name("float32", CARD) == "float32"
    with training_products(CARD):
        assert torch.get_float32_matmul_precision() == "high"
        # Numbers of evaluation are not taken from a cache that training filled, nor the other way round.
        assert products_name("float32", CARD) == "tf32"
        assert products_name("bfloat16", CARD) == "bfloat16"
        assert products_name("float32", CPU) == "float32"
    with training_products(CPU):
        assert torch.get_float32_matmul_precision() == "highest"


class TestSumsWithoutFloat64:
    def test_the_host_sums_for_apples_devices(self):
        assert float64_device(torch.device("mps")) == CPU
        assert float64_device(CARD) == CARD

    @pytest.mark.parametrize("scorer_name", ["tree", "padded", "head", "tree rewards"])
    def test_no_float64_comes_onto_such_a_device(self, monkeypatch, build, make_groups, scorer_name):
        """`meta` plays the device: tensors without data take its name through the whole forward and backward."""
        monkeypatch.setattr(device, "has_float64", lambda device: device.type != "meta")
        # Torch has no autocast for it.
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
        monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: nullcontext())
        groups = make_groups([(9, (4, 7)), (30, (12, 12))], 1)
        fake_device = torch.device("meta")
        with torch.device("meta"):
            scorer = _scorer(scorer_name, build)
        with FakeTensorMode(), NoFloat64On("meta"):
            replace_tensors(scorer, fake_device)
            scores = scorer(pack(groups).to(fake_device))
            assert scores.device == CPU
            assert scores.dtype == torch.float64
            if scores.ndim == 2:
                policy, reference, facts = objective_inputs(scores, groups, [[[0.0, 0.0]] * 2])
                output, _ = OBJECTIVES["dpo"]()(policy, reference, facts, {})
                output.loss.total.backward()
                trained = [p for p in scorer.parameters() if p.grad is not None]
                assert trained
                assert all(p.grad.device == fake_device for p in trained)


def _scorer(name, build):
    model = build("llama")
    if name == "padded":
        return PaddedScorer(model)
    if name == "tree rewards":
        model = transformers.AutoModelForSequenceClassification.from_config(_one_output(model.config))
        use_tree(model)
        return TreeRewardScorer(model)
    use_tree(model)
    scorer = TreeScorer(model)
    return HeadedScorer(scorer, PreferenceHead(32, "identity")) if name == "head" else scorer


def _one_output(config):
    config.num_labels = 1
    return config


class NoFloat64On(TorchDispatchMode):
    """Fails where an operation makes a float64 tensor on a device."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == self._name:
                assert tensor.dtype != torch.float64, func
        return result
