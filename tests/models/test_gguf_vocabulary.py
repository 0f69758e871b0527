"""Tokenizers in GGUF files: the same tokens of awkward texts, by transformers and by llama.cpp's rules."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import gguf
import pytest
import regex
import transformers as hf
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers.convert_slow_tokenizer import bytes_to_unicode

from penchant.errors import ModelError
from penchant.models.gguf.writing import export_gguf
from penchant.models.loading import load_tokenizer

_SPEC = importlib.util.spec_from_file_location("gguf_models", Path(__file__).with_name("gguf_models.py"))
shapes: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shapes)

SMALL = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}
BYTE_LEVEL = {
    "gpt-2": ("Llama", lambda: shapes.byte_level("gpt-2")),
    "llama-bpe": ("Llama", lambda: shapes.byte_level("llama-bpe")),
    "qwen2": ("Qwen2", lambda: shapes.byte_level("qwen2", bos=False, nfc=True)),
    "smollm": ("Llama", lambda: shapes.byte_level("smollm", bos=False)),
}


def export_tokenizer(tmp_path: Path, tokenizer: Any, kind: str = "Llama", spare: int = 0) -> tuple[Any, Any, Path]:
    """The tokenizer of the folder, the tokenizer of the file, and the file's path."""
    folder = shapes.build(tmp_path / "model", kind, tokenizer, spare=spare, **SMALL)
    export_gguf(str(folder), tmp_path / "a.gguf", "f16")
    return load_tokenizer(str(folder)), load_tokenizer(str(tmp_path / "a.gguf")), tmp_path / "a.gguf"


def metadata(file: Path) -> dict[str, Any]:
    return {
        key.removeprefix("tokenizer.").removeprefix("ggml."): field.contents()
        for key, field in gguf.GGUFReader(file).fields.items()
        if key.startswith("tokenizer.")
    }


def by_the_file(metadata: dict[str, Any], text: str) -> list[int]:
    """Tokens as llama.cpp makes them, from the file alone: special tokens first, then words, then merges."""
    numbers = {token: number for number, token in enumerate(metadata["tokens"])}
    added = [t for t, type_ in zip(metadata["tokens"], metadata["token_type"], strict=True) if type_ in (3, 4)]
    parts = [text]
    for token in sorted(added, key=len, reverse=True):
        parts = [
            piece
            for part in parts
            for piece in ([part] if part in added else regex.split(f"({regex.escape(token)})", part))
            if piece
        ]
    ids = [metadata["bos_token_id"]] if metadata["add_bos_token"] else []
    after_special = True
    for part in parts:
        if part in added:
            ids.append(numbers[part])
        elif metadata["model"] == "llama":
            prefixed_text = (" " if metadata["add_space_prefix"] and after_special else "") + part
            ids += by_scores(metadata, numbers, prefixed_text.replace(" ", "▁"))
        else:
            ids += by_merges(metadata, numbers, part)
        after_special = part in added
    return ids


def join_symbols(symbols: list[str], priority: Any) -> list[str]:
    """Symbols after merging neighbours in the order of priority, the left ones of equals first, until none merge."""
    while len(symbols) > 1:
        best = min(range(len(symbols) - 1), key=lambda index: priority(symbols[index], symbols[index + 1]))
        if priority(symbols[best], symbols[best + 1]) == float("inf"):
            break
        symbols = [*symbols[:best], symbols[best] + symbols[best + 1], *symbols[best + 2 :]]
    return symbols


def by_scores(metadata: dict[str, Any], numbers: dict[str, int], text: str) -> list[int]:
    def priority(left: str, right: str) -> float:
        number = numbers.get(left + right)
        return float("inf") if number is None else -metadata["scores"][number]

    return [
        number
        for symbol in join_symbols(list(text), priority)
        for number in (
            [numbers[symbol]] if symbol in numbers else [numbers[f"<0x{byte:02X}>"] for byte in symbol.encode()]
        )
    ]


def by_merges(metadata: dict[str, Any], numbers: dict[str, int], text: str) -> list[int]:
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(metadata["merges"])}
    patterns = {
        "gpt-2": [shapes.GPT_2],
        "llama-bpe": [shapes.LLAMA_3],
        "qwen2": [shapes.QWEN_2],
        "smollm": [r"\p{N}|\P{N}+", shapes.GPT_2],
    }[metadata["pre"]]
    words = [text]
    for pattern in patterns:
        words = [part for word in words for part in regex.findall(pattern, word)]
    ids = []
    for word in words:
        spelled = "".join(bytes_to_unicode()[byte] for byte in word.encode())
        if metadata["pre"] == "llama-bpe" and spelled in numbers:
            ids.append(numbers[spelled])
            continue
        symbols = join_symbols(list(spelled), lambda left, right: ranks.get((left, right), float("inf")))
        ids += [numbers[symbol] for symbol in symbols]
    return ids


@pytest.mark.parametrize("pre", BYTE_LEVEL)
class TestByteLevel:
    @pytest.mark.slow_but("gpt-2", "qwen2")
    def test_the_same_tokens(self, pre, tmp_path):
        kind, make = BYTE_LEVEL[pre]
        original, ours, file = export_tokenizer(tmp_path, make(), kind, spare=3)
        file_metadata = metadata(file)
        assert (file_metadata["model"], file_metadata["pre"]) == ("gpt2", pre)
        for text in shapes.AWKWARD:
            ids = original(text)["input_ids"]
            assert ours(text)["input_ids"] == ids, text
            assert by_the_file(file_metadata, text) == ids, text
            assert ours.decode(ids) == original.decode(ids)

    def test_special_tokens_and_the_chat_template(self, pre, tmp_path):
        kind, make = BYTE_LEVEL[pre]
        original, ours, file = export_tokenizer(tmp_path, make(), kind)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "chat_template"):
            assert getattr(ours, name) == getattr(original, name)
        assert len(ours) == len(original)
        messages = [{"role": "user", "content": "it's  12345?\n"}]
        assert ours.apply_chat_template(messages) == original.apply_chat_template(messages)
        file_metadata = metadata(file)
        types = dict(zip(file_metadata["tokens"], file_metadata["token_type"], strict=True))
        assert types["<|im_end|>"] == gguf.TokenType.CONTROL
        assert types["<think>"] == gguf.TokenType.USER_DEFINED
        assert types["e"] == gguf.TokenType.NORMAL
        assert file_metadata["chat_template"] == shapes.TEMPLATE


def unreachable_cat(pre: str) -> Any:
    """Whole words are taken for the tokens they are, and one of them is a cat, which merges never make; no other model
    of `transformers` would know this tokenizer's special tokens."""
    names = [*shapes.SPECIAL[:5], *sorted(pre_tokenizers.ByteLevel.alphabet()), "ca", "cat", "at"]
    vocabulary = {name: number for number, name in enumerate(names)}
    raw = Tokenizer(models.BPE(vocabulary, [("a", "t"), ("c", "a")], ignore_merges=True))
    raw.pre_tokenizer = shapes.pre_tokenizer(pre)
    raw.add_special_tokens(shapes.SPECIAL[:5])
    return shapes.with_special_tokens(raw)


def test_whole_words_first_and_no_tokens_of_others(tmp_path):
    original, ours, _ = export_tokenizer(tmp_path, unreachable_cat("llama-bpe"))
    assert ours("cat")["input_ids"] == original("cat")["input_ids"] == [1, original.convert_tokens_to_ids("cat")]
    assert ours.get_vocab() == original.get_vocab()


class TestSentencePiece:
    @pytest.mark.parametrize("prefix", ["prepend", "none", "gemma"])
    def test_the_same_tokens(self, prefix, tmp_path):
        kind = "Gemma3Text" if prefix == "gemma" else "Llama"
        original, ours, file = export_tokenizer(tmp_path, shapes.sentence_piece(prefix), kind, spare=3)
        file_metadata = metadata(file)
        assert file_metadata["model"] == "llama"
        assert file_metadata["add_space_prefix"] == (prefix == "prepend")
        types = dict(zip(file_metadata["tokens"], file_metadata["token_type"], strict=True))
        assert (types["<0x0A>"], types["<unk>"], file_metadata["token_type"][-1]) == (6, 2, 5)
        # llama.cpp looks for added tokens where spaces have not been replaced yet.
        assert types.get("   ") == (gguf.TokenType.USER_DEFINED if prefix == "gemma" else None)
        for text in [*shapes.AWKWARD, "unseen: ẞ"]:
            ids = original(text)["input_ids"]
            assert ours(text)["input_ids"] == ids, text
            assert by_the_file(file_metadata, text) == ids, text

    def test_an_additional_space_is_noted(self, tmp_path):
        folder = shapes.build(tmp_path / "model", "Llama", shapes.sentence_piece("first"), **SMALL)
        [note] = export_gguf(str(folder), tmp_path / "a.gguf", "f16").notes
        assert note.startswith("llama.cpp puts a space also before a text that begins with one and after special")
        original, ours = load_tokenizer(str(folder)), load_tokenizer(str(tmp_path / "a.gguf"))
        file_metadata = metadata(tmp_path / "a.gguf")
        assert ours("the cat's")["input_ids"] == original("the cat's")["input_ids"]
        for text in (" the cat", "a<eos>b"):
            assert ours(text)["input_ids"] == by_the_file(file_metadata, text) != original(text)["input_ids"]


class TestNotes:
    def notes(self, tmp_path, tokenizer, kind="Llama"):
        folder = shapes.build(tmp_path / "model", kind, tokenizer, **SMALL)
        return export_gguf(str(folder), tmp_path / "a.gguf", "f16").notes

    @pytest.mark.parametrize("prefix", [None, "gemma"])
    def test_no_notes_where_nothing_differs(self, prefix, tmp_path):
        tokenizer = shapes.byte_level("llama-bpe") if prefix is None else shapes.sentence_piece(prefix)
        assert self.notes(tmp_path, tokenizer, "Llama" if prefix is None else "Gemma3Text") == []

    def test_the_window_of_a_mistral(self, tmp_path):
        tokenizer = shapes.byte_level("llama-bpe")
        folder = shapes.build(tmp_path / "model", "Mistral", tokenizer, **SMALL, sliding_window=92)
        [note] = export_gguf(str(folder), tmp_path / "a.gguf", "f16").notes
        assert note == "the file's context is 92 tokens: the model looks back no further, and llama.cpp would"

    def test_composed_characters(self, tmp_path):
        [note] = self.notes(tmp_path, shapes.byte_level("qwen2", nfc=True), "Qwen2")
        assert "(NFC), llama.cpp does not" in note

    def test_special_tokens_that_take_spaces(self, tmp_path):
        tokenizer = shapes.byte_level()
        tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<end>", rstrip=True, special=True)]})
        [note] = self.notes(tmp_path, tokenizer)
        assert note.startswith("1 special tokens take the spaces beside them")

    def test_tokens_that_merges_do_not_reach(self, tmp_path):
        [note] = self.notes(tmp_path, unreachable_cat("gpt-2"))
        assert note == "1 tokens are not what their merges lead to, and llama.cpp goes by merges alone"


class TestRefused:
    def refusal(self, tmp_path, tokenizer):
        folder = shapes.build(tmp_path / "model", "Llama", tokenizer, **SMALL)
        with pytest.raises(ModelError) as error:
            export_gguf(str(folder), tmp_path / "a.gguf", "f16")
        assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
        assert error.value.where == str(folder)
        return error.value.what

    def test_words(self, tmp_path, tiny_model):
        with pytest.raises(ModelError, match="the tokenizer's model is WordLevel"):
            export_gguf(str(tiny_model), tmp_path / "a.gguf", "f16")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda raw: setattr(raw, "normalizer", normalizers.Lowercase()), "changes text before.*Lowercase"),
            (lambda raw: setattr(raw, "pre_tokenizer", pre_tokenizers.Whitespace()), "no name in GGUF"),
            (
                lambda raw: setattr(raw, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
                "no name in GGUF",
            ),
            (
                lambda raw: setattr(
                    raw,
                    "post_processor",
                    processors.TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 2)]),
                ),
                "other tokens around a text",
            ),
        ],
    )
    def test_variants_of_byte_level(self, change, message, tmp_path):
        tokenizer = shapes.byte_level()
        change(tokenizer.backend_tokenizer)
        assert re.search(message, self.refusal(tmp_path, tokenizer))

    def test_a_merge_that_sentence_piece_would_make(self, tmp_path):
        tokenizer = shapes.sentence_piece()
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        del state["model"]["merges"][-1]
        raw = Tokenizer.from_str(json.dumps(state))
        names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
        assert "SentencePiece would" in self.refusal(
            tmp_path, hf.PreTrainedTokenizerFast(tokenizer_object=raw, **names)
        )

    def test_a_file_whose_text_is_split_by_other_rules(self, tmp_path):
        _, _, file = export_tokenizer(tmp_path, shapes.byte_level())
        data = file.read_bytes()
        assert data.count(b"gpt-2") == 1
        file.write_bytes(data.replace(b"gpt-2", b"viking"[:5]))
        with pytest.raises(ModelError, match="split by the rules named 'vikin'"):
            load_tokenizer(str(file))


ADDED = ["<tool>", "New York", " lead", "日本語", "naïve", "<｜end｜>"]


class TestAddedTokens:
    """Tokens that a user adds: the same ids in the file's reading and by llama.cpp's rules, or a note."""

    @pytest.mark.slow_but("gpt-2", "llama-bpe-True", "prepend")
    @pytest.mark.parametrize("special", [True, False])
    @pytest.mark.parametrize("make", [*BYTE_LEVEL, "prepend", "none"])
    def test_as_they_are_written(self, make, special, tmp_path):
        tokenizer = BYTE_LEVEL[make][1]() if make in BYTE_LEVEL else shapes.sentence_piece(make)
        tokenizer.add_tokens([AddedToken(text, normalized=False, special=special) for text in ADDED])
        original, ours, file = export_tokenizer(tmp_path, tokenizer)
        fields = metadata(file)
        assert len(ours) == len(original)
        for text in ADDED:
            for example in (f"the {text} cat", f"cat{text}cat", text, f"{text} it's 12"):
                ids = original(example)["input_ids"]
                assert original.convert_tokens_to_ids(text) in ids
                assert ours(example)["input_ids"] == ids, example
                assert by_the_file(fields, example) == ids, example

    @pytest.mark.parametrize("text", ["<tool>", "New York", " lead", "日本語"])
    def test_matched_in_normalized_text_is_noted(self, text, tmp_path):
        tokenizer = shapes.sentence_piece("prepend")
        tokenizer.add_tokens([text])  # not special, and looked for in the normalized text: what transformers does
        folder = shapes.build(tmp_path / "model", "Llama", tokenizer, **SMALL)
        notes = export_gguf(str(folder), tmp_path / "a.gguf", "f16").notes
        assert [text in note and "AddedToken(text, normalized=False)" in note for note in notes] == [True]
        fields = metadata(tmp_path / "a.gguf")
        example = f"cat{text}cat"
        assert by_the_file(fields, example) != load_tokenizer(str(folder))(example)["input_ids"]  # the note is true

    @pytest.mark.parametrize("make", ["first", "none"])
    def test_no_note_where_normalizing_changes_nothing(self, make, tmp_path):
        tokenizer = shapes.sentence_piece(make)
        tokenizer.add_tokens(["<tool>", "New York"])
        folder = shapes.build(tmp_path / "model", "Llama", tokenizer, **SMALL)
        notes = export_gguf(str(folder), tmp_path / "a.gguf", "f16").notes
        assert not [note for note in notes if "added tokens" in note]
