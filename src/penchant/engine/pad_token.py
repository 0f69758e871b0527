"""The pad token of a reward model: one that no response ends with.

transformers' sequence classifiers read a row at its last token that is not ``config.pad_token_id``. Where that is the
end token, they read the token before the end, which the head was not trained on.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
