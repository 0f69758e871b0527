"""Whole runs of the methods that ask for more than pairs: state, mismatched responses, several references."""

from __future__ import annotations

import json
import math
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from penchant.config.run import load_config
from penchant.engine.distributed import World
from penchant.engine.reference_model import FrozenModel
from penchant.models.loading import load_tokenizer
from penchant.training import backward
from penchant.training.inputs import tokenize_inputs
from penchant.training.references import reference_tables
from penchant.training.run import train

THOMPSON = {"name": "multi_reference", "weighting": "thompson"}
WINDOW = {"name": "multi_reference", "weighting": "sliding_window", "window": 3}
SUM = {"name": "weighted_sum", "parts": [{"name": "beta_dpo"}, {"name": "sft", "weight": 0.5}]}


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def last_step(folder: Path) -> int:
    """Of the lines written whole; -1 where there is none yet, as a kill may leave it."""
    log = folder / "metrics.jsonl"
    whole = log.read_text().split("\n")[:-1] if log.exists() else []
    return int(json.loads(whole[-1])["step"]) if whole else -1


def run(file: Path, *overrides: str, resume: bool = False) -> Path:
    return train(load_config(file, overrides), resume=resume)


def objective_state(folder: Path) -> dict[str, torch.Tensor]:
    """The objective's state in the last checkpoint."""
    files = sorted((folder / "checkpoints").glob("step-*"))[-1].glob("*.safetensors")
    tensors = {name: value for file in files for name, value in load_file(file).items()}
    return {name.removeprefix("objective."): value for name, value in tensors.items() if name.startswith("objective.")}


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of another vocabulary: its tokenizer cuts texts into letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("other") / "model"
    letters = ["</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz .▁"]
    raw = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[], unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=len(letters), n_embd=16, n_layer=1, n_head=2, n_positions=256, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_fixed_weights_with_evaluation(write_config, tiny_model):
    """The metric that decides is asked for with as many references as the run has."""
    file = write_config(
        objective={"name": "multi_reference", "weighting": "fixed", "weights": [0.5, 0.5]},
        references=[str(tiny_model), str(tiny_model)],
        evaluation={"every": 3},
    )
    assert (run(file) / "best" / "model.safetensors").exists()


@pytest.mark.slow_but("objective0")
@pytest.mark.parametrize("objective", [{"name": "beta_dpo"}, {"name": "kto"}, THOMPSON, WINDOW, SUM])
def test_a_resumed_run_remembers(write_config, tmp_path, other_model, tiny_model, objective):
    """From the middle to the end, bit for bit, with all that the method had learnt of the batches before."""
    several = {"references": [str(tiny_model), str(other_model)]} if objective["name"] == "multi_reference" else {}
    file = write_config(objective=objective, checkpoints={"every": 1, "keep": 20}, **several)
    whole = run(file, f"output={tmp_path / 'whole'}")
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    for checkpoint in sorted((part / "checkpoints").iterdir())[3:]:
        shutil.rmtree(checkpoint)
    (part / "model.safetensors").unlink()
    halfway = objective_state(part)
    run(file, f"output={part}", resume=True)
    assert (whole / "metrics.jsonl").read_bytes() == (part / "metrics.jsonl").read_bytes()
    whole_weights, part_weights = load_file(whole / "model.safetensors"), load_file(part / "model.safetensors")
    assert all(torch.equal(whole_weights[name], part_weights[name]) for name in whole_weights)
    whole_state, part_state = objective_state(whole), objective_state(part)
    assert whole_state.keys() == part_state.keys()
    assert all(torch.equal(whole_state[name], part_state[name]) for name in whole_state)
    if objective["name"] != "kto":  # it is coupled, and remembers nothing
        assert any(not torch.equal(halfway[name], part_state[name]) for name in part_state)


@pytest.mark.slow
def test_a_resumed_run_decays_towards_the_same_start(write_config, tmp_path):
    """Not towards the checkpoint: from the middle to the end the bits are those of the whole run."""
    training = {"max_steps": 6, "batch_size": 8, "weight_decay": 5.0, "decay_towards": "start", "learning_rate": 1e-2}
    file = write_config(training=training, checkpoints={"every": 3, "keep": 2})
    folders = [run(file, f"output={tmp_path / 'whole'}"), tmp_path / "part"]
    shutil.copytree(*folders)
    shutil.rmtree(sorted((folders[1] / "checkpoints").iterdir())[-1])
    (folders[1] / "model.safetensors").unlink()
    run(file, f"output={folders[1]}", resume=True)
    whole_weights, part_weights = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(torch.equal(whole_weights[name], part_weights[name]) for name in whole_weights)
    free = load_file(
        run(file, f"output={tmp_path / 'free'}", "training.weight_decay=0", "training.decay_towards=zero")
        / "model.safetensors"
    )
    start = load_file(Path(load_config(file).model) / "model.safetensors")
    distances = [
        sum(float(((weights[name] - start[name]) ** 2).sum()) for name in start) for weights in (whole_weights, free)
    ]
    assert distances[0] < distances[1]


@pytest.mark.slow
def test_killed_at_random_moments_it_remembers(write_config, tmp_path, other_model, tiny_model, start_penchant):
    """kill -9, eight times and once the model is there, of a loss with beta-DPO's values, a bandit's and KTO's."""
    parts = [{"name": "beta_dpo"}, THOMPSON, {"name": "kto"}]
    file = write_config(
        objective={"name": "weighted_sum", "parts": parts},
        references=[str(tiny_model), str(other_model)],
        training={"max_steps": 45, "batch_size": 8, "token_budget": 128},
        checkpoints={"every": 5},
    )
    undisturbed = run(file, f"output={tmp_path / 'undisturbed'}")
    folder = tmp_path / "killed"
    draw = random.Random(1)
    reached = []
    for moment in range(9):
        arguments = [folder, "--resume"] if (folder / "run.json").exists() else [file, f"output={folder}"]
        process = start_penchant("train", *arguments)
        goal, deadline = min(last_step(folder) + draw.randint(1, 8), 36), time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if (last_step(folder) >= goal) if moment < 8 else (folder / "model.safetensors").exists():
                break
            time.sleep(0.005)
        time.sleep(draw.uniform(0.0, 0.02) if moment < 8 else 0.0)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it had ended before"
        reached.append(last_step(folder))
    assert len(set(reached)) > 5, "the kills all fell on start-up"
    assert reached[-1] == 45
    run(file, f"output={folder}", resume=True)
    assert (undisturbed / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()
    undisturbed_state, killed_state = objective_state(undisturbed), objective_state(folder)
    assert undisturbed_state.keys() == killed_state.keys()
    assert len(undisturbed_state) == 8  # four of beta-DPO, four of the bandit
    assert all(torch.equal(undisturbed_state[name], killed_state[name]) for name in undisturbed_state)


@pytest.mark.slow_but("objective0")
@pytest.mark.parametrize("objective", [{"name": "beta_dpo"}, {"name": "kto"}, SUM])
def test_the_token_budget_changes_nothing(write_config, tmp_path, objective):
    """The statistics are those of the optimizer batch, however it is cut."""
    file = write_config(objective=objective)
    losses = []
    for budget in (60, 100000):
        folder = run(file, f"output={tmp_path / str(budget)}", f"training.token_budget={budget}")
        losses.append([line.get("loss", line.get("eval_loss")) for line in lines(folder)])
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert len({round(loss, 6) for loss in losses[0]}) > 3


@pytest.mark.slow
def test_beta_dpo_is_the_same_at_any_token_budget(write_config, tmp_path, monkeypatch):
    """At 700 tokens, 8192 and all at once, from the first step on, whose gaps are the rounding of pi == ref.

    This model's log-probs are the same bits in every micro-batch; those of larger ones are not, so noise of their
    size is added that depends on the micro-batch.
    """
    score = backward._score_micro_batch

    def rounded_otherwise(scorer, batch, world):
        log_probs = score(scorer, batch, world)
        noise = torch.randn(log_probs.shape, generator=torch.Generator().manual_seed(len(batch.groups)))
        return log_probs + 2e-6 * noise

    monkeypatch.setattr(backward, "_score_micro_batch", rounded_otherwise)
    draw = random.Random(0)
    words = ("the", "old", "cat", "sees", "big", "dog", "then", "it", "runs", "small", "house", "river")
    file = tmp_path / "longer.jsonl"
    with file.open("w", encoding="utf-8") as stream:
        for _ in range(128):
            texts = [" ".join(draw.choices(words, k=draw.randint(8, 40))) for _ in range(3)]
            row = {"prompt": texts[0], "chosen": f" {texts[1]}", "rejected": f" {texts[2]}"}
            stream.write(json.dumps(row) + "\n")
    config_file = write_config(
        objective={"name": "beta_dpo"},
        data={"train": str(file), "held_out": None},
        training={"max_steps": 4, "batch_size": 128, "learning_rate": 1e-4},
    )
    curves = {}
    for budget in (700, 8192, 10**6):
        folder = run(config_file, f"output={tmp_path / str(budget)}", f"training.token_budget={budget}")
        curves[budget] = [line[name] for line in lines(folder) for name in ("loss", "beta_dpo/beta")]
    assert curves[700] == pytest.approx(curves[10**6], rel=0, abs=1e-6)
    assert curves[8192] == pytest.approx(curves[10**6], rel=0, abs=1e-6)
    assert len(set(curves[700])) > 6


@pytest.mark.slow
def test_evaluation_changes_nothing_of_what_is_remembered(write_config, tmp_path):
    file = write_config(objective={"name": "beta_dpo"})
    seldom = run(file, f"output={tmp_path / 'seldom'}")
    often = run(file, f"output={tmp_path / 'often'}", "evaluation.every=1")
    seldom_state, often_state = objective_state(seldom), objective_state(often)
    assert all(torch.equal(seldom_state[name], often_state[name]) for name in seldom_state)
    trained = [[line for line in lines(folder) if "loss" in line] for folder in (seldom, often)]
    assert trained[0] == trained[1]


class TestReferences:
    @pytest.mark.slow_but("0")
    @pytest.mark.parametrize("k", [0, 1])
    def test_all_weight_on_one_is_dpo_against_it(self, write_config, tmp_path, tiny_model, other_model, k):
        """Also where it is of another family and tokenizer: what is compared are log-probs of texts."""
        both = [str(tiny_model), str(other_model)]
        weights = [1.0 - k, float(k)]
        mixture = {"name": "multi_reference", "weighting": "fixed", "weights": weights, "trust_region": None}
        one = run(write_config(objective=mixture, references=both), f"output={tmp_path / 'mixture'}")
        two = run(write_config(reference=both[k]), f"output={tmp_path / 'dpo'}")
        for mixture_line, dpo_line in zip(lines(one), lines(two), strict=True):
            for name in dpo_line:
                if name in mixture_line and "norm" not in name:
                    assert mixture_line[name] == pytest.approx(dpo_line[name], rel=1e-5, abs=1e-6), name

    @pytest.mark.slow
    def test_one_model_is_in_memory_at_a_time(self, write_config, tiny_model, other_model, monkeypatch):
        """Each reference is let go before the next is loaded, and all before the policy."""
        import gc
        import weakref

        from penchant.engine import reference_model as frozen
        from penchant.models import loading

        alive: list[weakref.ref] = []
        alive_counts = []
        load = loading.load_model

        def watched(*arguments, **keywords):
            gc.collect()
            alive_counts.append(sum(reference() is not None for reference in alive))
            model = load(*arguments, **keywords)
            alive.append(weakref.ref(model))
            return model

        monkeypatch.setattr(frozen, "load_model", watched)
        monkeypatch.setattr("penchant.training.model.load_model", watched)
        run(write_config(objective={"name": "multi_reference"}, references=[str(tiny_model), str(other_model)]))
        assert alive_counts == [0, 0, 0]

    @pytest.mark.parametrize("max_length", ["null", "18"])
    def test_the_starting_weights_have_no_log_ratio_where_prompts_were_cut(
        self, write_config, tmp_path, tiny_model, max_length
    ):
        """The first row's prompt is beyond the context of 128; at 18 tokens many others are cut too."""
        rows = [json.loads(line) for line in Path(load_config(write_config()).data.train).read_text().splitlines()]
        rows[0]["prompt"] = "the old cat sees " * 40
        file = tmp_path / "long.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        copies = [str(shutil.copytree(tiny_model, tmp_path / name)) for name in ("one", "two")]
        config_file = write_config(
            objective={"name": "multi_reference", "mixture": "geometric", "weighting": "fixed", "weights": [0.5, 0.5]},
            references=copies,
            data={"train": str(file), "held_out": None, "truncation": "keep_end_of_prompt"},
            training={"max_steps": 1, "batch_size": 48, "token_budget": 1024, "dtype": "float32"},
        )
        config = load_config(config_file, [f"data.max_length={max_length}"])
        groups = tokenize_inputs(config, load_tokenizer(str(tiny_model)), 128).train
        assert any(group.truncated_tokens for group in groups)
        world = World(0, 1, torch.device("cpu"))
        log_probs = FrozenModel.load(str(tiny_model), world, "float32").log_probs(groups, world, 1024, "float32")[0]
        assert reference_tables(config, groups, 128, world) == ([log_probs, log_probs], [])
        assert lines(train(config))[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)

    @pytest.mark.slow
    def test_a_borrowed_response_is_cut_for_the_reference_as_for_the_policy(self, write_config, tmp_path, tiny_model):
        """A named copy of the start gives KTO the very numbers the start itself gives.

        At 18 tokens prompts are cut, and what they borrow is cut to the room their own responses have.
        """
        copy = shutil.copytree(tiny_model, tmp_path / "copy")
        file = write_config(
            objective={"name": "kto"}, data={"truncation": "keep_end_of_prompt", "max_length": 18}, reference=None
        )
        start = run(file, f"output={tmp_path / 'start'}")
        copy_run = run(file, f"output={tmp_path / 'named'}", f"reference={copy}")
        assert lines(start) == lines(copy_run)

    def test_weights_are_told(self, write_config, tiny_model, other_model):
        folder = run(
            write_config(objective={"name": "multi_reference"}, references=[str(tiny_model), str(other_model)])
        )
        last = [line for line in lines(folder) if "loss" in line][-1]
        assert last["multi_reference/weight_0"] + last["multi_reference/weight_1"] == pytest.approx(1.0, abs=1e-4)


def test_kto_learns_from_yes_and_no(write_config, tmp_path):
    """Unpaired rows: half are labelled good, and the mismatched responses give z."""
    rows = []
    for number in range(40):
        good = number % 2 == 0
        text = "cat cat cat" if good else "dog dog dog"
        rows.append(
            {"prompt": f"the old {'cat' if number % 3 else 'dog'} sees", "completion": f" {text}", "label": good}
        )
    file = tmp_path / "labels.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    config = write_config(
        objective={"name": "kto"},
        data={"train": str(file)},
        training={"max_steps": 20, "batch_size": 8, "learning_rate": 1e-3},
    )
    folder = run(config)
    trained = [line for line in lines(folder) if "loss" in line]
    first_line, last_line = trained[0], trained[-1]
    assert first_line["loss"] == pytest.approx(0.5, abs=1e-6)
    assert first_line["kl"] == 0.0
    assert last_line["loss"] < 0.45
    assert last_line["rewards/chosen"] > last_line["rewards/rejected"]
