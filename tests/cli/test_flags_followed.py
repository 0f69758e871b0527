"""Each reading flag changes what its verb does, on every verb that has it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penchant.cli import run

# Refuses two turns of a user in a row.
STRICT = (
    "<s> {% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }} "
    "{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
)

Answer = Callable[..., dict[str, Any]]


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Answer:
    """Runs a command line; its JSON, and what it told under ``err``."""

    def run_command(*arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        code = run([*map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        assert code == 0, err
        return {**json.loads(out), "err": err}

    return run_command


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content} for content in contents]


def write_rows(file: Path, *rows: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def strict(tmp_path: Path) -> Path:
    file = tmp_path / "strict.jinja"
    file.write_text(STRICT)
    return file


class TestRefusedPrompts:
    def test_generate_drops_and_counts_them(self, tmp_path, strict, tiny_model, answer, capsys):
        prompts = [turns("the old cat"), turns("the", "cat"), turns("a river")]
        file = write_rows(tmp_path / "prompts.jsonl", *({"prompt": prompt} for prompt in prompts))
        line = ["generate", tiny_model, file, "--chat-template", strict, "--max-new-tokens", 2]
        assert run([*map(str, line)]) == 2
        assert "--refused drop" in capsys.readouterr().err
        document = answer(*line, "--refused", "drop")
        assert [row["prompt"] for row in document["answers"]] == [prompts[0], prompts[2]]
        assert "refused dropped: 1 of 3 prompts" in document["err"]

    def test_generate_needs_one_that_is_left(self, tmp_path, strict, tiny_model, capsys):
        file = write_rows(tmp_path / "prompts.jsonl", {"prompt": turns("the", "cat")})
        line = ["generate", tiny_model, file, "--chat-template", strict, "--refused", "drop"]
        assert run([*map(str, line)]) == 2
        assert "no prompt is left" in capsys.readouterr().err
