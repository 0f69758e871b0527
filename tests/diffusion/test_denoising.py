"""The denoiser against diffusers' own pipeline, and against its formulas written out."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from penchant.diffusion.denoising import Denoiser
from penchant.errors import ConfigError, DataError, ModelError

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"
PROMPTS = ["a red circle", "a blue square above a red circle", ""]


@pytest.fixture(scope="module")
def denoiser(stable_diffusion):
    return Denoiser(str(stable_diffusion), CPU)


SCHEDULERS = ["PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "DDIMScheduler"]


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler")
@pytest.mark.parametrize(("scheduler", "guidance"), [(None, 1.0), (None, 5.0), *((name, 2.0) for name in SCHEDULERS)])
def test_pictures_equal_those_of_the_pipeline(stable_diffusion, tmp_path, scheduler, guidance):
    """Also where the folder has another scheduler's defaults, which do not set whether DDIM clips."""
    import diffusers

    folder = tmp_path / "model"
    shutil.copytree(stable_diffusion, folder)
    if scheduler is not None:
        shutil.rmtree(folder / "scheduler")
        getattr(diffusers, scheduler)().save_pretrained(folder / "scheduler")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, scheduler=diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    )
    pipeline.set_progress_bar_config(disable=True)
    denoiser = Denoiser(str(folder), CPU)
    noise = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4, 5)])
    theirs = pipeline(
        PROMPTS, num_inference_steps=4, guidance_scale=guidance, latents=noise, height=16, width=16, output_type="pt"
    ).images
    ours = denoiser.generate(PROMPTS, (3, 4, 5), steps=4, guidance=guidance)
    assert ours.shape == (3, 3, 16, 16)
    torch.testing.assert_close(ours / 2 + 0.5, theirs, atol=2e-5, rtol=0)


def test_pixels_keep_the_schedule_that_they_are_given(small_denoiser):
    schedule = Denoiser(str(small_denoiser), CPU).schedule.config
    assert (schedule.clip_sample, schedule.steps_offset) == (True, 0)


def test_half_precision_on_disk_is_single_in_memory(stable_diffusion, denoiser, tmp_path):
    from diffusers import StableDiffusionPipeline

    halved = StableDiffusionPipeline.from_pretrained(stable_diffusion, dtype=torch.float16, safety_checker=None)
    halved.save_pretrained(tmp_path / "half")
    assert {tensor.dtype for tensor in load_file(tmp_path / "half" / "unet" / WEIGHTS).values()} == {torch.float16}
    half_denoiser = Denoiser(str(tmp_path / "half"), CPU)
    parts = (half_denoiser.unet, half_denoiser.text_encoder, half_denoiser._vae)
    assert {weight.dtype for part in parts for weight in part.parameters()} == {torch.float32}
    ours, theirs = (model.generate(PROMPTS, (3, 4, 5), steps=3, guidance=2.0) for model in (half_denoiser, denoiser))
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)


def test_no_more_steps_than_timesteps(stable_diffusion, small_denoiser, tmp_path):
    """With ten timesteps and an offset of one, nine can be reached."""
    folder = tmp_path / "model"
    shutil.copytree(stable_diffusion, folder)
    _set(folder / "scheduler", num_train_timesteps=10)
    denoiser = Denoiser(str(folder), CPU)
    assert denoiser.generate(PROMPTS[:1], (3,), steps=9, guidance=1.0).isfinite().all()
    with pytest.raises(ConfigError, match=r"pictures\.steps is 10, the model's schedule has room for 9") as error:
        denoiser.generate(PROMPTS[:1], (3,), steps=10, guidance=1.0)
    assert error.value.fix == "lower pictures.steps to at most 9"
    with pytest.raises(ConfigError, match=r"pictures\.steps is 1001, the model's schedule has room for 1000"):
        Denoiser(str(small_denoiser), CPU).generate(["a circle"], (3,), steps=1001, guidance=1.0)


def test_a_picture_does_not_depend_on_those_beside_it(denoiser):
    both = denoiser.generate(PROMPTS[:2], (3, 4), steps=3, guidance=2.0)
    alone = denoiser.generate(PROMPTS[1:2], (4,), steps=3, guidance=2.0)
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=0)
    assert not torch.allclose(both[1:], denoiser.generate(PROMPTS[1:2], (5,), steps=3, guidance=2.0), atol=1e-2)


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_noise_errors_written_out(stable_diffusion, predicts):
    denoiser = Denoiser(str(stable_diffusion), CPU)
    denoiser.schedule.register_to_config(prediction_type=predicts)
    torch.manual_seed(1)
    latents, noise = torch.randn(2, 2, 4, 8, 8).unbind()
    times, encoded = torch.tensor([10, 900]), denoiser.encode_prompts(PROMPTS[:2])
    signal_share = denoiser.schedule.alphas_cumprod[times].double()[:, None, None, None]
    noisy = signal_share.sqrt() * latents + (1 - signal_share).sqrt() * noise
    with torch.no_grad():
        prediction = denoiser.unet(noisy.float(), times, encoder_hidden_states=encoded).sample
        errors = denoiser.noise_errors(latents, encoded, times, noise)
    target = noise if predicts == "epsilon" else signal_share.sqrt() * noise - (1 - signal_share).sqrt() * latents
    torch.testing.assert_close(
        errors.double(), ((prediction - target).double() ** 2).mean((1, 2, 3)), rtol=1e-4, atol=0
    )


def test_latents_are_the_mean_of_what_the_vae_gives(denoiser, stable_diffusion):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(stable_diffusion, subfolder="vae")
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        mean = vae.quant_conv(vae.encoder(pictures))[:, :4]
    torch.testing.assert_close(denoiser.to_latents(pictures), mean * 0.18215)


def test_a_saved_folder_differs_in_the_tuned_parts_only(denoiser, tmp_path, stable_diffusion):
    tuned_denoiser = Denoiser(str(stable_diffusion), CPU)
    with torch.no_grad():
        tuned_denoiser.unet.conv_in.bias.add_(1.0)
    tuned_denoiser.save(tmp_path / "new")
    loaded_denoiser = Denoiser(str(tmp_path / "new"), CPU)
    assert torch.equal(loaded_denoiser.unet.conv_in.bias, denoiser.unet.conv_in.bias + 1.0)
    assert torch.equal(loaded_denoiser.encode_prompts(PROMPTS), denoiser.encode_prompts(PROMPTS))
    assert {file.name for file in (tmp_path / "new").iterdir()} == {file.name for file in stable_diffusion.iterdir()}


def test_a_prompt_is_never_cut(denoiser):
    with pytest.raises(DataError, match=r"a prompt of more than 12 tokens: 'a a a a a a a a a a a'"):
        denoiser.encode_prompts(["a red circle", " ".join("a" * 11)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), "it has no model_index.json"),
        (lambda folder: shutil.rmtree(folder / "unet"), "it has no unet/"),
        (lambda folder: (folder / "unet" / WEIGHTS).write_bytes(b"x"), "cannot be loaded"),
        (lambda folder: _remove_tensor(folder / "unet" / WEIGHTS, "conv_in.bias"), "conv_in.bias"),
        (lambda folder: shutil.rmtree(folder / "vae"), "it has no vae/"),
        (lambda folder: (folder / "model_index.json").write_text("["), "cannot be loaded"),
        (lambda folder: _set(folder / "unet", addition_embed_type="text"), "more than a prompt's encoding"),
        (lambda folder: _set(folder / "unet", num_class_embeds=10), r"given a class too \(10\)"),
        (lambda folder: _set(folder / "unet", class_embed_type="timestep"), r"given a class too \(timestep\)"),
        (lambda folder: _set(folder / "unet", in_channels=9), "takes 9 channels and gives 4, its VAE has 4"),
        (lambda folder: _set(folder / "unet", out_channels=8), "takes 4 channels and gives 8, its VAE has 4"),
        (lambda folder: _set(folder / "vae", latent_channels=16), "takes 4 channels and gives 4, its VAE has 16"),
        (lambda folder: _without_vae(folder), "takes 4 channels and gives 4, pictures have 3"),
        (lambda folder: _set(folder / "unet", sample_size=None), "sample_size is None, expected a whole number"),
        (lambda folder: _set(folder / "unet", sample_size=[8, 8]), r"sample_size is \[8, 8\], expected a whole number"),
        (
            lambda folder: _set(folder / "scheduler", prediction_type="sample"),
            "predicts sample, expected epsilon",
        ),
    ],
)
def test_folders_that_are_no_diffusion_model(stable_diffusion, tmp_path, change, message):
    folder = tmp_path / "model"
    shutil.copytree(stable_diffusion, folder)
    change(folder)
    with pytest.raises(ModelError, match=message) as error:
        Denoiser(str(folder), CPU)
    assert error.value.where.startswith(str(folder))


def test_without_the_package(stable_diffusion, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match="pictures need diffusers") as error:
        Denoiser(str(stable_diffusion), CPU)
    assert error.value.fix == "python -m pip install 'penchant[diffusion]'"


def _remove_tensor(file, name):
    weights = load_file(file)
    del weights[name]
    save_file(weights, file)


def _without_vae(folder):
    shutil.rmtree(folder / "vae")
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"vae": [None, None]}))


def _set(part, **values):
    [file] = [path for path in part.glob("*.json") if "index" not in path.name]
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
