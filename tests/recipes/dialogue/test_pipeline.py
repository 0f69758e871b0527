"""The whole recipe with tiny models and invented questions."""

from __future__ import annotations

import csv
import json
import random
import shutil
import threading
import time

import numpy as np
import pytest
import uvicorn
import yaml

from penchant.cli.main import run
from penchant.config.section import validated
from penchant.config.shared_sections import JudgeConfig
from penchant.data.groups import as_text
from penchant.data.reading import read_groups
from penchant.data.review import Review
from penchant.errors import ConfigError, DataError
from penchant.evaluation.answering import Sampling
from penchant.evaluation.judges import RubricJudge
from penchant.evaluation.text_similarity import rouge_l
from penchant.recipes.dialogue.config import DialogueConfig
from penchant.recipes.dialogue.endpoints import ask_questions
from penchant.recipes.dialogue.human_centric import CRISIS_QUESTIONS, UNSAFE_QUESTIONS
from penchant.recipes.dialogue.pipeline import dialogue, stages
from penchant.recipes.dialogue.rating_sheet import read_sheet
from penchant.recipes.dialogue.rewriting import CLOSERS, OPENERS, ORDERS
from penchant.recipes.reading import compute_log_probs, generate_answers
from penchant.serving.access import Limits
from penchant.serving.app import build_app
from penchant.serving.experts import Experts

STEPS = {"batch_size": 8, "learning_rate": 1e-3, "max_steps": 2}
SIZES = {"vocabulary": 320, "hidden": 32, "layers": 1, "heads": 2, "context": 512}
WORDS = ["knee", "sleep", "pain", "heart", "food", "worry", "mother", "night", "doctor", "work"]


def configured(folder, **changes):
    draw = random.Random(0)

    def sentence(n):
        return " ".join(draw.choices(WORDS, k=n)) + "."

    counsel = [
        {"question": f"My {word}?", "answer": sentence(8), "votes": votes, "topic": word[0]}
        for word in WORDS
        for votes in (0, 1, 3)
    ]
    talks = [
        {"messages": [{"role": "patient", "content": f"It is {a}, {b}."}, {"role": "doctor", "content": sentence(6)}]}
        for a in WORDS
        for b in WORDS[:2]
    ]
    sets = {
        "counsel": counsel,
        "talks": talks,
        "general": [{"text": sentence(12)} for _ in range(20)],
        "empathic": [
            {"completion": f"{sentence(4)} {('sorry', 'dose')[n % 2]}", "label": not n % 2} for n in range(12)
        ],
    }
    for name, rows in sets.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "sources": {
            "counsel": {"file": str(folder / "counsel.jsonl"), "pairs": "ratings", "rating": "votes"},
            "talks": {"file": str(folder / "talks.jsonl"), "pairs": "styles"},
        },
        "models": {"tiny": {"new": SIZES}},
        "new_models": {"texts": str(folder / "general.jsonl"), "training": STEPS},
        "output": str(folder / "out"),
        "sft": {"training": STEPS},
        "methods": {"dpo": {"objective": {"name": "dpo"}, "training": STEPS}},
        "seeds": [3, 5],
        "measures": {"empathic": str(folder / "empathic.jsonl")},
        "questions": 3,
        "answer_tokens": 4,
        "sheet": 2,
        "review": {"most": 4},
        **changes,
    }
    return validated(DialogueConfig, values, "test")


@pytest.fixture(scope="module")
def recipe_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dialogue")
    return folder, dialogue(configured(folder))


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_stages_and_their_files(recipe_run):
    folder, result = recipe_run
    out = folder / "out"
    tuned = ["tiny-sft-3", "tiny-sft-5", "tiny-dpo-3", "tiny-dpo-5"]
    assert list(result) == ["data", "review", "audit", "tiny-base", *tuned, "answers", "evaluation"]
    assert list(result) == [stage.name for stage in stages(configured(folder))]
    assert all((out / name / "run" / "model.safetensors").exists() for name in ["tiny-base", *tuned])
    assert json.loads((out / "result.json").read_text()) == result
    page = (out / "report.html").read_text()
    expected = ("tiny: dpo over sft", "were written by rules", "Questions of crisis", "AUC", "words alone")
    assert all(text in page for text in expected)


def test_data_files(recipe_run):
    folder, result = recipe_run
    data = folder / "out" / "data"
    parts = {part: read_groups(data / f"preferences_{part}.jsonl").groups for part in ("train", "validation", "test")}
    assert sum(map(len, parts.values())) == 10 * 3 + 20
    # Questions of one topic, here with the same initial, are all in one part.
    letters = [
        {as_text(g.prompt)[len("Question: My ")] for g in groups if g.source == "counsel"} for groups in parts.values()
    ]
    assert sum(map(len, letters)) == len(set.union(*letters)) == len({word[0] for word in WORDS})
    for group in parts["train"]:
        better, worse = (as_text(candidate).strip() for candidate in group.candidates)
        if group.source == "talks":
            assert better.startswith(OPENERS)
            assert better.endswith(CLOSERS)
            assert worse.startswith(ORDERS)
        else:
            assert group.scores[0] > group.scores[1]
    supervised_groups = read_groups(data / "supervised_train.jsonl").groups
    assert {(g.prompt, g.candidates[0]) for g in supervised_groups} == {
        (g.prompt, g.candidates[0]) for g in parts["train"]
    }
    assert result["data"]["questions"] == {"counsel": 2, "talks": 3}
    assert len(read_groups(data / "queue.jsonl").groups) == 4


def test_metrics_follow_from_the_written_answers(recipe_run):
    """Means and one difference, computed again from the answers and models."""
    folder, result = recipe_run
    out = folder / "out"
    test_questions = rows(out / "data" / "questions.jsonl")
    answers = {seed: rows(out / "answers" / f"tiny-dpo-{seed}.jsonl") for seed in (3, 5)}
    sets = ["counsel"] * 2 + ["talks"] * 3 + ["crisis"] * len(CRISIS_QUESTIONS) + ["unsafe"] * len(UNSAFE_QUESTIONS)
    assert [row["set"] for row in answers[3]] == sets
    scores = [
        [rouge_l(row["answer"], q["reference"]) for row, q in zip(answers[seed], test_questions, strict=False)]
        for seed in (3, 5)
    ]
    measures = result["evaluation"]["models"]["tiny"]["dpo"]
    assert measures["all"]["rouge_l"]["value"] == pytest.approx(np.mean(scores))
    assert measures["counsel"]["rouge_l"]["value"] == pytest.approx(np.mean([row[:2] for row in scores]))
    assert set(measures["unsafe"]) == {"declines"}
    assert set(measures["crisis"]) == {"refers"}

    def accuracy(name):
        groups = read_groups(out / "data" / "preferences_test.jsonl").groups
        right = {}
        for scored in compute_log_probs(str(out / name / "run"), [g for g in groups if g.source == "talks"], 4096):
            means = [value / n for value, n in zip(scored.log_probs, scored.tokens, strict=True)]
            right[scored.group.prompt] = float(means[0] > means[1])
        prompts = [f"Question: {q['question']}\nAnswer:" for q in test_questions if q["set"] == "talks"]
        return np.mean([right[prompt] for prompt in prompts])

    dpo, sft = (np.mean([accuracy(f"tiny-{method}-{seed}") for seed in (3, 5)]) for method in ("dpo", "sft"))
    difference = result["evaluation"]["differences"]["talks"]["tiny"]["dpo"]["preference_accuracy"]
    assert difference["value"] == pytest.approx(dpo - sft)
    assert difference["n"] == 3


def test_rating_sheet_compares_a_method_with_sft(recipe_run):
    sheet = recipe_run[0] / "out" / "answers" / "sheets" / "tiny-dpo"
    with (sheet / "sheet.csv").open(newline="") as stream:
        filled = list(csv.DictReader(stream))
    assert len(filled) == 2
    with (sheet / "key.csv").open(newline="") as stream:
        assert {row["a"] for row in csv.DictReader(stream)} <= {"dpo", "sft"}
    with pytest.raises(DataError, match="no row has a verdict"):
        read_sheet(sheet)


def test_done_stages_are_skipped(assert_stages_done, recipe_run):
    folder, result = recipe_run
    assert_stages_done(dialogue, configured(folder), result)


def test_rejected_pairs_are_not_trained_on(recipe_run, tmp_path):
    shutil.copytree(recipe_run[0] / "out" / "data", tmp_path / "out" / "data")
    verdicts = tmp_path / "verdicts.jsonl"
    config = configured(tmp_path, review={"most": 4, "verdicts": str(verdicts)})
    with pytest.raises(DataError, match="there is no such file") as error:
        dialogue(config, only_stage="review")
    assert "penchant data review" in str(error.value)
    queue = Review(read_groups(tmp_path / "out" / "data" / "queue.jsonl").groups, verdicts)
    rejected, *remaining = queue.groups
    queue.give(rejected, "reject")
    with pytest.raises(DataError, match="3 pairs wait for a verdict"):
        dialogue(config, only_stage="review")
    for group in remaining:
        queue.give(group, "accept")
    assert dialogue(config, only_stage="review")["review"] == {"accept": 3, "reject": 1, "waiting": 0}
    written_groups = read_groups(tmp_path / "out" / "data" / "preferences_train.jsonl").groups
    reviewed_groups = read_groups(tmp_path / "out" / "review" / "preferences_train.jsonl").groups
    assert {group.id for group in written_groups} - {group.id for group in reviewed_groups} == {rejected.id}


def test_missing_verdict_file_differs_from_none(recipe_run):
    """For example a mistyped path after a run without a review."""
    with pytest.raises(ConfigError, match="review's verdicts was null; now it is"):
        dialogue(configured(recipe_run[0], review={"most": 4, "verdicts": "mistyped.jsonl"}))


@pytest.mark.slow
def test_judge_and_adapters(recipe_run, tmp_path, chat_endpoint, tiny_bert):
    """The judge prefers the answer in the first position, which is a tie over both orders.

    An endpoint is a row of the table, and a method learns from one source alone.
    """
    url = chat_endpoint(lambda question: "[[A]]")
    seen_questions = []

    def answer_question(question):
        seen_questions.append(question)
        return "[[4]]" if question.startswith("Rate") else f"I hear you. {question} Call a doctor at 3."

    answering = chat_endpoint(answer_question)
    base = str(recipe_run[0] / "out" / "tiny-base" / "run")
    lora = {"training": STEPS, "lora": {"rank": 2}}
    measures = {
        "judge": {"url": url, "model": "m", "retries": 0},
        "rating": {"url": answering, "model": "m", "retries": 0},
        "bert_score": {"model": base},
        "sentences": tiny_bert,
        "entailment": tiny_bert,
    }
    config = configured(
        tmp_path,
        models={"own": {"model": base}, "bought": {"endpoint": {"url": answering, "model": "m"}}},
        sft=lora,
        methods={"ipo": {"objective": {"name": "ipo"}, "sources": ["talks"], **lora}},
        measures=measures,
    )
    result = dialogue(config)["evaluation"]
    judged = result["judged"]["own ipo"]
    assert (judged["rate"]["value"], judged["ties"]) == (0.5, 5)
    assert {"bert_score", "similarity", "entailed"} < set(result["models"]["own"]["ipo"]["all"])
    assert result["models"]["own"]["base"]["all"]["bert_score"]["low"] is not None
    page = (tmp_path / "out" / "report.html").read_text()
    assert "By the judge, against SFT" in page
    assert "Methods over endpoints" in page
    test_questions = rows(tmp_path / "out" / "data" / "questions.jsonl")
    answers = rows(tmp_path / "out" / "answers" / "bought-endpoint.jsonl")
    assert [row["answer"] for row in answers[:5]] == [
        f"I hear you. {q['question']} Call a doctor at 3." for q in test_questions
    ]
    bought = result["models"]["bought"]["endpoint"]
    assert bought["all"]["rouge_l"]["value"] == pytest.approx(
        np.mean([rouge_l(row["answer"], q["reference"]) for row, q in zip(answers, test_questions, strict=False)])
    )
    assert (bought["all"]["rating"]["value"], bought["all"]["supported"]["value"]) == (4, 0)
    assert bought["crisis"]["refers"]["value"] == bought["unsafe"]["declines"]["value"] == 1
    assert "preference_accuracy" not in bought["all"]
    over = result["over_endpoints"]["all"]["bought"]["own ipo"]["rouge_l"]
    tuned = result["models"]["own"]["ipo"]["all"]["rouge_l"]["value"]
    assert over["value"] == pytest.approx(tuned - bought["all"]["rouge_l"]["value"])
    assert "bought" not in result["differences"]["all"]
    tuning_groups = read_groups(tmp_path / "out" / "own-ipo-3" / "preferences_train.jsonl").groups
    assert {group.source for group in tuning_groups} == {"talks"}
    config_of_run = yaml.safe_load((tmp_path / "out" / "own-ipo-3" / "run" / "config.yaml").read_text())
    assert config_of_run["data"]["train"].endswith("own-ipo-3/preferences_train.jsonl")
    # An evaluation that is run again pays for no answer and no rating twice.
    shutil.rmtree(tmp_path / "out" / "answers")
    shutil.rmtree(tmp_path / "out" / "evaluation")
    n_questions = len(seen_questions)
    assert dialogue(config)["evaluation"] == result
    assert len(seen_questions) == n_questions


def test_a_served_model_is_a_row_like_the_local_one(recipe_run, serve_locally):
    """Its answers by `penchant serve` are those of the same model from its folder."""
    folder = recipe_run[0] / "out" / "tiny-sft-3" / "run"
    url = serve_locally({"tiny": str(folder)})
    questions = ["My knee?", "It is worry, night."]
    expected = generate_answers(str(folder), questions, Sampling(temperature=0.0, max_new_tokens=6))
    answers = ask_questions(JudgeConfig(url=url, model="tiny"), questions, 6)
    assert answers == [row[0].strip() for row in expected]
    # A judge this small gives no rating; that is counted, and no error.
    judge = JudgeConfig(url=url, model="tiny", retries=0, request={"max_tokens": 4})
    assert RubricJudge(judge)(["p"], ["a"], ["b"]) == [None]


@pytest.fixture
def serve_locally():
    """Serves models, by name and folder, in this process, and gives the address."""
    servers = []

    def serve(folders):
        app = build_app(Experts(folders), None, Limits())
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        servers.append((server, thread))
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"

    yield serve
    for server, thread in servers:
        server.should_exit = True
        thread.join()


def test_an_endpoint_that_gives_no_answer(recipe_run, chat_endpoint):
    url = chat_endpoint(lambda question: "Rest." if "knee" in question else " ")
    with pytest.raises(ConfigError, match=r"m gave no answer to 'My heart\?'") as error:
        ask_questions(JudgeConfig(url=url, model="m", retries=1), ["My knee?", "My heart?"], 6)
    assert "run again" in str(error.value)


@pytest.fixture
def tiny_bert(tmp_path, recipe_run):
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(recipe_run[0] / "out" / "tiny-base" / "run")
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=256,
        id2label={0: "neutral", 1: "entailment"},
    )
    tokenizer.model_max_length = 256
    tokenizer.save_pretrained(tmp_path / "bert")
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    return str(tmp_path / "bert")


def test_questions_in_a_chat_template(recipe_run, tmp_path):
    """Without a template a question is a user message, and an answer an assistant message."""
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m.role }} {{ m.content }}{{ eos_token }}{% endfor %}")
    dialogue(configured(tmp_path, template=None, data={"chat_template": str(template)}), only_stage="data")
    [group, *_] = read_groups(tmp_path / "out" / "data" / "preferences_train.jsonl").groups
    assert [message["role"] for message in (*group.prompt, *group.candidates[0])] == ["user", "assistant"]


@pytest.mark.slow
def test_result_after_kills_in_every_stage_is_the_same(recipe_run, tmp_path, run_with_kills):
    config, out, undisturbed = tmp_path / "config.yaml", tmp_path / "out", recipe_run[0] / "out"
    config.write_text(yaml.safe_dump(configured(tmp_path).model_dump(mode="json")))
    arguments = ["recipe", "dialogue", str(config)]
    # The second seed's stages differ only in the number, and are left out.
    names = [stage.name for stage in stages(configured(tmp_path)) if not stage.name.endswith("-5")]
    run_with_kills(arguments, out, names)
    assert (out / "result.json").read_text() == (undisturbed / "result.json").read_text()
    ours, theirs = (folder / "tiny-dpo-5" / "run" / "model.safetensors" for folder in (out, undisturbed))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [1]}, "expected two seeds or more"),
        ({"models": {"a": {}}}, "expected one of model, new and endpoint"),
        (
            {"models": {"a": {"endpoint": {"url": "http://x/v1", "model": "m"}}}},
            "expected at least one that is trained",
        ),
        ({"models": {"endpoint": {"model": "here"}}}, "'endpoint' cannot be a name"),
        (
            {"methods": {"dpo": {"objective": {"name": "dpo"}, "sources": ["visits"]}}},
            "methods.dpo.sources: 'visits' is not a source; expected some of counsel, talks",
        ),
        ({"models": {"base": {"model": "here"}}}, "'base' cannot be a name"),
        ({"models": {}}, "expected at least one"),
        ({"new_models": {}}, "a new model needs general text"),
        ({"template": "no place"}, "expected a template with {question} in it"),
        ({"rewriting": {"supportive": "nothing"}}, "expected a template with {answer} in it"),
    ],
)
def test_invalid_configuration(tmp_path, changes, message):
    with pytest.raises(ConfigError) as error:
        configured(tmp_path, **changes)
    assert message in str(error.value)


def test_question_in_two_sources_is_an_error(tmp_path):
    config = configured(tmp_path)
    talk = {"messages": [{"role": "user", "content": "My knee?"}, {"role": "assistant", "content": "Rest it."}]}
    with (tmp_path / "talks.jsonl").open("a") as stream:
        stream.write(json.dumps(talk) + "\n")
    with pytest.raises(DataError, match="a question is in counsel too: 'My knee"):
        dialogue(config)


def test_filters_that_drop_everything(tmp_path):
    with pytest.raises(DataError, match=r"counsel\.jsonl: no pair is left: 30 ratings too close"):
        dialogue(configured(tmp_path, filters={"least_margin": 9}))


def test_command_line(recipe_run, capsys):
    folder, _ = recipe_run
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(configured(folder).model_dump(mode="json")))
    assert run(["recipe", "dialogue", str(config)]) == 0
    assert "tiny dpo" in capsys.readouterr().out
    assert run(["recipe", "dialogue", str(config), "filters.most_words=3"]) == 2
    assert "data's filters was" in capsys.readouterr().err


def test_fixes_of_stage_errors_name_recipe_keys(recipe_run, advised_sections):
    expected = {
        "tiny-base": {"training"},
        "tiny-sft-5": {"training", "lora"},
        "tiny-dpo-3": {"training", "lora", "objective"},
    }
    assert advised_sections(configured(recipe_run[0]), stages, expected) == expected
