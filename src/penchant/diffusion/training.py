"""Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908): a denoiser's adapters, tuned on preferred pictures.

``L = -log sigma(-beta_T [(d_w - d_w_ref) - (d_l - d_l_ref)])``, with ``d = ||noise - prediction||^2`` as a mean over
elements, at one timestep and noise that a group's pictures share. With ``log pi = -d`` this is DPO with
``beta = beta_T``, and other methods of preference are carried over alike. ``beta_T``, thousands for Stable Diffusion,
holds the number of timesteps and their weight; small models want far less. The authors' code multiplies by a half
besides: its ``beta_dpo`` of 5000 is a ``beta`` of 2500 here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from penchant.config.run_sections import Dtype, LoraConfig
from penchant.data.groups import PreferenceGroup
from penchant.diffusion.batches import DenoiserScorer, DrawnBatches, Draws
from penchant.diffusion.denoising import Denoiser
from penchant.engine.device import training_products
from penchant.engine.distributed import World
from penchant.errors import ConfigError
from penchant.models.lora import add_adapters, sort_modules
from penchant.objectives import FittedObjective, Objective, WeightedSum
from penchant.storage.files import read_record, write_atomically
from penchant.storage.fingerprints import hash_text
from penchant.training.batches import Order, Split
from penchant.training.loop import Loop, LoopConfig
from penchant.training.model import choose_dtype


def tune_denoiser(
    denoiser: Denoiser,
    groups: Sequence[PreferenceGroup],
    read: Callable[[str], Tensor],
    config: LoopConfig,
    lora: LoraConfig,
    draws: Draws,
) -> None:
    """Tune the UNet's adapters and merge them; a run from the same arguments resumes, and ends with the same bits.

    Args:
        groups: their candidates name pictures.
        read: a named picture, [3, size, size] in [-1, 1].
        config: its objective is of one reference, the UNet as it was; its folder gets the adapters too.

    Raises:
        ConfigError: the objective needs more than pairs and one reference, the UNet lacks the adapters' layers, or the
            folder holds a run with other arguments.
        TrainingError: the loss is not a finite number.
        Interrupted: on Ctrl-C, SIGTERM or SIGHUP, after the step in progress was finished and saved.
    """
    check_objective(config.objective)
    dtype = _dtype_of_run(config, denoiser.device, _arguments(config, groups, lora, draws))
    resolved = {"token_budget": config.training.unplanned_token_budget, "dtype": dtype}
    settings = config.training.model_copy(update=resolved)
    config = replace(config, training=settings)
    torch.manual_seed(settings.seed)
    denoiser.latent_choice = draws.latents
    targets = linear_layers(denoiser.unet) if lora.targets == "all-linear" else lora.targets
    if settings.gradient_checkpointing:
        denoiser.unet.enable_gradient_checkpointing()
    model = denoiser.unet = add_adapters(
        denoiser.unet, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=targets
    )
    order = Order(len(groups), settings.batch_size, settings.seed, settings.shuffle)
    scorer, state = DenoiserScorer(denoiser), config.objective.initial_state(settings.seed)
    source, world = DrawnBatches(scorer, groups, read, draws, order, settings), World(0, 1, denoiser.device)
    loop = Loop(config, scorer, source, state, Split([], []), None, world, lambda: None)
    loop.resume()
    with training_products(denoiser.device):
        loop.run()
    model.save_pretrained(config.folder)
    sort_modules(config.folder)
    denoiser.unet = model.merge_and_unload().requires_grad_(False)


def _arguments(config: LoopConfig, groups: Sequence[PreferenceGroup], lora: LoraConfig, draws: Draws) -> dict[str, Any]:
    return {
        "objective": repr(config.objective),
        "training": config.training.model_dump(mode="json"),
        "lora": lora.model_dump(mode="json"),
        "draws": asdict(draws),
        "groups": hash_text(repr(list(groups))),
    }


def _dtype_of_run(config: LoopConfig, device: torch.device, arguments: dict[str, Any]) -> Dtype:
    """The dtype that a run was started with, or that suits the device of a new one, whose arguments are recorded.

    Raises:
        ConfigError: the device lacks the dtype; or the run in the folder had other arguments, and might load.
    """
    file = config.folder / "arguments.json"
    choice = config.training.dtype
    if any((config.folder / "checkpoints").glob("step-*")):
        record = read_record(file, [*arguments, "dtype"], "remove the folder, and start again")
        if differing := [name for name, value in arguments.items() if record[name] != value]:
            raise ConfigError(
                f"the run there was started with other arguments: {', '.join(differing)}",
                where=str(config.folder),
                fix="name another folder, or remove this one",
            )
        choice = record["dtype"]
    dtype: Dtype = choose_dtype(choice, device)
    write_atomically(file, json.dumps({**arguments, "dtype": dtype}) + "\n")
    return dtype


def check_objective(objective: Objective) -> None:
    """Refuse what has no meaning for pictures."""
    needs = objective.needs
    fine = needs.pairs and needs.references == 1 and needs.trains == "log_probs"
    further_needs = needs.many_references or needs.scores or needs.labels or needs.mismatched or needs.head
    if not fine or further_needs or _is_fitted(objective):
        raise ConfigError(
            f"the objective {objective.name} does not tune pictures",
            fix="use one of pairs and one reference, as dpo, ipo, hinge or s_dpo, or a weighted_sum of one and sft",
        )


def _is_fitted(objective: Objective) -> bool:
    """Whether it, or a part of it, is to be fitted to all groups before the first step: here none has log-probs yet."""
    if isinstance(objective, WeightedSum):
        return any(_is_fitted(part.objective) for part in objective.parts)
    return isinstance(objective, FittedObjective)


def linear_layers(unet: torch.nn.Module) -> list[str]:
    """Names of all linear layers; a UNet's are in its attention, its time embedding and its blocks' shifts by it."""
    return [name for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear)]
