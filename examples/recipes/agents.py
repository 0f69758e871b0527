"""Files for tool_calling.yaml, from function-calling dialogues and an agent's household tasks.

    python examples/recipes/agents.py DATA OUT

DATA holds bfcl/ (files of the Berkeley Function Calling Leaderboard, with possible_answer/),
glaive_toolcall/glaive_toolcall_en_demo.json (conversations with function_call turns, tools) and
alfworld_react/alfworld.json (trajectories as text: "> action", then what is seen), as their repositories have them; see
public_files.py.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from public_files import Row, require_file, run_script, write_rows

from penchant.api import DataError

SEEN = 400
LISTS = 22_000
FORMS = 16_000
LEAST_WORDS = 3
"""Different words that the lists and forms are drawn from, at least."""


def read_json(file: Path) -> Any:
    """The JSON value of a file.

    Raises:
        DataError: there is no such file, or it is not JSON.
    """
    try:
        return json.loads(require_file(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"not JSON: {error}", where=str(file), fix="get it again") from error


def read_dialogues(data: Path) -> list[Row]:
    """Dialogues with their turns (conversations) and functions (tools, of which a text is read as JSON).

    Raises:
        DataError: a row is none.
    """
    file = data / "glaive_toolcall" / "glaive_toolcall_en_demo.json"
    rows = []
    for number, row in enumerate(read_json(file), 1):
        try:
            tools = json.loads(row["tools"]) if isinstance(row["tools"], str) else row["tools"]
            turns = [{"from": turn["from"], "value": turn["value"]} for turn in row["conversations"]]
        except (TypeError, KeyError, ValueError) as error:
            expected = "expected conversations of {from, value}, and tools"
            raise DataError(
                f"no dialogue ({error!r}); {expected}", where=f"{file}, row {number}", fix="mend it"
            ) from error
        rows.append({"tools": tools or [], "conversations": turns})
    return rows


def read_call(text: str) -> tuple[str, Mapping[str, Any]] | None:
    """The name and arguments of a written call; None for other texts."""
    try:
        call = json.loads(text)
        arguments = json.loads(call["arguments"]) if isinstance(call["arguments"], str) else call["arguments"]
        return (call["name"], dict(arguments))
    except (TypeError, KeyError, ValueError):
        return None


def dialogues(rows: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    """Each dialogue that begins with a question and its call, as a question with its answer.

    A call that comes later rests on what was said before, which a question of one turn does not hold; one with a number
    that the question does not say, as the day it is, on what nobody said.
    """
    for number, row in enumerate(rows):
        tools, turns = row["tools"], row["conversations"]
        if not tools or [turn["from"] for turn in turns[:2]] != ["human", "function_call"]:
            continue
        question, reply = turns[:2]
        call = read_call(reply["value"])
        if call is None:
            continue
        name, given = call
        properties = {tool.get("name"): tool.get("parameters") for tool in tools}
        parameters = (properties.get(name) or {}).get("properties", {})
        arguments = {key: [value] for key, value in given.items() if key in parameters}
        values = json.dumps(list(given.values()), ensure_ascii=False)
        # 200,000 is 200000, and 15 % is 0.15.
        unsaid = set(re.findall(r"\d+", values)) - {"0", *re.findall(r"\d+", question["value"].replace(",", ""))}
        if len(arguments) == len(given) and not unsaid:
            question_id = f"glaive_{number}"
            bfcl_question = {
                "id": question_id,
                "question": [[{"role": "user", "content": question["value"]}]],
                "function": tools,
            }
            yield bfcl_question, {"id": question_id, "ground_truth": [{name: arguments}]}


def steps(data: Path) -> Iterator[Row]:
    """Each action of a trajectory, after the end of what was seen and done before."""
    file = data / "alfworld_react" / "alfworld.json"
    trajectories = read_json(file)
    if not isinstance(trajectories, dict) or not all(isinstance(text, str) for text in trajectories.values()):
        raise DataError("no trajectories", where=str(file), fix='give {"NAME": "what is seen\\n> action\\n..."}')
    for name, text in trajectories.items():
        history, *actions = text.split("\n> ")
        for action in actions:
            action_text, _, observation = action.partition("\n")
            if not action_text.startswith("think:"):
                yield {"prompt": f"{history[-SEEN:]}\n>", "completion": f" {action_text}", "source": name}
            history = f"{history}\n> {action_text}\n{observation}"


def lists(words: list[str], draw: random.Random) -> Iterator[str]:
    """Words, names and numbers, and the same again: a model trained from scratch learns to copy by them."""

    def item() -> str:
        kind = draw.random()
        if kind < 0.3:
            return str(draw.randint(0, 10 ** draw.randint(1, 4)))
        if kind < 0.6:
            return draw.choice("__.").join(word.lower() for word in draw.sample(words, 2))
        return draw.choice(words)

    for _ in range(LISTS):
        items = " ".join(item() for _ in range(draw.randint(6, 20)))
        yield f"{items} | {items}"


def forms(words: list[str], draw: random.Random) -> Iterator[str]:
    """Forms of invented names, something said, and the forms filled in.

    Which form is meant, and which value belongs where, is told by the words beside it. No call is written this way.
    """

    def name(parts: int) -> str:
        return draw.choice("__.").join(word.lower() for word in draw.sample(words, parts))

    def value(kind: str) -> str:
        if kind == "number":
            return str(draw.randint(0, 10 ** draw.randint(1, 5)))
        chosen = draw.sample(words, draw.randint(1, 2))
        return " ".join(word.capitalize() for word in chosen) if draw.random() < 0.5 else " ".join(chosen).lower()

    for _ in range(FORMS):
        forms_by_name = {}
        for _ in range(draw.choice([1, 1, 1, 2, 3])):
            fields = {name(draw.randint(1, 2)): draw.choice(["number", "text"]) for _ in range(draw.randint(1, 4))}
            forms_by_name[name(draw.randint(1, 3))] = fields
        sentences, filled = [], []
        for _ in range(draw.choice([1, 1, 2])):
            form = draw.choice(list(forms_by_name))
            values = {field: value(kind) for field, kind in forms_by_name[form].items() if draw.random() < 0.85}
            sentence = [draw.choice(re.split(r"[_.]", form)), *draw.sample(words, 2)]
            for field, field_value in draw.sample(list(values.items()), len(values)):
                sentence += (
                    [draw.choice(re.split(r"[_.]", field)), field_value] if draw.random() < 0.7 else [field_value]
                )
                sentence += draw.sample(words, draw.randint(0, 2))
            sentences.append(" ".join(sentence))
            filled.append(
                f"{form} / "
                + " / ".join(f"{field} is {values[field]}" for field in forms_by_name[form] if field in values)
            )
        listing = "\n".join(
            f"{form} / " + " / ".join(f"{field} {kind}" for field, kind in fields.items())
            for form, fields in forms_by_name.items()
        )
        yield f"{listing}\nSaid: {' and '.join(sentences)}\nFilled: {' ; '.join(filled)}"


def make_files(data: Path, out: Path) -> None:
    rows, taken_steps = read_dialogues(data), list(steps(data))
    pairs = list(dialogues(rows))
    texts = ["\n".join(turn["value"] for turn in row["conversations"]) for row in rows if not row["tools"]]
    words = sorted({word for text in texts for word in re.findall(r"[A-Za-z]{2,12}", text)})
    if len(words) < LEAST_WORDS:
        raise DataError(
            f"{len(texts)} dialogues without functions have {len(words)} different words; {LEAST_WORDS} are needed",
            where=str(data / "glaive_toolcall"),
            fix="give more dialogues",
        )
    shutil.copytree(require_file(data / "bfcl"), out / "questions", dirs_exist_ok=True)
    write_rows(out / "questions" / "BFCL_v4_glaive.json", [question for question, _ in pairs])
    write_rows(out / "questions" / "possible_answer" / "BFCL_v4_glaive.json", [answer for _, answer in pairs])
    write_rows(out / "steps.jsonl", taken_steps)
    draw = random.Random(0)
    # In this order: copying is learnt first, and the forms by it.
    write_rows(out / "general.jsonl", [{"text": text} for text in [*texts, *lists(words, draw), *forms(words, draw)]])


if __name__ == "__main__":
    run_script(make_files, __doc__)
