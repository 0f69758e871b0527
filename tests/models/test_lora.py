"""Low-rank adapters against PEFT's own forward: trained, saved and merged; on heads and embeddings too.

The oracle is a second copy of the model under PEFT, as PEFT runs it: each candidate alone, full logits.
"""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model

from penchant.data.trees import pack
from penchant.engine.attention import TREE
from penchant.engine.distributed import World
from penchant.engine.padded import PaddedScorer, unpack
from penchant.engine.policy import Policy
from penchant.engine.tree import TreeScorer, use_tree
from penchant.errors import ConfigError
from penchant.models.loading import load_model
from penchant.models.lora import merge_adapter, untrained_adapters

pytestmark = pytest.mark.filterwarnings("ignore")

SINGLE = World(0, 1, torch.device("cpu"))
SHAPES = [(9, (4, 7)), (5, (3, 1, 6))]
SETTINGS = {"rank": 3, "alpha": 6.0, "dropout": 0.0}
EMBEDDINGS = {"gpt2": "wte", "gpt-neox": "embed_in"}
LAYERS = {"gpt2": "c_attn", "gpt-neox": "query_key_value", "phi3": "qkv_proj"}
FAMILIES = ["llama", "llama-tied", "qwen3", "gpt2", "gemma2", "opt", "gpt-neox", "phi-bias"]
KINDS = {
    "head and layer": lambda layer, head, embedding: [layer, head],
    "head alone": lambda layer, head, embedding: [head],
    "head by regex": lambda layer, head, embedding: rf".*\.{layer}|.*{head}",
    "embedding": lambda layer, head, embedding: [layer, embedding],
    "both by regex": lambda layer, head, embedding: rf".*({layer}|{head}|{embedding})",
}


def targets_of(family: str, kind: str) -> str | list[str]:
    return KINDS[kind](LAYERS.get(family, "q_proj"), "lm_head", EMBEDDINGS.get(family, "embed_tokens"))


@pytest.fixture
def model_of(build):
    """A family's tiny model; one with a bias in its head beside those of the tree's tests."""

    def make(family: str) -> hf.PreTrainedModel:
        if family != "phi-bias":
            return build(family)
        torch.manual_seed(0)
        config = hf.PhiConfig(
            vocab_size=61,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=512,
            initializer_range=0.2,
            eos_token_id=2,
        )
        model = hf.PhiForCausalLM(config)
        torch.nn.init.normal_(model.lm_head.bias)
        return model.eval()

    return make


def perturb(model: torch.nn.Module) -> None:
    """Set adapters to random weights, the same for the same names."""
    source = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.3)


def under_peft(model: hf.PreTrainedModel, targets: str | list[str], **settings) -> PeftModel:
    """PEFT's own model on a copy of this one."""
    config = LoraConfig(r=3, lora_alpha=6.0, target_modules=targets, task_type="CAUSAL_LM", **settings)
    return get_peft_model(copy.deepcopy(model), config)


def by_hand(model: torch.nn.Module, batch) -> torch.Tensor:
    """Log-probs [C] by the model's own forward, a candidate at a time."""
    sums = []
    for sequence, prompt in zip(*unpack(batch), strict=True):
        log_probs = model(input_ids=sequence[None]).logits[0, prompt - 1 : -1].log_softmax(-1)
        sums.append(log_probs.gather(-1, sequence[prompt:, None]).sum())
    return torch.stack(sums)


def train_policy(policy: Policy, scorer: str) -> TreeScorer | PaddedScorer:
    policy.model.set_attn_implementation(TREE if scorer == "tree" else "eager")
    return (TreeScorer if scorer == "tree" else PaddedScorer)(policy.model)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    parameters = {name.removeprefix("base_model.model."): p for name, p in model.named_parameters() if p.requires_grad}
    assert parameters
    return {name: p.grad for name, p in parameters.items()}


@pytest.mark.slow_but("llama-tied-")
@pytest.mark.parametrize("scorer", ["tree", "padded"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_are_pefts(model_of, make_groups, all_float64, family, kind, scorer):
    model = model_of(family).double()
    batch = pack(make_groups(SHAPES, 1))
    oracle = under_peft(model, targets_of(family, kind))
    perturb(oracle)
    policy = Policy(copy.deepcopy(model), None)
    if scorer == "tree":
        use_tree(policy.model)
    policy.add_lora(**SETTINGS, targets=targets_of(family, kind))
    policy.model.load_state_dict(oracle.get_base_model().state_dict())
    upstream = torch.randn(len(batch.slots), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with all_float64():
        expected = by_hand(oracle, batch)
        (expected * upstream).sum().backward()
        actual = train_policy(policy, scorer)(batch).flatten()[batch.slots]
        (actual * upstream).sum().backward()
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=0)
    actual_gradients, expected_gradients = gradients(policy.model), gradients(oracle)
    assert actual_gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert gradient.norm() > 1e-6, name
        torch.testing.assert_close(
            actual_gradients[name], gradient, rtol=1e-8, atol=1e-10 * float(gradient.norm()), msg=name
        )


@pytest.mark.parametrize("family", ["llama-tied", "qwen3", "gemma2"])
def test_a_head_in_bfloat16_learns_as_much_as_pefts(model_of, make_groups, family):
    model = model_of(family)
    batch = pack(make_groups(SHAPES, 1))
    oracle = under_peft(model, targets_of(family, "head and layer"))
    perturb(oracle)
    policy = Policy(copy.deepcopy(model).bfloat16(), None)
    policy.add_lora(**SETTINGS, targets=targets_of(family, "head and layer"))
    policy.model.load_state_dict(oracle.get_base_model().state_dict())
    by_hand(oracle, batch).sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_probs = train_policy(policy, "tree")(batch)
    log_probs.sum().backward()
    expected_gradients = gradients(oracle)
    for name, gradient in gradients(policy.model).items():
        if name.startswith("lm_head"):
            assert (
                torch.cosine_similarity(gradient.flatten().float(), expected_gradients[name].flatten(), dim=0) > 0.99
            ), name


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["lm_head"]])
def test_dropout_on_the_head_is_pefts(model_of, make_groups, targets):
    """Dropout with one seed drops the same inputs: the head's are the packed hidden states of tokens that are read."""
    model = model_of("llama")
    policy = Policy(model, None)
    policy.add_lora(rank=3, alpha=6.0, dropout=0.5, targets=targets)
    perturb(policy.model)
    scorer, batch = train_policy(policy, "tree"), pack(make_groups(SHAPES, 1))
    evaluation_scores = scorer.eval()(batch)
    scorer.train()
    torch.manual_seed(0)
    training_scores = scorer(batch)
    torch.manual_seed(0)
    assert torch.equal(scorer(batch), training_scores)
    assert not torch.allclose(training_scores, evaluation_scores)
    torch.testing.assert_close(scorer.eval()(batch), evaluation_scores)


def test_dropout_falls_on_the_heads_input(monkeypatch, model_of, make_groups):
    """With a dropout that halves every second number, in place of a random one."""
    model = model_of("llama")
    batch = pack(make_groups(SHAPES, 1))
    half = torch.tensor([0.5, 1.0]).repeat(16)
    oracle = under_peft(model, ["lm_head"], lora_dropout=0.5).train()
    perturb(oracle)
    policy = Policy(copy.deepcopy(model), None)
    policy.add_lora(rank=3, alpha=6.0, dropout=0.5, targets=["lm_head"])
    policy.model.load_state_dict(oracle.get_base_model().state_dict())
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: x * half if self.p else x)
    torch.testing.assert_close(
        train_policy(policy, "tree")(batch).flatten()[batch.slots],
        by_hand(oracle, batch).double(),
        rtol=1e-5,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"trainable_token_indices": [5, 6, 7]},
        {"use_dora": True},
        {"lora_bias": True},
        {"use_rslora": True},
    ],
    ids=["head copied", "both copied", "tokens", "dora", "bias", "rslora"],
)
@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_any_wrapping_of_the_head_is_pefts(model_of, make_groups, all_float64, family, settings):
    """Wrappings that the configuration does not offer, but a caller of the library may use."""
    targets = ["q_proj"] if {"modules_to_save", "trainable_token_indices"} & settings.keys() else ["q_proj", "lm_head"]
    oracle = under_peft(model_of(family).double(), targets, **settings)
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    batch = pack(make_groups(SHAPES, 1))
    wrapped = copy.deepcopy(oracle)
    wrapped.get_base_model().set_attn_implementation(TREE)
    for switch in (False, True):
        with all_float64():
            if switch:
                with oracle.disable_adapter(), wrapped.disable_adapter():
                    expected, actual = by_hand(oracle, batch), TreeScorer(wrapped.get_base_model())(batch)
            else:
                expected, actual = by_hand(oracle, batch), TreeScorer(wrapped.get_base_model())(batch)
                expected.sum().backward()
                actual.sum().backward()
        torch.testing.assert_close(actual.flatten()[batch.slots], expected, rtol=1e-10, atol=0)
    actual_gradients, expected_gradients = gradients(wrapped), gradients(oracle)
    for name, gradient in expected_gradients.items():
        if gradient is not None:
            torch.testing.assert_close(actual_gradients[name], gradient, rtol=1e-8, atol=1e-9, msg=name)


@pytest.mark.slow_but("llama-tied-embedding", "llama-tied-head alone", "gpt2-head")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_merged_and_alone_are_what_was_trained(model_of, make_groups, tiny_model, tmp_path, family, kind):
    """Trained, PEFT unmerged, our reading of the adapter's folder, the merged folder in transformers alone."""
    base, folder, merged = (tmp_path / name for name in ("base", "adapter", "merged"))
    model_of(family).save_pretrained(base)
    tokenizer = hf.AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(base)
    batch = pack(make_groups(SHAPES, 1))
    with torch.no_grad():
        policy = Policy(load_model(str(base)), tokenizer)
        policy.add_lora(**SETTINGS, targets=targets_of(family, kind))
        perturb(policy.model)
        folder.mkdir()
        policy.save(folder, PaddedScorer(policy.model), SINGLE, torch.float32)
        expected = by_hand(policy.model, batch)
        unmerged = PeftModel.from_pretrained(hf.AutoModelForCausalLM.from_pretrained(base), folder)
        results = {
            "tree": train_policy(policy, "tree")(batch).flatten()[batch.slots].float(),
            "peft": by_hand(unmerged.eval(), batch),
            "ours": by_hand(load_model(str(folder)), batch),
        }
        merge_adapter(str(folder), merged)
        results["merged"] = by_hand(hf.AutoModelForCausalLM.from_pretrained(merged).eval(), batch)
    for name, log_probs in results.items():
        torch.testing.assert_close(
            log_probs, expected, rtol=1e-5, atol=2e-5, msg=lambda text, name=name: f"{name} {text}"
        )


def test_an_adapter_of_one_tied_module_unties(model_of, tiny_model, tmp_path):
    model_of("llama-tied").save_pretrained(tmp_path / "base")
    tokenizer = hf.AutoTokenizer.from_pretrained(tiny_model)
    policy = Policy(load_model(str(tmp_path / "base")), tokenizer)
    policy.add_lora(**SETTINGS, targets=["q_proj"])
    (tmp_path / "plain").mkdir()
    policy.save(tmp_path / "plain", PaddedScorer(policy.model), SINGLE, torch.float32)
    assert load_model(str(tmp_path / "plain")).config.tie_word_embeddings
    policy = Policy(load_model(str(tmp_path / "base")), tokenizer)
    policy.add_lora(**SETTINGS, targets=["embed_tokens"])
    perturb(policy.model)
    (tmp_path / "adapter").mkdir()
    policy.save(tmp_path / "adapter", PaddedScorer(policy.model), SINGLE, torch.float32)
    merged = load_model(str(tmp_path / "adapter"))
    assert merged.lm_head.weight is not merged.model.embed_tokens.weight
    assert not merged.config.tie_word_embeddings
    # Trained on, all of its weights, it is saved with both.
    Policy(merged, tokenizer).save(tmp_path / "adapter", PaddedScorer(merged), SINGLE, torch.float32)
    reloaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(reloaded.lm_head.weight, merged.lm_head.weight)
    assert torch.equal(reloaded.model.embed_tokens.weight, merged.model.embed_tokens.weight)


def test_an_embedding_with_a_forward_of_its_own_is_refused(model_of):
    policy = Policy(model_of("opt"), None)
    with pytest.raises(ConfigError, match=r"embed_positions") as error:
        policy.add_lora(**SETTINGS, targets=r".*(q_proj|embed_positions)")
    assert "lora.targets" in str(error.value)


def test_the_error_gives_the_whole_reason(model_of):
    with pytest.raises(ConfigError) as error:
        Policy(model_of("llama"), None).add_lora(**SETTINGS, targets=r".*layers\.0")
    assert "not supported" in error.value.what
    assert "\n" not in error.value.what


def test_untrained_adapters_are_named(model_of):
    policy = Policy(model_of("llama"), None)
    policy.add_lora(**SETTINGS, targets=["q_proj", "lm_head", "embed_tokens"])
    adapted_layers = ["lm_head", "model.embed_tokens", *(f"model.layers.{i}.self_attn.q_proj" for i in range(2))]
    assert sorted(untrained_adapters(policy.adapters)) == adapted_layers
    with torch.no_grad():
        policy.model.lm_head.lora_B["default"].weight[0, 0] = 1e-9
        policy.model.model.embed_tokens.lora_embedding_A["default"][0, 0] = 1e-9
    assert sorted(untrained_adapters(policy.adapters)) == adapted_layers[2:]
