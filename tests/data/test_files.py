from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from penchant.data.files import read_rows
from penchant.errors import DataError

ROWS = [
    {"prompt": "Ünï\u2028code?", "chosen": "yes", "rejected": "no", "scores": [1.0, 0.5]},
    {"prompt": "two\r\nlines ", "chosen": "", "rejected": '"quoted", comma', "scores": None},
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def values(source: Path, **options: Any) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(source, **options)]


def places(source: Path, **options: Any) -> list[str]:
    return [where for where, _ in read_rows(source, **options)]


def failure(source: str | Path, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        list(read_rows(source, **options))
    assert caught.value.fix, "an error says what to do"
    return caught.value


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    import csv

    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


class TestKinds:
    def test_json_lines(self, tmp_path: Path) -> None:
        # A line separator inside a text does not end the line.
        file = write(tmp_path / "a.jsonl", LINES)
        assert values(file) == ROWS
        assert places(file) == ["a.jsonl, line 1", "a.jsonl, line 2"]

    @pytest.mark.parametrize(
        "text",
        [json.dumps(ROWS), json.dumps(ROWS, indent=2), LINES, json.dumps({"data": ROWS, "version": 1}),
         json.dumps({"rows": ROWS})],
        ids=["list", "indented", "one object a line", "data", "rows"],
    )  # fmt: skip
    def test_json(self, tmp_path: Path, text: str) -> None:
        assert values(write(tmp_path / "a.json", text)) == ROWS

    def test_a_json_file_of_one_object_is_one_row(self, tmp_path: Path) -> None:
        assert values(write(tmp_path / "a.json", json.dumps(ROWS[0], indent=1))) == ROWS[:1]
        assert values(write(tmp_path / "b.json", json.dumps(ROWS[0]))) == ROWS[:1]

    def test_csv(self, tmp_path: Path) -> None:
        file = write(
            tmp_path / "a.csv",
            'prompt,chosen,rejected,scores\r\n"two\r\nlines ",007,"say ""no"", please","[1, 0.5]"\r\n\r\nb,[1],{},\r\n',
        )
        assert values(file) == [
            {"prompt": "two\r\nlines ", "chosen": "007", "rejected": 'say "no", please', "scores": [1, 0.5]},
            {"prompt": "b", "chosen": "[1]", "rejected": "{}", "scores": None},
        ]
        assert places(file) == ["a.csv, line 2", "a.csv, line 5"]

    def test_csv_cells_get_the_type_of_their_column(self, tmp_path: Path) -> None:
        turns = [{"role": "user", "content": "hi"}]
        row = {
            "messages": json.dumps(turns),
            "chosen": json.dumps([{"role": "assistant", "content": "a"}]),
            "rejected": '{"name": "call", "arguments": {}}',
            "label": "True",
            "weight": "0.5",
            "id": "007",
            "source": "",
            "rejected_2": "",
        }
        assert values(write_csv(tmp_path / "a.csv", [row])) == [
            {
                "messages": turns,
                "chosen": [{"role": "assistant", "content": "a"}],
                "rejected": '{"name": "call", "arguments": {}}',
                "label": True,
                "weight": 0.5,
                "id": "007",
                "source": None,
                "rejected_2": None,
            }
        ]

    def test_csv_cells_above_the_default_limit_of_the_csv_module(self, tmp_path: Path) -> None:
        long = "x" * 200_000
        assert values(write_csv(tmp_path / "a.csv", [{"prompt": long}])) == [{"prompt": long}]

    def test_parquet_with_nulls(self, tmp_path: Path) -> None:
        file = write_parquet(tmp_path / "a.parquet", ROWS)
        assert values(file) == ROWS
        assert places(file) == ["a.parquet, row 1", "a.parquet, row 2"]

    @pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
    def test_compressed(self, tmp_path: Path, ending: str) -> None:
        rows = [{"prompt": "a", "chosen": "b"}]
        plain = tmp_path / f"a{ending}"
        if ending == ".parquet":
            write_parquet(plain, rows)
        elif ending == ".csv":
            write_csv(plain, rows)
        else:
            write(plain, json.dumps(rows[0]))
        assert values(write(tmp_path / f"a{ending}.gz", gzip.compress(plain.read_bytes()))) == rows

    @pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
    def test_byte_order_mark(self, tmp_path: Path, name: str) -> None:
        text = '{"prompt": "a"}' if name == "a.jsonl" else "prompt\na\n"
        assert values(write(tmp_path / name, b"\xef\xbb\xbf" + text.encode())) == [{"prompt": "a"}]

    def test_endings_in_capitals(self, tmp_path: Path) -> None:
        assert values(write(tmp_path / "A.JSONL", LINES)) == ROWS

    def test_a_bfcl_json_file_has_one_object_per_line(self, shared_data: Path) -> None:
        assert len(values(shared_data / "bfcl" / "BFCL_v4_multiple.json")) == 120

    def test_csv_with_windows_line_ends_inside_cells(self, shared_data: Path) -> None:
        rows = values(shared_data / "mts_dialog" / "MTS-Dialog-TrainingSet.csv")
        assert len(rows) == 1201
        assert any("\r\n" in row["dialogue"] for row in rows)


class TestFolders:
    def test_a_folder_of_files(self, tmp_path: Path) -> None:
        folder = tmp_path / "both"
        folder.mkdir()
        write(folder / "b.jsonl", '{"prompt": "b"}\n')
        write(folder / "a.jsonl", '{"prompt": "a"}\n')
        write(folder / "LICENSE", "words")
        assert places(folder) == ["both/a.jsonl, line 1", "both/b.jsonl, line 1"]

    def test_splits_are_not_read_together(self, tmp_path: Path) -> None:
        write(tmp_path / "train-00000.jsonl", '{"prompt": "a"}\n')
        write(tmp_path / "my_test.jsonl", '{"prompt": "b"}\n')
        error = failure(tmp_path)
        assert "several splits; it has test, train" in str(error)
        assert error.fix == "data.split=train"
        assert values(tmp_path, split="test") == [{"prompt": "b"}]
        assert failure(tmp_path, split="tran").fix == "data.split=train"

    def test_a_folder_without_data(self, tmp_path: Path) -> None:
        write(tmp_path / "notes.txt", "words")
        assert "a folder without data files" in str(failure(tmp_path))

    def test_saved_data_set(self, tmp_path: Path) -> None:
        import datasets

        datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "one"))
        assert values(tmp_path / "one") == ROWS
        assert places(tmp_path / "one") == ["one, row 1", "one, row 2"]
        assert failure(tmp_path / "one", split="train").fix == "leave data.split out"

    def test_saved_splits(self, tmp_path: Path) -> None:
        import datasets

        parts = {"train": datasets.Dataset.from_list(ROWS[:1]), "test": datasets.Dataset.from_list(ROWS[1:])}
        datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "two"))
        assert values(tmp_path / "two", split="train")[0]["chosen"] == "yes"
        assert places(tmp_path / "two", split="test") == ["two[test], row 1"]
        assert "several splits; it has train, test" in str(failure(tmp_path / "two"))
        assert failure(tmp_path / "two", split="tests").fix == "data.split=test"

    def test_the_only_split_of_a_saved_folder_needs_no_name(self, tmp_path: Path) -> None:
        import datasets

        datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "one"))
        assert places(tmp_path / "one") == ["one[test], row 1", "one[test], row 2"]

    def test_broken_saved_data_set(self, tmp_path: Path) -> None:
        write(tmp_path / "state.json", "{")
        assert "does not load" in str(failure(tmp_path))

    def test_hub_id_offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        def absent(name: str) -> None:
            raise ConnectionError(f"Couldn't reach '{name}'\nand a second line")

        monkeypatch.setattr(datasets, "load_dataset", absent)
        error = failure("nobody/nothing")
        assert "the hub did not give a data set: Couldn't reach 'nobody/nothing'" in error.what
        assert "second line" in error.what
        assert error.where == "nobody/nothing"
        assert "hf download --repo-type dataset nobody/nothing" in (error.fix or "")

    def test_hub_id(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        loaded = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
        monkeypatch.setattr(datasets, "load_dataset", lambda name: loaded)
        assert list(read_rows("some/where", split="train"))[1] == ("some/where[train], row 2", ROWS[1])


class TestColumns:
    def test_renaming(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.jsonl", '{"question": "q", "chosen": "a", "rejected": "b"}\n')
        columns = {"prompt": "question", "chosen": "rejected", "rejected": "chosen"}
        assert values(file, columns=columns) == [{"prompt": "q", "chosen": "b", "rejected": "a"}]

    def test_csv_cells_are_typed_by_the_mapped_name(self, tmp_path: Path) -> None:
        file = write_csv(tmp_path / "a.csv", [{"points": "[1, 2]"}])
        assert values(file) == [{"points": "[1, 2]"}]
        assert values(file, columns={"scores": "points"}) == [{"scores": [1, 2]}]

    def test_two_columns_with_one_name(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.jsonl", '{"prompt": "p", "question": "q"}\n')
        error = failure(file, columns={"prompt": "question"})
        assert error.fix == "rename that column: data.columns={prompt: question, unused: prompt}"
        assert values(file, columns={"prompt": "question", "unused": "prompt"}) == [{"unused": "p", "prompt": "q"}]
        assert "has none of that name" in failure(file, columns={"prompt": "qestion"}).what
