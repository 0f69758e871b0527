"""Public data sets as they are published, for the scripts beside this file, and how those scripts end on an error.

DATA holds a folder for each set, with files as `SOURCES` says. The first three sets may also be JSON lines:
paragraphs.jsonl (reg, section, heading, kind, text) and definitions.jsonl (reg, term, text); qa.jsonl (question,
answer, focus, qtype); pairs.jsonl (question_id, prompt, chosen, rejected, upvotes_chosen, upvotes_rejected).
"""

from __future__ import annotations

import csv
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from penchant.api import DataError, PenchantError, read_rows

Row = dict[str, Any]

REGML = "{eregs}"

SOURCES = {
    "cfpb": "github.com/cfpb/regulations-xml: regulation/PART/VERSION.xml, one version of each part",
    "medquad": "github.com/abachaa/MedQuAD: the folders of XML files",
    "counsel_chat": "github.com/nbertagnolli/counsel-chat: data/20200325_counsel_chat.csv",
    "mts_dialog": "github.com/abachaa/MTS-Dialog: Main-Dataset/MTS-Dialog-TrainingSet.csv",
    "openbookqa": "github.com/AGI-Edgerunners/LLM-Adapters: dataset/openbookqa/train.json",
    "ARC-Easy": "github.com/AGI-Edgerunners/LLM-Adapters: dataset/ARC-Easy/train.json",
    "bfcl": "github.com/ShishirPatil/gorilla: berkeley-function-call-leaderboard/bfcl_eval/data, with possible_answer",
    "glaive_toolcall": "github.com/hiyouga/LLaMA-Factory: data/glaive_toolcall_en_demo.json",
    "alfworld_react": "github.com/ysymyth/ReAct: prompts/alfworld.json",
}
"""The repository and path of every set's files, by the set's folder in DATA."""


def run_script(make: Callable[..., None], usage: str) -> None:
    """Call `make` with the folders of the command line; a user's error ends it with one message and status 2."""
    arguments = [Path(argument) for argument in sys.argv[1:]]
    if len(arguments) != len(inspect.signature(make).parameters):
        print(usage, file=sys.stderr)
        raise SystemExit(2)
    try:
        make(*arguments)
    except PenchantError as error:
        message = str(error)
    except OSError as error:
        message = (
            f"{error.filename}: {error.strerror}\n  what to do: name folders that can be read, and written for OUT"
        )
    else:
        return
    print(message, file=sys.stderr)
    raise SystemExit(2)


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Write JSON lines into a file, whose folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def regulations(data: Path) -> tuple[list[Row], list[Row]]:
    """Paragraphs (reg, section, heading, kind, text) and definitions (reg, term, text) of all parts."""
    folder = data / "cfpb"
    files = sorted(folder.glob("**/*.xml"))
    if not files:
        paragraphs = rows_of(folder / "paragraphs.jsonl", ("reg", "section", "heading", "kind", "text"))
        return paragraphs, rows_of(folder / "definitions.jsonl", ("reg", "term", "text"))
    paragraphs, definitions, files_by_part = [], [], {}
    for file in files:
        part = next(_root(file).iter(f"{REGML}part"), None)
        if part is None or part.get("partNumber") is None:
            raise DataError("there is no part of a regulation", where=str(file), fix="give regulation/PART/VERSION.xml")
        number = str(part.get("partNumber"))
        if number in files_by_part:
            raise DataError(
                f"part {number} is in {files_by_part[number].name} too", where=str(file), fix="keep one version of it"
            )
        files_by_part[number] = file
        for paragraph, terms in _paragraphs(part, "", "rule"):
            paragraphs.append({"reg": number, **paragraph})
            definitions += [{"reg": number, "term": term, "text": paragraph["text"]} for term in terms]
    return paragraphs, definitions


def _paragraphs(element: Element, section: str, kind: str) -> Iterator[tuple[Row, list[str]]]:
    """Every paragraph under an element with a text, and the terms that it defines."""
    tag = element.tag.removeprefix(REGML)
    if tag == "interpretations":
        kind = "interpretation"
    if tag in ("section", "appendix", "appendixSection", "interpSection"):
        names = (element.find(f"{REGML}{name}") for name in ("subject", "appendixTitle", "title"))
        section = next((_text(name) for name in names if name is not None and _text(name)), section)
    content = element.find(f"{REGML}content")
    if tag in ("paragraph", "interpParagraph") and content is not None and _text(content):
        row = {
            "section": section,
            "heading": _text(element.find(f"{REGML}title")),
            "kind": kind,
            "text": _text(content),
        }
        yield row, [term for definition in content.iter(f"{REGML}def") if (term := definition.get("term"))]
    for child in element:
        yield from _paragraphs(child, section, kind)


def health_questions(data: Path) -> list[Row]:
    """Questions with their answer, focus and qtype; a question that is asked twice counts once."""
    files = sorted((data / "medquad").glob("**/*.xml"))
    if not files:
        rows = rows_of(data / "medquad" / "qa.jsonl", ("question", "answer", "focus", "qtype"))
    else:
        rows = [row for file in files for row in _health_rows(_root(file))]
    return list({row["question"]: row for row in rows}.values())


def _health_rows(document: Element) -> Iterator[Row]:
    for pair in document.iter("QAPair"):
        question, answer = pair.find("Question"), _text(pair.find("Answer"))
        if question is not None and answer:
            focus, kind = _text(document.find("Focus")), question.get("qtype") or "information"
            yield {"question": _text(question), "answer": answer, "focus": focus, "qtype": kind}


def counsellors_answers(data: Path) -> list[Row]:
    """Answers of counsellors with the question, votes and topic, each once; a topic is one question."""
    folder = data / "counsel_chat"
    answers: list[Row] = []
    files = sorted(folder.glob("*.csv"))
    if files:
        columns = ("questionID", "questionTitle", "questionText", "answerText", "upvotes")
        for number, row in enumerate(_table(files[0], columns), 1):
            question = f"{row['questionTitle'].strip()}\n\n{row['questionText'].strip()}".strip()
            answer = " ".join(re.sub(r"<[^>]*>", " ", row["answerText"]).split())
            if not row["upvotes"].isdigit():
                raise DataError(
                    f"'upvotes' is {row['upvotes']!r}; expected a number",
                    where=f"{files[0]}, row {number}",
                    fix="mend it",
                )
            if question and answer:
                votes, topic = int(row["upvotes"]), row["questionID"]
                answers.append({"question": question, "answer": answer, "votes": votes, "topic": topic})
    else:
        fields = ("question_id", "prompt", "chosen", "rejected")
        for pair in rows_of(folder / "pairs.jsonl", fields):
            for side in ("chosen", "rejected"):
                row = {"question": _mended(pair["prompt"]), "answer": _mended(pair[side])}
                answers.append(row | {"votes": pair.get(f"upvotes_{side}"), "topic": pair["question_id"]})
    distinct: dict[tuple[str, str], Row] = {}
    for row in answers:
        distinct.setdefault((row["question"], row["answer"]), row)
    return list(distinct.values())


def _mended(text: str) -> str:
    """Sentences that were run together ("...help.Good luck") apart again."""
    return re.sub(r"(?<=[a-z][.!?])(?=[A-Z])", " ", text)


def doctors_visits(data: Path) -> list[Row]:
    """Visits to a doctor: ID, section_text and dialogue."""
    file = data / "mts_dialog" / "MTS-Dialog-TrainingSet.csv"
    return list(_table(file, ("ID", "section_text", "dialogue")))


def science_questions(data: Path) -> list[str]:
    """Questions of two sets with their options."""
    files = [
        next((data / folder / name for folder in folders for name in NAMES if (data / folder / name).exists()), None)
        or data / folders[0] / NAMES[0]
        for folders in (("openbookqa",), ("ARC-Easy", "arc_easy"))
    ]
    return [row["instruction"] for file in files for row in rows_of(file, ("instruction",))]


NAMES = ("train.json", "train.jsonl")


def require_file(file: Path) -> Path:
    """The file or folder itself.

    Raises:
        DataError: it does not exist; names where the set is published.
    """
    if not file.exists():
        raise DataError("there is no such file", where=str(file), fix=f"get it from {_source(file)}")
    return file


def _source(file: Path) -> str:
    folder = file if file.name in SOURCES else file.parent
    return SOURCES.get(folder.name) or SOURCES["ARC-Easy"]


def rows_of(file: Path, fields: Sequence[str]) -> list[Row]:
    """The rows of a data file, every one with a text in each of the fields.

    Raises:
        DataError: there is no such file, or a row lacks a field.
    """
    require_file(file)
    rows = []
    for where, row in read_rows(str(file)):
        missing = [field for field in fields if not isinstance(row.get(field), str)]
        if missing:
            raise DataError(
                f"there is no text in '{missing[0]}'; the row holds {', '.join(row)}",
                where=where,
                fix=f"give the file as it is in {_source(file)}",
            )
        rows.append(dict(row))
    return rows


def _table(file: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a CSV file, with every column as text."""
    require_file(file)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        table = csv.DictReader(stream)
        missing = [column for column in columns if column not in (table.fieldnames or ())]
        if missing:
            raise DataError(
                f"there is no column '{missing[0]}'; it holds {', '.join(table.fieldnames or ())}",
                where=str(file),
                fix=f"give the file as it is in {_source(file)}",
            )
        try:
            yield from ({column: row[column] or "" for column in columns} for row in table)
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"not a CSV file in UTF-8: {error}", where=str(file), fix="get it again") from error


def _root(file: Path) -> Element:
    try:
        return ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise DataError(f"not XML: {error}", where=str(file), fix="get it again") from error


def _text(element: Element | None) -> str:
    return "" if element is None else " ".join("".join(element.itertext()).split())
