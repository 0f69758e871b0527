"""Rows that the chat template or the tokenizer refuses: an error names them, or they are dropped and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from penchant.config.run import load_config
from penchant.data.groups import PreferenceGroup
from penchant.data.rendering import Rendering
from penchant.data.second_reading import retokenize_groups
from penchant.data.tokenization import readable_prompts, tokenize_groups
from penchant.engine.distributed import World
from penchant.errors import DataError
from penchant.evaluation.answering import answerable_prompts, distinct_prompts
from penchant.evaluation.held_out import Reading, score
from penchant.evaluation.ranking import rank
from penchant.training.run import train

TEMPLATE = (
    "<s> {% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }} "
    "{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
)
DROP = Rendering(refused="drop")


def group_of(*turns: tuple[str, str], name: str = "0") -> PreferenceGroup:
    prompt: Any = tuple({"role": role, "content": content} for role, content in turns)
    return PreferenceGroup(prompt, ("a dog runs", "a cat"), preferred=0, id=name)


GOOD = [group_of(("user", "the old cat"), name="good"), group_of(("user", "a river"), name="fine")]
BAD = group_of(("user", "the"), ("user", "cat"), name="bad")


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    loaded = AutoTokenizer.from_pretrained(tiny_model)
    loaded.chat_template = TEMPLATE
    return loaded


def test_the_error_names_refused_groups_and_the_setting(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"roles must alternate \(1 of 3 groups like this: bad\)") as caught:
        tokenize_groups([*GOOD, BAD], tokenizer, max_length=100)
    assert "data.refused=drop" in str(caught.value.fix)


def test_dropped_and_counted(tokenizer: Any) -> None:
    tokenized, report = tokenize_groups([GOOD[0], BAD, GOOD[1]], tokenizer, max_length=100, rendering=DROP)
    assert [group.group for group in tokenized] == GOOD
    assert report.counts["refused_by_template_dropped"] == 1
    assert report.examples["refused_by_template_dropped"] == ["bad"]
    with pytest.raises(DataError, match="no group is left of 1"):
        tokenize_groups([BAD], tokenizer, max_length=100, rendering=DROP)
    assert readable_prompts([BAD.prompt, GOOD[0].prompt], tokenizer, DROP) == [GOOD[0].prompt]
    assert readable_prompts([BAD.prompt], tokenizer) == [BAD.prompt]


def test_texts_that_the_tokenizer_cannot_read_are_dropped_too() -> None:
    raw = Tokenizer(
        models.BPE(vocab={letter: i for i, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[])
    )
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="!")
    groups = [PreferenceGroup("a", ("b", "c"), id="good"), PreferenceGroup("\ud83d", ("b", "c"), id="bad")]
    tokenized, report = tokenize_groups(groups, letters, max_length=100, rendering=DROP)
    assert [group.group.id for group in tokenized] == ["good"]
    assert report.examples == {"not_readable_dropped": ["bad"]}
    with pytest.raises(DataError, match="cannot read the text"):
        tokenize_groups(groups, letters, max_length=100)


def test_a_reference_does_not_drop_groups_of_the_policy(tokenizer: Any) -> None:
    lenient = TEMPLATE.replace("raise_exception('roles must alternate')", "''")
    tokenizer.chat_template = lenient
    tokenized, _ = tokenize_groups([*GOOD, BAD], tokenizer, max_length=100)
    tokenizer.chat_template = TEMPLATE
    with pytest.raises(DataError, match="roles must alternate"):
        retokenize_groups(tokenized, tokenizer, context=100, rendering=DROP)


@pytest.fixture
def rows(tmp_path: Path) -> tuple[Path, Path]:
    template, file = tmp_path / "template.jinja", tmp_path / "rows.jsonl"
    template.write_text(TEMPLATE)
    with file.open("w") as stream:
        for number, group in enumerate([*GOOD * 4, BAD]):
            sides = [[{"role": "assistant", "content": text}] for text in group.candidates]
            row = {"id": f"{group.id}{number}", "prompt": group.prompt, "chosen": sides[0], "rejected": sides[1]}
            stream.write(json.dumps(row) + "\n")
    return template, file


def test_a_run_drops_refused_groups_everywhere(
    rows: tuple[Path, Path], write_config: Any, notices: pytest.LogCaptureFixture
) -> None:
    template, file = rows
    data = {"train": str(file), "held_out": str(file), "chat_template": str(template)}
    config = write_config(data=data, training={"max_steps": 1})
    with pytest.raises(DataError, match="roles must alternate"):
        train(load_config(config))
    train(load_config(config, ["data.refused=drop"]))
    assert "training: refused by template dropped: 1 of 9 groups (bad8)" in notices.messages
    assert "held-out: refused by template dropped: 1 of 9 groups (bad8)" in notices.messages


def test_evaluate_rank_and_samples_drop_refused_groups(
    rows: tuple[Path, Path], tiny_model: Path, notices: pytest.LogCaptureFixture
) -> None:
    reading = Reading(chat_template=str(rows[0]), rendering=DROP)
    world, groups = World.single(), [*GOOD, BAD]
    assert len(score(str(tiny_model), groups, world, reading=reading)) == 2
    assert any("refused by template dropped: 1 of 3 groups" in line for line in notices.messages)
    assert len(rank(str(tiny_model), groups, world, by="log_prob", reading=reading).groups) == 2
    answerable = answerable_prompts(str(tiny_model), distinct_prompts(groups), 2, reading)
    assert (answerable.prompts, answerable.refused_count, answerable.too_long_count) == (distinct_prompts(GOOD), 1, 0)
