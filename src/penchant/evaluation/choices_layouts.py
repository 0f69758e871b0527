"""Multiple-choice data sets row by row: which columns each has, and the question a row asks.

A converter gives None for a row without a label, as in the hidden test splits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    """The columns a data set has, and what its rows ask.

    Attributes:
        needs: columns every row has, alternatives separated by ``|``.
        convert: the row's question of the task named, or None where it has no label.
    """

    name: str
    needs: tuple[str, ...]
    convert: Callable[[Row, str], Question | None]

    def lacks(self, columns: Sequence[str]) -> list[str]:
        """The needs that none of these columns meets."""
        return [need for need in self.needs if not set(need.split("|")) & set(columns)]


@dataclass(frozen=True)
class Verbalised:
    """A classification task put in words: the sentence columns in a template, a text for each label."""

    columns: tuple[str, ...]
    template: str
    labels: tuple[str, ...]
    names: tuple[str, ...] = ()
    """What the benchmark's own tab-separated files call the labels, in the same order."""

    def __call__(self, row: Row, task: str) -> Question | None:
        texts = {column: row.need(column).text() for column in self.columns}
        right = _label(row.find("label", "gold_label"), len(self.labels), self.names)
        return (
            None if right is None else _question(row, task, self.template.format(**texts), self.labels, right, ANSWER)
        )


GLUE = {
    "cola": Verbalised(("sentence",), "Sentence: {sentence}\nIs this sentence acceptable English?", ("no", "yes")),
    "sst2": Verbalised(
        ("sentence",), "Review: {sentence}\nIs this review negative or positive?", ("negative", "positive")
    ),
    "mrpc": Verbalised(
        ("sentence1", "sentence2"),
        "First sentence: {sentence1}\nSecond sentence: {sentence2}\nDo the two sentences mean the same?",
        ("no", "yes"),
    ),
    "qqp": Verbalised(
        ("question1", "question2"),
        "First question: {question1}\nSecond question: {question2}\nDo the two questions ask the same?",
        ("no", "yes"),
    ),
    "mnli": Verbalised(
        ("premise", "hypothesis"),
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
"""Label names in the order of the data sets' labels; the words are ours."""


def hellaswag(row: Row, task: str) -> Question | None:
    options = _texts(row.need("endings"))
    right = _label(row.find("label"), len(options))
    return None if right is None else _question(row, task, row.need("ctx").text(), options, right)


def openbookqa(row: Row, task: str) -> Question | None:
    return _keyed(row, task, row.need("question_stem").text())


def arc(row: Row, task: str) -> Question | None:
    return _keyed(row, task, row.need("question").text())


def instruction(row: Row, task: str) -> Question | None:
    """Options that stand inside the instruction, as ``Answer1: ... Answer2: ...``; they are taken out of the prompt.

    The answer's own text is scored: of "the correct answer is answer2" nearly all is a constant phrase.
    """
    cell = row.need("instruction")
    found = MARKED.fullmatch(cell.text())
    if found is None:
        raise cell.refusal("a question, then 'Answer1: ... Answer2: ...', then 'Answer format: answer1/answer2/...'")
    word = found["word"]
    options = [found["options"]]
    while len(last := re.split(rf"\s{word}{len(options) + 1}:", options[-1], maxsplit=1)) == 2:
        options[-1:] = last
    names = [f"{word}{k}".lower() for k in range(1, len(options) + 1)]
    if found["names"].lower().split("/") != names:
        raise cell.refusal(f"as many options as its answer format names ({found['names']}), found {len(options)}")
    given = row.find("answer", "output")
    if given is None or given.value == "":
        return None
    said = re.fullmatch(r"(?:the correct \w+ is )?(\w+?)\.?", given.text().strip().lower())
    if said is None or said[1] not in names:
        raise given.refusal(f"one of {', '.join(names)}")
    prompt = found["prompt"]
    return _question(row, task, prompt, [text.strip() for text in options], names.index(said[1]), _cue(prompt))


def winogrande(row: Row, task: str) -> Question | None:
    """Options are the sentence from its blank on, filled in: two whole continuations of the same beginning."""
    cell = row.need("sentence")
    before, blank, after = cell.text().partition("_")
    if not blank:
        raise cell.refusal("a sentence with a blank, written _")
    options = [row.need(name).text() + after for name in ("option1", "option2")]
    answer = row.find("answer")
    if answer is None or answer.value in UNLABELED:
        return None
    if str(answer.value) not in ("1", "2"):
        raise answer.refusal("1 or 2")
    prompt = f"Complete the sentence: {before}".rstrip()
    return _question(row, task, prompt, options, int(answer.value) - 1)


def boolq(row: Row, task: str) -> Question | None:
    answer = row.find("answer", "label")
    passage, question = row.need("passage").text(), row.need("question").text()
    if answer is None or answer.value in UNLABELED:
        return None
    prompt = f"{passage}\n\nQuestion: {question.rstrip('?')}?"
    return _question(row, task, prompt, ("no", "yes"), int(answer.yes_or_no()), ANSWER, passage)


def piqa(row: Row, task: str) -> Question | None:
    options = [row.need(name).text() for name in ("sol1", "sol2")]
    goal, right = row.need("goal").text(), _label(row.find("label"), 2)
    return None if right is None else _question(row, task, goal, options, right, _cue(goal))


def race(row: Row, task: str) -> Question | None:
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
    *(Layout(name, (*task.columns, "label"), task) for name, task in GLUE.items()),
)


def _question(
    row: Row, task: str, prompt: str, options: Sequence[str], right: int, cue: str = "", passage: str | None = None
) -> Question:
    return Question(prompt, tuple(options), right, task, row.where, cue, passage)


def _cue(prompt: str) -> str:
    """What stands before the option in plain text: a whole question or sentence is answered, another is continued."""
    return ANSWER if prompt.rstrip().endswith(("?", ".", "!")) else ""


def _texts(cell: Cell) -> list[str]:
    """The texts of a list of at least two options."""
    items = cell.items()
    if len(items) < 2:
        raise cell.refusal(f"at least two options, found {len(items)}")
    return [item.text() for item in items]


def _label(cell: Cell | None, k: int, names: Sequence[str] = ()) -> int | None:
    """The 0-based index of the right option, a number, its text or one of the names; None where there is none."""
    if cell is None or cell.value in UNLABELED:
        return None
    if cell.value in names:
        return names.index(cell.value)
    if isinstance(cell.value, str) and re.fullmatch("[0-9]+", cell.value):
        return Cell(int(cell.value), cell.column, cell.row).index(k)
    return cell.index(k)


def _keyed(row: Row, task: str, prompt: str) -> Question | None:
    """Options with a letter or digit each, and the right one named by its own."""
    cell = row.need("choices")
    options = _texts(cell.need("text"))
    names = [item.name() for item in cell.need("label").items_for(len(options))]
    key = row.find("answerKey")
    if key is None or key.value == "":
        return None
    if key.name() not in names:
        raise key.refusal(f"one of the options' labels, {', '.join(names)}")
    return _question(row, task, prompt, options, names.index(key.name()), _cue(prompt))
