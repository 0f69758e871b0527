"""A reference that becomes the policy at the best evaluation: losses against it, its checkpoints, what is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from penchant.config.run import RunConfig, load_config
from penchant.data.tokenized import TokenizedGroup
from penchant.errors import ConfigError
from penchant.models.loading import load_tokenizer
from penchant.training.batches import Order
from penchant.training.inputs import tokenize_inputs
from penchant.training.run import train

UPDATED = {"reference_update": "best", "evaluation": {"every": 3}, "checkpoints": {"every": 1, "keep": 20}}
FAST = {"max_steps": 7, "batch_size": 8, "token_budget": 128, "learning_rate": 1e-2, "schedule": "constant"}
LORA = {"lora": {"rank": 4, "alpha": 16}}
MIXTURE = {
    "name": "multi_reference",
    "mixture": "geometric",
    "weighting": "fixed",
    "weights": [0.5, 0.5],
    "trust_region": None,
}


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run(file: Path, *overrides: str, resume: bool = False) -> Path:
    return train(load_config(file, overrides), resume=resume)


def checkpoint_tensors(folder: Path, step: int) -> dict[str, torch.Tensor]:
    files = (folder / "checkpoints" / f"step-{step:08d}").glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def policy_at(config: RunConfig, folder: Path, step: int) -> PreTrainedModel:
    """The policy of a checkpoint in float64, adapters added to the base's weights; of step 0 the starting model."""
    model = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float64)
    weights = dict(model.named_parameters())
    tensors = checkpoint_tensors(folder, step) if step else {}
    prefix, suffix_a, suffix_b = "model.model.", ".lora_A.default.weight", ".lora_B.default.weight"
    trained = {name.removeprefix(prefix): t.double() for name, t in tensors.items() if name.startswith(prefix)}
    with torch.no_grad():
        for name, tensor in trained.items():
            if name.endswith(suffix_a):
                layer = name.removesuffix(suffix_a)
                scale = config.lora.alpha / config.lora.rank
                weights[f"{layer}.weight"] += scale * trained[layer + suffix_b] @ tensor
            elif not name.endswith(suffix_b):
                weights[name].copy_(tensor)
    return model.eval()


@torch.no_grad()
def log_probs(model: PreTrainedModel, group: TokenizedGroup) -> list[float]:
    """Summed log-prob of every candidate, nats: a forward for each."""
    sums = []
    for response in group.responses:
        ids = torch.tensor([*group.prompt.tolist(), *response.tolist()])
        predicted = model(input_ids=ids[None]).logits[0, len(group.prompt) - 1 : -1].log_softmax(-1)
        sums.append(float(predicted.gather(1, ids[len(group.prompt) :, None]).sum()))
    return sums


def dpo_loss(policy: PreTrainedModel, references: list[PreTrainedModel], groups: list[TokenizedGroup]) -> float:
    """Mean DPO loss at beta 0.1 against the references' mean log-probs; the first candidate is the chosen one."""
    total = 0.0
    for group in groups:
        chosen, rejected = log_probs(policy, group)
        mixed = [sum(side) / len(references) for side in zip(*(log_probs(r, group) for r in references), strict=True)]
        total += math.log1p(math.exp(-0.1 * (chosen - mixed[0] - rejected + mixed[1])))
    return total / len(groups)


@pytest.fixture
def other_reference(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with noise on its weights."""
    folder = tmp_path / "other"
    shutil.copytree(tiny_model, folder)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow_but("dpo with lora")
@pytest.mark.parametrize("method", ["dpo", "dpo with lora", "multi_reference"])
def test_losses_are_those_against_the_policy_of_the_update(write_config, tiny_model, other_reference, method):
    """Seven steps, evaluated after three and six; in float64, by forwards of the checkpoints' weights."""
    sections = {
        "dpo": {},
        "dpo with lora": LORA,
        "multi_reference": {"objective": MIXTURE, "references": [str(tiny_model), str(other_reference)]},
    }[method]
    file = write_config(**UPDATED, **sections, training=FAST)
    config = load_config(file)
    folder = run(file)
    inputs = tokenize_inputs(config, load_tokenizer(config.model), 128)
    assert all(group.group.pairs == ((0, 1),) for group in [*inputs.train, *inputs.held_out])
    policies = [policy_at(config, folder, step) for step in range(8)]
    fixed_references = (
        [AutoModelForCausalLM.from_pretrained(other_reference, dtype=torch.float64)] if config.references else []
    )
    evaluations = {line["step"]: line for line in lines(folder) if "eval_loss" in line}
    losses = {line["step"]: line["loss"] for line in lines(folder) if "loss" in line}

    assert [(step, line["reference_step"]) for step, line in evaluations.items()][:3] == [(0, 0), (3, 0), (6, 3)]
    updated = 6 if evaluations[6]["eval_loss"] < evaluations[3]["eval_loss"] else 3
    assert evaluations[7]["reference_step"] == updated
    for step, line in evaluations.items():
        expected = dpo_loss(policies[step], [policies[line["reference_step"]], *fixed_references], inputs.held_out)
        assert line["eval_loss"] == pytest.approx(expected, abs=2e-5)
    order = Order(len(inputs.train), 8, 0, True)
    for step in range(7):
        reference = policies[0 if step < 3 else 3 if step < 6 else updated]
        groups = [inputs.train[index] for index in order.batch(step)]
        assert losses[step + 1] == pytest.approx(
            dpo_loss(policies[step], [reference, *fixed_references], groups), abs=2e-5
        )
        if step >= 3:  # The tolerance tells the references apart.
            assert abs(losses[step + 1] - dpo_loss(policies[step], [policies[0], *fixed_references], groups)) > 1e-3
    assert "(replaced by the policy at each best evaluation)" in (folder / "README.md").read_text()


@pytest.mark.slow_but("full-2")
@pytest.mark.parametrize("last_checkpoint", [2, 3, 5])
@pytest.mark.parametrize("sections", [{}, {"lora": {"rank": 4, "dropout": 0.1}}], ids=["full", "lora"])
def test_a_resumed_run_has_the_same_reference(write_config, tmp_path, sections, last_checkpoint):
    """Bit for bit, from a checkpoint before the update, of its step, and after it."""
    whole = run(write_config(**UPDATED, **sections, training=FAST), f"output={tmp_path / 'whole'}")
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    for checkpoint in (part / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > last_checkpoint:
            shutil.rmtree(checkpoint)
    run(tmp_path / "run.yaml", f"output={part}", resume=True)
    assert (whole / "metrics.jsonl").read_bytes() == (part / "metrics.jsonl").read_bytes()
    expected, resumed = checkpoint_tensors(whole, 7), checkpoint_tensors(part, 7)
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    updated = int(expected["reference.step"])
    assert updated in (3, 6, 7)
    policy = {name.removeprefix("model."): tensor for name, tensor in checkpoint_tensors(whole, updated).items()}
    copies = {name: tensor for name, tensor in expected.items() if name.startswith("reference.weights.")}
    assert len(copies) == sum(name.startswith("model.") for name in expected)
    assert all(torch.equal(copies[name], policy[name.removeprefix("reference.weights.")]) for name in copies)


@pytest.mark.slow
def test_an_update_after_the_last_step_changes_no_loss(write_config, tmp_path):
    file = write_config(evaluation={"every": 7}, training=FAST)
    fixed_run = run(file, f"output={tmp_path / 'never'}")
    updated_run = run(file, f"output={tmp_path / 'best-update'}", "reference_update=best")
    records = lines(updated_run)
    assert [record.pop("reference_step") for record in records if "eval_loss" in record] == [0, 0]
    assert records == lines(fixed_run)
    fixed_weights, updated_weights = (load_file(folder / "model.safetensors") for folder in (fixed_run, updated_run))
    assert all(torch.equal(fixed_weights[name], updated_weights[name]) for name in fixed_weights)


def test_the_reference_is_the_policy_of_the_best_evaluation_so_far(write_config):
    """Only evaluations that are better than all before them move it; that before the first step never does."""
    training = {**FAST, "max_steps": 12, "learning_rate": 3e-2}
    folder = run(write_config(reference_update="best", evaluation={"every": 1}, training=training))
    best, best_step, updates = math.inf, 0, []
    for line in (line for line in lines(folder) if "eval_loss" in line):
        assert line["reference_step"] == best_step
        if line["step"] and line["eval_loss"] < best:
            best, best_step = line["eval_loss"], line["step"]
            updates.append(best_step)
    assert updates[0] == 1
    assert 1 < len(updates) < 11


@pytest.mark.slow
@pytest.mark.parametrize("objective", [{"name": "kto"}, {"name": "beta_dpo"}, {"name": "ipo"}], ids=lambda o: o["name"])
def test_other_methods_with_a_reference_follow_it(write_config, tmp_path, objective):
    file = write_config(**UPDATED, objective=objective, training=FAST)
    fixed_lines = lines(run(file, f"output={tmp_path / 'never'}", "reference_update=never"))
    updated_lines = lines(run(file, f"output={tmp_path / 'best-update'}"))
    pairs = [(a["loss"], b["loss"]) for a, b in zip(fixed_lines, updated_lines, strict=True) if "loss" in a]
    assert all(a == b for a, b in pairs[:3])
    assert all(a != b for a, b in pairs[3:])


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"evaluation": {}}, "reference_update is best, and evaluation.every is null"),
        ({"data": {"held_out": None}}, "evaluation.every is 3, and no held-out data is named"),
        ({"objective": {"name": "orpo"}}, "orpo cannot follow it: it has no reference"),
        ({"objective": {"name": "bradley_terry"}}, "bradley_terry cannot follow it: it has no reference"),
        (
            {
                "objective": {"name": "multi_reference", "weighting": "validation_margin"},
                "references": ["MODEL", "MODEL"],
                "data": {"reference_held_out": 0.2},
            },
            "multi_reference cannot follow it: its reference weights are fitted before training",
        ),
        (
            {"candidates": "sampled", "reward": {"function": "rewards.py:score"}},
            "candidates is sampled: reference_update=best",
        ),
    ],
    ids=["no evaluation", "no held-out data", "no reference", "reward model", "fitted weights", "sampled"],
)
def test_what_cannot_follow_it_is_refused(write_config, tiny_model, tmp_path, sections, message):
    sections = {"evaluation": {"every": 3}, **sections}
    if "references" in sections:
        sections["references"] = [str(tiny_model)] * 2
    file = write_config(reference_update="best", **sections)
    with pytest.raises(ConfigError) as error:
        run(file)
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()
