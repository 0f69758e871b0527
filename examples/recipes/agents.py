"""Files for tool_calling.yaml, from function-calling dialogues and an agent's household tasks.

    python examples/recipes/agents.py DATA OUT

DATA holds bfcl/ (files of the Berkeley Function Calling Leaderboard, with possible_answer/),
glaive_toolcall/glaive_toolcall_en_demo.json (conversations with function_call turns, tools) and
alfworld_react/alfworld.json (trajectories as text: "> action", then what is seen).
"""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SEEN = 400
LISTS = 22_000
FORMS = 16_000

Row = dict[str, Any]


def write(file: Path, rows: Iterable[Row]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def dialogues(data: Path) -> Iterator[tuple[Row, Row]]:
    """Each dialogue that begins with a question and its call, as a question with its answer.

    A call that comes later rests on what was said before, which a question of one turn does not hold; one with a number
    that the question does not say, as the day it is, on what nobody said.
    """
    rows = json.loads((data / "glaive_toolcall" / "glaive_toolcall_en_demo.json").read_text(encoding="utf-8"))
    for number, row in enumerate(rows):
        tools, (question, reply, *_) = json.loads(row["tools"]), row["conversations"]
        if not tools or (question["from"], reply["from"]) != ("human", "function_call"):
            continue
        call = json.loads(reply["value"])
        properties = {tool["name"]: tool.get("parameters") for tool in tools}
        parameters = (properties.get(call["name"]) or {}).get("properties", {})
        arguments = {key: [value] for key, value in call["arguments"].items() if key in parameters}
        values = json.dumps(list(call["arguments"].values()), ensure_ascii=False)
        # 200,000 is 200000, and 15 % is 0.15.
        unsaid = set(re.findall(r"\d+", values)) - {"0", *re.findall(r"\d+", question["value"].replace(",", ""))}
        if len(arguments) == len(call["arguments"]) and not unsaid:
            name = f"glaive_{number}"
            bfcl_question = {
                "id": name,
                "question": [[{"role": "user", "content": question["value"]}]],
                "function": tools,
            }
            yield bfcl_question, {"id": name, "ground_truth": [{call["name"]: arguments}]}


def steps(data: Path) -> Iterator[Row]:
    """Each action of a trajectory, after the end of what was seen and done before."""
    for name, text in json.loads((data / "alfworld_react" / "alfworld.json").read_text(encoding="utf-8")).items():
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


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    data, out = map(Path, sys.argv[1:])
    shutil.copytree(data / "bfcl", out / "questions", dirs_exist_ok=True)
    pairs = list(dialogues(data))
    write(out / "questions" / "BFCL_v4_glaive.json", [question for question, _ in pairs])
    write(out / "questions" / "possible_answer" / "BFCL_v4_glaive.json", [answer for _, answer in pairs])
    write(out / "steps.jsonl", steps(data))
    rows = json.loads((data / "glaive_toolcall" / "glaive_toolcall_en_demo.json").read_text(encoding="utf-8"))
    texts = ["\n".join(turn["value"] for turn in row["conversations"]) for row in rows if not json.loads(row["tools"])]
    words = sorted({word for text in texts for word in re.findall(r"[A-Za-z]{2,12}", text)})
    draw = random.Random(0)
    # In this order: copying is learnt first, and the forms by it.
    write(out / "general.jsonl", [{"text": text} for text in [*texts, *lists(words, draw), *forms(words, draw)]])


if __name__ == "__main__":
    main()
