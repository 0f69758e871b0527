"""Our verdicts on tool calls against those of the official checker, `bfcl-eval`, on generated and mutated answers.

    python benchmarks/bfcl_agreement.py [--data DIR] [--answers 20000]

Questions of our own are drawn in all three languages; DIR adds those of files named BFCL_v4_*.json, possible_answer/
beside them. Each question's right answer is written out, and changed up to three times, from a wrong name to a string
in another case. The checker runs in an environment of its own, made the first time, without the libraries of the models
it knows. Exits with 1 where any verdict differs.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import string
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from environments import BFCL, HERE, bfcl_python

from penchant.evaluation.tool_calls.calls import Call, Function
from penchant.evaluation.tool_calls.matching import match_calls
from penchant.evaluation.tool_calls.reading import read_calls, write_calls

CATEGORIES = {
    "simple_python": "python",
    "multiple": "python",
    "parallel": "python",
    "parallel_multiple": "python",
    "simple_java": "java",
    "simple_javascript": "javascript",
}
TYPES = {
    "python": ["string", "integer", "float", "boolean", "array", "tuple", "dict", "any"],
    "java": ["byte", "short", "integer", "long", "float", "double", "boolean", "char", "String", "any", "Array",
             "ArrayList", "HashMap"],
    "javascript": ["String", "integer", "float", "Bigint", "Boolean", "dict", "array", "any"],
}  # fmt: skip
ITEMS = {
    "python": ["string", "integer", "float", "boolean", "dict", "array"],
    "java": ["integer", "long", "double", "String", "boolean", "char"],
    "javascript": ["String", "integer", "float", "Boolean"],
}
WORDS = [
    "New York, NY",
    "blue",
    "don't",
    "2024-01-05",
    "A/B test",
    "x_y",
    "St. Louis",
    "",
    "alpha beta",
    "C++",
    "e=mc^2",
]


# Questions.


def word(draw: random.Random) -> str:
    return "".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 8)))


def value(draw: random.Random, kind: str, items: str | None) -> Any:
    """What an argument of a type may hold, as Python's value."""
    match kind:
        case "integer" | "byte" | "short" | "long" | "Bigint":
            return draw.randint(-9, 99)
        case "float" | "double" | "number":
            return draw.choice([0.5, 2.0, -3.25, 10.0, 1e3])
        case "boolean" | "Boolean":
            return draw.random() < 0.5
        case "array" | "tuple" | "Array" | "ArrayList":
            n = draw.randint(0 if draw.random() < 0.1 else 1, 3)
            return [value(draw, items or "string", None) for _ in range(n)]
        case "dict" | "HashMap":
            return {
                word(draw): draw.choice([draw.randint(0, 9), draw.choice(WORDS)]) for _ in range(draw.randint(1, 3))
            }
    return draw.choice(WORDS) if draw.random() < 0.7 else word(draw)


def accepted_values(draw: random.Random, kind: str, items: str | None, language: str) -> list[Any]:
    """One to three values, perhaps a variable's name, and perhaps "" for what may be left out."""

    def one() -> Any:
        argument = value(draw, kind, items)
        if kind in ("dict", "HashMap"):
            return {key: [item] + ([""] if draw.random() < 0.2 else []) for key, item in argument.items()}
        if items == "dict":
            return [{key: [item] for key, item in part.items()} for part in argument]
        if isinstance(argument, list) and argument and draw.random() < 0.2:
            # A name among values: one list of two types.
            argument[draw.randrange(len(argument))] = word(draw)
        return argument

    accepted = [one() for _ in range(draw.randint(1, 3))]
    if draw.random() < 0.05 and kind not in ("any", "String", "string"):
        accepted = [word(draw)]
    if kind == "any" and language == "python" and draw.random() < 0.5:
        accepted = [draw.randint(0, 9)]
    if draw.random() < 0.3:
        accepted.insert(draw.randint(0, len(accepted)), "")
    return accepted


def function(draw: random.Random, language: str) -> dict[str, Any]:
    properties = {}
    for _ in range(draw.randint(1, 5)):
        kind = draw.choice(TYPES[language])
        properties[word(draw)] = {"type": kind}
        if kind in ("array", "tuple", "Array", "ArrayList"):
            properties[list(properties)[-1]]["items"] = {"type": draw.choice(ITEMS[language])}
    required = [name for name in properties if draw.random() < 0.6]
    name = word(draw) if draw.random() < 0.5 else f"{word(draw)}.{word(draw)}"
    return {
        "name": name,
        "description": "",
        "parameters": {"type": "dict", "properties": properties, "required": required},
    }


def question(draw: random.Random, category: str) -> dict[str, Any]:
    language = CATEGORIES[category]
    several = category in ("multiple", "parallel_multiple")
    functions = [function(draw, language) for _ in range(draw.randint(2, 4) if several else 1)]
    if several and draw.random() < 0.1:
        functions.append(function(draw, language) | {"name": functions[0]["name"]})
    accepted_calls = []
    for _ in range(draw.randint(2, 4) if "parallel" in category else 1):
        chosen = draw.choice(functions[:4])
        arguments = {
            name: accepted_values(draw, details["type"], details.get("items", {}).get("type"), language)
            for name, details in chosen["parameters"]["properties"].items()
            if name in chosen["parameters"]["required"] or draw.random() < 0.8
        }
        accepted_calls.append({chosen["name"]: arguments})
    if len(accepted_calls) > 1 and draw.random() < 0.3:
        accepted_calls[1] = copy.deepcopy(accepted_calls[0])
    return {"category": category, "functions": functions, "accepted": accepted_calls}


def read_questions(folder: Path) -> list[dict[str, Any]]:
    questions = []
    for category in CATEGORIES:
        file = folder / f"BFCL_v4_{category}.json"
        if not file.exists():
            continue
        answers = folder / "possible_answer" / file.name
        for question_line, answer_line in zip(
            *(path.read_text(encoding="utf-8").splitlines() for path in (file, answers)), strict=True
        ):
            accepted_calls = json.loads(answer_line)["ground_truth"]
            questions.append(
                {"category": category, "functions": json.loads(question_line)["function"], "accepted": accepted_calls}
            )
    return questions


# Answers.


def literal(draw: random.Random, content: Any, kind: str, items: str | None, language: str) -> Any:
    """A value as it is written in a language: text, of Java and JavaScript."""
    if language == "python":
        return content
    if isinstance(content, str):
        return content
    if isinstance(content, bool):
        return str(content).lower()
    if isinstance(content, list):
        parts = ", ".join(element(draw, item, items, language) for item in content)
        if language == "javascript":
            return draw.choice([f"[{parts}]", f"new Array({parts})"])
        if kind == "ArrayList":
            adds = "".join(f"add({element(draw, item, items, language)}); " for item in content)
            return draw.choice([f"new ArrayList<>(Arrays.asList({parts}))", f"new ArrayList<>() {{{{ {adds}}}}}"])
        return f"new Object[]{{{parts}}}"
    if isinstance(content, dict):
        pairs = {key: element(draw, item, None, language) for key, item in content.items()}
        if language == "javascript":
            return "{" + ", ".join(f"{draw.choice([key, repr(key)])}: {item}" for key, item in pairs.items()) + "}"
        puts = "".join(f'put("{key}", {item}); ' for key, item in pairs.items())
        return f"new HashMap<String, Object>() {{{{ {puts}}}}}"
    suffix = {"long": "L", "float": "f" if language == "java" else "", "Bigint": "n"}.get(kind, "")
    return f"{content}{suffix}"


def element(draw: random.Random, content: Any, kind: str | None, language: str) -> str:
    if isinstance(content, str):
        return f"'{content}'" if kind == "char" else f'"{content}"'
    return str(literal(draw, content, kind or "", None, language))


def right_answer(draw: random.Random, case: dict[str, Any]) -> list[dict[str, Any]]:
    """A call of each that is due, one of the accepted values for each argument."""
    language, calls = CATEGORIES[case["category"]], []
    by_name = {item["name"]: item["parameters"]["properties"] for item in case["functions"]}
    for accepted_call in case["accepted"]:
        [(name, arguments)] = accepted_call.items()
        chosen_arguments = {}
        for key, values in arguments.items():
            if "" in values and draw.random() < 0.5:
                continue
            chosen = draw.choice([item for item in values if item != ""] or [""])
            chosen_arguments[key] = chosen_value(draw, chosen)
            details = by_name[name].get(key, {"type": "any"})
            items = (details.get("items") or {}).get("type")
            chosen_arguments[key] = literal(draw, chosen_arguments[key], details["type"], items, language)
        calls.append({name: chosen_arguments})
    return calls


def chosen_value(draw: random.Random, chosen: Any) -> Any:
    """Of a dict one accepted value for each key, also in lists."""
    if isinstance(chosen, dict):
        picked = {key: draw.choice(item) if isinstance(item, list) and item else item for key, item in chosen.items()}
        return {key: item for key, item in picked.items() if item != "" or draw.random() < 0.5}
    if isinstance(chosen, list):
        return [chosen_value(draw, item) for item in chosen]
    return chosen


def changed_value(draw: random.Random, old: Any) -> Any:
    """Nearly the same, or of another kind."""
    if isinstance(old, str) and draw.random() < 0.6:
        marks = [letter for letter in old if letter in " ,./-_*^'" + '"']
        swapped = [old.replace(mark, other) for mark in marks for other in ("", " ", "'", '"', "^", ":")]
        changes = [*swapped, old.upper(), old.lower(), f" {old}", f"{old}.", old + "x", old[1:], old.title()]
        return draw.choice(changes)
    if isinstance(old, bool) and draw.random() < 0.6:
        return draw.choice([not old, int(old), str(old)])
    if isinstance(old, int | float) and draw.random() < 0.7:
        return draw.choice([old + 1, float(old), int(old), str(old), -old, old * 1.0 + 0.5, bool(old)])
    if isinstance(old, list | tuple) and old and draw.random() < 0.8:
        new = list(old)
        match draw.randint(0, 5):
            case 0:
                new.reverse()
            case 1:
                new.pop()
            case 2:
                new.append(copy.deepcopy(new[0]))
            case 3 | 4:
                n = draw.randrange(len(new))
                new[n] = changed_value(draw, new[n])
            case 5:
                return tuple(new)
        return new
    if isinstance(old, dict) and old and draw.random() < 0.8:
        new = dict(old)
        key = draw.choice(list(new))
        match draw.randint(0, 2):
            case 0:
                del new[key]
            case 1:
                new[word(draw)] = 1
            case 2:
                new[key] = changed_value(draw, new[key])
        return new
    return draw.choice([None, "", 0, 1, 2.0, True, "x", [], [1], ["a"], {}, {"a": 1}, str(old), [old]])


def change(draw: random.Random, calls: list[dict[str, Any]], case: dict[str, Any]) -> list[dict[str, Any]]:
    """One change of an answer."""
    calls = copy.deepcopy(calls)
    match draw.randint(0, 11):
        case 0:
            draw.shuffle(calls)
        case 1:
            calls.append(copy.deepcopy(draw.choice(calls)) if calls else {"f": {}})
        case 2 if calls:
            calls.pop(draw.randrange(len(calls)))
        case 3 if calls:
            n = draw.randrange(len(calls))
            [(name, arguments)] = calls[n].items()
            names = [spec["name"] for spec in case["functions"]] + [name.upper(), name.replace(".", "_"), name + "s"]
            calls[n] = {draw.choice(names): arguments}
        case 4 if calls:
            arguments = next(iter(draw.choice(calls).values()))
            arguments[word(draw)] = draw.choice([1, "a"])
        case 5 if calls:
            # What the function takes, and may or may not be accepted here.
            call = draw.choice(calls)
            matching = [spec for spec in case["functions"] if spec["name"] in call]
            if matching:
                name, details = draw.choice(list(matching[0]["parameters"]["properties"].items()))
                items = (details.get("items") or {}).get("type")
                argument = value(draw, details["type"], items)
                language = CATEGORIES[case["category"]]
                next(iter(call.values()))[name] = literal(draw, argument, details["type"], items, language)
        case _ if calls:
            arguments = next(iter(draw.choice(calls).values()))
            if arguments:
                name = draw.choice(list(arguments))
                if draw.random() < 0.2:
                    del arguments[name]
                else:
                    arguments[name] = changed_value(draw, arguments[name])
    return calls


def answers(draw: random.Random, questions: list[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    cases = []
    for number in range(n):
        one = questions[number % len(questions)]
        calls = right_answer(draw, one)
        for _ in range(draw.randint(0, 3)):
            calls = change(draw, calls, one)
        cases.append(one | {"calls": calls})
    return cases


# Verdicts.


def ours(case: dict[str, Any]) -> bool:
    functions = [Function.read(item, "generated") for item in case["functions"]]
    calls = [Call(*next(iter(item.items()))) for item in case["calls"]]
    return match_calls(calls, functions, case["accepted"], language=CATEGORIES[case["category"]]) is None


def text_verdict(case: dict[str, Any]) -> list[Any] | None:
    read = read_calls(case["text"])
    return None if read is None else [{call.name: dict(call.arguments)} for call in read]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--answers", type=int, default=20_000)
    options = parser.parse_args()
    draw = random.Random(0)
    generated = [question(draw, category) for _ in range(500) for category in CATEGORIES]
    cases = answers(draw, generated, options.answers // (2 if options.data else 1))
    if options.data:
        cases += answers(draw, read_questions(options.data), options.answers // 2)
    for case in cases:
        python = CATEGORIES[case["category"]] == "python"
        case["text"] = write_calls([Call(*next(iter(call.items()))) for call in case["calls"]]) if python else None
    with tempfile.TemporaryDirectory() as folder:
        cases_file, verdicts_file = Path(folder) / "cases.pickle", Path(folder) / "verdicts.json"
        import pickle  # JSON has no tuples.

        cases_file.write_bytes(pickle.dumps(cases))
        subprocess.run([bfcl_python(), HERE / "peers" / "bfcl_checker.py", cases_file, verdicts_file], check=True)
        theirs = json.loads(verdicts_file.read_text())
    print(f"bfcl-eval {BFCL}; {len(cases)} answers, {len(generated)} questions of our own", end="")
    print(f", {len(read_questions(options.data))} from files" if options.data else "")
    differ = []
    for category in CATEGORIES:
        indices = [n for n, case in enumerate(cases) if case["category"] == category]
        verdicts = [(ours(cases[n]), theirs[n]["right"]) for n in indices]
        failed = Counter(theirs[n]["failed"] for n in indices if theirs[n]["failed"])
        compared = [(n, pair) for n, pair in zip(indices, verdicts, strict=True) if not theirs[n]["failed"]]
        wrong = [n for n, (a, b) in compared if a != b]
        differ += wrong
        right = sum(pair[1] for _, pair in compared)
        print(f"{category:18} {len(compared):6} compared, {right:6} right, {len(wrong)} verdicts differ", end="")
        print(f"; their checker raised on {dict(failed)}" if failed else "")
    texts = [n for n, case in enumerate(cases) if case["text"] is not None]
    misread = [n for n in texts if repr(text_verdict(cases[n])) != theirs[n]["read"]]
    print(f"as text: {len(texts)} answers read, {len(misread)} read differently")
    for n in differ[:10]:
        print("differs:", json.dumps({"ours": ours(cases[n]), **theirs[n]}), repr(cases[n]))
    for n in misread[:3]:
        print("read differently:", cases[n]["text"], theirs[n]["read"], text_verdict(cases[n]))
    return int(bool(differ or misread))


if __name__ == "__main__":
    sys.exit(main())
