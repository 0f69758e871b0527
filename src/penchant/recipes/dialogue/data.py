"""The data stages: preference pairs of every source in three parts, people's review, and an audit of style."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from penchant.data.files import read_rows
from penchant.data.groups import Message, PreferenceGroup, Text, as_text
from penchant.data.reading import read_groups
from penchant.data.writing import write_anew
from penchant.errors import DataError, locate_errors
from penchant.evaluation.files import write_atomically
from penchant.evaluation.style import style_leak
from penchant.recipes.dialogue.config import DialogueConfig, SourceConfig
from penchant.recipes.dialogue.construction import Pair, for_review, from_ratings, from_styles
from penchant.recipes.dialogue.parting import PARTS, assign_parts, merge_topics
from penchant.recipes.dialogue.reading import read_answer_records
from penchant.recipes.reviewing import read_verdicts
from penchant.recipes.stages import StageResult

QUEUE = "queue.jsonl"


@dataclass(frozen=True)
class Question:
    """A test question.

    Attributes:
        set: name of the question's source, or of a set of probes.
        question: the question's text, without the prompt template.
        reference: the best answer.
        material: all text that an answer may take facts from.
    """

    set: str
    question: str
    reference: str
    material: str


def build_preference_data(config: DialogueConfig, folder: Path) -> StageResult:
    """Write preferences and supervised data in three parts, the test questions, and the queue for review.

    Returns:
        Numbers of dropped pairs, pairs and test questions.
    """
    parts: dict[str, list[PreferenceGroup]] = {part: [] for part in PARTS}
    supervised: dict[str, list[PreferenceGroup]] = {part: [] for part in PARTS}
    questions: list[Question] = []
    left_out: dict[str, dict[str, int]] = {}
    pairs: dict[str, list[Pair]] = {}
    for name, source in config.sources.items():
        pairs[name], left_out[name] = _pairs(config, source)
    _check_disjoint(config, pairs)
    topic_of = merge_topics(
        (pair.better.question, pair.better.topic) for source_pairs in pairs.values() for pair in source_pairs
    )
    topics = {name: {topic_of[pair.better.question] for pair in source_pairs} for name, source_pairs in pairs.items()}
    files = {name: source.file for name, source in config.sources.items()}
    part_of = assign_parts(topics, files, config.held_out, config.seed)
    for name, source_pairs in pairs.items():
        for part in PARTS:
            numbered_pairs = [
                (n, pair) for n, pair in enumerate(source_pairs) if part_of[topic_of[pair.better.question]] == part
            ]
            groups = [_group(config, name, n, pair) for n, pair in numbered_pairs]
            parts[part] += groups
            supervised[part] += list(_supervised_groups(groups))
            if part == "test":
                questions += list(_questions(name, [pair for _, pair in numbered_pairs]))[: config.questions]
    for part in PARTS:
        write_anew(parts[part], folder / f"preferences_{part}.jsonl")
        write_anew(supervised[part], folder / f"supervised_{part}.jsonl")
    write_anew(for_review(parts["train"], config.review.most), folder / QUEUE)
    lines = [json.dumps(asdict(question), ensure_ascii=False) + "\n" for question in questions]
    write_atomically(folder / "questions.jsonl", "".join(lines))
    return {
        "left_out": left_out,
        "pairs": {part: dict(Counter(group.source for group in parts[part])) for part in PARTS},
        "questions": dict(Counter(question.set for question in questions)),
    }


def apply_review(config: DialogueConfig, folder: Path) -> StageResult:
    """Write the training data without the pairs that people rejected.

    Raises:
        DataError: the verdict file is missing, or pairs of the queue have no verdict yet.
    """
    data = folder.parent / "data"
    groups = {name: read_groups(data / f"{name}_train.jsonl").groups for name in ("preferences", "supervised")}
    rejected, counts = read_verdicts(data / QUEUE, config.review.verdicts)
    # A better answer stays in the supervised data unless all of its pairs were rejected.
    accepted = [group for group in groups["preferences"] if group.id not in rejected]
    supervised_keys = {(as_text(group.prompt), as_text(group.candidates[0])) for group in accepted}
    write_anew(accepted, folder / "preferences_train.jsonl")
    write_anew(
        [
            group
            for group in groups["supervised"]
            if (as_text(group.prompt), as_text(group.candidates[0])) in supervised_keys
        ],
        folder / "supervised_train.jsonl",
    )
    return counts


def audit_style(folder: Path) -> StageResult:
    """How well words and length alone predict the better answer, for the training pairs of every source."""
    groups = read_groups(folder.parent / "review" / "preferences_train.jsonl").groups
    by_source: dict[str, list[PreferenceGroup]] = defaultdict(list)
    for group in groups:
        by_source[str(group.source)].append(group)
    audits: dict[str, Any] = {}
    for name, source_groups in by_source.items():
        with locate_errors(f"the pairs of {name}"):
            audits[name] = style_leak(source_groups).to_json()
    return audits


def read_questions(folder: Path) -> list[Question]:
    """The test questions, as `build_preference_data` wrote them."""
    return [Question(**row) for _, row in read_rows(folder / "questions.jsonl")]


def question_prompt(config: DialogueConfig, question: str) -> Text:
    """The prompt of a question."""
    if config.template is None:
        return (Message(role="user", content=question),)
    return config.template.replace("{question}", question)


def _check_disjoint(config: DialogueConfig, pairs: Mapping[str, Sequence[Pair]]) -> None:
    source_of: dict[str, str] = {}
    for name, source_pairs in pairs.items():
        for pair in source_pairs:
            other = source_of.setdefault(pair.better.question, name)
            if other != name:
                raise DataError(
                    f"a question is in {other} too: {pair.better.question[:80]!r}",
                    where=config.sources[name].file,
                    fix="no question may be in two sources: give it to one of them",
                )


def _pairs(config: DialogueConfig, source: SourceConfig) -> tuple[list[Pair], dict[str, int]]:
    rated = source.pairs == "ratings"
    answers = read_answer_records(source.file, rating=source.rating if rated else None, turns=source.turns)
    dropped: Counter[str] = Counter()
    filters = config.filters.filters
    # Repeated rows with the same question and answer count once.
    distinct = list(dict.fromkeys(answers))
    if rated:
        pairs = from_ratings(distinct, filters, dropped)
    else:
        pairs = from_styles(distinct, config.rewriting.rewriter, filters, dropped)
    left = {reason: count for reason, count in dropped.items() if count}
    if not pairs:
        reasons = (
            ", ".join(f"{count} {reason}" for reason, count in left.items()) or "there are no two answers to a question"
        )
        raise DataError(f"no pair is left: {reasons}", where=source.file, fix="take more data, or loosen the filters")
    return pairs, left


def _group(config: DialogueConfig, name: str, number: int, pair: Pair) -> PreferenceGroup:
    ratings = [answer.rating for answer in (pair.better, pair.worse) if answer.rating is not None]
    return PreferenceGroup(
        question_prompt(config, pair.better.question),
        tuple(_answer(config, answer.answer) for answer in (pair.better, pair.worse)),
        scores=(ratings[0], ratings[1]) if ratings else None,
        preferred=None if ratings else 0,
        id=f"{name}-{number}",
        source=name,
    )


def _answer(config: DialogueConfig, text: str) -> Text:
    return (Message(role="assistant", content=text),) if config.template is None else f" {text}"


def _supervised_groups(groups: Sequence[PreferenceGroup]) -> Iterator[PreferenceGroup]:
    """A supervised group for every distinct better answer."""
    answers = set()
    for group in groups:
        key = (as_text(group.prompt), as_text(group.candidates[0]))
        if key not in answers:
            answers.add(key)
            yield PreferenceGroup(group.prompt, group.candidates[:1], id=group.id, source=group.source)


def _questions(name: str, pairs: Sequence[Pair]) -> Iterator[Question]:
    by_question: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_question[pair.better.question].append(pair)
    for question, question_pairs in by_question.items():
        best = max(question_pairs, key=lambda pair: pair.better.rating or 0.0).better
        texts = [
            text for pair in question_pairs for text in (pair.better.answer, pair.worse.answer, pair.better.source)
        ]
        yield Question(name, question, best.answer, "\n".join([question, *filter(None, dict.fromkeys(texts))]))
