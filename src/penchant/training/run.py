"""One run, from its configuration to its folder: the way from `penchant train` to the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from penchant.config import RunConfig
from penchant.data.tokenized import TokenizedGroup
from penchant.engine.distribution import World, enter_world, leave_world, shard
from penchant.engine.frozen import FrozenModel, cached_log_probs
from penchant.engine.loading import (
    adapter_base,
    check_vocabulary,
    context_length,
    dropout_settings,
    load_config,
    load_model,
    load_tokenizer,
)
from penchant.engine.policy import Policy
from penchant.engine.reference_cache import model_fingerprint
from penchant.engine.scoring import Scorer, choose_scorer, sample_groups
from penchant.errors import ConfigError
from penchant.training.checkpoints import disk_errors
from penchant.training.folder import check, take
from penchant.training.inputs import Inputs, tokenize_inputs
from penchant.training.loop import Interrupted, Loop, Split

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Tell = Callable[[str], None]
"""Where a run says what it does: a line at a time."""


def train(config: RunConfig, *, resume: bool = False, tell: Tell = lambda line: None) -> Path:
    """Train one run and write its folder.

    Args:
        resume: go on with the run in the output folder.
        tell: called with lines for people, on the main process only.

    Returns:
        The output folder.

    Raises:
        PenchantError: the user's configuration, data, model or disk is at fault; says how to go on.
        Interrupted: on Ctrl-C, after saving.
    """
    world = enter_world()
    try:
        with disk_errors(Path(config.output)):
            _train(config, world, resume, tell if world.is_main else lambda line: None)
    except Interrupted:
        leave_world(world)
        raise
    # Not after an error: another process may be waiting elsewhere, and torchrun ends it.
    leave_world(world)
    return Path(config.output)


def _train(config: RunConfig, world: World, resume: bool, tell: Tell) -> None:
    base = adapter_base(config.model)
    if base is not None and config.lora is not None:
        # The new adapter's folder would name the bare base, and lose the adapter it was trained on.
        raise ConfigError(
            "model is an adapter folder, and lora would put another adapter on it",
            where=config.model,
            fix=f"merge it first: penchant merge {config.model} MERGED, then model=MERGED",
        )
    tokenizer = load_tokenizer(config.model, chat_template=config.data.chat_template)
    model_config = load_config(base or config.model)
    if dropout := dropout_settings(model_config):
        tell(f"dropout is off, so that log-ratios compare like with like: {dropout}")
    limit = context_length(model_config)
    inputs = tokenize_inputs(config, tokenizer, limit)
    for note in inputs.notes:
        tell(note)
    begun = check(config, inputs.fingerprint, resume=resume)
    loop, policy = _prepare(config, world, inputs, tokenizer, tell)
    world.barrier()  # Everyone has looked at the folder before it is taken.
    if world.is_main and not begun:
        take(config, inputs.fingerprint, inputs.notes)
    world.barrier()
    if begun:
        loop.resume()
        tell(f"going on after step {loop.at.step} of {loop.total}")
    loop.run()
    policy.save(Path(config.output), loop.scorer, world, _saved_dtype(config))


def _prepare(
    config: RunConfig, world: World, inputs: Inputs, tokenizer: PreTrainedTokenizerBase, tell: Tell
) -> tuple[Loop, Policy]:
    other = _other_reference(config, inputs, world, tell)
    policy = Policy(load_model(config.model, dtype=_loaded_dtype(config)), tokenizer)
    policy.model.to(world.device)
    check_vocabulary(policy.model, tokenizer, config.model)
    fingerprint = model_fingerprint(policy.model)
    scorer = _scorer(policy.model, inputs.train, tell)
    if config.lora is not None:
        # Adapters start from random numbers, which must be the same on every process and in every start.
        torch.manual_seed(config.training.seed)
        policy.add_lora(
            rank=config.lora.rank,
            alpha=config.lora.alpha,
            dropout=config.lora.dropout,
            targets=config.lora.targets,
        )
    if config.training.gradient_checkpointing:
        policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    scorer.train()
    shard(scorer, world)
    splits = other or _own_reference(config, scorer, fingerprint, inputs, world)
    folder = Path(config.output)

    def save_best() -> None:
        (folder / "best").mkdir(exist_ok=True)
        policy.save(folder / "best", scorer, world, _saved_dtype(config))

    return Loop(config, scorer, splits[0], splits[1], world, folder, save_best), policy


def _other_reference(config: RunConfig, inputs: Inputs, world: World, tell: Tell) -> list[Split] | None:
    """Log-probs by a reference that is not the model training starts from; it is freed before that one is loaded."""
    if config.reference is None or config.method.references == 0:
        return None
    settings = config.training
    groups = [*inputs.train, *inputs.held_out]
    frozen = FrozenModel.load(config.reference, world, settings.dtype, config.data.chat_template)
    log_probs = frozen.log_probs(frozen.retokenize(groups), world, settings.token_budget, settings.dtype, tell)
    first = len(inputs.train)
    return [Split(inputs.train, [log_probs[:first]]), Split(inputs.held_out, [log_probs[first:]])]


def _own_reference(config: RunConfig, scorer: Scorer, fingerprint: str, inputs: Inputs, world: World) -> list[Split]:
    """The model training starts from is its own reference, now, before the first step; none is needed for R = 0."""
    splits = []
    for groups in (inputs.train, inputs.held_out):
        references = []
        if config.method.references:
            settings = config.training
            cached = cached_log_probs(scorer, fingerprint, groups, world, settings.token_budget, settings.dtype)
            references.append(cached)
        splits.append(Split(groups, references))
    return splits


def _scorer(model: PreTrainedModel, groups: Sequence[TokenizedGroup], tell: Tell) -> Scorer:
    choice = choose_scorer(model, sample_groups(groups))
    if choice.notice:
        tell(choice.notice)
    return choice.scorer


def _loaded_dtype(config: RunConfig) -> torch.dtype:
    """Trained weights are float32 masters; under LoRA the frozen ones are held in the run's dtype."""
    return _saved_dtype(config) if config.lora is not None else torch.float32


def _saved_dtype(config: RunConfig) -> torch.dtype:
    return torch.bfloat16 if config.training.dtype == "bfloat16" else torch.float32
