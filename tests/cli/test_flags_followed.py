"""Each reading flag changes what its verb does, on every verb that has it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from penchant.cli.main import run
from penchant.engine import scoring
from penchant.evaluation.tool_calls import latency as edge
from penchant.models.preference_head import PreferenceHead, save_head

RunJson = Callable[..., dict[str, Any]]

# Refuses what is said of a river; a pair of variables says which of two errors it raises.
TEMPLATE = (
    "<s> {% for m in messages %}{% if 'river' in m.content %}{{ raise_exception('no rivers') }}{% endif %}"
    "{{ m.content }} {% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
)
NEEDS_VARIABLE = "{% if not quick %}{{ raise_exception('not quick') }}{% endif %}" + TEMPLATE
NEEDS_DAY = "{% if strftime_now('%Y') != '2001' %}{{ raise_exception('another day') }}{% endif %}" + TEMPLATE
LONG = "the old cat sees a big dog then it runs to small house by tree"


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content} for content in contents]


def pair(prompt: str, chosen: str = "a dog runs", rejected: str = "a cat", *, messages: bool = False) -> dict[str, Any]:
    sides = {"chosen": chosen, "rejected": rejected}
    if not messages:
        return {"prompt": prompt, **{name: f" {text}".rstrip() for name, text in sides.items()}}
    return {
        "prompt": turns(prompt),
        **{name: [{"role": "assistant", "content": text}] for name, text in sides.items()},
    }


def question(prompt: str, *options: str) -> dict[str, Any]:
    return {"prompt": prompt, "options": options or ("a dog", "bird"), "answer": 0}


def write_rows(file: Path, *rows: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def reward_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    transformers.AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def headed_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("head") / "model"
    shutil.copytree(tiny_model, folder)
    torch.manual_seed(0)
    save_head(folder, PreferenceHead(32, "tanh"))
    return folder


@dataclass(frozen=True)
class Case:
    """What a flag changes.

    Attributes:
        rows: prompts, or texts of a whole row, of the data.
        flag: the arguments.
        template: the chat template's text; None has plain rows and no template.
        common: arguments with and without the flag.
        fails_without: whether the verb fails only without the flag; otherwise it fails only with it.
    """

    flag: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...] = (("the old cat",), ("a bird",))
    template: str | None = None
    common: tuple[str, ...] = ()
    fails_without: bool = True


CASES = {
    "--format": Case(("--format", "no_such_format"), fails_without=False),
    "--columns": Case(("--columns", "prompt=no_such_column"), fails_without=False),
    "--split": Case(("--split", "no_such_split"), fails_without=False),
    "--chat-template-kwargs": Case(("--chat-template-kwargs", "quick=true"), template=NEEDS_VARIABLE),
    "--date": Case(("--date", "2001-02-03"), template=NEEDS_DAY),
    "--as-chat": Case(("--as-chat", "true"), fails_without=False),
    "--control-text": Case(("--control-text", "error"), (("the </s> cat",),), template=TEMPLATE, fails_without=False),
    "--max-length": Case(("--max-length", "4"), fails_without=False),
    "--truncation": Case(("--truncation", "drop"), (("the cat",), (LONG,)), common=("--max-length", "12")),
    "--refused": Case(("--refused", "drop"), (("the old cat",), ("a river",)), template=TEMPLATE),
    "--empty": Case(("--empty", "drop"), (("the old cat",), ("a bird", "a dog", ""))),
    "--identical": Case(("--identical", "drop"), (("the old cat",), ("a bird", "a dog", "a dog"))),
}
SCORING = tuple(CASES)
VERBS = {
    "evaluate": SCORING,
    "rank": SCORING,
    "rank --by head": SCORING[3:],
    "rank --by reward": SCORING,
    "score": SCORING[:10],
    "generate": SCORING[:10],
    "data show": SCORING,
    "tasks": tuple(name for name in SCORING if name not in ("--format", "--identical")),
}


@pytest.fixture
def command(
    tiny_model: Path, reward_model: Path, headed_model: Path, tmp_path: Path
) -> Callable[[str, Case], list[str]]:
    def build_command(verb: str, case: Case) -> list[str]:
        """A verb's command line on the case's data, without its flag."""
        messages = case.template is not None
        rows = [question(*row) if verb == "tasks" else pair(*row, messages=messages) for row in case.rows]
        file = write_rows(tmp_path / "rows.jsonl", *rows)
        line: dict[str, list[object]] = {
            "evaluate": ["evaluate", tiny_model, "--data", file],
            "rank": ["rank", tiny_model, "--data", file],
            "rank --by head": ["rank", headed_model, "--data", file, "--by", "head"],
            "rank --by reward": ["rank", reward_model, "--data", file, "--by", "reward"],
            "score": ["score", file, "--output", tmp_path / "scores.jsonl", "--model", reward_model],
            "generate": ["generate", tiny_model, file, "--max-new-tokens", "2"],
            "data show": ["data", "show", file, "--tokenizer", tiny_model],
            "tasks": ["tasks", tiny_model, "--task", f"mine={file}"],
        }
        template = tmp_path / "template.jinja"
        if messages:
            template.write_text(str(case.template))
        template_flags = ["--chat-template", template] if messages else []
        return [str(word) for word in [*line[verb], *template_flags, *case.common]]

    return build_command


@pytest.mark.slow_but("evaluate---max-length", "evaluate---truncation", "score-")
@pytest.mark.parametrize(("verb", "flag"), [(verb, flag) for verb, flags in VERBS.items() for flag in flags])
def test_a_flag_is_followed(verb, flag, command, tmp_path, capsys):
    case = CASES[flag]
    line = command(verb, case)
    if verb == "data show" and flag == "--max-length":
        line += ["--truncation", "error"]
    code_without = run(line)
    output_without = "".join(capsys.readouterr())
    (tmp_path / "scores.jsonl").unlink(missing_ok=True)
    code_with = run([*line, *case.flag])
    output_with = "".join(capsys.readouterr())
    assert (code_without, code_with) == ((2, 0) if case.fails_without else (0, 2)), output_without + output_with
    if case.fails_without and flag in ("--truncation", "--refused", "--empty", "--identical"):
        assert "dropped: 1 of 2" in " ".join(output_with.split())


@pytest.mark.parametrize("verb", ["evaluate", "rank", "rank --by reward", "score", "generate", "data show"])
def test_a_template_is_followed(verb, command, capsys):
    line = command(verb, Case((), template=TEMPLATE))
    index = line.index("--chat-template")
    assert run(line[:index] + line[index + 2 :]) == 2
    assert "chat template" in capsys.readouterr().err
    assert run(line) == 0, capsys.readouterr().err


@pytest.mark.slow_but("evaluate", "score")
@pytest.mark.parametrize("verb", ["evaluate", "rank", "rank --by reward", "score", "tasks"])
def test_the_dtype_is_followed(verb, command, tmp_path, capsys):
    line = command(verb, Case(()))
    for flag, has_note in ([], False), (["--dtype", "bfloat16"], True):
        (tmp_path / "scores.jsonl").unlink(missing_ok=True)
        assert run([*line, *flag]) == 0
        assert ("half precision rounds" in "".join(capsys.readouterr())) is has_note


@pytest.mark.parametrize("verb", ["evaluate", "rank", "tasks"])
def test_the_token_budget_is_followed(verb, command, monkeypatch):
    budgets: list[int] = []

    def spying(costs, budget):
        budgets.append(budget)
        return [[i] for i in range(len(costs))]

    monkeypatch.setattr(scoring, "split_into_micro_batches", spying)
    assert run([*command(verb, Case(())), "--token-budget", "77"]) == 0
    assert set(budgets) == {77}


class TestCheck:
    """What `data check --tokenizer` counts."""

    @pytest.fixture
    def checked(self, tmp_path: Path, tiny_model: Path, run_json: RunJson) -> RunJson:
        (tmp_path / "template.jinja").write_text(TEMPLATE)
        template = ["--chat-template", tmp_path / "template.jinja"]
        return lambda file, *flags: run_json("data", "check", file, "--tokenizer", tiny_model, *template, *flags)

    def test_as_chat(self, tmp_path, checked):
        file = write_rows(tmp_path / "rows.jsonl", pair("the old cat"), pair("a bird"))
        plain, chat = checked(file)["checks"], checked(file, "--as-chat", "true")["checks"]
        assert plain["plain_text_beside_chat_template"]["count"] == 2
        assert "plain_text_beside_chat_template" not in chat
        assert chat["control_text"]["of"] > 0

    def test_the_template(self, tmp_path, checked, tiny_model, run_json):
        file = write_rows(tmp_path / "rows.jsonl", pair("the old cat", messages=True))
        faults = {name for name, hits in checked(file)["checks"].items() if hits["count"]}
        checks_without = run_json("data", "check", file, "--tokenizer", tiny_model)["checks"]
        assert {name for name, hits in checks_without.items() if hits["count"]} - faults == {"no_chat_template"}


class TestShow:
    def test_learned_turns_are_marked(self, tmp_path, tiny_model, capsys):
        conversation = [*turns("the old cat"), {"role": "assistant", "content": "runs"}, *turns("a bird")]
        row = {"prompt": conversation, "completion": [{"role": "assistant", "content": "sings"}]}
        (tmp_path / "template.jinja").write_text(TEMPLATE)
        file = write_rows(tmp_path / "rows.jsonl", row)
        line = ["data", "show", file, "--tokenizer", tiny_model, "--chat-template", tmp_path / "template.jinja"]
        assert run([*map(str, line)]) == 0
        assert "earlier assistant turns not learnt" in capsys.readouterr().out
        assert run([*map(str, line), "--learn", "all"]) == 0
        assert "earlier assistant turns learnt" in capsys.readouterr().out


class TestTasks:
    def test_split_and_columns(self, tmp_path, tiny_model, run_json):
        for name, count in (("train", 3), ("test", 1)):
            rows = [{**question(f"the cat {i}"), "asked": f"the cat {i}"} for i in range(count)]
            write_rows(tmp_path / f"{name}.jsonl", *({k: v for k, v in row.items() if k != "prompt"} for row in rows))
        line = ["tasks", tiny_model, "--task", f"mine={tmp_path}", "--columns", "prompt=asked", "--split", "test"]
        [task] = run_json(*line)["tasks"].values()
        assert task["questions"] == 1

    @pytest.fixture
    def chat_model(self, tiny_model, tmp_path):
        folder = tmp_path / "chat"
        shutil.copytree(tiny_model, folder)
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        return folder

    @pytest.mark.parametrize(
        ("flags", "form"),
        [
            ([], "messages, by"),
            (["--as-chat", "true"], "messages, by"),
            (["--as-chat", "false"], "plain text, options"),
        ],
    )
    def test_as_chat(self, tmp_path, chat_model, flags, form, run_json):
        file = write_rows(tmp_path / "rows.jsonl", question("the cat"))
        assert f"questions are read as {form}" in run_json("tasks", chat_model, "--task", f"mine={file}", *flags)["err"]


class TestToolCalls:
    @pytest.fixture
    def line(self, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        monkeypatch.setattr(edge, "run_in_subprocess", lambda function, *arguments: function(*arguments))
        row = {"id": "i0", "question": [turns("the </s> cat")], "function": []}
        folder = tmp_path / "questions"
        folder.mkdir()
        write_rows(folder / "BFCL_v4_irrelevance.json", row)
        line = ["tool-calls", tiny_model, "--data", folder, "--max-new-tokens", 2, "--timed", 1, "--json"]
        return [*map(str, line)]

    @pytest.mark.slow_but("--date-native")
    @pytest.mark.parametrize("style", ["messages", "native"])
    @pytest.mark.parametrize("flag", ["--chat-template-kwargs", "--date", "--control-text"])
    def test_a_flag_is_followed(self, line, tmp_path, flag, style, capsys):
        case, template = CASES[flag], tmp_path / "template.jinja"
        # `native` refuses a template that ignores tools.
        template.write_text("{% if tools %}{% endif %}" + str(case.template))
        line = [*line, "--style", style, "--chat-template", str(template)]
        codes = run(line), run([*line, *case.flag])
        assert codes == ((2, 0) if case.fails_without else (0, 2)), capsys.readouterr().err

    def test_latency_is_measured_with_the_template_flags(self, line, tmp_path, monkeypatch, capsys):
        template = tmp_path / "template.jinja"
        template.write_text(NEEDS_VARIABLE)
        settings: list[Any] = []
        measure = edge.measure_latency

        def spying(setting, questions):
            settings.append(setting)
            return measure(setting, questions)

        monkeypatch.setattr(edge, "measure_latency", spying)
        assert run([*line, "--chat-template", str(template), "--chat-template-kwargs", "quick=true"]) == 0
        [setting] = settings
        assert setting.chat_template == str(template)
        assert setting.rendering.template_kwargs == {"quick": True}


class TestRefusedPrompts:
    def test_generate_drops_and_counts_them(self, tmp_path, tiny_model, run_json, capsys):
        prompts = [turns("the old cat"), turns("a river"), turns("a bird")]
        (tmp_path / "template.jinja").write_text(TEMPLATE)
        file = write_rows(tmp_path / "prompts.jsonl", *({"prompt": prompt} for prompt in prompts))
        line = ["generate", tiny_model, file, "--chat-template", tmp_path / "template.jinja", "--max-new-tokens", 2]
        assert run([*map(str, line)]) == 2
        assert "--refused drop" in capsys.readouterr().err
        document = run_json(*line, "--refused", "drop")
        assert [row["prompt"] for row in document["answers"]] == [prompts[0], prompts[2]]
        assert "refused dropped: 1 of 3 prompts" in document["err"]

    def test_generate_refuses_a_file_without_a_usable_prompt(self, tmp_path, tiny_model, capsys):
        (tmp_path / "template.jinja").write_text(TEMPLATE)
        file = write_rows(tmp_path / "prompts.jsonl", {"prompt": turns("a river")})
        line = ["generate", tiny_model, file, "--chat-template", tmp_path / "template.jinja", "--refused", "drop"]
        assert run([*map(str, line)]) == 2
        assert "no prompt is left" in capsys.readouterr().err
