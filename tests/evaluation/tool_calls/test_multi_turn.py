"""Tests of multi-turn questions: files, programs in their process, verdicts, and a model's conversations."""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from signal import SIGKILL, SIGXCPU

import pytest

from penchant.cli.main import run
from penchant.errors import ConfigError, DataError
from penchant.evaluation.tool_calls import conversations, multi_turn
from penchant.evaluation.tool_calls.calls import Call, DueCall, Fault
from penchant.evaluation.tool_calls.conversations import RunningConversation, converse
from penchant.evaluation.tool_calls.multi_turn import Registry, judge_calls, read_all, read_multi_turn
from penchant.evaluation.tool_calls.program_process import TurnChecker
from penchant.evaluation.tool_calls.programs import LimitError, Limits, ProgramProcess, Scenario
from penchant.evaluation.tool_calls.styles import STYLES
from penchant.models.loading import load_model, load_tokenizer

PROGRAMS = """
class Tally:
    def __init__(self):
        self.count, self.note, self._calls = 0, "", 0

    def _load_scenario(self, scenario, long_context=False):
        self.count, self.note = scenario.get("count", 0), "x" * 9 if long_context else ""

    def add(self, by):
        self._calls += 1
        self.count += by
        return {"count": self.count}

    def look(self):
        return {"count": self.count}

    def spin(self):
        while True:
            pass

    def fill(self):
        return len(bytearray(2**33))

    def write(self, path):
        with open(path, "w") as file:
            file.write("x")

    def _secret(self):
        return "secret"


class Doubler:
    def double(self, number):
        print("this must not mix with the answers")
        return number * 2
"""
CLASSES = """
CLASS_FILE_PATH_MAPPING = {"Tally": "tiny_bfcl.programs", "Doubler": "tiny_bfcl.programs"}
STATELESS_CLASSES = ["Doubler"]
MULTI_TURN_FUNC_DOC_FILE_MAPPING = {"Tally": "tally.json", "Doubler": "doubler.json"}
"""
PROMPTS = """
DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC = "There are more functions now."
MAXIMUM_STEP_LIMIT = 2
"""
PACKAGE = "tiny_bfcl"
TALLY = [("tiny_bfcl.programs", "Tally", {"count": 1})]


def write_lines(file: Path, rows) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def document(name, **types):
    properties = {key: {"type": kind} for key, kind in types.items()}
    parameters = {"type": "dict", "properties": properties, "required": list(properties)}
    return {"name": name, "description": "d", "parameters": parameters}


@pytest.fixture
def package(tmp_path, monkeypatch) -> None:
    """A package with the tables of `bfcl-eval` and two classes."""
    modules = {"programs": PROGRAMS, "executable_backend_config": CLASSES, "default_prompts": PROMPTS, "__init__": ""}
    for name, text in modules.items():
        file = tmp_path / PACKAGE / ("" if name in ("programs", "__init__") else "constants") / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


@pytest.fixture
def folder(tmp_path, package) -> Path:
    """Two categories of one question each."""
    folder = tmp_path / "data"
    user = lambda text: [{"role": "user", "content": text}]  # noqa: E731
    row = {"id": "base_0", "question": [user("Add 2."), user("Double 4.")], "initial_config": {"Tally": {"count": 1}},
           "involved_classes": ["Tally", "Doubler"]}  # fmt: skip
    held_back = row | {"id": "miss_0", "question": [user("Double 4."), []], "missed_function": {"1": ["double"]}}
    write_lines(folder / "BFCL_v4_multi_turn_base.json", [row])
    write_lines(folder / "BFCL_v4_multi_turn_miss_func.json", [held_back])
    ground_truths = {"base_0": [["add(2)"], ["double(number=4)"]], "miss_0": [[], ["double(number=4)"]]}
    for name, category in (("base_0", "base"), ("miss_0", "miss_func")):
        write_lines(
            folder / "possible_answer" / f"BFCL_v4_multi_turn_{category}.json",
            [{"id": name, "ground_truth": ground_truths[name]}],
        )
    write_lines(folder / "multi_turn_func_doc" / "tally.json", [document("add", by="integer"), document("look")])
    write_lines(folder / "multi_turn_func_doc" / "doubler.json", [document("double", number="integer")])
    return folder


def test_questions(folder):
    (base, miss), left_out = read_multi_turn(folder, PACKAGE)
    assert not left_out
    assert [function.name for function in base.functions] == ["add", "look", "double"]
    assert base.due_calls == ((DueCall("add", (2,), {}),), (DueCall("double", (), {"number": 4}),))
    assert base.scenario == Scenario(
        {"Tally": "tiny_bfcl.programs", "Doubler": "tiny_bfcl.programs"}, {"Tally": {"count": 1}}, long=False
    )
    assert miss.turns[1] == ({"role": "user", "content": "There are more functions now."},)
    assert [[f.name for f in miss.step(turn, ()).functions] for turn in (0, 1)] == [
        ["add", "look"], ["add", "look", "double"]
    ]  # fmt: skip


def test_long_context_fills_the_programs(folder, package):
    assert TurnChecker(TALLY, long=True)._model_programs.objects["Tally"].note == "x" * 9
    for part in (folder, folder / "possible_answer"):
        (part / "BFCL_v4_multi_turn_base.json").rename(part / "BFCL_v4_multi_turn_long_context.json")
    [question] = [q for q in read_multi_turn(folder, PACKAGE)[0] if q.category == "multi_turn_long_context"]
    assert question.scenario.long


def change_row(folder, **changes):
    file = folder / "BFCL_v4_multi_turn_base.json"
    write_lines(file, [json.loads(file.read_text()) | changes])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"involved_classes": ["Rocket"]}, "no class 'Rocket'"),
        ({"question": [[{"role": "user", "content": "Add 2."}]]}, "1 turns, and calls that are due in 2"),
        ({"question": [[{"role": "user", "content": "Add 2."}], []]}, "turn 1 has no message"),
        ({"id": "other"}, "KeyError"),
        ({"initial_config": None}, "AttributeError"),
    ],
)
def test_refused_rows(folder, changes, message):
    change_row(folder, **changes)
    with pytest.raises(DataError, match=message) as caught:
        read_multi_turn(folder, PACKAGE)
    assert caught.value.where == "BFCL_v4_multi_turn_base.json, row 1"


def test_left_out(folder):
    (folder / "possible_answer" / "BFCL_v4_multi_turn_base.json").unlink()
    questions, left_out = read_multi_turn(folder, PACKAGE)
    assert [question.id for question in questions] == ["miss_0"]
    assert left_out == {"multi_turn_base": "it has no possible_answer/BFCL_v4_multi_turn_base.json"}
    assert read_multi_turn(folder, "no_such_package")[1].keys() == {"multi_turn_base", "multi_turn_miss_func"}
    with pytest.raises(ConfigError, match="version of bfcl-eval is not supported"):
        Registry.from_package("penchant")


ADD = ("add", (), {"by": 2})


@pytest.mark.parametrize(
    ("model_calls", "due_calls", "fault"),
    [
        ([ADD], [("add", (2,), {})], None),
        ([ADD, ("look", (), {})], [ADD], None),
        ([], [ADD], "NO_CALL_IN_TURN"),
        ([("add", (), {"by": 3})], [ADD], "STATE"),
        ([ADD, ADD], [ADD], "STATE"),
        ([ADD], [ADD, ("look", (), {})], None),
        ([("look", (), {})], [("look", (), {}), ("look", (), {})], "RESULTS"),
        ([("look", (), {}), ("look", (), {})], [("look", (), {})], None),
        ([("add", (), {"by": 9})], [], None),
        ([], [], None),
    ],
)  # fmt: skip
def test_verdicts_of_a_turn(package, model_calls, due_calls, fault):
    """`add` returns the same result as `look` after it; the number of private calls does not count."""
    checker = TurnChecker(TALLY, long=False)
    checker.execute(model_calls)
    if due_calls == [ADD, ("look", (), {})]:
        # One result stands for one of two equal ones.
        assert checker.end_turn(due_calls) == "RESULTS"
        checker = TurnChecker(TALLY, long=False)
        checker.execute([ADD, ("look", (), {})])
    assert checker.end_turn(due_calls) == fault


def test_results_of_earlier_turns_count(package):
    checker = TurnChecker(TALLY, long=False)
    checker.execute([("look", (), {})])
    assert checker.end_turn([]) is None
    checker.execute([("add", (), {"by": 0})])
    # The state and both results are there, one of them since the first turn.
    assert checker.end_turn([("look", (), {}), ("add", (0,), {})]) is None
    assert checker.end_turn([("look", (), {})]) == "NO_CALL_IN_TURN"


def test_results_as_texts(package):
    assert TurnChecker([*TALLY, ("tiny_bfcl.programs", "Doubler", None)], long=False).execute(
        [("double", (), {"number": "a"}), ("double", (), {"number": 1.5}), ("look", (), {}), ("_secret", (), {}),
         ("add", (), {"to": 1})]
    ) == ["aa", "3.0", '{"count": 1}', "Error during execution: name '_secret' is not defined",
          "Error during execution: Tally.add() got an unexpected keyword argument 'to'"]  # fmt: skip


def test_conversations_are_judged(folder, tmp_path):
    base, miss = read_multi_turn(folder, PACKAGE)[0]
    add, double = Call("add", {"by": 2}), Call("double", {"number": 4})
    assert judge_calls(base, [[[add]], [[double]]]) is None
    assert judge_calls(base, [[[add], [double]], [[Call("look", {})]]]) is None
    assert judge_calls(base, [[[add]], []]) is Fault.NO_CALL_IN_TURN
    assert judge_calls(base, [[[add]]]) is Fault.STEPS
    assert judge_calls(miss, [[[Call("fill", {})]], [[double]]], Limits(bytes_of_memory=2**29)) is Fault.LIMITS


def test_limits_of_time_memory_and_files(package, tmp_path):
    scenario = Scenario({"Tally": "tiny_bfcl.programs"}, {"Tally": {}}, long=False)
    for limits, signal_number in ((Limits(seconds=0.2), SIGKILL), (Limits(computing_seconds=1), SIGXCPU)):
        with ProgramProcess(scenario, limits) as programs, pytest.raises(LimitError):
            programs.execute([Call("spin", {})])
        assert programs._process.returncode == -signal_number
    with ProgramProcess(scenario) as programs:
        [result] = programs.execute([Call("write", {"path": str(tmp_path / "x")})])
        assert "File too large" in result
        assert not (tmp_path / "x").read_bytes()
        assert programs.execute([Call("look", {})]) == ['{"count": 0}']
    with pytest.raises(RuntimeError, match="no_such_module"):
        ProgramProcess(Scenario({"Tally": "no_such_module"}, {}, long=False))


@pytest.fixture
def conversation(folder):
    """A conversation in the style of messages about the question with a held-back function."""
    question = read_multi_turn(folder, PACKAGE)[0][1]
    with ProgramProcess(question.scenario) as programs:
        yield RunningConversation(question, STYLES["messages"], programs)


def test_a_conversation(conversation):
    assert [function.name for function in conversation.next_question.functions] == ["add", "look"]
    conversation.receive("[add(by=1)]", True)
    *_, answer, results = conversation.messages
    assert answer == {"role": "assistant", "content": "[add(by=1)]"}
    assert results["content"].splitlines()[1:] == [json.dumps({"call": "add(by=1)", "result": '{"count": 2}'})]
    conversation.receive("I cannot double.", True)
    assert conversation.messages[-1]["content"] == "There are more functions now."
    assert [function.name for function in conversation.next_question.functions] == ["add", "look", "double"]
    conversation.receive("[double(number=4), add(by=-1)]", False)
    assert not conversation.is_over
    conversation.receive("Done.", True)
    # The state is that of a conversation without calls of `add`, whose sum is 0.
    assert (conversation.is_over, conversation.fault, conversation.is_complete) == (True, None, False)
    assert conversation.answers == [
        ["[add(by=1)]", "I cannot double."], ["[double(number=4), add(by=-1)]", "Done."]
    ]  # fmt: skip


def test_too_many_answers_with_calls(conversation):
    """The limit is two; a third ends the conversation, and the turn is judged if it is the last."""
    for _ in range(2):
        conversation.receive("[look()]", True)
        assert not conversation.is_over
    last = replace(conversation, answers=[["Nothing."], ["[double(number=4)]", "[look()]"]], messages=[])
    conversation.receive("[look()]", True)
    assert conversation.fault is Fault.STEPS
    last.programs.execute([Call("double", {"number": 4})])
    last.receive("[look()]", True)
    assert (last.is_over, last.fault) == (True, None)


@pytest.mark.parametrize("name", STYLES)
def test_styles_show_results(folder, name):
    question = read_multi_turn(folder, PACKAGE)[0][0]
    calls = {"native": '{"name": "add", "arguments": {"by": 2}}'}.get(name, "[add(by=2)]")
    with ProgramProcess(question.scenario) as programs:
        conversation = RunningConversation(question, STYLES[name], programs)
        conversation.receive(calls, True)
    results = {
        "messages": [{"role": "user", "content": 'Results of the calls, in JSON:\n{"call": "add(by=2)", '
                      '"result": "{\\"count\\": 3}"}'}],
        "native": [{"role": "tool", "name": "add", "tool_call_id": "call00000", "content": '{"count": 3}'}],
        "signatures": [{"role": "tool", "content": '{"count": 3}'}],
    }  # fmt: skip
    assert conversation.messages[-1:] == results[name]
    if name == "native":
        [call] = conversation.messages[-2]["tool_calls"]
        assert call == {"type": "function", "id": "call00000", "function": {"name": "add", "arguments": {"by": 2}}}
    assert (conversation.messages[0]["role"] == "system") == (name == "messages")


def test_a_model_converses(folder, tiny_model, monkeypatch):
    questions = read_multi_turn(folder, PACKAGE)[0]
    answers = iter(["[add(by=2)]", "No.", "Yes.", "[double(number=4)]", "[double(number=4)]", "Done.", "Done."])
    monkeypatch.setattr(conversations, "text_after", lambda *_: next(answers))
    model, tokenizer = load_model(str(tiny_model)), load_tokenizer(str(tiny_model))
    base, miss = converse(model, tokenizer, questions, STYLES["signatures"], max_new_tokens=2)
    assert (base.fault, miss.fault) == (None, None)
    assert base.answer == (("[add(by=2)]", "Yes."), ("[double(number=4)]", "Done."))
    assert miss.answer == (("No.",), ("[double(number=4)]", "Done."))
    assert next(answers, None) is None
    model.config.max_position_embeddings = 8
    [too_long] = converse(model, tokenizer, questions[:1], STYLES["signatures"], max_new_tokens=2)
    assert (too_long.fault, too_long.answer) == (Fault.LENGTH, ((),))


def test_the_verb(folder, tiny_model, tmp_path, capsys, monkeypatch, latency_in_this_process):
    command = ["tool-calls", str(tiny_model), "--data", str(folder), "--style", "signatures", "--max-new-tokens", "2"]
    if importlib.util.find_spec("bfcl_eval") is None:
        assert run([*command, "--category", "multi_turn_base"]) == 2
        assert "pip install --no-deps bfcl-eval" in capsys.readouterr().err
    monkeypatch.setattr(multi_turn, "read_multi_turn", partial(read_multi_turn, package=PACKAGE))
    assert run([*command, "--timed", "1", "--answers", str(tmp_path / "a.jsonl"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["overall"]["n"] == 2
    assert result["leaderboard"]["measured_weight"] == pytest.approx(0.15)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["base_0", "miss_0"]
    assert run([*command, "--timed", "1", "--category", "multi_turn_base"]) == 0
    assert "counts as 0" in capsys.readouterr().out


def test_the_official_package():
    """The due calls of a question of each category are right, read from the package's own data."""
    package = pytest.importorskip("bfcl_eval")
    questions, _ = read_all(Path(package.__path__[0]) / "data")
    by_category = {question.category: question for question in questions if question.category.startswith("multi_turn")}
    assert len(by_category) == 4
    for question in by_category.values():
        turns = [[[Call(call.name, call.keywords) for call in turn]] if turn else [] for turn in question.due_calls]
        assert judge_calls(question, turns) is None


def test_programs_end_with_their_owner(package):
    scenario = Scenario({"Tally": "tiny_bfcl.programs"}, {"Tally": {}}, long=False)
    with ProgramProcess(scenario) as programs:
        number = programs._process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)
