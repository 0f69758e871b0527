"""The tokens that end a turn: eos and those of the template, but no other special token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from chat_shapes import CHATML, SHAPES

from penchant.data.checks import template_fault
from penchant.data.groups import PreferenceGroup, Text
from penchant.data.rendering import Rendering
from penchant.data.special_tokens import SpecialTokens
from penchant.data.template_tokens import TemplateTokens
from penchant.data.tokenization import tokenize_groups, turn_end

EVERY = pytest.mark.parametrize("shape", list(SHAPES.values()), ids=list(SHAPES))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def decoded(tokenizer: Any, prompt: Text, *candidates: Text) -> tuple[str, list[str], dict[str, int]]:
    group = PreferenceGroup(prompt, candidates)
    (tokenized,), report = tokenize_groups([group], tokenizer, max_length=10_000, rendering=Rendering(as_chat="false"))
    responses = [tokenizer.decode(ids) for ids in tokenized.responses]
    return tokenizer.decode(tokenized.prompt), responses, dict(report.counts)


@EVERY
def test_end_tokens_come_from_the_template(shape: Any) -> None:
    tokenizer = shape.tokenizer()
    assert tokenizer.convert_ids_to_tokens(turn_end(tokenizer)) == shape.end
    assert template_fault(tokenizer) is None
    ends = set(tokenizer.convert_ids_to_tokens(sorted(SpecialTokens.from_tokenizer(tokenizer).ends)))
    extra = {"llama 3": {"<|eom_id|>"}, "harmony": {"<|end|>", "<|call|>"}}
    assert ends == {shape.end, shape.eos} | next(
        (tokens for name, tokens in extra.items() if name in _name(shape)), set()
    )


def _name(shape: Any) -> str:
    return next(name for name, candidate in SHAPES.items() if candidate is shape)


@EVERY
def test_control_tokens_are_those_around_messages(shape: Any) -> None:
    assert set(TemplateTokens.from_tokenizer(shape.tokenizer()).control) == shape.control


@EVERY
@pytest.mark.parametrize("answer", ["<item_2>", "a <item_1>", "<item_1><item_2>", "<box>1</box>", "</box>"])
def test_content_tokens_precede_one_end_token_in_a_conversation(shape: Any, answer: str) -> None:
    prompt, responses, events = decoded(shape.tokenizer(), (user("which <item_1>?"),), answer, "none")
    header = responses[1].removesuffix("none" + shape.end)
    assert responses == [header + answer + shape.end, header + "none" + shape.end]
    assert shape.end not in header
    assert "which <item_1>?" in prompt
    assert not {"duplicate_end_of_turn_removed", "template_without_end_of_turn"} & set(events)


@EVERY
@pytest.mark.parametrize("answer", ["<item_2>", " done<item_1>", "<box>1</box>", "<item_1><item_1>"])
@pytest.mark.parametrize("prompt", ["liked <item_1>, next", "<item_1>x = 1<item_2>", "plain"])
def test_content_tokens_precede_one_eos_in_plain_text(shape: Any, prompt: str, answer: str) -> None:
    prompt_text, responses, events = decoded(shape.tokenizer(), prompt, answer, " 1")
    assert prompt_text == prompt
    assert responses == [answer + shape.eos, " 1" + shape.eos]
    assert events == {}


@pytest.mark.parametrize("name", ["qwen 3", "qwen 3, calls that are special"])
def test_a_call_written_as_text_ends_with_the_end_token(name: str) -> None:
    tokenizer = SHAPES[name].tokenizer()
    call = '<tool_call>\n{"name": "f"}\n</tool_call>'
    for prompt in ("call f: ", (user("call f"),)):
        _, responses, _ = decoded(tokenizer, prompt, call, "no")
        assert responses[0].endswith(call + "<|im_end|>")
        assert responses[1].endswith("no<|im_end|>")


def test_tokens_after_the_end_token_are_not_part_of_the_turn() -> None:
    tokenizer = SHAPES["phi 3"].tokenizer()
    _, responses, events = decoded(tokenizer, (user("a"),), "b", "c")
    assert responses == ["b<|end|>", "c<|end|>"]
    assert events == {}


@pytest.mark.parametrize("prompt", ["<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"])
def test_all_candidates_of_a_templated_prompt_have_one_end_token(prompt: str) -> None:
    tokenizer = SHAPES["chatml on a base"].tokenizer()
    _, responses, events = decoded(tokenizer, prompt, "b<|im_end|>\n", "c", "d<item_1>")
    assert responses == ["b<|im_end|>", "c<|im_end|>", "d<item_1><|im_end|>"]
    assert events == {"already_templated_prompt": 1}


def test_a_changed_token_or_template_refreshes_the_cache() -> None:
    tokenizer = SHAPES["chatml on a base"].tokenizer()
    assert tokenizer.convert_ids_to_tokens(turn_end(tokenizer)) == "<|im_end|>"
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "<item_1>")
    assert tokenizer.convert_ids_to_tokens(turn_end(tokenizer)) == "<item_1>"
    tokenizer.chat_template = None
    assert turn_end(tokenizer) is None
    assert SpecialTokens.from_tokenizer(tokenizer).ends == {tokenizer.eos_token_id}


@EVERY
def test_sampled_texts_keep_their_content_tokens(shape: Any) -> None:
    from penchant.evaluation.answering import text_after

    tokenizer = shape.tokenizer()
    prompt = np.array(tokenizer("next: ", add_special_tokens=False)["input_ids"])
    for answer in ("<item_2>", "a<box>1</box> b", "<tool_call>{}</tool_call>"):
        for end in {shape.end, shape.eos}:
            ids = tokenizer(answer + end, add_special_tokens=False)["input_ids"]
            assert text_after(tokenizer, prompt, ids) == answer


def test_a_token_that_begins_the_next_turn_is_not_an_end() -> None:
    tokenizer = SHAPES["chatml on a base"].tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n{% endfor %}"
    assert SpecialTokens.from_tokenizer(tokenizer).ends == {tokenizer.eos_token_id}
