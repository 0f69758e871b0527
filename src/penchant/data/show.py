"""Display of one preference group in the terminal, with its token boundaries on request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from penchant.data.groups import PreferenceGroup, Text, as_text
from penchant.data.tokenized import TokenizedGroup

if TYPE_CHECKING:
    from rich.panel import Panel
    from rich.text import Text as Styled
    from transformers import PreTrainedTokenizerBase

TOKEN_MARK = "│"
BOUNDARY_MARK = "║"
_WINDOW = 8
"""Number of preceding ids decoded together with an id: whether it is a space or an accent depends on them."""

# Control characters could move the cursor or recolour the terminal; Unicode's control pictures are shown instead.
_VISIBLE = {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)} | {0x7F: 0x2421, 0x9B: 0xFFFD}


def show_group(
    group: PreferenceGroup,
    tokenized: TokenizedGroup | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Panel:
    """A panel with the group's prompt, and its candidates with their preferences.

    Args:
        group: the group to show.
        tokenized: token ids of the group. Prompt and responses are then shown as tokens, with ``│`` between two tokens
            and ``║`` at the end of the prompt, and where tokens begin or cease to be trained on.
        tokenizer: tokenizer of the ids; without it the ids are shown as numbers.
    """
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text as Styled

    parts: list[Styled] = []
    if tokenized is None:
        parts += _section("prompt", _plain(group.prompt))
        for k, candidate in enumerate(group.candidates):
            parts += _section(_title(group, k), _plain(candidate))
    else:
        prompt = tokenized.prompt.tolist()
        marked_text = _join_pieces(_pieces(prompt, (), tokenizer)) + BOUNDARY_MARK
        parts += _section(f"prompt, {_token_count(len(prompt))}", marked_text)
        for k, response in enumerate(tokenized.responses):
            mask = tokenized.masks[k].tolist()
            marked_text = BOUNDARY_MARK * mask[0] + _join_pieces(_pieces(response.tolist(), prompt, tokenizer), mask)
            trained_note = "" if all(mask) else f", {sum(mask)} learnt"
            parts += _section(f"{_title(group, k)}, {_token_count(len(response))}{trained_note}", marked_text)
        legend = f"{TOKEN_MARK} between tokens, {BOUNDARY_MARK} where the prompt ends"
        if tokenized.loss_masks is not None:
            legend += ", and where tokens begin or cease to be learnt"
        parts.append(Styled(legend, style="dim"))
    return Panel(Group(*parts), title=Styled(_heading(group)), title_align="left")


def _section(title: str, body: str) -> list[Styled]:
    # Text objects are never parsed for markup, so a response such as "[bold]" is shown as it is.
    from rich.text import Text as Styled

    return [Styled(title, style="bold"), Styled(body.translate(_VISIBLE)), Styled("")]


def _heading(group: PreferenceGroup) -> str:
    parts = [f"group {group.id}"]
    if group.source is not None:
        parts.append(f"from {group.source}")
    if group.weight != 1:
        parts.append(f"weight {group.weight:g}")
    return ", ".join(parts).translate(_VISIBLE)


def _title(group: PreferenceGroup, k: int) -> str:
    return ", ".join([f"candidate {k}", *_preference_notes(group, k)])


def _preference_notes(group: PreferenceGroup, k: int) -> Iterator[str]:
    if group.preferred is not None:
        yield "chosen" if k == group.preferred else "rejected"
    if group.ranks is not None:
        yield f"rank {group.ranks[k]}"
    if group.scores is not None:
        yield f"score {group.scores[k]:g}"
    if group.labels is not None:
        yield "desirable" if group.labels[k] else "undesirable"
    if group.comparisons is not None:
        beaten = [str(worse) for better, worse in group.comparisons if better == k]
        beaten_by = [str(better) for better, worse in group.comparisons if worse == k]
        if beaten:
            yield f"better than {', '.join(beaten)}"
        if beaten_by:
            yield f"worse than {', '.join(beaten_by)}"


def _plain(text: Text) -> str:
    return as_text(text) or "(empty)"


def _token_count(count: int) -> str:
    return f"{count} token" if count == 1 else f"{count} tokens"


def _join_pieces(pieces: Sequence[str], loss_mask: Sequence[bool] | None = None) -> str:
    # A line break is shown as a symbol and also kept, so that long texts stay readable.
    visible = [piece.replace("\n", "↵\n") for piece in pieces]
    if loss_mask is None:
        return TOKEN_MARK.join(visible)
    changes = (is_trained != next_is_trained for is_trained, next_is_trained in pairwise(loss_mask))
    marks = [BOUNDARY_MARK if change else TOKEN_MARK for change in changes]
    return "".join(part for pair in zip(visible, [*marks, ""], strict=True) for part in pair)


def _pieces(ids: Sequence[int], prefix: Sequence[int], tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """The text that each id adds to the decoded text; the token's name where it is only a part of a character."""
    if tokenizer is None:
        return [str(i) for i in ids]
    all_ids, pieces = [*prefix, *ids], []
    for end in range(len(prefix), len(all_ids)):
        window = all_ids[max(0, end - _WINDOW) : end]
        prefix_text, longer_text = tokenizer.decode(window), tokenizer.decode([*window, all_ids[end]])
        piece = longer_text[len(prefix_text) :]
        if not longer_text.startswith(prefix_text) or not piece or "\ufffd" in piece:
            piece = tokenizer.convert_ids_to_tokens(all_ids[end])
        pieces.append(piece)
    return pieces
