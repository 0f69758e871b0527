"""Groups tokenized for a second model: the same end of a cut prompt, worked out by hand, and the errors."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from penchant.data.groups import PreferenceGroup
from penchant.data.second_reading import have_same_ids, retokenize_groups
from penchant.data.tokenization import tokenize_groups
from penchant.data.tokenized import TokenizedGroup
from penchant.errors import DataError

LETTERS = ["<s>", "</s>", "<unk>", *"abcdefgh"]
A, B, C, D, E, F, G, H = range(3, 11)
SPACE = len(LETTERS)
BOS, EOS = 0, 1
LONG = PreferenceGroup("a b c d e f g h", (" a b", " c"), preferred=0, id="long")
SHORT = PreferenceGroup("a b", (" c", " d"), preferred=0, id="short")


def tokenizer(split: bool = False, start: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each letter of "a b"; if `split`, the space before a letter is a token too."""
    vocabulary = [*LETTERS, " "] if split else LETTERS
    raw = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated") if split else pre_tokenizers.WhitespaceSplit()
    if start:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def read(*groups: PreferenceGroup, max_length: int, truncation: str = "keep_end_of_prompt") -> list[TokenizedGroup]:
    return tokenize_groups(groups, tokenizer(), max_length=max_length, truncation=truncation)[0]


@pytest.mark.parametrize("max_length", range(5, 13))
def test_the_same_tokenizer_gives_the_same_tokens(max_length):
    policy_groups = read(LONG, SHORT, max_length=max_length)
    assert policy_groups[0].truncated_tokens == 12 - max_length
    assert policy_groups[1].truncated_tokens == 0
    reference_groups, shortened = retokenize_groups(
        policy_groups, tokenizer(), context=1000, truncation="keep_end_of_prompt"
    )
    assert all(map(have_same_ids, policy_groups, reference_groups))
    assert (len(reference_groups), shortened) == (2, 0)


def test_another_tokenizer_reads_the_same_share():
    """The policy reads 4 tokens of 9 (<s> f g h); of the reference's 16 (letters and spaces) that is 7.1, so 8."""
    policy_groups = read(LONG, SHORT, max_length=7)
    assert policy_groups[0].prompt.tolist() == [BOS, F, G, H]
    (truncated, whole), shortened = retokenize_groups(
        policy_groups, tokenizer(split=True), context=1000, truncation="keep_end_of_prompt"
    )
    assert truncated.prompt.tolist() == [BOS, E, SPACE, F, SPACE, G, SPACE, H]
    assert truncated.truncated_tokens == 8
    assert [ids.tolist() for ids in truncated.responses] == [[SPACE, A, SPACE, B, EOS], [SPACE, C, EOS]]
    assert whole.prompt.tolist() == [BOS, A, SPACE, B]
    assert shortened == 0
    assert not have_same_ids(policy_groups[0], truncated)


def test_a_small_share_keeps_a_token_after_the_start_tokens():
    """The policy reads 1 token of 11, without a start token: rounded up, 1 of the reference's 4, which would be <s>."""
    [group] = read(SHORT, max_length=10)
    policy_group = TokenizedGroup(group.prompt[-1:], group.responses, group.group, truncated_tokens=10)
    [reference_group], _ = retokenize_groups(
        [policy_group], tokenizer(split=True), context=1000, truncation="keep_end_of_prompt"
    )
    assert reference_group.prompt.tolist() == [BOS, B]


def test_prompts_too_long_for_another_tokenizer_are_cut_further_and_counted():
    policy_groups = read(LONG, SHORT, max_length=12)
    (truncated, whole), shortened = retokenize_groups(
        policy_groups, tokenizer(split=True), context=10, truncation="keep_end_of_prompt"
    )
    assert truncated.longest == 10
    assert truncated.prompt.tolist() == [BOS, SPACE, G, SPACE, H]
    assert (whole.truncated_tokens, shortened) == (0, 1)


def test_the_same_tokens_are_not_cut_further_but_refused():
    """A log-ratio needs equal prompts, which a lower limit for both models gives exactly."""
    policy_groups = read(LONG, SHORT, max_length=12)
    with pytest.raises(DataError) as error:
        retokenize_groups(policy_groups, tokenizer(), context=9, truncation="keep_end_of_prompt")
    assert "group long: 12 tokens with the longest response, this model's context is 9 (1 of 2" in str(error.value)
    assert "data.max_length=9" in str(error.value)


@pytest.mark.parametrize("truncation", ["error", "drop"])
def test_without_keep_end_of_prompt_no_prompt_is_cut(truncation):
    policy_groups = read(SHORT, LONG, max_length=12, truncation=truncation)
    with pytest.raises(DataError, match=r"group long: 21 tokens .* context is 20 \(1 of 2 groups like this: long\)"):
        retokenize_groups(policy_groups, tokenizer(split=True), context=20, truncation=truncation)
    reference_groups, shortened = retokenize_groups(
        policy_groups, tokenizer(split=True), context=21, truncation=truncation
    )
    assert [group.longest for group in reference_groups] == [7, 21]
    assert shortened == 0


def test_a_response_is_never_cut():
    policy_groups = read(LONG, max_length=12)
    with pytest.raises(DataError, match=r"a response is never cut"):
        retokenize_groups(policy_groups, tokenizer(split=True), context=6, truncation="keep_end_of_prompt")


def test_no_groups():
    assert retokenize_groups([], tokenizer(), context=5) == ([], 0)
