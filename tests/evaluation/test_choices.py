"""Multiple choice: the groups a question makes, accuracies worked by hand, and scores against a plain forward."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.data.groups import PreferenceGroup
from penchant.data.tokenized import TokenizedGroup
from penchant.engine.distributed import World
from penchant.engine.scoring import PackedScorer, score_with_head
from penchant.errors import ConfigError, DataError, ModelError
from penchant.evaluation.choices import (
    Question,
    ScoredQuestion,
    chat_group,
    evaluate_choices,
    plain_group,
)
from penchant.evaluation.choices_scoring import (
    OptionScorer,
    score_options,
    score_tasks,
    without_end,
)
from penchant.evaluation.choices_suites import SUITES, evaluate_suite, require_tasks, weighted_sum
from penchant.evaluation.held_out import Reading
from penchant.evaluation.statistics import Estimate, mean_of_shares

SINGLE = World(0, 1, torch.device("cpu"))


def question(
    options: Sequence[str], right: int, prompt: str = "q", *, where: str = "f, line 1", passage: str | None = None
) -> Question:
    return Question(prompt, tuple(options), right, "task", where, passage=passage)


class TestGroups:
    def test_plain_text_continues_the_prompt_with_one_space(self):
        boolq_question = Question("Is it?", (" yes", "no"), 1, "boolq", "f, line 3", cue="\nAnswer:")
        expected = PreferenceGroup("Is it?\nAnswer:", (" yes", " no"), preferred=1, id="f, line 3", source="boolq")
        assert plain_group(boolq_question) == expected
        assert plain_group(question(["a", "b"], 0, "Q:\n")).candidates == ("a", "b")
        assert plain_group(question(["a", "b"], 0, "")).candidates == ("a", "b")

    def test_options_are_the_assistants_message_and_the_cue_is_the_templates(self):
        boolq_question = Question("Is it?", ("yes", "no"), 1, "boolq", "f, line 3", cue="\nAnswer:")
        group = chat_group(boolq_question)
        assert group.prompt == ({"role": "user", "content": "Is it?"},)
        assert group.candidates == tuple(({"role": "assistant", "content": text},) for text in ("yes", "no"))
        assert (group.preferred, group.id, group.source) == (1, "f, line 3", "boolq")

    @pytest.mark.parametrize(("options", "right"), [(["a"], 0), (["a", "b"], 2), (["a", "b"], -1)])
    def test_a_question_is_whole(self, options, right):
        with pytest.raises(ValueError, match=r"expected an index below|at least two options"):
            question(options, right)


# Lengths of the options, the right one, and the scores:
#   bb, a, ccc     0   log: 0 highest   log_sum: 0 = 1 tied highest
#   aa, bb         1   log: 0 highest   log_sum: 1 highest
#   a, bb, cc, d   0   log: 0 highest   log_sum: 1 = 2 tied highest, neither is right
SCORED = [
    ScoredQuestion(question(["bb", "a", "ccc"], 0, "p1"), {"log": (-1.0, -2.0, -3.0), "log_sum": (-4.0, -4.0, -9.0)}),
    ScoredQuestion(question(["aa", "bb"], 1, "p2"), {"log": (-1.0, -2.0), "log_sum": (-5.0, -4.0)}),
    ScoredQuestion(
        question(["a", "bb", "cc", "d"], 0, "p3"),
        {"log": (-1.0, -2.0, -3.0, -4.0), "log_sum": (-7.0, -4.0, -4.0, -9.0)},
    ),
]


class TestEvaluate:
    def test_every_number_by_hand(self):
        report = evaluate_choices("task", SCORED, left_out={"no label": 2})
        assert (report.questions, report.options) == (3, {2: 1, 3: 1, 4: 1})
        assert {name: estimate.value for name, estimate in report.accuracy.items()} == pytest.approx(
            {"log": 2 / 3, "log_sum": 1 / 3}
        )
        assert report.ties == {"log": 0, "log_sum": 2}
        assert report.chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 4) / 3)
        assert {name: estimate.value for name, estimate in report.baselines.items()} == pytest.approx(
            # Right is first in two of three. Longest: ccc is wrong, bb is one of two, bb and cc are wrong.
            # Shortest: a is wrong, bb is one of two, a is one of two.
            {"majority": 2 / 3, "longest_option": (0 + 1 / 2 + 0) / 3, "shortest_option": (0 + 1 / 2 + 1 / 2) / 3}
        )
        assert {estimate.n for estimate in (*report.accuracy.values(), *report.baselines.values())} == {3}
        document = report.to_json()
        assert document["accuracy"]["log"].keys() == {"value", "low", "high", "n"}
        assert document["options"] == {"2": 1, "3": 1, "4": 1}
        assert document["left_out"] == {"no label": 2}

    def test_a_tie_with_the_right_option_is_wrong(self):
        tied = ScoredQuestion(question(["sky", "sky"], 0), {"log": (-1.0, -1.0)})
        report = evaluate_choices("task", [tied])
        assert (report.accuracy["log"].value, report.ties["log"]) == (0, 1)

    def test_a_tie_below_the_highest_is_none(self):
        scored = ScoredQuestion(question(["a", "b", "c"], 0), {"log": (-1.0, -2.0, -2.0)})
        assert (scored.is_right("log"), scored.is_tie("log")) == (True, False)

    def test_intervals_resample_passages(self):
        right, wrong = {"log": (0.0, -1.0)}, {"log": (-1.0, 0.0)}
        scored = [
            ScoredQuestion(question(["a", "b"], 0, f"p{i}", passage=f"passage {i // 2}"), right if i < 2 else wrong)
            for i in range(4)
        ]
        # The two passages' accuracies are 1 and 0: four questions say no more than two.
        estimate, two = evaluate_choices("task", scored).accuracy["log"], mean_of_shares([1, 0], [0, 1])
        assert (estimate.value, estimate.n) == (0.5, 4)
        assert (estimate.low, estimate.high) == pytest.approx((two.low, two.high))
        alone = evaluate_choices("task", scored[:2]).accuracy["log"]
        assert math.isnan(alone.low)

    def test_a_score_that_is_no_number_is_refused(self):
        with pytest.raises(ModelError, match="'log' of option 1 is nan"):
            ScoredQuestion(question(["a", "b"], 0), {"log": (0.0, math.nan)})

    @given(
        st.lists(
            st.lists(st.sampled_from([0.0, -1.0, -2.0]), min_size=2, max_size=5).flatmap(
                lambda scores: st.tuples(st.just(scores), st.integers(0, len(scores) - 1))
            ),
            min_size=1,
            max_size=8,
        ),
        st.randoms(),
    )
    @settings(max_examples=40, deadline=None)
    def test_the_order_of_questions_and_options_changes_nothing(self, scores_and_rights, random):
        def report(shuffled: bool) -> dict:
            scored = []
            for i, (scores, right) in enumerate(scores_and_rights):
                order = list(range(len(scores)))
                if shuffled:
                    random.shuffle(order)
                shuffled_question = question(["x" * (k + 1) for k in order], order.index(right), f"p{i}")
                scored.append(ScoredQuestion(shuffled_question, {"log": tuple(scores[k] for k in order)}))
            if shuffled:
                random.shuffle(scored)
            document = evaluate_choices("task", scored, resamples=20).to_json()
            del document["baselines"]["majority"]  # It alone is about places.
            return document

        assert report(shuffled=True) == report(shuffled=False)


def task_report(name: str, right: int, questions: int):
    scored = [
        ScoredQuestion(question(["a", "b"], 0, f"p{i}"), {"log": (0.0, -1.0) if i < right else (-1.0, 0.0)})
        for i in range(questions)
    ]
    return evaluate_choices(name, scored, resamples=200)


class TestSuites:
    def test_gpt4all_is_the_unweighted_mean_of_its_seven(self):
        rights = {"hellaswag": 1, "openbookqa": 2, "winogrande": 3, "arc_challenge": 4, "arc_easy": 4, "boolq": 2}
        reports = [task_report(name, right, 4) for name, right in rights.items()]
        reports += [task_report("piqa", 1, 8), task_report("another", 0, 5)]
        report = evaluate_suite(SUITES["gpt4all"], reports)
        assert report.mean["log"].value == pytest.approx((16 / 4 + 1 / 8) / 7)
        assert report.mean["log"].n == 32
        assert report.chance == pytest.approx(0.5)
        assert "unweighted" in report.to_json()["definition"]

    def test_race_weighs_by_size(self):
        report = evaluate_suite(SUITES["race"], [task_report("race_high", 1, 6), task_report("race_middle", 2, 2)])
        assert report.mean["log"].value == pytest.approx(3 / 8)

    def test_a_part_of_a_suite_is_refused_by_name(self):
        with pytest.raises(ConfigError, match="not given: race_high") as error:
            require_tasks(SUITES["race"], ["race_middle"])
        assert "--task race_high=FILE" in error.value.fix
        with pytest.raises(ConfigError):
            evaluate_suite(SUITES["race"], [task_report("race_middle", 1, 2)])

    def test_bounds_of_a_weighted_sum_by_hand(self):
        low_estimate, high_estimate = Estimate(0.5, 0.44, 0.58, 10), Estimate(0.7, 0.62, 0.76, 30)
        both = weighted_sum([low_estimate, high_estimate], [0.5, 0.5])
        assert both.value == pytest.approx(0.6)
        # Below: sqrt(.03^2 + .04^2) = .05; above: sqrt(.04^2 + .03^2) = .05.
        assert (both.low, both.high, both.n) == (pytest.approx(0.55), pytest.approx(0.65), 40)
        assert weighted_sum([low_estimate], [1.0]) == Estimate(0.5, pytest.approx(0.44), pytest.approx(0.58), 10)
        assert math.isnan(weighted_sum([low_estimate, Estimate(1.0, math.nan, math.nan, 1)], [0.5, 0.5]).low)


def group(prompt: Sequence[int], *responses: Sequence[int]) -> TokenizedGroup:
    ids = tuple(np.array(response, dtype=np.int64) for response in responses)
    return TokenizedGroup(
        np.array(prompt, dtype=np.int64), ids, PreferenceGroup("q", ("o",) * len(ids), id="f, line 1")
    )


def minus_sum(groups: Sequence[TokenizedGroup]) -> list[list[float]]:
    """A stub: a token's log-prob is minus its id."""
    return [[-float(response.sum()) for response in tokenized.responses] for tokenized in groups]


class TestScoreOptions:
    def test_by_hand(self):
        """2 ends the turn. The mean without it prefers the second, the sum with it the one-token first."""
        tokenized = group([1, 5], [4, 2], [3, 3, 3, 2])
        [scores] = score_options([tokenized], OptionScorer(minus_sum, lambda groups: [[0.5, -0.5] for _ in groups]))
        assert scores == {"log": (-4.0, -3.0), "log_sum": (-6.0, -11.0), "head": (0.5, -0.5)}
        scored = ScoredQuestion(question(["a", "b"], 1), scores)
        assert [scored.is_right(name) for name in ("log", "log_sum", "head")] == [True, False, False]

    def test_the_end_alone_is_taken_off(self):
        bare = without_end(group([1, 5], [4, 2], [3, 3, 3, 2]))
        assert [response.tolist() for response in bare.responses] == [[4], [3, 3, 3]]
        assert bare.prompt.tolist() == [1, 5]

    def test_no_head_no_score(self):
        assert score_options([group([1], [4, 2])], OptionScorer(minus_sum))[0].keys() == {"log", "log_sum"}
        assert score_options([], OptionScorer(minus_sum)) == []


class FirstTokenHead(PackedScorer):
    """A stub in the place of a headed scorer: the reward is the candidate's first token."""

    def cost(self, group):
        return group.length

    def forward(self, batch):
        starts = torch.cumsum(batch.lengths, 0) - batch.lengths
        rewards = batch.to_group_matrix(batch.targets[starts].double())
        return torch.stack([torch.full_like(rewards, torch.nan), rewards])


def test_head_rewards_keep_the_order_whatever_the_budget():
    groups = [group([1, 5], [7, 2], [8, 9, 2]), group([1], [6, 6, 6, 2], [5, 2], [4, 2]), group([1, 1, 1], [3, 2])]
    expected = [[7.0, 8.0], [6.0, 5.0, 4.0], [3.0]]
    for budget in (1, 12, 1000):
        rewards = score_with_head(FirstTokenHead(), groups, world=SINGLE, budget=budget, dtype="float32")
        assert rewards == expected


QUESTIONS = [
    Question("the old cat sees", ("a dog", "bird", "small house by river"), 1, "t", "t.jsonl, line 1"),
    Question("it runs to", ("tree", "the river ."), 0, "t", "t.jsonl, line 2"),
]


def plain_log_probs(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """Each token's log-prob but the first's, by one padded-free forward in float64."""
    with torch.no_grad():
        table = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return table[torch.arange(len(ids) - 1), ids[1:]]


class TestScoreTasks:
    def test_equals_a_plain_float64_forward_with_and_without_the_end(self, tiny_model, notices):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        scored = score_tasks(str(tiny_model), {"t": QUESTIONS}, SINGLE)["t"]
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        for expected_question, row in zip(QUESTIONS, scored.questions, strict=True):
            assert row.question is expected_question
            prompt = tokenizer(expected_question.prompt)["input_ids"]
            for k, option in enumerate(expected_question.options):
                ids = [*tokenizer(f"{expected_question.prompt} {option}")["input_ids"], tokenizer.eos_token_id]
                answer = plain_log_probs(model, ids)[len(prompt) - 1 :]
                assert len(answer) == len(option.split()) + 1
                assert row.scores["log"][k] == pytest.approx(float(answer[:-1].mean()), abs=1e-5)
                assert row.scores["log_sum"][k] == pytest.approx(float(answer.sum()), abs=1e-5)
        assert notices.messages == ["questions are read as plain text, options continue the prompt"]
        assert scored.left_out == {}

    def test_a_chat_template_makes_them_messages(self, tiny_model, tmp_path, notices):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        template = tmp_path / "template.jinja"
        template.write_text(
            "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}sees {{ m.content }} likes"
            "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
        )
        reading = Reading(chat_template=str(template))
        scored = score_tasks(str(tiny_model), {"t": QUESTIONS[:1]}, SINGLE, reading=reading)["t"]
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        ids = tokenizer("sees the old cat sees likes bird")["input_ids"]
        assert scored.questions[0].scores["log"][1] == pytest.approx(float(plain_log_probs(model, ids)[-1]), abs=1e-5)
        assert notices.messages[0] == "questions are read as messages, by the chat template"

    def test_options_of_the_same_tokens_are_a_tie(self, tiny_model):
        unknown_words = Question("the old cat sees", ("zebra", "yak"), 0, "t", "t.jsonl, line 1")
        [row] = score_tasks(str(tiny_model), {"t": [unknown_words]}, SINGLE)["t"].questions
        assert row.is_tie("log")
        assert not row.is_right("log")

    def test_what_does_not_fit_is_an_error_or_counted(self, tiny_model, notices):
        long = Question("cat " * 200, ("dog", "bird"), 0, "t", "t.jsonl, line 9")
        with pytest.raises(DataError, match="203 tokens") as error:
            score_tasks(str(tiny_model), {"t": [*QUESTIONS, long]}, SINGLE)
        assert error.value.where == "task t, group t.jsonl, line 9"
        reading = Reading(truncation="drop")
        scored = score_tasks(str(tiny_model), {"t": [long, *QUESTIONS]}, SINGLE, reading=reading)["t"]
        assert [row.question for row in scored.questions] == QUESTIONS
        assert scored.left_out == {"too_long_dropped": 1}
        assert "t: too long dropped: 1 of 3 questions" in notices.messages
        with pytest.raises(ConfigError, match="context is 128"):
            score_tasks(str(tiny_model), {"t": QUESTIONS}, SINGLE, reading=Reading(max_length=129))

    def test_an_empty_option_is_an_error_that_names_its_row(self, tiny_model):
        empty = Question("the cat", ("dog", ""), 0, "t", "t.jsonl, line 4")
        with pytest.raises(DataError, match="candidate 1 is empty") as error:
            score_tasks(str(tiny_model), {"t": [empty]}, SINGLE)
        assert error.value.where == "task t, group t.jsonl, line 4"


def test_a_story_model_is_near_chance_at_science(shared_data):
    """260,032 parameters that read children's stories: 40 questions with four options."""
    from penchant.evaluation.choices_readers import read_questions

    read = read_questions("openbookqa", shared_data / "openbookqa" / "test.jsonl", limit=40)
    scored = score_tasks(str(shared_data / "models" / "stories260K"), {"openbookqa": read.questions}, SINGLE)
    report = evaluate_choices("openbookqa", scored["openbookqa"].questions, left_out=read.left_out)
    assert (report.questions, report.chance, report.left_out) == (40, 0.25, {"beyond the limit": 460})
    for estimate in report.accuracy.values():
        assert estimate.low - 0.05 <= 0.25 <= estimate.high + 0.05


def test_a_head_chooses_as_it_ranks(tmp_path, tiny_model):
    """The real head: options are scored as `rank` scores candidates, and log-probs are those without it."""
    import shutil

    from penchant.evaluation.ranking import rank
    from penchant.models.preference_head import PreferenceHead, save_head

    folder = shutil.copytree(tiny_model, tmp_path / "headed")
    torch.manual_seed(0)
    save_head(folder, PreferenceHead(32, "tanh"))
    scored = score_tasks(str(folder), {"t": QUESTIONS}, SINGLE, head=str(folder))["t"].questions
    plain = score_tasks(str(folder), {"t": QUESTIONS}, SINGLE)["t"].questions
    ranked = rank(str(folder), [plain_group(question) for question in QUESTIONS], SINGLE, by="head").groups
    for head_row, log_prob_row, group in zip(scored, plain, ranked, strict=True):
        assert head_row.scores["head"] == pytest.approx(group.scores, rel=1e-5)
        assert {name: head_row.scores[name] for name in ("log", "log_sum")} == log_prob_row.scores
