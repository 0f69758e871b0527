"""A model in conversations of several turns: it calls programs, reads their results, and is judged turn by turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penchant.data.messages import ASSISTANT, Message
from penchant.data.rendering import PLAIN, Rendering
from penchant.data.tokenization import tokenize_prompts
from penchant.engine.reference_model import NO_LIMIT
from penchant.engine.sampling import Sampling, sample
from penchant.evaluation.answering import ends_of, text_after
from penchant.evaluation.tool_calls.calls import Fault
from penchant.evaluation.tool_calls.multi_turn import MultiTurnQuestion
from penchant.evaluation.tool_calls.programs import LimitError, ProgramProcess
from penchant.evaluation.tool_calls.questions import ToolQuestion
from penchant.evaluation.tool_calls.styles import Style
from penchant.evaluation.tool_calls.suite import JudgedAnswer, answer_questions, guide_factories
from penchant.models.loading import context_length
from penchant.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class RunningConversation:
    """A conversation while it goes on.

    A turn ends with the first answer without calls, or after too many answers with calls; then it is judged, and the
    conversation ends with the first turn that is wrong.

    Attributes:
        programs: the process of the question's programs.
        answers: the model's answers by turn.
        messages: the conversation so far, as the style writes it.
        fault: the fault of the conversation so far.
        is_over: whether there is no answer to wait for.
        is_complete: whether the model ended all its answers.
    """

    question: MultiTurnQuestion
    style: Style
    programs: ProgramProcess
    answers: list[list[str]] = field(default_factory=lambda: [[]])
    messages: list[Message] = field(default_factory=list)
    fault: Fault | None = None
    is_over: bool = False
    is_complete: bool = True

    def __post_init__(self) -> None:
        self.messages += first_question(self.question, self.style).messages

    @property
    def next_question(self) -> ToolQuestion:
        """The question of the next answer."""
        return self.question.step(len(self.answers) - 1, self.messages)

    def end(self, fault: Fault | None) -> None:
        """End the conversation with this fault; None if it was right."""
        self.fault, self.is_over = fault, True

    def receive(self, answer: str, has_end: bool) -> None:
        """Execute an answer's calls, or end the turn if it has none.

        Args:
            has_end: whether the model ended the answer.
        """
        calls = self.style.read(answer, self.next_question)
        self.answers[-1].append(answer)
        self.is_complete &= has_end
        try:
            if not calls:
                self.messages.append(Message(role=ASSISTANT, content=answer.strip()))
                self._end_turn()
                return
            self.messages += self.style.follow(answer, calls, self.programs.execute(calls))
            if len(self.answers[-1]) > self.question.max_steps:
                # The leaderboard judges such a turn if it is the last; otherwise the whole question is wrong.
                if len(self.answers) == len(self.question.turns):
                    self._end_turn()
                else:
                    self.end(Fault.STEPS)
        except LimitError:
            self.end(Fault.LIMITS)

    def _end_turn(self) -> None:
        turn = len(self.answers)
        fault = self.programs.end_turn(self.question.due_calls[turn - 1])
        if fault is not None or turn == len(self.question.turns):
            self.end(fault)
            return
        self.messages += self.question.turns[turn]
        self.answers.append([])


def first_question(question: MultiTurnQuestion, style: Style) -> ToolQuestion:
    """The question of the first answer."""
    instruction = [Message(role="system", content=style.instruction)] if style.instruction else []
    return question.step(0, [*instruction, *question.turns[0]])


def answer_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[ToolQuestion | MultiTurnQuestion],
    style: Style,
    *,
    max_new_tokens: int = 256,
    constrained: bool = False,
    rendering: Rendering = PLAIN,
) -> list[JudgedAnswer]:
    """A model's answers to questions of one turn, as `answer_questions`, and then of several, as `converse`."""
    single_turn = [question for question in questions if isinstance(question, ToolQuestion)]
    multi_turn = [question for question in questions if isinstance(question, MultiTurnQuestion)]
    judged: list[JudgedAnswer] = []
    if single_turn:
        judged += answer_questions(
            model,
            tokenizer,
            single_turn,
            style,
            max_new_tokens=max_new_tokens,
            constrained=constrained,
            rendering=rendering,
        )
    if multi_turn:
        judged += converse(
            model,
            tokenizer,
            multi_turn,
            style,
            max_new_tokens=max_new_tokens,
            constrained=constrained,
            rendering=rendering,
        )
    return judged


def converse(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[MultiTurnQuestion],
    style: Style,
    *,
    max_new_tokens: int = 256,
    batch_size: int = 32,
    constrained: bool = False,
    rendering: Rendering = PLAIN,
) -> list[JudgedAnswer]:
    """A model's greedy answers in every conversation, judged.

    Args:
        batch_size: the number of conversations, and processes of programs, at a time.
        constrained: as in `answer_questions`.
        rendering: how questions become text.

    Raises:
        DataError: the chat template refuses the messages of calls or results.
        PenchantError: as `answer_questions`.
    """
    style.check(tokenizer)
    limit = context_length(model.config) or NO_LIMIT
    sampling = Sampling(temperature=0.0, max_new_tokens=max_new_tokens, batch_size=batch_size)
    ends, waiting = ends_of(model, tokenizer), deque(questions)
    judged: dict[str, JudgedAnswer] = {}
    running: list[RunningConversation] = []
    with Progress("conversing", len(questions), "questions") as progress, ExitStack() as processes:
        while waiting or running:
            while waiting and len(running) < batch_size:
                question = waiting.popleft()
                programs = processes.enter_context(ProgramProcess(question.scenario))
                running.append(RunningConversation(question, style, programs))
            steps = [conversation.next_question for conversation in running]
            prompts = tokenize_prompts([style.ask(step) for step in steps], tokenizer, rendering)
            fitting = [number for number, prompt in enumerate(prompts) if len(prompt) + max_new_tokens <= limit]
            guides = None
            if constrained:
                guides = guide_factories(model, tokenizer, [steps[number] for number in fitting], style)
            responses = sample(model, [prompts[number] for number in fitting], sampling, ends=ends, guides=guides)
            for number, [response] in zip(fitting, responses, strict=True):
                answer = text_after(tokenizer, prompts[number], response.content)
                running[number].receive(answer, response.has_end)
            for number in set(range(len(running))) - set(fitting):
                running[number].end(Fault.LENGTH)
            for conversation in running:
                if conversation.is_over:
                    conversation.programs.close()
                    answers = tuple(map(tuple, conversation.answers))
                    judged[conversation.question.id] = JudgedAnswer(
                        conversation.question, answers, conversation.fault, conversation.is_complete
                    )
                    progress.advance(1)
            running = [conversation for conversation in running if not conversation.is_over]
    return [judged[question.id] for question in questions]
