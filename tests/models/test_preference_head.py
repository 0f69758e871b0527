"""Preference heads: they read the last token's hidden state, and never change the language model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import silu

from penchant.data.groups import PreferenceGroup
from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import pack
from penchant.engine.distributed import World
from penchant.engine.padded import PaddedScorer
from penchant.engine.reward_scorers import HeadedScorer, require_end_tokens
from penchant.engine.scorer_choice import choose_scorer
from penchant.engine.scoring import score_with_head
from penchant.errors import DataError, ModelError
from penchant.models.preference_head import PreferenceHead, load_head, save_head

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def groups(make_groups) -> list[TokenizedGroup]:
    return make_groups([(7, (4, 2, 9)), (3, (5, 1)), (12, (6,))], 0)


def scorers(build, name, groups):
    """The same model by the tree (where it has one), and padded."""
    return [choose_scorer(build(name), groups[:2]).scorer, PaddedScorer(build(name))]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_log_probs_are_bit_identical_with_the_head_and_without(build, groups, name):
    head = PreferenceHead(build(name).config.hidden_size, "swiglu")
    for scorer in scorers(build, name, groups):
        batch = pack(groups)
        assert torch.equal(HeadedScorer(scorer, head)(batch)[0], scorer(batch))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bloom"])
def test_it_reads_the_last_tokens_hidden_state(build, groups, name):
    """Against the library's own hidden states of each sequence alone."""
    model = build(name)
    head = PreferenceHead(model.config.hidden_size, "tanh")
    for scorer in scorers(build, name, groups):
        rewards = HeadedScorer(scorer, head)(pack(groups))[1]
        for g, group in enumerate(groups):
            for k, response in enumerate(group.responses):
                ids = torch.from_numpy(np.concatenate([group.prompt, response]))[None]
                with torch.no_grad():
                    last = model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
                assert float(rewards[g, k].detach()) == pytest.approx(float(head(last[None])[0].detach()), rel=1e-4)
            assert (rewards[g, len(group.responses) :] == 0).all()


def test_a_frozen_model_has_no_gradient_and_keeps_its_log_probs(build, groups):
    model = build("llama")
    model.requires_grad_(False)
    scorer = HeadedScorer(choose_scorer(model, groups[:2]).scorer, PreferenceHead(model.config.hidden_size, "identity"))
    batch = pack(groups)
    scores = scorer(batch)
    optimizer = torch.optim.SGD([p for p in scorer.parameters() if p.requires_grad], lr=10.0)
    scores[1].sum().backward()
    assert all(p.grad is None for p in model.parameters())
    optimizer.step()
    new_scores = scorer(batch)
    assert torch.equal(scores[0], new_scores[0])
    assert not torch.equal(scores[1], new_scores[1])


def test_rewards_of_many_groups_whatever_the_budget(build, groups):
    model = build("llama")
    scorer = HeadedScorer(choose_scorer(model, groups[:2]).scorer, PreferenceHead(model.config.hidden_size, "tanh"))
    one, two = (score_with_head(scorer, groups, world=ALONE, budget=b, dtype="float32") for b in (1, 10**6))
    assert [len(row) for row in one] == [3, 2, 1]
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)


class TestPooling:
    """Every form of pooling by its formula."""

    HIDDEN = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))

    def parts(self, head):
        return head.weight.weight, getattr(head.dense, "weight", None), getattr(head.dense, "bias", None)

    def test_identity(self):
        head = PreferenceHead(8, "identity")
        torch.testing.assert_close(head(self.HIDDEN), (self.HIDDEN @ head.weight.weight.T)[:, 0])

    @pytest.mark.parametrize("pooling", ["tanh", "dropout_tanh"])
    def test_tanh(self, pooling):
        head = PreferenceHead(8, pooling)
        w, dense, bias = self.parts(head)
        torch.testing.assert_close(head(self.HIDDEN), (torch.tanh(self.HIDDEN @ dense.T + bias) @ w.T)[:, 0])

    def test_swiglu_down(self):
        """A whole SwiGLU block: 8/3 of the size, gated, projected down, then tanh; initialized as other layers."""
        torch.manual_seed(0)
        head = PreferenceHead(9, "swiglu_down")
        x = torch.randn(4, 9) * 5
        assert head.gate.weight.shape == head.dense.weight.shape == (24, 9)
        gated = silu(x @ head.gate.weight.T) * (x @ head.dense.weight.T)
        expected = torch.tanh(gated @ head.down.weight.T) @ head.weight.weight[0]
        torch.testing.assert_close(head(x), expected)
        assert float(head.down.weight.std()) == pytest.approx(0.02, rel=0.2)
        assert (head.down.bias == 0).all()

    def test_swiglu(self):
        head = PreferenceHead(8, "swiglu")
        w, dense, bias = self.parts(head)
        gate = silu(self.HIDDEN @ head.gate.weight.T + head.gate.bias)
        torch.testing.assert_close(head(self.HIDDEN), (torch.tanh((self.HIDDEN @ dense.T + bias) * gate) @ w.T)[:, 0])

    def test_it_starts_small_without_bias_and_in_float32(self):
        torch.manual_seed(0)
        head = PreferenceHead(4096, "identity")
        assert head.weight.bias is None
        assert float(head.weight.weight.std()) == pytest.approx(0.02, rel=0.1)
        assert head(torch.zeros(1, 4096, dtype=torch.bfloat16)).dtype == torch.float32

    def test_dropout_is_for_training(self):
        head = PreferenceHead(8, "dropout_tanh", dropout=0.5)
        assert not torch.equal(head.train()(self.HIDDEN), head(self.HIDDEN))
        assert torch.equal(head.eval()(self.HIDDEN), head(self.HIDDEN))


class TestOnDisk:
    @pytest.mark.parametrize("pooling", ["identity", "swiglu", "swiglu_down"])
    def test_round_trip(self, tmp_path, pooling):
        head = PreferenceHead(8, pooling, 0.1).eval()
        save_head(tmp_path, head)
        assert torch.equal(load_head(tmp_path)(TestPooling.HIDDEN), head(TestPooling.HIDDEN))
        assert not list(tmp_path.glob(".writing*"))

    def test_several_heads_share_a_folder(self, tmp_path):
        for name in ("helpful", "harmless"):
            save_head(tmp_path, PreferenceHead(8, "identity"), name)
        helpful, harmless = (load_head(tmp_path, name)(TestPooling.HIDDEN) for name in ("helpful", "harmless"))
        assert not torch.equal(helpful, harmless)

    def test_a_folder_without_a_head(self, tmp_path):
        with pytest.raises(ModelError, match="no preference head") as error:
            load_head(tmp_path)
        assert "objective.name=preference_head" in str(error.value)

    @pytest.mark.parametrize("damage", ["weights", "settings", "pooling"])
    def test_damaged(self, tmp_path, damage):
        save_head(tmp_path, PreferenceHead(8, "identity"))
        if damage == "weights":
            (tmp_path / "preference_head.safetensors").write_bytes(b"cut")
        else:
            text = "{" if damage == "settings" else '{"size": 8, "pooling": "mean", "dropout": 0}'
            (tmp_path / "preference_head.json").write_text(text)
        with pytest.raises(ModelError, match="cannot be read"):
            load_head(tmp_path)


def test_a_response_without_its_end_is_refused():
    group = PreferenceGroup("p", ("a", "b"), id="row-7")
    whole = TokenizedGroup(np.array([1]), (np.array([5, 2]), np.array([6, 2])), group)
    unfinished = TokenizedGroup(np.array([1]), (np.array([5, 2]), np.array([6, 7])), group)
    require_end_tokens([whole], [2])
    with pytest.raises(DataError, match="candidate 1 ends with token 7") as error:
        require_end_tokens([whole, unfinished], [2])
    assert "row-7" in str(error.value)
