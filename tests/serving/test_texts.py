"""Text of a streamed answer."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penchant.evaluation.answering import text_after
from penchant.models.loading import load_tokenizer
from penchant.recipes.small_llama import Sizes, build_small_llama
from penchant.serving.texts import StopFilter, TokenText

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


def stream_texts(texts: list[str], stops: tuple[str, ...]) -> tuple[list[str], bool]:
    """The pieces sent for growing texts, and whether a stop sequence ended them."""
    stop_filter, pieces = StopFilter(stops), []
    for number, text in enumerate(texts):
        new, is_stopped = stop_filter.read(text, last=number == len(texts) - 1)
        pieces.append(new)
        if is_stopped:
            return pieces, True
    return pieces, False


def test_no_part_of_a_stop_sequence_is_sent():
    assert stream_texts(["a", "a E", "a EN", "a ENx", "a ENx END b"], ("END",)) == (["a", " ", "", "ENx", " "], True)
    assert stream_texts(["a", "a E"], ("END",)) == (["a", " E"], False)


def test_an_incomplete_character_is_held_back():
    assert stream_texts(["a\ufffd", "a\ufffd\ufffd", "aé"], ()) == (["a", "", "é"], False)


@given(st.text("abc", min_size=1, max_size=30), st.lists(st.text("abc", min_size=1, max_size=3), max_size=2))
def test_the_text_before_the_first_stop_sequence_is_sent(text, stops):
    pieces, is_stopped = stream_texts([text[: n + 1] for n in range(len(text))], tuple(stops))
    # Letter by letter the stop whose end comes first is found first.
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text[: min(start for end, start in ends if end == min(ends)[0])] if ends else text
    assert "".join(pieces) == expected
    assert is_stopped == bool(ends)


@pytest.fixture(scope="module", params=["words", "bytes", "pieces"])
def tokenizer(request, tmp_path_factory, tiny_model):
    if request.param == "words":
        return load_tokenizer(str(tiny_model))
    if request.param == "bytes":
        folder = tmp_path_factory.mktemp("bytes") / "model"
        build_small_llama(folder, ["the old cat sees a dog: é, 日本, 😀"], Sizes(320, 32, 1, 2, 64), seed=0)
        return load_tokenizer(str(folder))
    return load_tokenizer(str(request.getfixturevalue("shared_data") / "models" / "stories260K"))


@pytest.mark.parametrize("prompt", ["", "the", "the old cat sees a big dog and the tree"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.data())
def test_texts_of_tokens_add_up_to_the_text_of_all(tokenizer, prompt, data):
    """For any tokens, with single bytes that form whole characters: other bytes change the text before them.

    Text that was returned is never changed.
    """
    single = [
        token for token in range(len(tokenizer)) if not BYTE_TOKEN.fullmatch(tokenizer.convert_ids_to_tokens(token))
    ]
    characters = [tokenizer(text, add_special_tokens=False).input_ids for text in ("é", "日本", "😀", "\n")]
    parts = st.sampled_from([*([token] for token in single), *characters])
    tokens = [token for part in data.draw(st.lists(parts, max_size=24)) for token in part]
    ids = np.array(tokenizer(prompt).input_ids, dtype=np.int64)
    text = TokenText(tokenizer, ids)
    pieces = [text.add(token) for token in tokens]
    assert "".join(pieces) + text.finish() == text_after(tokenizer, ids, tokens)
    assert text.finish() == ""
