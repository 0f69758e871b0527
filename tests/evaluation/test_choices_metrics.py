"""GLUE's published metrics against scikit-learn and SciPy, on whole samples and on resamples."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from penchant.errors import DataError
from penchant.evaluation.choices import Question, ScoredQuestion, evaluate_choices
from penchant.evaluation.choices_metrics import METRICS, mean_of
from penchant.evaluation.choices_readers import read_questions
from penchant.evaluation.choices_suites import SUITES, ChoicesReport, evaluate_suite
from penchant.evaluation.statistics import bootstrap_weighted

THEIRS = {
    "accuracy": lambda predicted, true: accuracy_score(true, predicted),
    "matthews": lambda predicted, true: matthews_corrcoef(true, predicted),
    "f1": lambda predicted, true: f1_score(true, predicted, zero_division=0),
    "pearson": lambda predicted, true: stats.pearsonr(predicted, true).statistic,
    "spearman": lambda predicted, true: stats.spearmanr(predicted, true).statistic,
}
CLASSES, NUMBERS = ("accuracy", "matthews", "f1"), ("pearson", "spearman")


def sample(metric: str, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and true values that agree more often than not; numbers have many ties."""
    draw = np.random.default_rng(seed)
    if metric in CLASSES:
        true = draw.integers(2, size=size).astype(float)
        return np.where(draw.random(size) < 0.3, 1 - true, true), true
    true = np.round(draw.random(size) * 5, 2)
    return np.clip(np.round(true + draw.normal(size=size)), 0, 5), true


@pytest.mark.parametrize("metric", METRICS)
def test_equals_theirs(metric):
    for seed in range(5):
        predicted, true = sample(metric, 40, seed)
        [value] = METRICS[metric].of_weights(predicted, true)(np.ones((1, 40)))
        assert value == pytest.approx(THEIRS[metric](predicted, true), abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_weights_are_repeated_questions(metric):
    """A question of weight w counts as w equal ones; Spearman's ranks are those within the resample."""
    predicted, true = sample(metric, 30, 7)
    weights = np.random.default_rng(1).integers(4, size=(6, 30)).astype(float)
    values = METRICS[metric].of_weights(predicted, true)(weights)
    for row, value in zip(weights.astype(int), values, strict=True):
        assert value == pytest.approx(THEIRS[metric](np.repeat(predicted, row), np.repeat(true, row)), abs=1e-12)


def test_classes_of_any_kind():
    """Also where a class is never predicted or never true, for which scikit-learn has 0 too."""
    for pairs in itertools.product(itertools.product((0.0, 1.0), repeat=2), repeat=2):
        predicted, true = map(np.array, zip(*pairs, strict=True))
        for metric in ("matthews", "f1"):
            [value] = METRICS[metric].of_weights(predicted, true)(np.ones((1, 2)))
            with warnings.catch_warnings(action="ignore"):
                assert value == pytest.approx(THEIRS[metric](predicted, true), abs=1e-12)


@pytest.mark.parametrize("metric", NUMBERS)
def test_predictions_that_do_not_vary_correlate_with_nothing(metric):
    of_weights = METRICS[metric].of_weights(np.full(9, 2.6), np.arange(9.0))
    assert of_weights(np.ones((1, 9))).tolist() == [0.0]


@pytest.mark.parametrize("metric", ["matthews", "f1", "accuracy", *NUMBERS])
def test_chance_is_what_guesses_come_to(metric):
    """The mean over many uniform guesses, on many questions of which a quarter has class 1."""
    draw = np.random.default_rng(0)
    true = np.repeat([1.0, 0.0], [1000, 3000])
    values = [
        METRICS[metric].of_weights(draw.integers(2, size=4000).astype(float), true)(np.ones((1, 4000)))[0]
        for _ in range(20)
    ]
    assert np.mean(values) == pytest.approx(METRICS[metric].chance(true), abs=0.01)


def test_the_interval_is_of_resampled_clusters():
    """Percentiles of the mean of accuracy and F1 over the same resamples, computed by scikit-learn."""
    predicted, true = sample("f1", 24, 3)
    clusters = np.arange(24) // 2
    estimate = bootstrap_weighted(mean_of(["accuracy", "f1"], predicted, true), clusters, resamples=20, seed=5)
    cluster_rows = np.random.default_rng(5).integers(12, size=(20, 12))
    values = []
    for row in cluster_rows:
        index = np.concatenate([np.flatnonzero(clusters == cluster) for cluster in row])
        values.append((THEIRS["accuracy"](predicted[index], true[index]) + f1_score(true[index], predicted[index])) / 2)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(values, (0.025, 0.975))))
    assert estimate.value == pytest.approx((accuracy_score(true, predicted) + f1_score(true, predicted)) / 2)


def scored(task: str, chosen: list[int], right: list[int]) -> list[ScoredQuestion]:
    """Questions answered no and yes, with the options' indices that a score called log chooses."""
    return [
        ScoredQuestion(
            Question(f"p{i}", ("no", "yes"), true, task, f"f, line {i}"), {"log": (0.0, 1.0) if k else (1.0, 0.0)}
        )
        for i, (k, true) in enumerate(zip(chosen, right, strict=True))
    ]


class TestTasks:
    CHOSEN, RIGHT = [1, 1, 0, 0, 1, 0, 1, 0, 1], [1, 0, 0, 1, 1, 0, 1, 0, 0]

    @pytest.mark.parametrize(("task", "names"), [("cola", ["matthews"]), ("mrpc", ["accuracy", "f1"])])
    def test_a_task_is_published_by_the_mean_of_its_metrics(self, task, names):
        report = evaluate_choices(task, scored(task, self.CHOSEN, self.RIGHT), resamples=50)
        expected = {name: THEIRS[name](np.array(self.CHOSEN), np.array(self.RIGHT)) for name in names}
        assert {name: values["log"].value for name, values in report.official.metrics.items()} == pytest.approx(
            expected
        )
        assert report.official.value["log"].value == pytest.approx(sum(expected.values()) / len(expected))
        document = report.to_json()["official"]
        assert document["metrics"][names[0]]["log"]["n"] == 9
        assert document["chance"] == report.official.chance

    def test_any_other_task_is_published_by_its_accuracy(self):
        report = evaluate_choices("rte", scored("rte", self.CHOSEN, self.RIGHT), resamples=50)
        assert report.official.value == report.accuracy
        assert (report.official.chance, report.official.metrics) == (0.5, {})

    def test_a_tie_is_chosen_wrong(self):
        row = ScoredQuestion(Question("p", ("no", "yes"), 0, "cola", "f"), {"log": (1.0, 1.0)})
        assert (row.choice("log"), row.is_right("log")) == (1, False)
        row = ScoredQuestion(Question("p", ("a", "b", "c"), 0, "t", "f"), {"log": (0.0, 1.0, 1.0)})
        assert row.choice("log") == 1

    def test_chosen_numbers_are_correlated_with_the_exact_ones(self, tmp_path: Path):
        """STS-B: options 0.0 to 5.0, the chosen one against the file's number, by Pearson and Spearman."""
        numbers = [0.0, 1.13, 2.5, 3.333, 4.9, 5.0]
        file = tmp_path / "stsb.jsonl"
        rows = [{"sentence1": f"a{i}", "sentence2": "b", "label": number} for i, number in enumerate(numbers)]
        file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "label": -1}]))
        read = read_questions("stsb", file)
        assert [q.options[q.right] for q in read.questions] == ["0.0", "1.2", "2.6", "3.4", "5.0", "5.0"]
        assert read.left_out == {"no label": 1}
        chosen = [0, 9, 5, 20, 20, 25]
        answers = [
            ScoredQuestion(q, {"log": tuple(float(k == index) for k in range(26))})
            for q, index in zip(read.questions, chosen, strict=True)
        ]
        metrics = evaluate_choices("stsb", answers, resamples=50).official.metrics
        values = np.array(chosen) / 5
        assert metrics["pearson"]["log"].value == pytest.approx(stats.pearsonr(values, numbers).statistic)
        assert metrics["spearman"]["log"].value == pytest.approx(stats.spearmanr(values, numbers).statistic)

    def test_glue_is_the_mean_of_nine_with_both_parts_of_mnli_as_one(self):
        reports = [
            evaluate_choices(task, scored(task, self.CHOSEN, self.RIGHT), resamples=50) for task in SUITES["glue"].tasks
        ]
        chosen, right = np.array(self.CHOSEN), np.array(self.RIGHT)
        share, f1 = accuracy_score(right, chosen), f1_score(right, chosen)
        correlations = (THEIRS["pearson"](chosen, right) + THEIRS["spearman"](chosen, right)) / 2
        tasks = [matthews_corrcoef(right, chosen), (share + f1) / 2, (share + f1) / 2, correlations, *[share] * 5]
        report = evaluate_suite(SUITES["glue"], reports)
        assert report.mean["log"].value == pytest.approx(sum(tasks) / 9)
        document = ChoicesReport(tuple(reports), report).to_json()
        assert document["suite"]["mean"]["log"]["value"] == pytest.approx(sum(tasks) / 9)
        assert {"matthews", "f1", "pearson", "spearman"} <= document["definitions"].keys()


@pytest.mark.parametrize(
    ("task", "header", "row", "right"),
    [
        ("mrpc", ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"], ["1", "8", "9", "Cats.", "Dogs."], "yes"),
        ("qqp", ["id", "question1", "question2", "is_duplicate"], ["0", "Cats?", "Dogs?", "0"], "no"),
        ("mnli_matched", ["index", "sentence1", "sentence2", "gold_label"], ["0", "A.", "B.", "contradiction"], "no"),
        ("qnli", ["index", "question", "sentence", "label"], ["0", "A?", "B.", "not_entailment"], "no"),
        ("stsb", ["index", "sentence1", "sentence2", "score"], ["0", "A.", "B.", "3.800"], "3.8"),
    ],
)
def test_the_benchmarks_own_files(task, header, row, right, tmp_path):
    file = tmp_path / "dev.tsv"
    file.write_text("\t".join(header) + "\n" + "\t".join(row) + "\n")
    [question] = read_questions(task, file).questions
    assert question.options[question.right] == right


def test_a_similarity_out_of_range_is_refused(tmp_path):
    file = tmp_path / "stsb.jsonl"
    file.write_text(json.dumps({"sentence1": "a", "sentence2": "b", "label": 5.5}))
    with pytest.raises(DataError, match="a number from 0 to 5"):
        read_questions("stsb", file)
