"""Name, base and licence of a starting model, without paths of this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from penchant.models.gguf.reading import is_gguf
from penchant.models.loading import adapter_base
from penchant.models.saving import stored_types

_LICENSE_KEYS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class ModelSource:
    """A starting model.

    Attributes:
        name: hub id, or name of a folder or file without its path.
        hub_name: the name in characters that the hub allows, for a card's `base_model`.
        local: whether it is a folder or file without a hub id.
        gguf: type of most weights in a GGUF file, as in ``Q4_1``; None for other models.
        license: licence keys of a card's metadata; empty where the licence is unknown.
        license_file: whether the folder has a LICENSE file.
    """

    name: str
    hub_name: str
    local: bool
    gguf: str | None = None
    license: Mapping[str, Any] = field(default_factory=dict)
    license_file: bool = False

    @property
    def license_text(self) -> str:
        """One sentence on the licence."""
        if self.license:
            return f"As the base model's: {self.license.get('license_name') or self.license.get('license')}."
        license_note = (
            "a licence file stands beside the base model" if self.license_file else "the base model's is not known"
        )
        return f"None is given here: {license_note}; read it before this model is shared."


def describe_source(source: str) -> ModelSource:
    """The source of a model folder, GGUF file or hub id in the local cache; of an adapter folder that of its base."""
    path = Path(source)
    if is_gguf(source) and path.is_file():
        name = path.stem
        license = _gguf_license(source)
        return ModelSource(name, _hub_safe_name(name), local=True, gguf=stored_types(path)[0], license=license)
    if not path.is_dir():
        return ModelSource(source, source, local=False, license=_license(_cached_card(source)))
    if (base := adapter_base(source)) is not None:
        base_source = describe_source(base)
        name = f"{path.resolve().name} (an adapter on {base_source.name})"
        return ModelSource(
            name,
            base_source.hub_name,
            base_source.local,
            base_source.gguf,
            _license(path / "README.md") or base_source.license,
        )
    hub_id = _hub_id_of_cache_folder(path)
    name = hub_id or path.resolve().name
    return ModelSource(
        name,
        hub_id or _hub_safe_name(name),
        local=hub_id is None,
        license=_license(path / "README.md"),
        license_file=any(path.glob("LICEN[CS]E*")),
    )


def card_metadata(file: Path | None) -> dict[str, Any]:
    """The YAML metadata at the start of a card; empty where there is none, or where it cannot be read."""
    if file is None or not file.is_file():
        return {}
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    match = re.match(r"\s*---[ \t]*\n(.*?)\n---", text, re.DOTALL)
    try:
        values = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def _license(file: Path | None) -> dict[str, Any]:
    values = card_metadata(file)
    return {key: values[key] for key in _LICENSE_KEYS if isinstance(values.get(key), (str, list))}


def _cached_card(source: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(source, "README.md")
    except HFValidationError:
        return None
    return Path(path) if isinstance(path, str) else None


def _hub_id_of_cache_folder(path: Path) -> str | None:
    """The hub id of a folder in the hub's local cache: .../models--org--name/snapshots/COMMIT."""
    parents = path.absolute().parents
    name = parents[1].name if len(parents) > 1 and parents[0].name == "snapshots" else ""
    return name.removeprefix("models--").replace("--", "/") if name.startswith("models--") else None


def _gguf_license(source: str) -> dict[str, Any]:
    from penchant.models.gguf.reading import gguf_library

    field_ = gguf_library().GGUFReader(source).get_field("general.license")
    return {} if field_ is None else {"license": str(field_.contents())}


def _hub_safe_name(name: str) -> str:
    return re.sub(r"[^\w.-]+|--+|\.\.+", "-", name, flags=re.ASCII).strip("-.")[:96] or "model"
