"""Candidates drawn while training: exact tokens, kept on disk, and the same run after any interruption."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from penchant.config.run import load_config
from penchant.errors import CheckpointError, ConfigError, DataError, PenchantError
from penchant.models.loading import load_tokenizer
from penchant.training.inputs import tokenize_inputs
from penchant.training.run import train

REWARD = """
def score(prompt, responses):
    return [text.split().count("cat") - 0.1 * len(text.split()) for text in responses]

def broken(prompt, responses):
    raise RuntimeError("no paper")

def short(prompt, responses):
    return [1.0]
"""


@pytest.fixture
def online(write_config, tmp_path):
    """Writes a run that draws its candidates."""
    (tmp_path / "rewards.py").write_text(REWARD)

    def write(objective: dict, function: str = "score", **sections: object) -> Path:
        return write_config(
            **{
                "objective": objective,
                "candidates": "sampled",
                "sampling": {"samples": 3, "every": 2, "max_new_tokens": 8},
                "reward": {"function": f"{tmp_path / 'rewards.py'}:{function}"},
                "checkpoints": {"every": 1, "keep": 20},
                **sections,
            }
        )

    return write


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run(file: Path, *overrides: str, resume: bool = False) -> Path:
    return train(load_config(file, overrides), resume=resume)


@pytest.mark.slow
def test_rloo_raises_the_reward(online):
    file = online(
        {"name": "rloo", "beta": 0.0},
        training={"max_steps": 60, "batch_size": 12, "learning_rate": 1e-2, "schedule": "constant"},
        sampling={"samples": 6, "max_new_tokens": 8},
        data={"held_out": None},
        checkpoints={"every": 100},
    )
    rewards = [line["sampled/reward"] for line in lines(run(file)) if "loss" in line]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.3


@pytest.mark.parametrize("objective", [{"name": "rloo"}, {"name": "dpo"}, {"name": "ddo_rm"}], ids=lambda o: o["name"])
def test_a_resumed_run_uses_the_draws_it_began_with(online, tmp_path, objective):
    """Stopped in the middle of a window of two steps, whose weights have moved since it was drawn."""
    file = online(objective)
    whole = run(file, f"output={tmp_path / 'whole'}")
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    for checkpoint in sorted((part / "checkpoints").iterdir())[3:]:
        shutil.rmtree(checkpoint)
    (part / "samples" / "step-00000004.json").unlink()
    (part / "model.safetensors").unlink()
    run(file, f"output={part}", resume=True)
    assert (whole / "metrics.jsonl").read_bytes() == (part / "metrics.jsonl").read_bytes()
    whole_weights, part_weights = load_file(whole / "model.safetensors"), load_file(part / "model.safetensors")
    assert all(torch.equal(whole_weights[name], part_weights[name]) for name in whole_weights)
    name = "samples/step-00000004.json"
    assert (whole / name).read_bytes() == (part / name).read_bytes()


def test_draws_are_on_disk_with_their_scores(online):
    folder = run(online({"name": "rloo"}))
    files = sorted(file.name for file in (folder / "samples").iterdir())
    assert files == ["step-00000000.json", "step-00000002.json", "step-00000004.json"]
    document = json.loads((folder / "samples" / files[0]).read_text())
    assert list(document) == ["0", "1"]
    for row in document["0"]:
        assert len(row["ids"]) == len(row["texts"]) == len(row["scores"]) == 3
        for text, score in zip(row["texts"], row["scores"], strict=True):
            assert score == pytest.approx(text.split().count("cat") - 0.1 * len(text.split()))


def test_metrics_are_of_the_draws(online):
    folder = run(online({"name": "rloo"}))
    rows = json.loads((folder / "samples" / "step-00000000.json").read_text())["0"]
    line = next(line for line in lines(folder) if line["step"] == 1)
    scores = [row["scores"] for row in rows]
    tokens = [ids for row in rows for ids in row["ids"]]
    assert line["sampled/reward"] == pytest.approx(sum(map(sum, scores)) / (3 * len(rows)))
    assert line["sampled/reward_best"] == pytest.approx(sum(map(max, scores)) / len(rows))
    assert line["sampled/length"] == pytest.approx(sum(map(len, tokens)) / len(tokens))
    assert line["sampled/cut"] == pytest.approx(sum(ids[-1] != 2 for ids in tokens) / len(tokens))
    assert line["sampled/tied"] == pytest.approx(sum(len(set(row_scores)) == 1 for row_scores in scores) / len(rows))
    assert line["reward"] == pytest.approx(line["sampled/reward"], rel=1e-5)
    assert line["kl"] == pytest.approx(0.0, abs=1e-4)  # the policy is still the reference


@pytest.mark.parametrize("temperature", [0.5, 1.7])
def test_log_probs_are_of_the_distribution_that_was_drawn_from(online, tmp_path, tiny_model, temperature):
    """Logits over T, of policy and reference: RLOO's loss and KL at the first step, from the draws on disk."""
    torch.manual_seed(3)
    models = [AutoModelForCausalLM.from_pretrained(tiny_model) for _ in range(2)]
    for parameter in models[1].parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    models[1].save_pretrained(tmp_path / "reference")
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.save_pretrained(tmp_path / "reference")
    sampling = {"samples": 3, "every": 2, "max_new_tokens": 8, "temperature": temperature}
    file = online({"name": "rloo", "beta": 0.3}, sampling=sampling, reference=str(tmp_path / "reference"))
    folder = run(file, "training.max_steps=1")
    prompts = tokenize_inputs(load_config(file), tokenizer, 128).train
    losses, ratios = [], []
    for row in json.loads((folder / "samples" / "step-00000000.json").read_text())["0"]:
        prompt = prompts[row["prompt"]].prompt.tolist()
        sums = []
        for model in models:
            sums.append([])
            for ids in row["ids"]:
                with torch.no_grad():
                    logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double()
                log_probs = (logits / temperature).log_softmax(-1)
                sums[-1].append(float(log_probs.gather(-1, torch.tensor(ids)[:, None]).sum()))
        deltas = [policy - reference for policy, reference in zip(*sums, strict=True)]
        returns = [score - 0.3 * delta for score, delta in zip(row["scores"], deltas, strict=True)]
        advantages = [value - (sum(returns) - value) / 2 for value in returns]
        losses.append(-sum(a * log_prob for a, log_prob in zip(advantages, sums[0], strict=True)) / 3)
        ratios += deltas
    line = next(line for line in lines(folder) if line["step"] == 1 and "loss" in line)
    assert line["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4, abs=1e-4)
    assert line["kl"] == pytest.approx(sum(ratios) / len(ratios), rel=1e-4, abs=1e-4)


def test_held_out_pairs_are_measured_at_temperature_1(online, tmp_path):
    """They were not drawn: the numbers before the first step are the same whatever candidates are drawn at."""
    lines_of = []
    for temperature in (1.0, 0.5):
        sampling = {"samples": 3, "max_new_tokens": 8, "temperature": temperature}
        file = online({"name": "dpo"}, sampling=sampling)
        lines_of.append(lines(run(file, f"output={tmp_path / str(temperature)}", "training.max_steps=1"))[0])
    assert lines_of[0] == lines_of[1]
    assert lines_of[0]["eval_logps/chosen"] < 0


def test_a_draw_from_the_likeliest_tokens_is_refused_where_its_probability_counts(online):
    sampling = {"samples": 3, "max_new_tokens": 8, "top_p": 0.9}
    with pytest.raises(ConfigError, match=r"sampling.top_p is 0.9, and rloo learns by the probability"):
        run(online({"name": "rloo"}, sampling=sampling))
    assert lines(run(online({"name": "dpo"}, sampling=sampling), "training.max_steps=1"))


def test_with_adapters_the_model_without_them_is_the_reference(online, monkeypatch):
    """No second model is loaded, and the KL is to where training started."""
    from penchant.training import references

    monkeypatch.setattr(references.FrozenModel, "load", lambda *a: pytest.fail("a second model was loaded"))
    file = online(
        {"name": "rloo"},
        lora={"rank": 4},
        training={"max_steps": 6, "batch_size": 8, "learning_rate": 1e-2},
        data={"held_out": None},
    )
    kl = [line["kl"] for line in lines(run(file)) if "loss" in line]
    assert kl[0] == pytest.approx(0.0, abs=1e-4)
    assert abs(kl[-1]) > 1e-3


@pytest.fixture(scope="session")
def other_model(tiny_model, tmp_path_factory) -> Path:
    """The tiny model with other weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("other") / "model"
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("held_out", [None, 0.25])
@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_a_named_reference_is_the_one_that_is_asked(online, tmp_path, other_model, held_out, lora):
    """By either key, with adapters or without, with held-out groups or none: not the model training starts from."""
    file = online({"name": "rloo"}, data={"held_out": held_out}, lora=lora)
    short = "training.max_steps=1"
    reference_run = run(file, short, f"reference={other_model}", f"output={tmp_path / 'one'}")
    references_run = run(file, short, f"references=[{other_model}]", f"output={tmp_path / 'several'}")
    one, two = (
        next(line for line in lines(folder) if "loss" in line)["kl"] for folder in (reference_run, references_run)
    )
    assert one == two
    assert abs(one) > 0.1


def test_a_weighted_sum_of_sampled_candidates(online):
    """It sets no state from references it has not got yet."""
    parts = [{"name": "dpo", "weight": 1.0}, {"name": "sft", "weight": 0.2}]
    folder = run(online({"name": "weighted_sum", "parts": parts}, data={"held_out": None}))
    assert lines(folder)[-1]["step"] == 6


@pytest.mark.parametrize(
    ("function", "message"),
    [("broken", "raised RuntimeError: no paper"), ("short", "returned 1 numbers for 3 responses")],
)
def test_a_reward_at_fault_is_one_clear_error(online, function, message):
    with pytest.raises(PenchantError) as error:
        run(online({"name": "rloo"}, function, data={"held_out": None}))
    assert message in str(error.value)
    assert f"rewards.py:{function}, prompt 0" in str(error.value)


def test_prompts_alone_are_enough(online, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("the old cat", "it runs", "dog sees")))
    folder = run(online({"name": "rloo"}, data={"train": str(file), "held_out": None}))
    assert lines(folder)[-1]["step"] == 6


@pytest.fixture(scope="session")
def other_words(tiny_model, tmp_path_factory) -> Path:
    """The tiny model with a tokenizer that has the ids of two words the other way round."""
    folder = tmp_path_factory.mktemp("other_words") / "model"
    shutil.copytree(tiny_model, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["cat"], words["dog"] = words["dog"], words["cat"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="session")
def short_context(tiny_model, tmp_path_factory) -> Path:
    """The tiny model with a context of 16 tokens."""
    folder = tmp_path_factory.mktemp("short") / "model"
    shutil.copytree(tiny_model, folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "max_position_embeddings": 16}))
    return folder


def test_a_reference_with_another_tokenizer_is_refused(online, other_words, tmp_path):
    """It would be given the policy's ids, which are other words to it."""
    file = online({"name": "rloo"}, data={"held_out": None}, reference=str(other_words))
    with pytest.raises(ConfigError, match=r"2 of the model's 25 tokens .* the first is 'cat'") as error:
        run(file)
    assert error.value.where == str(other_words)
    assert not (tmp_path / "run").exists()


def test_a_reference_that_is_not_asked_may_have_any_tokenizer(online, other_words):
    file = online({"name": "simpo"}, data={"held_out": None}, reference=str(other_words))
    assert lines(run(file, "training.max_steps=1"))[-1]["step"] == 1


def test_a_reference_with_too_short_a_context_is_refused(online, short_context):
    file = online({"name": "rloo"}, data={"held_out": None}, reference=str(short_context))
    with pytest.raises(ConfigError, match=r"the reference's context is 16 tokens; .* have 21"):
        run(file)


class TestLongPrompts:
    """Prompts of 3, 4 and 7 tokens with the start token, and up to 8 tokens of answer."""

    @pytest.fixture
    def file(self, online, tmp_path) -> Path:
        rows = [{"id": f"p{n}", "prompt": p} for n, p in enumerate(["a dog", "it runs by", "the old cat sees a dog"])]
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return online({"name": "rloo"}, data={"train": str(prompts), "held_out": None})

    @staticmethod
    def prompt_numbers(folder: Path) -> set[int]:
        """Numbers of the prompts."""
        rows = json.loads((folder / "samples" / "step-00000000.json").read_text()).values()
        return {row["prompt"] for step_rows in rows for row in step_rows}

    @pytest.mark.parametrize(
        ("limit", "message"),
        [
            ("data.max_length=14", "the longest prompt has 7 tokens, its answer up to sampling.max_new_tokens=8, and"),
            ("data.max_length=14", "data.max_length is 14 (1 of 3 prompts are too long: p2)"),
            ("data.max_length=11", "(2 of 3 prompts are too long: p1, p2)"),
            ("sampling.max_new_tokens=122", "sampling.max_new_tokens=122, and the model's context is 128 tokens"),
            ("sampling.max_new_tokens=127", "sampling.max_new_tokens is 127 and the model's context is 128 tokens"),
        ],
    )
    def test_are_refused_by_default(self, file, tmp_path, limit, message):
        with pytest.raises(ConfigError) as error:
            run(file, limit)
        assert message in str(error.value)
        assert not (tmp_path / "run").exists()

    def test_just_fit(self, file):
        folder = run(file, "data.max_length=15", "training.max_steps=2")
        notes = json.loads((folder / "run.json").read_text())["notes"]
        assert not [note for note in notes if "too long" in note]

    def test_are_left_out_and_counted(self, file):
        folder = run(file, "data.max_length=14", "data.truncation=drop", "training.max_steps=2")
        notes = json.loads((folder / "run.json").read_text())["notes"]
        assert [note for note in notes if "too long" in note] == ["training: too long dropped: 1 of 3 groups (p2)"]
        assert self.prompt_numbers(folder) == {0, 1}

    def test_all_left_out(self, file):
        with pytest.raises(DataError, match=r"no prompt is left to answer \(too long dropped: 3\)"):
            run(file, "data.max_length=10", "data.truncation=drop", "sampling.max_new_tokens=8")

    def test_are_cut_at_the_beginning_and_counted(self, file, tiny_model):
        from penchant.models.loading import load_tokenizer
        from penchant.training.inputs import tokenize_inputs

        config = load_config(file, ["data.max_length=12", "data.truncation=keep_end_of_prompt"])
        tokenizer = load_tokenizer(str(tiny_model))
        inputs = tokenize_inputs(config, tokenizer, 128)
        assert inputs.notes[1:] == ["training: prompt truncated: 1 of 3 groups (p2)"]
        read = [tokenizer.decode(group.prompt) for group in inputs.train]
        assert read == ["<s> a dog", "<s> it runs by", "<s> sees a dog"]
        assert lines(run(file, "data.max_length=12", "data.truncation=keep_end_of_prompt"))[-1]["step"] == 6


def test_each_prompt_is_asked_once_and_empty_ones_are_counted(online, tmp_path, tiny_model):
    """Whatever the data's responses are like: equal, empty, or too long."""
    from penchant.models.loading import load_tokenizer
    from penchant.training.inputs import tokenize_inputs

    rows = [
        {"id": "a", "prompt": "the cat", "chosen": " runs", "rejected": " runs"},
        {"id": "b", "prompt": "", "chosen": " runs", "rejected": " sees"},
        {"id": "c", "prompt": "the cat", "chosen": " runs" * 200, "rejected": ""},
        {"id": "d", "prompt": "a dog", "chosen": "", "rejected": " sees"},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config(online({"name": "rloo"}, data={"train": str(file), "held_out": None}))
    tokenizer = load_tokenizer(str(tiny_model))
    inputs = tokenize_inputs(config, tokenizer, 128)
    assert [group.group.id for group in inputs.train] == ["a", "d"]
    assert [tokenizer.decode(group.prompt) for group in inputs.train] == ["<s> the cat", "<s> a dog"]
    assert inputs.notes[-1] == "training: empty prompt dropped: 1 of 3 groups (b)"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "the file is damaged"),
        (lambda text: "[]", "it holds no object, but list"),
        (lambda text: text.replace('"3": ', '"5": '), "it lacks 3"),
        (lambda text: text.replace('"prompt": ', '"prompt": 99'), "the file is damaged: list index out of range"),
        (lambda text: text.replace('"scores"', '"marks"'), "the file is damaged: 'scores'"),
    ],
    ids=["cut", "no object", "a step missing", "a prompt that is none", "no scores"],
)
def test_a_damaged_draw_is_named(online, damage, message):
    file = online({"name": "rloo"}, data={"held_out": None})
    folder = run(file)
    for checkpoint in sorted((folder / "checkpoints").iterdir())[3:]:
        shutil.rmtree(checkpoint)
    draw = folder / "samples" / "step-00000002.json"
    draw.write_text(damage(draw.read_text()))
    with pytest.raises(CheckpointError) as error:
        run(file, resume=True)
    assert message in error.value.what
    assert error.value.where == str(draw)
    assert "other candidates are drawn" in error.value.fix
    draw.unlink()
    assert lines(run(file, resume=True))[-1]["step"] == 6
