"""Diffusion-DPO: its loss written out, its identity at the start, and what it does to preferred pictures."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from penchant.config.run import LoraConfig, TrainingConfig
from penchant.data.groups import PreferenceGroup
from penchant.diffusion import training as module
from penchant.diffusion.denoising import Denoiser
from penchant.diffusion.training import Draws, tune_denoiser
from penchant.errors import ConfigError, TrainingError
from penchant.objectives import DPO, IPO, KTO, SFT, BetaDPO, MultiReference, Needs, Part, WeightedSum

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


def tuned(source, folder, objective, groups=GROUPS, targets="all-linear", pictures=None, **changes):
    denoiser = Denoiser(str(source), CPU)
    settings = TrainingConfig(**{"max_steps": 3, "batch_size": 2, "learning_rate": 1e-2, "warmup": 0.0, **changes})
    lora = LoraConfig(rank=4, targets=targets)
    tune_denoiser(denoiser, groups, read, objective, settings, lora, Draws(2, **(pictures or {})), folder)
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
    for step in (0, 1):
        losses = []
        for draw in (0, 1):
            reference_call, policy_call = calls[4 * step + 2 * draw :][:2]
            times, noise, reference_errors = reference_call
            policy_times, policy_noise, policy_errors = policy_call
            assert times == policy_times == [times[0]] * 2 + [times[2]] * 3
            assert torch.equal(noise, policy_noise)
            assert torch.equal(noise[0], noise[1])
            assert torch.equal(noise[2], noise[4])
            assert not torch.equal(noise[0], noise[2])
            pairs = {0: [(0, 1)], 1: [(2, 3), (2, 4)]}
            changes = policy_errors - reference_errors
            losses += [
                sum(-logsigmoid(-50.0 * (changes[w] - changes[other])).item() for w, other in group_pairs)
                / len(group_pairs)
                for group_pairs in pairs.values()
            ]
        assert metrics[step]["loss"] == pytest.approx(sum(losses) / 4, rel=1e-5)
    assert len({tuple(times) for times, _, _ in calls}) == 4


def test_the_gradient_is_of_the_mean_over_draws_and_groups(stable_diffusion, tmp_path, monkeypatch):
    """Its norm, of the formula written out and differentiated by itself."""
    gradients, true = [], module._log_probs

    def watched(denoiser, groups, read):
        policy, reference = true(denoiser, groups, read)
        (chosen, rejected, _), (best, *worse) = policy - reference
        losses = [
            -logsigmoid(50.0 * (chosen - rejected)),
            -sum(logsigmoid(50.0 * (best - other)) for other in worse) / 2,
        ]
        adapters = [parameter for parameter in denoiser.unet.parameters() if parameter.requires_grad]
        gradients.append(torch.autograd.grad(sum(losses) / 2, adapters, retain_graph=True))
        return policy, reference

    monkeypatch.setattr(module, "_log_probs", watched)
    _, metrics = tuned(stable_diffusion, tmp_path, DPO(beta=50.0), max_steps=1, shuffle=False)
    squares = [((one + two) / 2).double().square().sum().item() for one, two in zip(*gradients, strict=True)]
    assert metrics[0]["grad_norm"] == pytest.approx(math.sqrt(sum(squares)), rel=1e-4)
    assert metrics[0]["grad_norm"] > 1e-3


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


def test_the_same_arguments_give_the_same_bits(stable_diffusion, tmp_path):
    one, two = (tuned(stable_diffusion, tmp_path / name, IPO(beta=0.1))[0] for name in "ab")
    assert all(torch.equal(a, b) for a, b in zip(one.unet.parameters(), two.unet.parameters(), strict=True))
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("objective", [BetaDPO(beta=50.0), WeightedSum()])
def test_a_coupled_objective_sees_its_whole_batch(stable_diffusion, tmp_path, objective, monkeypatch):
    """A step's two draws of its two groups are one batch, in each of three steps."""
    group_counts, true = [], module.group_tensors
    monkeypatch.setattr(
        module, "group_tensors", lambda groups, *arguments: group_counts.append(len(groups)) or true(groups, *arguments)
    )
    _, metrics = tuned(stable_diffusion, tmp_path, objective)
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
    reference, policy, next_reference, _ = calls
    assert torch.equal(reference, policy)
    assert torch.equal(policy, next_reference) == is_mode
    mode = Denoiser(str(stable_diffusion), CPU).to_latents(torch.stack([read("red")]))
    assert any(torch.allclose(mode[0], latents, atol=1e-4) for latents in policy) == is_mode


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


def test_a_loss_that_is_not_a_number(stable_diffusion, tmp_path, monkeypatch):
    true = module._log_probs
    monkeypatch.setattr(
        module, "_log_probs", lambda *arguments: tuple(log_probs * math.nan for log_probs in true(*arguments))
    )
    with pytest.raises(TrainingError, match="not a finite number at step 1"):
        tuned(stable_diffusion, tmp_path, DPO())
