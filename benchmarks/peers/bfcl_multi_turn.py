"""The official checker's verdicts on conversations. Run in an environment that holds `bfcl-eval`.

python bfcl_multi_turn.py CASES.json OUT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker


def verdict(case, number):
    turns = case["turns"]
    if len(turns) != len(case["ground_truth"]):
        # As the package's runner judges before it calls the checker.
        return {"right": False, "failed": None, "error": "multi_turn:force_terminated"}
    try:
        # The checker keeps a model's objects in its module, by the model's name.
        result = multi_turn_checker(turns, case["ground_truth"], case["entry"], case["category"], f"case{number}")
    except Exception as error:
        return {"right": False, "failed": type(error).__name__, "error": None}
    return {"right": bool(result["valid"]), "failed": None, "error": result.get("error_type")}


def main():
    cases = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps([verdict(case, number) for number, case in enumerate(cases)]))


if __name__ == "__main__":
    main()
