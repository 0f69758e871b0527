"""Checks of preference data: hand-worked groups, then real data with its published numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.data.check_report import CheckReport, Finding, Hits, Quantiles, Ties
from penchant.data.checks import check_groups
from penchant.data.groups import PreferenceGroup
from penchant.errors import ConfigError, DataError

QUESTION = ({"role": "user", "content": "Why?"},)
CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}END{% endfor %}"


def pair(prompt: str, chosen: str, rejected: str, name: str = "0", **fields: Any) -> PreferenceGroup:
    return PreferenceGroup(prompt, (chosen, rejected), preferred=0, id=name, **fields)


def findings_by_name(report: CheckReport) -> dict[str, Finding]:
    return {finding.name: finding for finding in report.findings}


def check(*groups: PreferenceGroup, **arguments: Any) -> CheckReport:
    return check_groups(groups, **arguments)


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def decided(comparison: dict[str, int]) -> tuple[int, int]:
    i, j = comparison["i"], comparison["j"]
    return (i, j) if comparison["winner"] == 0 else (j, i)


def read_pairs(file: Path) -> list[PreferenceGroup]:
    return [pair(row["prompt"], row["chosen"], row["rejected"], row["id"]) for row in read(file)]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def chat_tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tiny_model)
    loaded.chat_template = CHAT.replace("END", "</s>\n")
    return loaded


class TestCounts:
    def test_each_number(self):
        counts = check(
            PreferenceGroup("p ", ("a", "b", "c"), scores=(3, 2, 1), source="x"),
            PreferenceGroup("p ", ("a", "b"), scores=(1, 1), source="x"),
            PreferenceGroup("q ", ("a",), labels=(True,)),
            PreferenceGroup("q ", ("b",), labels=(False,), source="y"),
            PreferenceGroup("r ", ("b",), labels=(False,), source="y"),
        ).counts
        assert (counts.groups, counts.candidates, counts.prompts, counts.pairs) == (5, 8, 3, 3)
        assert counts.by_size == {1: 3, 2: 1, 3: 1}
        assert (counts.without_pairs, counts.desirable, counts.undesirable) == (4, 1, 2)
        assert counts.by_source == {"x": 2, "not given": 1, "y": 2}

    def test_without_sources_there_is_no_breakdown(self):
        assert check(pair("p ", "a", "b")).counts.by_source == {}

    def test_no_groups_is_a_data_error(self):
        with pytest.raises(DataError, match="no groups to check"):
            check_groups([])


class TestLengths:
    def test_characters(self):
        lengths = check(pair("1234 ", "a", "bbb"), pair("1 ", "cccc", "dd"))
        assert [part.unit for part in lengths.lengths] == ["characters"]
        (quantiles,) = lengths.lengths
        assert quantiles.prompts == Quantiles(2, 2, 2, 2, 5, 5, 5, 5)
        # 1, 2, 3, 4: the 25 % quantile is the first value that a quarter of them do not exceed.
        assert quantiles.candidates == Quantiles(1, 1, 1, 2, 3, 4, 4, 4)
        assert quantiles.longest == Quantiles(6, 6, 6, 6, 8, 8, 8, 8)

    def test_percentiles_of_a_hundred(self):
        (quantiles,) = check(*(PreferenceGroup("p", ("x" * n,), labels=(True,)) for n in range(100, 0, -1))).lengths
        assert quantiles.candidates == Quantiles(1, 5, 25, 50, 75, 95, 99, 100)

    def test_a_conversation_is_counted_with_its_roles(self):
        (quantiles,) = check(PreferenceGroup(QUESTION, ("abc",), labels=(True,))).lengths
        assert (quantiles.prompts.max, quantiles.candidates.max) == (len("user: Why?"), 3)

    def test_special_tokens_are_not_counted(self, tokenizer):
        _, quantiles = check(pair("the old cat", " sees it", " runs to small house"), tokenizer=tokenizer).lengths
        assert (quantiles.unit, quantiles.prompts.max, quantiles.candidates.min, quantiles.candidates.max) == (
            "tokens",
            3,
            2,
            4,
        )
        assert quantiles.longest.max == 7

    def test_texts_are_counted_in_several_tokenizer_calls(self, tokenizer):
        groups = [PreferenceGroup("cat " * n, ("dog",), labels=(True,)) for n in range(1, 1101)]
        quantiles = check_groups(groups, tokenizer=tokenizer).lengths[1]
        assert (quantiles.prompts.p50, quantiles.prompts.max, quantiles.candidates.max) == (550, 1100, 1)


class TestTooLong:
    GROUPS = (pair("the old cat", " sees it", " runs to small house", "long"), pair("the cat", " sees", " it", "short"))

    @pytest.mark.parametrize(("limit", "hits"), [(7, 0), (6, 1), (3, 1), (2, 2)])
    def test_prompt_and_longest_candidate(self, tokenizer, limit, hits):
        report = check(*self.GROUPS, tokenizer=tokenizer, max_length=limit)
        assert report.checks["too_long"] == Hits(hits, 2, ("long", "short")[:hits])
        assert ("too_long" in findings_by_name(report)) == bool(hits)

    def test_unchecked_without_a_limit(self, tokenizer):
        assert "too_long" not in check(*self.GROUPS, tokenizer=tokenizer).checks

    def test_a_limit_needs_a_tokenizer(self):
        with pytest.raises(ConfigError, match="no tokenizer was given"):
            check(*self.GROUPS, max_length=5)


class TestDuplicates:
    def test_groups_and_pairs(self):
        report = check(
            pair("p ", "a", "b", "first"),
            pair("p ", "a", "b", "again"),
            PreferenceGroup("p ", ("b", "a"), preferred=1, id="same pair, other order"),
            pair("p ", "a", "b", "and again"),
            pair("q ", "a", "b", "other prompt"),
        )
        assert report.checks["repeated_groups"] == Hits(2, 5, ("again", "and again"))
        assert report.checks["repeated_pairs"] == Hits(3, 5, ("again", "same pair, other order", "and again"))
        assert {findings_by_name(report)[name].severity for name in ("repeated_groups", "repeated_pairs")} == {
            "warning"
        }

    def test_other_preferences_or_labels_are_not_repeats(self):
        report = check(
            PreferenceGroup("p ", ("a", "b"), preferred=0),
            PreferenceGroup("p ", ("a", "b"), scores=(1, 1)),
            PreferenceGroup("q ", ("a",), labels=(True,)),
            PreferenceGroup("q ", ("a",), labels=(False,)),
        )
        assert report.checks["repeated_groups"].count == 0

    def test_at_most_five_distinct_examples(self):
        report = check(*(pair("p ", "a", "b", f"row-{n // 2}") for n in range(20)))
        assert report.checks["repeated_pairs"] == Hits(19, 20, ("row-0", "row-1", "row-2", "row-3", "row-4"))


class TestCandidates:
    def test_empty_and_blank(self):
        report = check(
            pair("p ", "a", "", "empty"),
            pair("p ", " \n", "b", "blank"),
            PreferenceGroup(QUESTION, (({"role": "assistant", "content": "\t"},),), labels=(True,), id="message"),
            pair("p ", "a", "b", "fine"),
        )
        assert report.checks["empty_candidates"] == Hits(3, 7, ("empty", "blank", "message"))
        finding = findings_by_name(report)["empty_candidates"]
        assert (finding.severity, finding.count) == ("error", 3)
        assert finding.what.startswith("3 of 7 candidates are empty")
        assert finding.fix.endswith("data.empty=drop")

    def test_identical_with_and_without_a_preference(self):
        report = check(
            PreferenceGroup("p ", ("a", "a", "b", "b"), comparisons=((0, 1), (0, 2)), id="four"),
            pair("p ", "c", "c", "two"),
        )
        assert report.checks["identical_in_a_pair"] == Hits(2, 7, ("four", "two"))
        assert report.checks["identical_without_preference"] == Hits(1, 7, ("four",))
        assert findings_by_name(report)["identical_in_a_pair"].severity == "error"
        assert findings_by_name(report)["identical_without_preference"].severity == "warning"

    def test_a_lone_surrogate_is_found(self, tokenizer):
        report = check(pair("p ", "\ud83d", "b", "cut"), pair("p ", "\U0001f600", "b"), tokenizer=tokenizer)
        assert report.checks["unreadable_texts"] == Hits(1, 2, ("cut",))
        assert findings_by_name(report)["unreadable_texts"].severity == "error"


class TestContradictions:
    def test_a_contradiction_between_groups_counts_once(self):
        report = check(
            pair("p ", "a", "b", "one"),
            pair("p ", "b", "a", "two"),
            pair("p ", "b", "a", "two again"),
            pair("q ", "b", "a", "other prompt"),
            PreferenceGroup("r ", ("x", "y"), comparisons=((0, 1), (1, 0)), id="itself"),
        )
        # Couples: (p, a b), (q, a b), (r, x y).
        assert report.checks["contradictory_pairs"] == Hits(2, 3, ("one", "two", "two again", "itself"))
        assert findings_by_name(report)["contradictory_pairs"].severity == "error"

    def test_identical_texts_are_not_a_contradiction(self):
        assert check(pair("p ", "a", "a")).checks["contradictory_pairs"] == Hits(0, 0)

    def test_labels(self):
        report = check(
            PreferenceGroup("p ", ("a",), labels=(True,), id="yes"),
            PreferenceGroup("p ", ("a",), labels=(False,), id="no"),
            PreferenceGroup("p ", ("b",), labels=(False,), id="only no"),
            PreferenceGroup("q ", ("a",), labels=(False,), id="other prompt"),
        )
        assert report.checks["contradictory_labels"] == Hits(1, 3, ("yes", "no"))
        assert findings_by_name(report)["contradictory_labels"].severity == "error"


class TestHeldOut:
    def test_exact_normalized_and_candidates(self):
        report = check(
            pair("Why  me?", " a", " b", "spaces"),
            pair("where?", " c", "", "exact"),
            pair("where?", " d", " e", "exact again"),
            pair("When?", " f", " g", "free"),
            held_out=[pair("where?", " z", ""), pair("why\nME? ", " f", " a")],
        )
        assert report.checks["prompts_in_held_out"] == Hits(1, 3, ("exact",))
        assert report.checks["prompts_in_held_out_normalized"] == Hits(2, 3, ("spaces", "exact"))
        # " a" and " f"; the empty response is not an overlap.
        assert report.checks["candidates_in_held_out"] == Hits(2, 7, ("spaces", "free"))
        severities = {
            name: finding.severity for name, finding in findings_by_name(report).items() if "held_out" in name
        }
        assert severities == {
            "prompts_in_held_out": "error",
            "prompts_in_held_out_normalized": "error",
            "candidates_in_held_out": "warning",
        }

    def test_equal_prompts_are_reported_once(self):
        report = check(pair("p", " a", " b"), held_out=[pair("p", " c", " d")])
        assert report.checks["prompts_in_held_out_normalized"].count == 1
        assert "prompts_in_held_out" in findings_by_name(report)
        assert "prompts_in_held_out_normalized" not in findings_by_name(report)

    def test_unchecked_without_held_out_groups(self):
        assert not [name for name in check(pair("p", " a", " b")).checks if "held_out" in name]


class TestBoundary:
    def test_white_space_on_either_side_is_enough(self):
        report = check(
            pair("Answer:", "Drag", " Me", "half"),
            pair("Answer: ", "Drag", "Me", "prompt"),
            pair("Answer:\n", "Drag", "Me", "line"),
            pair("Answer:", "", "Me", "empty"),
            pair("", "Drag", "Me", "no prompt"),
            PreferenceGroup(QUESTION, ("Drag",), labels=(True,), id="chat"),
        )
        # The hits are Drag and Me after "Answer:"; 2 + 2 + 2 + 1 candidates are checked.
        assert report.checks["no_whitespace_at_boundary"] == Hits(2, 7, ("half", "empty"))
        finding = findings_by_name(report)["no_whitespace_at_boundary"]
        assert finding.severity == "warning"
        assert "2 of 7 candidates (28.6%)" in finding.what


class TestTies:
    def test_tied_and_undecided(self):
        report = check(
            PreferenceGroup("p ", ("a", "b", "c"), scores=(1, 1, 0)),
            PreferenceGroup("q ", ("a", "b", "c"), ranks=(1, 1, 1)),
            PreferenceGroup("r ", ("a", "b", "c", "d"), comparisons=((0, 1), (0, 1), (1, 2), (2, 1))),
            PreferenceGroup("s ", ("a", "b", "c"), preferred=2),
        )
        assert report.ties == Ties(couples=15, tied=1 + 3, undecided=4 + 1)
        finding = findings_by_name(report)["ties"]
        assert (finding.severity, finding.count) == ("note", 9)

    def test_none(self):
        report = check(pair("p ", "aa", "b"))
        assert report.ties == Ties(1, 0, 0)
        assert "ties" not in findings_by_name(report)

    def test_comparisons_come_before_scores(self):
        report = check(PreferenceGroup("p ", ("a", "b"), comparisons=(), scores=(1, 1)))
        assert report.ties == Ties(1, 0, 1)

    def test_groups_without_pair_or_label(self):
        report = check(
            PreferenceGroup("p ", ("a", "b"), scores=(1, 1), id="tied"),
            PreferenceGroup("p ", ("a",), id="bare"),
            PreferenceGroup("p ", ("c",), labels=(True,), id="labelled"),
        )
        assert report.checks["nothing_to_learn"] == Hits(2, 3, ("tied", "bare"))
        assert findings_by_name(report)["nothing_to_learn"].severity == "note"


class TestTemplate:
    CONVERSATION = PreferenceGroup(QUESTION, ("So.", "No."), preferred=0, id="chat")
    FAULTS = ("no_chat_template", "chat_template_fails", "no_end_of_turn")

    def faults(self, report: CheckReport) -> list[str]:
        return [name for name in self.FAULTS if name in findings_by_name(report)]

    def test_a_template_with_an_end_token_has_no_finding(self, chat_tokenizer):
        report = check(self.CONVERSATION, tokenizer=chat_tokenizer)
        assert [report.checks[name] for name in self.FAULTS] == [Hits(0, 1)] * 3
        assert self.faults(report) == []

    @pytest.mark.parametrize("end", ["", "\n", "<s>", "<pad>"])
    def test_a_template_without_an_end_token_is_an_error(self, chat_tokenizer, end):
        chat_tokenizer.chat_template = CHAT.replace("END", end)
        report = check(self.CONVERSATION, pair("p ", "aa", "b"), tokenizer=chat_tokenizer)
        assert report.checks["no_end_of_turn"] == Hits(1, 1, ("chat",))
        assert self.faults(report) == ["no_end_of_turn"]
        assert findings_by_name(report)["no_end_of_turn"].severity == "error"

    def test_an_end_token_before_the_answer_does_not_count(self, chat_tokenizer):
        chat_tokenizer.chat_template = "{% for m in messages %}</s>{{ m.content }}{% endfor %}"
        assert self.faults(check(self.CONVERSATION, tokenizer=chat_tokenizer)) == ["no_end_of_turn"]

    def test_an_added_special_token_ends_a_turn(self, chat_tokenizer):
        chat_tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
        chat_tokenizer.chat_template = CHAT.replace("END", "<|im_end|>")
        assert self.faults(check(self.CONVERSATION, tokenizer=chat_tokenizer)) == []

    def test_the_end_token_may_also_pad(self, chat_tokenizer):
        chat_tokenizer.pad_token = chat_tokenizer.eos_token
        assert self.faults(check(self.CONVERSATION, tokenizer=chat_tokenizer)) == []

    def test_no_template(self, tokenizer):
        assert self.faults(check(self.CONVERSATION, tokenizer=tokenizer)) == ["no_chat_template"]

    @pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{% for %}", "no answer"])
    def test_a_template_that_fails(self, chat_tokenizer, template):
        chat_tokenizer.chat_template = template
        assert self.faults(check(self.CONVERSATION, tokenizer=chat_tokenizer)) == ["chat_template_fails"]

    def test_plain_text_needs_no_template(self, tokenizer):
        assert not set(self.FAULTS) & set(check(pair("p ", "aa", "b"), tokenizer=tokenizer).checks)


class TestReport:
    def test_findings_are_severest_first(self):
        report = check(pair("p", "a", ""), pair("p", "a", ""), PreferenceGroup("q ", ("a", "b"), scores=(1, 1)))
        assert [finding.severity for finding in report.findings] == ["error", *["warning"] * 3, *["note"] * 2]

    def test_clean_data_has_no_finding(self):
        groups = [pair(f"prompt {n}: ", f"a{n}", f"b{n}") for n in range(9)]
        assert check_groups(groups).findings == ()

    def test_the_report_is_valid_json(self, tokenizer):
        report = check(pair("p", "aa", "b"), tokenizer=tokenizer, max_length=1, held_out=[pair("p", "c", "d")])
        document = report.to_json()
        assert json.loads(json.dumps(document, allow_nan=False)) == document
        assert document["counts"]["by_size"] == {"2": 1}
        assert document["checks"]["too_long"] == {"count": 1, "of": 1, "ids": ["0"]}
        assert document["length_bias"]["longer"] == {"value": 0.0, "low": None, "high": None, "n": 1}
        assert [part["unit"] for part in document["lengths"]] == ["characters", "tokens"]

    @given(st.lists(st.tuples(*[st.sampled_from(["", "a", "bb", "B b"])] * 3), min_size=1, max_size=12), st.randoms())
    @settings(max_examples=60, deadline=None)
    def test_the_order_of_rows_changes_no_count(self, rows, draw):
        groups = [pair(*row) for row in rows]
        shuffled = draw.sample(groups, len(groups))
        one, other = check_groups(groups, held_out=groups[:2]), check_groups(shuffled, held_out=groups[:2])
        assert one.counts == other.counts
        assert one.lengths == other.lengths
        assert one.length_bias == other.length_bias
        assert {name: hits.count for name, hits in one.checks.items()} == {
            name: hits.count for name, hits in other.checks.items()
        }
        assert all(0 <= hits.count <= hits.of for hits in one.checks.values())


class TestRealData:
    def test_pandalm(self, shared_data):
        report = check_groups(read_pairs(shared_data / "pandalm" / "pairs.jsonl"))
        assert (report.counts.pairs, report.counts.prompts) == (497, 92)
        assert report.checks["repeated_pairs"].count == 53
        assert report.checks["empty_candidates"].count == 0
        assert round(report.length_bias.longer.value, 3) == 0.670
        assert round(report.length_bias.equal, 3) == 0.012
        assert report.length_bias.longer_where_unequal.low > 0.5
        assert "the chosen is the longer" in findings_by_name(report)["length_bias"].what

    def test_pandalm_empty_sides(self, shared_data):
        report = check_groups(read_pairs(shared_data / "pandalm" / "pairs_empty_side.jsonl"))
        assert report.checks["empty_candidates"].count == 52
        assert findings_by_name(report)["empty_candidates"].severity == "error"

    def test_finegrained_pairs(self, shared_data):
        report = check_groups(read_pairs(shared_data / "finegrained_qa" / "pairs.jsonl"))
        assert report.counts.pairs == 1587
        assert round(report.length_bias.longer.value, 3) == 0.507
        assert "length_bias" not in findings_by_name(report)

    def test_finegrained_groups(self, shared_data):
        rows = read(shared_data / "finegrained_qa" / "groups.jsonl")
        groups = [
            PreferenceGroup(
                row["prompt"],
                tuple(row["candidates"]),
                comparisons=tuple(decided(comparison) for comparison in row["pairwise"] if comparison["winner"] != 2),
                id=row["id"],
            )
            for row in rows
        ]
        report = check_groups(groups)
        assert report.counts.by_size == {4: 300}
        assert report.counts.pairs == 1587
        assert report.ties == Ties(1800, 0, 213)

    def test_counsel_chat(self, shared_data):
        report = check_groups(read_pairs(shared_data / "counsel_chat" / "pairs.jsonl"))
        # 117 questions; four of them come with several texts.
        assert (report.counts.pairs, report.counts.prompts) == (1271, 123)
        assert round(report.length_bias.longer.value, 3) == 0.614
