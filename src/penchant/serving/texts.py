"""Text on its way out, a token at a time: nothing is sent that a later token could take back."""

from __future__ import annotations

REPLACEMENT = "\ufffd"
"""What a half-read character decodes to."""


class Outgoing:
    """One answer's text.

    Args:
        stops: sequences that end the text; they are not sent.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops, self._sent = stops, 0

    def read(self, text: str, *, last: bool) -> tuple[str, bool]:
        """What can be sent now, and whether a stop sequence has ended the text.

        Args:
            text: all of it so far.
            last: whether no more will come.
        """
        found = [place for place in (text.find(stop, 0) for stop in self._stops) if place >= 0]
        if found:
            end = min(found)
        elif last:
            end = len(text)
        else:
            end = len(text) - max([0, *(_begun(text, stop) for stop in self._stops)])
            end = min(end, len(text.rstrip(REPLACEMENT)))
        new = text[self._sent : end]
        self._sent = max(self._sent, end)
        return new, bool(found)


def _begun(text: str, stop: str) -> int:
    """How much of the text's end could be the stop sequence's beginning."""
    return max((n for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
