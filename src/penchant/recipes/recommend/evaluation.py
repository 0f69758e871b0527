"""The last stage: ranks of the candidates and answers in words on the test questions, and the report page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from penchant.api import (
    Estimate,
    PreferenceGroup,
    RunReport,
    Sampling,
    TargetRank,
    as_text,
    read_groups,
    write_atomically,
)
from penchant.recipes.reading import generate_answers
from penchant.recipes.recommend.catalogue import rank_catalogue
from penchant.recipes.recommend.config import RecommendConfig
from penchant.recipes.recommend.questions import (
    QuestionFacts,
    answer_metrics,
    mean_over_users,
    ranking_metrics,
    read_catalogue,
    read_facts,
)
from penchant.recipes.results import estimate_table, recommend_headline
from penchant.recipes.stages import StageResult

LogProbs = Callable[[str, Sequence[PreferenceGroup], RecommendConfig], list[tuple[float, ...]]]

TITLE_TOKENS = 64
"""Maximal tokens of an answer; a longer title counts as not named."""


def evaluate(config: RecommendConfig, folder: Path, models: Mapping[str, str], log_probs: LogProbs) -> StageResult:
    """The metrics of every model, its hit ratios by kind of question, and the differences between models."""
    questions = folder.parent / "questions"
    groups, facts = read_groups(questions / "test.jsonl").groups, read_facts(questions)
    users = [question.user for question in facts]
    targets = [group.preferred or 0 for group in groups]
    metrics_by_model: dict[str, dict[str, Any]] = {}
    hits: dict[str, list[float]] = {}
    for name, model in models.items():
        scores = log_probs(model, groups, config)
        ranks = [TargetRank.by_scores(row, target) for row, target in zip(scores, targets, strict=True)]
        hits[name] = [rank.hit(1) for rank in ranks]
        ranking = ranking_metrics(ranks, users, config.cutoffs)
        catalogue = _catalogue_metrics(config, model, facts, list(read_catalogue(questions)))
        answer_results, answers = _answer_metrics(config, model, groups, targets, users)
        rows = [
            {"id": group.id, "above": rank.n_higher, "tied": rank.n_tied, "answer": text}
            for group, rank, text in zip(groups, ranks, answers, strict=True)
        ]
        write_atomically(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        metrics_by_model[name] = {key: value.to_json() for key, value in {**ranking, **answer_results}.items()}
        metrics_by_model[name]["catalogue"] = {key: value.to_json() for key, value in catalogue.items()}
        metrics_by_model[name]["by"] = _by_kind(facts, hits[name])
    gains = {
        name: {
            other: mean_over_users([a - b for a, b in zip(hits[name], hits[other], strict=True)], users).to_json()
            for other in hits
            if other != name
        }
        for name in hits
    }
    return {"models": metrics_by_model, "hit_ratio@1_over": gains}


def _catalogue_metrics(
    config: RecommendConfig, model: str, facts: Sequence[QuestionFacts], titles: Sequence[str]
) -> dict[str, Estimate]:
    """Ranking metrics among all titles that the user had not taken; empty if no question is ranked so."""
    questions = facts[: config.catalogue]
    if not questions:
        return {}
    ranks = []
    reading = config.data.evaluation_reading(config.token_budget)
    ranked = rank_catalogue(model, [q.history for q in questions], titles, config.questions.wording, reading)
    for question, log_probs in zip(questions, ranked, strict=True):
        items_of_user = set(question.known) - {question.target}
        candidates = {
            title: value for title, value in zip(titles, log_probs, strict=True) if title not in items_of_user
        }
        ranks.append(TargetRank.by_scores(list(candidates.values()), list(candidates).index(question.target)))
    return ranking_metrics(ranks, [question.user for question in questions], config.cutoffs)


def _answer_metrics(
    config: RecommendConfig, model: str, groups: Sequence[PreferenceGroup], targets: Sequence[int], users: Sequence[str]
) -> tuple[dict[str, Estimate], list[str | None]]:
    """The metrics of greedy answers and the answers, which are None for questions that are not answered."""
    n = len(groups) if config.answers is None else min(config.answers, len(groups))
    if n == 0:
        return {}, [None] * len(groups)
    sampling = Sampling(temperature=0.0, max_new_tokens=TITLE_TOKENS)
    prompts = [group.prompt for group in groups[:n]]
    answers = [samples[0] for samples in generate_answers(model, prompts, sampling, config.data)]
    titles = [[as_text(text).strip() for text in group.candidates] for group in groups[:n]]
    return answer_metrics(answers, titles, targets[:n], users[:n]), [*answers, *[None] * (len(groups) - n)]


def _by_kind(facts: Sequence[QuestionFacts], hits: Sequence[float]) -> dict[str, Any]:
    """Hit ratio at 1 in the thirds of questions by length of history, and by popularity of the target."""
    metrics = {}
    for kind in ("history", "popularity"):
        values = [len(question.history) if kind == "history" else question.popularity for question in facts]
        ordered = sorted(values)
        edges = [ordered[len(ordered) * i // 3] for i in (1, 2)]
        thirds = [sum(value >= edge for edge in edges) for value in values]
        for third in sorted(set(thirds)):
            inside = [i for i, third_of_question in enumerate(thirds) if third_of_question == third]
            label = f"{kind} {min(values[i] for i in inside)} to {max(values[i] for i in inside)}"
            metrics[label] = mean_over_users([hits[i] for i in inside], [facts[i].user for i in inside]).to_json()
    return metrics


def _list_length(config: RecommendConfig) -> str:
    return str(config.questions.candidates) if config.questions.file is None else "its row's"


def build_report(config: RecommendConfig, results: Mapping[str, StageResult]) -> RunReport:
    """The report page of the stages' results."""
    questions, evaluation = results["questions"], results["evaluation"]
    rows: dict[str, Mapping[str, Any]] = {**questions["baselines"], **evaluation["models"]}
    columns = list(dict.fromkeys(key for row in rows.values() for key in row if key not in ("by", "catalogue")))
    catalogue = {name: row["catalogue"] for name, row in rows.items() if row.get("catalogue")}
    catalogue_note = "Questions without a list: all titles that the user had not taken are ranked."
    return RunReport(
        title="Recommendation: which title is taken next",
        summary=[
            recommend_headline(results),
            *((f"{part} questions", str(n)) for part, n in questions["questions"].items()),
            ("users", str(questions["users"])),
            ("titles in the catalogue", str(questions["items"])),
            *((reason, str(n)) for reason, n in questions["dropped"].items()),
        ],
        tables=[
            estimate_table(
                "On test questions",
                rows,
                f"Every question lists {_list_length(config)} titles. Ranks are by a title's log-prob, with "
                "the expected value over ties. Columns said_ are of greedy answers, which are valid if they name "
                "exactly one title. 95 % intervals over users. The rows 'alone' ignore histories: a value above "
                "popularity would show a leak.",
                columns,
            ),
            estimate_table(
                "Hit ratio at 1: row less column",
                evaluation["hit_ratio@1_over"],
                "On the same questions, with 95 % intervals over users that are not corrected for their number.",
                list(evaluation["hit_ratio@1_over"]),
            ),
            *([estimate_table("Among the whole catalogue", catalogue, catalogue_note)] if catalogue else []),
            estimate_table(
                "Hit ratio at 1 by kind of question",
                {name: row["by"] for name, row in evaluation["models"].items()},
                "Thirds of the questions by the history's length and by the target's interactions in training.",
            ),
        ],
    )
