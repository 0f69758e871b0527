"""Tests of constrained answers: a model can write calls on offer or no call, and can write every right answer."""

from __future__ import annotations

import json
import keyword
import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from penchant.data.groups import Message
from penchant.data.tokenization import tokenize_prompts
from penchant.engine.grammars import Grammars
from penchant.errors import DataError
from penchant.evaluation.tool_calls.calls import Call, Function
from penchant.evaluation.tool_calls.grammars import PROSE, SPEECH, Tags
from penchant.evaluation.tool_calls.latency import LatencySettings, measure_in_this_process, quantize_int8
from penchant.evaluation.tool_calls.questions import ToolQuestion
from penchant.evaluation.tool_calls.reading import native_name, read_calls, read_json_calls
from penchant.evaluation.tool_calls.styles import STYLES
from penchant.evaluation.tool_calls.suite import ToolReport, answer_questions
from penchant.models.loading import load_model, load_tokenizer
from penchant.recipes.small_llama import Sizes, build_small_llama
from penchant.recipes.tool_calling.variants import right_answer, right_calls

TEMPLATE = "{% if tools %}{% endif %}{% for message in messages %}{{ message.content }}\n{% endfor %}"

ARGUMENTS = {
    "where": {"type": "string", "enum": ["é😀", "it's", 'a "b" \\ c', "Rome"]},
    "n": {"type": "integer"},
    "rate": {"type": "float"},
    "sure": {"type": "boolean"},
    "tags": {"type": "array", "items": {"type": "string"}},
    "grid": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    "sizes": {"type": "array", "items": {"type": "string"}, "enum": ["s", "m"]},
    "way": {"type": "dict", "properties": {"by": {"type": "string"}, "km": {"type": "float"}}, "required": ["km"]},
    "more": {"type": "dict"},
    "pair": {"type": "tuple", "items": {"type": "float"}},
    "level": {"type": "integer", "enum": [1, 10, "high"]},
    "what": {"type": "any"},
}
TYPES = {
    "where": lambda v: v in ARGUMENTS["where"]["enum"],
    "n": lambda v: type(v) is int,
    "rate": lambda v: type(v) in (int, float),
    "sure": lambda v: type(v) is bool,
    "tags": lambda v: type(v) is list and all(type(e) is str for e in v),
    "grid": lambda v: type(v) is list and all(type(e) is list and all(type(n) is int for n in e) for e in v),
    "sizes": lambda v: type(v) is list and all(e in ("s", "m") for e in v),
    "way": lambda v: "km" in v and type(v["km"]) in (int, float) and type(v.get("by", "")) is str and len(v) < 3,
    "more": lambda v: type(v) is dict and all(type(key) is str for key in v),
    "pair": lambda v: type(v) is list and all(type(n) in (int, float) for n in v),
    "level": lambda v: v in (1, 10),
    "what": lambda v: True,
}  # fmt: skip


def function(name, properties, required=()):
    parameters = {"type": "dict", "properties": properties, "required": list(required)}
    return Function.read({"name": name, "parameters": parameters}, "test")


def make_question(functions, accepted=(), number=0, category="parallel_multiple"):
    message = Message(role="user", content=f"Question {number}?")
    return ToolQuestion(f"q{number}", category, (message,), tuple(functions), tuple(accepted))


QUESTIONS = [
    make_question([function("m.go", ARGUMENTS, ["way", "n"]), function("m.go_on", {"a": {"type": "string"}}, ["a"])]),
    *(
        make_question([function("f", {key: schema}, [key])], number=n)
        for n, (key, schema) in enumerate(ARGUMENTS.items(), 1)
    ),
    make_question(
        [function("f", {}), function("not-a-name", {}), function("g", {"from": {"type": "string"}}, ["from"])],
        number=90,
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("small") / "model"
    texts = [right_answer(make_question([], [])), "[m.go(where='Rome', n=1)] <tool_call> the sum of 1 and 2 {'name': ["]
    build_small_llama(folder, texts, Sizes(400, 32, 1, 2, 2048), seed=0)
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer(model_path):
    tokenizer = load_tokenizer(model_path)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


class Stub(torch.nn.Module):
    """The part of a model's interface that sampling uses."""

    config = SimpleNamespace(_attn_implementation="eager")
    generation_config = None
    device = torch.device("cpu")

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        return SimpleNamespace(logits=torch.stack([self.wants(row)[None] for row in input_ids.tolist()]))


class RandomModel(Stub):
    """A model that prefers random tokens, brackets and quotes above others."""

    def __init__(self, tokenizer, seed):
        super().__init__()
        self.size, self.seed = len(tokenizer), seed
        self.brackets = [i for i in range(self.size) if re.fullmatch(r"[\[\]{}()'\",]+", tokenizer.decode([i]))]
        self.end = tokenizer.eos_token_id
        self.opening = {i for i in range(self.size) if tokenizer.decode([i]).endswith("[")}
        self.shutting = [i for i in range(self.size) if tokenizer.decode([i]).startswith("]")]

    def wants(self, row):
        # The seed depends on the last tokens and their position, so that batches and single prompts agree.
        draw = torch.Generator().manual_seed(hash((self.seed, len(row), *row[-3:])) % 2**32)
        wants = torch.randn(self.size, generator=draw)
        wants[self.brackets] += 2
        wants[self.end] += 2
        if row[-1] in self.opening:
            wants[self.shutting] -= 4
        return wants


class ScriptedModel(Stub):
    """A model that prefers one answer per prompt, and tokens with lower ids otherwise."""

    def __init__(self, tokenizer, prompts, answers):
        super().__init__()
        self.size, self.answers = len(tokenizer), {}
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
            self.answers[tuple(prompt.tolist())] = [*ids, tokenizer.eos_token_id]

    def wants(self, row):
        wants = -torch.arange(self.size, dtype=torch.float32)
        for prompt, answer in self.answers.items():
            if tuple(row[: len(prompt)]) == prompt and len(row) - len(prompt) < len(answer):
                wants[answer[len(row) - len(prompt)]] = 1
        return wants


def scripted_answers(tokenizer, questions, style, answers):
    prompts = tokenize_prompts([STYLES[style].ask(question) for question in questions], tokenizer)
    model = ScriptedModel(tokenizer, prompts, answers)
    return answer_questions(model, tokenizer, questions, STYLES[style], max_new_tokens=2000, constrained=True)


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_random_answers_are_read_as_calls_on_offer(tokenizer, style):
    complete_answers, call_count, arguments = 0, 0, set()
    for seed in range(25):
        model = RandomModel(tokenizer, seed)
        for judged in answer_questions(
            model, tokenizer, QUESTIONS, STYLES[style], max_new_tokens=150, constrained=True
        ):
            calls = STYLES[style].read(judged.answer, judged.question)
            if not judged.is_complete:
                continue
            complete_answers += 1
            assert calls is not None or (style != "signatures" and not judged.answer.lstrip().startswith(("[", "{"))), (
                judged
            )
            for call in calls or ():
                call_count += 1
                called_function = {function.name: function for function in judged.question.functions}[call.name]
                unsaid = {"from"} if style != "native" else set()
                assert (
                    set(called_function.required) - unsaid <= set(call.arguments) <= set(called_function.arguments)
                ), judged.answer
                for name, value in call.arguments.items():
                    arguments.add(name)
                    assert name not in TYPES or TYPES[name](value), judged.answer
    assert complete_answers > 100
    assert call_count > 30
    assert len(arguments) > 5


def accepts(tokenizer, style, question, text):
    guide, prefix = Grammars(tokenizer, [2]).guide(STYLES[style].grammar(question, Tags.from_tokenizer(tokenizer))), []
    for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], 2]:
        if token not in guide.allowed_tokens(prefix):
            return False
        prefix.append(token)
    return True


F = function("m.f", {"a": {"type": "integer"}, "b": {"type": "string"}}, ["a"])


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("[]", True),
        ("[m.f(a=-1)]", True),
        (" [m.f(b='',a=0), m.f(a=2)]", True),
        ("[m.f(a=1, b='\\d\\'\\u00e9')]", True),
        ("", False),
        ("[m.f(a=1, a=2)]", False),
        ("[m.f(b='x', a=1, b='x')]", False),
        ("[m.f()]", False),
        ("[m.f(b='x')]", False),
        ("[m.f(a=1, c=2)]", False),
        ("[m.f(a=1.0)]", False),
        ("[m.f(a=01)]", False),
        ("[m.f(a=True)]", False),
        ("[m.f(a='1')]", False),
        ("[m.f(a=1, b=x)]", False),
        ("[m.f(a=1, b='x)]", False),
        ("[m.f(a=1, b='\\u12')]", False),
        ("[f(a=1)]", False),
        ("[m.f(a=1),]", False),
        ("[m.f(a=1)", False),
        ("[m.f(a=1)] and", False),
        ("m.f(a=1)", False),
        ("I cannot.", False),
        ('{"name": "m.f", "arguments": {"a": 1}}', False),
    ],
)
def test_texts_of_the_python_grammar(tokenizer, text, right):
    assert accepts(tokenizer, "signatures", make_question([F]), text) == right
    # Style "messages" also allows words for an answer without a call.
    assert accepts(tokenizer, "messages", make_question([F]), text) == (right or text == "I cannot.")
    assert not right or read_calls(text) is not None


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ('{"a": 1}', True),
        ('{"b":"\\u00e9 é","a":-1}', True),
        ('{"a": 1, "a": 2}', False),
        ('{"b": "x"}', False),
        ('{"a": 1, "c": 2}', False),
        ('{"a": true}', False),
        ('{"a": 1, "b": null}', False),
        ("{}", False),
    ],
)
def test_texts_of_the_json_grammar(tokenizer, arguments, right):
    one = f'{{"name": "m_f", "arguments": {arguments}}}'
    for text in (one, f"[{one}]", f"<tool_call>\n{one}\n</tool_call>", f"So. <tool_call>{one}</tool_call>"):
        assert accepts(tokenizer, "native", make_question([F]), text) == right
        assert not right or read_json_calls(text, [F])


def test_any_tokens_that_spell_an_answer_are_allowed(tokenizer):
    """A tokenizer's tokens of a text depend on its neighbours; the grammar allows all, even where a name is certain."""
    question = make_question([function("m.go", {"where": {"type": "string"}}, ["where"])])
    guide, prefix = (
        Grammars(tokenizer, [2]).guide(STYLES["signatures"].grammar(question, Tags.from_tokenizer(tokenizer))),
        [],
    )
    assert len(tokenizer("m.go(where=", add_special_tokens=False)["input_ids"]) < len("m.go(where=")
    for letter in "[m.go(where='Rome')]":
        [token] = tokenizer(letter, add_special_tokens=False)["input_ids"]
        assert token in guide.allowed_tokens(prefix)
        prefix.append(token)


@pytest.mark.parametrize("text", ["So. <tool_call>", "So. <tool_call>no</tool_call>", "<tool_call></tool_call>", "`1`"])
def test_words_hold_no_tag(tokenizer, text):
    for question in (make_question([F]), make_question([])):
        assert not accepts(tokenizer, "native", question, text)
        assert accepts(tokenizer, "native", question, f"So. {text.replace('tool', 'a')}")


def test_values_of_an_enum(tokenizer):
    """Integers count as floats, values of another type are ignored, and an enum of such values allows any value."""
    properties = {"r": {"type": "float", "enum": [1, 0.5, "x"]}, "n": {"type": "integer", "enum": ["one"]}}
    question = make_question([function("f", properties)])
    for text, right in {
        "r=1": True,
        "r=0.5": True,
        "r=2": False,
        "r='x'": False,
        "n=7": True,
        "n='one'": False,
    }.items():
        assert accepts(tokenizer, "signatures", question, f"[f({text})]") == right


def test_the_first_of_two_functions_with_one_name_counts(tokenizer):
    both = make_question([function("f", {"a": {"type": "integer"}}), function("f", {"b": {"type": "integer"}})])
    assert accepts(tokenizer, "signatures", both, "[f(a=1)]")
    assert not accepts(tokenizer, "signatures", both, "[f(b=1)]")


def test_a_random_model_in_batches_and_alone_and_in_eight_bits(model_path, tokenizer):
    for model in (load_model(model_path), quantize_int8(load_model(model_path))):
        together, alone = (
            answer_questions(
                model,
                tokenizer,
                QUESTIONS,
                STYLES["signatures"],
                max_new_tokens=12,
                batch_size=size,
                constrained=True,
            )
            for size in (32, 1)
        )
        assert [judged.answer for judged in together] == [judged.answer for judged in alone]
        assert all(judged.answer.lstrip().startswith("[") for judged in together)
    free = answer_questions(model, tokenizer, QUESTIONS, STYLES["signatures"], max_new_tokens=12)
    assert not any(judged.answer.lstrip().startswith("[") for judged in free)


def test_answers_cut_by_the_token_limit_are_counted(tokenizer):
    question = make_question([function("f", {"a": {"type": "string"}}, ["a"])], [{"f": {"a": ["x" * 50]}}])
    prompts = tokenize_prompts([STYLES["signatures"].ask(question)], tokenizer)
    model = ScriptedModel(tokenizer, prompts, [right_answer(question)])
    judged_answers = {}
    for max_new_tokens in (10, 200):
        judged_answers[max_new_tokens] = answer_questions(
            model, tokenizer, [question], STYLES["signatures"], max_new_tokens=max_new_tokens, constrained=True
        )
    assert [judged.is_complete for judged in (*judged_answers[10], *judged_answers[200])] == [False, True]
    assert judged_answers[10][0].fault == "no call could be read"
    assert judged_answers[200][0].fault is None
    assert [ToolReport.from_answers(answers).truncated for answers in judged_answers.values()] == [1, 0]


names = st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True).filter(lambda name: not keyword.iskeyword(name))
texts = st.text(min_size=1, max_size=8) | st.sampled_from(
    ["it's", "a\nb\t", '"', "'\"\\", "漢字 é", "\\x", "</s>", "])"]
)
# The tokenizer would read these as special tokens and not as text.
texts = texts.filter(lambda text: not re.search("<(pad|bos|eos)>", text))
floats = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([-1e-07, 1e16, -0.0, 2.5e300])
scalars = st.none() | st.booleans() | st.integers() | floats | texts
values_of_any_type = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=2), max_leaves=5
)


@st.composite
def schemas(draw, depth=0):
    """A schema, and a strategy for values of it."""
    simple = ["string", "integer", "float", "boolean", "any", "enum"]
    kind = draw(st.sampled_from([*simple, "array", "tuple", "dict", "free dict"] if depth < 2 else simple))
    if kind == "enum":
        choices = draw(st.lists(texts, min_size=1, max_size=3))
        return {"type": "string", "enum": choices}, st.sampled_from(choices)
    if kind in ("array", "tuple"):
        items, inner = draw(schemas(depth + 1))
        return {"type": kind, "items": items}, st.lists(inner, max_size=3)
    if kind == "dict":
        parts = draw(st.dictionaries(texts, schemas(depth + 1), min_size=1, max_size=3))
        required = draw(st.lists(st.sampled_from(list(parts)), unique=True))
        properties = {name: schema for name, (schema, _) in parts.items()}
        entries = {name: inner for name, (_, inner) in parts.items()}
        optional = {name: entries.pop(name) for name in list(entries) if name not in required}
        whole = {"type": "dict", "properties": properties, "required": required}
        return whole, st.fixed_dictionaries(entries, optional=optional)
    plain = {"string": texts, "integer": st.integers(), "float": floats | st.integers(), "boolean": st.booleans()}
    plain |= {"any": values_of_any_type, "free dict": st.dictionaries(texts, values_of_any_type, max_size=3)}
    return {"type": kind.removeprefix("free ")}, plain[kind]


def accepted(value):
    """A value as the leaderboard's files hold it: a dict's entries are lists of accepted values."""
    if isinstance(value, dict):
        return {key: [accepted(item)] for key, item in value.items()}
    return [accepted(item) for item in value] if isinstance(value, list) else value


@st.composite
def questions_with_answers(draw):
    """A question with accepted calls, whose arguments are not in the schema's order."""
    functions, values = {}, {}
    for name in draw(st.lists(names, min_size=1, max_size=3, unique=True)):
        path = draw(st.sampled_from([name, f"m.{name}"]))
        parts = draw(st.dictionaries(names, schemas(), max_size=4))
        required = draw(st.lists(st.sampled_from(list(parts)), unique=True)) if parts else []
        functions[path] = function(path, {key: schema for key, (schema, _) in parts.items()}, required)
        values[path] = {key: inner for key, (_, inner) in parts.items()}
    accepted_calls = []
    for path in draw(st.lists(st.sampled_from(list(functions)), max_size=3)):
        argument_names = [key for key in values[path] if key in functions[path].required or draw(st.booleans())]
        accepted_calls.append(
            {path: {key: [accepted(draw(values[path][key]))] for key in draw(st.permutations(argument_names))}}
        )
    return make_question(functions.values(), accepted_calls, draw(st.integers(0, 9)))


def in_json(question, *, ascii_only):
    """The right answer in the JSON form that chat templates describe."""
    calls = [{"name": native_name(call.name), "arguments": call.arguments} for call in right_calls(question)]
    texts_of_calls = [json.dumps(call, ensure_ascii=ascii_only) for call in calls]
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in texts_of_calls) or "None of them serves (I fear)."


class TestRightAnswersCanBeWritten:
    @pytest.mark.slow
    @settings(max_examples=80, deadline=None)
    @given(question=questions_with_answers(), style=st.sampled_from(["signatures", "messages"]))
    def test_in_python(self, tokenizer, question, style):
        right = right_answer(question) if style == "signatures" else right_answer(question).strip()
        [judged] = scripted_answers(tokenizer, [question], style, [right])
        assert judged.answer == right
        assert judged.is_complete
        assert read_calls(judged.answer) == right_calls(question)

    @pytest.mark.slow
    @settings(max_examples=60, deadline=None)
    @given(question=questions_with_answers(), ascii_only=st.booleans())
    def test_in_json(self, tokenizer, question, ascii_only):
        right = in_json(question, ascii_only=ascii_only)
        [judged] = scripted_answers(tokenizer, [question], "native", [right])
        assert judged.answer == right
        assert judged.is_complete
        assert (read_json_calls(judged.answer, question.functions) or []) == right_calls(question)

    def test_on_the_leaderboards_questions(self, tokenizer, shared_data):
        """All but two questions, whose accepted values differ in type from their schemas."""
        from penchant.evaluation.tool_calls.questions import read_bfcl

        questions = read_bfcl(shared_data / "bfcl")[0][::7]
        grammars, other = Grammars(tokenizer, [tokenizer.eos_token_id]), []
        for question in questions:
            guide, prefix = grammars.guide(STYLES["signatures"].grammar(question, Tags.from_tokenizer(tokenizer))), []
            for token in [*tokenizer(right_answer(question))["input_ids"][1:], tokenizer.eos_token_id]:
                if token not in guide.allowed_tokens(prefix):
                    other.append(question.id)
                    break
                prefix.append(token)
        assert set(other) <= {"parallel_multiple_21", "parallel_multiple_94"}


class TestNative:
    QUESTION = make_question([function("m.f", {"a": {"type": "integer"}}, ["a"])])
    ONE = '{"name": "m_f", "arguments": {"a": 1}}'

    def tokenizer_with_tags(self, model_path, *, special):
        tokenizer = load_tokenizer(model_path)
        tags = [AddedToken(tag, special=special, normalized=False) for tag in ("<tool_call>", "</tool_call>")]
        tokenizer.add_tokens(tags, special_tokens=special)
        tokenizer.chat_template = TEMPLATE
        return tokenizer

    @pytest.mark.parametrize("special", [False, True])
    @pytest.mark.parametrize(
        "answer",
        [
            f"<tool_call>\n{ONE}\n</tool_call>",
            f"Well: <tool_call>\n{ONE}\n</tool_call>\n<tool_call>\n{ONE}\n</tool_call>",
            ONE,
            f"[{ONE}, {ONE}]",
            '{"name": "m_f", "parameters": {"a": 1}}',
        ],
    )
    def test_tags_that_are_tokens(self, model_path, answer, special):
        """An answer's text holds the tags, whether or not their tokens are special."""
        tokenizer = self.tokenizer_with_tags(model_path, special=special)
        [judged] = scripted_answers(tokenizer, [self.QUESTION], "native", [answer])
        assert judged.answer.strip() == answer
        calls = STYLES["native"].read(judged.answer, self.QUESTION)
        assert calls == [Call("m.f", {"a": 1})] * max(1, answer.count("m_f"))

    def test_a_tag_in_a_string_is_not_written(self, tokenizer):
        question = make_question([function("f", {"a": {"type": "string"}}, ["a"])])
        preferred = '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>'
        [judged] = scripted_answers(tokenizer, [question], "native", [preferred])
        assert '"</tool_call>"' not in judged.answer


@settings(max_examples=300, deadline=None)
@given(
    text=st.from_regex(re.compile(PROSE), fullmatch=True) | st.sampled_from(["f f(x)", "not f()", "I (see)", "a, b()"])
)
def test_prose_is_never_a_call(text):
    if re.fullmatch(PROSE, text):
        assert not read_calls(text)


@settings(max_examples=300, deadline=None)
@given(text=st.from_regex(re.compile(SPEECH), fullmatch=True) | st.sampled_from(["null", "1", '"a"', "true"]))
def test_speech_without_a_tag_is_never_a_call(text):
    if re.fullmatch(SPEECH, text) and "<tool_call>" not in text:
        assert not read_json_calls(text, [])


@pytest.mark.parametrize("style", STYLES)
def test_answers_in_other_languages_are_refused(tokenizer, style):
    java = make_question([function("A.f", {"x": {"type": "long"}})], category="simple_java")
    with pytest.raises(DataError, match="answers in java cannot be constrained"):
        answer_questions(RandomModel(tokenizer, 0), tokenizer, [java], STYLES[style], constrained=True)


def test_too_many_arguments(tokenizer):
    many = make_question([function("f", {f"a{n}": {"type": "integer"} for n in range(65)})])
    with pytest.raises(DataError, match="takes 65 arguments"):
        STYLES["signatures"].grammar(many, Tags.from_tokenizer(tokenizer))
    question = make_question(
        [function("f", {f"a{n}": {"type": "integer"} for n in range(64)}, [f"a{n}" for n in range(64)])]
    )
    accepted_calls = [{"f": {f"a{n}": [n] for n in reversed(range(64))}}]
    question = make_question(question.functions, accepted_calls)
    [judged] = scripted_answers(tokenizer, [question], "signatures", [right_answer(question)])
    assert judged.answer == right_answer(question)


def test_the_latency_of_constrained_answers_includes_their_grammars(model_path, tokenizer, monkeypatch):
    compiled, guide = [], Grammars.guide
    monkeypatch.setattr(Grammars, "guide", lambda self, grammar: compiled.append(grammar) or guide(self, grammar))
    setting = LatencySettings(str(model_path), "signatures", max_new_tokens=5, constrained=True)
    report = measure_in_this_process(setting, QUESTIONS[:3], torch.get_num_threads())
    assert report.timed == 3
    assert report.tokens_per_second > 0
    grammars = [STYLES["signatures"].grammar(question, Tags.from_tokenizer(tokenizer)) for question in QUESTIONS[:3]]
    assert compiled == [grammars[0], *grammars]
