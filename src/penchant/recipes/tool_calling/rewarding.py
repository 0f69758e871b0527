"""The reward of an answer: 1 if the scorer finds its calls right, 0 if not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from penchant.data.groups import as_text
from penchant.data.writing import write_anew
from penchant.errors import DataError
from penchant.evaluation.files import write_atomically
from penchant.evaluation.tool_calls.questions import ToolQuestion, read_bfcl, write_bfcl
from penchant.evaluation.tool_calls.reading import read_calls
from penchant.evaluation.tool_calls.styles import as_messages, as_signatures
from penchant.recipes.stages import StageResult
from penchant.recipes.tool_calling.config import ToolCallingConfig
from penchant.recipes.tool_calling.data import REWARDED, as_group, fresh_questions

Reward = Callable[[object, Sequence[object]], list[float]]

MODULE = '''"""Written by the recipe: the reward of an answer to these questions."""

from pathlib import Path

from penchant.recipes.tool_calling.rewarding import reward_of

score = reward_of(Path(__file__).parent / "questions")
'''


def prepare_reward(config: ToolCallingConfig, folder: Path) -> StageResult:
    """Write the prompts, their questions and the reward function in `reward.py`; the result counts the prompts."""
    candidates = fresh_questions(config, folder.parent / "data", REWARDED)
    # The reward function finds a question by its prompt: of two questions with one prompt the first counts.
    by_prompt = {as_text(as_group(config, question).prompt): question for question in reversed(candidates)}
    questions = [*reversed(by_prompt.values())]
    write_bfcl(questions, folder / "questions")
    write_anew([as_group(config, question) for question in questions], folder / "train.jsonl")
    write_atomically(folder / "reward.py", MODULE)
    return {"prompts": len(questions)}


def reward_of(folder: Path) -> Reward:
    """The reward function of a folder's questions, which finds a question by the text of its prompt.

    Raises:
        DataError: the reward function is called with a prompt of no question.
    """
    by_prompt: dict[str, ToolQuestion] = {}
    for question in read_bfcl(folder)[0]:
        for prompt in (as_signatures(question), as_messages(question)):
            by_prompt.setdefault(as_text(prompt), question)

    def score(prompt: object, responses: Sequence[object]) -> list[float]:
        question = by_prompt.get(as_text(prompt))  # type: ignore[arg-type]
        if question is None:
            raise DataError("a prompt belongs to no question", where=str(folder), fix="run the stage again")
        texts = (as_text(response) for response in responses)  # type: ignore[arg-type]
        return [float(question.fault(read_calls(text, question.language)) is None) for text in texts]

    return score
