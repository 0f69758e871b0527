"""Multiple-choice files: every layout from two or three rows, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.data.fields import ReadLog, Row
from penchant.errors import DataError
from penchant.evaluation.choices import Question
from penchant.evaluation.choices_layouts import GLUE, TASKS, instruction
from penchant.evaluation.choices_readers import read_questions

Rows = list[dict[str, Any]]


@pytest.fixture
def write(tmp_path: Path):
    def write_(rows: Rows, name: str = "rows.jsonl") -> Path:
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return file

    return write_


def instruct(question: str, options: list[str], word: str = "Answer") -> str:
    numbered = " ".join(f"{word}{k}: {option}" for k, option in enumerate(options, 1))
    names = "/".join(f"{word.lower()}{k}" for k in range(1, len(options) + 1))
    return (
        f"Please choose the correct {word.lower()} to the question: {question}\n\n{numbered}\n\nAnswer format: {names}"
    )


ARTICLE = "A cat sat. It slept."
# task, layout, rows, then (prompt, options, right, cue, passage) of each.
CASES: list[tuple[str, str, Rows, list[tuple[str, tuple[str, ...], int, str, str | None]]]] = [
    (
        "hellaswag",
        "hellaswag",
        [
            {"ind": 4, "ctx": "A man lifts", "endings": ["a car.", "a cup.", "a cat.", "off."], "label": "1"},
            {"ind": 5, "ctx": "She runs", "endings": ["home.", "up.", "out.", "in."], "label": 3},
        ],
        [
            ("A man lifts", ("a car.", "a cup.", "a cat.", "off."), 1, "", None),
            ("She runs", ("home.", "up.", "out.", "in."), 3, "", None),
        ],
    ),
    (
        "openbookqa",
        "openbookqa",
        [
            {
                "question_stem": "Predators eat",
                "choices": {"text": ["bunnies", "grass"], "label": ["A", "B"]},
                "answerKey": "A",
            },
            {
                "question_stem": "What is hot?",
                "choices": {"text": ["ice", "fire"], "label": ["A", "B"]},
                "answerKey": "B",
            },
        ],
        [
            ("Predators eat", ("bunnies", "grass"), 0, "", None),
            ("What is hot?", ("ice", "fire"), 1, "\nAnswer:", None),
        ],
    ),
    (
        "openbookqa",
        "instruction",
        [
            {
                "instruction": instruct("Predators eat", ["bunnies", "grass"]),
                "input": "",
                "output": "the correct answer is answer2",
                "answer": "answer2",
            },
            {
                "instruction": instruct("What is hot?", ["ice", "fire", "snow"]),
                "output": "the correct answer is answer3",
            },
        ],
        [
            ("Predators eat", ("bunnies", "grass"), 1, "", None),
            ("What is hot?", ("ice", "fire", "snow"), 2, "\nAnswer:", None),
        ],
    ),
    (
        "piqa",
        "instruction",
        [{"instruction": instruct("To boil water,", ["heat it", "cool it"], "Solution"), "answer": "solution1"}],
        [("To boil water,", ("heat it", "cool it"), 0, "", None)],
    ),
    (
        "arc_easy",
        "arc",
        [
            {
                "question": "Which is red?",
                "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]},
                "answerKey": "C",
            },
            {"question": "Name it.", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"},
            {"question": "Roots grow", "choices": {"text": ["up", "down"], "label": ["1", "2"]}, "answerKey": 2},
        ],
        [
            ("Which is red?", ("a", "b", "c"), 2, "\nAnswer:", None),
            ("Name it.", ("a", "b"), 1, "\nAnswer:", None),
            ("Roots grow", ("up", "down"), 1, "", None),
        ],
    ),
    (
        "winogrande",
        "winogrande",
        [
            {"sentence": "Ann beat Eve so _ won.", "option1": "Ann", "option2": "Eve", "answer": "1"},
            {"sentence": "_ lost to Ann.", "option1": "Ann", "option2": "Eve", "answer": "2"},
        ],
        [
            ("Complete the sentence: Ann beat Eve so", ("Ann won.", "Eve won."), 0, "", None),
            ("Complete the sentence:", ("Ann lost to Ann.", "Eve lost to Ann."), 1, "", None),
        ],
    ),
    (
        "boolq",
        "boolq",
        [
            {"passage": ARTICLE, "question": "did the cat sleep", "answer": True},
            {"passage": ARTICLE, "question": "did it run?", "answer": False},
        ],
        [
            (f"{ARTICLE}\n\nQuestion: did the cat sleep?", ("no", "yes"), 1, "\nAnswer:", ARTICLE),
            (f"{ARTICLE}\n\nQuestion: did it run?", ("no", "yes"), 0, "\nAnswer:", ARTICLE),
        ],
    ),
    (
        "piqa",
        "piqa",
        [
            {"goal": "To dry hands,", "sol1": "use a towel", "sol2": "use a sea", "label": 0},
            {"goal": "How to sleep?", "sol1": "run", "sol2": "lie down", "label": 1},
        ],
        [
            ("To dry hands,", ("use a towel", "use a sea"), 0, "", None),
            ("How to sleep?", ("run", "lie down"), 1, "\nAnswer:", None),
        ],
    ),
    (
        "race_high",
        "race",
        [
            {"article": ARTICLE, "question": "Who sat?", "options": ["a dog", "a cat", "he", "she"], "answer": "B"},
            {"article": ARTICLE, "question": "It _ .", "options": ["slept", "ran", "ate", "sang"], "answer": "A"},
        ],
        [
            (f"{ARTICLE}\n\nQuestion: Who sat?", ("a dog", "a cat", "he", "she"), 1, "\nAnswer:", ARTICLE),
            (f"{ARTICLE}\n\nQuestion: It _ .", ("slept", "ran", "ate", "sang"), 0, "\nAnswer:", ARTICLE),
        ],
    ),
    (
        "choices",
        "choices",
        [
            {"prompt": "2 + 2?", "options": ["4", "5"], "answer": 0},
            {"prompt": "The sky is", "options": ["red", "green", "blue"], "answer": 2},
        ],
        [("2 + 2?", ("4", "5"), 0, "\nAnswer:", None), ("The sky is", ("red", "green", "blue"), 2, "", None)],
    ),
]


@pytest.mark.parametrize(
    ("task", "layout", "rows", "expected"), CASES, ids=[f"{task}-{layout}" for task, layout, *_ in CASES]
)
def test_each_layout(task, layout, rows, expected, write):
    read = read_questions(task, write(rows))
    where = [f"rows.jsonl, line {n}" for n in range(1, len(rows) + 1)]
    assert read.layout == layout
    assert read.left_out == {}
    assert list(read.questions) == [
        Question(prompt, options, right, task, location, cue, passage)
        for (prompt, options, right, cue, passage), location in zip(expected, where, strict=True)
    ]


@pytest.mark.parametrize(
    ("layout", "rows"), [(layout, rows) for task, layout, rows, _ in CASES], ids=[f"{c[0]}-{c[1]}" for c in CASES]
)
def test_another_name_takes_the_layout_that_fits(layout, rows, write):
    assert read_questions("mine", write(rows)).layout == layout


# Columns of a row with label 1, and the option that stands for that label.
GLUE_ROWS = {
    "cola": ({"sentence": "Cats sleep."}, "yes"),
    "sst2": ({"sentence": "Cats sleep."}, "positive"),
    "mrpc": ({"sentence1": "Cats sleep.", "sentence2": "Dogs run."}, "yes"),
    "qqp": ({"question1": "Cats sleep.", "question2": "Dogs run."}, "yes"),
    "mnli": ({"premise": "Cats sleep.", "hypothesis": "Dogs run."}, "maybe"),
    "qnli": ({"question": "Cats sleep.", "sentence": "Dogs run."}, "no"),
    "rte": ({"sentence1": "Cats sleep.", "sentence2": "Dogs run."}, "no"),
    "wnli": ({"sentence1": "Cats sleep.", "sentence2": "Dogs run."}, "yes"),
}


class TestGlue:
    @pytest.mark.parametrize("task", sorted(GLUE))
    def test_each_task(self, task, write):
        columns, right_option = GLUE_ROWS[task]
        read = read_questions(task, write([{**columns, "label": 1, "idx": 0}, {**columns, "label": -1, "idx": 1}]))
        [question] = read.questions
        assert question.options[question.right] == right_option
        assert all(text in question.prompt for text in columns.values())
        assert question.cue == "\nAnswer:"
        assert read.left_out == {"no label": 1}
        assert "rows.jsonl: 1 rows left out: no label" in read.notes

    def test_columns_alone_do_not_tell_which(self, write):
        with pytest.raises(DataError, match="fit several tasks: mrpc, mnli, rte, wnli, stsb") as error:
            read_questions("mine", write([{**GLUE_ROWS["rte"][0], "label": 0}]))
        assert "--task mrpc=rows.jsonl" in error.value.fix

    def test_braces_in_a_sentence_are_text(self, write):
        [question] = read_questions("cola", write([{"sentence": "a {b} {", "label": 0}])).questions
        assert question.prompt.startswith("Sentence: a {b} {\n")


def keyed(key: Any) -> dict[str, Any]:
    return {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": key}


GOOD = {"prompt": "q", "options": ["a", "b"], "answer": 0}
BAD_ROWS = [
    (
        "piqa",
        {"goal": "g", "sol1": "a", "sol2": "b", "label": 2},
        "column 'label' is a number, 2; expected the 0-based",
    ),
    ("piqa", {"goal": "g", "sol1": "a", "sol2": "b", "label": "2"}, "column 'label' is a number, 2"),
    ("piqa", {"goal": "g", "sol1": "a", "sol2": None, "label": 1}, "column 'sol2' is null"),
    ("hellaswag", {"ctx": "c", "endings": ["a"], "label": 0}, "at least two options, found 1"),
    ("hellaswag", {"ctx": "c", "endings": "a b", "label": 0}, "column 'endings' is text"),
    ("arc_easy", keyed("C"), "column 'answerKey' is text, \"C\"; expected one of the options' labels, A, B"),
    ("arc_easy", {**keyed("A"), "choices": ["a", "b"]}, "column 'choices' is a list"),
    ("winogrande", {"sentence": "no blank", "option1": "a", "option2": "b", "answer": "1"}, "a blank, written _"),
    ("winogrande", {"sentence": "a _", "option1": "a", "option2": "b", "answer": "3"}, "expected 1 or 2"),
    ("boolq", {"passage": "p", "question": "q", "answer": "yes"}, "expected true or false"),
    ("race_high", {"article": "a", "question": "q", "options": ["a", "b"], "answer": "C"}, "letters A, B"),
    ("race_high", {"article": "a", "question": "q", "options": ["a", "b"], "answer": "AB"}, "letters A, B"),
    ("choices", {**GOOD, "answer": 2}, "0 to 1"),
    ("cola", {"sentence": "s", "label": 2}, "0 to 1"),
    ("openbookqa", {"instruction": "no options here", "answer": "answer1"}, "Answer format"),
    ("openbookqa", {"instruction": instruct("q", ["a", "b"]), "answer": "answer3"}, "one of answer1, answer2"),
    (
        "openbookqa",
        {"instruction": instruct("q", ["a", "b"]) + "/answer3", "answer": "answer1"},
        r"names \(answer1/answer2/answer3\), found 2",
    ),
]


@pytest.mark.parametrize(("task", "row", "message"), BAD_ROWS, ids=[str(n) for n in range(len(BAD_ROWS))])
def test_a_bad_row_is_refused_by_its_line(task, row, message, write):
    with pytest.raises(DataError, match=message) as error:
        read_questions(task, write([row]))
    assert error.value.where == "rows.jsonl, line 1"
    assert error.value.fix


@given(
    st.text("ab ?.:\n", min_size=1).map(str.strip).filter(bool),
    st.lists(st.text("ab .:1", min_size=1).map(str.strip).filter(bool), min_size=2, max_size=12),
    st.sampled_from(["Answer", "Option", "Solution", "Ending"]),
    st.data(),
)
@settings(max_examples=100, deadline=None)
def test_options_come_out_of_an_instruction_as_they_went_in(prompt, options, word, data):
    right = data.draw(st.integers(0, len(options) - 1))
    row = {"instruction": instruct(prompt, options, word), "answer": f"{word.lower()}{right + 1}"}
    parsed = instruction(Row(row, "line 1", 0, ReadLog()), "task")
    assert parsed is not None
    assert (parsed.prompt, parsed.options, parsed.right) == (prompt, tuple(options), right)


class TestSource:
    def test_a_name_of_a_data_set_wants_its_columns(self, write):
        with pytest.raises(DataError, match=r"task piqa can have.*piqa \(lacks 'goal', 'sol1', 'sol2'\)") as error:
            read_questions("piqa", write(CASES[0][2]))
        assert '"options"' in error.value.fix

    def test_any_name_takes_the_general_layout(self, write):
        assert read_questions("piqa", write([GOOD])).layout == "choices"

    def test_a_row_unlike_the_first(self, write):
        with pytest.raises(DataError, match="no column 'options'") as error:
            read_questions("mine", write([GOOD, {"prompt": "q", "answer": 0}]))
        assert error.value.where == "rows.jsonl, line 2"

    def test_a_hidden_test_split(self, write):
        rows = [{"goal": "g", "sol1": "a", "sol2": "b", "label": -1}] * 3
        with pytest.raises(DataError, match="none of its 3 rows has a label") as error:
            read_questions("piqa", write(rows))
        assert "validation" in error.value.fix

    @pytest.mark.parametrize("label", [-1, "-1", "", None])
    def test_every_way_of_having_no_label(self, label, write):
        rows = [{"goal": "g", "sol1": "a", "sol2": "b", "label": value} for value in (label, 1)]
        assert read_questions("piqa", write(rows)).left_out == {"no label": 1}

    def test_limit_counts_the_others(self, write):
        read = read_questions("mine", write([{**GOOD, "prompt": str(n)} for n in range(5)]), limit=2)
        assert [question.prompt for question in read.questions] == ["0", "1"]
        assert read.left_out == {"beyond the limit": 3}
        assert read.notes == (
            "rows.jsonl: 2 questions, task mine, layout choices (answer, options, prompt)",
            "rows.jsonl: 3 rows left out: beyond the limit",
        )

    def test_repeats_are_told_and_kept(self, write):
        read = read_questions("mine", write([GOOD, GOOD, {**GOOD, "options": ["a", "c"]}]))
        assert len(read.questions) == 3
        assert "rows.jsonl: 1 questions repeat an earlier one, options and all; they are kept" in read.notes

    def test_parquet_and_json_read_the_same(self, write, tmp_path):
        import pyarrow
        import pyarrow.parquet

        for task, _, rows, _ in CASES[1:2] + CASES[5:9]:
            lines = read_questions(task, write(rows)).questions
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
            (tmp_path / "rows.json").write_text(json.dumps(rows))
            for ending in ("parquet", "json"):
                questions = read_questions(task, tmp_path / f"rows.{ending}").questions
                assert [vars(item) | {"where": ""} for item in questions] == [
                    vars(item) | {"where": ""} for item in lines
                ]

    @pytest.mark.parametrize("content", [b"", b"{", b'{"prompt": "\xff"}'])
    def test_damaged_files_give_the_file_layers_errors(self, content, tmp_path):
        file = tmp_path / "rows.jsonl"
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"empty|not valid JSON|not UTF-8"):
            read_questions("mine", file)
        with pytest.raises(DataError, match="no such file"):
            read_questions("mine", tmp_path / "absent.jsonl")


def test_the_suites_tasks_are_all_readable():
    from penchant.evaluation.choices_suites import SUITES

    assert {task for suite in SUITES.values() for task in suite.tasks} <= set(TASKS)


class TestRealData:
    @pytest.mark.parametrize(
        ("task", "file", "questions", "options", "repeats"),
        [
            ("openbookqa", "openbookqa/train.jsonl", 4957, {4: 4957}, 5),
            ("openbookqa", "openbookqa/test.jsonl", 500, {4: 500}, 0),
            ("arc_easy", "arc_easy/train.jsonl", 2251, {3: 6, 4: 2241, 5: 4}, 0),
            ("arc_easy", "arc_easy/test.jsonl", 2376, {3: 7, 4: 2365, 5: 4}, 0),
        ],
    )
    def test_counts(self, task, file, questions, options, repeats, shared_data):
        read = read_questions(task, shared_data / file)
        assert (read.layout, len(read.questions), read.left_out) == ("instruction", questions, {})
        assert Counter(len(question.options) for question in read.questions) == options
        texts = [text for question in read.questions for text in (question.prompt, *question.options)]
        assert all(text == text.strip() and text for text in texts)
        assert not any("nswer1:" in text or "nswer format" in text for text in texts)
        repeat_notes = [note for note in read.notes if "repeat an earlier one" in note]
        assert [note.split()[1] for note in repeat_notes] == ([str(repeats)] if repeats else [])

    def test_two_test_questions_are_also_in_train(self, shared_data):
        train, test = (
            {(question.prompt, question.options) for question in read_questions("arc_easy", file).questions}
            for file in (shared_data / "arc_easy" / f"{split}.jsonl" for split in ("train", "test"))
        )
        assert len(train & test) == 2

    def test_first_row(self, shared_data):
        [question] = read_questions("openbookqa", shared_data / "openbookqa" / "test.jsonl", limit=1).questions
        assert question.options[question.right] == "quit eating lunch out"
        assert question.prompt.startswith("A person wants to start saving money")
        assert question.cue == ""
