"""Our verdicts on multi-turn conversations against those of the official checker, `bfcl-eval`.

    python benchmarks/bfcl_multi_turn.py [--each 1] [--limit 200]

For every question of the four categories that the package ships: the calls that are due, as the files write them, and
`--each` conversations in which one or two things were changed, from a value to a turn that is left out. Ours are read
from text and called by name in a process with limits; the checker evaluates the text, in an environment of its own.
Exits with 1 where any verdict differs.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from environments import BFCL, HERE, bfcl_python

from penchant.data.files import read_rows
from penchant.evaluation.tool_calls.calls import Call, DueCall
from penchant.evaluation.tool_calls.multi_turn import MultiTurnQuestion, judge_calls, read_multi_turn
from penchant.evaluation.tool_calls.reading import read_calls, write_calls

Turns = list[list[list[Call]]]
"""For every turn the answers with calls, as their calls."""


def with_names(question: MultiTurnQuestion, due_call: DueCall) -> Call:
    """The due call with all its arguments named, by the signature of the program's method."""
    if not due_call.positional:
        return Call(due_call.name, due_call.keywords)
    classes = [getattr(import_module(module), name) for name, module in question.scenario.modules.items()]
    [method] = [getattr(cls, due_call.name) for cls in classes if hasattr(cls, due_call.name)]
    _, *names = signature(method).parameters
    return Call(due_call.name, {**dict(zip(names, due_call.positional, strict=False)), **due_call.keywords})


def as_turns(draw: random.Random, question: MultiTurnQuestion) -> Turns:
    """The due calls as a model's answers: all calls of a turn in one answer, or one call in each."""
    turns = []
    for due_calls in question.due_calls:
        calls = [with_names(question, call) for call in due_calls]
        turns.append([[call] for call in calls] if draw.random() < 0.5 else [calls] if calls else [])
    return turns


def changed_value(draw: random.Random, value: Any) -> Any:
    match value:
        case bool():
            return draw.choice([not value, str(value)])
        case int() | float():
            return draw.choice([value + 1, -value, float(value), str(value), value * 1000])
        case str():
            return draw.choice([f"{value}x", value.upper(), value[1:], "", f" {value}", "..", 0])
        case list() if value:
            return draw.choice([value[1:], [*value, value[0]], value[::-1], value[0]])
        case dict() if value:
            key = draw.choice(list(value))
            return {**value, key: changed_value(draw, value[key])}
    return draw.choice([None, [], {}, 1, "x"])


def change(draw: random.Random, question: MultiTurnQuestion, turns: Turns) -> Turns:
    """One change of a conversation."""
    turns = copy.deepcopy(turns)
    spots = [(t, s, n) for t, turn in enumerate(turns) for s, step in enumerate(turn) for n in range(len(step))]
    if not spots:
        return turns
    t, s, n = draw.choice(spots)
    call = turns[t][s][n]
    function = draw.choice(question.functions)
    match draw.randint(0, 16):
        case 0:
            del turns[t][s][n]
        case 1:
            turns[t] = []
        case 2:
            turns[t][s].insert(n, call)
        case 3:
            turns[t].reverse()
            turns[t][0].reverse()
        case 4 if t + 1 < len(turns):
            turns[t + 1].insert(0, [turns[t][s].pop(n)])
        case 5:
            turns[t][s][n] = replace(call, name=draw.choice([function.name, "nothing", f"{call.name}s"]))
        case 6:
            turns[draw.randrange(len(turns))].append([Call(function.name, {})])
        case 7:
            turns[t][s][n] = Call(call.name, {**call.arguments, "extra": 1})
        case 8 if call.arguments:
            name = draw.choice(list(call.arguments))
            turns[t][s][n] = Call(call.name, {key: value for key, value in call.arguments.items() if key != name})
        case 9 if draw.random() < 0.2:
            turns.pop()
        case 10 | 13 | 14 | 15 | 16:
            # A call that mostly changes nothing.
            turns[t].append([Call(draw.choice(["ls", "pwd", "list_users", "get_watchlist"]), {})])
        case _ if call.arguments:
            name = draw.choice(list(call.arguments))
            value = changed_value(draw, call.arguments[name])
            turns[t][s][n] = Call(call.name, {**call.arguments, name: value})
    return [[step for step in turn if step] for turn in turns]


def texts_of(turns: Turns) -> list[list[list[str]]]:
    """Every call as the text that the checker evaluates."""
    return [[[write_calls([call])[1:-1] for call in step] for step in turn] for turn in turns]


def read_back(turns: list[list[list[str]]]) -> Turns:
    """The calls of the texts, as a model's answers are read."""
    return [[read_calls(f"[{', '.join(step)}]") or [] for step in turn] for turn in turns]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=1, help="changed conversations of every question")
    parser.add_argument("--limit", type=int, default=200, help="questions of every category")
    options = parser.parse_args()
    python = bfcl_python()
    [site] = (python.parent.parent / "lib").glob("python*/site-packages")
    # Behind all others: the process of a question's programs imports only what this environment lacks from it.
    sys.path.append(str(site))
    data = site / "bfcl_eval" / "data"
    all_questions, _ = read_multi_turn(data)
    categories = list(dict.fromkeys(question.category for question in all_questions))
    questions = [
        question
        for name in categories
        for question in [q for q in all_questions if q.category == name][: options.limit]
    ]
    rows, answers = ({}, {})
    for name in categories:
        rows |= {row["id"]: row for _, row in read_rows(data / f"BFCL_v4_{name}.json")}
        answers |= {
            row["id"]: row["ground_truth"] for _, row in read_rows(data / "possible_answer" / f"BFCL_v4_{name}.json")
        }
    draw, cases = random.Random(0), []
    for question in questions:
        common = {"entry": rows[question.id], "ground_truth": answers[question.id], "category": question.category}
        right_turns = as_turns(draw, question)
        as_written = [[turn] if turn else [] for turn in answers[question.id]]
        cases.append(common | {"kind": "due", "question": question, "ours": right_turns, "turns": as_written})
        for _ in range(options.each):
            turns = right_turns
            for _ in range(draw.randint(1, 2)):
                turns = change(draw, question, turns)
            texts = texts_of(turns)
            cases.append(common | {"kind": "changed", "question": question, "ours": read_back(texts), "turns": texts})
    with tempfile.TemporaryDirectory() as folder:
        cases_file, verdicts_file = Path(folder) / "cases.json", Path(folder) / "verdicts.json"
        cases_file.write_text(
            json.dumps([{k: v for k, v in c.items() if k not in ("question", "ours")} for c in cases])
        )
        subprocess.run([python, HERE / "peers" / "bfcl_multi_turn.py", cases_file, verdicts_file], check=True)
        theirs = json.loads(verdicts_file.read_text())
    start = time.perf_counter()
    faults = [judge_calls(case["question"], case["ours"]) for case in cases]
    seconds = time.perf_counter() - start
    print(f"bfcl-eval {BFCL}; {len(cases)} conversations of {len(questions)} questions, ours in {seconds:.0f} s")
    differ = []
    for category in categories:
        for kind in ("due", "changed"):
            numbers = [n for n, case in enumerate(cases) if (case["category"], case["kind"]) == (category, kind)]
            compared = [n for n in numbers if not theirs[n]["failed"]]
            failed = Counter(theirs[n]["failed"] for n in numbers if theirs[n]["failed"])
            wrong = [n for n in compared if (faults[n] is None) != theirs[n]["right"]]
            differ += wrong
            right = sum(theirs[n]["right"] for n in compared)
            print(f"{category:24} {kind:8} {len(compared):4} compared, {right:4} right, {len(wrong)} differ", end="")
            print(f"; their checker raised on {dict(failed)}" if failed else "")
    reasons = Counter((str(fault), str(row["error"])) for fault, row in zip(faults, theirs, strict=True))
    for (ours, official), count in reasons.most_common():
        print(f"{count:6}  {ours} / {official}")
    for n in differ[:10]:
        print("differs:", cases[n]["question"].id, faults[n], theirs[n], json.dumps(cases[n]["turns"]))
    return int(bool(differ))


if __name__ == "__main__":
    sys.exit(main())
