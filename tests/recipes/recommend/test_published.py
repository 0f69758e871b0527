"""Questions of a file in the layout of S-DPO's authors, from the file to the metrics."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from penchant.cli.main import run
from penchant.config.section import validated
from penchant.data.reading import read_groups
from penchant.errors import ConfigError, DataError
from penchant.recipes.recommend.config import RecommendConfig
from penchant.recipes.recommend.histories import Rules
from penchant.recipes.recommend.pipeline import recommend
from penchant.recipes.recommend.published import read_published

STEPS = {"batch_size": 8, "learning_rate": 1e-3, "max_steps": 2}


def row(history: list[str], target: str, other_titles: list[str]) -> dict:
    return {"historyList": "::".join(history), "itemList": sorted([target, *other_titles]), "trueSelection": target}


def circle(users: range, steps: int = 6) -> list[dict]:
    """Rows of users who take 12 bands in a circle; two bands at most are remembered, of 4 offered."""
    rows = []
    for user in users:
        for t in range(1, steps):
            bands = [f"Band {(user + k) % 12}" for k in range(max(0, t - 2), t + 1)]
            rows.append(row(bands[:-1], bands[-1], [f"Band {(user + t + k) % 12}" for k in (2, 5, 7)]))
    return rows


def write_folder(folder: Path) -> Path:
    folder.mkdir()
    for part, users in (("train", range(8)), ("val", range(8, 10)), ("test", range(10, 12))):
        (folder / f"lastfm-{part}.json").write_text(json.dumps(circle(users)))
    return folder


def write_rows(file: Path, rows: list[dict]) -> str:
    file.write_text("".join(json.dumps(values) + "\n" for values in rows))
    return str(file)


def make_config(source: str | Path, output: Path, **changes: object) -> RecommendConfig:
    values = {
        "questions": {"file": str(source), "open": 0.0},
        "output": str(output),
        "new_model": {"vocabulary": 300, "hidden": 32, "layers": 1, "heads": 2, "context": 256, "training": STEPS},
        "sft": {"training": STEPS},
        "methods": [{"name": "s_dpo", "training": STEPS, "choose": "popularity"}],
        "cutoffs": [1, 3],
        "answers": 4,
        "catalogue": 3,
        **changes,
    }
    return validated(RecommendConfig, values, "test")


class TestQuestions:
    def read(self, tmp_path: Path, rows: list[dict], shares=(1, 1, 1), max_history: int = 10):
        source = write_rows(tmp_path / "rows.jsonl", rows)
        return read_published(source, Rules(max_history=max_history, shares=shares), 1, {})

    def test_a_row_that_goes_on_from_the_row_before_is_of_the_same_user(self, tmp_path):
        """By growth, and by a window that slides; another history begins another user."""
        rows = [
            row(["A", "B"], "C", ["X"]),
            row(["A", "B", "C"], "D", ["X"]),
            row(["B", "C", "D"], "E", ["X"]),
            row(["B", "C"], "E", ["X"]),
            row(["B", "C", "E"], "F", ["X"]),
            row(["Q"], "E", ["X"]),
        ]
        histories = self.read(tmp_path, rows, shares=(4, 1, 1)).histories
        assert [(q.user, q.number) for q in histories.train] == [
            ("train-1", 0), ("train-1", 1), ("train-1", 2), ("train-4", 0),
        ]  # fmt: skip
        assert [q.time for q in (*histories.train, *histories.validation, *histories.test)] == [1, 2, 3, 4, 5, 6]
        assert [(q.user, q.number) for q in histories.validation] == [("validation-5", 0)]
        times = histories.times_by_user["train-1"]
        assert list(times) == ["A", "B", "C", "D", "E"]
        assert list(times.values()) == pytest.approx([1 / 3, 2 / 3, 1, 2, 3])

    def test_popularity_is_of_what_was_taken_before_the_first_validation_question(self, tmp_path):
        """Each user counts once; D is in that question's own history, and E and X were never taken before."""
        rows = [
            row(["A"], "B", ["X"]),
            row(["A", "B"], "C", ["X"]),
            row(["A"], "C", ["X"]),
            row(["D"], "C", ["X"]),
            row(["A"], "E", ["X"]),
        ]
        histories = self.read(tmp_path, rows, shares=(3, 1, 1)).histories
        assert dict(histories.counts) == {"A": 2, "B": 1, "C": 2, "D": 1, "E": 0, "X": 0}

    def test_histories_are_cut_and_rows_without_one_are_counted(self, tmp_path):
        rows = [row(["A", "B", "C"], "D", ["X"]), row([], "B", ["X"]), *[row(["A"], "B", ["X"])] * 2]
        histories = self.read(tmp_path, rows, shares=(2, 1, 1), max_history=2).histories
        assert [q.history for q in histories.train] == [("B", "C")]
        assert dict(histories.dropped) == {"questions without a history": 1}

    def test_a_folder_has_its_own_parts(self, tmp_path):
        histories = read_published(str(write_folder(tmp_path / "lastfm")), Rules(), 3, {}).histories
        assert [len(part) for part in (histories.train, histories.validation, histories.test)] == [40, 10, 10]
        assert len({q.user for q in histories.train}) == 8

    def test_csv_with_other_names(self, tmp_path):
        file = tmp_path / "rows.csv"
        file.write_text("seen,itemList,trueSelection\n" + "".join(f'A::B,"[""X"", ""{t}""]",{t}\n' for t in "CDE"))
        published = read_published(str(file), Rules(shares=(1, 1, 1)), 1, {"historyList": "seen"})
        [question] = published.histories.test
        assert (question.history, question.target) == (("A", "B"), "E")
        assert published.candidate_lists[question.id] == ("X", "E")

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([row(["A"], "B", ["X"])] * 2, "no question with a history for train"),
            (
                [row(["A"], "B", [])] * 3,
                r"1 different titles in 'itemList', and a method takes 1 beside the right one \(3",
            ),
            ([{**row(["A"], "B", ["X"]), "trueSelection": "Q"}], "expected one of the 2 titles of 'itemList'"),
            ([{"historyList": [], "itemList": []}], "no column 'trueSelection'"),
        ],
    )
    def test_rows_that_are_no_questions(self, tmp_path, rows, message):
        with pytest.raises(DataError, match=message):
            self.read(tmp_path, rows)


@pytest.fixture(scope="module")
def recipe_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    return folder / "out", recommend(make_config(write_folder(folder / "lastfm"), folder / "out"))


def test_the_file_is_asked_as_it_stands(recipe_run):
    """Prompt, candidates and target of every test question are those of the file."""
    out, result = recipe_run
    assert result["questions"]["questions"] == {"train": 40, "validation": 10, "test": 10}
    groups = read_groups(out / "questions" / "test.jsonl").groups
    for group, values in zip(groups, circle(range(10, 12)), strict=True):
        history = values["historyList"].replace("::", "; ")
        assert group.prompt.startswith(f"Liked before, oldest first: {history}\nOne of these is liked next: ")
        assert [text.strip() for text in group.candidates] == values["itemList"]
        assert group.candidates[group.preferred].strip() == values["trueSelection"]


def test_metrics_of_ranks_and_of_greedy_answers(recipe_run):
    """Hit ratio by rank, and hit ratio and share of valid answers by the greedy answers that were written."""
    out, result = recipe_run
    rows = [json.loads(line) for line in (out / "evaluation" / "s_dpo.jsonl").read_text().splitlines()]
    metrics = result["evaluation"]["models"]["s_dpo"]
    hits = [(row["above"] == 0) / row["tied"] for row in rows]
    assert metrics["hit_ratio@1"]["value"] == pytest.approx(sum(hits) / 10)
    named_titles = [
        {title for title in values["itemList"] if re.search(rf"{title}(?!\w)", row["answer"])}
        for row, values in zip(rows[:4], circle(range(10, 12)), strict=False)
    ]
    assert metrics["valid_ratio"]["value"] == pytest.approx(sum(len(titles) == 1 for titles in named_titles) / 4)
    assert metrics["said_hit_ratio@1"]["n"] == 4
    assert metrics["catalogue"]["mrr"]["n"] == 3


def test_baselines_read_the_file(recipe_run):
    """Who takes bands in a circle is predicted by the band before."""
    baselines = recipe_run[1]["questions"]["baselines"]
    assert baselines["last item"]["hit_ratio@1"]["value"] == 1.0
    assert baselines["chance"]["hit_ratio@1"]["value"] == pytest.approx(0.25)


def test_negatives_of_every_question_are_listed_titles(recipe_run):
    out, _ = recipe_run
    for group, values in zip(read_groups(out / "s_dpo" / "train.jsonl").groups, circle(range(8)), strict=True):
        assert [group.candidates[0].strip(), group.preferred] == [values["trueSelection"], 0]
        assert {text.strip() for text in group.candidates} == set(values["itemList"])


def test_a_file_is_given_on_the_command_line(tmp_path, capsys):
    source = write_rows(tmp_path / "rows.jsonl", circle(range(8)))
    config = tmp_path / "recommend.yaml"
    config.write_text(f"output: {tmp_path / 'out'}\n")
    command = ["recipe", "recommend", str(config), "--stage", "questions", "--json"]
    assert run([*command, f"questions={source}"]) == 0
    assert json.loads(capsys.readouterr().out)["questions"]["questions"] == {"train": 32, "validation": 4, "test": 4}
    assert run(command) == 2
    message = capsys.readouterr().err
    assert "interactions and titles: this is needed to make questions of; or give a file" in message
    assert "questions=FILE" in message


def test_a_changed_file_is_refused(tmp_path):
    source = write_folder(tmp_path / "lastfm")
    config = make_config(source, tmp_path / "out")
    recommend(config, only_stage="questions")
    (source / "lastfm-test.json").write_text(json.dumps(circle(range(11, 12))))
    with pytest.raises(ConfigError, match=r"questions's questions\.file was"):
        recommend(config, only_stage="questions")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interactions": "a.csv"}, "questions.file is given, and interactions would make questions"),
        ({"questions": {"file": "a", "min_count": 2}}, "and questions.min_count would make questions of interactions"),
        ({"questions": {"file": None}, "titles": "a"}, "interactions: this is needed to make questions of"),
    ],
)
def test_a_file_and_interactions_exclude_each_other(tmp_path, changes, message):
    with pytest.raises(ConfigError) as error:
        make_config("rows.jsonl", tmp_path, **changes)
    assert message in str(error.value)
