"""The bridge to lm-evaluation-harness, with stand-ins for its requests; and with the harness where it is installed."""

from __future__ import annotations

import abc
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penchant.engine.scoring import PackedScorer
from penchant.errors import ConfigError, DataError
from penchant.evaluation import choices_scoring
from penchant.evaluation.harness import head_lm, local_tasks, log_prob_lm
from penchant.evaluation.harness_requests import Generation, by_context, rolling_windows
from penchant.evaluation.held_out import Reading


@dataclass
class Request:
    """What the harness's `Instance` has."""

    args: tuple[Any, ...]
    task_name: str | None = "task"
    doc_id: int | None = 0


class FakeLM(abc.ABC):
    """The harness's class, as far as it asks anything of its subclasses."""

    def __init__(self) -> None:
        self.rank, self.world_size = 0, 1

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def loglikelihood_rolling(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package."""
    module = ModuleType("lm_eval.api.model")
    module.LM = FakeLM  # type: ignore[attr-defined]
    for name in ("lm_eval", "lm_eval.api"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", module)


@pytest.fixture
def without_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)


@pytest.fixture(scope="module")
def plain(tiny_model: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    return SimpleNamespace(model=model, tokenizer=AutoTokenizer.from_pretrained(tiny_model))


def expected(plain, context: str, continuation: str) -> tuple[float, bool]:
    """By a plain forward: the continuation's summed log-prob, and whether each of its tokens is the likeliest."""
    prompt_length = len(plain.tokenizer(context)["input_ids"])
    ids = torch.tensor(plain.tokenizer(context + continuation)["input_ids"])
    with torch.no_grad():
        table = plain.model(ids[None]).logits[0].log_softmax(-1)
    places, targets = torch.arange(prompt_length - 1, len(ids) - 1), ids[prompt_length:]
    return float(table[places, targets].sum()), bool((table[places].argmax(-1) == targets).all())


def greedy_text(plain, context: str, tokens: int) -> str:
    """The continuation that greedy decoding gives."""
    ids = plain.tokenizer(context)["input_ids"]
    start = len(ids)
    for _ in range(tokens):
        with torch.no_grad():
            ids.append(int(plain.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return " " + " ".join(plain.tokenizer.convert_ids_to_tokens(ids[start:]))


def test_without_the_package_the_error_names_the_extra(without_harness, tiny_model):
    for make in (log_prob_lm, head_lm):
        with pytest.raises(ConfigError, match="cannot be imported") as error:
            make(str(tiny_model))
        assert error.value.fix.endswith("pip install 'penchant[eval]'")


class TestLoglikelihood:
    def test_equals_a_plain_forward_in_the_order_asked(self, harness, plain, tiny_model):
        triples = [
            ("the old cat", " sees a dog", 0),
            ("it runs to", " river", 1),
            ("the old cat", " likes", 0),
            ("it runs to", " the small tree .", 1),
            ("", "cat runs", 2),
            ("the old cat", " finds a small house", 3),
        ]
        lm = log_prob_lm(str(tiny_model))
        assert isinstance(lm, FakeLM)
        answers = lm.loglikelihood([Request((context, text), doc_id=doc) for context, text, doc in triples])
        assert len(answers) == 6
        for (context, text, _), (value, greedy) in zip(triples, answers, strict=True):
            if context:
                assert value == pytest.approx(expected(plain, context, text)[0], abs=1e-5)
                assert greedy is expected(plain, context, text)[1]
        assert answers[4][0] == pytest.approx(expected(plain, "", "cat runs")[0], abs=1e-5)

    def test_greedy_is_every_token(self, harness, plain, tiny_model):
        context = next(text for text in ("the", "it", "big", "bird") if "<" not in greedy_text(plain, text, 3))
        text = greedy_text(plain, context, 3)
        word_1, word_2, word_3 = text.split()
        other = next(word for word in ("cat", "dog", "tree") if word not in (word_1, word_2, word_3))
        endings = [text, f" {word_1}", f" {word_1} {word_2} {other}", f" {other} {word_2} {word_3}"]
        requests = [Request((context, ending)) for ending in endings]
        answers = log_prob_lm(str(tiny_model)).loglikelihood(requests)
        assert [greedy for _, greedy in answers] == [True, True, False, False]
        assert [expected(plain, context, ending)[1] for ending in endings] == [True, True, False, False]

    def test_the_model_answers_as_before_after_scoring(self, harness, tiny_model):
        lm = log_prob_lm(str(tiny_model))
        request = [Request(("the old", {"max_gen_toks": 3}))]
        text = lm.generate_until(request)
        answers = lm.loglikelihood([Request(("the old", " cat"))])
        assert lm.generate_until(request) == text
        assert lm.loglikelihood([Request(("the old", " cat"))]) == answers
        assert lm.loglikelihood([]) == []

    def test_long_contexts(self, harness, tiny_model, plain, notices):
        request = [Request(("cat " * 200 + "sees the", " dog"), doc_id=7)]
        with pytest.raises(DataError, match="205 tokens") as error:
            log_prob_lm(str(tiny_model)).loglikelihood(request)
        assert "task, document 7" in error.value.where
        lm = log_prob_lm(str(tiny_model), reading=Reading(truncation="keep_end_of_prompt"))
        [(value, _)] = lm.loglikelihood(request)
        # <s>, then as much of the end as leaves room for the continuation and an end of turn.
        assert value == pytest.approx(expected(plain, "cat " * 123 + "sees the", " dog")[0], abs=1e-5)
        assert "prompt truncated: 1 of 1 contexts" in notices.messages

    def test_dropping_is_refused(self, harness, tiny_model):
        with pytest.raises(ConfigError, match="none can be dropped"):
            log_prob_lm(str(tiny_model), reading=Reading(truncation="drop"))


class TestRolling:
    def test_windows_by_hand(self):
        ids = np.arange(10, 20)
        windows = [(a.tolist(), b.tolist()) for a, b in rolling_windows(ids, 1, 5)]
        assert windows == [
            ([1], [10, 11, 12, 13]),
            ([13], [14, 15, 16, 17]),
            ([15, 16, 17], [18, 19]),
        ]
        assert rolling_windows(ids[:0], 1, 5) == []

    @given(st.integers(0, 60), st.integers(2, 20))
    def test_each_token_once_and_none_too_long(self, n, length):
        windows = rolling_windows(np.arange(n), -1, length)
        assert [i for _, predicted in windows for i in predicted.tolist()] == list(range(n))
        for context, predicted in windows:
            assert 1 <= len(context) <= length - len(predicted)
            if context[0] != -1:
                assert context.tolist() == list(range(predicted[0] - len(context), predicted[0]))
        assert all(len(context) + len(predicted) == length for context, predicted in windows[1:])

    def test_equals_a_plain_forward(self, harness, plain, tiny_model):
        texts = ["cat runs", "", "the old cat sees a big dog " * 40]
        totals = log_prob_lm(str(tiny_model)).loglikelihood_rolling([Request((text,)) for text in texts])
        assert totals[0] == pytest.approx(expected(plain, "", "cat runs")[0], abs=1e-5)
        assert totals[1] == 0.0
        total = 0.0
        ids = np.array(plain.tokenizer(texts[2], add_special_tokens=False)["input_ids"])
        for context, predicted in rolling_windows(ids, plain.tokenizer.bos_token_id, 128):
            window = torch.from_numpy(np.concatenate([context, predicted]))
            with torch.no_grad():
                table = plain.model(window[None]).logits[0].log_softmax(-1)
            places = torch.arange(len(context) - 1, len(window) - 1)
            total += float(table[places, window[len(context) :]].sum())
        assert totals[2] == pytest.approx(total, rel=1e-6)


class TestGenerate:
    def test_settings(self):
        greedy = Generation.from_settings({"until": "\n", "max_gen_toks": 5, "temperature": 0.7}, "task, document 0")
        assert (greedy.sampling.max_new_tokens, greedy.sampling.temperature, greedy.stops) == (5, 0.0, ("\n",))
        random_draws = Generation.from_settings(
            {"do_sample": True, "temperature": 0.7, "top_p": 0.9}, "task, document 0"
        )
        assert (
            random_draws.sampling.max_new_tokens,
            random_draws.sampling.temperature,
            random_draws.sampling.top_p,
        ) == (256, 0.7, 0.9)
        with pytest.raises(ConfigError, match="settings num_beams are not known"):
            Generation.from_settings({"num_beams": 4}, "task, document 0")

    def test_cut_at_the_first_of_the_stops(self):
        generation = Generation.from_settings({"until": ["c", "bb", ""]}, "task, document 0")
        assert [generation.truncate(text) for text in ("abbc", "acbb", "ab", "")] == ["a", "a", "ab", ""]

    def test_greedy_and_cut(self, harness, plain, tiny_model):
        lm = log_prob_lm(str(tiny_model))
        context = next(text for text in ("the", "it", "big", "bird") if "<" not in greedy_text(plain, text, 4))
        words = greedy_text(plain, context, 4).split()
        long, short, truncated = lm.generate_until(
            [
                Request((context, {"max_gen_toks": 4})),
                Request((context, {"max_gen_toks": 2})),
                Request((context, {"max_gen_toks": 4, "until": [words[0]]})),
            ]
        )
        assert (long.split(), short.split(), truncated.strip()) == (words, words[:2], "")

    def test_context_and_response_must_fit(self, harness, tiny_model, notices):
        request = [Request(("cat " * 126, {"max_gen_toks": 4}))]
        with pytest.raises(DataError, match="127 tokens of context and 4 to generate; 128 fit"):
            log_prob_lm(str(tiny_model)).generate_until(request)
        lm = log_prob_lm(str(tiny_model), reading=Reading(truncation="keep_end_of_prompt"))
        assert len(lm.generate_until(request)) == 1
        assert "the beginning is cut" in notices.messages[-1]


def test_requests_of_one_documents_context_are_a_group():
    rows = [("a", "t", 0), ("b", "t", 0), ("a", "t", 0), ("a", "t", 1), ("a", "u", 0), ("a", "t", 0)]
    requests = [Request((context, " x"), task, doc) for context, task, doc in rows]
    assert by_context(requests) == [[0, 2, 5], [1], [3], [4]]


def test_chat_template_is_the_tokenizers(harness, tiny_model, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    lm = log_prob_lm(str(tiny_model), reading=Reading(chat_template=str(template)))
    history = [{"role": "user", "content": "cat"}]
    assert lm.apply_chat_template(history) == "[user] cat >"
    assert lm.apply_chat_template([*history, {"role": "assistant", "content": "dog"}], False) == (
        "[user] cat [assistant] dog"
    )
    assert lm.chat_template() == template.read_text()
    assert lm.tokenizer_name == str(tiny_model)


class LengthHead(PackedScorer):
    """A stub: the reward of a candidate is its number of tokens."""

    def __init__(self, scorer: torch.nn.Module, head: torch.nn.Module) -> None:
        super().__init__()
        self.scorer = scorer

    def cost(self, group):
        return group.length

    def forward(self, batch):
        rewards = batch.to_group_matrix(batch.lengths.double())
        return torch.stack([-rewards, rewards])


@pytest.fixture
def stub_heads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for the preference heads; lists the folders they were loaded from."""
    folders: list[str] = []

    def load_head(folder: str, name: str = "preference_head") -> torch.nn.Module:
        folders.append(str(folder))
        return torch.nn.Identity()

    monkeypatch.setattr(choices_scoring, "load_head", load_head)
    monkeypatch.setattr(choices_scoring, "HeadedScorer", LengthHead)
    return folders


class TestHead:
    def test_rewards_with_the_end_of_turn(self, harness, stub_heads, tiny_model):
        triples = [("the", " cat", 0), ("a", " big dog", 1), ("the", " old cat .", 0), ("a", " dog", 1)]
        lm = head_lm(str(tiny_model))
        answers = lm.loglikelihood([Request((context, text), doc_id=doc) for context, text, doc in triples])
        assert answers == [(2.0, False), (3.0, False), (4.0, False), (2.0, False)]
        assert stub_heads == [str(tiny_model)]

    def test_other_tasks_are_refused(self, harness, stub_heads, tiny_model):
        lm = head_lm(str(tiny_model))
        requests = {
            "loglikelihood": [Request(("the", " cat"), doc_id=doc) for doc in (0, 0, 1)],
            "loglikelihood_rolling": [Request(("the cat",))],
            "generate_until": [Request(("the", {}))],
        }
        for name, method_requests in requests.items():
            with pytest.raises(ConfigError, match="multiple-choice tasks only") as error:
                getattr(lm, name)(method_requests)
            assert "log_prob_lm" in error.value.fix


def test_in_the_harness_itself(tiny_model, plain, tmp_path):
    """A task of two questions: its accuracy is that of a plain forward."""
    lm_eval = pytest.importorskip("lm_eval", reason="the optional package lm-eval is not installed")
    rows = [
        {"question": "the old cat sees", "options": ["a dog", "bird"], "answer": 0},
        {"question": "it runs to", "options": ["tree", "the river", "house ."], "answer": 2},
    ]
    data = tmp_path / "rows.json"
    data.write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "tiny",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    results = lm_eval.simple_evaluate(model=log_prob_lm(str(tiny_model)), tasks=[task], bootstrap_iters=10)
    right = []
    for row in rows:
        sums = [expected(plain, row["question"], f" {option}")[0] for option in row["options"]]
        right.append(sums.index(max(sums)) == row["answer"])
    assert results["results"]["tiny"]["acc,none"] == sum(right) / 2
    logged = [value for sample in results["samples"]["tiny"] for [(value, _)] in sample["resps"]]
    sums = [expected(plain, row["question"], f" {option}")[0] for row in rows for option in row["options"]]
    assert [float(value) for value in logged] == pytest.approx(sums, abs=1e-4)


class TestLocalTasks:
    ROWS = (
        {"goal": "the old cat sees", "sol1": "bird", "sol2": "a dog", "label": 1},
        {"goal": "it runs to", "sol1": "tree", "sol2": "the river .", "label": 0},
    )

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "piqa.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in self.ROWS))
        return path

    def test_the_configuration_reads_the_file_as_the_test_split(self, file):
        group = local_tasks({"piqa": file})
        [task] = group["task"]
        assert (task["task"], task["dataset_path"], task["test_split"]) == ("piqa", "json", "test")
        assert task["dataset_kwargs"] == {"data_files": {"test": str(file)}}
        assert [task[name] for name in ("dataset_name", "validation_split", "training_split")] == [None] * 3

    def test_other_files_are_refused(self, tmp_path):
        with pytest.raises(DataError, match="there is no such file"):
            local_tasks({"piqa": tmp_path / "piqa.jsonl"})
        (tmp_path / "piqa.csv").write_text("")
        with pytest.raises(DataError, match=r"\.parquet file"):
            local_tasks({"piqa": tmp_path / "piqa.csv"})

    def test_the_harness_scores_its_own_wording_of_the_file(self, file, tiny_model, plain, monkeypatch):
        lm_eval = pytest.importorskip("lm_eval")
        monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
        tasks = [local_tasks({"piqa": file})]
        results = lm_eval.simple_evaluate(
            log_prob_lm(str(tiny_model)), tasks=tasks, log_samples=True, bootstrap_iters=0
        )
        log_probs = [
            [expected(plain, f"Question: {row['goal']}\nAnswer:", f" {row[option]}")[0] for option in ("sol1", "sol2")]
            for row in self.ROWS
        ]
        samples = sorted(results["samples"]["piqa"], key=lambda sample: sample["doc_id"])
        scored = [[response[0][0] for response in sample["resps"]] for sample in samples]
        assert np.array(scored) == pytest.approx(np.array(log_probs), abs=1e-4)
        is_right = [float(np.argmax(row) == self.ROWS[i]["label"]) for i, row in enumerate(log_probs)]
        assert results["results"]["piqa"]["acc,none"] == np.mean(is_right)
