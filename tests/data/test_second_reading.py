"""Groups read again by a second tokenizer: the same end of a cut prompt, worked out by hand, and what is refused."""

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
    """A token for each letter, as in "a b"; or, if `split`, one for the space in front of it too."""
    vocabulary = [*LETTERS, " "] if split else LETTERS
    raw = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated") if split else pre_tokenizers.WhitespaceSplit()
    if start:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def read(*groups: PreferenceGroup, max_length: int, truncation: str = "keep_end_of_prompt") -> list[TokenizedGroup]:
    return tokenize_groups(groups, tokenizer(), max_length=max_length, truncation=truncation)[0]


@pytest.mark.parametrize("max_length", range(5, 13))
def test_the_same_tokenizer_gives_the_very_same_tokens(max_length):
    first = read(LONG, SHORT, max_length=max_length)
    assert first[0].truncated_tokens == 12 - max_length
    assert first[1].truncated_tokens == 0
    again, shortened = retokenize_groups(first, tokenizer(), context=1000, truncation="keep_end_of_prompt")
    assert all(map(have_same_ids, first, again))
    assert (len(again), shortened) == (2, 0)


def test_another_tokenizer_reads_the_same_share():
    """The first reads 4 tokens of 9 (<s> f g h); of the other's 16 (letters and spaces) that is 7.1, so 8."""
    first = read(LONG, SHORT, max_length=7)
    assert first[0].prompt.tolist() == [BOS, F, G, H]
    (cut, whole), shortened = retokenize_groups(
        first, tokenizer(split=True), context=1000, truncation="keep_end_of_prompt"
    )
    assert cut.prompt.tolist() == [BOS, E, SPACE, F, SPACE, G, SPACE, H]
    assert cut.truncated_tokens == 8
    assert [ids.tolist() for ids in cut.responses] == [[SPACE, A, SPACE, B, EOS], [SPACE, C, EOS]]
    assert whole.prompt.tolist() == [BOS, A, SPACE, B]
    assert shortened == 0
    assert not have_same_ids(first[0], cut)


def test_a_share_of_less_than_the_start_tokens_still_has_the_prompts_end():
    """The first reads 1 token of 11, without a start token: rounded up, 1 of the other's 4, which would be <s>."""
    [group] = read(SHORT, max_length=10)
    first = TokenizedGroup(group.prompt[-1:], group.responses, group.group, truncated_tokens=10)
    [again], _ = retokenize_groups([first], tokenizer(split=True), context=1000, truncation="keep_end_of_prompt")
    assert again.prompt.tolist() == [BOS, B]


def test_what_is_still_too_long_for_another_tokenizer_is_cut_further_and_counted():
    first = read(LONG, SHORT, max_length=12)
    (cut, whole), shortened = retokenize_groups(
        first, tokenizer(split=True), context=10, truncation="keep_end_of_prompt"
    )
    assert cut.longest == 10
    assert cut.prompt.tolist() == [BOS, SPACE, G, SPACE, H]
    assert (whole.truncated_tokens, shortened) == (0, 1)


def test_the_same_tokens_are_not_cut_further_but_refused():
    """The ratio would be of two different prompts, and the exact remedy is at hand."""
    first = read(LONG, SHORT, max_length=12)
    with pytest.raises(DataError) as error:
        retokenize_groups(first, tokenizer(), context=9, truncation="keep_end_of_prompt")
    assert "group long: 12 tokens with the longest response, this model's context is 9 (1 of 2" in str(error.value)
    assert "data.max_length=9" in str(error.value)


@pytest.mark.parametrize("truncation", ["error", "drop"])
def test_nothing_is_cut_or_lost_that_was_not_to_be_cut(truncation):
    first = read(SHORT, LONG, max_length=12, truncation=truncation)
    with pytest.raises(DataError, match=r"group long: 21 tokens .* context is 20 \(1 of 2 groups like this: long\)"):
        retokenize_groups(first, tokenizer(split=True), context=20, truncation=truncation)
    again, shortened = retokenize_groups(first, tokenizer(split=True), context=21, truncation=truncation)
    assert [group.longest for group in again] == [7, 21]
    assert shortened == 0


def test_a_response_is_never_cut():
    first = read(LONG, max_length=12)
    with pytest.raises(DataError, match=r"a response is never cut"):
        retokenize_groups(first, tokenizer(split=True), context=6, truncation="keep_end_of_prompt")


def test_no_groups():
    assert retokenize_groups([], tokenizer(), context=5) == ([], 0)
