"""The loop with a learner of pictures: rounds, gate, resumed updates, and stored pictures."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pictures as script
import pytest
import shapes
import torch

from penchant.config.run import load_section
from penchant.config.section import validated
from penchant.diffusion.batches import DrawnBatches
from penchant.diffusion.denoising import Denoiser
from penchant.errors import ConfigError, DataError, DiskFullError, TrainingError
from penchant.recipes.self_improve import picture_learner
from penchant.recipes.self_improve.buffer import ReplayBuffer
from penchant.recipes.self_improve.config import SelfImproveConfig
from penchant.recipes.self_improve.loop import improve
from penchant.recipes.self_improve.report import report_rounds
from penchant.recipes.self_improve.run_folder import build_backend

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "recipes"
RULE = "def conditions(prompt, picture):\n    return {'light': picture[0, 0, 0] > 0}\n"
CPU = torch.device("cpu")


def no_room():
    return OSError(28, "No space left on device")


def configured(folder, learner, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "rule.py").write_text(RULE)
    rows = [{"prompt": p.text, "source": p.task} for p in shapes.prompts()[::60]]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": str(learner),
        "prompts": str(folder / "prompts.jsonl"),
        "output": str(folder / "out"),
        "verifier": {"function": f"{folder / 'rule.py'}:conditions"},
        "pictures": {"steps": 2, "guidance": 1.0, "batch": 4, "draws": 1},
        "rounds": 1,
        "prompts_per_round": 8,
        "attempts": 3,
        "batch": 4,
        "held_out": 0.4,
        "measured": 2,
        "update": {
            "new": 2,
            "groups": 4,
            "objective": {"name": "dpo", "beta": 10.0},
            "training": {"max_steps": 2, "batch_size": 2, "learning_rate": 1e-3},
            "lora": {"rank": 2},
        },
        **changes,
    }
    return validated(SelfImproveConfig, values, "test")


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, small_denoiser):
    config = configured(tmp_path_factory.mktemp("pictures"), small_denoiser)
    return config, improve(config), Path(config.output)


def test_rounds_of_pictures(finished_run):
    """Judgements name stored pictures, updates train only the UNet, and the report shows pictures."""
    config, rounds, output = finished_run
    assert [round_["round"] for round_ in rounds] == [0, 1]
    names = {name for round_ in rounds for name in round_["test"]["answers"]}
    buffer = ReplayBuffer(output / "buffer.sqlite", 100)
    splits = json.loads((output / "prompts.json").read_text())
    names |= {record.answer for name in splits["train"] for record in buffer.judgements(1, name)}
    assert names <= {file.name for file in (output / "pictures").iterdir()}
    assert not [file for file in (output / "pictures").iterdir() if file.name.startswith(".")]
    # Two answers to each prompt, with different seeds.
    shares = {share for round_ in rounds for share in round_["test"]["satisfied"]}
    assert shares <= {0.0, 0.5, 1.0}
    assert 0.5 in shares
    record = json.loads((output / "updates" / "1" / "result.json").read_text())
    passes = min(record["gate_p"].values()) <= 0.05 / len(record["gate_p"])
    assert (record["served"] != record["from"]) == passes
    assert record["gate"].keys() == {"0", str(record["from"]), str(1)}
    first_denoiser, new_denoiser = (
        Denoiser(source, CPU) for source in (config.model, str(output / "updates" / "1" / "merged"))
    )
    changed_names = [
        name
        for (name, a), (_, b) in zip(
            first_denoiser.unet.named_parameters(), new_denoiser.unet.named_parameters(), strict=True
        )
        if not torch.equal(a, b)
    ]
    assert changed_names
    assert all("conv" not in name for name in changed_names if name.endswith("weight"))
    assert torch.equal(first_denoiser.encode_prompts(["a circle"]), new_denoiser.encode_prompts(["a circle"]))
    assert (output / "updates" / "1" / "run" / "adapter_model.safetensors").exists()
    result = report_rounds(config, rounds)
    assert set(result["categories"]) <= set(shapes.TASKS)
    page = (output / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 * min(12, len(splits["test"]))


def test_done_is_not_done_again(finished_run):
    config, rounds, output = finished_run
    files = sorted(file.name for file in (output / "pictures").iterdir())
    assert improve(config) == rounds
    assert sorted(file.name for file in (output / "pictures").iterdir()) == files


@pytest.mark.slow
def test_kills_lose_and_duplicate_no_judgement(small_denoiser, tmp_path, check_resume_after_kills):
    check_resume_after_kills(configured(tmp_path, small_denoiser), tmp_path)


def test_interrupted_update_resumes_to_the_same_result(finished_run):
    config, _, output = finished_run
    folder = output / "updates" / "1"
    weights = (folder / "merged" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    metrics = (folder / "run" / "metrics.jsonl").read_bytes()
    (folder / "merged").rename(folder / ".writing-merged")
    start_record = json.loads((folder / "begun.json").read_text())
    assert build_backend(config).tune(folder, start_record["served"]["model"], config.seed + 1) == str(
        folder / "merged"
    )
    assert (folder / "merged" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == weights
    assert (folder / "run" / "metrics.jsonl").read_bytes() == metrics


@pytest.fixture
def update_copy(finished_run, tmp_path):
    """A folder with the data of the finished run's first update, the model it started from, and the update's folder."""
    finished = Path(finished_run[0].output) / "updates" / "1"
    folder = tmp_path / "update"
    folder.mkdir()
    shutil.copy(finished / "train.jsonl", folder)
    return folder, json.loads((finished / "begun.json").read_text())["served"]["model"], finished


class Killed(Exception):
    pass


@pytest.mark.slow
def test_killed_update_resumes_from_its_checkpoint(finished_run, update_copy, monkeypatch):
    (folder, model, finished), config, steps, true = update_copy, finished_run[0], [], DrawnBatches.batch

    def batch(self, step):
        steps.append(step)
        if steps == [0, 1]:
            raise Killed
        return true(self, step)

    monkeypatch.setattr(DrawnBatches, "batch", batch)
    monkeypatch.setattr(picture_learner, "CHECKPOINT_STEPS", 1)
    with pytest.raises(Killed):
        build_backend(config).tune(folder, model, config.seed + 1)
    build_backend(config).tune(folder, model, config.seed + 1)
    assert steps == [0, 1, 1]
    for name in ("merged/unet/diffusion_pytorch_model.safetensors", "run/metrics.jsonl"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.slow
def test_precision_and_micro_batches_are_settings_of_pictures_too(finished_run, update_copy):
    (folder, model, finished), config = update_copy, finished_run[0]
    changes = {"dtype": "bfloat16", "token_budget": 1, "gradient_checkpointing": True}
    training = config.update.training.model_copy(update=changes)
    update = config.update.model_copy(update={"training": training})
    validated(SelfImproveConfig, config.model_copy(update={"update": update}).model_dump(), "test")
    build_backend(config.model_copy(update={"update": update})).tune(folder, model, config.seed + 1)
    rounded, exact = (
        json.loads((part / "run" / "metrics.jsonl").read_text().splitlines()[0]) for part in (folder, finished)
    )
    assert rounded["logps/chosen"] != exact["logps/chosen"]
    assert rounded["logps/chosen"] == pytest.approx(exact["logps/chosen"], rel=0.02)
    # One draw of pictures of 16 x 16 positions.
    candidates = [len(json.loads(line)["candidates"]) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert rounded["num_tokens"] in {256 * (a + b) for a, b in itertools.permutations(candidates, 2)}


def test_loss_of_an_update_that_is_not_finite_names_the_recipes_keys(finished_run, update_copy, monkeypatch):
    (folder, model, _), config, true = update_copy, finished_run[0], picture_learner.PictureLearner.verifier_input
    monkeypatch.setattr(
        picture_learner.PictureLearner, "verifier_input", lambda *inputs: true(*inputs) * np.float32("nan")
    )
    with pytest.raises(TrainingError, match="the loss is not a finite number at step 1, with the groups 1-") as error:
        build_backend(config).tune(folder, model, config.seed + 1)
    assert error.value.fix.endswith("; lower update.training.learning_rate")


def test_stored_picture_reads_back_equal(finished_run):
    backend = build_backend(finished_run[0])
    picture = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16)).astype(np.float32)
    name = backend.keep(picture)
    assert backend.keep(picture) == name
    assert np.abs(backend.verifier_input(name) - picture).max() <= 1 / 255 + 1e-6
    assert backend.keep(backend.verifier_input(name)) == name
    assert backend.keep(-picture) != name


def test_picture_that_cannot_be_stored_or_read(finished_run, tmp_path, small_denoiser):
    backend = build_backend(finished_run[0])
    with pytest.raises(DataError, match="a picture cannot be read"):
        backend.verifier_input("none.png")
    config = configured(tmp_path / "other", small_denoiser)
    Path(config.output).mkdir()
    (Path(config.output) / "pictures").write_text("a file where the folder would be")
    with pytest.raises(ConfigError, match="the picture cannot be stored: "):
        build_backend(config).keep(np.zeros((3, 16, 16), np.float32))


def test_picture_is_synced_before_it_gets_its_name(tmp_path, small_denoiser, monkeypatch):
    config, grey = configured(tmp_path, small_denoiser), np.zeros((3, 16, 16), np.float32)
    backend, folder, states = build_backend(config), Path(config.output) / "pictures", []

    def full(file):
        states.append((file.stat().st_size, [item.name for item in folder.glob("[!.]*")]))
        raise no_room()

    monkeypatch.setattr(picture_learner, "sync", full)
    with pytest.raises(DiskFullError, match="the disk is full") as error:
        backend.keep(grey)
    assert error.value.fix == "free some space, then resume with: the same command"
    monkeypatch.undo()
    name = backend.keep(grey)
    assert states == [((folder / name).stat().st_size, [])]


def test_collapse_metrics(finished_run, small_denoiser):
    """A grey picture has no ink, a half red one has; two flat pictures have the root mean square as their distance."""
    backend, first_model = build_backend(finished_run[0]), str(small_denoiser)
    grey, dark, half = np.full((3, 3, 16, 16), 0.5, np.float32)
    dark[:] = -0.5
    half[:, :, 10:] = -0.5
    names = [backend.keep(picture) for picture in (grey, dark, half)]
    assert backend.collapse_metrics(first_model, first_model, ["a circle"] * 2, names[:2]).amount == 0
    assert backend.collapse_metrics(first_model, first_model, ["a circle"] * 2, names[:2]).distinct == pytest.approx(
        1.0, abs=0.01
    )
    assert backend.collapse_metrics(first_model, first_model, ["a circle"], names[2:]).amount == pytest.approx(6 / 16)
    assert backend.collapse_metrics(first_model, first_model, ["a circle"], names[2:]).distance == 0
    new_model = str(Path(finished_run[0].output) / "updates" / "1" / "merged")
    assert backend.collapse_metrics(new_model, first_model, ["a circle"] * 3, names).distance > 0


def test_picture_world_as_a_verifier():
    prompt = next(prompt for prompt in shapes.prompts() if prompt.task == "position")
    picture = shapes.render(prompt, 32, np.random.default_rng(0))
    assert shapes.conditions(prompt.text, picture).satisfied
    assert shapes.conditions("four blue squares", picture).critique == "there are no blue squares, expected 4"
    with pytest.raises(ConfigError, match="'a dog' is no prompt of the world of shapes"):
        shapes.conditions("a dog", picture)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verifier": {"endpoint": {"url": "http://x/v1", "model": "m"}}}, "the only verifier of pictures"),
        ({"sampling": {"max_new_tokens": 3}}, "sampling is for text"),
        ({"pictures": {"guidance": 0.5}}, "guidance"),
        ({"update": {"training": {"save_dtype": "bfloat16"}}}, "update.training.save_dtype has no effect on pictures"),
    ],
)
def test_invalid_configuration(tmp_path, small_denoiser, changes, message):
    with pytest.raises(ConfigError) as error:
        configured(tmp_path, small_denoiser, **changes)
    assert message in str(error.value)


@pytest.mark.slow
def test_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in (("STEPS", 2), ("BATCH", 6), ("PROMPTS", 8)):
        monkeypatch.setattr(script, name, value)
    script.make_files(Path("files"))
    weights = Path("files/learner/unet/diffusion_pytorch_model.safetensors")
    written_at = weights.stat().st_mtime_ns
    script.make_files(Path("files"))
    assert weights.stat().st_mtime_ns == written_at
    rows = [json.loads(line) for line in Path("files/prompts.jsonl").read_text().splitlines()]
    assert len({row["prompt"] for row in rows}) == len(rows) == 4 + 6 + 4 * 8
    assert {row["source"] for row in rows} == set(shapes.TASKS)
    by_text = {prompt.text: prompt for prompt in shapes.prompts()}
    example_prompts = [by_text[row["prompt"]] for row in rows]
    assert shapes.unique_prompts(example_prompts) == example_prompts
    small = ["rounds=1", "prompts_per_round=4", "attempts=2", "pictures.steps=2"]
    small.append(f"verifier.function={EXAMPLES / 'shapes.py'}:conditions")
    config = load_section(SelfImproveConfig, EXAMPLES / "self_improve_pictures.yaml", small)
    rounds = improve(config)
    assert [round_["round"] for round_ in rounds] == [0, 1]
    assert len(rounds[0]["test"]["satisfied"]) == len(rounds[0]["test"]["answers"])
