"""Log-probs at a temperature: the softmax of logits over T, by the output head and by both scorers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from penchant.data.groups import PreferenceGroup
from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import pack
from penchant.engine.output_head import head_log_probs
from penchant.engine.padded import PaddedScorer
from penchant.engine.tree import TreeScorer, use_tree

SIZES = {"vocab_size": 41, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


class Holder(torch.nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.head = torch.nn.Linear(16, 41, bias=bias)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("kind", ["plain", "bias", "lora", "hooked"])
def test_the_head_divides_its_capped_logits(kind, softcap):
    torch.manual_seed(0)
    holder = Holder(bias=kind == "bias")
    if kind == "lora":
        holder = inject_adapter_in_model(LoraConfig(r=3, target_modules=["head"], init_lora_weights=False), holder)
    if kind == "hooked":
        holder.head.register_forward_hook(lambda module, inputs, output: output + 0.5)
    hidden, targets = torch.randn(7, 16) * 3, torch.randint(0, 41, (7,))
    logits = holder.head(hidden)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = (logits / 0.6).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    actual = head_log_probs(holder.head, hidden, targets, softcap=softcap, temperature=0.6)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    parameters = [parameter for parameter in holder.parameters() if parameter.requires_grad]
    gradients = [torch.autograd.grad(value.sum(), parameters) for value in (actual, expected)]
    for gradient, reference_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, reference_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
        lambda: Gemma2ForCausalLM(
            Gemma2Config(
                **SIZES, num_key_value_heads=1, head_dim=8, final_logit_softcapping=2.0, query_pre_attn_scalar=8
            )
        ),
    ],
    ids=["llama", "gemma2"],
)
def test_both_scorers_divide_the_logits(model):
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    groups = [
        TokenizedGroup(
            draw.integers(3, 41, 5),
            tuple(draw.integers(3, 41, n) for n in lengths),
            PreferenceGroup("x", ("y",) * len(lengths), preferred=0),
        )
        for lengths in ((3, 6), (4, 2))
    ]
    language_model = model().eval()
    for parameter in language_model.parameters():
        parameter.data *= 3
    batch = pack(groups, temperature=0.4).to(torch.device("cpu"))
    expected = []
    for group in groups:
        for response in group.responses:
            ids = torch.tensor([[*group.prompt.tolist(), *response.tolist()]])
            logits = language_model(ids).logits[0, len(group.prompt) - 1 : -1]
            log_probs = (logits.double() / 0.4).log_softmax(-1)
            expected.append(log_probs.gather(-1, torch.from_numpy(response)[:, None]).sum())
    padded = PaddedScorer(language_model)(batch)
    use_tree(language_model)
    tree = TreeScorer(language_model)(batch)
    for scores in (padded, tree):
        torch.testing.assert_close(scores.flatten().double(), torch.stack(expected), rtol=1e-4, atol=1e-4)
