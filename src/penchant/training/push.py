"""Upload of a saved folder's model, card, configuration and metrics to the Hugging Face hub."""

from __future__ import annotations

import glob
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from penchant.config.objective import without_code
from penchant.config.run import load_config
from penchant.errors import ConfigError, ModelError
from penchant.models.loading import adapter_base
from penchant.models.saving import PROCESSOR_FILES
from penchant.training.model_card import CARD_FILE, write_model_card
from penchant.training.model_source import describe_source

logger = logging.getLogger(__name__)

_WEIGHTS = ("*.safetensors", "*.bin")
_FILES = (
    *_WEIGHTS,
    *("*.index.json", "config.json", "generation_config.json", "adapter_config.json", "preference_head*.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.jinja"),
    *PROCESSOR_FILES,
    *(CARD_FILE, "LICENSE*", "config.yaml", "metrics.jsonl", "evaluation.json"),
)
"""Uploaded files; a run's checkpoints, samples, best model, report and times are not uploaded."""


@dataclass(frozen=True)
class Pushed:
    """The result of an upload.

    Attributes:
        url: address of the repository.
        commit: id of the last commit.
        files: names of the uploaded files.
    """

    url: str
    commit: str
    files: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def push_folder(
    folder: Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
) -> Pushed:
    """Upload a folder's files to a model repository, which is created where there is none.

    The hub is at HF_ENDPOINT of the environment; the token is HF_TOKEN, or that of `hf auth login`.

    Args:
        folder: a run's output, or another folder with a model or an adapter.
        private: whether a repository that is created here is private.
        revision: a branch, created where there is none; None: the main branch.

    Raises:
        ModelError: the folder holds no model.
        ConfigError: the hub refuses, or cannot be reached.
    """
    files = _files_to_push(folder)
    if not (folder / CARD_FILE).is_file() and (folder / "run.json").is_file():
        with without_code():
            write_model_card(folder, load_config(folder / "config.yaml"))
        files = _files_to_push(folder)
    if CARD_FILE not in files:
        logger.warning(f"the folder has no {CARD_FILE}: the hub will show no card")
    base = adapter_base(str(folder))
    if base is not None and describe_source(base).local:
        logger.warning(
            f"adapter_config.json names its base by a path of this machine ({base}): elsewhere it loads once "
            f"base_model_name_or_path in it is a hub id; or push a merged model: penchant merge {folder} MERGED"
        )
    return _upload(folder, repository, files, private, revision, message)


def _files_to_push(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise ModelError("there is no such folder", where=str(folder), fix="name a run's output folder")
    has_weights = any(True for pattern in _WEIGHTS for _ in folder.glob(pattern))
    if not has_weights or not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ModelError(
            "the folder holds no model to push: weights with a config.json or an adapter_config.json",
            where=str(folder),
            fix="name a run's output folder once it has finished, or one that penchant merge wrote",
        )
    return sorted({file.name for pattern in _FILES for file in folder.glob(pattern) if file.is_file()})


def _upload(
    folder: Path, repository: str, files: list[str], private: bool, revision: str | None, message: str | None
) -> Pushed:
    from huggingface_hub import HfApi

    endpoint = os.environ.get("HF_ENDPOINT")
    api = HfApi(endpoint=endpoint, library_name="penchant")
    try:
        # The visibility of an existing repository is not changed.
        url = api.create_repo(repository, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(url.repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            allow_patterns=[glob.escape(name) for name in files],
            revision=revision,
            commit_message=message or "Upload by Penchant",
        )
    except Exception as error:
        raise _explain_error(
            error, repository, str(api.endpoint)
        ) from None  # the cause may hold the request, and its token
    return Pushed(str(url), str(commit.oid), files)


def _explain_error(error: Exception, repository: str, endpoint: str) -> ConfigError:
    """The error to show for a failed upload."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    if isinstance(error, HFValidationError):
        return ConfigError(
            "this is no name of a repository on the hub", where=repository, fix="it looks like organisation/name"
        )
    if isinstance(error, OfflineModeIsEnabled):
        return ConfigError(
            "the hub is not asked in offline mode", where=repository, fix="unset HF_HUB_OFFLINE, and push again"
        )
    if isinstance(error, LocalTokenNotFoundError):
        return _no_token(repository)
    if isinstance(error, HfHubHTTPError):
        return _explain_response(error, repository, endpoint)
    return ConfigError(
        f"the hub at {endpoint} cannot be reached: {type(error).__name__}",
        where=repository,
        fix="check the connection, and HF_ENDPOINT where it is set; pushing again goes on",
    )


def _no_token(repository: str) -> ConfigError:
    return ConfigError(
        "the hub does not know who you are: there is no token, or it is no longer valid",
        where=repository,
        fix="log in with a token that may write: hf auth login; or set HF_TOKEN",
    )


def _explain_response(error: Any, repository: str, endpoint: str) -> ConfigError:
    status = error.response.status_code
    if status == 401:
        return _no_token(repository)
    if status == 403:
        return ConfigError(
            "your token may not write there",
            where=repository,
            fix="use a token with the right to write, or a repository of your own: NAME/REPOSITORY",
        )
    if status == 404:
        return ConfigError(
            "there is no such repository or organisation, or it is not yours to see",
            where=repository,
            fix="check the spelling, and that your token may write there",
        )
    answer = (getattr(error, "server_message", None) or "").strip().split("\n")[0]
    return ConfigError(
        f"the hub at {endpoint} answered {status}" + (f": {_without_token(answer)}" if answer else ""),
        where=repository,
        fix="try again in a while; pushing again goes on" if status >= 500 or status == 429 else "correct what it says",
    )


def _without_token(text: str) -> str:
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "...") if token else text
