"""The loop with a learner that paints: pictures by name, the same rounds, the same gate, the same going on."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from penchant.config import load_section
from penchant.config_errors import validated
from penchant.engine.denoising import Denoiser
from penchant.errors import ConfigError, DataError, DiskFullError
from penchant.recipes.self_improve import picture_medium, seeing, shapes
from penchant.recipes.self_improve.buffer import ReplayBuffer
from penchant.recipes.self_improve.config import SelfImproveConfig
from penchant.recipes.self_improve.loop import improve
from penchant.recipes.self_improve.media import medium_of
from penchant.recipes.self_improve.report import write_result

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
def done(tmp_path_factory, small_denoiser):
    config = configured(tmp_path_factory.mktemp("pictures"), small_denoiser)
    return config, improve(config), Path(config.output)


def test_rounds_of_pictures(done):
    """Judgements name pictures that are there; updates tune the UNet alone; the page shows pictures."""
    config, rounds, output = done
    assert [each["round"] for each in rounds] == [0, 1]
    named = {name for each in rounds for name in each["test"]["answers"]}
    buffer = ReplayBuffer(output / "buffer.sqlite", 100)
    parts = json.loads((output / "prompts.json").read_text())
    named |= {told.answer for name in parts["train"] for told in buffer.judged(1, name)}
    assert named <= {file.name for file in (output / "pictures").iterdir()}
    assert not [file for file in (output / "pictures").iterdir() if file.name.startswith(".")]
    # Two answers to each prompt, by other draws.
    shares = {share for each in rounds for share in each["test"]["satisfied"]}
    assert shares <= {0.0, 0.5, 1.0}
    assert 0.5 in shares
    told = json.loads((output / "updates" / "1" / "result.json").read_text())
    passes = min(told["gate_p"].values()) <= 0.05 / len(told["gate_p"])
    assert (told["served"] != told["from"]) == passes
    assert told["gate"].keys() == {"0", str(told["from"]), str(1)}
    first, new = (Denoiser(each, CPU) for each in (config.model, str(output / "updates" / "1" / "merged")))
    changed = [
        name
        for (name, a), (_, b) in zip(first.unet.named_parameters(), new.unet.named_parameters(), strict=True)
        if not torch.equal(a, b)
    ]
    assert changed
    assert all("conv" not in name for name in changed if name.endswith("weight"))
    assert torch.equal(first.encode_prompts(["a circle"]), new.encode_prompts(["a circle"]))
    assert (output / "updates" / "1" / "run" / "adapter_model.safetensors").exists()
    found = write_result(config, rounds)
    assert set(found["categories"]) <= set(shapes.TASKS)
    page = (output / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 * min(12, len(parts["test"]))


def test_done_is_not_done_again(done):
    config, rounds, output = done
    before = sorted(file.name for file in (output / "pictures").iterdir())
    assert improve(config) == rounds
    assert sorted(file.name for file in (output / "pictures").iterdir()) == before


@pytest.mark.slow
def test_killed_anywhere_no_judgement_is_lost_or_doubled(small_denoiser, tmp_path, killed_anywhere):
    killed_anywhere(configured(tmp_path, small_denoiser), tmp_path)


def test_an_interrupted_update_ends_the_same(done):
    config, _, output = done
    folder = output / "updates" / "1"
    weights = (folder / "merged" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    metrics = (folder / "run" / "metrics.jsonl").read_bytes()
    (folder / "merged").rename(folder / ".writing-merged")
    started = json.loads((folder / "begun.json").read_text())
    assert medium_of(config).tune(folder, started["served"]["model"], config.seed + 1) == str(folder / "merged")
    assert (folder / "merged" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == weights
    assert (folder / "run" / "metrics.jsonl").read_bytes() == metrics


def test_a_picture_comes_back_as_it_was_kept(done):
    medium = medium_of(done[0])
    picture = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16)).astype(np.float32)
    name = medium.keep(picture)
    assert medium.keep(picture) == name
    assert np.abs(medium.read(name) - picture).max() <= 1 / 255 + 1e-6
    assert medium.keep(medium.read(name)) == name
    assert medium.keep(-picture) != name


def test_a_picture_that_cannot_be_kept_or_read(done, tmp_path, small_denoiser):
    medium = medium_of(done[0])
    with pytest.raises(DataError, match="a picture cannot be read"):
        medium.read("none.png")
    config = configured(tmp_path / "other", small_denoiser)
    Path(config.output).mkdir()
    (Path(config.output) / "pictures").write_text("a file where the folder would be")
    with pytest.raises(ConfigError, match="the picture cannot be stored: "):
        medium_of(config).keep(np.zeros((3, 16, 16), np.float32))


def test_a_picture_is_on_the_disk_before_it_has_its_name(tmp_path, small_denoiser, monkeypatch):
    config, grey = configured(tmp_path, small_denoiser), np.zeros((3, 16, 16), np.float32)
    medium, folder, seen = medium_of(config), Path(config.output) / "pictures", []

    def full(file):
        seen.append((file.stat().st_size, [each.name for each in folder.glob("[!.]*")]))
        raise no_room()

    monkeypatch.setattr(picture_medium, "sync", full)
    with pytest.raises(DiskFullError, match="the disk is full") as error:
        medium.keep(grey)
    assert error.value.fix == "free some space, then go on with: the same command"
    monkeypatch.undo()
    name = medium.keep(grey)
    assert seen == [((folder / name).stat().st_size, [])]


def test_signs(done, small_denoiser):
    """A grey picture has no ink; a half red one has; two flat pictures are apart by the root of their mean square."""
    medium, first = medium_of(done[0]), str(small_denoiser)
    grey, dark, half = np.full((3, 3, 16, 16), 0.5, np.float32)
    dark[:] = -0.5
    half[:, :, 10:] = -0.5
    names = [medium.keep(picture) for picture in (grey, dark, half)]
    assert medium.signs(first, first, ["a circle"] * 2, names[:2]).amount == 0
    assert medium.signs(first, first, ["a circle"] * 2, names[:2]).distinct == pytest.approx(1.0, abs=0.01)
    assert medium.signs(first, first, ["a circle"], names[2:]).amount == pytest.approx(6 / 16)
    assert medium.signs(first, first, ["a circle"], names[2:]).distance == 0
    new = str(Path(done[0].output) / "updates" / "1" / "merged")
    assert medium.signs(new, first, ["a circle"] * 3, names).distance > 0


def test_the_world_as_a_verifier():
    prompt = next(each for each in shapes.prompts() if each.task == "position")
    picture = shapes.render(prompt, 32, np.random.default_rng(0))
    assert seeing.conditions(prompt.text, picture).satisfied
    assert seeing.conditions("four blue squares", picture).critique == "there are no blue squares, expected 4"
    with pytest.raises(ConfigError, match="'a dog' is no prompt of the world of shapes"):
        seeing.conditions("a dog", picture)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verifier": {"endpoint": {"url": "http://x/v1", "model": "m"}}}, "nothing else here looks at pictures"),
        ({"sampling": {"max_new_tokens": 3}}, "sampling is of texts"),
        ({"pictures": {"guidance": 0.5}}, "guidance"),
        ({"update": {"training": {"dtype": "bfloat16"}}}, "pictures are not tuned by dtype"),
    ],
)
def test_a_wrong_configuration(tmp_path, small_denoiser, changes, message):
    with pytest.raises(ConfigError) as error:
        configured(tmp_path, small_denoiser, **changes)
    assert message in str(error.value)


def test_the_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("pictures", EXAMPLES / "pictures.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name, value in (("STEPS", 2), ("BATCH", 6), ("PROMPTS", 8)):
        monkeypatch.setattr(script, name, value)
    monkeypatch.setattr(sys, "argv", ["pictures.py", "files"])
    script.main()
    weights = Path("files/learner/unet/diffusion_pytorch_model.safetensors")
    made = weights.stat().st_mtime_ns
    script.main()
    assert weights.stat().st_mtime_ns == made
    rows = [json.loads(line) for line in Path("files/prompts.jsonl").read_text().splitlines()]
    assert len({row["prompt"] for row in rows}) == len(rows) == 4 + 6 + 4 * 8
    assert {row["source"] for row in rows} == set(shapes.TASKS)
    named = {prompt.text: prompt for prompt in shapes.prompts()}
    asked = [named[row["prompt"]] for row in rows]
    assert shapes.distinct(asked) == asked
    small = ["rounds=1", "prompts_per_round=4", "attempts=2", "pictures.steps=2"]
    config = load_section(SelfImproveConfig, EXAMPLES / "self_improve_pictures.yaml", small)
    rounds = improve(config)
    assert [each["round"] for each in rounds] == [0, 1]
    assert len(rounds[0]["test"]["satisfied"]) == len(rounds[0]["test"]["answers"])
