"""Text on its way out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penchant.serving.texts import Outgoing


def sent(texts: list[str], stops: tuple[str, ...]) -> tuple[list[str], bool]:
    outgoing, pieces = Outgoing(stops), []
    for number, text in enumerate(texts):
        new, stopped = outgoing.read(text, last=number == len(texts) - 1)
        pieces.append(new)
        if stopped:
            return pieces, True
    return pieces, False


def test_a_stop_sequence_is_never_begun():
    assert sent(["a", "a E", "a EN", "a ENx", "a ENx END b"], ("END",)) == (["a", " ", "", "ENx", " "], True)
    assert sent(["a", "a E"], ("END",)) == (["a", " E"], False)


def test_half_a_character_waits():
    assert sent(["a\ufffd", "a\ufffd\ufffd", "aé"], ()) == (["a", "", "é"], False)


@given(st.text("abc", min_size=1, max_size=30), st.lists(st.text("abc", min_size=1, max_size=3), max_size=2))
def test_what_is_sent_is_the_text_before_the_first_stop(text, stops):
    pieces, stopped = sent([text[: n + 1] for n in range(len(text))], tuple(stops))
    # Letter by letter the stop whose end comes first is found first.
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text[: min(start for end, start in ends if end == min(ends)[0])] if ends else text
    assert "".join(pieces) == expected
    assert stopped == bool(ends)
