"""The display of a group, rendered to plain text."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from penchant.data.groups import PreferenceGroup
from penchant.data.show import show_group
from penchant.data.tokenized import TokenizedGroup


def rendered(*args: Any) -> list[str]:
    """The panel's lines without its frame."""
    console = Console(file=StringIO(), width=100, color_system="truecolor", force_terminal=True, record=True)
    console.print(show_group(*args))
    return [
        line.strip("╭╮╰╯─").removeprefix("│").removesuffix("│").strip() for line in console.export_text().split("\n")
    ]


def byte_level() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate(["</s>", *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")


def tokenized(tokenizer: PreTrainedTokenizerFast, group: PreferenceGroup) -> TokenizedGroup:
    prompt, *responses = (np.array(tokenizer(text)["input_ids"]) for text in (group.prompt, *group.candidates))
    return TokenizedGroup(prompt, tuple(np.append(ids, 0) for ids in responses), group)


def test_prompt_and_candidates_are_shown_with_their_preferences() -> None:
    group = PreferenceGroup("Why?", ("Because.", "No."), preferred=1, id="row-7", weight=0.5, source="forum")
    lines = rendered(group)
    assert lines[0] == "group row-7, from forum, weight 0.5"
    assert lines[1:9] == ["prompt", "Why?", "", "candidate 0, rejected", "Because.", "", "candidate 1, chosen", "No."]


@pytest.mark.parametrize(
    ("preferences", "titles"),
    [
        ({"scores": (1.0, 2.5)}, ["candidate 0, score 1", "candidate 1, score 2.5"]),
        ({"ranks": (2, 1)}, ["candidate 0, rank 2", "candidate 1, rank 1"]),
        ({"labels": (True, False)}, ["candidate 0, desirable", "candidate 1, undesirable"]),
        ({"comparisons": ((1, 0),)}, ["candidate 0, worse than 1", "candidate 1, better than 0"]),
        ({"preferred": 0, "scores": (3.0, 1.0)}, ["candidate 0, chosen, score 3", "candidate 1, rejected, score 1"]),
        ({}, ["candidate 0", "candidate 1"]),
    ],
)
def test_every_kind_of_preference(preferences: dict[str, Any], titles: list[str]) -> None:
    lines = rendered(PreferenceGroup("p", ("a", "b"), **preferences))
    assert [line for line in lines if line.startswith("candidate")] == titles


def test_messages_are_shown_with_their_roles() -> None:
    prompt = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"})
    lines = rendered(PreferenceGroup(prompt, (({"role": "assistant", "content": "Hello"},),)))
    assert [line for line in lines if line][1:6] == [
        "prompt",
        "system: Be kind.",
        "user: Hi",
        "candidate 0",
        "assistant: Hello",
    ]


def test_markup_in_the_data_is_shown_as_text() -> None:
    lines = rendered(PreferenceGroup("[bold]x[/bold] [/]", ("[link=u]y[/link]", ":smile:"), id="[red]", source="[/i]"))
    assert lines[0] == "group [red], from [/i]"
    assert "[bold]x[/bold] [/]" in lines
    assert "[link=u]y[/link]" in lines
    assert ":smile:" in lines


def test_control_characters_cannot_reach_the_terminal() -> None:
    lines = rendered(PreferenceGroup("a\x1b[2Jb\r\x07", ("\x9b31m\x7f",), id="\x1b]0;"))
    assert lines[0] == "group ␛]0;"
    assert "a␛[2Jb␍␇" in lines
    assert "�31m␡" in lines


def test_an_empty_candidate_is_shown() -> None:
    assert "(empty)" in rendered(PreferenceGroup("p", ("a", "")))


def test_tokens_are_separated_and_the_boundary_is_marked() -> None:
    tokenizer = byte_level()
    group = PreferenceGroup("Hi:", (" a", "b"), preferred=0)
    lines = [line for line in rendered(group, tokenized(tokenizer, group), tokenizer) if line]
    assert lines == [
        "group 0",
        "prompt, 3 tokens",
        "H│i│:║",
        "candidate 0, chosen, 3 tokens",
        "║ │a│</s>",
        "candidate 1, rejected, 2 tokens",
        "║b│</s>",
        "│ between tokens, ║ where the prompt ends",
    ]


def test_parts_of_a_character_show_the_tokens_names() -> None:
    tokenizer = byte_level()
    group = PreferenceGroup("x", ("é\ny",))
    lines = rendered(group, tokenized(tokenizer, group), tokenizer)
    names = tokenizer.convert_ids_to_tokens(tokenizer("é")["input_ids"])
    assert len(names) == 2
    assert f"║{names[0]}│{names[1]}│↵" in lines
    assert "│y│</s>" in lines


def test_a_leading_space_of_a_token_is_shown() -> None:
    raw = Tokenizer(models.WordLevel({"</s>": 0, "▁the": 1, "▁cat": 2}, unk_token="</s>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")
    assert tokenizer.decode([2]) == "cat"
    group = PreferenceGroup("the", (" cat cat",))
    lines = rendered(group, TokenizedGroup(np.array([1]), (np.array([2, 2, 0]),), group), tokenizer)
    assert "║ cat│ cat│</s>" in lines


def test_without_a_tokenizer_ids_are_shown() -> None:
    group = PreferenceGroup("x", ("y",))
    lines = rendered(group, TokenizedGroup(np.array([5]), (np.array([6, 7]),), group))
    assert "5║" in lines
    assert "║6│7" in lines


def test_the_bounds_of_trained_tokens_are_marked() -> None:
    tokenizer, group = byte_level(), PreferenceGroup("q", ("abc", "de"), preferred=0)
    tokenized_group = tokenized(tokenizer, group)
    masks = (np.array([True, False, True, True]), np.array([True] * 3))
    lines = rendered(group, replace(tokenized_group, loss_masks=masks), tokenizer)
    assert lines[1:3] == ["prompt, 1 token", "q║"]
    assert lines[4:6] == ["candidate 0, chosen, 4 tokens, 3 learnt", "║a║b║c│</s>"]
    assert lines[7:9] == ["candidate 1, rejected, 3 tokens", "║d│e│</s>"]
    assert "where tokens begin or cease to be learnt" in lines[10]
