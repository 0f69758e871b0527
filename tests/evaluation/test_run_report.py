"""The charts of a run's report.html, rendered from metrics that are not all there."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from penchant.config.run import load_config
from penchant.training.report import write_run_report
from penchant.training.run import train


def steps_drawn(folder: Path, title: str) -> list[list[float]]:
    """The x of each data line of a chart, in vertices."""
    page = (folder / "report.html").read_text()
    (svg,) = [svg for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if f'aria-label="{title}"' in svg]
    paths = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}path")
    data_lines = [
        path.attrib["d"] for path in paths if "clip-path" in path.attrib and "stroke: #" in path.attrib["style"]
    ]
    return [[float(x) for x in re.findall(r"[ML] (\S+) ", path)] for path in data_lines]


def test_a_gap_in_the_evaluations_and_a_run_of_one_line(write_config):
    folder = train(load_config(write_config(training={"max_steps": 4}, evaluation={"every": 1, "samples": 0})))
    log = folder / "metrics.jsonl"
    lines: list[dict[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()]

    gap_lines = [{name: line[name] for name in line if (name, line["step"]) != ("eval_loss", 1)} for line in lines]
    log.write_text("".join(json.dumps(line) + "\n" for line in gap_lines))
    write_run_report(folder)
    trained, held_out = steps_drawn(folder, "Loss")
    step = trained[1] - trained[0]
    assert trained == pytest.approx([held_out[0] + step * number for number in (1, 2, 3, 4)], abs=1e-3)
    assert held_out == pytest.approx([held_out[0] + step * number for number in (0, 2, 3, 4)], abs=1e-3)

    log.write_text(json.dumps(lines[0]) + "\n")
    result = write_run_report(folder)
    assert (result.steps, result.loss) == (0, None)
    assert [len(line) for line in steps_drawn(folder, "Loss")] == [1]
