"""`penchant recipe self-improve`: the rounds, then the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penchant.api import ConfigError, folder_lock, resumable_disk_errors, run_log
from penchant.recipes.self_improve.config import SelfImproveConfig
from penchant.recipes.self_improve.loop import improve
from penchant.recipes.self_improve.report import write_result


def self_improve(config: SelfImproveConfig, *, only: str | None = None) -> dict[str, Mapping[str, Any]]:
    """Run all rounds and write the report; an interrupted round resumes.

    Raises:
        PenchantError: see `improve`; also ConfigError if `only` names a stage.
    """
    if only is not None:
        raise ConfigError("self-improve has rounds and no stages", fix="leave --stage out")
    folder = Path(config.output)
    with resumable_disk_errors(folder), folder_lock(folder), run_log() as log:
        log.open(folder)
        return {"evaluation": write_result(config, improve(config))}
