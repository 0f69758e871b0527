"""Tokenization: joint ids, boundaries, start and end tokens, and errors."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from penchant.data.groups import Message, PreferenceGroup, Text
from penchant.data.rendering import Rendering
from penchant.data.tokenization import tokenize_groups, tokenize_prompts, turn_end
from penchant.data.tokenized import TokenizedGroup
from penchant.errors import DataError, ModelError

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "the", "cat", "sat", "on", "mat", "dog", "ran", "[INST]"]
THE, CAT, SAT, ON, MAT, DOG, RAN = range(4, 11)
BOS, EOS, UNK = 1, 2, 3
SENTENCES = ["the cat sat on the mat .", "the dog ran , the cat ran .", "a user asks and the assistant answers :"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}"
    "{% endfor %}"
)
OPEN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
THINK = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
POST = {"start": "<s> $A", "start and end": "<s> $A </s>", "none": "$A", "two starts": "<s> <pad> $A"}


@cache
def words(post: str = "start", **tokens: str) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(
        single=POST[post], special_tokens=[("<s>", 1), ("</s>", 2), ("<pad>", 0)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", **tokens}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **{k: v for k, v in names.items() if v})


@cache
def pieces(template: str | None = None, post: str = "start") -> PreTrainedTokenizerFast:
    """A byte-fallback BPE tokenizer as Llama's, with ChatML's marks as special tokens."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    )
    trained_model = json.loads(trained.to_str())["model"]
    vocabulary = dict(trained_model["vocab"])
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    merges = [tuple(merge) for merge in trained_model["merges"]]
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw.post_processor = processors.TemplateProcessing(single=POST[post], special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    marks = ["<|im_start|>", "<|im_end|>"]
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks], special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


def group(prompt: Text, *candidates: Text, **preferences: Any) -> PreferenceGroup:
    return PreferenceGroup(prompt, candidates, **preferences)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def one(
    example: PreferenceGroup, tokenizer: PreTrainedTokenizerBase, **policies: Any
) -> tuple[list[int], list[list[int]], dict[str, int]]:
    (tokenized,), report = tokenize_groups([example], tokenizer, **{"max_length": 1000, **policies})
    return tokenized.prompt.tolist(), [ids.tolist() for ids in tokenized.responses], dict(report.counts)


def texts(tokenized: TokenizedGroup, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text that the model reads for each candidate."""
    return [tokenizer.decode([*tokenized.prompt, *response]) for response in tokenized.responses]


# Plain text


@pytest.mark.parametrize("post", ["start", "start and end"])
def test_plain_pair_by_hand(post: str) -> None:
    prompt, responses, events = one(group("the cat", " sat on", " ran", preferred=0), words(post))
    assert prompt == [BOS, THE, CAT]
    assert responses == [[SAT, ON, EOS], [RAN, EOS]]
    assert events == {}


def test_ids_are_int64_arrays_and_the_group_is_kept() -> None:
    example = group("the cat", " sat", " ran")
    (tokenized,), report = tokenize_groups([example], words(), max_length=10)
    assert tokenized.prompt.dtype == tokenized.responses[1].dtype == np.int64
    assert tokenized.group is example
    assert report.groups == 1


def test_no_bos_where_the_tokenizer_puts_none() -> None:
    prompt, responses, events = one(group("the cat", " sat", " ran"), words("none"))
    assert (prompt, responses, events) == ([THE, CAT], [[SAT, EOS], [RAN, EOS]], {})


def test_moved_boundary_is_counted_and_the_same_for_all_candidates() -> None:
    # "catx" is a different token from "cat", so "cat" is not shared and belongs to both responses.
    prompt, responses, events = one(group("the cat", "x sat", " ran"), words())
    assert prompt == [BOS, THE]
    assert responses == [[UNK, SAT, EOS], [CAT, RAN, EOS]]
    assert events == {"boundary_moved": 1}


@pytest.mark.parametrize(("tokens", "start"), [({}, BOS), ({"bos_token": ""}, EOS)])
def test_empty_prompt_without_bos_gets_a_start_token(tokens: dict[str, str], start: int) -> None:
    prompt, responses, events = one(group("", "the cat", "the dog"), words("none", **tokens))
    assert prompt == [start]
    assert responses == [[THE, CAT, EOS], [THE, DOG, EOS]]
    assert events == {"start_token_added": 1}


def test_empty_prompt_with_bos_needs_no_start_token() -> None:
    assert one(group("", "cat", "dog"), words()) == ([BOS], [[CAT, EOS], [DOG, EOS]], {})


def test_several_start_tokens_are_added_once() -> None:
    for prompt in ("the cat", "<s> <pad> the cat", "<s> <pad> <s> <pad> the cat"):
        assert one(group(prompt, " sat"), words("two starts"))[:2] == ([BOS, 0, THE, CAT], [[SAT, EOS]])


def test_bos_that_is_also_eos_ends_the_response_once() -> None:
    tokenizer = words("none", bos_token="</s>")
    assert one(group("", "the cat </s>"), tokenizer)[:2] == ([EOS], [[THE, CAT, EOS]])
    assert one(group("</s> the", " cat"), tokenizer)[:2] == ([EOS, THE], [[CAT, EOS]])


def test_boundary_moved_to_zero_gets_a_start_token() -> None:
    prompt, responses, events = one(group("cat", "x", " sat"), words("none"))
    assert (prompt, responses) == ([BOS], [[UNK, EOS], [CAT, SAT, EOS]])
    assert events == {"boundary_moved": 1, "start_token_added": 1}


def test_unknown_token_at_the_end_is_not_an_end_of_turn() -> None:
    _, responses, _ = one(group("[INST] the", " cat zebra", " dog"), words())
    assert responses == [[CAT, UNK, EOS], [DOG, EOS]]


@pytest.mark.parametrize(("ending", "last"), [("<pad>", [0, EOS]), ("<s>", [BOS, EOS]), ("</s>", [EOS])])
def test_padding_and_bos_are_not_an_end_of_turn(ending: str, last: list[int]) -> None:
    assert one(group("[INST] the", f" cat {ending}"), words())[1] == [[CAT, *last]]


def test_bos_and_pad_that_are_also_eos_are_an_end_of_turn() -> None:
    tokenizer = words("none", bos_token="</s>", pad_token="</s>")
    assert one(group("[INST] the", " cat </s>"), tokenizer)[1] == [[CAT, EOS]]


def test_another_special_token_before_the_end_of_turn_stays() -> None:
    tokenizer = pieces(CHATML, "none")
    _, (response,), events = one(group((user("the"),), "cat</s>"), tokenizer, rendering=Rendering(control_text="token"))
    assert response[-2:] == [EOS, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert events == {"control_text_read_as_token": 1}


def test_tokenizer_without_eos_is_refused() -> None:
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        tokenize_groups([group("the", " cat")], words(eos_token=""), max_length=10)


def test_no_groups_give_an_empty_result() -> None:
    assert tokenize_groups([], words(), max_length=10)[0] == []


def test_many_groups_keep_their_order() -> None:
    examples = [group("the", " cat" * (1 + i % 3), " dog", id=str(i)) for i in range(2100)]
    tokenized, _ = tokenize_groups(examples, words(), max_length=10)
    assert [t.group.id for t in tokenized] == [str(i) for i in range(2100)]
    assert [len(t.responses[0]) for t in tokenized] == [2 + i % 3 for i in range(2100)]


def test_text_the_tokenizer_cannot_read_names_its_group() -> None:
    examples = [group("the", " cat", id="good"), group("half \ud83d", " cat", id="bad")]
    with pytest.raises(DataError, match=r"group bad: the tokenizer cannot read the text.*1 of 2 groups.*: bad"):
        tokenize_groups(examples, words(), max_length=10)


TEXT = st.text(alphabet="acehst .,\n\t:é😀Ж▁", max_size=12) | st.sampled_from([*SENTENCES, "the ", " cat", "sat"])
NON_BLANK = TEXT.filter(lambda text: bool(text.strip()))


@settings(max_examples=150, deadline=None)
@given(TEXT, st.lists(NON_BLANK, min_size=1, max_size=4), st.sampled_from(["start", "start and end", "none"]))
def test_plain_invariants(prompt: str, candidates: list[str], post: str) -> None:
    tokenizer = pieces(post=post)

    def joint(text: str) -> list[int]:
        return ([] if post == "none" else [BOS]) + tokenizer(text, add_special_tokens=False)["input_ids"]

    (tokenized,), report = tokenize_groups([group(prompt, *candidates)], tokenizer, max_length=1000)
    prompt_ids = joint(prompt)
    added = report.counts["start_token_added"]
    start = tokenized.prompt.tolist()
    boundary = len(start) - added
    sequences = [[*start, *response.tolist()][added:] for response in tokenized.responses]
    assert boundary >= 1 or added
    assert start[added:] == prompt_ids[:boundary]
    assert report.counts["boundary_moved"] == (boundary < len(prompt_ids))
    assert boundary == len(prompt_ids) or any(ids[boundary] != prompt_ids[boundary] for ids in sequences)
    for ids, candidate in zip(sequences, candidates, strict=True):
        assert ids == [*joint(prompt + candidate), EOS]
        assert ids.count(EOS) == 1
        assert ids.count(BOS) == (post != "none")


# Conversations


def test_chatml_by_hand() -> None:
    tokenizer = pieces(CHATML, "none")
    (tokenized,), report = tokenize_groups(
        [group((user("the cat"),), (assistant("sat"),), "ran")], tokenizer, max_length=100
    )
    im_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert texts(tokenized, tokenizer) == [
        f"<|im_start|> user\nthe cat<|im_end|> \n<|im_start|> assistant\n{answer}<|im_end|>"
        for answer in ("sat", "ran")
    ]
    assert tokenizer.decode(tokenized.responses[0]) == "sat<|im_end|>"
    assert [ids[-1] for ids in tokenized.responses] == [im_end, im_end]
    assert EOS not in tokenized.responses[0]
    assert report.counts == {}


def test_template_without_bos_is_followed_and_counted() -> None:
    prompt, responses, events = one(group((user("the"),), "cat"), pieces(CHATML))
    assert BOS not in [*prompt, *responses[0]]
    assert events == {"template_without_bos": 1}


def test_llama_like_template_has_one_bos_and_one_eos() -> None:
    tokenizer = pieces(INST)
    prompt, responses, events = one(group((user("the cat"),), "sat", "ran"), tokenizer)
    for response in responses:
        ids = [*prompt, *response]
        assert (ids.count(BOS), ids.count(EOS)) == (1, 1)
        assert (ids[0], ids[-1]) == (BOS, EOS)
    assert events == {}


def test_duplicate_bos_of_a_template_is_removed_and_counted() -> None:
    prompt, responses, events = one(group((user("the cat"),), "sat", "ran"), pieces("{{ bos_token }}" + INST))
    assert prompt[0] == BOS
    assert all([*prompt, *response].count(BOS) == 1 for response in responses)
    assert events == {"duplicate_bos_removed": 1}


def test_duplicate_end_of_turn_of_a_template_is_removed_and_counted() -> None:
    twice = CHATML.replace("<|im_end|>\n", "<|im_end|>\n<|im_end|>\n")
    tokenizer = pieces(twice, "none")
    _, responses, events = one(group((user("the"),), "cat"), tokenizer)
    assert tokenizer.decode(responses[0]) == "cat<|im_end|>"
    assert events == {"duplicate_end_of_turn_removed": 1}


def test_template_without_end_of_turn_gets_eos_and_is_counted() -> None:
    tokenizer = pieces(OPEN, "none")
    prompt, responses, events = one(group((user("the cat"),), "sat", "ran"), tokenizer)
    assert tokenizer.decode([*prompt, *responses[1]]) == "user: the cat\nassistant: ran\n</s>"
    assert events == {"template_without_end_of_turn": 1}


def test_a_think_prompt_missing_in_the_answer_moves_the_boundary() -> None:
    tokenizer = pieces(THINK, "none")
    (tokenized,), report = tokenize_groups([group((user("the"),), "cat", "dog")], tokenizer, max_length=100)
    assert texts(tokenized, tokenizer)[0].endswith("assistant\ncat<|im_end|>")
    assert "<think>" not in texts(tokenized, tokenizer)[0]
    assert tokenizer.decode(tokenized.responses[1]) == "dog<|im_end|>"
    assert report.counts == {"boundary_moved": 1}


def test_candidate_continues_an_assistant_message() -> None:
    tokenizer = pieces(CHATML, "none")
    prompt = (user("the cat"), assistant("it sat"))
    (tokenized,), report = tokenize_groups(
        [group(prompt, "! On", (assistant("?"), user("the"), assistant("dog")))], tokenizer, max_length=100
    )
    assert tokenizer.decode(tokenized.prompt).endswith("assistant\nit sat")
    assert [tokenizer.decode(ids).replace("> ", ">") for ids in tokenized.responses] == [
        "! On<|im_end|>",
        "?<|im_end|>\n<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\ndog<|im_end|>",
    ]
    assert report.counts == {"assistant_message_continued": 1, "other_roles_in_response": 1}


def test_a_templates_refusal_names_the_groups_and_its_message() -> None:
    rows = [group((user("the"), user("cat")), "sat", id=name) for name in "abc"] + [group((user("the"),), "cat")]
    with pytest.raises(
        DataError, match=r"roles must alternate user/assistant \(3 of 4 groups like this: a, b, c\)"
    ) as e:
        tokenize_groups(rows, pieces(INST), max_length=100)
    assert e.value.where == "group a"


def test_messages_after_a_plain_prompt_are_refused() -> None:
    with pytest.raises(DataError, match="candidate 1 is a list of messages, the prompt is plain text"):
        tokenize_groups([group("the", "cat", (assistant("dog"),))], pieces(CHATML), max_length=100)


def test_prompt_without_messages_is_refused() -> None:
    with pytest.raises(DataError, match="the prompt has no messages"):
        tokenize_groups([group((), "cat")], pieces(CHATML), max_length=100)


@settings(max_examples=60, deadline=None)
@given(NON_BLANK, st.lists(NON_BLANK, min_size=1, max_size=3), st.sampled_from([CHATML, INST, OPEN, THINK]))
def test_conversation_invariants(question: str, candidates: list[str], template: str) -> None:
    tokenizer = pieces(template, "none")
    (tokenized,), report = tokenize_groups([group((user(question),), *candidates)], tokenizer, max_length=2000)
    prompt_text = tokenizer.apply_chat_template([user(question)], tokenize=False, add_generation_prompt=True)
    own_ids = tokenizer(prompt_text, add_special_tokens=False)["input_ids"]
    assert tokenized.prompt.tolist() == own_ids[: len(tokenized.prompt)]
    assert report.counts["boundary_moved"] == (len(tokenized.prompt) < len(own_ids))
    for response, candidate in zip(tokenized.responses, candidates, strict=True):
        whole = tokenizer.apply_chat_template([user(question), assistant(candidate)], tokenize=False)
        joint = tokenizer(whole, add_special_tokens=False)["input_ids"]
        ids = [*tokenized.prompt.tolist(), *response.tolist()]
        assert ids[:-1] == joint[: len(ids) - 1]
        assert not tokenizer.decode(joint[len(ids) :]).strip()
        end = tokenizer.convert_tokens_to_ids("<|im_end|>") if "im_end" in template else EOS
        assert response[-1] == end
        assert response.tolist().count(end) == 1


def test_prompt_ids_equal_those_of_the_groups() -> None:
    tokenizer = pieces(CHATML)
    prompts: list[Text] = ["the cat", (user("the cat"),), "", "<s>the cat"]
    ids = [prompt.tolist() for prompt in tokenize_prompts(prompts, tokenizer)]
    groups, _ = tokenize_groups([group(prompt, "!") for prompt in prompts], tokenizer, max_length=100)
    assert ids == [g.prompt.tolist() for g in groups]
    assert ids[2] == [BOS]
    assert tokenize_prompts([""], words("none", bos_token=""))[0].tolist() == [EOS]
    assert tokenize_prompts([], tokenizer) == []


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (THINK, "<|im_end|>"),
        (CHATML.replace("<|im_end|>\n", "<|im_end|>\n<|im_end|>\n"), "<|im_end|>"),
        (INST, "</s>"),
        (OPEN, "</s>"),
        ("{{ raise_exception('a system message is needed') }}", None),
        (None, None),
    ],
)
def test_turn_end_is_the_last_id_in_training(template: str | None, end: str | None) -> None:
    tokenizer = pieces(template)
    expected = None if end is None else tokenizer.convert_tokens_to_ids(end)
    assert turn_end(tokenizer) == expected
    if end is not None:
        assert one(group((user("the cat"),), "sat"), tokenizer)[1][0][-1] == expected


# Traps: what other libraries do wrong, each with the test that keeps it out


def test_trap_long_prompt_is_an_error_or_counted() -> None:
    rows = [group("the " * n + "cat", " sat", " ran", id=f"row-{n}") for n in (1, 9, 19, 2)]
    with pytest.raises(DataError) as error:
        tokenize_groups(rows, words(), max_length=8)
    assert str(error.value).startswith(
        "group row-19: 23 tokens with the longest response, data.max_length is 8 "
        "(2 of 4 groups like this: row-9, row-19)"
    )
    for remedy in ("raise data.max_length", "data.truncation=drop", "data.truncation=keep_end_of_prompt"):
        assert remedy in str(error.value)
    groups, report = tokenize_groups(rows, words(), max_length=8, truncation="drop")
    assert [t.group.id for t in groups] == ["row-1", "row-2"]
    assert report.counts == {"too_long_dropped": 2}
    assert report.examples == {"too_long_dropped": ["row-9", "row-19"]}


def test_trap_length_limit_is_inclusive() -> None:
    # <s> the cat | sat on </s>: six tokens.
    example = group("the cat", " sat on", " ran")
    assert len(tokenize_groups([example], words(), max_length=6)[0]) == 1
    with pytest.raises(DataError, match=r"6 tokens with the longest response, data.max_length is 5"):
        tokenize_groups([example], words(), max_length=5)


def test_trap_truncation_keeps_bos_the_end_of_the_prompt_and_whole_responses() -> None:
    prompt, responses, events = one(
        group("the cat sat on mat", " dog ran", " dog"), words(), max_length=6, truncation="keep_end_of_prompt"
    )
    assert prompt == [BOS, ON, MAT]
    assert responses == [[DOG, RAN, EOS], [DOG, EOS]]
    assert events == {"prompt_truncated": 1}


def test_trap_truncation_keeps_the_assistant_header() -> None:
    tokenizer = pieces(CHATML, "none")
    prompt, _, _ = one(
        group((user("the cat sat " * 20),), "on"), tokenizer, max_length=40, truncation="keep_end_of_prompt"
    )
    assert tokenizer.decode(prompt).endswith("<|im_end|> \n<|im_start|> assistant\n")
    assert tokenizer.decode(prompt).startswith(("the", "cat", "sat", "at", "t"))


def test_trap_response_is_never_cut() -> None:
    # <s> + one prompt token + five: seven are needed.
    rows = [group("the cat", " sat" * 4, " sat sat sat on", preferred=0, id="long"), group("the", " cat", id="short")]
    tokenized, _ = tokenize_groups(rows, words(), max_length=7, truncation="keep_end_of_prompt")
    assert tokenized[0].prompt.tolist() == [BOS, CAT]
    assert [ids.tolist() for ids in tokenized[0].responses] == [[SAT] * 4 + [EOS], [SAT, SAT, SAT, ON, EOS]]
    with pytest.raises(DataError, match=r"group long: .*responses are never cut \(1 of 2 groups like this: long\)"):
        tokenize_groups(rows, words(), max_length=6, truncation="keep_end_of_prompt")
    groups, report = tokenize_groups(rows, words(), max_length=6, truncation="drop")
    assert ([t.group.id for t in groups], report.counts) == (["short"], {"too_long_dropped": 1})


@pytest.mark.parametrize("candidate", ["", " \n\t", "</s>", ()])
def test_trap_empty_candidate_does_not_train_on_eos_alone(candidate: Text) -> None:
    rows = [group("the", " cat", candidate, id=f"row-{i}") for i in range(7)] + [
        group("the", " cat", " dog", id="good")
    ]
    with pytest.raises(DataError) as error:
        tokenize_groups(rows, words(), max_length=10)
    assert "candidate 1 is empty" in error.value.what
    assert "7 of 8 groups like this: row-0, row-1, row-2, row-3, row-4, ..." in error.value.what
    assert error.value.where == "group row-0"
    assert error.value.fix is not None
    assert error.value.fix.endswith("data.empty=drop")
    groups, report = tokenize_groups(rows, words(), max_length=10, empty="drop")
    assert [t.group.id for t in groups] == ["good"]
    assert report.counts == {"empty_candidate_dropped": 7}


def test_trap_candidate_of_zero_tokens_is_empty_too() -> None:
    raw = Tokenizer.from_str(words().backend_tokenizer.to_str())
    raw.normalizer = normalizers.Replace("\u200b", "")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    with pytest.raises(DataError, match="candidate 1 is empty: it has no tokens"):
        tokenize_groups([group("the", " cat", "\u200b")], tokenizer, max_length=10)


def test_trap_empty_message_is_an_empty_candidate() -> None:
    with pytest.raises(DataError, match="candidate 0 is empty: it has no text"):
        tokenize_groups([group((user("the"),), (assistant(" \n"),), "cat")], pieces(CHATML), max_length=100)


def test_trap_chosen_equal_to_rejected_is_refused_or_counted() -> None:
    # Two unknown words: different texts, the same ids.
    rows = [
        group("the", " zebra", " gnu", preferred=0, id="same"),
        group("the", " cat", " dog", preferred=0, id="good"),
    ]
    with pytest.raises(DataError, match="candidate 0 is said to be better than candidate 1, yet both") as error:
        tokenize_groups(rows, words(), max_length=10)
    assert error.value.where == "group same"
    groups, report = tokenize_groups(rows, words(), max_length=10, identical="drop")
    assert ([t.group.id for t in groups], report.counts) == (["good"], {"identical_candidates_dropped": 1})


def test_trap_identical_candidates_that_tie_are_kept() -> None:
    _, responses, events = one(group("the", " cat", " cat", " dog", scores=(1.0, 1.0, 0.0)), words())
    assert responses == [[CAT, EOS], [CAT, EOS], [DOG, EOS]]
    assert events == {}


@pytest.mark.parametrize(("prompt", "times"), [("<s> the cat", 1), ("<s> <s> the cat", 2)])
def test_trap_bos_is_never_doubled(prompt: str, times: int) -> None:
    ids, responses, events = one(group(prompt, " sat", " ran"), words())
    assert ids == [BOS, THE, CAT]
    assert responses == [[SAT, EOS], [RAN, EOS]]
    assert events == {"already_templated_prompt": 1, **({"duplicate_bos_removed": 1} if times > 1 else {})}


def test_trap_boundary_merge_is_counted_for_every_group_not_warned_once() -> None:
    rows = [group("the cat", "s sat", " ran", id=str(i)) for i in range(30)] + [group("the cat", " sat", " ran")] * 70
    _, report = tokenize_groups(rows, words(), max_length=10)
    assert report.groups == 100
    assert report.counts == {"boundary_moved": 30}
    assert report.examples["boundary_moved"] == ["0", "1", "2", "3", "4"]


def test_trap_mixed_plain_and_conversational_rows_keep_their_kind() -> None:
    tokenizer = pieces(CHATML)
    rows = [group("the cat", " sat"), group((user("the cat"),), "sat"), group("the cat", " ran")]
    (plain, chat, last), _ = tokenize_groups(rows, tokenizer, max_length=100)
    assert texts(plain, tokenizer) == ["<s> the cat sat</s>"]
    assert texts(chat, tokenizer)[0].endswith("assistant\nsat<|im_end|>")
    assert texts(last, tokenizer) == ["<s> the cat ran</s>"]


def test_trap_already_templated_prompt_is_read_with_its_special_tokens_and_counted() -> None:
    tokenizer = pieces(CHATML, "none")
    rendered_prompt = "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n"
    rendered, _ = tokenize_groups([group((user("the cat"),), "sat", "ran")], tokenizer, max_length=100)
    (tokenized,), report = tokenize_groups(
        [group(rendered_prompt, "sat<|im_end|>\n", "ran<|im_end|>")], tokenizer, max_length=100
    )
    assert tokenized.prompt.tolist() == rendered[0].prompt.tolist()
    assert [ids.tolist() for ids in tokenized.responses] == [ids.tolist() for ids in rendered[0].responses]
    assert report.counts == {"already_templated_prompt": 1}


def test_trap_inst_marks_in_plain_text_are_counted() -> None:
    assert one(group("[INST] the cat", " sat"), words())[2] == {"already_templated_prompt": 1}


def test_trap_missing_chat_template_says_what_to_set() -> None:
    tokenizer = pieces()
    with pytest.raises(ModelError, match=r"the data is conversational .* the tokenizer has no chat template") as error:
        tokenize_groups([group((user("the"),), "cat")], tokenizer, max_length=100)
    assert error.value.fix is not None
    assert "tokenizer.chat_template" in error.value.fix
    assert error.value.fix.endswith("data.chat_template=FILE")


@pytest.mark.parametrize("ending", ["", "</s>", " </s>", "</s></s>", "</s> </s>"])
def test_trap_eos_is_appended_once_without_a_space(ending: str) -> None:
    _, responses, events = one(group("the cat", " sat on mat" + ending, " ran"), words())
    assert responses == [[SAT, ON, MAT, EOS], [RAN, EOS]]
    assert events == ({"duplicate_end_of_turn_removed": 1} if ending.count("</s>") > 1 else {})


def test_trap_no_space_is_added_before_eos() -> None:
    tokenizer = pieces()
    _, (response,), _ = one(group("the", " cat"), tokenizer)
    joint = tokenizer("the cat", add_special_tokens=False)["input_ids"]
    assert response[-2:] == [joint[-1], EOS]


def test_trap_white_space_at_the_end_is_kept() -> None:
    tokenizer = pieces()
    _, responses, _ = one(group("the", " cat\n", " cat\n</s>\n"), tokenizer)
    newline = tokenizer.convert_tokens_to_ids("<0x0A>")
    assert [response[-2:] for response in responses] == [[newline, EOS], [newline, EOS]]


def test_trap_responses_start_with_their_first_different_token() -> None:
    prompt, responses, _ = one(group("the", " cat sat", " dog sat", preferred=0), words())
    assert [prompt[-1], *(response[0] for response in responses)] == [THE, CAT, DOG]


def test_all_groups_dropped_is_an_error() -> None:
    rows = [group("the", " cat", ""), group("the " * 9, " cat")]
    with pytest.raises(DataError, match=r"no group is left of 2 \(empty candidate dropped: 1, too long dropped: 1\)"):
        tokenize_groups(rows, words(), max_length=5, truncation="drop", empty="drop")


# The real tokenizer


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(shared_data / "models" / "stories260K")


def pandalm(file: Path) -> list[PreferenceGroup]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [group(row["prompt"], row["chosen"], row["rejected"], preferred=0, id=row["id"]) for row in rows]


def test_ids_equal_those_of_a_real_tokenizer(shared_data: Path, stories: PreTrainedTokenizerBase) -> None:
    rows = pandalm(shared_data / "pandalm" / "pairs.jsonl")
    tokenized, report = tokenize_groups(rows, stories, max_length=10_000)
    assert len(tokenized) == report.groups == 497
    for example in tokenized:
        for candidate, response in zip(example.group.candidates, example.responses, strict=True):
            assert [*example.prompt, *response] == [*stories(example.group.prompt + candidate)["input_ids"], EOS]


def test_real_empty_responses_are_refused_with_their_count(shared_data: Path, stories: PreTrainedTokenizerBase) -> None:
    rows = pandalm(shared_data / "pandalm" / "pairs_empty_side.jsonl")
    with pytest.raises(DataError, match=r"candidate 1 is empty.*52 of 52 groups like this: pandalm-0018"):
        tokenize_groups(rows, stories, max_length=10_000)
    with pytest.raises(DataError, match=r"no group is left of 52 \(empty candidate dropped: 52\)"):
        tokenize_groups(rows, stories, max_length=10_000, empty="drop")


def test_the_module_does_not_import_transformers() -> None:
    modules = "penchant.data.tokenization, penchant.data.show"
    code = f"import sys, {modules}; print({{'transformers', 'torch', 'rich'}} & {{*sys.modules}})"
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert process.stdout == "set()\n"
