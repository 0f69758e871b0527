"""Renderings of tools, calls, reasoning, parts, variables and dates, equal to those of transformers."""

from __future__ import annotations

import json
from copy import copy
from datetime import datetime
from functools import cache
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from penchant.data.chat import ChatRenderer
from penchant.data.groups import PreferenceGroup
from penchant.data.messages import Context, Conversation
from penchant.data.rendering import Rendering
from penchant.data.template import Template
from penchant.data.tokenization import tokenize_groups, tokenize_prompts
from penchant.errors import DataError

MARKS = ["<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "</s>"]

# Qwen's and Hermes' shape: tools in the system turn, calls in tags, results in a user's turn, the last turn's thoughts.
TAGS = """{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}
{% endif %}Functions:{% for tool in tools %}
{{ tool | tojson }}{% endfor %}<|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}
{%- for m in messages %}
{%- if m.content is string %}{% set content = m.content %}{% else %}{% set content = '' %}{% endif %}
{%- if m.role == 'user' %}<|im_start|>user
{{ content }}<|im_end|>
{% elif m.role == 'tool' %}<|im_start|>user
<response>{{ content }}</response><|im_end|>
{% elif m.role == 'assistant' %}<|im_start|>assistant
{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>
{% endif %}{{ content }}
{%- for call in m.tool_calls or [] %}
{%- if call.function %}{% set call = call.function %}{% endif %}
<call>{"name": "{{ call.name }}", "arguments": {{ call.arguments if call.arguments is string else call.arguments | tojson }}}</call>
{%- endfor %}<|im_end|>
{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think></think>
{% endif %}{% endif %}"""  # noqa: E501

# Llama 3.1's shape: a date, one call at a time, tools where they are not none.
DATED = """{{- bos_token }}
{%- if not date_string is defined %}
{%- if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}<|im_start|>system
Today: {{ date_string }}
{% if tools is not none %}{% for t in tools %}{{ t | tojson(indent=4) }}
{% endfor %}{% endif %}{{ system }}<|im_end|>
{%- for m in messages %}
{%- if 'tool_calls' in m %}
{%- if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}
{%- set call = m.tool_calls[0].function %}<|im_start|>assistant
{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}<|im_end|>
{%- elif m.role == 'tool' or m.role == 'ipython' %}<|im_start|>ipython
{{ m.content if m.content is string else m.content | tojson }}<|im_end|>
{%- else %}<|im_start|>{{ m.role }}
{{ m.content | trim }}<|im_end|>
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""  # noqa: E501

# Llama 3.0's default: a fixed day unless the variable is given; no clock.
FIXED_DAY = DATED.replace(
    "{%- if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% else %}"
    "{% set date_string = '26 Jul 2024' %}{% endif %}",
    "{% set date_string = '26 Jul 2024' %}",
)

# Mistral's shape: strict roles, ids of nine letters, calls as one list.
INST = """{{- bos_token }}{% for m in messages %}
{%- if m.role == 'user' %}{% if tools and loop.last %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}[INST] {{ m.content }}[/INST]
{%- elif m.tool_calls %}[CALLS][{% for c in m.tool_calls %}{% if c.id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}{{ c.function | tojson }}{% if not loop.last %}, {% endif %}{% endfor %}]</s>
{%- elif m.role == 'tool' %}[RESULT]{"content": {{ m.content }}, "id": "{{ m.tool_call_id }}"}[/RESULT]
{%- elif m.role == 'assistant' %} {{ m.content }}</s>
{%- else %}{{ raise_exception('only user, assistant and tool') }}{% endif %}{% endfor %}"""  # noqa: E501

# DeepSeek's shape: the arguments' text is pasted.
PASTED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m['content'] or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.type + ':' + c.function.name + '(' + c['function']['arguments'] + ')' }}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# SmolVLM's shape: contents are lists of parts, and a text's letters are looked through in vain.
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'text' %}"
    "{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Gemma's shape: both forms, a part trimmed.
TEXT_OR_PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text | trim }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def letters(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each byte and for each mark."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    tokenizer.add_special_tokens(
        {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": []}
        | {"additional_special_tokens": [AddedToken(mark, special=True, normalized=False) for mark in MARKS[:-1]]}
    )
    tokenizer.chat_template = template
    return tokenizer


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
USER: Any = {"role": "user", "content": "Rain in Rome? é"}
RESULT: Any = {"role": "tool", "content": '{"rain": false}', "tool_call_id": "call00001", "name": "weather"}
ANSWER: Any = {"role": "assistant", "content": "No."}


def calling(*cities: str) -> Any:
    calls = [
        {"id": f"call0000{i}", "type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
        for i, city in enumerate(cities, 1)
    ]
    return {"role": "assistant", "tool_calls": calls}


def group(prompt: Any, *candidates: Any, **context: Any) -> PreferenceGroup:
    return PreferenceGroup(Conversation(prompt, Context(**context)), tuple(candidates), preferred=0)


@pytest.mark.parametrize("template", [TAGS, DATED, INST], ids=["tags", "dated", "inst"])
def test_tools_and_calls_are_written_as_transformers_writes_them(template: str) -> None:
    tokenizer = letters(template)
    chosen, rejected = (calling("Rome"), RESULT, ANSWER), (calling("Oslo"),)
    texts = ChatRenderer(tokenizer).group(group((USER,), chosen, rejected, tools=(TOOL,)))

    def transformers_text(*messages: Any, **options: Any) -> str:
        return tokenizer.apply_chat_template(list(messages), tools=[TOOL], tokenize=False, **options)

    assert texts.prompt == transformers_text(USER, add_generation_prompt=True)
    assert texts.sequences == (transformers_text(USER, *chosen), transformers_text(USER, *rejected))
    assert "weather" in texts.prompt
    assert texts.sequences[0] != texts.sequences[1]


def test_the_model_reads_tools_calls_results_and_answers() -> None:
    tokenizer = letters(TAGS)
    question = group((USER,), (calling("Rome", "Oslo"), RESULT, ANSWER), (calling("Oslo"),), tools=(TOOL,))
    [tokenized], report = tokenize_groups([question], tokenizer, max_length=10_000)
    decoded = tokenizer.decode(tokenized.prompt), *(tokenizer.decode(ids) for ids in tokenized.responses)
    assert json.dumps(TOOL) in decoded[0]
    assert decoded[1] == (
        '<call>{"name": "weather", "arguments": {"city": "Rome"}}</call>'
        '<call>{"name": "weather", "arguments": {"city": "Oslo"}}</call><|im_end|>\n'
        '<|im_start|>user\n<response>{"rain": false}</response><|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>'
    )
    assert decoded[2] == '<call>{"name": "weather", "arguments": {"city": "Oslo"}}</call><|im_end|>'
    assert report.counts == {"other_roles_in_response": 1}
    [ids] = tokenize_prompts([question.prompt], tokenizer)
    assert ids.tolist() == tokenized.prompt.tolist()


def test_a_template_that_pastes_arguments_gets_json_text() -> None:
    texts = ChatRenderer(letters(PASTED)).group(group((USER,), (calling("Rome"),)))
    assert 'function:weather({"city": "Rome"})' in texts.sequences[0]


@pytest.mark.parametrize(
    ("template", "separator"), [(TAGS, "\n"), (TEXT_OR_PARTS, ""), (PARTS, "")], ids=["text", "both", "parts"]
)
def test_contents_have_the_form_that_the_template_renders(template: str, separator: str) -> None:
    parts = [{"type": "text", "text": "Rain in"}, {"type": "text", "text": "Rome?"}]
    prompt: Any = ({"role": "user", "content": parts},)
    assert f"Rain in{separator}Rome?<|im_end|>" in ChatRenderer(letters(template)).prompt(prompt).text
    assert "Rain in Rome? é<|im_end|>" in ChatRenderer(letters(template)).prompt((USER,)).text


def test_variables_of_the_run_and_of_the_row() -> None:
    tokenizer, quick = letters(TAGS), Rendering({"enable_thinking": False})
    plain, row = (USER,), Conversation((USER,), Context(template_kwargs={"enable_thinking": True}))
    assert ChatRenderer(tokenizer, quick).prompt(plain).text == tokenizer.apply_chat_template(
        [USER], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert ChatRenderer(tokenizer, quick).prompt(plain).text.endswith("<think></think>\n")
    assert ChatRenderer(tokenizer, quick).prompt(row).text == ChatRenderer(tokenizer).prompt(plain).text
    assert ChatRenderer(tokenizer).prompt(row).text == ChatRenderer(tokenizer).prompt(plain).text


def test_reasoning_reaches_the_template_and_is_not_blank() -> None:
    message: Any = {"role": "assistant", "content": "", "reasoning_content": "hm"}
    question = group((USER,), (message,), (ANSWER,))
    [tokenized], _ = tokenize_groups([question], letters(TAGS), max_length=10_000)
    assert letters(TAGS).decode(tokenized.responses[0]) == "<think>hm</think>\n<|im_end|>"


def test_ignored_inputs_of_a_template_are_counted() -> None:
    context = {"tools": (TOOL,), "documents": ({"text": "x"},), "template_kwargs": {"deep": True}}
    message: Any = {**ANSWER, "thinking": "hm"}
    texts = ChatRenderer(letters(TEXT_OR_PARTS), Rendering({"enable_thinking": False})).group(
        group((USER,), (message,), **context)
    )
    assert texts.events == (
        "template_without_tools",
        "template_without_documents",
        "template_without_variable_enable_thinking",
        "template_without_variable_deep",
        "template_without_reasoning",
    )
    assert ChatRenderer(letters(TAGS)).group(group((USER,), (message,), tools=(TOOL,))).events == ()


def test_calls_that_the_template_does_not_write_are_refused() -> None:
    with pytest.raises(DataError, match="the chat template ignores them"):
        ChatRenderer(letters(TEXT_OR_PARTS)).group(group((USER,), (calling("Rome"),)))


def test_a_call_at_the_end_of_the_prompt_is_not_continued() -> None:
    tokenizer = letters(TAGS)
    assert ChatRenderer(tokenizer).prompt((USER, calling("Rome"))).text.endswith("<|im_start|>assistant\n")
    text = ChatRenderer(tokenizer).group(group((USER, {**ANSWER, "content": "N"}), "o."))
    assert text.sequences[0].endswith("<|im_start|>assistant\nNo.<|im_end|>\n")
    assert text.events == ("assistant_message_continued",)


class Clock(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime(2031, 5, 6, 7, 8)


@pytest.mark.parametrize("tools", [(), (TOOL,)], ids=["plain", "tools"])
def test_the_date_is_the_settings_or_the_clocks(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penchant.data.template.datetime", Clock)
    tokenizer, prompt = letters(DATED), Conversation((USER,), Context(tools=tools))
    assert Template.from_tokenizer(tokenizer).reads_clock
    assert "Today: 06 May 2031\n" in ChatRenderer(tokenizer).prompt(prompt).text
    dated = ChatRenderer(tokenizer, Rendering(date="2026-11-30")).prompt(prompt).text
    assert "Today: 30 Nov 2026\n" in dated
    arguments = {"tools": [*tools] or None, "date_string": "30 Nov 2026"}
    assert dated == tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True, **arguments)
    assert "Today: 06 May 2031\n" in ChatRenderer(tokenizer).prompt(prompt).text, "the clock runs again"


def test_the_date_is_a_variable_for_templates_without_a_clock() -> None:
    tokenizer = letters(FIXED_DAY)
    assert not Template.from_tokenizer(tokenizer).reads_clock
    assert "Today: 26 Jul 2024\n" in ChatRenderer(tokenizer).prompt((USER,)).text
    assert "Today: 30 Nov 2026\n" in ChatRenderer(tokenizer, Rendering(date="2026-11-30")).prompt((USER,)).text
    variable = Rendering({"date_string": "soon"}, date="2026-11-30")
    assert "Today: soon\n" in ChatRenderer(tokenizer, variable).prompt((USER,)).text


def test_the_templates_own_refusal_is_an_error() -> None:
    short: Any = {**calling("Rome"), "tool_calls": [{**calling("Rome")["tool_calls"][0], "id": "c"}]}
    with pytest.raises(DataError, match="ids have nine letters"):
        ChatRenderer(letters(INST)).group(group((USER,), (short,)))


def test_results_of_calls_are_not_trained_on() -> None:
    tokenizer = letters(TAGS)
    question = group((USER,), (calling("Rome"), RESULT, ANSWER), tools=(TOOL,))
    [tokenized], _ = tokenize_groups([question], tokenizer, max_length=10_000)
    trained_text = tokenizer.decode(tokenized.responses[0][tokenized.masks[0]])
    assert trained_text == '<call>{"name": "weather", "arguments": {"city": "Rome"}}</call><|im_end|>No.<|im_end|>'


def test_earlier_calls_are_trained_on_with_learn_all() -> None:
    tokenizer = letters(TAGS)
    question = group((USER, calling("Rome"), RESULT), (ANSWER,), tools=(TOOL,))
    [tokenized], _ = tokenize_groups([question], tokenizer, max_length=10_000, rendering=Rendering(learn="all"))
    trained_text = tokenizer.decode(tokenized.responses[0][tokenized.masks[0]])
    assert trained_text == '<call>{"name": "weather", "arguments": {"city": "Rome"}}</call><|im_end|>No.<|im_end|>'


@pytest.mark.parametrize("column", ["tools", "documents", "calls"])
def test_control_tokens_in_the_context_are_text(column: str) -> None:
    tokenizer = letters(TAGS + "{% for d in documents or [] %}{{ d.text }}{% endfor %}")
    mark, end = "<|im_end|>", tokenizer.convert_tokens_to_ids("<|im_end|>")

    def ends(word: str) -> int:
        tool = {"type": "function", "function": {"name": "weather", "description": word}}
        context = {"tools": (tool,)} if column == "tools" else {"documents": ({"text": word},)}
        candidate = (calling(word if column == "calls" else "Rome"),)
        [tokenized], _ = tokenize_groups([group((USER,), candidate, **context)], tokenizer, max_length=10_000)
        ids = [*tokenized.prompt.tolist(), *tokenized.responses[0].tolist()]
        assert word in tokenizer.decode(ids)
        return ids.count(end)

    assert ends(mark) == ends("nothing")
    tools = {"tools": ({"type": "function", "function": {"name": mark}},)}
    groups, refusing = [group((USER,), (ANSWER,), **tools)], Rendering(control_text="error")
    with pytest.raises(DataError, match="control token"):
        tokenize_groups(groups, tokenizer, max_length=10_000, rendering=refusing)


def test_a_separate_template_for_tools_is_used() -> None:
    tokenizer = copy(letters(TAGS))
    tokenizer.chat_template = {"default": TEXT_OR_PARTS, "tool_use": TAGS}
    context = Context(tools=(TOOL,), template_kwargs={"enable_thinking": False})
    rows = PreferenceGroup(Conversation((USER,), context), ((calling("Rome"),),))
    expected = ChatRenderer(letters(TAGS)).group(group((USER,), (calling("Rome"),), tools=(TOOL,)))
    texts = ChatRenderer(tokenizer).group(rows)
    assert texts.sequences == expected.sequences
    assert texts.events == ()


def test_other_renderings_use_the_real_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penchant.data.template.datetime", Clock)
    tokenizer = letters(DATED)
    assert "Today: 30 Nov 2026\n" in ChatRenderer(tokenizer, Rendering(date="2026-11-30")).prompt((USER,)).text
    assert "Today: 06 May 2031\n" in tokenizer.apply_chat_template([USER], tokenize=False)
