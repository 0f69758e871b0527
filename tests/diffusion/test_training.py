"""Diffusion-DPO: its loss written out, its identity at the start, and what it does to preferred pictures."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal

import pytest
import torch
from torch.nn.functional import logsigmoid

from penchant.config.run_sections import CheckpointConfig, LoggingConfig, LoraConfig, TrainingConfig
from penchant.data.groups import PreferenceGroup
from penchant.diffusion.batches import DenoiserScorer, DrawnBatches, Draws
from penchant.diffusion.denoising import Denoiser
from penchant.diffusion.training import linear_layers, tune_denoiser
from penchant.engine.distributed import World
from penchant.engine.working_weights import WorkingWeights
from penchant.errors import ConfigError, TrainingError
from penchant.models.lora import add_adapters
from penchant.objectives import DPO, IPO, KTO, SFT, BetaDPO, MultiReference, Needs, Part, WeightedSum
from penchant.training import backward, loop
from penchant.training import model as training_model
from penchant.training.backward import Batch
from penchant.training.batches import Order
from penchant.training.loop import LoopConfig
from penchant.training.stop_signals import Interrupted

CPU = torch.device("cpu")
GROUPS = [
    PreferenceGroup("a red circle", ("red", "blue"), preferred=0, id="0"),
    PreferenceGroup("a blue square", ("blue", "red", "grey"), preferred=0, id="1"),
]


def read(name):
    """A flat picture of a colour."""
    return torch.tensor({"red": (0.9, -0.9, -0.9), "blue": (-0.9, -0.9, 0.9), "grey": (0.0, 0.0, 0.0)}[name])[
        :, None, None
    ].expand(3, 16, 16)


class ManyDPO(DPO):
    needs = Needs(many_references=True)


class FittedDPO(DPO):
    def fit(self, reference, groups, state):
        return state


def tuned(source, folder, objective, *, load_picture=read, targets="all-linear", pictures=None, **changes):
    denoiser = Denoiser(str(source), CPU)
    settings = TrainingConfig(**{"max_steps": 3, "batch_size": 2, "learning_rate": 1e-2, "warmup": 0.0, **changes})
    config = LoopConfig(
        folder=folder,
        resume_command="the same command",
        objective=objective,
        training=settings,
        checkpoints=CheckpointConfig(every=2),
        logging=LoggingConfig(every=1),
    )
    lora = LoraConfig(rank=4, targets=targets)
    tune_denoiser(denoiser, GROUPS, load_picture, config, lora, Draws(2, **(pictures or {})))
    return denoiser, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_it_begins_at_ln_2(stable_diffusion, tmp_path):
    _, metrics = tuned(stable_diffusion, tmp_path, DPO(beta=50.0))
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics[0]["rewards/margins"] == 0
    assert metrics[0]["grad_norm"] > 0
    assert metrics[2]["loss"] != pytest.approx(math.log(2), abs=1e-4)


def test_the_loss_written_out(stable_diffusion, tmp_path, monkeypatch):
    """By the paper's formula from predictions in hand: one timestep and noise for all pictures of a group."""
    calls = []
    true = Denoiser.noise_errors

    def watched(self, latents, encoded, timesteps, noise):
        errors = true(self, latents, encoded, timesteps, noise)
        calls.append((timesteps.tolist(), noise.clone(), errors.detach().double()))
        return errors

    monkeypatch.setattr(Denoiser, "noise_errors", watched)
    _, metrics = tuned(stable_diffusion, tmp_path, DPO(beta=50.0), max_steps=2, shuffle=False)
    assert len(calls) == 4
    draws_of_steps = []
    for step in (0, 1):
        losses = []
        (times, noise, reference_errors), (policy_times, policy_noise, policy_errors) = calls[2 * step :][:2]
        assert times == policy_times
        assert torch.equal(noise, policy_noise)
        for draw in (slice(0, 5), slice(5, 10)):
            draw_times, draw_noise = times[draw], noise[draw]
            assert draw_times == [draw_times[0]] * 2 + [draw_times[2]] * 3
            assert torch.equal(draw_noise[0], draw_noise[1])
            assert torch.equal(draw_noise[2], draw_noise[4])
            assert not torch.equal(draw_noise[0], draw_noise[2])
            pairs = {0: [(0, 1)], 1: [(2, 3), (2, 4)]}
            changes = policy_errors[draw] - reference_errors[draw]
            losses += [
                sum(-logsigmoid(-50.0 * (changes[w] - changes[other])).item() for w, other in group_pairs)
                / len(group_pairs)
                for group_pairs in pairs.values()
            ]
            draws_of_steps.append(tuple(draw_times))
        assert metrics[step]["loss"] == pytest.approx(sum(losses) / 4, rel=1e-9)
    assert metrics[1]["loss"] != pytest.approx(math.log(2), abs=1e-4)
    assert len(set(draws_of_steps)) == 4


def test_the_gradient_is_of_the_mean_over_draws_and_groups(stable_diffusion, tmp_path, monkeypatch):
    """Its norm, of the formula written out and differentiated by itself."""
    gradients, references, true = [], [], DenoiserScorer.forward

    def watched(self, batch):
        scores = true(self, batch)
        if not torch.is_grad_enabled():
            references.append(scores)
            return scores
        losses = []
        for (chosen, rejected, _), (best, *worse) in (scores - references[-1]).split(2):
            losses += [
                -logsigmoid(50.0 * (chosen - rejected)),
                -sum(logsigmoid(50.0 * (best - other)) for other in worse) / 2,
            ]
        assert len(losses) == 4
        adapters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        gradients.extend(torch.autograd.grad(sum(losses) / 4, adapters, retain_graph=True))
        return scores

    monkeypatch.setattr(DenoiserScorer, "forward", watched)
    _, metrics = tuned(stable_diffusion, tmp_path, DPO(beta=50.0), max_steps=1, shuffle=False)
    squares = [gradient.double().square().sum().item() for gradient in gradients]
    assert metrics[0]["grad_norm"] == pytest.approx(math.sqrt(sum(squares)), rel=1e-4)
    assert metrics[0]["grad_norm"] > 1e-3


@pytest.mark.slow
def test_preferred_pictures_become_likelier(small_denoiser, tmp_path):
    denoiser, metrics = tuned(small_denoiser, tmp_path, DPO(beta=100.0), max_steps=40)
    last = metrics[-10:]
    assert sum(line["rewards/accuracies"] for line in last) / 10 > 0.9
    # The adapters are merged: the UNet is a plain one again, and another than it was.
    start = Denoiser(str(small_denoiser), CPU)
    assert list(dict(denoiser.unet.named_parameters())) == list(dict(start.unet.named_parameters()))
    latents = denoiser.to_latents(torch.stack([read("red"), read("blue")]))
    encoded = denoiser.encode_prompts(["a red circle"]).expand(2, -1, -1)
    apart = []
    for seed in range(20):
        torch.manual_seed(seed)
        noise, times = torch.randn(1, 3, 16, 16).expand(2, -1, -1, -1), torch.randint(1000, (1,)).expand(2)
        with torch.no_grad():
            policy_errors, start_errors = (
                model.noise_errors(latents, encoded, times, noise) for model in (denoiser, start)
            )
        apart.append(float((policy_errors - start_errors)[0] - (policy_errors - start_errors)[1]))
    assert sum(apart) < 0


@pytest.mark.slow
def test_the_same_arguments_give_the_same_bits(stable_diffusion, tmp_path):
    one, two = (tuned(stable_diffusion, tmp_path / name, IPO(beta=0.1))[0] for name in "ab")
    assert all(torch.equal(a, b) for a, b in zip(one.unet.parameters(), two.unet.parameters(), strict=True))
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


@pytest.mark.slow_but("objective0-8192")
@pytest.mark.parametrize("token_budget", [8192, 1])
@pytest.mark.parametrize("objective", [BetaDPO(beta=50.0), WeightedSum((Part(1.0, BetaDPO()), Part(0.2, SFT())))])
def test_a_coupled_objective_sees_its_whole_batch(stable_diffusion, tmp_path, objective, token_budget, monkeypatch):
    """A step's two draws of its two groups are one batch, in each of three steps."""
    group_counts, true = [], backward.group_tensors
    monkeypatch.setattr(
        backward,
        "group_tensors",
        lambda groups, *arguments: group_counts.append(len(groups)) or true(groups, *arguments),
    )
    assert objective.coupled
    _, metrics = tuned(stable_diffusion, tmp_path, objective, token_budget=token_budget)
    assert group_counts == [4] * 3
    assert all(math.isfinite(line["loss"]) for line in metrics)
    if isinstance(objective, WeightedSum):
        # 0.2 of minus the log-prob of what is preferred stands beside ln 2.
        assert metrics[0]["loss"] == pytest.approx(math.log(2) - 0.2 * metrics[0]["logps/chosen"], rel=0.05)


class RecordingBetaDPO(BetaDPO):
    """Keeps the gaps and the state of every call."""

    def __call__(self, policy, reference, groups, state):
        ratios = (policy - reference[0]).detach().double()
        gaps = (ratios[:, :, None] - ratios[:, None, :])[groups.better]
        output, new_state = super().__call__(policy, reference, groups, state)
        CALLS.append((gaps, new_state))
        return output, new_state


CALLS = []


def test_a_state_moves_once_a_step_with_all_draws(stable_diffusion, tmp_path):
    """beta-DPO's mean gap over two draws of three pairs; its step counts optimizer steps."""
    CALLS.clear()
    _, metrics = tuned(stable_diffusion, tmp_path, RecordingBetaDPO(beta=50.0, start="zero"))
    assert [int(state["step"]) for _, state in CALLS] == [1, 2, 3]
    assert [len(gaps) for gaps, _ in CALLS] == [6, 6, 6]
    mean = 0.0
    for (gaps, _), line in zip(CALLS, metrics, strict=True):
        mean = 0.9 * mean + 0.1 * float(gaps.mean())
        assert line["beta_dpo/mean"] == pytest.approx(mean, abs=1e-9)


def test_the_gradient_of_a_coupled_batch_is_that_of_its_draws(stable_diffusion, tmp_path):
    """beta-DPO with alpha = 0 and nothing filtered is DPO over pairs, in loss, gradient and weights."""
    coupled, by_pairs = BetaDPO(beta=50.0, alpha=0.0, keep=1.0), DPO(beta=50.0, average="pairs")
    runs = [tuned(stable_diffusion, tmp_path / name, method) for name, method in (("one", coupled), ("two", by_pairs))]
    for coupled_line, pairs_line in zip(runs[0][1], runs[1][1], strict=True):
        assert coupled_line["loss"] == pytest.approx(pairs_line["loss"], rel=1e-5)
        assert coupled_line["grad_norm"] == pytest.approx(pairs_line["grad_norm"], rel=1e-4)
    weights = [denoiser.unet.state_dict() for denoiser, _ in runs]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("choice", "is_mode"), [("mode", True), ("sample", False)])
def test_latents_are_the_mode_or_a_sample(stable_diffusion, tmp_path, monkeypatch, choice, is_mode):
    """Of the VAE's distribution: a fresh sample for each draw, the same for policy and reference."""
    calls, true = [], Denoiser.noise_errors

    def watched(self, latents, *arguments):
        calls.append(latents.clone())
        return true(self, latents, *arguments)

    monkeypatch.setattr(Denoiser, "noise_errors", watched)
    tuned(stable_diffusion, tmp_path, DPO(beta=50.0), pictures={"latents": choice}, max_steps=1)
    reference, policy = calls
    assert torch.equal(reference, policy)
    first_draw, second_draw = policy.chunk(2)
    assert torch.equal(first_draw, second_draw) == is_mode
    mode = Denoiser(str(stable_diffusion), CPU).to_latents(torch.stack([read("red")]))
    assert any(torch.allclose(mode[0], latents, atol=1e-4) for latents in policy) == is_mode


@pytest.mark.slow
@pytest.mark.parametrize(("share", "min_count", "max_count"), [(0.0, 0, 0), (0.4, 20, 60)])
def test_a_share_of_prompts_is_empty(stable_diffusion, tmp_path, monkeypatch, share, min_count, max_count):
    """For guidance the UNet is to know no prompt too; a draw's prompts are its own."""
    calls, true = [], Denoiser.encode_prompts
    monkeypatch.setattr(Denoiser, "encode_prompts", lambda self, prompts: calls.append(prompts) or true(self, prompts))
    pictures = {"empty_prompts": share}
    tuned(stable_diffusion, tmp_path, DPO(beta=50.0), pictures=pictures, max_steps=25, targets=["to_q"])
    prompts = [prompt for batch in calls for prompt in batch]
    assert len(prompts) == 100
    assert set(prompts) - {""} == {group.prompt for group in GROUPS}
    assert min_count <= prompts.count("") <= max_count


@pytest.mark.parametrize(
    "objective",
    [
        SFT(),
        KTO(),
        MultiReference(),
        ManyDPO(),
        FittedDPO(),
        WeightedSum((Part(1.0, DPO()), Part(0.5, MultiReference()))),
        WeightedSum((Part(1.0, SFT()), Part(0.5, FittedDPO()))),
    ],
)
def test_an_objective_that_does_not_serve(stable_diffusion, tmp_path, objective):
    with pytest.raises(ConfigError, match=f"{objective.name} does not tune pictures"):
        tuned(stable_diffusion, tmp_path, objective)


@pytest.mark.parametrize("targets", [["q_proj"], "q_proj", ["norm1"], "("])
def test_adapters_for_layers_that_are_not_there(stable_diffusion, tmp_path, targets):
    with pytest.raises(ConfigError, match=r"lora\.targets: ") as error:
        tuned(stable_diffusion, tmp_path, DPO(), targets=targets)
    assert error.value.fix.startswith("use all-linear, or names of the model's layers: linear_1, ")
    assert "to_q, to_v" in error.value.fix


def test_adapters_where_they_are_asked_for(stable_diffusion, tmp_path):
    start_weights = Denoiser(str(stable_diffusion), CPU).unet.state_dict()
    denoiser, _ = tuned(stable_diffusion, tmp_path, DPO(beta=50.0), targets=["to_q", "to_v"])
    changed_names = {
        name for name, tensor in denoiser.unet.state_dict().items() if not torch.equal(tensor, start_weights[name])
    }
    assert {name.split(".")[-2] for name in changed_names} == {"to_q", "to_v"}


def test_a_loss_that_is_not_a_number_names_its_groups(stable_diffusion, tmp_path):
    def load_picture(name):
        return read(name) * (math.nan if name == "grey" else 1)

    with pytest.raises(TrainingError, match="the loss is not a finite number at step 1, with the groups 1;") as error:
        tuned(stable_diffusion, tmp_path, DPO(), load_picture=load_picture)
    assert "lower training.learning_rate" in error.value.fix


def test_a_gradient_that_is_not_a_number_names_every_group_once(stable_diffusion, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "scale_and_clip", lambda *arguments: math.inf)
    with pytest.raises(TrainingError, match="the gradient is not a finite number at step 1, with the groups 0, 1;"):
        tuned(stable_diffusion, tmp_path, DPO(), shuffle=False)


@pytest.fixture
def gradients(monkeypatch):
    """The gradients [P] of every step's total loss, before they are divided and clipped, in float64."""
    steps, true = [], loop.scale_and_clip

    def watched(scorer, *arguments):
        trained = [parameter.grad for parameter in scorer.parameters() if parameter.requires_grad]
        steps.append(torch.cat([gradient.flatten() for gradient in trained]).double())
        return true(scorer, *arguments)

    monkeypatch.setattr(loop, "scale_and_clip", watched)
    return steps


def count_pictures(monkeypatch):
    """The number of pictures in every call of the UNet."""
    counts, true = [], Denoiser.noise_errors

    def watched(self, latents, *arguments):
        counts.append(len(latents))
        return true(self, latents, *arguments)

    monkeypatch.setattr(Denoiser, "noise_errors", watched)
    return counts


def relative_difference(one, two):
    return float((one - two).norm() / one.norm())


@pytest.mark.parametrize("objective", [DPO(beta=50.0), BetaDPO(beta=50.0)])
def test_the_token_budget_changes_no_loss_and_no_gradient(stable_diffusion, monkeypatch, objective):
    """With 64 positions a picture: all 10 pictures of a step at once, at most 4 of them, or every group alone.

    In float64, so that rounding hides nothing.
    """
    denoiser = Denoiser(str(stable_diffusion), CPU)
    denoiser.unet = add_adapters(denoiser.unet, rank=4, alpha=8, dropout=0.0, targets=linear_layers(denoiser.unet))
    for name, parameter in denoiser.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    for part in (denoiser.unet, denoiser.text_encoder, denoiser._vae):
        part.double()
    scorer, counts, results = DenoiserScorer(denoiser), count_pictures(monkeypatch), []
    for budget in (8192, 4 * 64, 1):
        counts.clear()
        settings = TrainingConfig(token_budget=budget, dtype="float32")
        step = DrawnBatches(
            scorer, GROUPS, lambda name: read(name).double(), Draws(2), Order(2, 2, 0, False), settings
        ).batch(0)
        batch = Batch(step.groups, step.references, budget, "float32")
        weights = WorkingWeights(scorer, torch.float32)
        result, _ = backward.backward(scorer, objective, objective.initial_state(0), batch, World(0, 1, CPU), weights)
        total, count = result.sums["loss"].tolist()
        trained = [parameter for parameter in scorer.parameters() if parameter.requires_grad]
        gradient = torch.cat([parameter.grad.flatten() for parameter in trained]).double()
        scorer.zero_grad()
        results.append((total / count, gradient, max(counts)))
    (loss, whole_gradient, largest), *cut_results = results
    assert abs(loss - math.log(2)) > 1e-3
    assert largest == 10
    assert [size for _, _, size in cut_results] == [4, 3]
    for cut_loss, gradient, _ in cut_results:
        assert cut_loss == pytest.approx(loss, rel=1e-9)
        assert relative_difference(whole_gradient, gradient) < 1e-9


@pytest.mark.slow
def test_gradient_checkpointing_computes_blocks_twice_for_the_same_gradient(
    stable_diffusion, tmp_path, monkeypatch, gradients
):
    from diffusers.models.resnet import ResnetBlock2D

    block_calls, true = [], ResnetBlock2D.forward
    monkeypatch.setattr(
        ResnetBlock2D, "forward", lambda *inputs, **names: block_calls.append(1) or true(*inputs, **names)
    )
    runs = {}
    for is_on in (False, True):
        block_calls.clear()
        tuned(stable_diffusion, tmp_path / str(is_on), DPO(beta=50.0), gradient_checkpointing=is_on, max_steps=1)
        runs[is_on] = gradients.pop(), len(block_calls)
    assert relative_difference(runs[False][0], runs[True][0]) < 1e-6
    # The VAE's two passes and the reference's one are not repeated.
    assert runs[True][1] > runs[False][1]


@pytest.mark.slow
def test_bfloat16_rounds_the_products(stable_diffusion, tmp_path, gradients, monkeypatch):
    """As torch's autocast around the scorer of a run in float32 does, bit for bit."""

    def run(dtype):
        _, metrics = tuned(stable_diffusion, tmp_path / "run", DPO(beta=50.0), dtype=dtype, max_steps=1)
        shutil.rmtree(tmp_path / "run")
        return metrics[0], gradients.pop()

    (exact, exact_gradient), (rounded, rounded_gradient) = run("float32"), run("bfloat16")
    assert rounded["rewards/margins"] == 0
    assert rounded["logps/chosen"] != exact["logps/chosen"]
    assert rounded["logps/chosen"] == pytest.approx(exact["logps/chosen"], rel=1e-2)
    # Pictures of a pair have nearly the same gradient, so that what remains of their difference is rounded most.
    assert torch.cosine_similarity(exact_gradient, rounded_gradient, dim=0) > 0.9
    assert float(rounded_gradient.norm() / exact_gradient.norm()) == pytest.approx(1, abs=0.2)

    forward = DenoiserScorer.forward

    def autocast(self, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return forward(self, batch)

    monkeypatch.setattr(DenoiserScorer, "forward", autocast)
    by_autocast, gradient = run("float32")
    assert by_autocast["logps/chosen"] == rounded["logps/chosen"]
    assert torch.equal(gradient, rounded_gradient)


class Killed(Exception):
    pass


@pytest.mark.slow_but("objective0")
@pytest.mark.parametrize("objective", [DPO(beta=50.0), BetaDPO(beta=50.0)])
def test_a_killed_run_resumes_to_the_same_bits(stable_diffusion, tmp_path, monkeypatch, objective):
    """Killed in its fourth step, with a checkpoint after the second."""
    whole, _ = tuned(stable_diffusion, tmp_path / "whole", objective, max_steps=5)
    steps, true = [], DrawnBatches.batch

    def killing(self, step):
        if step == 3 and not steps:
            raise Killed
        return true(self, step)

    monkeypatch.setattr(DrawnBatches, "batch", killing)
    with pytest.raises(Killed):
        tuned(stable_diffusion, tmp_path / "cut", objective, max_steps=5)
    assert len((tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()) == 3
    monkeypatch.setattr(DrawnBatches, "batch", lambda self, step: steps.append(step) or true(self, step))
    resumed, metrics = tuned(stable_diffusion, tmp_path / "cut", objective, max_steps=5)
    assert steps == [2, 3, 4]
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5]
    for name in ("adapter_model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    pairs = zip(whole.unet.parameters(), resumed.unet.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


@pytest.mark.slow
def test_a_signal_finishes_the_step_and_saves(stable_diffusion, tmp_path):
    def load_picture(name):
        os.kill(os.getpid(), signal.SIGTERM)
        return read(name)

    with pytest.raises(Interrupted, match="interrupted; resume with: the same command") as error:
        tuned(stable_diffusion, tmp_path / "cut", DPO(beta=50.0), load_picture=load_picture)
    assert error.value.exit_code == 128 + signal.SIGTERM
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-00000001"]
    for folder in ("whole", "cut"):
        tuned(stable_diffusion, tmp_path / folder, DPO(beta=50.0))
    weights = [(tmp_path / folder / "adapter_model.safetensors").read_bytes() for folder in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_a_resumed_run_keeps_its_dtype(stable_diffusion, tmp_path, monkeypatch):
    """On another device `auto` would be another dtype."""
    _, metrics = tuned(stable_diffusion, tmp_path, DPO(beta=50.0), max_steps=1)
    monkeypatch.setattr(training_model, "best_dtype", lambda device: "bfloat16")
    assert tuned(stable_diffusion, tmp_path, DPO(beta=50.0), max_steps=1)[1] == metrics
    file = tmp_path / "arguments.json"
    record = json.loads(file.read_text())
    assert record["dtype"] == "float32"
    # A device that lacks the recorded dtype refuses it, though `auto` would choose another.
    file.write_text(json.dumps({**record, "dtype": "bfloat16"}))
    monkeypatch.setattr(training_model, "best_dtype", lambda device: "float32")
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda name: False)
    with pytest.raises(ConfigError, match="no mixed precision on cpu"):
        tuned(stable_diffusion, tmp_path, DPO(beta=50.0), max_steps=1)


@pytest.mark.slow
def test_a_run_with_other_arguments_is_not_resumed(stable_diffusion, tmp_path):
    _, metrics = tuned(stable_diffusion, tmp_path, DPO(beta=50.0), max_steps=1)
    with pytest.raises(ConfigError, match="was started with other arguments: objective, draws") as error:
        tuned(stable_diffusion, tmp_path, DPO(beta=51.0), max_steps=1, pictures={"empty_prompts": 0.2})
    assert error.value.where == str(tmp_path)
    assert tuned(stable_diffusion, tmp_path, DPO(beta=50.0), max_steps=1)[1] == metrics
