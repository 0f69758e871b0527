"""The tables of a check in the terminal."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from penchant.data.check_report import CheckReport, render
from penchant.data.checks import check_groups
from penchant.data.groups import PreferenceGroup


def printed(report: CheckReport) -> str:
    stream = StringIO()
    Console(file=stream, width=100).print(render(report))
    return stream.getvalue()


def cells(text: str, title: str) -> list[str]:
    """The cells of the row with this title, without the frame."""
    row = next(line for line in text.splitlines() if line.strip("│ ").startswith(title))
    return [cell.strip() for cell in row.strip("│").split("│")]


def pair(prompt: str, chosen: str, rejected: str, name: str = "0", source: str | None = None) -> PreferenceGroup:
    return PreferenceGroup(prompt, (chosen, rejected), preferred=0, id=name, source=source)


def test_overview_and_lengths():
    groups = [pair("1234 ", "a", "bbb", source="[red]x"), pair("1 ", "cccc", "dd", source="y")]
    text = printed(check_groups([*groups, PreferenceGroup("z ", ("e",), labels=(False,), source="y")]))
    assert cells(text, "groups") == ["groups", "3 (1 without a pair)"]
    assert cells(text, "distinct prompts") == ["distinct prompts", "3"]
    assert cells(text, "groups by candidates") == ["groups by candidates", "K = 1: 1, K = 2: 2"]
    assert cells(text, "labels") == ["labels", "0 desirable, 1 undesirable"]
    assert cells(text, "groups by source") == ["groups by source", "[red]x: 1, y: 2"]
    assert cells(text, "candidates, characters")[1:] == ["1", "1", "1", "2", "3", "4", "4", "4"]


def test_length_bias_in_words():
    text = " ".join(printed(check_groups([pair(f"p{number} ", "aa", "b") for number in range(20)])).split())
    assert "The chosen is longer in 100.0% [78.9%, 100.0%] of 20 pairs and of equal length in 0.0%" in text


def test_a_table_without_interval_and_unequal_pairs():
    text = " ".join(printed(check_groups([pair("p ", "a", "b")])).split())
    assert "longer in 0.0% of 1 pairs and of equal length in 100.0%, in characters; where lengths differ" in text
    assert "the longer wins in none." in text


def test_findings_are_shown_severest_first_with_ids_and_fixes():
    text = printed(check_groups([pair("p", "a", "", "row-7"), PreferenceGroup("q ", ("a", "b"), scores=(1, 1))]))
    assert text.index("│ error") < text.index("│ warning") < text.index("│ note")
    assert "1 of 4 candidates are empty" in text
    assert "for example: row-7" in text
    assert "data.empty=drop" in text


def test_ids_are_neither_markup_nor_control_codes():
    text = printed(check_groups([pair("p ", "aa", "", "[bold]a[/bold]"), pair("q ", "", "b", "\x1b[2Jb")]))
    assert "[bold]a[/bold]" in text
    assert "\x1b" not in text
    assert "\ufffd[2Jb" in text


def test_nothing_found():
    text = printed(check_groups([pair("p ", "a", "b")]))
    assert "Nothing found." in text
    assert "what to do" not in text


def test_the_tables_fit_the_terminal():
    text = printed(check_groups([pair("p", "a", "", f"a-rather-long-row-name-{n}") for n in range(9)]))
    assert max(map(len, text.splitlines())) <= 100
