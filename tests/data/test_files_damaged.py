"""Errors of missing, empty or damaged sources."""

from __future__ import annotations

import gzip
import json
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penchant.data.files import read_rows
from penchant.errors import DataError

ROWS = [{"prompt": "p", "chosen": "yes", "rejected": "no"}] * 3
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def failure(source: Path, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        list(read_rows(source, **options))
    assert caught.value.fix, "an error says what to do"
    return caught.value


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", LINES)
    assert failure(tmp_path / "pair.jsonl").fix == f"did you mean {tmp_path / 'pairs.jsonl'}?"
    assert "nor its folder" in str(failure(tmp_path / "x" / "pairs.jsonl"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_empty(tmp_path: Path, name: str, content: bytes) -> None:
    if name == "a.parquet":
        content = b""
    error = failure(write(tmp_path / name, content))
    assert "expected at least one row" in error.what
    assert error.where == name


def test_a_parquet_file_without_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), tmp_path / "a.parquet")
    assert "it is empty" in str(failure(tmp_path / "a.parquet"))


def test_csv_with_only_a_header(tmp_path: Path) -> None:
    assert "it is empty" in str(failure(write(tmp_path / "a.csv", "prompt,chosen\n")))


def test_bad_json_line(tmp_path: Path) -> None:
    error = failure(write(tmp_path / "a.jsonl", '{"a": 1}\n\n{"a": }\n'))
    assert str(error).startswith("a.jsonl, line 3: not valid JSON at column 7: Expecting value")


def test_bad_json_file_keeps_its_line(tmp_path: Path) -> None:
    error = failure(write(tmp_path / "a.json", '[\n{"a": 1},\n{"a" 2}\n]'))
    assert error.where == "a.json, line 3"
    assert "column 6" in error.what


@pytest.mark.parametrize(("line", "kind"), [("[1]", "a list"), ('"x"', "text"), ("null", "null"), ("3", "a number")])
def test_a_line_that_is_not_an_object(tmp_path: Path, line: str, kind: str) -> None:
    error = failure(write(tmp_path / "a.jsonl", f'{{"a": 1}}\n{line}\n'))
    assert error.where == "a.jsonl, line 2"
    assert f"found {kind}" in error.what
    assert "expected an object" in error.what


def test_a_name_twice_in_one_object(tmp_path: Path) -> None:
    error = failure(write(tmp_path / "a.jsonl", '{"chosen": "a", "chosen": "b"}'))
    assert str(error).startswith("a.jsonl, line 1: the name 'chosen' occurs twice")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_json_nested_too_deeply_or_with_huge_numbers(tmp_path: Path, text: str) -> None:
    assert failure(write(tmp_path / "a.jsonl", text)).where == "a.jsonl, line 1"


def test_bytes_that_are_not_utf8_have_their_offset_in_the_error(tmp_path: Path) -> None:
    head = b'\xef\xbb\xbf{"a": 1}\n'
    error = failure(write(tmp_path / "a.jsonl", head + b'{"a": "caf\xe9"}\n'))
    assert error.where == "a.jsonl, line 2"
    assert error.what == f"byte 0xe9 at offset {len(head) + 10} is not UTF-8"
    first_line_error = failure(write(tmp_path / "b.jsonl", b'\xef\xbb\xbf{"a": "\xe9"}\n'))
    assert first_line_error.what == "byte 0xe9 at offset 10 is not UTF-8"


@pytest.mark.parametrize(
    ("content", "hint"),
    [('{"a": 1}'.encode("utf-16"), "UTF-16"), (gzip.compress(b"{}", mtime=0), "this is gzip")],
    ids=["utf-16", "gzip"],
)
def test_other_kinds_of_bytes_are_recognised(tmp_path: Path, content: bytes, hint: str) -> None:
    assert hint in (failure(write(tmp_path / "a.jsonl", content)).fix or "")


def test_gzip_that_ends_early(tmp_path: Path) -> None:
    whole = gzip.compress(LINES.encode() * 1000)
    assert "cut or damaged" in str(failure(write(tmp_path / "a.jsonl.gz", whole[:-20])))
    assert "cut or damaged" in str(failure(write(tmp_path / "b.json.gz", whole[: len(whole) // 2])))
    assert failure(write(tmp_path / "c.parquet.gz", whole[:-20])).where == "c.parquet.gz"


def test_gzip_with_a_changed_byte(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(LINES.encode()))
    whole[-6] ^= 0xFF
    assert "gzip" in failure(write(tmp_path / "a.jsonl.gz", bytes(whole))).what


def test_not_a_gzip(tmp_path: Path) -> None:
    error = failure(write(tmp_path / "a.jsonl.gz", LINES))
    assert "not a whole gzip file" in error.what
    assert error.where == "a.jsonl.gz"


def test_broken_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    for content in (b"words", whole[:-5], whole[:4]):
        error = failure(write(tmp_path / "b.parquet", content))
        assert "a broken Parquet file" in error.what
        assert error.where == "b.parquet"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a,b\n1\n", 2, "1 cells; the header has 2 columns"),
        ('a,b\n"1\n2",3\n4,5,6\n', 4, "3 cells; the header has 2 columns"),
        ('a,b\n1,2\n3,"never closed\n5,6\n', 3, "not valid CSV"),
        ("a,a\n1,2\n", 1, "column 'a' occurs twice"),
        ("messages\n\"[{'role': 'user', 'content': 'x'}]\"\n", 2, "as Python prints it"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, line: int, message: str) -> None:
    error = failure(write(tmp_path / "a.csv", text))
    assert error.where == f"a.csv, line {line}"
    assert message in error.what


def test_unknown_ending(tmp_path: Path) -> None:
    error = failure(write(tmp_path / "a.txt", "words"))
    assert "unknown kind of file '.txt'; expected .jsonl, .ndjson, .json, .csv, .tsv, .parquet" in error.what


def test_trap_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    # HALOs loads pickles, which can execute any code.
    assert "unknown kind of file '.pkl'" in failure(write(tmp_path / "a.pkl", pickle.dumps(ROWS))).what


def test_a_split_of_a_file(tmp_path: Path) -> None:
    assert failure(write(tmp_path / "a.jsonl", LINES), split="train").fix == "leave data.split out"


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz", "a.jsonl.zst", "a.parquet.gz"])
def test_a_compressed_file_above_the_limit_is_refused(tmp_path: Path, name: str) -> None:
    """Reading a file of a few kilobytes that unpacks to far more stops after `max_bytes`."""
    content = b'{"prompt": "' + b"0" * 3_000_000
    file = write(tmp_path / name, _compressed(content, name))
    error = failure(file, max_bytes=2_000_000)
    assert error.what == "the compressed file unpacks to more than 2000000 bytes"
    assert error.where == name
    assert "data.max_bytes" in error.fix


def test_a_compressed_file_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "a.jsonl.zst"):
        file = write(tmp_path / name, _compressed(LINES.encode(), name))
        assert [row for _, row in read_rows(file, max_bytes=len(LINES))] == ROWS
        assert "unpacks" in failure(file, max_bytes=len(LINES) - 1).what


def _compressed(content: bytes, name: str) -> bytes:
    import pyarrow

    if name.endswith(".gz"):
        return gzip.compress(content)
    return pyarrow.compress(content, codec="zstd", asbytes=True)


def test_a_column_whose_name_is_not_unicode(
    tmp_path: Path, run_penchant: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({**row, "x\ud800y": 1}) + "\n" for row in ROWS))
    for verb in ("check", "show", "audit"):
        process = run_penchant("data", verb, file)
        assert "Traceback" not in process.stderr
        assert process.returncode in (0, 2), process.stderr
        assert "x\\ud800y" in process.stdout + process.stderr
