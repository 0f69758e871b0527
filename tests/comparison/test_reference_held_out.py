"""The pairs that reference weights are fitted to, in a comparison."""

from __future__ import annotations

from penchant.comparison.cells import prepare
from penchant.comparison.config import load_bench
from penchant.data.groups import as_text
from penchant.data.reading import read_groups

MARGIN = {"name": "multi_reference", "weighting": "validation_margin"}


def prompts(groups) -> set[str]:
    return {as_text(group.prompt) for group in groups}


def test_a_comparison_keeps_them_from_every_method(write_bench, tmp_path):
    references = ["a", "b"]
    file = write_bench(
        tmp_path,
        methods=["sft", {"label": "margin", "objective": MARGIN, "set": {"references": references}}],
        baseline="sft",
    )
    bench = load_bench(file, ["base.data.reference_held_out=0.25"])
    shared, cells = prepare(bench, str(file))
    slices = {cell.config.data.reference_held_out for cell in cells}
    assert slices == {str(tmp_path / "bench" / "data" / "reference_held_out.jsonl")}
    fitting = prompts(read_groups(slices.pop()).groups)
    assert len(fitting) == 6
    assert not fitting & (prompts(shared.held_out) | prompts(read_groups(str(shared.train[0][1])).groups))
