"""The learning rate's course by hand, and AdamW against the update written out."""

from __future__ import annotations

import pytest
import torch

from penchant.config.run_sections import TrainingConfig
from penchant.training.optimizer import build_optimizer, gradient_norm, learning_rate, scale_and_clip


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", 0, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ("linear", 2, [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("linear", 0.2, [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("cosine", 0, [1, 0.97553, 0.90451, 0.79389, 0.65451, 0.5, 0.34549, 0.20611, 0.09549, 0.02447]),
    ],
)
def test_learning_rate_by_hand(schedule, warmup, expected):
    config = TrainingConfig(schedule=schedule, warmup=warmup, learning_rate=1.0)
    assert [learning_rate(step, 10, config) for step in range(10)] == pytest.approx(expected, abs=1e-5)


def test_adamw_equals_the_update_written_out():
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2).double()
    module.register_parameter("frozen", torch.nn.Parameter(torch.ones(1), requires_grad=False))
    config = TrainingConfig(learning_rate=0.1, weight_decay=0.5, betas=(0.8, 0.9), epsilon=1e-6)
    optimizer = build_optimizer(module, config)
    expected = {name: p.detach().clone() for name, p in module.named_parameters()}
    first_moment = {name: torch.zeros_like(p) for name, p in expected.items()}
    second_moment = {name: torch.zeros_like(p) for name, p in expected.items()}
    for step in range(1, 4):
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            gradient = torch.randn_like(parameter)
            parameter.grad = gradient.clone()
            decay = 0.5 if parameter.ndim == 2 else 0.0
            first_moment[name] = 0.8 * first_moment[name] + 0.2 * gradient
            second_moment[name] = 0.9 * second_moment[name] + 0.1 * gradient**2
            update = (first_moment[name] / (1 - 0.8**step)) / ((second_moment[name] / (1 - 0.9**step)).sqrt() + 1e-6)
            expected[name] = expected[name] * (1 - 0.1 * decay) - 0.1 * update
        optimizer.step()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-10, atol=1e-12)


class Headed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model, self.head = torch.nn.Linear(3, 2).double(), torch.nn.Linear(2, 1).double()


def test_decay_towards_the_start_by_hand():
    """With no gradient: the model's weights go a share lr lambda of the way back, the head's to zero, biases stay."""
    torch.manual_seed(0)
    module = Headed()
    config = TrainingConfig(learning_rate=0.1, weight_decay=0.5, decay_towards="start")
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = build_optimizer(module, config, head_decay=0.2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    for rate, away in ((0.1, 0.95), (0.4, 0.95 * 0.8)):
        for group in optimizer.param_groups:
            group["lr"] = rate
        head_before = module.head.weight.detach().clone()
        optimizer.step()
        torch.testing.assert_close(module.model.weight.detach(), start["model.weight"] + away)
        torch.testing.assert_close(module.head.weight.detach(), head_before * (1 - rate * 0.2))
        torch.testing.assert_close(module.model.bias.detach(), start["model.bias"] + 1)


@pytest.mark.parametrize(("max_norm", "factor"), [(100.0, 1.0), (0.5, 0.1)])
def test_gradients_are_scaled_and_clipped_at_once(max_norm, factor):
    """Of gradients 6 and 8, halved: norm 5, and clipped to 0.5 a tenth of that is left."""
    module = torch.nn.Linear(1, 1)
    module.weight.grad, module.bias.grad = torch.tensor([[6.0]]), torch.tensor([8.0])
    assert float(gradient_norm(module)) == pytest.approx(10.0)
    assert scale_and_clip(module, 0.5, 10.0, max_norm) == pytest.approx(5.0)
    assert float(module.weight.grad) == pytest.approx(3.0 * factor, rel=1e-5)
    assert float(module.bias.grad) == pytest.approx(4.0 * factor, rel=1e-5)
