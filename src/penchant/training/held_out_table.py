"""Rows of a run's held-out table, as the model card, the report and the command line show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def held_out_rows(start_metrics: Mapping[str, Any], final_metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value before training and value after it of each metric that has one.

    Args:
        start_metrics, final_metrics: ``before`` and ``after`` of evaluation.json.
    """
    rows = []
    for name in final_metrics["definitions"]:
        cells = [metric_text(document.get(name)) for document in (start_metrics, final_metrics)]
        if any(cells):
            rows.append((name, cells[0] or "", cells[1] or ""))
    return rows


def metric_text(value: object) -> str | None:
    """A metric of evaluation.json with its 95 % interval; None where it is none or has no value."""
    if not isinstance(value, dict) or value.get("value") is None:
        return None
    if value.get("low") is None:
        return f"{value['value']:.4f}"
    return f"{value['value']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"
