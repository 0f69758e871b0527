from __future__ import annotations

import math
import re
import warnings
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest

from penchant.evaluation.figures import frontier_chart, line_chart

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def line(svg: str, color: str) -> list[tuple[float, float]]:
    """Vertices of the data line of a color."""
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        if "clip-path" in path.attrib and f"stroke: {color}" in path.attrib["style"] and "L" in path.attrib["d"]:
            return [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path.attrib["d"])]
    return []


def test_the_line_goes_through_the_points() -> None:
    svg = line_chart("Loss", "step", "nats", {"loss": ([0, 10, 40], [1.0, 3.0, 2.0])})
    (x0, y0), (x1, y1), (x2, y2) = line(svg, "#4c7fc4")
    # SVG's y grows downwards.
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.25, abs=1e-4)
    assert (y0 - y2) / (y0 - y1) == pytest.approx(0.5, abs=1e-4)
    assert y1 < y0
    assert {"step", "nats", "loss"} <= set(texts(svg))


def test_the_page_gives_color_and_size() -> None:
    svg = line_chart('A "title" & <more>', "step", "", {"loss": ([1, 2], [1.0, 2.0])})
    root = ElementTree.fromstring(svg)
    assert svg.startswith("<svg")
    assert "width" not in root.attrib
    assert "height" not in root.attrib
    assert root.attrib["viewBox"]
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == 'A "title" & <more>'
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "metadata" not in svg
    assert set(re.findall(r"https?://[^\"']*", svg)) == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    ids = re.findall(r' id="([^"]*)"', svg)
    assert len(ids) == len(set(ids))


def test_the_same_input_gives_the_same_bytes_and_settings_stay() -> None:
    settings = dict(matplotlib.rcParams)
    series = {"a": ([1.0, 2.0], [0.5, 0.25]), "b": ([1.5], [0.3])}
    assert line_chart("t", "x", "y", series) == line_chart("t", "x", "y", series)
    assert dict(matplotlib.rcParams) == settings


def test_names_are_shown_as_they_stand() -> None:
    names = ["$x_1$", "<script>", "答え", "a & b", "$"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = line_chart("$t", "step", "$", {name: ([1, 2], [1.0, 2.0]) for name in names})
    assert {*names, "$"} <= set(texts(svg))


@pytest.mark.parametrize("values", [[], [None, None], [math.nan], [2.5], [1.0, math.inf, 2.0]])
def test_values_that_are_few_or_absent(values: list[float | None]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = line_chart("t", "step", "nats", {"loss": (list(range(len(values))), values)})
    assert "loss" in texts(svg)


def test_a_gap_is_not_bridged() -> None:
    svg = line_chart("t", "step", "nats", {"loss": ([1, 2, 3, 4, 5], [1.0, 2.0, None, 3.0, 4.0])})
    paths = [path.attrib["d"] for path in ElementTree.fromstring(svg).iter(f"{SVG}path")]
    assert any(path.count("M") == 2 and path.count("L") == 2 for path in paths)


def test_no_series() -> None:
    assert "step" in texts(line_chart("t", "step", "nats", {}))


def test_many_series_are_told_apart() -> None:
    svg = line_chart("t", "step", "nats", {f"run {i}": ([1, 2], [i, i + 1.0]) for i in range(20)})
    data = [
        re.sub(r"stroke-dashoffset: \S+|clip-path", "", path.attrib["style"])
        for path in ElementTree.fromstring(svg).iter(f"{SVG}path")
        if "clip-path" in path.attrib and "stroke: #" in path.attrib["style"]
    ]
    assert len(data) == 20
    assert len(set(data)) == 20


def test_frontier_joins_points_by_kl_and_draws_intervals() -> None:
    svg = frontier_chart({"dpo": [(4.0, 3.0, 2.5, 3.5), (0.0, 1.0, 0.5, 1.5), (1.0, 2.0, math.nan, math.nan)]})
    vertices = line(svg, "#4c7fc4")
    assert [x for x, _ in vertices] == sorted(x for x, _ in vertices)
    assert (vertices[1][0] - vertices[0][0]) / (vertices[2][0] - vertices[0][0]) == pytest.approx(0.25, abs=1e-4)
    bars = [
        [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path.attrib["d"])]
        for path in ElementTree.fromstring(svg).iter(f"{SVG}path")
        if "stroke: #4c7fc4; stroke-opacity: 0.6" in path.attrib.get("style", "")
    ]
    assert sorted(bar[0][0] for bar in bars) == pytest.approx([vertices[0][0], vertices[2][0]])
    # Each interval is as long as a reward of 1, the step between neighbouring points.
    for (_, low), (_, high) in bars:
        assert low - high == pytest.approx(vertices[0][1] - vertices[1][1], abs=1e-3)
    assert {"dpo", "reward", "KL(policy ‖ reference), nats"} <= set(texts(svg))
