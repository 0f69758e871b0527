"""Every model on the test questions: ranks of the titles offered, answers in words, and the page that shows them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from penchant.data.groups import PreferenceGroup, as_text
from penchant.data.reading import read_groups
from penchant.evaluation.files import write_atomically
from penchant.evaluation.generation import Sampling
from penchant.evaluation.one_preferred import TargetRank
from penchant.evaluation.report import RunReport, Table, show, write_report
from penchant.evaluation.statistics import Estimate
from penchant.recipes.headline import recommend_headline
from penchant.recipes.reading import generate_answers
from penchant.recipes.recommend.catalogue import rank_catalogue
from penchant.recipes.recommend.config import RecommendConfig
from penchant.recipes.recommend.measures import over_users, ranking_measures, said_measures
from penchant.recipes.recommend.questions import Asked, read_about, read_catalogue
from penchant.recipes.stages import StageResult

LogProbs = Callable[[str, Sequence[PreferenceGroup], RecommendConfig], list[tuple[float, ...]]]

TITLE_TOKENS = 64
"""An answer's longest; a title that is longer counts as not said."""


def evaluate(config: RecommendConfig, folder: Path, models: Mapping[str, str], log_probs: LogProbs) -> StageResult:
    """Measures of each model, hit ratios by kind of question, and by how much each model's exceeds another's."""
    questions = folder.parent / "questions"
    groups, about = read_groups(questions / "test.jsonl").groups, read_about(questions)
    users = [each.user for each in about]
    targets = [group.preferred or 0 for group in groups]
    found: dict[str, dict[str, Any]] = {}
    hits: dict[str, list[float]] = {}
    for name, model in models.items():
        scores = log_probs(model, groups, config)
        ranks = [TargetRank.by_scores(row, target) for row, target in zip(scores, targets, strict=True)]
        hits[name] = [rank.hit(1) for rank in ranks]
        measures = ranking_measures(ranks, users, config.cutoffs)
        of_catalogue = _of_catalogue(config, model, about, list(read_catalogue(questions)))
        said, words = _said(config, model, groups, targets, users)
        rows = [
            {"id": group.id, "above": rank.above, "tied": rank.tied, "answer": text}
            for group, rank, text in zip(groups, ranks, words, strict=True)
        ]
        write_atomically(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        found[name] = {key: value.to_json() for key, value in {**measures, **said}.items()}
        found[name]["catalogue"] = {key: value.to_json() for key, value in of_catalogue.items()}
        found[name]["by"] = _by_kind(about, hits[name])
    gains = {
        name: {
            other: over_users([a - b for a, b in zip(each, theirs, strict=True)], users).to_json()
            for other, theirs in hits.items()
            if other != name
        }
        for name, each in hits.items()
    }
    return {"models": found, "hit_ratio@1_over": gains}


def _of_catalogue(
    config: RecommendConfig, model: str, about: Sequence[Asked], titles: Sequence[str]
) -> dict[str, Estimate]:
    """Measures among all titles the user had not taken."""
    asked = about[: config.catalogue]
    if not asked:
        return {}
    ranks = []
    reading = config.data.evaluation_reading(config.token_budget)
    ranked = rank_catalogue(model, [q.history for q in asked], titles, config.questions.wording, reading)
    for question, log_probs in zip(asked, ranked, strict=True):
        known = set(question.known) - {question.target}
        left = {title: value for title, value in zip(titles, log_probs, strict=True) if title not in known}
        ranks.append(TargetRank.by_scores(list(left.values()), list(left).index(question.target)))
    return ranking_measures(ranks, [question.user for question in asked], config.cutoffs)


def _said(
    config: RecommendConfig, model: str, groups: Sequence[PreferenceGroup], targets: Sequence[int], users: Sequence[str]
) -> tuple[dict[str, Estimate], list[str | None]]:
    n = len(groups) if config.answers is None else min(config.answers, len(groups))
    if n == 0:
        return {}, [None] * len(groups)
    sampling = Sampling(temperature=0.0, max_new_tokens=TITLE_TOKENS)
    prompts = [group.prompt for group in groups[:n]]
    answers = [samples[0] for samples in generate_answers(model, prompts, sampling, config.data)]
    titles = [[as_text(text).strip() for text in group.candidates] for group in groups[:n]]
    return said_measures(answers, titles, targets[:n], users[:n]), [*answers, *[None] * (len(groups) - n)]


def _by_kind(about: Sequence[Asked], hits: Sequence[float]) -> dict[str, Any]:
    """Hit ratio at 1 in the thirds of questions by length of history, and by popularity of the target."""
    found = {}
    for kind in ("history", "popularity"):
        values = [len(each.history) if kind == "history" else each.popularity for each in about]
        ordered = sorted(values)
        edges = [ordered[len(ordered) * i // 3] for i in (1, 2)]
        thirds = [sum(value >= edge for edge in edges) for value in values]
        for third in sorted(set(thirds)):
            inside = [i for i, each in enumerate(thirds) if each == third]
            spoken = f"{kind} {min(values[i] for i in inside)} to {max(values[i] for i in inside)}"
            found[spoken] = over_users([hits[i] for i in inside], [about[i].user for i in inside]).to_json()
    return found


def write_result(folder: Path, config: RecommendConfig, found: Mapping[str, StageResult]) -> None:
    """`result.json` and `report.html`."""
    write_atomically(folder / "result.json", json.dumps(dict(found), indent=2, ensure_ascii=False) + "\n")
    asked, measured = found["questions"], found["evaluation"]
    rows: dict[str, Mapping[str, Any]] = {**asked["baselines"], **measured["models"]}
    columns = list(dict.fromkeys(key for row in rows.values() for key in row if key not in ("by", "catalogue")))
    whole = list(measured["models"]["sft"]["catalogue"])
    kinds = list(next(iter(measured["models"].values()))["by"])
    report = RunReport(
        title="Recommendation: which title is taken next",
        summary=[
            recommend_headline(found),
            *((f"{part} questions", str(n)) for part, n in asked["questions"].items()),
            ("users", str(asked["users"])),
            ("titles in the catalogue", str(asked["items"])),
            *((what, str(n)) for what, n in asked["dropped"].items()),
        ],
        tables=[
            Table(
                "On test questions",
                ("", *columns),
                [(name, *(show(row.get(key)) for key in columns)) for name, row in rows.items()],
                f"Each question offers {config.questions.candidates} titles. Ranks are by a title's log-prob, ties in "
                "expectation; said_ is of greedy answers, valid where exactly one title is named. 95 % intervals over "
                "users. The rows 'alone' read no history: above popularity they would show a leak.",
            ),
            Table(
                "Hit ratio at 1: row less column",
                ("", *measured["hit_ratio@1_over"]),
                [
                    (name, *(show(row.get(other)) for other in measured["hit_ratio@1_over"]))
                    for name, row in measured["hit_ratio@1_over"].items()
                ],
                "Of the same questions; 95 % intervals over users, each for itself.",
            ),
            *(
                [
                    Table(
                        "Among the whole catalogue",
                        ("", *whole),
                        [
                            (name, *(show(row.get("catalogue", {}).get(key)) for key in whole))
                            for name, row in rows.items()
                            if row.get("catalogue")
                        ],
                        "Questions without a list: every title the user had not taken is ranked.",
                    )
                ]
                if whole
                else []
            ),
            Table(
                "Hit ratio at 1 by kind of question",
                ("", *kinds),
                [(name, *(show(row["by"].get(kind)) for kind in kinds)) for name, row in measured["models"].items()],
                "Thirds of the questions by items in the history, and by how often the target was taken in training.",
            ),
        ],
        config_yaml=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )
    write_report(folder / "report.html", report)
