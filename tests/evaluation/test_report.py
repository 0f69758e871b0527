from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from penchant.errors import ConfigError
from penchant.evaluation.figures import frontier_chart
from penchant.evaluation.report import Curve, Figure, RunReport, Sample, Table, write_report

VOID = {"meta"}


class Page(HTMLParser):
    """A page's tags, attributes and visible text; fails on tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


FULL = RunReport(
    title="dpo: <run> & more",
    summary=[("model", "tiny/model"), ("steps", "1234")],
    curves=[
        Curve("Loss", "nats", {"loss": ([1, 2, 200], [0.6931, 0.5, 0.4321]), "held-out loss": ([100], [0.55])}),
        Curve("Rewards", "nats", {"rewards/chosen": ([1, 2], [None, None])}),
    ],
    tables=[
        Table(
            "Held-out preferences",
            ("metric", "before", "after"),
            [("accuracy", "0.5012 [0.4700, 0.5300]", "0.6134 [0.5800, 0.6450]"), ("margin", "0.0000", "-1.2345")],
            "300 groups of 271 prompts",
        )
    ],
    samples=[
        Sample("user: hi\n<script>alert('x')</script>", "\n  indented", "see http://example.com/a?b=1&c=2"),
    ],
    figures=[Figure("Reward and KL", frontier_chart({"dpo": [(1.0, 2.0, 1.5, 2.5)]}), "each point is a run")],
    notices=["17 rows dropped: longer than 512 tokens"],
    config_yaml="model: tiny\nobjective:\n  name: dpo\n  beta: 0.15\n",
)


@pytest.fixture
def page(tmp_path: Path) -> Page:
    write_report(tmp_path / "report.html", FULL)
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_everything_given_is_on_the_page(page: Page) -> None:
    cells = [cell for table in FULL.tables for row in table.rows for cell in row]
    texts = [value for pair in FULL.summary for value in pair] + cells + [*FULL.notices, FULL.title, FULL.config_yaml]
    texts += [table.note for table in FULL.tables] + [figure.note for figure in FULL.figures]
    texts += [text for sample in FULL.samples for text in (sample.prompt, sample.answer_before, sample.answer_after)]
    assert [text for text in texts if text not in page.text] == []


def test_pictures_are_inline_with_their_numbers_in_words(page: Page) -> None:
    assert page.tags.count("svg") == 3
    assert "loss: 0.6931 at step 1, 0.4321 at step 200" in page.text
    assert "held-out loss: 0.55 at step 100" in page.text
    assert "rewards/chosen: no value, 2 not a number" in page.text


def test_a_page_needs_no_network(page: Page) -> None:
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    for tag, name, value in page.attributes:
        if name in {"href", "xlink:href", "src", "srcset", "action", "data"}:
            assert value.startswith("#"), (tag, name, value)
        elif not name.startswith("xmlns"):
            assert not re.search(r"https?:|url\((?!#)|@import", value), (tag, name, value)
    policy = [value for tag, name, value in page.attributes if tag == "meta" and value.startswith("default-src")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_models_text_is_never_markup(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", FULL)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in html
    assert "<title>dpo: &lt;run&gt; &amp; more</title>" in html


def test_pages_follow_light_and_dark(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", FULL)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "@media (prefers-color-scheme: dark)" in html
    assert "currentColor" in html


def test_sections_without_content_do_not_appear(tmp_path: Path, page: Page) -> None:
    write_report(tmp_path / "empty.html", RunReport("nothing yet"))
    empty = Page((tmp_path / "empty.html").read_text(encoding="utf-8"))
    assert empty.text.split() == ["nothing", "yet", "nothing", "yet"]
    assert not {"h2", "table", "svg", "ul", "dl", "details"} & set(empty.tags)
    assert page.tags.count("h2") == 5


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    write_report(tmp_path / "a.html", FULL)
    write_report(tmp_path / "b.html", FULL)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_lone_surrogates_can_be_written(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", RunReport("t", samples=[Sample("p", "\ud83d", "ok")]))
    assert "\\ud83d" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    write_report(target, FULL)
    page = target.read_bytes()
    invalid = RunReport("t", curves=[Curve("c", "", {"a": ([1, 2], [1.0])})])
    with pytest.raises(ValueError, match=r"shape|argument"):
        write_report(target, invalid)
    assert target.read_bytes() == page
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(ConfigError, match="cannot be written"):
        write_report(target / "inside.html", FULL)


def test_a_row_that_does_not_fit_its_table() -> None:
    with pytest.raises(ValueError, match="2 columns but a row of 1 cells"):
        Table("t", ("a", "b"), [("1",)])
