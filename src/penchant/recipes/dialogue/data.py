"""The first stages: pairs from every source, in parts; what people said of them; what style gives away."""

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
from penchant.errors import DataError, located
from penchant.evaluation.files import write_atomically
from penchant.evaluation.style import style_leak
from penchant.recipes.dialogue.config import DialogueConfig, SourceConfig
from penchant.recipes.dialogue.construction import Pair, for_review, from_ratings, from_styles
from penchant.recipes.dialogue.parting import PARTS, parts_of, topics_of
from penchant.recipes.dialogue.reading import read_answered
from penchant.recipes.reviewing import read_verdicts
from penchant.recipes.stages import StageResult

QUEUE = "queue.jsonl"


@dataclass(frozen=True)
class Question:
    """What models are asked in the test.

    Attributes:
        set: the source it is from.
        question: as people asked it.
        reference: the best answer.
        material: all that an answer may draw on without inventing.
    """

    set: str
    question: str
    reference: str
    material: str


def construct(config: DialogueConfig, folder: Path) -> StageResult:
    """Write preferences and supervised data in three parts, the test's questions and the queue for people."""
    parts: dict[str, list[PreferenceGroup]] = {part: [] for part in PARTS}
    supervised: dict[str, list[PreferenceGroup]] = {part: [] for part in PARTS}
    questions: list[Question] = []
    left_out: dict[str, dict[str, int]] = {}
    pairs: dict[str, list[Pair]] = {}
    for name, source in config.sources.items():
        pairs[name], left_out[name] = _pairs(config, source)
    _refuse_shared(config, pairs)
    topic_of = topics_of((pair.better.question, pair.better.topic) for those in pairs.values() for pair in those)
    topics = {name: {topic_of[pair.better.question] for pair in those} for name, those in pairs.items()}
    files = {name: source.file for name, source in config.sources.items()}
    part_of = parts_of(topics, files, config.held_out, config.seed)
    for name, those in pairs.items():
        for part in PARTS:
            own = [(n, pair) for n, pair in enumerate(those) if part_of[topic_of[pair.better.question]] == part]
            groups = [_group(config, name, n, pair) for n, pair in own]
            parts[part] += groups
            supervised[part] += list(_better(groups))
            if part == "test":
                questions += list(_questions(name, [pair for _, pair in own]))[: config.questions]
    for part in PARTS:
        write_anew(parts[part], folder / f"preferences_{part}.jsonl")
        write_anew(supervised[part], folder / f"supervised_{part}.jsonl")
    write_anew(for_review(parts["train"], config.review.most), folder / QUEUE)
    lines = [json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in questions]
    write_atomically(folder / "questions.jsonl", "".join(lines))
    return {
        "left_out": left_out,
        "pairs": {part: dict(Counter(group.source for group in parts[part])) for part in PARTS},
        "questions": dict(Counter(each.set for each in questions)),
    }


def review(config: DialogueConfig, folder: Path) -> StageResult:
    """Write the training data without what people have rejected.

    Raises:
        DataError: the verdicts' file is not there, or pairs of the queue wait for a verdict.
    """
    data = folder.parent / "data"
    groups = {name: read_groups(data / f"{name}_train.jsonl").groups for name in ("preferences", "supervised")}
    rejected, counts = read_verdicts(data / QUEUE, config.review.verdicts)
    # A better answer is taught unless each pair that it is the better of was rejected.
    kept = [group for group in groups["preferences"] if group.id not in rejected]
    taught = {(as_text(group.prompt), as_text(group.candidates[0])) for group in kept}
    write_anew(kept, folder / "preferences_train.jsonl")
    write_anew(
        [each for each in groups["supervised"] if (as_text(each.prompt), as_text(each.candidates[0])) in taught],
        folder / "supervised_train.jsonl",
    )
    return counts


def audit(folder: Path) -> StageResult:
    """Of each source's training pairs, what words and length alone know of the better one."""
    groups = read_groups(folder.parent / "review" / "preferences_train.jsonl").groups
    by_source: dict[str, list[PreferenceGroup]] = defaultdict(list)
    for group in groups:
        by_source[str(group.source)].append(group)
    found: dict[str, Any] = {}
    for name, those in by_source.items():
        with located(f"the pairs of {name}"):
            found[name] = style_leak(those).to_json()
    return found


def read_questions(folder: Path) -> list[Question]:
    """The test's, as `construct` wrote them."""
    return [Question(**row) for _, row in read_rows(folder / "questions.jsonl")]


def ask(config: DialogueConfig, question: str) -> Text:
    """The prompt of a question."""
    if config.template is None:
        return (Message(role="user", content=question),)
    return config.template.replace("{question}", question)


def _refuse_shared(config: DialogueConfig, pairs: Mapping[str, Sequence[Pair]]) -> None:
    whose: dict[str, str] = {}
    for name, those in pairs.items():
        for pair in those:
            first = whose.setdefault(pair.better.question, name)
            if first != name:
                raise DataError(
                    f"a question is in {first} too: {pair.better.question[:80]!r}",
                    where=config.sources[name].file,
                    fix="no question may be in two sources: give it to one of them",
                )


def _pairs(config: DialogueConfig, source: SourceConfig) -> tuple[list[Pair], dict[str, int]]:
    rated = source.pairs == "ratings"
    answers = read_answered(source.file, rating=source.rating if rated else None, turns=source.turns)
    dropped: Counter[str] = Counter()
    filters = config.filters.filters
    # A question asked and answered in the same words twice is one pair.
    distinct = list(dict.fromkeys(answers))
    if rated:
        pairs = from_ratings(distinct, filters, dropped)
    else:
        pairs = from_styles(distinct, config.rewriting.rewriter, filters, dropped)
    left = {why: count for why, count in dropped.items() if count}
    if not pairs:
        told = ", ".join(f"{count} {why}" for why, count in left.items()) or "there are no two answers to a question"
        raise DataError(f"no pair is left: {told}", where=source.file, fix="take more data, or loosen the filters")
    return pairs, left


def _group(config: DialogueConfig, name: str, number: int, pair: Pair) -> PreferenceGroup:
    given = [each.rating for each in (pair.better, pair.worse) if each.rating is not None]
    return PreferenceGroup(
        ask(config, pair.better.question),
        tuple(_answer(config, each.answer) for each in (pair.better, pair.worse)),
        scores=(given[0], given[1]) if given else None,
        preferred=None if given else 0,
        id=f"{name}-{number}",
        source=name,
    )


def _answer(config: DialogueConfig, text: str) -> Text:
    return (Message(role="assistant", content=text),) if config.template is None else f" {text}"


def _better(groups: Sequence[PreferenceGroup]) -> Iterator[PreferenceGroup]:
    """Each better answer once, to be imitated."""
    seen = set()
    for group in groups:
        key = (as_text(group.prompt), as_text(group.candidates[0]))
        if key not in seen:
            seen.add(key)
            yield PreferenceGroup(group.prompt, group.candidates[:1], id=group.id, source=group.source)


def _questions(name: str, pairs: Sequence[Pair]) -> Iterator[Question]:
    by_question: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_question[pair.better.question].append(pair)
    for question, those in by_question.items():
        best = max(those, key=lambda pair: pair.better.rating or 0.0).better
        told = [text for pair in those for text in (pair.better.answer, pair.worse.answer, pair.better.source)]
        yield Question(name, question, best.answer, "\n".join([question, *filter(None, dict.fromkeys(told))]))
