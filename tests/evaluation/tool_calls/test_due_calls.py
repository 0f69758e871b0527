"""Tests of the JSON grammars without words and with a single call."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from penchant.engine.grammars import Grammars
from penchant.evaluation.tool_calls.calls import Function
from penchant.evaluation.tool_calls.grammars import CLOSES, OPENS, Tags, json_calls
from penchant.evaluation.tool_calls.questions import ToolQuestion
from penchant.models.loading import load_tokenizer
from penchant.recipes.small_llama import Sizes, build_small_llama

FUNCTION = Function.read(
    {"name": "go", "parameters": {"properties": {"n": {"type": "integer"}}, "required": ["n"]}}, "test"
)
QUESTION = ToolQuestion("q", "simple", (), (FUNCTION,), accepted=None)
CALL = '{"name": "go", "arguments": {"n": 1}}'
TAGGED = f"{OPENS}{CALL}{CLOSES}"


@pytest.fixture(scope="module", params=["letters", "tokens"])
def tokenizer(request, tmp_path_factory) -> PreTrainedTokenizerBase:
    """A tokenizer that spells the tags in several tokens, and one with a token per tag."""
    folder = tmp_path_factory.mktemp("small") / "model"
    build_small_llama(folder, [CALL], Sizes(300, 32, 1, 2, 128), seed=0)
    tokenizer = load_tokenizer(str(folder))
    if request.param == "tokens":
        tokenizer.add_tokens([AddedToken(OPENS), AddedToken(CLOSES)])
    return tokenizer


def accepts(tokenizer: PreTrainedTokenizerBase, grammar: str, text: str) -> bool:
    end = tokenizer.eos_token_id
    guide, prefix = Grammars(tokenizer, [end]).guide(grammar), list[int]()
    for token in [*tokenizer(text, add_special_tokens=False).input_ids, end]:
        if token not in guide.allowed_tokens(prefix):
            return False
        prefix.append(token)
    return True


@pytest.mark.parametrize(
    ("text", "in_words", "as_calls", "as_single_call"),
    [
        (CALL, True, True, True),
        (TAGGED, True, True, True),
        (f"[{CALL}]", True, True, True),
        (f"[{CALL}, {CALL}]", True, True, False),
        (TAGGED + TAGGED, True, True, False),
        ("I go.", True, False, False),
        (f"I go. {TAGGED}", True, False, False),
        ("[]", True, False, False),
        ("", False, False, False),
        (OPENS, False, False, False),
    ],
)
def test_words_and_several_calls_are_allowed_by_their_options(
    tokenizer: PreTrainedTokenizerBase, text: str, in_words: bool, as_calls: bool, as_single_call: bool
) -> None:
    tags = Tags.from_tokenizer(tokenizer)
    assert accepts(tokenizer, json_calls(QUESTION, tags), text) == in_words
    assert accepts(tokenizer, json_calls(QUESTION, tags, prose=False), text) == as_calls
    assert accepts(tokenizer, json_calls(QUESTION, tags, prose=False, several=False), text) == as_single_call
