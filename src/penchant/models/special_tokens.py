"""The pad token of a reward model, one that no response ends with, and generation_config.json of a trained model.

transformers' sequence classifiers read a row at its last token that is not ``config.pad_token_id``. Where that is the
end token, they read the token before the end, which the head was not trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from penchant.data.tokenized import TokenizedGroup
from penchant.models.gguf.reading import gguf_ends

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class TrainedResponses:
    """The ends and lengths of the responses a model was trained on.

    Attributes:
        ends: ids that end its responses: eos, and a chat template's end of turn where one was used.
        shortest, longest: tokens of a response, its end included.
        sequence: tokens of the longest prompt with its response.
    """

    ends: tuple[int, ...]
    shortest: int
    longest: int
    sequence: int

    @classmethod
    def from_groups(cls, groups: Sequence[TokenizedGroup]) -> TrainedResponses:
        """The ends and lengths of tokenized groups.

        Args:
            groups: at least one.
        """
        lengths = [len(response) for group in groups for response in group.responses]
        return cls(
            ends=tuple(sorted({int(response[-1]) for group in groups for response in group.responses})),
            shortest=min(lengths),
            longest=max(lengths),
            sequence=max(group.longest for group in groups),
        )


def write_generation_config(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, trained: TrainedResponses
) -> None:
    """Write a trained model's generation configuration into the folder of the model or its adapter.

    It is written as JSON, not by transformers, whose objects refuse to be saved once changed where an untouched part
    (sampling settings beside ``do_sample: false``, say) contradicts another.
    """
    if not model.can_generate() or model.generation_config is None:
        return
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    values = revise_settings(model.generation_config.to_diff_dict(), tokenizer, trained, limit)
    (folder / GENERATION_CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def revise_settings(
    values: dict[str, Any], tokenizer: PreTrainedTokenizerBase, trained: TrainedResponses, context: int | None
) -> dict[str, Any]:
    """A generation configuration without settings that contradict training; its end tokens stay.

    Args:
        context: tokens the model can read, or None.
    """
    # With this key transformers derives the configuration from config.json again.
    settings = {name: value for name, value in values.items() if name != "_from_model_config"}
    configured_ends = as_list(settings.get("eos_token_id"))
    ends = list(dict.fromkeys([*configured_ends, tokenizer.eos_token_id, *trained.ends]))
    settings["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    for name in ("pad_token_id", "bos_token_id"):
        if (number := getattr(tokenizer, name)) is not None:
            settings[name] = number
    if (settings.get("max_length") or trained.sequence) < trained.sequence:
        settings["max_length"] = context or trained.sequence
    if (settings.get("max_new_tokens") or trained.longest) < trained.longest:
        settings["max_new_tokens"] = trained.longest
    if (settings.get("min_new_tokens") or 0) >= trained.shortest:
        del settings["min_new_tokens"]
    if (settings.get("min_length") or 0) >= trained.shortest:  # counts the prompt, which may have one token
        del settings["min_length"]
    settings.pop("forced_bos_token_id", None)  # the first token of each response, whatever the prompt
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        if settings.get(name):
            settings[name] = [number for number in settings[name] if number not in ends]
    if settings.get("bad_words_ids"):
        settings["bad_words_ids"] = [ids for ids in settings["bad_words_ids"] if not (len(ids) == 1 and ids[0] in ends)]
    return {name: value for name, value in settings.items() if value != []}


def read_generation_config(model: PreTrainedModel, folder: str) -> None:
    """Give a merged model the generation configuration of its adapter's folder, where there is one."""
    from transformers import GenerationConfig

    if model.can_generate() and (Path(folder) / GENERATION_CONFIG).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)


def read_gguf_ends(model: PreTrainedModel, source: str) -> None:
    """Set a model's end tokens to all those of its GGUF file: transformers reads eos alone."""
    if model.generation_config is not None and (ends := gguf_ends(source)):
        model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]


def as_list(ids: int | Sequence[int] | None) -> list[int]:
    """The ids of a configuration's entry that holds one, several or none."""
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)


NEW_PAD = "<|pad|>"
PAD_TOKEN_CHECKED = "pad_token_checked"
"""Key of a saved reward model's configuration: its head is read as its pad token makes transformers read it."""
_ANSWER = "penchantanswer"
_PADS = re.compile(r"pad", re.IGNORECASE)
_SPARE = re.compile(r"reserved|unused|placeholder", re.IGNORECASE)
_MEDIA = re.compile(r"image|vision|video|audio|img", re.IGNORECASE)


def pad_token_id(model: PreTrainedModel) -> int | None:
    """The id that transformers skips when it looks for the token to read; None where it reads a row's last token."""
    pad: int | None = model.config.get_text_config().pad_token_id
    return pad


def forget_pad_token(model: PreTrainedModel) -> None:
    """Take the pad token out of the configuration: transformers then reads a row's last token."""
    model.config.pad_token_id = None
    model.config.get_text_config().pad_token_id = None


def set_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, grow: bool) -> None:
    """Write one pad token into a reward model's configuration and its tokenizer.

    A pad token that the configuration has stays: the head was trained to be read so. Without one, a token that ends no
    response is taken, and where the vocabulary has none, one is added.

    Args:
        grow: whether the embedding may get a row more for an added token; without a spare row nothing is changed.
    """
    pad = pad_token_id(model)
    if pad is None:
        token = choose_pad_token(tokenizer)
        rows = model.get_input_embeddings().num_embeddings
        if token is None:
            if not grow and len(tokenizer) >= rows:
                return
            token = NEW_PAD
            tokenizer.add_special_tokens({"pad_token": token})
            if len(tokenizer) > rows:
                _grow(model, len(tokenizer))
        tokenizer.pad_token = token
        pad = tokenizer.pad_token_id
    elif 0 <= pad < len(tokenizer):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    model.config.pad_token_id = pad
    model.config.get_text_config().pad_token_id = pad
    setattr(model.config, PAD_TOKEN_CHECKED, True)


def choose_pad_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A token of the vocabulary to pad with that ends no response, or None.

    In this order: the tokenizer's own pad token, a special token made for padding, a reserved special token, the
    unknown token, the start token.
    """
    ends = response_ends(tokenizer)
    special = {i: str(token) for i, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special}
    candidates = [i for pattern in (_PADS, _SPARE) for i, token in special.items() if pattern.search(token)]
    candidates = [i for i in candidates if not _MEDIA.search(special[i])]
    for candidate in (tokenizer.pad_token_id, *candidates, tokenizer.unk_token_id, tokenizer.bos_token_id):
        if candidate is not None and candidate not in ends:
            token: str = tokenizer.convert_ids_to_tokens(candidate)
            return token
    return None


def response_ends(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids a response may end with: the end of sequence, and what the chat template puts after an assistant's turn."""
    ends = {tokenizer.eos_token_id}
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": _ANSWER}]
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False)
        except Exception:  # A template may ask for anything; the run's own rendering says what is wrong.
            text = ""
        tail = str(text).rpartition(_ANSWER)[2]
        ends |= set(tokenizer(tail, add_special_tokens=False)["input_ids"])
    return frozenset(ends - {None})


@torch.no_grad()
def _grow(model: PreTrainedModel, rows: int) -> None:
    """Add rows to the embedding, the mean of the others; no position that is read ever sees them."""
    old_rows = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(rows, mean_resizing=False)
    weight = model.get_input_embeddings().weight
    weight[old_rows:] = weight[:old_rows].mean(0)
