"""Files for tool_calling.yaml, from function-calling dialogues and an agent's household tasks.

    python examples/recipes/agents.py DATA OUT

DATA holds bfcl/ (files of the Berkeley Function Calling Leaderboard, with possible_answer/),
glaive_toolcall/glaive_toolcall_en_demo.json (conversations with function_call turns, tools) and
alfworld_react/alfworld.json (trajectories as text: "> action", then what is seen).
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SEEN = 400

Row = dict[str, Any]


def write(file: Path, rows: Iterable[Row]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def dialogues(data: Path) -> Iterator[tuple[Row, Row]]:
    """Each first call of a dialogue, as a question with its answer."""
    rows = json.loads((data / "glaive_toolcall" / "glaive_toolcall_en_demo.json").read_text(encoding="utf-8"))
    for number, row in enumerate(rows):
        tools, turns = json.loads(row["tools"]), row["conversations"]
        for said, reply in itertools.pairwise(turns):
            if tools and said["from"] == "human" and reply["from"] == "function_call":
                call = json.loads(reply["value"])
                properties = {each["name"]: each.get("parameters") for each in tools}
                known = (properties.get(call["name"]) or {}).get("properties", {})
                given = {key: [value] for key, value in call["arguments"].items() if key in known}
                if len(given) == len(call["arguments"]):
                    name = f"glaive_{number}"
                    asked = {"id": name, "question": [[{"role": "user", "content": said["value"]}]], "function": tools}
                    yield asked, {"id": name, "ground_truth": [{call["name"]: given}]}
                break


def steps(data: Path) -> Iterator[Row]:
    """Each action of a trajectory, after the end of what was seen and done before."""
    for name, text in json.loads((data / "alfworld_react" / "alfworld.json").read_text(encoding="utf-8")).items():
        before, *actions = text.split("\n> ")
        for action in actions:
            done, _, seen = action.partition("\n")
            if not done.startswith("think:"):
                yield {"prompt": f"{before[-SEEN:]}\n>", "completion": f" {done}", "source": name}
            before = f"{before}\n> {done}\n{seen}"


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    data, out = map(Path, sys.argv[1:])
    shutil.copytree(data / "bfcl", out / "questions", dirs_exist_ok=True)
    pairs = list(dialogues(data))
    write(out / "questions" / "BFCL_v4_glaive.json", [asked for asked, _ in pairs])
    write(out / "questions" / "possible_answer" / "BFCL_v4_glaive.json", [answer for _, answer in pairs])
    write(out / "steps.jsonl", steps(data))
    rows = json.loads((data / "glaive_toolcall" / "glaive_toolcall_en_demo.json").read_text(encoding="utf-8"))
    texts = ["\n".join(turn["value"] for turn in row["conversations"]) for row in rows if not json.loads(row["tools"])]
    write(out / "general.jsonl", [{"text": text} for text in texts])


if __name__ == "__main__":
    main()
