"""What a saved folder holds, and the Python that loads it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penchant.training.model_source import ModelSource


@dataclass(frozen=True)
class SavedKind:
    """What a folder holds.

    Attributes:
        adapter: a PEFT adapter and no whole model.
        reward: a sequence classifier that gives rewards.
        head: a preference head stands beside the language model.
    """

    adapter: bool
    reward: bool
    head: bool

    @classmethod
    def of(cls, folder: Path) -> SavedKind:
        """Read off a folder's files."""
        values: dict[str, Any] = {}
        for name in ("config.json", "adapter_config.json"):
            if (folder / name).is_file():
                values = json.loads((folder / name).read_text(encoding="utf-8"))
        kinds = values.get("architectures") or ()
        return cls(
            adapter=(folder / "adapter_config.json").is_file(),
            reward=values.get("task_type") == "SEQ_CLS" or any("SequenceClassification" in kind for kind in kinds),
            head=any(_is_head(file) for file in folder.glob("*.json")),
        )

    def loading(self, base: ModelSource) -> str:
        """Python that loads it."""
        task = "SequenceClassification" if self.reward else "CausalLM"
        library, automatic = ("peft", "AutoPeftModelFor") if self.adapter else ("transformers", "AutoModelFor")
        extra = ", num_labels=1" if self.reward and self.adapter else ""
        lines = ["```python"]
        if self.adapter:
            lines += [f"from {library} import {automatic}{task}", "from transformers import AutoTokenizer"]
        else:
            lines.append(f"from {library} import {automatic}{task}, AutoTokenizer")
        lines += [
            "",
            f'model = {automatic}{task}.from_pretrained("FOLDER OR ID"{extra})',
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER OR ID")',
        ]
        if self.adapter and not self.reward:
            lines.insert(2, "from transformers import GenerationConfig")
            lines.append('model.generation_config = GenerationConfig.from_pretrained("FOLDER OR ID")  # where it stops')
        lines.append("```")
        if self.reward:
            lines.append("\nThe model's one logit is the reward of a prompt with its response.")
        if self.head:
            lines.append(
                "\nThe preference head beside it is read by Penchant: `penchant rank FOLDER --data FILE --by head`, "
                "`penchant generate FOLDER PROMPT --best-of 8`."
            )
        if self.adapter and (base.gguf or base.local):
            lines.append("\nadapter_config.json names the base by its path; `penchant merge` writes a whole model.")
        return "\n".join(lines)


def _is_head(file: Path) -> bool:
    """A head's settings stand beside its weights, under the same name."""
    if not file.with_suffix(".safetensors").is_file() or file.name.startswith("."):
        return False
    return "pooling" in json.loads(file.read_text(encoding="utf-8"))
