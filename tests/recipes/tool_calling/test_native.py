"""Tests of the recipe in a model's own tool format: prompts, right answers, pairs and rewards by its chat template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penchant.config.section import validated
from penchant.data.chat import ChatRenderer
from penchant.data.reading import read_groups
from penchant.errors import ConfigError, ModelError
from penchant.evaluation.tool_calls.questions import read_bfcl, write_bfcl
from penchant.evaluation.tool_calls.reading import read_native_calls
from penchant.evaluation.tool_calls.styles import STYLES, require_readable_calls
from penchant.models.loading import load_tokenizer
from penchant.recipes.small_llama import Sizes, build_small_llama
from penchant.recipes.tool_calling import pairs
from penchant.recipes.tool_calling.config import ToolCallingConfig
from penchant.recipes.tool_calling.pipeline import prepare_reward, reward_of, tool_calling
from penchant.recipes.tool_calling.variants import right_calls

START = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
)
END = "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"


def template(calls: str) -> str:
    return f"{START}{{% if message.tool_calls %}}{calls}{{% endif %}}{END}"


CALL = '{"name": call.function.name, "arguments": call.function.arguments}'
FORMS = {
    "tags": "{% for call in message.tool_calls %}<tool_call>\n{{ " + CALL + " | tojson }}\n</tool_call>{% endfor %}",
    "list in a tag": "<tool_call>[{% for call in message.tool_calls %}{{ " + CALL + " | tojson }}"
    "{{ ', ' if not loop.last }}{% endfor %}]</tool_call>",
    "list after a token": "[TOOL_CALLS][{% for call in message.tool_calls %}{{ " + CALL + " | tojson }}"
    "{{ ', ' if not loop.last }}{% endfor %}]",
    "one object": "<|python_tag|>{% set call = message.tool_calls[0] %}"
    '{"name": "{{ call.function.name }}", "parameters": {{ call.function.arguments | tojson }}}',
    "python": "<|tool_call_start|>[{% for call in message.tool_calls %}{{ call.function.name }}("
    "{% for name, value in call.function.arguments.items() %}{{ name }}={{ value | tojson }}"
    "{{ ', ' if not loop.last }}{% endfor %}){{ ', ' if not loop.last }}{% endfor %}]<|tool_call_end|>",
}
"""Jinja of the forms in which families of models write calls: Qwen, SmolLM2, Mistral, Llama, LFM2."""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A small model whose chat template writes calls in tags."""
    folder = tmp_path_factory.mktemp("base") / "model"
    build_small_llama(
        folder, ["the weather in Paris for 3 days, add 1 and 2: [{}]"], Sizes(320, 32, 1, 2, 4096), seed=0
    )
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = template(FORMS["tags"])
    tokenizer.save_pretrained(folder)
    return folder


def make_config(folder, base, questions, **changes):
    write_bfcl(questions, folder / "questions")
    steps = {"batch_size": 8, "learning_rate": 1e-3, "max_steps": 1}
    values = {
        "questions": str(folder / "questions"),
        "output": str(folder / "out"),
        "model": str(base),
        "style": "native",
        "variants": 1,
        "pairs": {"corruptions": 1, "samples": 1, "variants": 0, "weaker": "base"},
        "steps": {"dpo": {"learns": "pairs", "objective": {"name": "dpo"}, "training": steps}},
        "paths": {"dpo": ["dpo"]},
        "seeds": [0, 1],
        "answer_tokens": 4,
        "timed": 1,
        **changes,
    }
    return validated(ToolCallingConfig, values, "test")


@pytest.fixture
def config(tmp_path, base, questions):
    """The configuration after stage data."""
    config = make_config(tmp_path, base, questions)
    tool_calling(config, only_stage="data")
    return config


def answer_text(renderer, tokenizer, group, number=0):
    """A candidate as the template writes it, without the end token."""
    text = renderer.group(group)
    return text.sequences[number].removeprefix(text.prompt).strip().removesuffix(tokenizer.eos_token)


@pytest.mark.parametrize("form", FORMS)
def test_calls_that_a_template_writes_are_read_back(base, form):
    tokenizer = load_tokenizer(str(base))
    tokenizer.chat_template = template(FORMS[form])
    require_readable_calls(tokenizer)


def test_templates_whose_calls_cannot_be_read(base):
    tokenizer = load_tokenizer(str(base))
    tokenizer.chat_template = template("{% for call in message.tool_calls %}call {{ call.function.name }}{% endfor %}")
    with pytest.raises(ModelError, match="cannot be read back: 'call add'"):
        require_readable_calls(tokenizer)


def test_training_rows_are_in_the_templates_form(config, base):
    out, tokenizer = Path(config.output), load_tokenizer(str(base))
    questions = {question.id: question for question in read_bfcl(out / "data" / "train")[0]}
    renderer, judged = ChatRenderer(tokenizer), 0
    for group in read_groups(out / "data" / "supervised_train.jsonl").groups:
        question = questions.get(group.id)
        if question is None:
            continue
        assert group.prompt == STYLES["native"].ask(question)
        text = answer_text(renderer, tokenizer, group)
        assert text.count("<tool_call>") == len(question.accepted or ())
        calls = read_native_calls(text, question.functions)
        assert question.fault(calls) is None
        assert (calls or []) == right_calls(question)
        judged += 1
    assert judged == len(questions) > 10


def test_pairs_and_rewards(config, base, monkeypatch):
    """A weaker model's calls are written as calls, its words as words; what is right is not rejected."""
    out, tokenizer = Path(config.output), load_tokenizer(str(base))
    train = {question.id: question for question in read_bfcl(out / "data" / "train")[0]}
    wrong = 'So: <tool_call>{"name": "other", "arguments": {}}</tool_call>'
    monkeypatch.setattr(
        pairs, "_weaker_answers", lambda config, weaker, prompts: [[wrong, " Sorry. "] for _ in prompts]
    )
    (out / "pairs").mkdir()
    result = pairs.make_pairs(config, "weaker", out / "pairs")
    groups = read_groups(out / "pairs" / "all.jsonl").groups
    renderer = ChatRenderer(tokenizer)
    for group in groups:
        question = train[group.id]
        answers = [answer_text(renderer, tokenizer, group, k) for k in range(len(group.candidates))]
        faults = [question.fault(read_native_calls(answer, question.functions)) for answer in answers]
        assert [fault is None for fault in faults] == [True] + [False] * (len(answers) - 1)
        assert '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>' in answers
        # Words are right where no call is due.
        assert ("Sorry." in answers) == bool(question.accepted)
    assert result["rejected"][pairs.WEAKER_ANSWER] == sum(1 + bool(train[group.id].accepted) for group in groups)
    (out / "reward").mkdir()
    prepare_reward(config, out / "reward")
    assert '"native")' in (out / "reward" / "reward.py").read_text()
    score = reward_of(out / "reward" / "questions", "native")
    for group in read_groups(out / "reward" / "train.jsonl").groups:
        text = answer_text(renderer, tokenizer, group)
        assert score(group.prompt, [text, wrong, "Sorry."]) == [1, 0, float(not train[group.id].accepted)]


TURNS = [("user", "Go in."), ("assistant", "open"), ("user", "It is open."), ("assistant", "go"), ("user", "Now?")]


@pytest.mark.parametrize(("learn", "prompts"), [(None, [5]), ("last", [5]), ("all", [1, 3, 5])])
def test_a_trajectory_gives_a_pair_for_each_step(tmp_path, base, questions, monkeypatch, learn, prompts):
    """Where the earlier turns are learnt too; what the weaker model also does is not rejected."""
    messages = [{"role": role, "content": content} for role, content in TURNS]
    row = {"prompt": messages, "completion": [{"role": "assistant", "content": "stop"}]}
    (tmp_path / "steps.jsonl").write_text(json.dumps(row))
    config = make_config(tmp_path, base, questions, trajectories=str(tmp_path / "steps.jsonl"), data={"learn": learn})
    tool_calling(config, only_stage="data")
    weaker_answers = lambda config, weaker, prompts: [["open", " stop ", "wait"] for _ in prompts]  # noqa: E731
    monkeypatch.setattr(pairs, "_weaker_answers", weaker_answers)
    out = Path(config.output)
    (out / "pairs").mkdir()
    pairs.make_pairs(config, "weaker", out / "pairs")
    groups = [group for group in read_groups(out / "pairs" / "all.jsonl").groups if group.source == "trajectories"]
    assert [len(group.prompt) for group in groups] == prompts
    chosen = {1: "open", 3: "go", 5: "stop"}
    for group in groups:
        first, *wrong = [candidate[0]["content"] for candidate in group.candidates]
        assert first == chosen[len(group.prompt)]
        assert wrong == [text for text in ("open", "stop", "wait") if text != first]


def test_answers_that_differ_in_ids_and_spaces_are_equal():
    call = {"type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": 2}}}
    reordered = {"type": "function", "id": "x", "function": {"name": "f", "arguments": {"a": 2, "b": 1}}}
    keys = {pairs.answer_key(({"role": "assistant", "content": text, "tool_calls": [one]},))
            for text, one in (("", call), (" ", reordered))}  # fmt: skip
    assert len(keys) == 1
    assert pairs.answer_key(({"role": "assistant", "content": "f"},)) not in keys
    assert pairs.answer_key(" f ") == pairs.answer_key("f")


def test_refused_before_training(tmp_path, base, questions):
    with pytest.raises(ConfigError, match="no chat template for native"):
        make_config(tmp_path, base, questions, model=None, new_model={"texts": "x"})
    bare = tmp_path / "bare.jinja"
    bare.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    config = make_config(tmp_path, base, questions, data={"chat_template": str(bare)})
    with pytest.raises(ModelError, match="ignores tools"):
        tool_calling(config, only_stage="data")


@pytest.mark.slow
def test_the_whole_recipe(tmp_path, base, questions):
    result = tool_calling(make_config(tmp_path, base, questions))
    rows = [json.loads(line) for line in (tmp_path / "out/evaluation/dpo-0.jsonl").read_text().splitlines()]
    assert len(rows) == sum(result["data"]["questions"]["test"].values())
    assert set(result["evaluation"]["edge"]["dpo"]) == {"float32", "int8"}
