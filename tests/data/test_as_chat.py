"""Conversion of plain prompts and responses to messages: which groups, by which setting, and the result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from penchant.cli.main import run
from penchant.config.run import parse_config
from penchant.data.chat import ChatRenderer
from penchant.data.groups import Message, PreferenceGroup
from penchant.data.rendering import PLAIN, PLAIN_TEXT, ChatConverter, Rendering, bare_as_messages, is_bare
from penchant.data.tokenization import tokenize_groups, tokenize_prompts
from penchant.errors import ModelError

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
AS_CHAT, PLAINLY = Rendering(as_chat="true"), Rendering(as_chat="false")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of characters, with ChatML's tokens and one special token that the template does not write."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    special = ["<|im_start|>", "<|im_end|>", "<jupyter_code>", "<unk>"]
    letters = [chr(code) for code in range(32, 127)] + ["\n"]
    vocabulary = {token: i for i, token in enumerate([*special, *letters])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", eos_token="<|im_end|>", additional_special_tokens=special[:3]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def base(tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer of characters without a chat template."""
    import copy

    without_template = copy.deepcopy(tokenizer)
    without_template.chat_template = None
    return without_template


BARE = PreferenceGroup("2 + 2?", ("4", "5"), preferred=0)
MESSAGES = PreferenceGroup(
    (Message(role="user", content="2 + 2?"),),
    ((Message(role="assistant", content="4"),), (Message(role="assistant", content="5"),)),
    preferred=0,
)
UNTOUCHED = {
    "messages": MESSAGES,
    "text alone": PreferenceGroup("", ("A text.",)),
    "transcript": PreferenceGroup("\n\nHuman: Hi\n\nAssistant:", (" Hello.", " No."), preferred=0),
    "rendered": PreferenceGroup(
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", ("Hello.", "No."), preferred=0
    ),
    "instruction marks": PreferenceGroup("[INST] Hi [/INST]", ("Hello.", "No."), preferred=0),
}


class TestTrue:
    def test_the_ids_are_those_of_messages(self, tokenizer):
        [[from_bare], _], [[from_messages], _] = (
            tokenize_groups([group], tokenizer, max_length=500, rendering=AS_CHAT) for group in (BARE, MESSAGES)
        )
        assert from_bare.prompt.tolist() == from_messages.prompt.tolist()
        assert [ids.tolist() for ids in from_bare.responses] == [ids.tolist() for ids in from_messages.responses]
        prompt_text = "".join(tokenizer.convert_ids_to_tokens(from_bare.prompt))
        assert prompt_text == "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
        assert from_bare.group == BARE, "what the data says stays what it is"

    def test_a_prompt_without_candidates_gives_the_same_ids_as_its_group(self, tokenizer):
        [prompt_ids] = tokenize_prompts(["2 + 2?"], tokenizer, AS_CHAT)
        [[group], _] = tokenize_groups([BARE], tokenizer, max_length=500, rendering=AS_CHAT)
        assert prompt_ids.tolist() == group.prompt.tolist()

    def test_a_special_token_that_the_template_does_not_write_is_content(self, tokenizer):
        group = replace(BARE, prompt="<jupyter_code>x = 1")
        assert ChatRenderer(tokenizer, AS_CHAT).group(group).prompt.startswith("<|im_start|>user\n<jupyter_code>")

    @pytest.mark.parametrize("name", UNTOUCHED)
    def test_other_groups_are_not_wrapped(self, name, tokenizer):
        group = UNTOUCHED[name]
        assert ChatRenderer(tokenizer, AS_CHAT).group(group) == ChatRenderer(tokenizer, PLAINLY).group(group)
        prompt = ChatRenderer(tokenizer, PLAINLY).prompt(group.prompt)
        assert ChatRenderer(tokenizer, AS_CHAT).prompt(group.prompt) == prompt

    def test_a_model_without_template_is_refused(self, base):
        with pytest.raises(ModelError, match="as_chat"):
            tokenize_groups([BARE], base, max_length=500, rendering=AS_CHAT)


class TestAuto:
    def test_plain_groups_stay_plain_and_are_counted_with_advice(self, tokenizer):
        [plain, *_], report = tokenize_groups([BARE] * 3, tokenizer, max_length=500)
        [[plain_on_request], quiet_report] = tokenize_groups([BARE], tokenizer, max_length=500, rendering=PLAINLY)
        assert plain.prompt.tolist() == plain_on_request.prompt.tolist()
        assert report.counts[PLAIN_TEXT] == 3
        assert not quiet_report.counts
        [line] = report.lines()
        assert "data.as_chat=true" in line
        assert "data.as_chat=false" in line

    @pytest.mark.parametrize("name", UNTOUCHED)
    def test_no_event_where_conversion_changes_nothing(self, name, tokenizer):
        _, report = tokenize_groups([UNTOUCHED[name]], tokenizer, max_length=500, empty="keep")
        assert PLAIN_TEXT not in report.counts

    def test_no_event_without_a_chat_template(self, base):
        _, report = tokenize_groups([BARE], base, max_length=500)
        assert PLAIN_TEXT not in report.counts
        assert ChatConverter(base, PLAIN).count_plain(["a"]) == 0

    def test_plain_prompts_are_counted(self, tokenizer):
        prompts = ["a", "", "<|im_start|>user\n", MESSAGES.prompt]
        assert ChatConverter(tokenizer, PLAIN).count_plain(prompts) == 1
        assert (
            ChatConverter(tokenizer, PLAINLY).count_plain(prompts)
            == ChatConverter(tokenizer, AS_CHAT).count_plain(prompts)
            == 0
        )


@pytest.mark.parametrize(("value", "expected"), [(True, "true"), (False, "false"), ("auto", "auto"), ("true", "true")])
def test_yaml_booleans_set_as_chat(value, expected):
    values = {"model": "m", "data": {"train": "t", "as_chat": value}, "output": "o", "objective": {"name": "dpo"}}
    assert parse_config(values, "here").rendering.as_chat == expected


def test_only_bare_groups_become_messages():
    assert bare_as_messages(BARE) == MESSAGES
    for name, group in UNTOUCHED.items():
        # A rendered prompt is recognised only with a tokenizer.
        assert is_bare(group.prompt, group.candidates) == (name == "rendered")
        assert (bare_as_messages(group) == group) == (name != "rendered")


class TestConvert:
    def test_plain_groups_are_converted_to_messages(self, tmp_path, capsys):
        file = tmp_path / "pairs.jsonl"
        file.write_text(json.dumps({"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}) + "\n")
        assert run(["data", "convert", str(file), str(tmp_path / "new.jsonl"), "--to", "messages"]) == 0
        row = json.loads((tmp_path / "new.jsonl").read_text())
        assert row["prompt"] == [{"role": "user", "content": "2 + 2?"}]
        assert row["candidates"] == [[{"role": "assistant", "content": text}] for text in ("4", "5")]
        assert row["preferred"] == 0

    def test_groups_that_cannot_become_messages_are_named(self, tmp_path, capsys):
        file = tmp_path / "texts.jsonl"
        file.write_text(json.dumps({"id": "seven", "text": "A text."}) + "\n")
        assert run(["data", "convert", str(file), str(tmp_path / "new.jsonl"), "--to", "messages"]) == 2
        assert "seven" in capsys.readouterr().err


@pytest.fixture
def chat_model(tmp_path: Path, tiny_model: Path) -> Path:
    """The tiny model with a chat template."""
    import shutil

    folder = tmp_path / "chat"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }} : {{ m.content }} </s>{% endfor %}"
        "{% if add_generation_prompt %}assistant :{% endif %}"
    )
    return folder


class TestVerbs:
    """Rows of files stay plain with a notice; a prompt on the command line becomes a user's message with a notice."""

    def answers(self, capsys, *arguments: object) -> tuple[list[str], str]:
        line = ["--temperature", "0", "--max-new-tokens", "6", "--json"]
        assert run(["generate", *map(str, arguments), *line]) == 0
        out, err = capsys.readouterr()
        return [answer["responses"][0] for answer in json.loads(out)["answers"]], err

    def test_generate(self, chat_model, tmp_path, capsys):
        file = tmp_path / "prompts.jsonl"
        file.write_text(json.dumps({"prompt": "the old cat"}) + "\n")
        messages = tmp_path / "messages.jsonl"
        messages.write_text(json.dumps({"prompt": [{"role": "user", "content": "the old cat"}]}) + "\n")
        chat, _ = self.answers(capsys, chat_model, messages)
        typed, typed_log = self.answers(capsys, chat_model, "the old cat")
        plain, plain_log = self.answers(capsys, chat_model, "the old cat", "--as-chat", "false")
        from_file, file_log = self.answers(capsys, chat_model, file)
        wrapped, _ = self.answers(capsys, chat_model, file, "--as-chat", "true")
        assert typed == wrapped == chat
        assert plain == from_file != chat
        assert "as a user's message" in typed_log
        assert "--as-chat false" in typed_log
        assert "--as-chat true" in file_log
        assert "--as-chat" not in plain_log

    @pytest.mark.parametrize("verb", ["evaluate", "rank"])
    def test_candidates_are_scored_as_messages(self, verb, chat_model, tmp_path, capsys):
        plain, messages = tmp_path / "plain.jsonl", tmp_path / "messages.jsonl"
        plain.write_text(json.dumps({"prompt": "the old cat", "chosen": " sees", "rejected": " runs"}) + "\n")
        converted = ["data", "convert", str(plain), str(messages), "--to", "messages"]
        assert run(converted) == 0

        def numbers(file: Path, *options: str) -> tuple[dict, str]:
            capsys.readouterr()
            code = run([verb, str(chat_model), "--data", str(file), *options, "--json"])
            out, err = capsys.readouterr()
            assert code == 0, err
            return json.loads(out), err

        as_chat, _ = numbers(plain, "--as-chat", "true")
        auto, warned = numbers(plain)
        assert as_chat == numbers(messages)[0] != auto
        assert auto == numbers(plain, "--as-chat", "false")[0]
        assert warned.count("--as-chat true") == 1


def test_marks_change_with_the_template(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompts = ("<s> the", "the </s>")
    for template, expected in (
        ("<s> {{ messages[0].content }}", [True, False]),
        ("{{ messages[0].content }} </s>", [False, True]),
    ):
        tokenizer.chat_template = template
        as_chat = ChatConverter(tokenizer, Rendering(as_chat="true"))
        assert [as_chat.prompt(prompt) == prompt for prompt in prompts] == expected
