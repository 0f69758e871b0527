"""The official checker's verdicts. Run in an environment that holds `bfcl-eval`.

python bfcl_checker.py CASES.pickle OUT.json

The package's table of models loads the libraries of a dozen providers; a stand-in with one model that keeps dots in
names takes its place.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

table = ModuleType("bfcl_eval.constants.model_config")
table.MODEL_CONFIG_MAPPING = {"any": SimpleNamespace(underscore_to_dot=False)}
sys.modules[table.__name__] = table

from bfcl_eval.constants.enums import Language  # noqa: E402
from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker  # noqa: E402

LANGUAGES = {"simple_java": Language.JAVA, "simple_javascript": Language.JAVASCRIPT}


def reader():
    """The package's reading of Python's syntax, without the languages' parsers it loads beside it."""
    for name in ("java_parser", "js_parser"):
        stand_in = ModuleType(f"bfcl_eval.model_handler.parser.{name}")
        stand_in.parse_java_function_call = stand_in.parse_javascript_function_call = None
        sys.modules[stand_in.__name__] = stand_in
    from bfcl_eval.model_handler.utils import default_decode_ast_prompting

    return default_decode_ast_prompting


def verdict(case, decode):
    category = case["category"]
    row = {"right": False, "failed": None, "error": None, "read": None}
    language = LANGUAGES.get(category, Language.PYTHON)
    try:
        result = ast_checker(case["functions"], case["calls"], case["accepted"], language, category, "any")
        row["right"], row["error"] = bool(result["valid"]), str(result.get("error_type"))
    except Exception as error:
        row["failed"] = type(error).__name__
    if case["text"] is not None:
        try:
            row["read"] = repr(decode(case["text"]))
        except Exception:
            row["read"] = "None"
    return row


def main():
    cases = pickle.loads(Path(sys.argv[1]).read_bytes())
    decode = reader()
    Path(sys.argv[2]).write_text(json.dumps([verdict(case, decode) for case in cases]))


if __name__ == "__main__":
    main()
