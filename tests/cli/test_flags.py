"""The flags that say how data is read: the same on every verb, and followed by every verb."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cyclopts import Argument
from transformers import AutoModelForCausalLM, AutoTokenizer

from penchant.cli.main import app, run

PREFERENCES = ("data check", "data show", "data split", "data convert", "data review", "data audit", "evaluate",
               "score", "rank", "generate")  # fmt: skip
ROWS = ("--columns", "--format", "--split")
TEMPLATE = ("--chat-template", "--chat-template-kwargs", "--date", "--as-chat", "--control-text")
LENGTHS, CANDIDATES = ("--max-length", "--truncation", "--refused"), ("--empty", "--identical", "--learn")
COMPUTE = ("--token-budget", "--dtype")
FLAGS = {
    **{f"data {verb}": ROWS for verb in ("split", "convert", "review", "audit")},
    "data check": (*ROWS, *TEMPLATE),
    "data show": (*ROWS, *TEMPLATE, *LENGTHS, *CANDIDATES),
    "evaluate": (*ROWS, *TEMPLATE, *LENGTHS, *CANDIDATES, *COMPUTE),
    "rank": (*ROWS, *TEMPLATE, *LENGTHS, *CANDIDATES, *COMPUTE),
    "score": (*ROWS, *TEMPLATE, *LENGTHS, *COMPUTE),
    "generate": (*ROWS, *TEMPLATE, *LENGTHS),
    "tasks": ("--columns", "--split", *TEMPLATE, *LENGTHS, "--empty", *COMPUTE),
    "tool-calls": TEMPLATE,
    "recommend": ("--columns", "--split"),
}


OTHER_MEANING = {"data check": {"--max-length"}}
"""Flags of a verb that have the name of a reading flag and another meaning."""


def flags_of(verb: str) -> dict[str, Argument]:
    _, apps, _ = app.parse_commands(verb.split())
    arguments = [argument for argument in apps[-1].assemble_argument_collection() if argument.parse]
    return {name: argument for argument in arguments for name in argument.names}


@pytest.mark.parametrize("verb", FLAGS)
def test_one_name_one_help_one_default(verb):
    flags, model = flags_of(verb), flags_of("evaluate")
    assert set(FLAGS[verb]) <= set(flags)
    assert not (set(FLAGS["evaluate"]) - set(FLAGS[verb]) - OTHER_MEANING.get(verb, set())) & set(flags)
    for name in FLAGS[verb]:
        flag, expected = flags[name], model[name]
        assert (flag.parameter.help, flag.field_info.default) == (expected.parameter.help, expected.field_info.default)


@pytest.fixture
def renamed_columns(tmp_path: Path, tiny_pairs: Path) -> Path:
    """The tiny pairs under the column names of a spreadsheet."""
    rows = [json.loads(line) for line in tiny_pairs.read_text(encoding="utf-8").splitlines()[:8]]
    ours = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    file = tmp_path / "renamed.jsonl"
    file.write_text("".join(json.dumps({ours.get(k, k): v for k, v in row.items()}) + "\n" for row in rows))
    return file


MAPPED = ("--columns", "prompt=question", "--columns", "chosen=better", "--columns", "rejected=worse")


def command(verb: str, file: Path, model: Path, folder: Path) -> list[str]:
    """A command line of the verb that reads `file` and succeeds on good data."""
    (folder / "reward.py").write_text("def score(prompt, responses): return [len(str(r)) for r in responses]\n")
    outputs = {
        "data split": [
            "--train-output",
            folder / "a.jsonl",
            "--held-out-output",
            folder / "b.jsonl",
            "--held-out",
            0.25,
        ],
        "data convert": [folder / "new.jsonl"],
        "data review": ["--verdicts", folder / "v.jsonl"],
        "score": ["--output", folder / "s.jsonl", "--function", f"{folder / 'reward.py'}:score"],
        "generate": ["--max-new-tokens", 2],
    }
    if verb in ("evaluate", "rank"):
        arguments: list[Any] = [verb, model, "--data", file]
    elif verb == "generate":
        arguments = [verb, model, file]
    else:
        arguments = [*verb.split(), file]
    return [str(word) for word in [*arguments, *outputs.get(verb, [])]]


@pytest.mark.parametrize("verb", PREFERENCES)
def test_columns_are_named_on_the_command_line(verb, renamed_columns, tiny_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("q\n"))
    line = command(verb, renamed_columns, tiny_model, tmp_path)
    assert run([*line, *MAPPED]) == 0, capsys.readouterr().err
    assert "prompt (from question)" in "".join(capsys.readouterr())
    assert run([*line, "--columns", "prompt"]) == 2
    assert "--columns prompt=question" in capsys.readouterr().err


@pytest.mark.parametrize("verb", FLAGS)
def test_a_reading_flag_without_effect_is_refused_by_name(verb, capsys):
    for name in set(FLAGS["evaluate"]) - set(FLAGS[verb]) - OTHER_MEANING.get(verb, set()):
        assert run([*verb.split(), name, "1"]) == 2
        assert f"Unknown option: {name}." in capsys.readouterr().err


class TestTemplateKwargs:
    @pytest.mark.parametrize("argument", ["x=false", '{"x": false}'])
    def test_key_value_and_json(self, argument):
        from penchant.cli.flags import ReadingFlags

        assert ReadingFlags(chat_template_kwargs=(argument,)).rendering.template_kwargs == {"x": False}

    def test_a_mistake_is_named(self, tiny_model, tiny_pairs, capsys):
        assert run(["evaluate", str(tiny_model), "--data", str(tiny_pairs), "--chat-template-kwargs", "x"]) == 2
        assert "--chat-template-kwargs enable_thinking=false" in capsys.readouterr().err


class TestShow:
    def test_lengths_and_policies(self, tiny_pairs, tiny_model, capsys):
        line = ["data", "show", str(tiny_pairs), "--tokenizer", str(tiny_model), "--max-length", "14"]
        assert run(line) == 2
        assert "--max-length is 14" in capsys.readouterr().err
        assert run([*line, "--first", "48", "--truncation", "drop"]) == 0
        assert "too long dropped" in capsys.readouterr().out


class TestGenerate:
    """Context of the tiny model: 128 tokens."""

    @pytest.fixture
    def prompts(self, tmp_path: Path) -> Path:
        file = tmp_path / "prompts.jsonl"
        file.write_text("".join(json.dumps({"prompt": "the cat " * n}) + "\n" for n in (2, 70)))
        return file

    def test_a_prompt_that_is_too_long_alone_gets_no_advice_of_fewer_tokens(self, prompts, tiny_model, capsys):
        assert run(["generate", str(tiny_model), str(prompts), "--max-new-tokens", "4"]) == 2
        message = capsys.readouterr().err
        assert "--truncation drop" in message
        assert "--max-new-tokens" not in message

    def test_fewer_new_tokens_are_advised_where_they_would_do(self, tmp_path, tiny_model, capsys):
        line = ["generate", str(tiny_model), "the cat " * 30, "--max-new-tokens", "80"]
        assert run(line) == 2
        fix = capsys.readouterr().err.partition("--max-new-tokens ")[2].split(",")[0]
        assert run([*line[:-1], fix]) == 0
        assert run([*line[:-1], str(int(fix) + 1)]) == 2

    def test_drop_and_keep_the_end(self, prompts, tiny_model, run_json):
        line = ["generate", tiny_model, prompts, "--max-new-tokens", 4, "--temperature", 0]
        dropped, truncated = (
            run_json(*line, "--truncation", "drop"),
            run_json(*line, "--truncation", "keep_end_of_prompt"),
        )
        assert "too long dropped: 1 of 2 prompts" in dropped["err"]
        assert "prompt truncated: 1 of 2 prompts" in truncated["err"]
        assert truncated["answers"][:1] == dropped["answers"]
        assert len(truncated["answers"]) == 2

    def test_as_many_tokens_as_there_is_room_for(self, tiny_model, run_json):
        document = run_json("generate", tiny_model, "the cat " * 20)
        assert "answers have at most" in document["err"]


def test_the_split_of_the_held_out_file_has_its_own_flag(tmp_path, tiny_pairs, capsys):
    """One file's split was read from the other file too, and the advice named the wrong flag."""
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(tiny_pairs.read_text())
    line = ["data", "check", str(tmp_path), "--split", "train"]
    assert run([*line, "--held-out", str(tmp_path), "--held-out-split", "tset"]) == 2
    assert "--held-out-split test" in capsys.readouterr().err
    assert run([*line, "--held-out-split", "test", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checks"]["prompts_in_held_out"]["count"] > 0


class TestLearn:
    """The assistant's turn in the prompt counts where it is asked for."""

    CHAT = (
        "{% for m in messages %}{{ bos_token if loop.first else '' }} {{ m.role }} {{ m.content }}"
        "{% if m.role == 'assistant' %} {{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %} assistant{% endif %}"
    )
    PROMPT = (("user", "the old cat"), ("assistant", "sees a dog"), ("user", "then"))
    CANDIDATES = ("it runs to house", "it sings")

    @pytest.fixture
    def line(self, tmp_path: Path) -> list[str]:
        """The flags of a verb that reads one preference after three messages."""
        (tmp_path / "chat.jinja").write_text(self.CHAT, encoding="utf-8")
        row: dict[str, Any] = {"prompt": [{"role": role, "content": text} for role, text in self.PROMPT]}
        for name, text in zip(("chosen", "rejected"), self.CANDIDATES, strict=True):
            row[name] = [{"role": "assistant", "content": text}]
        (tmp_path / "talk.jsonl").write_text(json.dumps(row), encoding="utf-8")
        return ["--data", str(tmp_path / "talk.jsonl"), "--chat-template", str(tmp_path / "chat.jinja")]

    def sums(self, model: Path, candidate: str, learned_messages: tuple[int, ...]) -> tuple[float, int]:
        """Log-prob of the learnt messages by transformers, each with its end, and their tokens."""
        tokenizer = AutoTokenizer.from_pretrained(model)
        policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
        ids, is_counted = [tokenizer.bos_token_id], [False]
        for number, (role, text) in enumerate((*self.PROMPT, ("assistant", candidate))):
            content = tokenizer(text, add_special_tokens=False)["input_ids"]
            content += [tokenizer.eos_token_id] if role == "assistant" else []
            header = tokenizer(role, add_special_tokens=False)["input_ids"]
            ids += [*header, *content]
            is_counted += [False] * len(header) + [number in learned_messages] * len(content)
        with torch.no_grad():
            log_probs = policy(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        positions = [position for position, counts in enumerate(is_counted) if counts]
        return sum(float(log_probs[position - 1, ids[position]]) for position in positions), len(positions)

    @pytest.mark.parametrize(("learn", "learned_messages"), [("last", (3,)), ("all", (1, 3))])
    def test_evaluate_and_rank_count_the_turns_that_are_named(
        self, line, tiny_model, tmp_path, learn, learned_messages
    ):
        file, ranked = tmp_path / "out.jsonl", tmp_path / "ranked.jsonl"
        flags = [*line, "--learn", learn]
        assert run(["evaluate", str(tiny_model), *flags, "--per-example", str(file)]) == 0
        assert run(["rank", str(tiny_model), *flags, "--by", "mean_log_prob", "--output", str(ranked)]) == 0
        [candidates], [scores] = (
            [json.loads(row)[key] for row in path.read_text().splitlines()]
            for path, key in ((file, "candidates"), (ranked, "scores"))
        )
        for text, candidate, mean in zip(self.CANDIDATES, candidates, scores, strict=True):
            log_prob, tokens = self.sums(tiny_model, text, learned_messages)
            assert candidate["tokens"] == tokens
            assert candidate["log_prob"] == pytest.approx(log_prob, abs=1e-4)
            assert mean == pytest.approx(log_prob / tokens, abs=1e-4)

    @pytest.mark.parametrize("by", ["head", "reward"])
    def test_a_reward_has_no_turns(self, line, tiny_model, capsys, by):
        assert run(["rank", str(tiny_model), *line, "--learn", "all", "--by", by]) == 2
        assert "--by mean_log_prob" in capsys.readouterr().err
