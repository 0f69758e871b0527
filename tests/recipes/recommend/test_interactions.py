"""Interactions and titles from every kind of file, and the errors of unreadable ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from penchant.errors import DataError
from penchant.recipes.recommend.histories import Interaction, read_interactions, read_titles

ROWS = [Interaction("7", "0042", 100.0, 8.0), Interaction("8", "0042", 90.5, 3.0)]
FILES = {
    "a.csv": 'user_id,movieId,rating,timestamp\n7,0042,8,100\n8,0042,3,"90.5"\n',
    "a.jsonl": '{"user": 7, "item": "0042", "time": 100, "rating": 8}\n'
    '{"user": 8, "item": "0042", "time": 90.5, "rating": 3}\n',
    "ratings.dat": "7::0042::8::100\n8::0042::3::90.5\n",
    "a.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n7\t0042\t8\t100\n8\t0042\t3\t90.5\n",
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FILES[name])
    assert read_interactions(tmp_path / name) == ROWS


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"user": [7, 8], "item": ["0042"] * 2, "time": [100, 90.5], "rating": [8, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert read_interactions(tmp_path / "a.parquet") == ROWS


def test_mapped_columns_without_a_rating(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("who,what,when\n7,x,1\n")
    interactions = read_interactions(tmp_path / "a.csv", columns={"user": "who", "item": "what", "time": "when"})
    assert interactions == [Interaction("7", "x", 1.0, None)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "user,item,time\n7,x,soon\n", "a.csv, line 2: the time is 'soon'; expected a number"),
        ("a.csv", "user,item,time\n7,x,nan\n", "the time is 'nan'"),
        ("a.csv", "user,item\n7,x\n", "a.csv, line 2: no time; looked for the columns time, timestamp"),
        ("a.csv", "user,item,time\n,x,1\n", "a.csv, line 2: no user"),
        ("a.csv", "user,item,time,rating\n7,x,1,good\n", "the rating is 'good'"),
        ("a.csv", "user,item,time\n", "a.csv: it is empty"),
        ("a.dat", "7::x::8\n", "a.dat, line 1: 3 fields between '::'; expected user::item::rating::time"),
        ("a.dat", "", "a.dat: it is empty"),
        ("a.inter", "user_id:token\titem_id:token\n7\n", "a.inter, line 2: 1 fields between tabs; the header has 2"),
        ("a.xml", "<a/>", "unknown kind of file '.xml'"),
    ],
)
def test_unreadable_rows_are_errors(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as error:
        read_interactions(tmp_path / name)
    assert message in str(error.value)


def test_a_missing_file(tmp_path: Path) -> None:
    for name in ("a.dat", "a.csv"):
        with pytest.raises(DataError, match=r"[Nn]o such file"):
            read_interactions(tmp_path / name)


def test_titles(tmp_path: Path) -> None:
    expected = {"0042": "Up (2009)", "7": "Heat: a film"}
    (tmp_path / "movies.dat").write_text("0042::Up (2009)::Comedy\n7::Heat: a film::Crime\n")
    (tmp_path / "a.item").write_text("item_id:token\tmovie_title:token_seq\n0042\tUp (2009)\n7\tHeat: a film\n")
    (tmp_path / "a.csv").write_text("movieId,title,genres\n0042,Up (2009),x\n7,Heat: a film,y\n7,Heat: a film,z\n")
    assert all(read_titles(tmp_path / name) == expected for name in ("movies.dat", "a.item", "a.csv"))


def test_an_item_with_two_titles_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("item,title\n1,Up\n1,Down\n")
    with pytest.raises(DataError, match=r"a\.csv, line 3: item '1' is called 'Down' here and 'Up' before"):
        read_titles(tmp_path / "a.csv")


def test_film_ratings(shared_data: Path) -> None:
    folder = shared_data / "movietweetings"
    interactions, titles = read_interactions(folder / "ratings.dat"), read_titles(folder / "movies.dat")
    assert len(interactions) == 53_632
    assert len(titles) == 8_154
    assert {interaction.item for interaction in interactions} <= set(titles)
