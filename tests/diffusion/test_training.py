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
    seen = []
    true = Denoiser.noise_errors

    def watched(self, latents, encoded, timesteps, noise):
        found = true(self, latents, encoded, timesteps, noise)
        seen.append((timesteps.tolist(), noise.clone(), found.detach().double()))
        return found

    monkeypatch.setattr(Denoiser, "noise_errors", watched)
    _, metrics = tuned(stable_diffusion, tmp_path, DPO(beta=50.0), max_steps=2, shuffle=False)
    for step in (0, 1):
        losses = []
        for draw in (0, 1):
            (times, noise, before), (again, same, now) = seen[4 * step + 2 * draw :][:2]
            assert times == again == [times[0]] * 2 + [times[2]] * 3
            assert torch.equal(noise, same)
            assert torch.equal(noise[0], noise[1])
            assert torch.equal(noise[2], noise[4])
            assert not torch.equal(noise[0], noise[2])
            pairs = {0: [(0, 1)], 1: [(2, 3), (2, 4)]}
            moved = now - before
            losses += [
                sum(-logsigmoid(-50.0 * (moved[w] - moved[other])).item() for w, other in each) / len(each)
                for each in pairs.values()
            ]
        assert metrics[step]["loss"] == pytest.approx(sum(losses) / 4, rel=1e-5)
    assert len({tuple(times) for times, _, _ in seen}) == 4


def test_the_gradient_is_of_the_mean_over_draws_and_groups(stable_diffusion, tmp_path, monkeypatch):
    """Its norm, of the formula written out and differentiated by itself."""
    gradients, true = [], module._log_probs

    def watched(denoiser, groups, read):
        policy, reference = true(denoiser, groups, read)
        (won, lost, _), (best, *others) = policy - reference
        losses = [-logsigmoid(50.0 * (won - lost)), -sum(logsigmoid(50.0 * (best - other)) for other in others) / 2]
        adapters = [each for each in denoiser.unet.parameters() if each.requires_grad]
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
    assert sum(each["rewards/accuracies"] for each in last) / 10 > 0.9
    # The adapters are merged: the UNet is a plain one again, and another than it was.
    first = Denoiser(str(small_denoiser), CPU)
    assert list(dict(denoiser.unet.named_parameters())) == list(dict(first.unet.named_parameters()))
    latents = denoiser.to_latents(torch.stack([read("red"), read("blue")]))
    encoded = denoiser.encode_prompts(["a red circle"]).expand(2, -1, -1)
    apart = []
    for seed in range(20):
        torch.manual_seed(seed)
        noise, times = torch.randn(1, 3, 16, 16).expand(2, -1, -1, -1), torch.randint(1000, (1,)).expand(2)
        with torch.no_grad():
            now, before = (each.noise_errors(latents, encoded, times, noise) for each in (denoiser, first))
        apart.append(float((now - before)[0] - (now - before)[1]))
    assert sum(apart) < 0


def test_the_same_arguments_give_the_same_bits(stable_diffusion, tmp_path):
    one, two = (tuned(stable_diffusion, tmp_path / name, IPO(beta=0.1))[0] for name in "ab")
    assert all(torch.equal(a, b) for a, b in zip(one.unet.parameters(), two.unet.parameters(), strict=True))
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("objective", [BetaDPO(beta=50.0), WeightedSum()])
def test_a_coupled_objective_sees_its_whole_batch(stable_diffusion, tmp_path, objective, monkeypatch):
    """A step's two draws of its two groups are one batch, in each of three steps."""
    told, true = [], module.group_tensors
    monkeypatch.setattr(module, "group_tensors", lambda groups, *more: told.append(len(groups)) or true(groups, *more))
    _, metrics = tuned(stable_diffusion, tmp_path, objective)
    assert told == [4] * 3
    assert all(math.isfinite(each["loss"]) for each in metrics)
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
    for first, second in zip(runs[0][1], runs[1][1], strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)
        assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-4)
    weights = [denoiser.unet.state_dict() for denoiser, _ in runs]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("choice", "same"), [("mode", True), ("sample", False)])
def test_latents_are_the_mode_or_a_sample(stable_diffusion, tmp_path, monkeypatch, choice, same):
    """Of the VAE's distribution: a fresh sample for each draw, the same for policy and reference."""
    calls, true = [], Denoiser.noise_errors

    def watched(self, latents, *arguments):
        calls.append(latents.clone())
        return true(self, latents, *arguments)

    monkeypatch.setattr(Denoiser, "noise_errors", watched)
    tuned(stable_diffusion, tmp_path, DPO(beta=50.0), pictures={"latents": choice}, max_steps=1)
    reference, policy, again, _ = calls
    assert torch.equal(reference, policy)
    assert torch.equal(policy, again) == same
    mode = Denoiser(str(stable_diffusion), CPU).to_latents(torch.stack([read("red")]))
    assert any(torch.allclose(mode[0], latents, atol=1e-4) for latents in policy) == same


@pytest.mark.parametrize(("share", "few", "most"), [(0.0, 0, 0), (0.4, 20, 60)])
def test_a_share_of_prompts_is_empty(stable_diffusion, tmp_path, monkeypatch, share, few, most):
    """For guidance the UNet is to know no prompt too; a draw's prompts are its own."""
    calls, true = [], Denoiser.encode_prompts
    monkeypatch.setattr(Denoiser, "encode_prompts", lambda self, prompts: calls.append(prompts) or true(self, prompts))
    pictures = {"empty_prompts": share}
    tuned(stable_diffusion, tmp_path, DPO(beta=50.0), pictures=pictures, max_steps=25, targets=["to_q"])
    prompts = [prompt for batch in calls for prompt in batch]
    assert len(prompts) == 100
    assert set(prompts) - {""} == {group.prompt for group in GROUPS}
    assert few <= prompts.count("") <= most


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
    first = Denoiser(str(stable_diffusion), CPU).unet.state_dict()
    denoiser, _ = tuned(stable_diffusion, tmp_path, DPO(beta=50.0), targets=["to_q", "to_v"])
    changed = {name for name, now in denoiser.unet.state_dict().items() if not torch.equal(now, first[name])}
    assert {name.split(".")[-2] for name in changed} == {"to_q", "to_v"}


def test_a_loss_that_is_not_a_number(stable_diffusion, tmp_path, monkeypatch):
    true = module._log_probs
    monkeypatch.setattr(module, "_log_probs", lambda *given: tuple(said * math.nan for said in true(*given)))
    with pytest.raises(TrainingError, match="not a finite number at step 1"):
        tuned(stable_diffusion, tmp_path, DPO())
