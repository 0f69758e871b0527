"""YAML that would train another method than it seems to, or that expands without end."""

from __future__ import annotations

import pytest
import yaml

from penchant.config.run import load_config, override
from penchant.config.section import LARGEST, parse_yaml
from penchant.errors import ConfigError

RUN = """model: m
data: pairs.jsonl
output: runs/first
objective: {name: dpo}
training: {learning_rate: 1.0e-5}
"""
BOMB = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + alias] * 9)}]\n" for alias, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("further_lines", "message"),
    [
        ("objective: {name: ipo}\n", "the key 'objective' appears twice, in lines 4 and 6"),
        ("logging:\n  every: 1\n  every: 2\n", "the key 'every' appears twice, in lines 7 and 8"),
        ("evaluation: {samples: 1, samples: 2}\n", "the key 'samples' appears twice, in lines 6 and 6"),
        ("lora: &self {rank: *self}\n", "an alias contains itself"),
        (BOMB, f"it expands to more than {LARGEST} values"),
        ("x: " + "[" * 5000 + "]" * 5000 + "\n", "it is nested too deeply"),
    ],
    ids=["a section", "a key", "in one line", "a loop", "a bomb", "depth"],
)
def test_is_refused(tmp_path, further_lines, message):
    """The last of two keys won in silence: another method and another rate were trained."""
    file = tmp_path / "run.yaml"
    file.write_text(RUN + further_lines)
    with pytest.raises(ConfigError) as error:
        load_config(file, [])
    assert message in error.value.what
    assert error.value.where == str(file)


def test_override_has_the_same_size_limit():
    with pytest.raises(ConfigError, match="is not a YAML value"):
        override({}, "data={train: a, train: b}")


def test_anchors_within_the_limits_are_read():
    text = "a: &shared {x: 1}\nb: *shared\nc: {<<: *shared, y: 2}\n'1': text\n1: number\n"
    assert parse_yaml(text) == {
        "a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}, "1": "text", 1: "number",
    }  # fmt: skip
    assert parse_yaml("") is None
    with pytest.raises(yaml.YAMLError):
        parse_yaml("a: [")
