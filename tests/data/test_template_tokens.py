"""What ends a turn: eos and what the template writes, whatever other special tokens there are."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penchant.data.check_template import template_fault
from penchant.data.groups import PreferenceGroup, Text
from penchant.data.rendering import Rendering
from penchant.data.special_tokens import SpecialTokens
from penchant.data.template_tokens import TemplateTokens
from penchant.data.tokenization import tokenize_groups, turn_end

_SPEC = importlib.util.spec_from_file_location("chat_shapes", Path(__file__).with_name("chat_shapes.py"))
shapes = importlib.util.module_from_spec(_SPEC)
__import__("sys").modules["chat_shapes"] = shapes
_SPEC.loader.exec_module(shapes)
SHAPES = shapes.SHAPES
EVERY = pytest.mark.parametrize("shape", list(SHAPES.values()), ids=list(SHAPES))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def read(tokenizer: Any, prompt: Text, *candidates: Text) -> tuple[str, list[str], dict[str, int]]:
    group = PreferenceGroup(prompt, candidates)
    (tokenized,), report = tokenize_groups([group], tokenizer, max_length=10_000, rendering=Rendering(as_chat="false"))
    responses = [tokenizer.decode(ids) for ids in tokenized.responses]
    return tokenizer.decode(tokenized.prompt), responses, dict(report.counts)


@EVERY
def test_the_template_says_what_ends_a_turn(shape: Any) -> None:
    tokenizer = shape.tokenizer()
    assert tokenizer.convert_ids_to_tokens(turn_end(tokenizer)) == shape.end
    assert template_fault(tokenizer) is None
    ends = set(tokenizer.convert_ids_to_tokens(sorted(SpecialTokens.of(tokenizer).ends)))
    extra = {"llama 3": {"<|eom_id|>"}, "harmony": {"<|end|>", "<|call|>"}}
    assert ends == {shape.end, shape.eos} | next((more for name, more in extra.items() if name in _name(shape)), set())


def _name(shape: Any) -> str:
    return next(name for name, each in SHAPES.items() if each is shape)


@EVERY
def test_what_the_template_writes_around_messages_is_control_and_nothing_else(shape: Any) -> None:
    assert set(TemplateTokens.of(shape.tokenizer()).control) == shape.control


@EVERY
@pytest.mark.parametrize("said", ["<item_2>", "a <item_1>", "<item_1><item_2>", "<box>1</box>", "</box>"])
def test_special_tokens_that_are_content_stand_before_one_end_in_a_conversation(shape: Any, said: str) -> None:
    prompt, responses, events = read(shape.tokenizer(), (user("which <item_1>?"),), said, "none")
    before = responses[1].removesuffix("none" + shape.end)
    assert responses == [before + said + shape.end, before + "none" + shape.end]
    assert shape.end not in before
    assert "which <item_1>?" in prompt
    assert not {"duplicate_end_of_turn_removed", "template_without_end_of_turn"} & set(events)


@EVERY
@pytest.mark.parametrize("said", ["<item_2>", " done<item_1>", "<box>1</box>", "<item_1><item_1>"])
@pytest.mark.parametrize("prompt", ["liked <item_1>, next", "<item_1>x = 1<item_2>", "plain"])
def test_special_tokens_that_are_content_stand_before_one_eos_in_plain_text(shape: Any, prompt: str, said: str) -> None:
    asked, responses, events = read(shape.tokenizer(), prompt, said, " 1")
    assert asked == prompt
    assert responses == [said + shape.eos, " 1" + shape.eos]
    assert events == {}


@pytest.mark.parametrize("name", ["qwen 3", "qwen 3, calls that are special"])
def test_a_call_written_by_hand_ends_by_the_end_of_turn(name: str) -> None:
    tokenizer = SHAPES[name].tokenizer()
    call = '<tool_call>\n{"name": "f"}\n</tool_call>'
    for prompt in ("call f: ", (user("call f"),)):
        _, responses, _ = read(tokenizer, prompt, call, "no")
        assert responses[0].endswith(call + "<|im_end|>")
        assert responses[1].endswith("no<|im_end|>")


def test_what_a_template_writes_behind_its_end_of_turn_is_no_part_of_the_turn() -> None:
    tokenizer = SHAPES["phi 3"].tokenizer()
    _, responses, events = read(tokenizer, (user("a"),), "b", "c")
    assert responses == ["b<|end|>", "c<|end|>"]
    assert events == {}


@pytest.mark.parametrize("written", ["<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"])
def test_all_candidates_of_a_templated_prompt_end_alike(written: str) -> None:
    tokenizer = SHAPES["chatml on a base"].tokenizer()
    _, responses, events = read(tokenizer, written, "b<|im_end|>\n", "c", "d<item_1>")
    assert responses == ["b<|im_end|>", "c<|im_end|>", "d<item_1><|im_end|>"]
    assert events == {"already_templated_prompt": 1}


def test_a_token_or_template_that_changes_is_seen() -> None:
    tokenizer = SHAPES["chatml on a base"].tokenizer()
    assert tokenizer.convert_ids_to_tokens(turn_end(tokenizer)) == "<|im_end|>"
    tokenizer.chat_template = shapes.CHATML.replace("<|im_end|>", "<item_1>")
    assert tokenizer.convert_ids_to_tokens(turn_end(tokenizer)) == "<item_1>"
    tokenizer.chat_template = None
    assert turn_end(tokenizer) is None
    assert SpecialTokens.of(tokenizer).ends == {tokenizer.eos_token_id}


@EVERY
def test_what_is_sampled_is_read_with_its_content_tokens(shape: Any) -> None:
    from penchant.evaluation.generation import text_after

    tokenizer = shape.tokenizer()
    prompt = np.array(tokenizer("next: ", add_special_tokens=False)["input_ids"])
    for said in ("<item_2>", "a<box>1</box> b", "<tool_call>{}</tool_call>"):
        for end in {shape.end, shape.eos}:
            ids = tokenizer(said + end, add_special_tokens=False)["input_ids"]
            assert text_after(tokenizer, prompt, ids) == said


def test_what_begins_the_next_turn_ends_none() -> None:
    tokenizer = SHAPES["chatml on a base"].tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n{% endfor %}"
    assert SpecialTokens.of(tokenizer).ends == {tokenizer.eos_token_id}
