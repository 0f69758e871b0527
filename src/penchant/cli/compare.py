"""The verbs that train many runs: `compare` and `sweep`."""

from __future__ import annotations

from pathlib import Path

from penchant.cli.output import Device, Json, device_key, print_result


def compare(bench: Path, *overrides: str, device: Device = "auto", as_json: Json = False) -> None:
    """Compare methods on one data set, with seeds and intervals; re-running resumes where it stopped.

    Parameters
    ----------
    bench
        The comparison's YAML file.
    overrides
        Dotted keys of the configuration, as in seeds=[0,1,2] base.training.max_steps=100.
    """
    from penchant.comparison.config import load_bench
    from penchant.comparison.run import compare as compare_methods
    from penchant.comparison.write import write_comparison
    from penchant.storage.files import resumable_disk_errors

    config = load_bench(bench, [*overrides, *device_key("base.device", device)])
    comparison = compare_methods(config, str(bench))
    with resumable_disk_errors(Path(config.output)):
        summary, table = write_comparison(comparison, Path(config.output))
    print_result(summary, as_json, table)


def sweep(bench: Path, *overrides: str, device: Device = "auto", as_json: Json = False) -> None:
    """Search hyper-parameters by a grid or random draws, within a budget; the outputs are those of `compare`.

    Parameters
    ----------
    bench
        The comparison's YAML file, with a search section.
    overrides
        Dotted keys of the configuration, as in search.trials=10 search.budget.hours=2.
    """
    from penchant.comparison.config import load_bench
    from penchant.errors import ConfigError

    if load_bench(bench, overrides).search is None:
        raise ConfigError(
            "the file has no search section",
            where=str(bench),
            fix="as in search: {parameters: {objective.beta: [0.05, 0.1, 0.5]}}",
        )
    compare(bench, *overrides, device=device, as_json=as_json)
