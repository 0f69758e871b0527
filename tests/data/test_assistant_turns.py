"""Loss masks of conversations: True exactly for the assistant's turns with their end-of-turn tokens."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
import pytest
from chat_shapes import SHAPES

from penchant.data.groups import PreferenceGroup
from penchant.data.rendering import Rendering
from penchant.data.tokenization import tokenize_groups
from penchant.data.tokenized import TokenizedGroup
from penchant.errors import DataError

EVERY = pytest.mark.parametrize("name", list(SHAPES))
ALL, LAST = Rendering(learn="all"), Rendering(learn="last")
CALL = {"type": "function", "id": "call00001", "function": {"name": "f", "arguments": {"x": 1}}}


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def assistant(text: str, **fields: Any) -> Any:
    return {"role": "assistant", "content": text, **fields}


TALK = (user("one?"), assistant("first <item_1>"), user("two?"), assistant("second"), user("three?"))


def tokenized(tokenizer: Any, prompt: Any, *candidates: Any, rendering: Rendering = ALL, **settings: Any) -> Any:
    group = PreferenceGroup(prompt, candidates, preferred=0)
    (tokenized_group,), report = tokenize_groups(
        [group], tokenizer, **{"max_length": 10_000, "rendering": rendering, **settings}
    )
    return tokenized_group, dict(report.counts)


def runs(group: TokenizedGroup, tokenizer: Any, k: int = 0) -> list[str]:
    """The runs of trained tokens of a response, as text."""
    flagged = zip(group.masks[k].tolist(), group.responses[k].tolist(), strict=True)
    return [
        tokenizer.decode([i for _, i in run])
        for is_trained, run in groupby(flagged, key=lambda pair: pair[0])
        if is_trained
    ]


def all_ids(group: TokenizedGroup, k: int = 0) -> list[int]:
    return [*group.prompt.tolist(), *group.responses[k].tolist()]


@EVERY
def test_every_assistant_turn_is_trained_on_with_one_end_token(name: str) -> None:
    tokenizer = SHAPES[name].tokenizer()
    group, events = tokenized(tokenizer, TALK, "third")
    end = SHAPES[name].end
    # Text that a template writes after the generation prompt is trained on, in earlier turns as in the last.
    headers = {"harmony": ["<|channel|>final<|message|>"] * 3}
    headers |= {"qwen 3": ["", "", "<think>\n\n</think>\n\n"], "mistral": [" "] * 3}
    headers["qwen 3, calls that are special"] = headers["qwen 3"]
    begins = headers.get(name, [""] * 3)
    ends = ["<|end|>", "<|end|>", "<|return|>"] if name == "harmony" else [end] * 3
    answers = ["first <item_1>", "second", "third"]
    assert runs(group, tokenizer) == [b + s + e for b, s, e in zip(begins, answers, ends, strict=True)]
    assert events["earlier_assistant_turns_learnt"] == 1
    assert "assistant_turn_without_bounds_not_learnt" not in events


@EVERY
def test_learn_all_reads_the_same_ids_as_learn_last(name: str) -> None:
    tokenizer = SHAPES[name].tokenizer()
    all_turns, _ = tokenized(tokenizer, TALK, "third")
    last, events = tokenized(tokenizer, TALK, "third", rendering=LAST)
    assert all_ids(all_turns) == all_ids(last)
    assert last.loss_masks is None
    assert last.tokens == (len(last.responses[0]),)
    assert events["earlier_assistant_turns_not_learnt"] == 1
    assert runs(all_turns, tokenizer)[-1] == tokenizer.decode(last.responses[0])


@EVERY
def test_each_turn_begins_where_its_prompt_ends(name: str) -> None:
    """The ids before a trained turn equal those of the prompt at inference."""
    if name in ("deepseek",) or name.startswith("qwen 3"):
        pytest.skip("its prompt for an answer has what earlier answers do not")
    tokenizer = SHAPES[name].tokenizer()
    group, _ = tokenized(tokenizer, TALK, "third")
    ids, mask = all_ids(group), [False] * len(group.prompt) + group.masks[0].tolist()
    starts = [i for i in range(1, len(ids)) if mask[i] and not mask[i - 1]]
    for turn, start in zip((1, 3, 5), starts, strict=True):
        prompt = tokenizer.apply_chat_template(list(TALK[:turn]), tokenize=False, add_generation_prompt=True)
        assert ids[:start] == tokenizer(prompt, add_special_tokens=False)["input_ids"]


def test_training_follows_a_template_that_drops_earlier_reasoning() -> None:
    tokenizer = SHAPES["qwen 3"].tokenizer()
    talk = (
        user("one?"),
        assistant("<think>\nhm\n</think>\n\nfirst"),
        user("two?"),
        assistant("", reasoning_content="so", tool_calls=[CALL]),
        {"role": "tool", "content": "7"},
    )
    group, _ = tokenized(tokenizer, talk, (assistant("<think>\nwell\n</think>\n\nlast"),))
    call = '<think>\nso\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><|im_end|>'
    assert runs(group, tokenizer) == ["first<|im_end|>", call, "<think>\nwell\n</think>\n\nlast<|im_end|>"]
    # After another question, the reasoning between is dropped too.
    longer = (*talk, assistant("<think>\nwell\n</think>\n\nlast"), user("three?"))
    group, _ = tokenized(tokenizer, longer, "end")
    assert runs(group, tokenizer) == [
        "first<|im_end|>",
        call.replace("<think>\nso\n</think>\n\n", ""),
        "last<|im_end|>",
        "<think>\n\n</think>\n\nend<|im_end|>",
    ]


def test_template_variables_apply_to_every_turn() -> None:
    tokenizer = SHAPES["qwen 3"].tokenizer()
    quiet = Rendering(learn="all", template_kwargs={"enable_thinking": False})
    group, events = tokenized(tokenizer, TALK, "third", rendering=quiet)
    assert runs(group, tokenizer) == ["first <item_1><|im_end|>", "second<|im_end|>", "third<|im_end|>"]
    assert "boundary_moved" not in events


@pytest.mark.parametrize("name", ["llama 3", "mistral", "harmony", "qwen 3"])
def test_tool_calls_are_trained_on_and_their_results_are_not(name: str) -> None:
    tokenizer = SHAPES[name].tokenizer()
    talk = (user("one?"), assistant("", tool_calls=[CALL]), {"role": "tool", "content": "secret 7"})
    group, _ = tokenized(tokenizer, talk, "it is 7")
    call_run, answer_run = runs(group, tokenizer)
    assert '"x": 1' in call_run
    assert call_run.endswith(
        {"llama 3": "<|eom_id|>", "mistral": "</s>", "harmony": "<|call|>"}.get(name, "<|im_end|>")
    )
    assert "it is 7" in answer_run
    assert "secret" not in call_run + answer_run
    assert "secret" in tokenizer.decode(all_ids(group))


@pytest.mark.parametrize("rendering", [ALL, LAST])
@pytest.mark.parametrize("name", ["chatml", "llama 3", "mistral", "qwen 3", "phi 3"])
def test_only_assistant_turns_of_a_candidate_are_trained_on(name: str, rendering: Rendering) -> None:
    tokenizer = SHAPES[name].tokenizer()
    calling = (assistant("", tool_calls=[CALL]), {"role": "tool", "content": "secret"}, assistant("7"))
    questioning = (assistant("which?"), user("that one"), assistant("8"))
    candidates = (
        (questioning, (assistant("9"),)) if name in ("chatml", "phi 3") else (questioning, (assistant("9"),), calling)
    )
    group, events = tokenized(tokenizer, (user("one?"),), *candidates, rendering=rendering)
    end = SHAPES[name].end
    [call_run, answer_run] = runs(group, tokenizer, 0)
    assert call_run.endswith("which?" + end)
    assert answer_run.endswith("8" + end)
    assert runs(group, tokenizer, 1) == [tokenizer.decode(group.responses[1])]
    if len(candidates) == 3:
        assert "secret" not in "".join(runs(group, tokenizer, 2))
        assert len(runs(group, tokenizer, 2)) == 2
    assert events["other_roles_in_response"] == 1
    assert "assistant_turn_without_bounds_not_learnt" not in events


def test_all_assistant_turns_are_trained_on_in_every_candidate() -> None:
    tokenizer = SHAPES["chatml"].tokenizer()
    group, _ = tokenized(tokenizer, TALK, "third", "other")
    for k, answer in enumerate(("third", "other")):
        assert runs(group, tokenizer, k) == [
            "first <item_1><|im_end|>",
            "second<|im_end|>",
            f"{answer}<|im_end|>",
        ]
    assert tokenizer.decode(group.prompt) == "<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n"


def test_masks_equal_those_of_a_template_with_generation_tags() -> None:
    """The convention of TRL's `assistant_only_loss`; the tag covers the end of turn, as in TRL's own templates."""
    tagged = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = SHAPES["chatml"].tokenizer()
    tokenizer.chat_template = tagged
    system = {"role": "system", "content": "be brief"}
    group, _ = tokenized(tokenizer, (system, *TALK), "third")
    transformers_output = tokenizer.apply_chat_template(
        [system, *TALK, assistant("third")], return_assistant_tokens_mask=True, return_dict=True
    )
    ids = all_ids(group)
    mask = [False] * len(group.prompt) + group.masks[0].tolist()
    assert ids == transformers_output["input_ids"][: len(ids)]
    assert mask == [bool(flag) for flag in transformers_output["assistant_masks"]][: len(ids)]


def test_a_turn_without_end_token_is_counted_and_not_trained_on() -> None:
    tokenizer = SHAPES["chatml"].tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if loop.last and m.role == 'assistant' %}"
        "<|im_end|>{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    group, events = tokenized(tokenizer, TALK, "third")
    assert runs(group, tokenizer) == [" third<|im_end|>"]
    assert events["assistant_turn_without_bounds_not_learnt"] == 1


def test_control_text_in_a_message_ends_no_turn() -> None:
    tokenizer = SHAPES["chatml"].tokenizer()
    talk = (user("what is <|im_end|>?"), assistant("a <|im_end|> b"), user("<|im_start|>assistant\nno<|im_end|>"))
    group, _ = tokenized(tokenizer, talk, "c")
    assert runs(group, tokenizer) == ["a <|im_end|> b<|im_end|>", "c<|im_end|>"]
    assert all_ids(group).count(tokenizer.eos_token_id) == 4


def test_equal_turns_have_different_positions() -> None:
    tokenizer = SHAPES["llama 3"].tokenizer()
    talk = (user("yes"), assistant("yes"), user("yes"), assistant("yes"), user("yes"))
    group, _ = tokenized(tokenizer, talk, "yes")
    assert runs(group, tokenizer) == ["yes<|eot_id|>"] * 3


@pytest.mark.parametrize("rendering", [ALL, LAST])
def test_two_answers_in_a_row_are_two_turns(rendering: Rendering) -> None:
    tokenizer = SHAPES["chatml"].tokenizer()
    group, events = tokenized(
        tokenizer, (user("one?"),), (assistant("first"), assistant("second")), rendering=rendering
    )
    assert runs(group, tokenizer) == ["first<|im_end|>", "second<|im_end|>"]
    assert events == {}


def test_a_continued_answer_is_trained_on_from_its_continuation() -> None:
    tokenizer = SHAPES["chatml"].tokenizer()
    talk = (user("one?"), assistant("first"), user("two?"), assistant("sec"))
    group, _ = tokenized(tokenizer, talk, "ond")
    assert runs(group, tokenizer) == ["first<|im_end|>", "ond<|im_end|>"]


def test_the_beginning_of_a_long_conversation_is_cut_turn_by_turn() -> None:
    tokenizer = SHAPES["chatml"].tokenizer()
    whole_length = tokenized(tokenizer, TALK, "third")[0].longest
    group, events = tokenized(tokenizer, TALK, "third", max_length=whole_length - 40, truncation="keep_end_of_prompt")
    assert runs(group, tokenizer) == ["second<|im_end|>", "third<|im_end|>"]
    assert group.longest == whole_length - 40
    assert events["prompt_truncated"] == 1
    with pytest.raises(DataError, match="tokens with the longest response"):
        tokenized(tokenizer, TALK, "third", max_length=whole_length - 40)


def test_lengths_and_masks_agree() -> None:
    group, _ = tokenized(SHAPES["chatml"].tokenizer(), TALK, "third")
    assert group.tokens == (int(group.masks[0].sum()),)
    assert len(group.masks[0]) == len(group.responses[0])
    assert group.masks[0][0]
    assert group.masks[0].dtype == np.bool_
