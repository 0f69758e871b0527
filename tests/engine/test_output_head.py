"""Log-probs of targets by whole logits."""

from __future__ import annotations

import torch

from penchant.engine.output_head import target_log_probs


def test_many_words_are_summed_exactly():
    """Over the vocabulary of a pretrained model a confident row's log-prob is float64's, up to float32's rounding."""
    torch.manual_seed(0)
    logits = torch.randn(50, 49_152) * 3 + 4
    logits[:, 7] = 23
    targets = torch.full((50,), 7)
    expected = logits.double().log_softmax(-1)[:, 7]
    difference = target_log_probs(logits, targets).double() - expected
    # torch's float32 log_softmax is 3.0e-5 too high in every row where its sum runs through the row in order.
    assert abs(difference.mean()) < 1e-6
    assert difference.abs().max() < 5e-6


def test_gradients_are_those_of_the_log_softmax():
    torch.manual_seed(0)
    logits = torch.randn(6, 11, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(11, (6,))
    assert torch.autograd.gradcheck(lambda x: target_log_probs(x, targets), (logits,))
    expected = logits.log_softmax(-1)[torch.arange(6), targets]
    torch.testing.assert_close(target_log_probs(logits, targets), expected)
