"""Advice that can be followed: every flag and key that a remedy names exists where the remedy is printed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from cyclopts import App
from pydantic import BaseModel

import penchant
from penchant.cli.main import app, run, verb_of
from penchant.cli.output import CONVERT, OPTION, OPTIONS, RUN_SECTIONS, Verb, advice
from penchant.cli.recipe import RECIPES
from penchant.comparison.config import Bench
from penchant.config.run import RunConfig
from penchant.errors import rename_options

SOURCE = Path(penchant.__file__).parent
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
COMMAND = re.compile(r"penchant (?P<verb>(?:data )?[a-z-]+)(?P<rest>(?:(?!penchant )[^;\n])*)")
SECTIONS = "|".join((*RUN_SECTIONS, "objective", "base", "measure"))
KEY = re.compile(rf"(?<![\w./-])(?P<key>(?:{SECTIONS})\.[a-z_.]*[a-z_])(?=\b)(?![(\[])")
ASSIGNED = re.compile(r"(?<![\w.\"'{(/-])(?P<key>[a-z_]+)=(?=[A-Z\[{\w])")

VERBS_OF = {
    "evaluation/choices_readers.py": ["tasks"],
    "evaluation/choices_suites.py": ["tasks"],
    "evaluation/score_file.py": ["score"],
    "evaluation/rewards.py": ["score"],
    "evaluation/tool_calls/grammars.py": ["tool-calls"],
    "evaluation/tool_calls/styles.py": ["tool-calls"],
    "models/gguf/writing.py": ["export"],
    "models/saving.py": ["train"],
    "evaluation/reward_preferences.py": ["rank"],
    "data/checks.py": ["data check"],
    "serving/access.py": ["serve"],
    "serving/run.py": ["serve"],
    "recipes/self_improve/loop.py": ["recipe"],
    "cli/evaluate.py": ["score", "rank", "generate"],
    "cli/tasks.py": ["tasks"],
    "cli/recipe.py": ["recipe", "recommend"],
    "cli/data.py": ["data check", "data show", "data split", "data convert", "data review"],
    "cli/main.py": ["train"],
    "training/folder.py": ["train"],
}
"""Modules whose remedies name a flag outside of a whole command, and the verbs that print them."""
TRAINING_ONLY = (
    "training/", "planning/", "diffusion/", "models/lora", "models/adapter", "engine/distributed",
    "comparison/", "recipes/", "config/", "cli/compare.py", "cli/plan.py", "cli/main.py", "data/label_noise",
)  # fmt: skip
"""Where keys of a run need no flag: only verbs with a configuration come here."""
PROSE = {
    "engine/distributed.py": {"--nproc-per-node"},
    "data/files.py": {"--repo-type", "--local-dir"},
    "evaluation/tool_calls/multi_turn.py": {"--no-deps"},
}
"""Flags of other programs."""


def verbs(parent: App = app, parents: tuple[str, ...] = ()) -> Iterator[Verb]:
    for name in parent:
        if name.startswith("-"):
            continue
        names = (*parents, name)
        if all(command.startswith("-") for command in parent[name]):
            verb = verb_of(list(names))
            assert verb is not None
            yield verb
        else:
            yield from verbs(parent[name], names)


VERBS = {verb.name: verb for verb in verbs()}


def keys_of(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in kind.model_fields.items():
        yield prefix + name
        for option in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(option, type) and issubclass(option, BaseModel):
                yield from keys_of(option, f"{prefix}{name}.")


RUN_KEYS = {*keys_of(RunConfig), "objective.name", "objective.beta"}
BENCH_KEYS = {*keys_of(Bench), *(f"base.{key}" for key in RUN_KEYS)}


def text_of(node: ast.AST) -> str:
    """A string's text, with X for the values of an f-string."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) if isinstance(part, ast.Constant) else "X" for part in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    if isinstance(node, ast.IfExp):
        return f"{text_of(node.body)}; {text_of(node.orelse)}"
    return ""


@cache
def texts(only_fixes: bool = False) -> list[tuple[str, int, str]]:
    """(file, line, text) of every text of the program but docstrings; or of the texts given as `fix` alone."""
    rows = []
    for file in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body
            if isinstance(node.body[0], ast.Expr)
        }
        inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        fixes = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "fix"}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in docstrings | inside:
                in_scope = id(node) in fixes or not only_fixes
                if in_scope and (text := text_of(node)):
                    rows.append((file.relative_to(SOURCE).as_posix(), node.lineno, text))
    return rows


def test_there_are_remedies_to_check():
    assert len(texts(only_fixes=True)) > 200
    assert len(VERBS) > 20


def test_flags_exist_on_the_verbs_that_print_them():
    wrong = []
    for file, line, text in texts():
        if "help=" in text or FLAG.fullmatch(text):
            continue
        outside = text
        for command in COMMAND.finditer(text):
            verb = VERBS.get(command["verb"]) or VERBS.get(command["verb"].split()[0])
            for flag in FLAG.findall(command["rest"]):
                if verb is None or flag not in verb.flags:
                    wrong.append(f"{file}:{line}: penchant {command['verb']} has no {flag}")
            outside = outside.replace(command[0], "")
        for flag in FLAG.findall(outside):
            printing = [verb for verb in VERBS_OF.get(file, []) if flag in VERBS[verb].flags]
            if not printing and flag not in PROSE.get(file, ()) and file not in ("cli/output.py", "cli/flags.py"):
                wrong.append(f"{file}:{line}: {flag} in {text!r}")
    assert not wrong, "\n".join(wrong)


def test_keys_are_keys_of_a_configuration_and_flags_of_verbs():
    wrong = []
    for file, line, text in texts():
        if file.startswith("cli_advice") or text.endswith((".py", ".json")):
            continue
        for match in KEY.finditer(text):
            key = match["key"]
            if key.endswith((".jsonl", ".json", ".csv", ".py")) or (key in BENCH_KEYS and "comparison" in file):
                continue
            if key not in RUN_KEYS | BENCH_KEYS and not key.startswith("objective."):
                wrong.append(f"{file}:{line}: there is no key {key} ({text!r})")
            elif key not in OPTIONS and not file.startswith(TRAINING_ONLY) and not key.startswith("objective."):
                wrong.append(f"{file}:{line}: {key} has no flag ({text!r})")
    assert not wrong, "\n".join(wrong)


def test_bare_keys_in_remedies_are_keys_of_a_run():
    wrong = []
    for file, line, text in texts(only_fixes=True):
        for match in ASSIGNED.finditer(text):
            if match["key"] not in RunConfig.model_fields and file not in BARE:
                wrong.append(f"{file}:{line}: {match['key']}= ({text!r})")
    assert not wrong, "\n".join(wrong)


BARE = ("data/files_text.py", "models/adapter_vocabulary.py", "cli/flags.py", "cli/tasks.py", "config/section.py")
"""Remedies with another language's code, a flag's NAME=VALUE, or the word key itself."""


SAMPLES = {"data.columns": "{prompt: question, chosen: the better}", "data.chat_template_kwargs": "{thinking: false}"}
RECIPE_VERBS = {f"recipe {name}": verb_of(["recipe", name, "file.yaml"]) for name in RECIPES}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", [*VERBS, *RECIPE_VERBS])
@pytest.mark.parametrize("assigned", [True, False])
def test_configuration_keys_become_flags_of_every_verb(name, option, assigned):
    """What the library names as a run's key can be typed on the verb as it is printed, or is no option any more."""
    verb = VERBS.get(name) or RECIPE_VERBS[name]
    assert verb is not None
    setting = f"{option}={SAMPLES.get(option, 'drop')}" if assigned else option
    printed = advice(f"or leave them out: {setting}, counted", verb)
    outside = printed
    if (start := printed.find(CONVERT)) >= 0:
        assert set(FLAG.findall(printed[start:])) <= VERBS["data convert"].flags
        outside = printed[:start]
    assert set(FLAG.findall(outside)) <= verb.flags
    keys = [match["key"] for match in OPTION.finditer(outside)]
    if name in ("train", "plan"):
        assert printed.endswith(f"{setting}, counted")
    elif name in ("compare", "sweep"):
        assert f"base.{setting}" in printed
    elif not name.startswith("recipe"):
        assert not keys
    else:
        assert set(keys) <= set(verb.keys)


def test_options_are_keys_of_a_run_and_converted_only_where_a_file_can_be():
    assert set(OPTIONS) <= RUN_KEYS
    converting = {flag for flag, otherwise in OPTIONS.values() if otherwise is None}
    assert converting == {"--columns", "--format", "--split"} <= VERBS["data convert"].flags


def test_mappings_become_flags_that_a_shell_reads():
    columns = advice("data.columns={prompt: question, chosen: the better}", VERBS["evaluate"])
    assert columns == "--columns prompt=question --columns chosen='the better'"
    variables = advice("data.chat_template_kwargs={x: false}", VERBS["evaluate"])
    assert variables == "--chat-template-kwargs x=false"


def test_rename_options_changes_configuration_keys_only():
    keys = {"training.": "sft.training.", "reward.": "verifier.reward.", "data.split": "data.held_out_split"}
    text = "training.seed=1, a.training.seed, reward.py:score and reward.label=1; while training. Leave data.split out"
    assert rename_options(text, keys) == (
        "sft.training.seed=1, a.training.seed, reward.py:score and verifier.reward.label=1; while training. Leave "
        "data.held_out_split out"
    )


def test_names_of_files_are_left_alone():
    for text in ("data.jsonl, line 3", "my/data.truncation", "tokenizer.chat_template", "base.data.truncation"):
        assert advice(text, VERBS["evaluate"]) == text


class TestPrinted:
    """By the command line, in the words of each verb."""

    def test_run_and_comparison(self, tiny_model, tmp_path, capsys):
        import yaml

        file = tmp_path / "odd.jsonl"
        file.write_text('{"question": "a", "chosen": "b", "rejected": "c"}\n')
        values = {
            "model": str(tiny_model),
            "data": {"train": str(file), "format": "pairs"},
            "output": str(tmp_path / "out"),
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump({**values, "objective": {"name": "dpo"}}))
        assert run(["train", str(tmp_path / "run.yaml")]) == 2
        assert "data.columns={prompt: " in capsys.readouterr().err
        bench = {
            "base": values | {"data": {**values["data"], "held_out": 0.5}},
            "methods": ["dpo", "ipo"],
            "baseline": "dpo",
            "output": "x",
        }
        bench["base"].pop("output")
        (tmp_path / "bench.yaml").write_text(yaml.safe_dump(bench))
        assert run(["compare", str(tmp_path / "bench.yaml")]) == 2
        assert "base.data.columns={prompt: " in capsys.readouterr().err
