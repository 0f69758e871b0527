"""Whole runs on a tiny model: reproducible, resumable bit by bit, independent of how batches are cut."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from penchant.cli.main import run as command_line
from penchant.config.run import load_config
from penchant.errors import CheckpointError, ConfigError, TrainingError
from penchant.training.loop import Loop
from penchant.training.run import train


def weights(folder: Path) -> dict[str, torch.Tensor]:
    adapter = folder / "adapter_model.safetensors"
    return load_file(adapter if adapter.exists() else folder / "model.safetensors")


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def last_step(folder: Path) -> int:
    """Of the lines written whole; -1 where there is none yet, as a kill may leave it."""
    log = folder / "metrics.jsonl"
    whole = log.read_text().split("\n")[:-1] if log.exists() else []
    return int(json.loads(whole[-1])["step"]) if whole else -1


def run(file: Path, *overrides: str, resume: bool = False) -> Path:
    return train(load_config(file, overrides), resume=resume)


def kill_somewhere(process: Any, folder: Path, draw: random.Random, last: int) -> None:
    """kill -9: sometimes while it starts, else some steps further, at most at `last`, however slow the machine is."""
    if draw.random() < 0.3:
        time.sleep(draw.uniform(0.0, 0.3))
    else:
        goal, deadline = min(last_step(folder) + draw.randint(1, 15), last), time.monotonic() + 60
        while last_step(folder) < goal and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(draw.uniform(0.0, 0.02))
    kill(process)


def kill_while_it_saves(process: Any, folder: Path) -> None:
    """kill -9 once the model's files are being written."""
    deadline = time.monotonic() + 60
    model_files = (folder / ".writing-model", folder / "model.safetensors")
    while not any(path.exists() for path in model_files) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    kill(process)
    assert any(path.exists() for path in model_files)


def kill(process: Any) -> None:
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it had ended before"


def newest(folder: Path) -> Path:
    return sorted((folder / "checkpoints").glob("step-*"))[-1]


def optimizer_state(folder: Path) -> dict[str, torch.Tensor]:
    files = newest(folder).glob("*.safetensors")
    return {name: value for file in files for name, value in load_file(file).items() if name.startswith("optimizer.")}


def assert_same_run(one: Path, two: Path) -> None:
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, weights(two)[name]), name
    assert (one / "metrics.jsonl").read_bytes() == (two / "metrics.jsonl").read_bytes()
    first_state, second_state = optimizer_state(one), optimizer_state(two)
    assert first_state.keys() == second_state.keys() != set()
    assert all(torch.equal(first_state[name], second_state[name]) for name in first_state)


def test_learns_and_writes_what_users_look_for(write_config):
    folder = run(write_config(), "training.max_steps=20")
    log = lines(folder)
    assert log[0]["step"] == 0
    assert log[0]["eval_loss"] == pytest.approx(0.6931, abs=1e-4)
    assert [line["step"] for line in log if "loss" in line] == list(range(1, 21))
    assert log[-1]["eval_rewards/accuracies"] > 0.8
    assert {"rewards/margins", "grad_norm", "learning_rate", "num_tokens", "logps/chosen"} <= log[-2].keys()
    assert {"config.json", "model.safetensors", "tokenizer.json", "config.yaml", "run.json"} <= set(os.listdir(folder))


def test_same_seed_gives_the_same_bits_in_two_processes(write_config, tmp_path, start_penchant):
    """This process and one with another seed of Python's hashes; both compute the reference."""
    file, errors = write_config(), tmp_path / "errors"
    run(file, f"output={tmp_path / 'one'}")
    cache = {"PENCHANT_CACHE": str(tmp_path / "cache-two")}
    process = start_penchant("train", file, f"output={tmp_path / 'two'}", stderr=errors, variables=cache)
    assert process.wait(120) == 0, errors.read_text()
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_another_seed_gives_another_order(write_config, tmp_path):
    file = write_config()
    one = run(file, f"output={tmp_path / 'one'}")
    two = run(file, f"output={tmp_path / 'two'}", "training.seed=1")
    assert lines(one)[1]["logps/chosen"] != lines(two)[1]["logps/chosen"]


@pytest.mark.slow_but("pairs")
@pytest.mark.parametrize("average", ["groups", "pairs"])
def test_token_budget_changes_nothing(write_config, tmp_path, average):
    results = {}
    for budget in (40, 128, 100_000):
        folder = run(
            write_config(objective={"average": average}),
            f"training.token_budget={budget}",
            f"output={tmp_path / str(budget)}",
        )
        results[budget] = (lines(folder), weights(folder))
    log, tensors = results[100_000]
    for budget in (40, 128):
        for mine, theirs in zip(results[budget][0], log, strict=True):
            assert mine.keys() == theirs.keys()
            for name in ("loss", "eval_loss", "rewards/margins"):
                if name in mine:
                    assert mine[name] == pytest.approx(theirs[name], abs=1e-6)
        for name, tensor in tensors.items():
            torch.testing.assert_close(results[budget][1][name], tensor, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_batch_of_eight_equals_eight_micro_batches_of_one(write_config, tmp_path):
    whole = run(write_config(), f"output={tmp_path / 'whole'}", "training.token_budget=100000")
    single = run(write_config(), f"output={tmp_path / 'single'}", "training.token_budget=1")
    for mine, theirs in zip(lines(single), lines(whole), strict=True):
        if "loss" in mine:
            assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-6)
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_resumes_to_the_same_bits(write_config, tmp_path, start_penchant):
    """kill -9, from start-up to the model's files; resumed each time. `make faults` does it 200 times."""
    file = write_config(training={"max_steps": 120}, checkpoints={"every": 7})
    undisturbed = run(file, f"output={tmp_path / 'undisturbed'}")
    folder = tmp_path / "killed"
    draw = random.Random(0)
    steps = []
    for moment in range(20):
        arguments = [folder, "--resume"] if (folder / "run.json").exists() else [file, f"output={folder}"]
        process = start_penchant("train", *arguments)
        if moment < 19:
            kill_somewhere(process, folder, draw, last=100)
        else:
            kill_while_it_saves(process, folder)
        steps.append(last_step(folder))
    assert len(set(steps)) > 8, "the kills all fell on start-up"
    assert steps[-1] == 120
    # To the end in this process, whose seed of Python's hashes is another.
    run(folder / "config.yaml", f"output={folder}", resume=True)
    assert_same_run(undisturbed, folder)


@pytest.mark.slow_but("full", "lora")
@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"lora": {"rank": 4, "dropout": 0.1}},
        {"training": {"dtype": "bfloat16"}},
        {"evaluation": {"every": 1, "patience": 1}, "training": {"learning_rate": 0.3}},
        {"logging": {"every": 4}},
    ],
    ids=["full", "lora with dropout", "bfloat16", "early stopping", "log line spanning the checkpoint"],
)
def test_resume_goes_on_from_a_checkpoint(write_config, tmp_path, sections):
    file = write_config(**{"checkpoints": {"every": 1, "keep": 20}, **sections})
    whole = run(file, f"output={tmp_path / 'whole'}")
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    for checkpoint in sorted((part / "checkpoints").iterdir())[1:]:
        shutil.rmtree(checkpoint)
    for model in part.glob("*.safetensors"):
        model.unlink()
    run(file, f"output={part}", resume=True)
    assert_same_run(whole, part)


def test_ctrl_c_finishes_the_step_saves_and_exits_130(write_config, tmp_path, start_penchant):
    file = write_config(training={"max_steps": 100_000}, checkpoints={"every": 100_000})
    folder, errors = tmp_path / "run", tmp_path / "errors"
    process = start_penchant("train", file, stderr=errors)
    while last_step(folder) < 2:
        assert process.poll() is None, errors.read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "--resume" in errors.read_text()
    step = int(newest(folder).name.removeprefix("step-"))
    assert lines(folder)[-1]["step"] == step >= 2


class TestRefuses:
    def test_a_folder_that_holds_another_run(self, write_config):
        file = write_config()
        run(file)
        with pytest.raises(ConfigError, match="holds another run"):
            run(file)

    def test_a_folder_that_holds_something_else(self, write_config, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "thesis.tex").write_text("x")
        with pytest.raises(ConfigError, match=r"thesis\.tex"):
            run(write_config())

    def test_to_resume_with_another_configuration(self, write_config):
        file = write_config()
        run(file)
        with pytest.raises(ConfigError, match=r"objective\.beta \(was 0\.1, is 0\.2\)"):
            run(file, "objective.beta=0.2", resume=True)

    def test_to_resume_with_other_data(self, write_config, tmp_path, tiny_pairs):
        data = tmp_path / "pairs.jsonl"
        shutil.copy(tiny_pairs, data)
        file = write_config(data={"train": str(data)})
        run(file)
        data.write_text(data.read_text().replace("dog", "bird"))
        with pytest.raises(ConfigError, match="data"):
            run(file, resume=True)

    def test_a_second_start_on_the_folder_of_a_run_in_progress(self, write_config, tmp_path, start_penchant, capsys):
        """Nor a second --resume: the metrics of both would be mixed."""
        file = write_config(training={"max_steps": 100_000}, checkpoints={"every": 100_000})
        folder, errors = tmp_path / "run", tmp_path / "errors"
        process = start_penchant("train", file, stderr=errors)
        while last_step(folder) < 2:
            assert process.poll() is None, errors.read_text()
            time.sleep(0.05)
        for arguments in ([str(file)], ["--resume", str(folder)]):
            assert command_line(["train", *arguments]) == 2
            message = capsys.readouterr().err
            assert f"process {process.pid} on " in message
            assert str(folder) in message
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        steps = [int(line["step"]) for line in lines(folder)]
        assert steps == list(range(len(steps)))

    def test_to_resume_what_never_began(self, write_config):
        with pytest.raises(ConfigError, match="no run to resume"):
            run(write_config(), resume=True)

    def test_a_truncated_checkpoint(self, write_config, tmp_path):
        file = write_config()
        folder = run(file)
        damaged = next(newest(folder).glob("*.safetensors"))
        os.truncate(damaged, damaged.stat().st_size // 2)
        with pytest.raises(CheckpointError, match="bytes") as error:
            run(file, resume=True)
        assert str(newest(folder)) in error.value.fix
        shutil.rmtree(newest(folder))
        run(file, resume=True)

    def test_a_changed_checkpoint(self, write_config):
        file = write_config()
        folder = run(file)
        damaged = next(newest(folder).glob("*.safetensors"))
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
        with pytest.raises(CheckpointError, match="changed"):
            run(file, resume=True)

    def test_a_loss_that_is_not_a_number(self, write_config, tmp_path, tiny_model):
        """Stops, names the rows, and leaves the last good checkpoint."""
        model_folder = tmp_path / "broken"
        shutil.copytree(tiny_model, model_folder)
        from safetensors.torch import save_file

        tensors = load_file(model_folder / "model.safetensors")
        tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
        save_file(tensors, model_folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(TrainingError, match=r"not a finite number at step 1.*row-"):
            run(write_config(model=str(model_folder)), "data.held_out=null")

    def test_a_gradient_that_explodes_keeps_the_last_checkpoint(self, write_config):
        file = write_config(training={"learning_rate": 1e30, "max_steps": 50, "schedule": "constant", "warmup": 0})
        with pytest.raises(TrainingError, match="step-"):
            run(file, "checkpoints.every=1", "data.held_out=null")

    def test_a_full_disk(self, write_config, monkeypatch, full_at_the_second_save):
        """Earlier checkpoints stay; nothing half-written takes a checkpoint's name."""
        file = write_config()
        with pytest.raises(TrainingError, match="disk is full"):
            run(file)
        folder = Path(load_config(file).output)
        assert [c.name for c in (folder / "checkpoints").glob("step-*")] == ["step-00000002"]
        monkeypatch.undo()
        run(file, resume=True)
        assert (folder / "model.safetensors").exists()


class TestVariants:
    @pytest.mark.slow_but("lora-", "sft")
    @pytest.mark.parametrize(
        "sections",
        [
            {"training": {"gradient_checkpointing": True}},
            {"lora": {"rank": 4}},
            {"lora": {"rank": 4}, "training": {"gradient_checkpointing": True}},
            {"training": {"dtype": "bfloat16"}},
            {"objective": {"name": "sft"}},
            {"training": {"schedule": "cosine", "warmup": 2}},
        ],
        ids=["checkpointing", "lora", "lora-checkpointing", "bfloat16", "sft", "cosine"],
    )
    def test_loss_falls(self, write_config, sections):
        sections = {**sections, "training": {"max_steps": 15, **sections.get("training", {})}}
        log = lines(run(write_config(**sections)))
        assert log[-1]["eval_loss"] < log[0]["eval_loss"]

    @pytest.mark.slow
    def test_gradient_checkpointing_changes_nothing(self, write_config, tmp_path):
        plain = run(write_config(), f"output={tmp_path / 'a'}")
        recomputed = run(write_config(), f"output={tmp_path / 'b'}", "training.gradient_checkpointing=true")
        assert all(torch.equal(weights(plain)[name], weights(recomputed)[name]) for name in weights(plain))

    def test_best_checkpoint_and_early_stopping(self, write_config):
        file = write_config(
            training={"max_steps": 30, "learning_rate": 0.3, "schedule": "constant"},
            evaluation={"every": 1, "patience": 2},
        )
        folder = run(file)
        log = [line for line in lines(folder) if "eval_loss" in line][1:]
        best = min(range(len(log)), key=lambda i: log[i]["eval_loss"])
        assert len(log) == best + 3 < 30
        assert (folder / "best" / "model.safetensors").exists()

    def test_another_reference(self, write_config, tmp_path):
        """Log-ratios are against the model named, not the one training starts from."""
        reference_folder = run(write_config(), f"output={tmp_path / 'first'}")
        second = run(write_config(reference=str(reference_folder)), f"output={tmp_path / 'second'}")
        assert lines(second)[0]["eval_loss"] > 0.70

    def test_reference_cache_is_used_and_changes_nothing(self, write_config, tmp_path, monkeypatch):
        from penchant.engine import scoring

        calls = []
        forward = scoring._forward
        monkeypatch.setattr(scoring, "_forward", lambda *a: calls.append(1) or forward(*a))
        cold = run(write_config(), f"output={tmp_path / 'cold'}")
        cold_calls = len(calls)
        warm = run(write_config(), f"output={tmp_path / 'warm'}")
        assert len(calls) - cold_calls < cold_calls
        assert (cold / "metrics.jsonl").read_bytes() == (warm / "metrics.jsonl").read_bytes()


class TestPeersTraps:
    """Section by section, what a popular trainer does on awkward runs, and that we do not."""

    @pytest.mark.slow
    def test_another_learning_rate_does_not_lose_the_reference_cache(self, write_config, tmp_path, monkeypatch):
        """Elsewhere the cache's key holds the whole configuration, so every run of a sweep computes it again."""
        from penchant.engine import scoring

        calls = []
        forward = scoring._forward
        file = write_config(data={"held_out": None})
        run(file, f"output={tmp_path / 'one'}")
        monkeypatch.setattr(scoring, "_forward", lambda *a: calls.append(1) or forward(*a))
        run(file, f"output={tmp_path / 'two'}", "training.learning_rate=1e-4", "training.seed=3")
        assert calls == []

    @pytest.mark.slow
    def test_another_length_limit_does_not_read_stale_log_probs(self, write_config, tmp_path):
        """Elsewhere a shorter prompt finds the log-probs of the longer one."""
        file = write_config(data={"held_out": None, "truncation": "keep_end_of_prompt"})
        run(file, f"output={tmp_path / 'one'}")
        warm = run(file, f"output={tmp_path / 'two'}", "data.max_length=18")
        assert lines(warm)[0]["loss"] == pytest.approx(0.6931, abs=1e-4)

    @pytest.mark.slow_but("5")
    @pytest.mark.parametrize("size", [1, 5, 36])
    def test_evaluation_does_not_move_with_the_batch_size(self, write_config, tmp_path, size):
        """Elsewhere means of batch means weigh a short last batch as much as a full one."""
        file = write_config(reference=None, training={"max_steps": 1, "learning_rate": 1e-12})
        reference_folder = run(
            file, f"output={tmp_path / 'first'}", "training.learning_rate=1e-3", "training.max_steps=6"
        )
        ours = run(file, f"output={tmp_path / 'ours'}", f"training.batch_size={size}", f"reference={reference_folder}")
        theirs = run(file, f"output={tmp_path / 'theirs'}", "training.batch_size=8", f"reference={reference_folder}")
        for name, value in lines(theirs)[0].items():
            assert lines(ours)[0][name] == pytest.approx(value, rel=1e-5), name


class TestSavedFolder:
    def test_loads_in_transformers_alone_with_the_same_log_probs(self, write_config, tmp_path):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from penchant.data.reading import read_groups
        from penchant.engine.distributed import World
        from penchant.evaluation.held_out import score

        file = write_config()
        folder = run(file)
        groups = read_groups(load_config(file).data.train).groups[:4]
        scored = score(str(folder), groups, World(0, 1, torch.device("cpu")))
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        for group, ours in zip(groups, scored, strict=True):
            for candidate, log_prob in zip(group.candidates, ours.log_probs, strict=True):
                prompt = tokenizer(group.prompt)["input_ids"]
                ids = torch.tensor([[*tokenizer(group.prompt + candidate)["input_ids"], tokenizer.eos_token_id]])
                with torch.no_grad():
                    table = model(ids).logits.log_softmax(-1)[0]
                expected = sum(float(table[i - 1, ids[0, i]]) for i in range(len(prompt), ids.shape[1]))
                assert log_prob == pytest.approx(expected, rel=1e-5)

    @pytest.mark.slow
    def test_adapter_loads_in_peft_alone(self, write_config, tiny_model, tmp_path):
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        folder = run(write_config(lora={"rank": 4}))
        assert not (folder / "model.safetensors").exists()
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        ids = torch.arange(4, 14)[None]
        with torch.no_grad():
            base_logits = base(ids).logits
            adapter_logits = PeftModel.from_pretrained(base, folder)(ids).logits
        assert not torch.allclose(base_logits, adapter_logits)
        from penchant.models.loading import load_model
        from penchant.models.lora import merge_adapter

        merge_adapter(str(folder), tmp_path / "merged")
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        with torch.no_grad():
            torch.testing.assert_close(load_model(str(folder))(ids).logits, adapter_logits, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(merged(ids).logits, adapter_logits, rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    def test_an_adapter_on_an_adapter_is_refused(self, write_config, tmp_path):
        """Its folder would name the bare base, and silently lose the first adapter."""
        adapter_folder = run(write_config(lora={"rank": 4}))
        with pytest.raises(ConfigError, match="adapter folder") as error:
            run(write_config(lora={"rank": 4}), f"model={adapter_folder}", f"output={tmp_path / 'second'}")
        assert "penchant merge" in error.value.fix
        full = run(write_config(lora=None), f"model={adapter_folder}", f"output={tmp_path / 'full'}")
        assert (full / "model.safetensors").exists()


def test_saturated_gradients_are_not_slow(write_config, monkeypatch):
    """Numbers below 1e-38 are zero while a run goes on, since products of them are many times slower; not after it."""
    flush_flags = []
    step = Loop.step
    monkeypatch.setattr(Loop, "step", lambda *a: (flush_flags.append(tiny() == 0), step(*a))[1])

    def tiny():
        return float(torch.full((1,), 1e-30) * 1e-12)

    train(load_config(write_config(training={"max_steps": 1}), []))
    assert flush_flags == [True]
    assert tiny() > 0
