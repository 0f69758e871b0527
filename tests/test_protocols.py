"""The scripts of examples/protocols, on what they make themselves and on files in the published layout."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from penchant.data.reading import read_groups

PROTOCOLS = Path(__file__).resolve().parent.parent / "examples" / "protocols"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, PROTOCOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


class TestSentiment:
    def test_the_reward_is_the_share_of_good_words_less_that_of_poor_ones(self):
        reward = load("sentiment").reward
        assert reward("A good start,", ["and great.", "but DULL.", "dull, dull", ""]) == [
            1.0,
            0.0,
            pytest.approx(-1 / 3),
            1.0,
        ]
        assert reward("The film", ["ends."]) == [0.0]

    def test_written_reviews_are_neutral_on_average_and_differ_in_reward(self, tmp_path):
        sentiment = load("sentiment")
        sentiment.main(["reviews", str(tmp_path), "--count", "500"])
        texts = [row["text"] for row in rows_of(tmp_path / "reviews.jsonl")]
        rewards = [sentiment.reward("", [text])[0] for text in texts]
        assert abs(np.mean(rewards)) < 4 * np.std(rewards) / len(rewards) ** 0.5
        assert np.std(rewards) > 0.4
        prompts, kept_apart = (rows_of(tmp_path / f"{name}.jsonl") for name in ("prompts", "test_prompts"))
        assert all(2 <= len(row["prompt"].split()) <= 8 for row in (*prompts, *kept_apart))
        assert not set(texts) & {row["text"] for row in rows_of(tmp_path / "test_reviews.jsonl")}
        assert all(any(text.startswith(row["prompt"]) for text in texts) for row in prompts)

    @pytest.mark.parametrize(("column", "ending"), [("text", "jsonl"), ("review", "csv")])
    def test_a_public_file(self, column, ending, tmp_path, capsys):
        file = tmp_path / f"imdb.{ending}"
        reviews = [f"It was {n} hours<br /><br />of joy." for n in range(20)]
        if ending == "csv":
            file.write_text(f"{column},sentiment\n" + "".join(f'"{review}",positive\n' for review in reviews))
        else:
            file.write_text("".join(json.dumps({column: review, "label": 1}) + "\n" for review in reviews))
        load("sentiment").main(["reviews", str(tmp_path / "out"), "--file", str(file)])
        texts = {row["text"] for row in rows_of(tmp_path / "out" / "reviews.jsonl")}
        assert len(texts) == 18
        assert texts < {f"It was {n} hours of joy." for n in range(20)}
        assert "18 reviews to imitate, 2 kept apart" in capsys.readouterr().out

    def test_another_file_is_refused_without_a_traceback(self, tmp_path):
        file = tmp_path / "other.jsonl"
        file.write_text('{"title": "a"}\n')
        for source, message in ((file, "line 1: no column text or review; it has title"), (tmp_path / "no", "no")):
            with pytest.raises(SystemExit, match=message):
                load("sentiment").main(["reviews", str(tmp_path / "out"), "--file", str(source)])

    def test_pairs_are_the_models_own_completions_in_the_order_of_the_reward(self, tmp_path, monkeypatch):
        sentiment = load("sentiment")
        sentiment.main(["reviews", str(tmp_path), "--count", "40"])
        completions = (" is good.", " is dull.", " is dull.", " is here.")

        def answer(model, prompts, sampling):
            assert (model, sampling.samples, sampling.max_new_tokens) == ("MODEL", 4, 7)
            return type("Answers", (), {"responses": [completions] * len(prompts)})

        monkeypatch.setattr(sentiment, "answer", answer)
        sentiment.main(["pairs", str(tmp_path), "MODEL", "--count", "5", "--max-new-tokens", "7"])
        groups = read_groups(tmp_path / "pairs.jsonl").groups
        assert len(groups) == 5
        for group in groups:
            assert group.candidates == (" is good.", " is dull.", " is here.")
            assert list(group.scores) == sentiment.reward(group.prompt, group.candidates)
        monkeypatch.setattr(sentiment, "answer", lambda *_: type("Answers", (), {"responses": [(" a", " b")] * 2}))
        (tmp_path / "prompts.jsonl").write_text('{"prompt": "x"}\n{"prompt": "y"}\n')
        with pytest.raises(SystemExit, match="no two completions of a prompt differ in reward"):
            sentiment.main(["pairs", str(tmp_path), "MODEL"])

    def test_answers_of_generate_are_measured(self, tmp_path, capsys):
        file = tmp_path / "best.json"
        answers = [{"prompt": "It is", "responses": [text]} for text in (" good.", " dull.", " great.", " there.")]
        file.write_text(json.dumps({"answers": answers}))
        load("sentiment").main(["measure", str(file)])
        assert capsys.readouterr().out.startswith("reward 0.2500 [")
        file.write_text("{}")
        with pytest.raises(SystemExit, match="no answers of penchant generate --json"):
            load("sentiment").main(["measure", str(file)])


class TestTldr:
    def test_what_it_writes_itself_goes_the_published_way(self, tmp_path):
        load("tldr").main([str(tmp_path)])
        parts = {name: read_groups(tmp_path / f"{name}.jsonl").groups for name in ("train", "held_out", "sft")}
        assert {name: len(groups) for name, groups in parts.items()} == {"train": 24, "held_out": 6, "sft": 24}
        assert not {group.prompt for group in parts["train"]} & {group.prompt for group in parts["held_out"]}
        for group in parts["train"]:
            assert group.prompt.startswith("SUBREDDIT: r/advice\n\nTITLE: I ")
            assert group.prompt.endswith("\n\nTL;DR:")
            assert [group.candidates[better][:3] for better, _ in group.pairs] == [" I "]

    def test_published_files(self, tmp_path, capsys):
        """The choice is the index of the better summary; other splits, news and equal summaries are counted."""
        summaries = [
            {"text": " first", "policy": "sup4", "note": None},
            {"text": " second", "policy": "ref", "note": ""},
        ]
        post = {"id": "t3_1", "post": "POST", "title": "TITLE", "subreddit": "tifu"}
        train = {"info": post, "summaries": summaries, "choice": 1, "split": "train", "extra": {"confidence": 8}}
        other = {**post, "post": "OTHER"}
        rows = [
            train,
            {**train, "info": other, "choice": 0, "split": "valid2"},
            {**train, "info": other},
            {**train, "split": "valid1"},
            {**train, "info": {"id": "n", "article": "ARTICLE", "title": "T", "site": "cnn"}},
            {**train, "summaries": [summaries[0], summaries[0]]},
        ]
        folder = tmp_path / "comparisons"
        folder.mkdir()
        (folder / "batch3.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
        load("tldr").main([str(tmp_path / "out"), "--comparisons", str(folder)])
        prompt = "SUBREDDIT: r/tifu\n\nTITLE: TITLE\n\nPOST: POST\n\nTL;DR:"
        pair = {"id": "t3_1/0", "prompt": prompt, "chosen": " second", "rejected": " first"}
        assert rows_of(tmp_path / "out" / "train.jsonl") == [pair]
        [held_out] = rows_of(tmp_path / "out" / "held_out.jsonl")
        assert (held_out["chosen"], held_out["rejected"]) == (" first", " second")
        assert rows_of(tmp_path / "out" / "sft.jsonl") == [{"prompt": prompt, "completion": " second"}]
        printed = capsys.readouterr().out
        for line in ("1 x split valid1", "1 x news articles", "1 x equal summaries", "1 x train: posts of held_out"):
            assert f"left out: {line}" in printed

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"info": {}}', r"b\.json, line 1: no comparison"),
            ("not JSON", r"b\.json, line 1: no JSON object"),
            (None, "no .json files"),
        ],
    )
    def test_other_files_are_refused_without_a_traceback(self, text, message, tmp_path):
        if text is not None:
            (tmp_path / "b.json").write_text(text)
        with pytest.raises(SystemExit, match=message):
            load("tldr").main([str(tmp_path / "out"), "--comparisons", str(tmp_path)])
