"""The Python that loads a saved folder, for its model card."""

from __future__ import annotations

from penchant.engine.model_kind import ModelKind
from penchant.training.model_source import ModelSource

_NAME = '"FOLDER OR ID"'


def loading_code(kind: ModelKind, base: ModelSource) -> str:
    """A code block that loads the folder, and sentences on what it does not load."""
    code = "\n".join(["```python", *_imports(kind), "", *_calls(kind), "```"])
    return "\n\n".join([code, *_remarks(kind, base)])


def _class(kind: ModelKind) -> str:
    task = "SequenceClassification" if kind.is_reward_model else "CausalLM"
    if kind.is_adapter:
        return f"AutoPeftModelFor{task}"
    multimodal = (kind.architecture or "").endswith("ForConditionalGeneration")
    return "AutoModelForImageTextToText" if multimodal else f"AutoModelFor{task}"


def _imports(kind: ModelKind) -> list[str]:
    if not kind.is_adapter:
        return [f"from transformers import {_class(kind)}, AutoTokenizer"]
    also = "AutoTokenizer" if kind.is_reward_model else "AutoTokenizer, GenerationConfig"
    return [f"from peft import {_class(kind)}", f"from transformers import {also}"]


def _calls(kind: ModelKind) -> list[str]:
    labels = ", num_labels=1" if kind.is_reward_model and kind.is_adapter else ""
    calls = [
        f"model = {_class(kind)}.from_pretrained({_NAME}{labels})",
        f"tokenizer = AutoTokenizer.from_pretrained({_NAME})",
    ]
    if kind.is_adapter and kind.is_reward_model:
        calls.append(
            "model.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # an adapter cannot carry it"
        )
    elif kind.is_adapter:
        calls.append(f"model.generation_config = GenerationConfig.from_pretrained({_NAME})  # where responses end")
    return calls


def _remarks(kind: ModelKind, base: ModelSource) -> list[str]:
    remarks = []
    if kind.is_reward_model:
        remarks.append("The model's one logit is the reward of a prompt with its response.")
    if kind.heads:
        remarks.append(
            "The preference head beside it is read by Penchant: `penchant rank FOLDER --data FILE --by head`, "
            "`penchant generate FOLDER PROMPT --best-of 8`."
        )
    if kind.is_adapter and (base.gguf or base.local):
        remarks.append("adapter_config.json names the base by its path; `penchant merge` writes a whole model.")
    return remarks
