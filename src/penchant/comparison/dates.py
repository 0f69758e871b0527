"""The day that chat templates write as today's in all cells of a comparison, also those that are added later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penchant.comparison.cells import configurations
from penchant.comparison.config import Bench
from penchant.config import read_yaml
from penchant.evaluation.dates import today
from penchant.training.dates import run_writes_today


def same_but_for_no_day(earlier: dict[str, Any], current: dict[str, Any]) -> bool:
    """Whether two runs have the same keys, but for the date where one of them names none."""
    days = {_data(values).get("date") for values in (earlier, current)} - {None}
    undated = [{**values, "data": {**_data(values), "date": None}} for values in (earlier, current)]
    return undated[0] == undated[1] and len(days) < 2


def _data(values: dict[str, Any]) -> dict[str, Any]:
    data = values.get("data", {})
    return {"train": data} if isinstance(data, str) else data


def on_one_day(bench: Bench, where: str) -> Bench:
    """The comparison with `base.data.date`: its own, else that it was begun with, else today where a template needs it.

    Args:
        where: the configuration's file, for errors.

    Raises:
        ConfigError: what is wrong with any method.
    """
    configs = configurations(bench, where)
    if configs[0].data.date is not None:
        return bench
    file = Path(bench.output) / "compare.yaml"
    earlier = read_yaml(file).get("base", {}) if file.exists() else {}
    day = _data(earlier).get("date")
    if day is None and any(map(run_writes_today, configs)):
        day = today()
    if day is None:
        return bench
    return bench.model_copy(update={"base": {**bench.base, "data": {**_data(bench.base), "date": str(day)}}})
