"""What a label holds is text in every file of a comparison."""

from __future__ import annotations

import re

from penchant.comparison.results_cache import Cell, Comparison
from penchant.comparison.summary import summarise
from penchant.comparison.write import to_markdown

LABEL = "![x](http://a/b.png)|<b>`c`\n# heading\\"


def test_a_label_is_neither_markdown_nor_html():
    cells = [
        Cell(method, {}, 10, seed, "", {"auc": 0.6 + seed / 10}, {}, {}, {}, {}, None)
        for method in (LABEL, "ipo")
        for seed in range(2)
    ]
    notices = [f"{LABEL}, seed 1: it failed"]
    text = to_markdown(summarise(Comparison(LABEL, LABEL, "m", "d", cells, {}, {}, "auc", notices, "", None)))
    label = r"!\[x\](http://a/b.png)\|\<b\>\`c\` # heading\\"
    assert text.startswith(f"# {label}\n")
    assert f"\n| {label} | 10 | 2 |" in text
    assert f"auc against {label} |" in text
    assert f"\n- {label}, seed 1: it failed\n" in text
    assert not re.search(r"(?<!\\)[<`]", text)
    assert "0.650 [" in text
