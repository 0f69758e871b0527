"""What chat templates write of tools, calls, thoughts, parts, variables and dates: exactly what transformers writes."""

from __future__ import annotations

import json
from copy import copy
from datetime import datetime
from functools import cache
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from penchant.data.chat import group_text, prompt_text
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
BOTH = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text | trim }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def letters(template: str) -> PreTrainedTokenizerFast:
    """A token for each byte, and one for each mark."""
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


def group(prompt: Any, *candidates: Any, **beside: Any) -> PreferenceGroup:
    return PreferenceGroup(Conversation(prompt, Context(**beside)), tuple(candidates), preferred=0)


@pytest.mark.parametrize("template", [TAGS, DATED, INST], ids=["tags", "dated", "inst"])
def test_tools_and_calls_are_written_as_transformers_writes_them(template: str) -> None:
    tokenizer = letters(template)
    chosen, rejected = (calling("Rome"), RESULT, ANSWER), (calling("Oslo"),)
    found = group_text(group((USER,), chosen, rejected, tools=(TOOL,)), tokenizer)

    def theirs(*messages: Any, **options: Any) -> str:
        return tokenizer.apply_chat_template(list(messages), tools=[TOOL], tokenize=False, **options)

    assert found.prompt == theirs(USER, add_generation_prompt=True)
    assert found.sequences == (theirs(USER, *chosen), theirs(USER, *rejected))
    assert "weather" in found.prompt
    assert found.sequences[0] != found.sequences[1]


def test_the_model_reads_tools_calls_results_and_answers() -> None:
    tokenizer = letters(TAGS)
    asked = group((USER,), (calling("Rome", "Oslo"), RESULT, ANSWER), (calling("Oslo"),), tools=(TOOL,))
    [tokenized], report = tokenize_groups([asked], tokenizer, max_length=10_000)
    read = tokenizer.decode(tokenized.prompt), *(tokenizer.decode(ids) for ids in tokenized.responses)
    assert json.dumps(TOOL) in read[0]
    assert read[1] == (
        '<call>{"name": "weather", "arguments": {"city": "Rome"}}</call>'
        '<call>{"name": "weather", "arguments": {"city": "Oslo"}}</call><|im_end|>\n'
        '<|im_start|>user\n<response>{"rain": false}</response><|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>'
    )
    assert read[2] == '<call>{"name": "weather", "arguments": {"city": "Oslo"}}</call><|im_end|>'
    assert report.counts == {"other_roles_in_response": 1}
    [ids] = tokenize_prompts([asked.prompt], tokenizer)
    assert ids.tolist() == tokenized.prompt.tolist()


def test_a_template_that_pastes_arguments_is_given_their_text() -> None:
    found = group_text(group((USER,), (calling("Rome"),)), letters(PASTED))
    assert 'function:weather({"city": "Rome"})' in found.sequences[0]


@pytest.mark.parametrize(
    ("template", "between"), [(TAGS, "\n"), (BOTH, ""), (PARTS, "")], ids=["text", "both", "parts"]
)
def test_contents_have_the_form_that_the_template_writes(template: str, between: str) -> None:
    parts = [{"type": "text", "text": "Rain in"}, {"type": "text", "text": "Rome?"}]
    prompt: Any = ({"role": "user", "content": parts},)
    assert f"Rain in{between}Rome?<|im_end|>" in prompt_text(prompt, letters(template))
    assert "Rain in Rome? é<|im_end|>" in prompt_text((USER,), letters(template))


def test_variables_of_the_run_and_of_the_row() -> None:
    tokenizer, quick = letters(TAGS), Rendering({"enable_thinking": False})
    plain, row = (USER,), Conversation((USER,), Context(template_kwargs={"enable_thinking": True}))
    assert prompt_text(plain, tokenizer, quick) == tokenizer.apply_chat_template(
        [USER], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert prompt_text(plain, tokenizer, quick).endswith("<think></think>\n")
    assert prompt_text(row, tokenizer, quick) == prompt_text(plain, tokenizer)
    assert prompt_text(row, tokenizer) == prompt_text(plain, tokenizer)


def test_thoughts_are_handed_over_and_not_empty() -> None:
    thought: Any = {"role": "assistant", "content": "", "reasoning_content": "hm"}
    asked = group((USER,), (thought,), (ANSWER,))
    [tokenized], _ = tokenize_groups([asked], letters(TAGS), max_length=10_000)
    assert letters(TAGS).decode(tokenized.responses[0]) == "<think>hm</think>\n<|im_end|>"


def test_what_the_template_never_mentions_is_counted() -> None:
    beside = {"tools": (TOOL,), "documents": ({"text": "x"},), "template_kwargs": {"deep": True}}
    thought: Any = {**ANSWER, "thinking": "hm"}
    found = group_text(group((USER,), (thought,), **beside), letters(BOTH), Rendering({"enable_thinking": False}))
    assert found.events == (
        "template_without_tools",
        "template_without_documents",
        "template_without_variable_enable_thinking",
        "template_without_variable_deep",
        "template_without_reasoning",
    )
    assert group_text(group((USER,), (thought,), tools=(TOOL,)), letters(TAGS)).events == ()


def test_calls_that_the_template_does_not_write_are_refused() -> None:
    with pytest.raises(DataError, match="the chat template writes none"):
        group_text(group((USER,), (calling("Rome"),)), letters(BOTH))


def test_a_call_in_the_prompt_is_not_gone_on_with() -> None:
    tokenizer = letters(TAGS)
    assert prompt_text((USER, calling("Rome")), tokenizer).endswith("<|im_start|>assistant\n")
    begun = group_text(group((USER, {**ANSWER, "content": "N"}), "o."), tokenizer)
    assert begun.sequences[0].endswith("<|im_start|>assistant\nNo.<|im_end|>\n")
    assert begun.events == ("assistant_message_continued",)


class Clock(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime(2031, 5, 6, 7, 8)


@pytest.mark.parametrize("tools", [(), (TOOL,)], ids=["plain", "tools"])
def test_the_day_is_the_settings_and_else_the_clocks(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penchant.data.template.datetime", Clock)
    tokenizer, prompt = letters(DATED), Conversation((USER,), Context(tools=tools))
    assert Template.of(tokenizer).writes_today
    assert "Today: 06 May 2031\n" in prompt_text(prompt, tokenizer)
    dated = prompt_text(prompt, tokenizer, Rendering(date="2026-11-30"))
    assert "Today: 30 Nov 2026\n" in dated
    theirs = {"tools": [*tools] or None, "date_string": "30 Nov 2026"}
    assert dated == tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True, **theirs)
    assert "Today: 06 May 2031\n" in prompt_text(prompt, tokenizer), "the clock runs again"


def test_the_day_is_handed_to_templates_that_take_it_as_a_variable() -> None:
    tokenizer = letters(FIXED_DAY)
    assert not Template.of(tokenizer).writes_today
    assert "Today: 26 Jul 2024\n" in prompt_text((USER,), tokenizer)
    assert "Today: 30 Nov 2026\n" in prompt_text((USER,), tokenizer, Rendering(date="2026-11-30"))
    own = Rendering({"date_string": "soon"}, date="2026-11-30")
    assert "Today: soon\n" in prompt_text((USER,), tokenizer, own)


def test_the_templates_own_refusal_is_an_error() -> None:
    short: Any = {**calling("Rome"), "tool_calls": [{**calling("Rome")["tool_calls"][0], "id": "c"}]}
    with pytest.raises(DataError, match="ids have nine letters"):
        group_text(group((USER,), (short,)), letters(INST))


def test_results_of_calls_are_read_and_not_learnt() -> None:
    tokenizer = letters(TAGS)
    asked = group((USER,), (calling("Rome"), RESULT, ANSWER), tools=(TOOL,))
    [tokenized], _ = tokenize_groups([asked], tokenizer, max_length=10_000)
    learnt = tokenizer.decode(tokenized.responses[0][tokenized.masks[0]])
    assert learnt == '<call>{"name": "weather", "arguments": {"city": "Rome"}}</call><|im_end|>No.<|im_end|>'


def test_earlier_calls_are_learnt_where_all_turns_are() -> None:
    tokenizer = letters(TAGS)
    asked = group((USER, calling("Rome"), RESULT), (ANSWER,), tools=(TOOL,))
    [tokenized], _ = tokenize_groups([asked], tokenizer, max_length=10_000, rendering=Rendering(learn="all"))
    learnt = tokenizer.decode(tokenized.responses[0][tokenized.masks[0]])
    assert learnt == '<call>{"name": "weather", "arguments": {"city": "Rome"}}</call><|im_end|>No.<|im_end|>'


@pytest.mark.parametrize("beside", ["tools", "documents", "calls"])
def test_control_text_beside_the_messages_is_text(beside: str) -> None:
    tokenizer = letters(TAGS + "{% for d in documents or [] %}{{ d.text }}{% endfor %}")
    mark, end = "<|im_end|>", tokenizer.convert_tokens_to_ids("<|im_end|>")

    def ends(word: str) -> int:
        tool = {"type": "function", "function": {"name": "weather", "description": word}}
        context = {"tools": (tool,)} if beside == "tools" else {"documents": ({"text": word},)}
        candidate = (calling(word if beside == "calls" else "Rome"),)
        [read], _ = tokenize_groups([group((USER,), candidate, **context)], tokenizer, max_length=10_000)
        ids = [*read.prompt.tolist(), *read.responses[0].tolist()]
        assert word in tokenizer.decode(ids)
        return ids.count(end)

    assert ends(mark) == ends("nothing")
    named = {"tools": ({"type": "function", "function": {"name": mark}},)}
    asked, refusing = [group((USER,), (ANSWER,), **named)], Rendering(control_text="error")
    with pytest.raises(DataError, match="control token"):
        tokenize_groups(asked, tokenizer, max_length=10_000, rendering=refusing)


def test_a_template_of_its_own_for_tools_is_used() -> None:
    tokenizer = copy(letters(TAGS))
    tokenizer.chat_template = {"default": BOTH, "tool_use": TAGS}
    beside = Context(tools=(TOOL,), template_kwargs={"enable_thinking": False})
    group_texts = group_text(PreferenceGroup(Conversation((USER,), beside), ((calling("Rome"),),)), tokenizer)
    assert (
        group_texts.sequences == group_text(group((USER,), (calling("Rome"),), tools=(TOOL,)), letters(TAGS)).sequences
    )
    assert group_texts.events == ()


def test_the_clock_of_other_renderings_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penchant.data.template.datetime", Clock)
    tokenizer = letters(DATED)
    assert "Today: 30 Nov 2026\n" in prompt_text((USER,), tokenizer, Rendering(date="2026-11-30"))
    assert "Today: 06 May 2031\n" in tokenizer.apply_chat_template([USER], tokenize=False)
