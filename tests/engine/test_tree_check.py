"""The check at load in half precision: real rounding is no reason to refuse the tree, and a wrong tree is refused."""

from __future__ import annotations

import copy
import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import pack
from penchant.engine import attention, tree_check
from penchant.engine import tree_check as rounding
from penchant.engine.kernels import layer_fusion as lean
from penchant.engine.padded import PaddedScorer
from penchant.engine.scorer_choice import choose_scorer, sample_groups
from penchant.engine.scoring import precision
from penchant.engine.tree import TreeScorer
from penchant.engine.tree_check import NoFloat32, TreeCheck, Verdict, in_float32, is_half
from penchant.engine.tree_plan import Tiling, TreePlan

CPU = torch.device("cpu")
UNTIED = ("llama", "qwen3", "mistral-window", "gpt-oss")


@pytest.fixture(scope="module")
def noisy(build, make_groups):
    """A model in bfloat16 as noisy as a real one, and groups whose responses it drew itself, of about -20 nats.

    One hidden number is large for every token, as in real models, so all logits share a large part that is rounded.
    """

    def make(family: str, common: float = 16.0) -> tuple[torch.nn.Module, list[TokenizedGroup]]:
        model = build(family)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(2.0)
            model.get_input_embeddings().weight[:, 0] = 1.0
            model.get_output_embeddings().weight[:, 0] = common
        shapes = [(30, (12, 12, 12)), (25, (12, 13, 11))] * 3
        groups = [draw_responses(model, group, seed) for seed, group in enumerate(make_groups(shapes, 0))]
        return model.to(torch.bfloat16), groups

    return make


@torch.no_grad()
def draw_responses(model, group: TokenizedGroup, seed: int) -> TokenizedGroup:
    source, responses = torch.Generator().manual_seed(seed), []
    for response in group.responses:
        ids = torch.tensor(group.prompt)[None]
        for _ in response:
            token = torch.multinomial(model(ids).logits[0, -1].softmax(-1), 1, generator=source)
            ids = torch.cat([ids, token[None]], 1)
        responses.append(ids[0, len(group.prompt) :].numpy())
    return TokenizedGroup(group.prompt, tuple(responses), group.group)


def float32_sums(model, groups) -> torch.Tensor:
    """Summed log-probs [C] by a copy in float32, each candidate alone and unpadded."""
    exact, sums = copy.deepcopy(model).float(), []
    exact.set_attn_implementation("eager")
    for group in groups:
        for response in group.responses:
            ids = torch.tensor([[*group.prompt, *response]])
            with torch.no_grad():
                table = exact(ids).logits[0].log_softmax(-1)
            sums.append(sum(float(table[i - 1, ids[0, i]]) for i in range(len(group.prompt), ids.shape[1])))
    return torch.tensor(sums)


@pytest.fixture(params=["float32", "two padded ways"])
def measure(request, monkeypatch) -> str:
    """The two measures of rounding: against float32, or by the spread of padded forwards without float32."""
    if request.param != "float32":

        def refuse(model, head=None):
            raise NoFloat32("no room")

        monkeypatch.setattr(tree_check, "in_float32", refuse)
    return request.param


@pytest.mark.slow_but("float32-qwen3", "float32-mistral")
@pytest.mark.parametrize("common", [16.0, 64.0], ids=["noise of a small model", "noise of a large model"])
@pytest.mark.parametrize("family", UNTIED)
def test_real_noise_is_no_reason_to_refuse_the_tree(noisy, family, common, measure):
    model, groups = noisy(family, common)
    choice = choose_scorer(model, groups, "bfloat16")
    assert choice.notice is None
    assert isinstance(choice.scorer, TreeScorer)
    # A family without sdpa has one padded way.
    assert choice.rounding > 0.05 if measure == "float32" or model._supports_sdpa else choice.rounding is None


def test_rounding_is_the_distance_from_float32(noisy):
    model, groups = noisy("llama")
    exact = float32_sums(model, groups[:2])
    assert -26 < exact.mean() < -15
    choice = choose_scorer(model, groups, "bfloat16")
    batch = pack(groups[:2])
    with torch.no_grad(), precision(CPU, "bfloat16"):
        actual = choice.scorer(batch).flatten()[batch.slots]
    assert choice.rounding == pytest.approx(float((actual - exact).abs().max()), abs=1e-3)
    assert 0.1 < choice.rounding < 0.5
    (note,) = choice.notes
    assert f"{choice.rounding:.2g}" in note


def full_bias(self, tile, dtype):
    sides = self.tiles[tile].queries, self.tiles[tile].keys
    queries, keys = (sum(end - start for start, end in spans) for spans in sides)
    return torch.zeros(queries, keys, dtype=dtype)


def inject(monkeypatch, wrong: str) -> None:
    """Make the tree wrong: branches that see one another, a missing window, or missing sinks."""
    tiling, explicit = TreePlan.tiling, attention._explicit
    if wrong == "mask":
        monkeypatch.setattr(Tiling, "bias", full_bias)
    elif wrong == "window":
        monkeypatch.setattr(TreePlan, "tiling", lambda self, window: tiling(self, None))
    else:
        monkeypatch.setattr(attention, "_explicit", lambda *arguments: explicit(*arguments[:7], arguments[7] - 30))


@pytest.mark.slow_but("float32-llama", "float32-qwen3")
@pytest.mark.parametrize(
    ("family", "wrong"),
    [
        ("llama", "mask"),
        ("qwen3", "mask"),
        ("mistral-window", "mask"),
        ("mistral-window", "window"),
        ("gpt-oss", "mask"),
        ("gpt-oss", "sinks"),
    ],
)
def test_a_wrong_tree_is_caught_in_a_model_as_noisy_as_a_real_one(noisy, monkeypatch, family, wrong, measure):
    model, groups = noisy(family)
    implementation = model.config._attn_implementation
    inject(monkeypatch, wrong)
    choice = choose_scorer(model, groups, "bfloat16")
    assert isinstance(choice.scorer, PaddedScorer)
    assert ("in float32" if measure == "float32" else "padded forward's") in choice.notice
    assert model.config._attn_implementation == implementation


def test_a_kernel_that_is_wrong_in_half_precision_alone_is_caught(noisy, monkeypatch):
    model, groups = noisy("llama")
    forward = TreeScorer.forward

    def wrong(self, batch):
        half = torch.is_autocast_enabled("cpu")
        return forward(self, batch) + (2.0 if half else 0.0)

    monkeypatch.setattr(TreeScorer, "forward", wrong)
    choice = choose_scorer(model, groups, "bfloat16")
    assert isinstance(choice.scorer, PaddedScorer)
    assert "padded forward's" in choice.notice


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_wrong_fused_layers_are_caught_and_removed(build, make_groups, monkeypatch, dtype):
    model, groups = build("llama"), make_groups([(9, (4, 7)), (20, (5, 3))], 0)
    expected = PaddedScorer(model)(pack(groups))
    rms_norm = lean.rms_norm
    monkeypatch.setattr(lean, "rms_norm", lambda x, *arguments: rms_norm(x, *arguments) * (1.0 if len(x) == 3 else 1.5))
    monkeypatch.setattr(tree_check, "_GROUPS", 1)
    choice = choose_scorer(model, groups, dtype)
    assert isinstance(choice.scorer, PaddedScorer)
    assert torch.equal(choice.scorer(pack(groups)), expected)


def test_the_notice_says_how_many_times_the_tokens(build, make_groups):
    groups = make_groups([(100, (5,) * 10), (50, (5, 4))], 0)
    notice = choose_scorer(build("gpt-j"), groups).notice
    times = (10 * 105 + 2 * 55) / (150 + 59)
    assert f"about {times:.1f} times the tokens" in notice


def test_the_check_rounds_as_training_does(build, make_groups):
    """Masters in float32 under autocast: the numbers of the check are rounded as training's are."""
    model, groups = build("llama"), make_groups([(9, (4, 7)), (20, (5, 3))], 0)
    assert choose_scorer(build("llama"), groups).rounding is None
    choice = choose_scorer(model, groups, "bfloat16")
    batch = pack(groups)
    with torch.no_grad():
        exact = PaddedScorer(build("llama"))(batch)
        with precision(CPU, "bfloat16"):
            rounded = choice.scorer(batch)
    assert choice.rounding == pytest.approx(float((rounded - exact).abs().max()), rel=1e-3)
    assert choice.rounding > 1e-3


@pytest.mark.parametrize(
    ("weights", "products", "half"),
    [
        (torch.float32, "float32", False),
        (torch.float64, "float32", False),
        (torch.float32, "bfloat16", True),
        (torch.bfloat16, "float32", True),
        (torch.float16, "float32", True),
    ],
)
def test_weights_or_products_in_half_precision_are_rounded(weights, products, half):
    assert is_half(weights, products) is half


def test_weights_in_bfloat16_round_without_autocast(noisy):
    model, groups = noisy("llama")
    exact = float32_sums(model, groups[:2])
    choice = choose_scorer(model, groups)
    batch = pack(groups[:2])
    with torch.no_grad():
        actual = choice.scorer(batch).flatten()[batch.slots]
    assert choice.half
    assert choice.rounding == pytest.approx(float((actual - exact).abs().max()), abs=1e-3)
    assert choice.rounding > 0.05


@pytest.mark.parametrize("wrong", [None, "mask"])
def test_the_check_leaves_the_weights_as_they_were(noisy, monkeypatch, wrong):
    model, groups = noisy("llama")
    originals = {name: value.clone() for name, value in model.state_dict().items()}
    if wrong is not None:
        inject(monkeypatch, wrong)
    choice = choose_scorer(model, groups, "bfloat16")
    assert (choice.notice is None) is (wrong is None)
    for name, value in model.state_dict().items():
        assert value.dtype == originals[name].dtype, name
        assert torch.equal(value, originals[name]), name


def test_more_candidates_are_looked_at_before_a_refusal(noisy, monkeypatch):
    model, groups = noisy("llama")
    looks: list[int] = []

    def judge(self, sample):
        looks.append(sum(len(group.responses) for group in sample))
        return Verdict("its numbers are off" if len(looks) == 1 else None, 0.3)

    monkeypatch.setattr(TreeCheck, "_judge_rounding", judge)
    assert choose_scorer(model, groups, "bfloat16").notice is None
    assert looks == [6, 18]


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gemma2", "gpt2", "opt", "mixtral", "gpt-oss", "deepseek-v3"])
def test_float32_without_a_copy(build, name):
    model = build(name).to(torch.bfloat16)
    originals = {key: value.clone() for key, value in model.state_dict().items()}
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        exact = copy.deepcopy(model).float()(ids).logits
        with torch.autocast("cpu", torch.bfloat16), in_float32(model):
            actual = model(ids).logits
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, exact, rtol=1e-5, atol=1e-5)
        assert model(ids).logits.dtype == torch.bfloat16
    for key, value in model.state_dict().items():
        assert value.dtype == originals[key].dtype
        assert torch.equal(value, originals[key]), key


def test_no_room_for_float32(build, monkeypatch):
    monkeypatch.setattr(rounding, "available_bytes", lambda device: 1000)
    with pytest.raises(NoFloat32, match=re.escape("MB in float32")), in_float32(build("llama").to(torch.bfloat16)):
        pass


def test_a_sample_begins_in_the_middle(make_groups):
    groups = make_groups([(n, (3, 2)) for n in np.random.default_rng(0).permutation(np.arange(5, 45))], 0)
    lengths = [group.length for group in sample_groups(groups)]
    assert len(lengths) == 8
    assert lengths[:2] == [30, 31]
    assert len(sample_groups(groups[:3])) == 3


def test_the_padded_forward_is_off_by_its_worst_way() -> None:
    exact = torch.tensor([-20.0, -21.0])
    ways = [exact + torch.tensor([0.1, 0.0]), exact + torch.tensor([0.0, -0.3])]
    padded = tree_check._Padded(ways, exact)
    assert padded.rounding == pytest.approx(0.3, abs=1e-5)
    assert padded.max_error == pytest.approx(0.6, abs=1e-5)
    assert padded.error(exact + 0.5) == pytest.approx(0.5, abs=1e-5)
    assert tree_check._Padded([exact], exact).max_error == pytest.approx(2e-4)


def test_without_float32_the_spread_is_the_largest_and_the_error_to_the_nearest() -> None:
    ways = [torch.tensor([-20.0]), torch.tensor([-20.2]), torch.tensor([-20.5])]
    padded = tree_check._Padded(ways, None)
    assert padded.rounding == pytest.approx(0.5, abs=1e-5)
    assert padded.error(torch.tensor([-20.6])) == pytest.approx(0.1, abs=1e-5)


def test_rows_in_a_batch_are_a_padded_way_too(noisy, monkeypatch):
    numbers = {("eager", False): -20.0, ("sdpa", False): -20.1, ("eager", True): -20.6, ("sdpa", True): -20.2}

    def score_rows(self, attention, sample, *, together=False, exact=False):
        if exact:
            raise NoFloat32("no room")
        return torch.tensor([numbers[attention, together]])

    monkeypatch.setattr(TreeCheck, "_padded_scores", score_rows)
    model, groups = noisy("llama")
    padded = TreeCheck(model, PaddedScorer(model), PaddedScorer(model), nullcontext, True)._measure(groups)
    assert padded.rounding == pytest.approx(0.6, abs=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tree_that_gives_no_numbers_is_refused(build, make_groups, monkeypatch, dtype):
    forward = TreeScorer.forward
    monkeypatch.setattr(TreeScorer, "forward", lambda self, batch: forward(self, batch) * float("nan"))
    choice = choose_scorer(build("llama"), make_groups([(9, (4, 7)), (20, (5, 3))], 0), dtype)
    assert isinstance(choice.scorer, PaddedScorer)


def test_a_fallback_is_noted_first(build, make_groups):
    groups = make_groups([(9, (4, 7)), (20, (5, 3))], 0)
    choice = choose_scorer(build("gpt-j"), groups)
    assert "is run padded, one row a candidate" in choice.notice
    assert choice.notes == [choice.notice]
    half = choose_scorer(build("gpt-j"), groups, "bfloat16")
    assert half.notes[0] == half.notice
    assert "half precision rounds the model's numbers" in half.notes[1]
