"""The data stages: preference pairs of every source in three parts, people's review, and an audit of style."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from penchant.api import (
    DataError,
    Message,
    PreferenceGroup,
    Text,
    as_text,
    locate_errors,
    read_groups,
    read_rows,
    split_by_prompt,
    style_leak,
    write_anew,
    write_atomically,
)
from penchant.recipes.dialogue.config import DialogueConfig, SourceConfig
from penchant.recipes.dialogue.construction import Pair, for_review, from_ratings, from_styles
from penchant.recipes.dialogue.rewriting import read_answer_records
from penchant.recipes.results import read_verdicts
from penchant.recipes.stages import StageResult

PARTS = ("train", "validation", "test")


def merge_topics(questions: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """The topic of every question, the question itself where it has none; topics that share a question are merged."""
    parents: dict[str, str] = {}

    def root(topic: str) -> str:
        while parents.setdefault(topic, topic) != topic:
            topic = parents[topic]
        return topic

    topic_of: dict[str, str] = {}
    for question, topic_name in questions:
        topic = topic_name or question
        one, other = sorted((root(topic), root(topic_of.setdefault(question, topic))))
        parents[other] = one
    return {question: root(topic) for question, topic in topic_of.items()}


def assign_parts(
    topics: Mapping[str, Set[str]], files: Mapping[str, str], held_out: float, seed: int
) -> dict[str, str]:
    """The part ("train", "validation" or "test") of every topic.

    Topics of the same set of sources are split among themselves, so that every source has its share of each part;
    where they are too few to split, they are all in training.

    Args:
        topics: topics by source.
        files: file names by source, for error messages.
        held_out: share of topics for the test, and again for validation.

    Raises:
        DataError: a source would have no topic in a part.
    """
    by_sources: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for topic in sorted(set().union(*topics.values())):
        by_sources[tuple(name for name, source_topics in topics.items() if topic in source_topics)].append(topic)
    part_of: dict[str, str] = {}
    for shared_topics in by_sources.values():
        remaining, test = _split(shared_topics, held_out, seed)
        train, validation = _split(remaining, held_out / (1 - held_out), seed)
        part_of |= {
            topic: part for part, members in zip(PARTS, (train, validation, test), strict=True) for topic in members
        }
    for name, source_topics in topics.items():
        lacking = [part for part in PARTS if part not in {part_of[topic] for topic in source_topics}]
        if lacking:
            raise DataError(
                f"{len(source_topics)} topics leave nothing for {' and '.join(lacking)}",
                where=files[name],
                fix="give more topics (a question without one is its own), fewer that other sources share, or another "
                "held_out",
            )
    return part_of


def _split(topics: Sequence[str], held_out: float, seed: int) -> tuple[list[str], list[str]]:
    try:
        sides = split_by_prompt([PreferenceGroup(topic, ("",)) for topic in topics], held_out=held_out, seed=seed)
    except DataError:
        return list(topics), []
    remaining, out = ([str(group.prompt) for group in side] for side in sides)
    return remaining, out


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
