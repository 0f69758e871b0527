"""The verb `penchant push`: a saved folder to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from penchant.cli_output import Json, deliver, teller


def push(
    run: Path,
    repo: str,
    *,
    private: Annotated[bool, Parameter(negative="")] = False,
    revision: str | None = None,
    message: str | None = None,
    as_json: Json = False,
) -> None:
    """Upload a run's model, its card, configuration and metrics to the Hugging Face hub.

    Parameters
    ----------
    run
        A run's output folder, or any folder with a model or an adapter.
    repo
        The repository, as in organisation/name; created where there is none.
    private
        Create it as a private one; one that is there stays as it is.
    revision
        A branch, created where there is none.
    message
        Of the commit.
    """
    from penchant.training.push import push_folder

    pushed = push_folder(run, repo, private=private, revision=revision, message=message, tell=teller(as_json))
    deliver(pushed.to_json(), as_json, f"{pushed.url}: {len(pushed.files)} files")
