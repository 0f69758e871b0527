"""Plans of tiny runs against what their real models, tensors and steps come to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from penchant.config.run import RunConfig, load_config
from penchant.data.trees import pack
from penchant.engine.distributed import World
from penchant.engine.memory import MemoryTracker
from penchant.errors import ModelError
from penchant.models.loading import load_tokenizer
from penchant.planning import memory as plan_layers
from penchant.planning import plan as planning
from penchant.planning import time as planning_time
from penchant.planning.memory import Depths, Memory, PeakBatches, Surroundings, count_memory, pattern_depths
from penchant.planning.model import ModelSpec, read_shape, shallow
from penchant.planning.plan import Plan, apply_changes
from penchant.planning.time import StepCosts, _Sizes, _step_costs
from penchant.planning.work import plan_batches
from penchant.training.model import load_trained
from penchant.training.run import read_run

CPU = torch.device("cpu")


@pytest.fixture
def config(write_config: Callable[..., Path]) -> RunConfig:
    return load_config(write_config(training={"dtype": "float32"}))


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """Plans quickly."""
    monkeypatch.setattr(planning, "SECONDS", 0.02)
    return lambda config, *changes, **options: planning.plan(apply_changes(config, changes), **options)


CHECKPOINTED = ("training.gradient_checkpointing=true",)

COUNTED: dict[tuple[str, ...], tuple[Memory, PeakBatches, Any]] = {}
"""Counts by what was changed of the one small run, as each takes a second."""


def counted_memory(config: RunConfig, *changes: str) -> tuple[Memory, PeakBatches, Any]:
    if changes not in COUNTED:
        COUNTED[changes] = _count_memory(apply_changes(config, changes))
    return COUNTED[changes]


def _count_memory(config: RunConfig) -> tuple[Memory, PeakBatches, Any]:
    inputs, tokenizer, limit = read_run(config, 1)
    batches = plan_batches(config, inputs, limit, lambda group: group.length).peak_batches()
    spec = ModelSpec(config, read_shape(config.model), tokenizer)
    memory = count_memory(spec, batches, Surroundings([None], None, CPU, 0))
    return memory, batches, (config, tokenizer, inputs)


class TestParts:
    def test_tied_weights_count_once(self, config):
        memory, _, _ = counted_memory(config)
        model = AutoModelForCausalLM.from_pretrained(config.model)
        trained = sum(p.numel() for p in model.parameters())
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        buffers = {b.data_ptr(): b.nbytes for b in model.buffers()}
        assert memory.weights in (4 * trained + n * sum(buffers.values()) // max(1, len(buffers)) for n in (1, 2))
        assert memory.gradients == 4 * trained
        # Two moments, and a step count of four bytes for each tensor.
        assert memory.optimizer == 8 * trained + 4 * len(list(model.parameters()))

    def test_lora(self, config):
        whole, _, _ = counted_memory(config)
        memory, _, _ = counted_memory(config, "lora.rank=4")
        model = AutoModelForCausalLM.from_pretrained(config.model)
        get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert memory.weights == whole.weights + 4 * adapters
        assert memory.gradients == 4 * adapters
        assert memory.optimizer == 8 * adapters + 4 * sum(p.requires_grad for p in model.parameters())

    @pytest.mark.slow
    @pytest.mark.parametrize("changes", [(), ("lora.rank=4",)], ids=["full", "lora"])
    def test_an_updated_reference_is_one_more_copy_of_what_is_trained(self, config, changes):
        memory, _, _ = counted_memory(config, *changes)
        updated, _, _ = counted_memory(config, *changes, "evaluation.every=2", "reference_update=best")
        for phase in ("weights", "training", "step", "held_out"):
            assert getattr(updated, phase) == getattr(memory, phase) + memory.gradients, phase
        for part in ("gradients", "optimizer", "activations", "reference_pass"):
            assert getattr(updated, part) == getattr(memory, part), part

    @pytest.mark.slow
    def test_bfloat16_lora_halves_the_frozen_weights(self, config):
        whole, _, _ = counted_memory(config, "lora.rank=4")
        half, _, _ = counted_memory(config, "lora.rank=4", "training.dtype=bfloat16")
        assert whole.weights / 2 < half.weights < whole.weights * 0.75

    @pytest.mark.slow_but("plain", "lora.rank=4")
    @pytest.mark.parametrize(
        "changes",
        [
            (),
            ("lora.rank=4",),
            ("lora.rank=4", "lora.targets=[lm_head, embed_tokens]"),
            ("training.gradient_checkpointing=true",),
            ("training.dtype=bfloat16",),
            ("objective.name=bradley_terry",),
            ("objective.name=preference_head",),
        ],
        ids=lambda changes: changes[-1] if changes else "plain",
    )
    def test_activations_are_what_the_real_model_keeps(self, config, changes):
        memory, batches, (config, tokenizer, inputs) = counted_memory(config, *changes)
        world = World(0, 1, CPU)
        trained = load_trained(config, tokenizer, inputs.train, world)
        activation_bytes = 0
        for groups in batches.steps[0]:
            with MemoryTracker() as tracker:
                start_bytes = tracker.live
                with torch.autocast("cpu", torch.bfloat16, enabled=config.training.dtype == "bfloat16"):
                    scores = trained.scorer(pack(groups))
                activation_bytes = max(activation_bytes, tracker.live - start_bytes)
                scores.sum().backward()
        if len(batches.steps) == 1:
            assert memory.activations == activation_bytes
        assert memory.activations >= activation_bytes > 0

    def test_saved_tensors_are_among_them(self, config):
        memory, batches, (config, tokenizer, inputs) = counted_memory(config)
        trained = load_trained(config, tokenizer, inputs.train, World(0, 1, CPU))
        parameters = {p.untyped_storage().data_ptr() for p in trained.scorer.parameters()}
        saved_bytes = 0
        for groups in batches.steps[0]:
            saved: dict[int, int] = {}

            def note(tensor: torch.Tensor, saved: dict[int, int] = saved) -> torch.Tensor:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in parameters:
                    saved[storage.data_ptr()] = storage.nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                scores = trained.scorer(pack(groups))
            saved_bytes = max(saved_bytes, sum(saved.values()))
            del scores
        assert 0.6 * memory.activations < saved_bytes <= memory.activations


SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DEEP = {
    "llama": lambda: hf.LlamaConfig(**SHAPE, num_hidden_layers=14),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **SHAPE, num_hidden_layers=14, head_dim=8, sliding_window=7, layer_types=PATTERN
    ),
    "qwen3-moe": lambda: hf.Qwen3MoeConfig(
        **SHAPE, num_hidden_layers=14, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        mlp_only_layers=[0], decoder_sparse_step=1,
    ),
}  # fmt: skip
PATTERN = ["sliding_attention", "sliding_attention", "full_attention"] * 4 + ["sliding_attention"] * 2


class TestDepth:
    """Counts of two shallow models, multiplied, against the count of every layer."""

    @pytest.mark.slow
    @pytest.mark.parametrize("family", DEEP)
    @pytest.mark.parametrize("changes", [(), ("lora.rank=4", "training.dtype=bfloat16"), CHECKPOINTED], ids=str)
    def test_multiplied_layers_are_the_counted_ones(self, config, monkeypatch, family, changes):
        config = apply_changes(config, changes)
        inputs, tokenizer, limit = read_run(config, 1)
        batches = plan_batches(config, inputs, limit, lambda group: group.length).peak_batches().reduced
        spec = ModelSpec(config, DEEP[family](), tokenizer)
        assert plan_layers.find_depths(spec.shape, rewards=False) is not None
        multiplied = count_memory(spec, batches, Surroundings([None], None, CPU, 5))
        monkeypatch.setattr(plan_layers, "COUNTED_WHOLE", 100)
        all_layers = count_memory(spec, batches, Surroundings([None], None, CPU, 5))
        for name, value in vars(all_layers).items():
            if name not in ("training", "allocator"):
                assert getattr(multiplied, name) == pytest.approx(value, rel=0.01), name
        # Where gradients outgrow activations, work on the head is counted beside the most of them.
        growth = 1.01 if "lora.rank=4" in changes else 1.25
        assert 0.98 * all_layers.training <= multiplied.training <= growth * all_layers.training
        for name in ("weights", "gradients", "optimizer", "baseline"):
            assert getattr(multiplied, name) == getattr(all_layers, name), name

    @pytest.mark.parametrize(
        ("kinds", "expected"),
        [
            ("a" * 32, Depths(2, 3, 29)),
            ("ab" * 10, Depths(4, 6, 7)),
            ("aab" * 6, Depths(6, 9, 3)),
            ("b" + "a" * 11, Depths(3, 4, 8)),
            ("aab" * 4 + "aa", Depths(5, 8, 2)),
            ("aaab" * 3, None),
            ("abcdefghij", None),
            ("aaab", None),
        ],
    )
    def test_the_pattern_of_layers(self, kinds, expected):
        assert pattern_depths(list(kinds)) == expected

    @pytest.mark.slow
    def test_an_adapter_of_eight_billion_weights_takes_few_operations(self, config, planned, tmp_path, monkeypatch):
        folder = tmp_path / "8b"
        hf.LlamaConfig(
            vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
            num_key_value_heads=8, max_position_embeddings=8192, tie_word_embeddings=False, bos_token_id=1,
            eos_token_id=2, architectures=["LlamaForCausalLM"],
        ).save_pretrained(folder)  # fmt: skip
        load_tokenizer(config.model).save_pretrained(folder)
        operations = 0
        record = MemoryTracker.__torch_dispatch__

        def counting(tracker, func, *args):
            nonlocal operations
            operations += 1
            return record(tracker, func, *args)

        monkeypatch.setattr(MemoryTracker, "__torch_dispatch__", counting)
        plan = planned(config, f"model={folder}", "lora.rank=16", "training.dtype=bfloat16", available=1 << 40)
        assert operations < 40_000
        memory = plan.forecast.memory
        frozen = 8_030_261_248
        adapters = 32 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
        assert memory.weights == pytest.approx(2 * frozen + 4 * adapters, rel=1e-4)
        assert memory.gradients == 4 * adapters
        assert plan.forecast.total_seconds > 0


class TestSettings:
    def test_checkpointing_keeps_less(self, config):
        plain, _, _ = counted_memory(config)
        checkpointed, _, _ = counted_memory(config, "training.gradient_checkpointing=true")
        assert checkpointed.activations < 0.6 * plain.activations
        assert checkpointed.weights == plain.weights

    def test_a_larger_budget_keeps_more(self, config):
        small, _, _ = counted_memory(config, "training.token_budget=64")
        large, _, _ = counted_memory(config, "training.token_budget=256")
        assert large.activations > 1.3 * small.activations
        assert large.training > small.training

    def test_shallow_cuts_lists_of_layers(self, config):
        shape = read_shape(config.model)
        shape.layer_types = ["full_attention", "sliding_attention"]
        smaller = shallow(shape, 1, 10)
        assert (smaller.num_hidden_layers, smaller.vocab_size) == (1, 10)
        assert smaller.layer_types == ["full_attention"]
        assert shape.num_hidden_layers == 2


class TestTime:
    def test_pace_by_hand(self):
        # 100 tokens: a layer takes 2 s, the rest 1 s + 0.03 s a token; read without gradients 0.5 s and 1 s.
        seconds = {
            "two layers": 8.0,
            "one layer": 6.0,
            "short": 1.5,
            "two layers forward": 2.0,
            "one layer forward": 1.5,
        }
        costs = _step_costs(seconds, _Sizes(100, 10), 1.0, 1e-9, 1e9)
        expected = StepCosts(0.02, 0.005, 0.03, 0.01, 1.0, 1e-9, 1e9)
        for name, value in vars(expected).items():
            assert getattr(costs, name) == pytest.approx(value), name

    def test_a_pass_too_slow_to_time_costs_its_products(self, planned, config, monkeypatch):
        rate = 1e6
        monkeypatch.setattr(planning_time, "_matrix_rate", lambda size, dtype, device: rate)
        plan = planned(config, "lora.rank=4")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(read_shape(config.model))
        layer = sum(p.numel() for p in model.model.layers[0].parameters())
        head = model.lm_head.weight.numel()
        norm = model.config.hidden_size
        linears = [m for m in model.model.layers[0].modules() if isinstance(m, torch.nn.Linear)]
        adapters = sum(4 * (m.in_features + m.out_features) for m in linears)
        layers = model.config.num_hidden_layers
        forward = 2 * (layers * (layer + adapters) + head + norm)
        inputs, _, limit = read_run(config, 1)
        workload = plan_batches(config, inputs, limit, lambda group: group.length)
        reading = workload.reading()
        assert plan.forecast.seconds["reference_pass"] == pytest.approx(reading["reference_pass"] * forward / rate)
        # The update is timed, and is nothing beside such products.
        expected = workload.tokens * (2 * forward + 2 * layers * adapters) / rate
        assert plan.forecast.step_seconds == pytest.approx(expected, rel=1e-3)
        notes = " ".join(plan.notes)
        assert "time is that of matrix products alone, since a pass takes too long to be timed" in notes
        assert "0.0 GFLOP/s in float32" in notes

    @pytest.mark.parametrize(
        ("size", "seconds_of_row", "expected"),
        [(64, 1e-6, [1, 4, 16, 64, 256, 512]), (64, 1e-3, [1, 4, 16, 64]), (4096, 1.0, [1]), (32768, 1e-6, [1, 4, 16])],
    )
    def test_the_rate_is_of_few_rows_where_these_take_long(self, monkeypatch, size, seconds_of_row, expected):
        rows = []

        def product_seconds(inputs, weights):
            assert weights.shape == (4 * size, size)
            rows.append(len(inputs))
            return seconds_of_row * len(inputs)

        monkeypatch.setattr(planning_time, "_product_seconds", product_seconds)
        monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.empty(shape, device="meta"))
        rate = planning_time._matrix_rate(size, "float32", CPU)
        assert list(dict.fromkeys(rows)) == expected
        assert rate == pytest.approx(2 * 2 * size * 4 * size / seconds_of_row)

    def test_counts_of_work(self, config):
        inputs, _, limit = read_run(config, 1)
        workload = plan_batches(config, inputs, limit, lambda group: group.length)
        assert workload.steps == 6
        assert len(workload.sampled_steps) == 6
        step_tokens = [sum(group.length for groups in step for group in groups) for step in workload.sampled_steps]
        assert workload.tokens == pytest.approx(sum(step_tokens) / 6)
        all_tokens = sum(group.length for group in [*inputs.train, *inputs.held_out])
        held_out = sum(group.length for group in inputs.held_out)
        assert workload.reading() == {"reference_pass": all_tokens, "held_out": 2 * held_out, "training": 0}

    def test_counts_of_work_with_an_updated_reference(self, config):
        """Evaluated before the first step and after 2, 4 and 6; read again after those three; steps 3 to 6 are too."""
        config = apply_changes(config, ("evaluation.every=2", "reference_update=best"))
        inputs, _, limit = read_run(config, 1)
        workload = plan_batches(config, inputs, limit, lambda group: group.length)
        held_out = sum(group.length for group in inputs.held_out)
        assert workload.reading()["held_out"] == (4 + 3) * held_out
        assert workload.reading()["training"] == pytest.approx(4 * workload.tokens)

    def test_seconds_add_up(self, planned, config):
        plan = planned(config)
        forecast = plan.forecast
        assert forecast.total_seconds == pytest.approx(sum(forecast.seconds.values()))
        assert forecast.seconds["training"] == pytest.approx(6 * forecast.step_seconds)
        assert plan.steps == 6
        assert forecast.total_seconds > 0


class TestFit:
    def test_fits_here(self, planned, config):
        plan = planned(config)
        assert plan.forecast.fits
        assert plan.proposals == []
        memory = plan.forecast.memory
        alive = max(memory.reference_pass, memory.training, memory.step, memory.held_out)
        assert memory.allocator == round(0.6 * (memory.baseline + alive))
        assert memory.peak == memory.baseline + alive + memory.allocator

    def test_a_gpu_gets_no_margin_for_the_allocator_of_the_cpu(self, config, monkeypatch):
        fixed_memory = Memory(10, 10, 20, 30, 5, 40, 70, 50, 60, allocator=0, baseline=30)
        monkeypatch.setattr(plan_layers, "_count", lambda *arguments: fixed_memory)
        spec, batches = (
            ModelSpec(config, read_shape(config.model), load_tokenizer(config.model)),
            PeakBatches([], [], []),
        )
        bounds = {}
        for device in ("cpu", "cuda"):
            memory = count_memory(spec, batches, Surroundings([None], None, torch.device(device), 30))
            bounds[device] = (memory.allocator, memory.peak)
        assert bounds == {"cpu": (60, 160), "cuda": (0, 100)}

    @pytest.mark.slow
    def test_proposals_fit_and_can_be_pasted(self, planned, config, monkeypatch):
        # This process may grow between the two plans, by more than the little room that is taken away.
        monkeypatch.setattr(planning, "process_bytes", lambda device: 100 << 20)
        memory = planned(config, "training.token_budget=512").forecast.memory
        room = memory.peak - (memory.training - memory.step) // 4
        plan = planned(config, "training.token_budget=512", available=room)
        assert not plan.forecast.fits
        assert plan.proposals
        for proposal in plan.proposals:
            assert proposal.memory.peak <= room
            assert proposal.total_seconds is not None
            assert apply_changes(config, proposal.changes) != config

    def test_nothing_helps(self, planned, config, monkeypatch):
        memory = counted_memory(config)[0]
        monkeypatch.setattr(planning.Planner, "memory", lambda planner, config, approximate=False: memory)
        plan = planned(config, available=1 << 20)
        assert not plan.forecast.fits
        assert plan.proposals == []

    def test_no_room_to_measure(self, planned, config, monkeypatch):
        monkeypatch.setattr("penchant.planning.time.available_bytes", lambda device: 1000)
        plan = planned(config)
        assert plan.forecast.total_seconds is None
        assert any("time is not predicted" in note for note in plan.notes)
        assert plan.forecast.memory.weights > 0


class TestOtherRuns:
    def test_weights_are_not_read(self, planned, config, tmp_path):
        whole = planned(config).forecast.memory
        folder = tmp_path / "bare"
        shutil.copytree(config.model, folder)
        weights = folder / "model.safetensors"
        weights.write_bytes(b"damaged")
        assert planned(config, f"model={folder}").forecast.memory.weights == whole.weights
        weights.unlink()
        assert planned(config, f"model={folder}").forecast.memory.weights == whole.weights
        (folder / "config.json").unlink()
        with pytest.raises(ModelError, match=r"config\.json"):
            planned(config, f"model={folder}")

    def test_named_reference(self, planned, config):
        plan = planned(config, f"reference={config.model}")
        assert plan.forecast.memory.reference_pass > plan.forecast.memory.weights
        assert any("named reference" in note for note in plan.notes)

    @pytest.mark.slow
    def test_sampled_candidates(self, planned, config, tmp_path):
        (tmp_path / "reward.py").write_text("def score(prompt, responses):\n    return [0.0 for _ in responses]\n")
        changes = (
            "candidates=sampled",
            f"reward.function={tmp_path}/reward.py:score",
            "objective.name=rloo",
            "sampling.max_new_tokens=16",
        )
        plain_plan = planned(config)
        plan = planned(config, *changes)
        assert any("drawing candidates" in note for note in plan.notes)
        # The reference stays in memory beside the policy.
        assert plan.forecast.memory.weights == pytest.approx(2 * plain_plan.forecast.memory.weights, rel=0.01)
        with_adapters = planned(config, *changes, "lora.rank=4")
        assert with_adapters.forecast.memory.weights < 1.5 * plain_plan.forecast.memory.weights

    @pytest.mark.parametrize("name", ["bradley_terry", "preference_head", "kto", "beta_dpo", "sft"])
    def test_objectives(self, planned, config, name):
        plan = planned(config, f"objective={{name: {name}}}")
        assert plan.forecast.memory.activations > 0
        assert plan.forecast.total_seconds > 0
