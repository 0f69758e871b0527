"""One day for a run whose chat template writes today's date: when it is resumed, measured, asked and compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from penchant.comparison.config import load_bench
from penchant.comparison.run import compare
from penchant.config.run import load_config
from penchant.data.chat import ChatRenderer
from penchant.data.reading import read_groups
from penchant.data.rendering import Rendering
from penchant.engine.distributed import World
from penchant.errors import ConfigError
from penchant.evaluation.answering import Sampling, answer
from penchant.evaluation.held_out import Reading, score
from penchant.models.loading import load_tokenizer
from penchant.training.folder import on_one_day, run_writes_today
from penchant.training.run import train

# The model's words are few: the day decides which of two of them every conversation begins with.
TEMPLATE = (
    "<s> {{ 'cat' if strftime_now('%d') == '30' else 'dog' }} "
    "{% for m in messages %}{{ m.content }} {% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
)
FIRST, NEXT = "2026-11-30", "2026-12-01"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def turn(day: str) -> None:
        monkeypatch.setattr("penchant.evaluation.held_out.today", lambda: day)
        monkeypatch.setattr("penchant.training.folder.today", lambda: day)
        monkeypatch.setattr("penchant.comparison.run.today", lambda: day)

    return turn


@pytest.fixture
def conversations(tmp_path: Path, tiny_pairs: Path) -> Path:
    file = tmp_path / "conversations.jsonl"
    with file.open("w") as stream:
        for row in map(json.loads, tiny_pairs.read_text().splitlines()):
            sides = {name: [{"role": "assistant", "content": row[name].strip()}] for name in ("chosen", "rejected")}
            stream.write(json.dumps({"prompt": [{"role": "user", "content": row["prompt"]}], **sides}) + "\n")
    return file


@pytest.fixture
def dated(tmp_path: Path, conversations: Path, write_config: Any) -> Path:
    template = tmp_path / "template.jinja"
    template.write_text(TEMPLATE)
    return write_config(data={"train": str(conversations), "chat_template": str(template)}, evaluation={"samples": 0})


def recorded_day(folder: Path) -> Any:
    return yaml.safe_load((folder / "config.yaml").read_text())["data"]["date"]


@pytest.mark.slow
def test_a_run_resumes_on_the_day_it_was_begun(dated: Path, clock: Any, notices: pytest.LogCaptureFixture) -> None:
    clock(FIRST)
    folder = train(load_config(dated))
    assert recorded_day(folder) == FIRST
    assert any(FIRST in line for line in notices.messages)
    assert any(FIRST in line for line in json.loads((folder / "run.json").read_text())["notes"])
    clock(NEXT)
    for file in (dated, folder / "config.yaml"):
        train(load_config(file), resume=True)
    assert recorded_day(folder) == FIRST
    with pytest.raises(ConfigError, match=r"the data|data\.date \(was 2026-11-30, is 2026-12-01\)"):
        train(load_config(dated, [f"data.date={NEXT}"]), resume=True)


@pytest.mark.slow
def test_no_day_is_kept_where_no_template_writes_one(
    write_config: Any, clock: Any, notices: pytest.LogCaptureFixture
) -> None:
    clock(FIRST)
    file = write_config(training={"max_steps": 1})
    assert recorded_day(train(load_config(file))) is None
    train(load_config(file, [f"data.date={NEXT}", "output=" + str(file.parent / "other")]))
    assert f"data.date is {NEXT}, and no chat template of this run writes a date" in notices.messages


def test_a_run_is_measured_and_asked_on_its_day(
    dated: Path, conversations: Path, clock: Any, notices: pytest.LogCaptureFixture
) -> None:
    clock(FIRST)
    folder = train(load_config(dated, ["training.max_steps=1"]))
    clock(NEXT)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    groups = read_groups(conversations).groups[:4]
    notices.clear()
    world = World.single()
    scored_groups = score(str(folder), groups, world)
    assert notices.messages[0] == f"the chat template writes {FIRST} as today's date, as the run did"
    clock(FIRST)
    moved_folder = folder.rename(folder.with_name("moved"))
    (moved_folder / "config.yaml").unlink()
    assert [group.log_probs for group in score(str(moved_folder), groups, world)] == [
        group.log_probs for group in scored_groups
    ]
    clock(NEXT)
    next_day = score(str(moved_folder), groups, world)
    assert notices.messages[-1] == f"the chat template writes {NEXT} as today's date"
    assert [group.log_probs for group in next_day] != [group.log_probs for group in scored_groups]
    answer(str(moved_folder), [groups[0].prompt], Sampling(max_new_tokens=2))
    assert notices.messages[-1] == f"the chat template writes {NEXT} as today's date"


@pytest.mark.slow
def test_a_comparison_goes_on_on_its_day(dated: Path, tmp_path: Path, clock: Any) -> None:
    base = yaml.safe_load(dated.read_text())
    values = {
        "output": str(tmp_path / "bench"),
        "base": {key: base[key] for key in ("model", "data")} | {"training": {"max_steps": 1, "batch_size": 8}},
        "methods": ["dpo"],
        "baseline": "dpo",
        "seeds": [0],
        "measure": {"samples": 2, "max_new_tokens": 2},
    }
    file = tmp_path / "bench.yaml"
    file.write_text(yaml.safe_dump(values))
    clock(FIRST)
    first_day = compare(load_bench(file), str(file))
    clock(NEXT)
    file.write_text(yaml.safe_dump({**values, "methods": ["dpo", "ipo"]}))
    next_day = compare(load_bench(file), str(file))
    assert {recorded_day(Path(cell.folder)) for cell in next_day.cells if cell.method != "start"} == {FIRST}
    assert [cell.metrics for cell in first_day.cells if cell.method == "dpo"] == [
        cell.metrics for cell in next_day.cells if cell.method == "dpo"
    ]
    with pytest.raises(ConfigError, match="another base"):
        compare(load_bench(file, [f"base.data.date={NEXT}"]), str(file))


def test_the_keys_of_a_run_decide_how_its_rows_are_written(dated: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.jinja"
    words.write_text("{{ strftime_now('%d') }} {{ word }} {{ messages[0].content }}")
    config = load_config(
        dated, [f"data.chat_template={words}", "data.date=2001-02-03", "data.chat_template_kwargs={word: river}"]
    )
    tokenizer = load_tokenizer(config.model, chat_template=config.data.chat_template)
    prompt = ChatRenderer(tokenizer, config.rendering).prompt(({"role": "user", "content": "the"},))
    assert prompt.text == "03 river the"


def test_a_day_of_a_folder_that_never_began_is_not_taken_over(dated: Path, clock: Any) -> None:
    config = load_config(dated)
    folder = Path(config.output)
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"date": FIRST}}))
    clock(NEXT)
    assert on_one_day(config).data.date == NEXT
    (folder / "run.json").write_text("{}")
    assert on_one_day(config).data.date == FIRST


def test_a_day_that_was_asked_for_stays(dated: Path, clock: Any) -> None:
    clock(FIRST)
    folder = train(load_config(dated, ["training.max_steps=1"]))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    assert Reading().on_one_day(str(folder)).rendering.date == FIRST
    assert Reading(rendering=Rendering(date=NEXT)).on_one_day(str(folder)).rendering.date == NEXT


def test_references_and_reward_models_have_clocks_too(write_config: Any, tiny_model: Path, tmp_path: Path) -> None:
    clocked = tmp_path / "clocked"
    shutil.copytree(tiny_model, clocked)
    (clocked / "chat_template.jinja").write_text(TEMPLATE)
    assert not run_writes_today(load_config(write_config()))
    assert run_writes_today(load_config(write_config(reference=str(clocked))))
    assert run_writes_today(load_config(write_config(reward={"model": str(clocked)})))


def test_a_reference_reads_what_the_settings_say(dated: Path, conversations: Path, tiny_model: Path) -> None:
    template = load_config(dated).data.chat_template
    groups, world = read_groups(conversations).groups[:4], World.single()
    for day in (FIRST, NEXT):
        reading = Reading(chat_template=template, rendering=Rendering(date=day))
        for scored in score(str(tiny_model), groups, world, reference=str(tiny_model), reading=reading):
            assert scored.reference_log_probs == pytest.approx(scored.log_probs, abs=1e-5)
