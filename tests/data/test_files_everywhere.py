"""Every kind of data file, compressed or not, in every reader of a user's data."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from penchant.data.files import COMPRESSIONS, READERS, read_rows, unread_files
from penchant.data.reading import read_groups
from penchant.errors import DataError
from penchant.evaluation.answering import names_a_file
from penchant.evaluation.choices_readers import read_questions
from penchant.evaluation.tool_calls.questions import read_bfcl
from penchant.recipes.dialogue.rating_sheet import read_sheet
from penchant.recipes.recommend.histories import read_interactions, read_titles
from penchant.recipes.texts import Passage, read_passages

Rows = list[dict[str, Any]]
ENDINGS = [kind + compression for kind in READERS for compression in ("", *COMPRESSIONS)]


def delimited(rows: Rows, **options: Any) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]), **options)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def parquet(rows: Rows) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    return stream.getvalue()


def lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


WRITERS: dict[str, Callable[[Rows], bytes]] = {
    ".jsonl": lines,
    ".ndjson": lines,
    ".json": lambda rows: json.dumps(rows).encode(),
    ".csv": delimited,
    ".tsv": lambda rows: delimited(rows, delimiter="\t"),
    ".parquet": parquet,
}


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


def write(folder: Path, stem: str, ending: str, rows: Rows) -> Path:
    """The rows as a file of this kind; all its cells are text."""
    kind = next(kind for kind in WRITERS if ending.startswith(kind) and ending[len(kind) :] in ("", *COMPRESSIONS))
    content = WRITERS[kind](rows)
    squeeze = {"": bytes, ".gz": gzip.compress, ".zst": zstd}[ending[len(kind) :]]
    file = folder / f"{stem}{ending}"
    file.write_bytes(squeeze(content))
    return file


@pytest.mark.parametrize("ending", ENDINGS)
class TestEveryKind:
    def test_preferences(self, tmp_path, ending):
        rows = [{"prompt": f"{n} + 1?", "chosen": f'"{n}"', "rejected": "no"} for n in range(3)]
        file = write(tmp_path, "pairs", ending, rows)
        assert names_a_file(str(file))
        assert [group.candidates for group in read_groups(file).groups] == [(f'"{n}"', "no") for n in range(3)]
        assert len(read_groups(tmp_path).groups) == 3

    def test_passages(self, tmp_path, ending):
        file = write(tmp_path, "texts", ending, [{"text": "One."}, {"text": "Two."}])
        assert [passage.text for passage in read_passages(str(file))] == ["One.", "Two."]

    def test_interactions_and_titles(self, tmp_path, ending):
        interactions = write(tmp_path, "taken", ending, [{"user": "u", "item": "1", "time": "7"}])
        titles = write(tmp_path, "titles", ending, [{"item": "1", "title": "Heat"}])
        assert [
            (interaction.user, interaction.item, interaction.time) for interaction in read_interactions(interactions)
        ] == [("u", "1", 7.0)]
        assert read_titles(titles) == {"1": "Heat"}

    def test_questions_of_tasks(self, tmp_path, ending):
        rows = [{"sentence": "Good fun.", "label": "1"}, {"sentence": "Dull.", "label": "0"}]
        question_set = read_questions("sst2", write(tmp_path, "dev", ending, rows))
        assert [question.right for question in question_set.questions] == [1, 0]

    def test_rating_sheets(self, tmp_path, ending):
        write(tmp_path, "key", ending, [{"number": "1", "a": "sft", "b": "dpo"}])
        write(tmp_path, "sheet", ending, [{"number": "1", "better": "b"}])
        assert read_sheet(tmp_path) == {"sft": [0.0], "dpo": [1.0]}


@pytest.mark.parametrize("ending", [ending for ending in ENDINGS if not ending.startswith((".csv", ".tsv"))])
def test_tool_calls_in_every_kind(tmp_path, ending):
    """Questions in .json.gz files (1,937 of 2,897) were once skipped without a message."""
    function = {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "dict",
            "properties": {"a": {"type": "integer", "description": "x"}},
            "required": ["a"],
        },
    }
    questions = [{"id": "simple_0", "question": [[{"role": "user", "content": "Add 1."}]], "function": [function]}]
    write(tmp_path, "BFCL_v4_simple", ending, questions)
    (tmp_path / "possible_answer").mkdir()
    write(
        tmp_path / "possible_answer",
        "BFCL_v4_simple",
        ending,
        [{"id": "simple_0", "ground_truth": [{"add": {"a": [1]}}]}],
    )
    (tmp_path / "NOTES.md").write_text("no data")
    [question], left_out = read_bfcl(tmp_path)
    assert (question.id, question.accepted) == ("simple_0", ({"add": {"a": [1]}},))
    assert set(left_out) == {"NOTES.md"}


class TestTabs:
    def test_glue_has_no_quoting(self, tmp_path):
        file = tmp_path / "dev.tsv"
        file.write_text('sentence\tlabel\n"Fun , " he said\t1\n"quite"\t0\n', encoding="utf-8")
        assert [row["sentence"] for _, row in read_rows(file)] == ['"Fun , " he said', '"quite"']

    def test_glue_labels_in_words(self, tmp_path):
        file = tmp_path / "dev.tsv"
        file.write_text("index\tsentence1\tsentence2\tlabel\n0\tA cat sat.\tIt sat.\tnot_entailment\n")
        assert read_questions("rte", file).questions[0].right == 1

    def test_quoted_cells_of_a_spreadsheet(self, tmp_path):
        rows = [{"prompt": 'say "x"', "chosen": "a\tb", "rejected": "two\nlines"}]
        file = tmp_path / "pairs.tsv"
        file.write_bytes(delimited(rows, delimiter="\t"))
        assert [row for _, row in read_rows(file)] == rows

    def test_a_row_of_other_length_is_named(self, tmp_path):
        file = tmp_path / "pairs.tsv"
        file.write_text("prompt\tchosen\trejected\na\tb\n")
        with pytest.raises(DataError, match="2 cells; the header has 3 columns") as error:
            list(read_rows(file))
        assert error.value.where == "pairs.tsv, line 2"


class TestDamage:
    def test_a_cut_zstandard_file_is_an_error(self, tmp_path):
        file = tmp_path / "pairs.jsonl.zst"
        file.write_bytes(zstd(lines([{"text": "x" * 100_000 + str(n)} for n in range(50)]))[:-40])
        with pytest.raises(DataError, match="zst"):
            list(read_rows(file))

    def test_zstandard_without_its_ending(self, tmp_path):
        file = tmp_path / "pairs.jsonl"
        file.write_bytes(zstd(lines([{"text": "x"}])))
        with pytest.raises(DataError) as error:
            list(read_rows(file))
        assert ".zst" in error.value.fix


class TestUnreadFiles:
    def test_unread_files_of_a_folder_are_named(self, tmp_path):
        write(tmp_path, "train", ".jsonl.gz", [{"text": "a"}])
        write(tmp_path, "test", ".jsonl", [{"text": "b"}])
        for name in ("README.md", "more.xlsx", ".hidden"):
            (tmp_path / name).write_text("x")
        (tmp_path / "old").mkdir()
        assert unread_files(tmp_path, "train") == ["README.md", "more.xlsx", "old/", "test.jsonl"]
        note = next(note for note in read_groups(tmp_path, split="train").notes if "not read" in note)
        assert note.endswith("files not read: README.md, more.xlsx, old/, test.jsonl")

    def test_a_single_file_has_no_unread_files(self, tmp_path):
        assert unread_files(write(tmp_path, "a", ".jsonl", [{"text": "a"}])) == []


def test_plain_text_passages_may_be_compressed(tmp_path):
    file = tmp_path / "texts.txt.gz"
    file.write_bytes(gzip.compress(b"One.\n\nTwo."))
    assert read_passages(str(file)) == [Passage("One.", "0"), Passage("Two.", "1")]


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    "ending", [".jsonl.gz", ".JSONL", ".json.zst", ".TSV.GZ", ".csv.zst", ".ndjson", ".parquet.gz"]
)
def test_these_endings_are_read(tmp_path, ending):
    kind = ending.lower()
    file = write(tmp_path, "pairs", kind, [PAIR])
    file = file.rename(file.with_name(f"PAIRS{ending}"))
    assert [row for _, row in read_rows(file)] == [PAIR]
    assert len(read_groups(tmp_path).groups) == 1


def test_cells_of_a_table_with_tabs_are_typed(tmp_path):
    rows = [{"prompt": "p", "candidates": '["a", "b"]', "scores": "[1, 2.5]"}]
    (group,) = read_groups(write(tmp_path, "rows", ".tsv", rows)).groups
    assert (group.candidates, group.scores) == (("a", "b"), (1.0, 2.5))


def test_a_cut_zstandard_file_is_named_in_the_error(tmp_path):
    file = tmp_path / "pairs.jsonl.zst"
    file.write_bytes(zstd(lines([{"text": "x" * 100_000 + str(n)} for n in range(50)]))[:-40])
    with pytest.raises(DataError, match="the zst data is cut or damaged"):
        list(read_rows(file))


def test_questions_in_two_files_that_differ_in_their_endings_are_refused(tmp_path):
    row = {"id": "i0", "question": [[{"role": "user", "content": "Sing."}]], "function": []}
    for ending in (".json", ".json.gz"):
        write(tmp_path, "BFCL_v4_irrelevance", ending, [row])
    with pytest.raises(DataError, match="differ only in their endings"):
        read_bfcl(tmp_path)
