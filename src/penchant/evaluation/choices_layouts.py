"""Layouts of multiple-choice data sets: the columns of their rows, and the question that a row becomes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from penchant.data.fields import Cell, Row
from penchant.evaluation.choices import Question

ANSWER = "\nAnswer:"
UNLABELED = (-1, "-1", "")
MARKED = re.compile(
    r"(?P<lead>Please choose [^:\n]*: )?(?P<prompt>.*?)\s*\n\s*"
    r"(?P<word>Answer|Option|Solution|Ending)1:(?P<options>.*)\n\s*Answer format: *(?P<names>[^\n]*?)\s*",
    re.DOTALL | re.IGNORECASE,
)


@dataclass(frozen=True)
class Layout:
    """The columns of a data set and the conversion of its rows to questions.

    Attributes:
        needs: required columns, alternatives separated by ``|``.
        convert: function (row, task name) -> question, or None if the row has no label.
    """

    name: str
    needs: tuple[str, ...]
    convert: Callable[[Row, str], Question | None]

    def lacks(self, columns: Sequence[str]) -> list[str]:
        """Required columns that are missing among these columns."""
        return [need for need in self.needs if not set(need.split("|")) & set(columns)]


@dataclass(frozen=True)
class Verbalised:
    """A classification task as questions: a template for the text columns and a text for each label.

    Attributes:
        columns: the text columns, each with the names of the benchmark's own files behind `|`.
    """

    columns: tuple[str, ...]
    template: str
    labels: tuple[str, ...]
    names: tuple[str, ...] = ()
    """Names of the labels in the benchmark's tab-separated files, in the same order."""

    def __call__(self, row: Row, task: str) -> Question | None:
        texts = {column.split("|")[0]: row.need(*column.split("|")).text() for column in self.columns}
        right = _label(row.find(*LABELS), len(self.labels), self.names)
        return (
            None if right is None else _question(row, task, self.template.format(**texts), self.labels, right, ANSWER)
        )


LABELS = ("label", "gold_label", "Quality", "is_duplicate")
"""Names of the labels' column: of the data sets, and of the benchmark's tab-separated files."""

GLUE = {
    "cola": Verbalised(("sentence",), "Sentence: {sentence}\nIs this sentence acceptable English?", ("no", "yes")),
    "sst2": Verbalised(
        ("sentence",), "Review: {sentence}\nIs this review negative or positive?", ("negative", "positive")
    ),
    "mrpc": Verbalised(
        ("sentence1|#1 String", "sentence2|#2 String"),
        "First sentence: {sentence1}\nSecond sentence: {sentence2}\nDo the two sentences mean the same?",
        ("no", "yes"),
    ),
    "qqp": Verbalised(
        ("question1", "question2"),
        "First question: {question1}\nSecond question: {question2}\nDo the two questions ask the same?",
        ("no", "yes"),
    ),
    "mnli": Verbalised(
        ("premise|sentence1", "hypothesis|sentence2"),
        "Premise: {premise}\nHypothesis: {hypothesis}\nDoes the premise imply the hypothesis: yes, maybe or no?",
        ("yes", "maybe", "no"),
        ("entailment", "neutral", "contradiction"),
    ),
    "qnli": Verbalised(
        ("question", "sentence"),
        "Question: {question}\nSentence: {sentence}\nDoes the sentence answer the question?",
        ("yes", "no"),
        ("entailment", "not_entailment"),
    ),
    "rte": Verbalised(
        ("sentence1", "sentence2"),
        "Text: {sentence1}\nStatement: {sentence2}\nDoes the text imply the statement?",
        ("yes", "no"),
        ("entailment", "not_entailment"),
    ),
    "wnli": Verbalised(
        ("sentence1", "sentence2"),
        "Text: {sentence1}\nStatement: {sentence2}\nDoes the statement follow from the text?",
        ("no", "yes"),
    ),
}
"""Options are in the order of the data sets' labels; the prompts are worded by this project."""


SIMILARITIES = tuple(f"{k / 5:.1f}" for k in range(26))


def stsb(row: Row, task: str) -> Question | None:
    """An STS-B row as a question how alike two sentences are, from 0.0 to 5.0 in steps of 0.2 as T5 was asked.

    The right option is the nearest to the row's number (Raffel et al. 2020, arXiv 1910.10683, section 2.4).
    """
    first, second = (row.need(column).text() for column in ("sentence1", "sentence2"))
    cell = row.find("label", "score")
    if cell is None or cell.value in UNLABELED:
        return None
    # Cells of tab-separated files are text.
    is_text = isinstance(cell.value, str) and re.fullmatch(r"[0-9]+(\.[0-9]+)?", cell.value) is not None
    number = (Cell(float(cell.value), cell.column, row) if is_text else cell).number()
    if not 0 <= number <= 5:
        raise cell.refusal("a number from 0 to 5")
    prompt = (
        f"First sentence: {first}\nSecond sentence: {second}\n"
        "How alike are the two sentences, from 0.0 (not at all) to 5.0 (the same)?"
    )
    return replace(_question(row, task, prompt, SIMILARITIES, math.floor(number * 5 + 0.5), ANSWER), number=number)


def hellaswag(row: Row, task: str) -> Question | None:
    """A HellaSwag row as a question: which ending continues the context."""
    options = _texts(row.need("endings"))
    right = _label(row.find("label"), len(options))
    return None if right is None else _question(row, task, row.need("ctx").text(), options, right)


def openbookqa(row: Row, task: str) -> Question | None:
    """An OpenBookQA row as a question with labelled options."""
    return _question_with_labels(row, task, row.need("question_stem").text())


def arc(row: Row, task: str) -> Question | None:
    """An ARC row as a question with labelled options."""
    return _question_with_labels(row, task, row.need("question").text())


def instruction(row: Row, task: str) -> Question | None:
    """Question whose options are listed in the instruction, as ``Answer1: ... Answer2: ...``, and taken out of it.

    The option's text is scored, because "the correct answer is answer2" is nearly all a constant phrase.
    """
    cell = row.need("instruction")
    match = MARKED.fullmatch(cell.text())
    if match is None:
        raise cell.refusal("a question, then 'Answer1: ... Answer2: ...', then 'Answer format: answer1/answer2/...'")
    word = match["word"]
    options = [match["options"]]
    while len(last := re.split(rf"\s{word}{len(options) + 1}:", options[-1], maxsplit=1)) == 2:
        options[-1:] = last
    names = [f"{word}{k}".lower() for k in range(1, len(options) + 1)]
    if match["names"].lower().split("/") != names:
        raise cell.refusal(f"as many options as its answer format names ({match['names']}), found {len(options)}")
    answer = row.find("answer", "output")
    if answer is None or answer.value == "":
        return None
    named_option = re.fullmatch(r"(?:the correct \w+ is )?(\w+?)\.?", answer.text().strip().lower())
    if named_option is None or named_option[1] not in names:
        raise answer.refusal(f"one of {', '.join(names)}")
    prompt = match["prompt"]
    return _question(row, task, prompt, [text.strip() for text in options], names.index(named_option[1]), _cue(prompt))


def winogrande(row: Row, task: str) -> Question | None:
    """Question whose options are the rest of the sentence with the blank filled in."""
    cell = row.need("sentence")
    prefix, blank, suffix = cell.text().partition("_")
    if not blank:
        raise cell.refusal("a sentence with a blank, written _")
    options = [row.need(name).text() + suffix for name in ("option1", "option2")]
    answer = row.find("answer")
    if answer is None or answer.value in UNLABELED:
        return None
    if str(answer.value) not in ("1", "2"):
        raise answer.refusal("1 or 2")
    prompt = f"Complete the sentence: {prefix}".rstrip()
    return _question(row, task, prompt, options, int(answer.value) - 1)


def boolq(row: Row, task: str) -> Question | None:
    """A BoolQ row as a question that its passage answers with yes or no."""
    answer = row.find("answer", "label")
    passage, question = row.need("passage").text(), row.need("question").text()
    if answer is None or answer.value in UNLABELED:
        return None
    prompt = f"{passage}\n\nQuestion: {question.rstrip('?')}?"
    return _question(row, task, prompt, ("no", "yes"), int(answer.yes_or_no()), ANSWER, passage)


def piqa(row: Row, task: str) -> Question | None:
    """A PIQA row as a question: which of two solutions reaches the goal."""
    options = [row.need(name).text() for name in ("sol1", "sol2")]
    goal, right = row.need("goal").text(), _label(row.find("label"), 2)
    return None if right is None else _question(row, task, goal, options, right, _cue(goal))


def race(row: Row, task: str) -> Question | None:
    """A RACE row as a question on its article."""
    options = _texts(row.need("options"))
    article, question = row.need("article").text(), row.need("question").text()
    answer = row.find("answer")
    if answer is None or answer.value == "":
        return None
    letters = "ABCDEFGHIJ"[: len(options)]
    if len(answer.text()) != 1 or answer.value not in letters:
        raise answer.refusal(f"one of the letters {', '.join(letters)}")
    prompt = f"{article}\n\nQuestion: {question}"
    return _question(row, task, prompt, options, letters.index(answer.value), ANSWER, article)


def choices(row: Row, task: str) -> Question | None:
    """A row with the columns prompt, options and answer as a question."""
    options = _texts(row.need("options"))
    prompt, answer = row.need("prompt").text(), row.find("answer")
    if answer is None or answer.value in UNLABELED:
        return None
    return _question(row, task, prompt, options, answer.index(len(options)), _cue(prompt))


LAYOUTS = (
    Layout("hellaswag", ("ctx", "endings"), hellaswag),
    Layout("openbookqa", ("question_stem", "choices"), openbookqa),
    Layout("winogrande", ("sentence", "option1", "option2"), winogrande),
    Layout("boolq", ("passage", "question"), boolq),
    Layout("piqa", ("goal", "sol1", "sol2"), piqa),
    Layout("race", ("article", "question", "options"), race),
    Layout("arc", ("question", "choices"), arc),
    Layout("instruction", ("instruction", "answer|output"), instruction),
    Layout("choices", ("prompt", "options"), choices),
    *(Layout(name, (*task.columns, "|".join(LABELS)), task) for name, task in GLUE.items()),
    Layout("stsb", ("sentence1", "sentence2", "label|score"), stsb),
)


def _question(
    row: Row, task: str, prompt: str, options: Sequence[str], right: int, cue: str = "", passage: str | None = None
) -> Question:
    return Question(prompt, tuple(options), right, task, row.where, cue, passage)


def _cue(prompt: str) -> str:
    """Cue before the option in plain text: ``Answer:`` after a whole question or sentence, else nothing."""
    return ANSWER if prompt.rstrip().endswith(("?", ".", "!")) else ""


def _texts(cell: Cell) -> list[str]:
    """The texts of a list of at least two options."""
    items = cell.items()
    if len(items) < 2:
        raise cell.refusal(f"at least two options, found {len(items)}")
    return [item.text() for item in items]


def _label(cell: Cell | None, k: int, names: Sequence[str] = ()) -> int | None:
    """0-based index of the right option from a label (an index, its digits or a name); None without a label."""
    if cell is None or cell.value in UNLABELED:
        return None
    if cell.value in names:
        return names.index(cell.value)
    if isinstance(cell.value, str) and re.fullmatch("[0-9]+", cell.value):
        return Cell(int(cell.value), cell.column, cell.row).index(k)
    return cell.index(k)


def _question_with_labels(row: Row, task: str, prompt: str) -> Question | None:
    """Question whose options have a letter or digit each and whose answer is one of these."""
    cell = row.need("choices")
    options = _texts(cell.need("text"))
    names = [item.name() for item in cell.need("label").items_for(len(options))]
    key = row.find("answerKey")
    if key is None or key.value == "":
        return None
    if key.name() not in names:
        raise key.refusal(f"one of the options' labels, {', '.join(names)}")
    return _question(row, task, prompt, options, names.index(key.name()), _cue(prompt))


ANY_NAME = ("choices", "instruction")
"""Layouts that hold questions of any task."""

BY_NAME = {layout.name: layout for layout in LAYOUTS}
"""Every layout by its name."""

LAYOUT_OF = {
    **{name: name for name in BY_NAME if name not in (*ANY_NAME, "arc", "race")},
    "arc_easy": "arc",
    "arc_challenge": "arc",
    "race_middle": "race",
    "race_high": "race",
    "mnli_matched": "mnli",
    "mnli_mismatched": "mnli",
}
"""Name of the layout by the name of a task."""

TASKS = tuple(LAYOUT_OF)
"""Task names that determine the layout of their file."""
