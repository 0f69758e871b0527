"""Training of one run, from its configuration to its folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from penchant.config.run import RunConfig, with_recorded_settings, with_training
from penchant.config.run_sections import SAFE_TOKEN_BUDGET
from penchant.data.second_reading import add_mismatched
from penchant.data.tokenized import TokenizedGroup
from penchant.engine.device import on_device, training_products
from penchant.engine.distributed import RankMonitor, World, destroy_process_group, flush_denormals, init_process_group
from penchant.engine.reference_model import NO_LIMIT, cached_log_probs
from penchant.errors import ConfigError
from penchant.evaluation.held_out import Reading
from penchant.evaluation.rewards import open_reward
from penchant.models.loading import adapter_base, context_length, dropout_settings, load_config, load_tokenizer
from penchant.models.lora import untrained_adapters
from penchant.objectives import FittedObjective
from penchant.storage.files import disk_errors, folder_lock, is_full, resume_command
from penchant.training.backward import objective_tables
from penchant.training.batches import BatchSource, FixedDataset, Order, References, Split
from penchant.training.folder import (
    RunLog,
    check,
    claim_folder,
    day_note,
    on_one_day,
    release_folder,
    run_log,
    with_day,
)
from penchant.training.input_hashes import input_hashes
from penchant.training.inputs import Inputs, tokenize_inputs
from penchant.training.loop import Loop, LoopConfig
from penchant.training.model import Trained, choose_dtype, load_trained, trained_responses
from penchant.training.model_card import write_model_card
from penchant.training.needs import (
    check_head,
    check_live_reference,
    check_models,
    check_references,
    check_sampled,
    fit_state,
)
from penchant.training.references import LiveReference, MovingReference, reference_tables
from penchant.training.sampled import SampledBatches
from penchant.training.stop_signals import Interrupted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


ChooseBudget = Callable[[RunConfig, Inputs, "PreTrainedTokenizerBase", int], int]
"""Function that returns a run's token budget where it is ``auto``, from what `read_run` returned."""


def train(config: RunConfig, *, resume: bool = False, choose_budget: ChooseBudget | None = None) -> Path:
    """Train one run and write its folder.

    Args:
        resume: resume the run in the output folder.
        choose_budget: returns the token budget where it is ``auto``; None: `SAFE_TOKEN_BUDGET`. `penchant.train` plans
            one here, where the data is read and no model loaded yet.

    Returns:
        The output folder.

    Raises:
        PenchantError: the user's configuration, data, model or disk is at fault; says how to resume or mend it.
        Interrupted: on Ctrl-C, SIGTERM or SIGHUP, after saving.
    """
    with on_device(config.device):
        seconds = config.training.rank_timeout_seconds
        world = init_process_group(seconds)
        try:
            go_on = _resume_command(config)
            lock = folder_lock(Path(config.output)) if world.is_main else nullcontext()
            monitor, products = RankMonitor(world, seconds), training_products(world.device)
            with disk_errors(Path(config.output), go_on), lock, monitor, flush_denormals(), products, run_log() as log:
                _train(config, world, resume, choose_budget or _safe_budget, log)
        except Interrupted:
            destroy_process_group(world)
            raise
        # Not after an error: another process may be waiting elsewhere, and torchrun ends it.
        destroy_process_group(world)
    return Path(config.output)


def _resume_command(config: RunConfig) -> str:
    return resume_command(f"penchant train --resume {config.output}")


def _safe_budget(config: RunConfig, inputs: Inputs, tokenizer: PreTrainedTokenizerBase, limit: int) -> int:
    return SAFE_TOKEN_BUDGET


def _train(config: RunConfig, world: World, resume: bool, choose_budget: ChooseBudget, log: RunLog) -> None:
    config = with_day(config, world.broadcast(on_one_day(config).data.date))
    config = config.model_copy(update={"training": world.broadcast(with_recorded_settings(config).training)})
    config = with_training(config, dtype=choose_dtype(config.training.dtype, world.device))
    inputs, tokenizer, limit = read_run(config, world.size)
    if config.training.token_budget == "auto":
        # A plan is of one process.
        choose = choose_budget if world.size == 1 else _safe_budget
        config = with_training(config, token_budget=choose(config, inputs, tokenizer, limit))
    is_started = check(config, inputs.fingerprint, resume=resume)
    hashes = input_hashes(config) if world.is_main and not is_started else {}
    loop, model, notes = _prepare(config, world, inputs, tokenizer, limit)
    world.barrier()  # Everyone has looked at the folder before it is taken.
    if world.is_main and not is_started:
        claim_folder(config, inputs.fingerprint, [*inputs.notes, *notes], hashes)
    if world.is_main:
        log.open(Path(config.output))
    world.barrier()
    if is_started:
        loop.resume()
        logger.info(f"resumed after step {loop.state.step} of {loop.total}")
    with _released_on_failure(config, world, loop, is_started):
        loop.run()
    model.save(Path(config.output), world)
    if world.is_main:
        write_model_card(Path(config.output), config)
    if model.policy.adapters is not None and world.size == 1 and (idle := untrained_adapters(model.policy.adapters)):
        logger.warning(
            f"{len(idle)} adapters are as before training, the loss does not depend on them; the first is {idle[0]}"
        )


@contextmanager
def _released_on_failure(config: RunConfig, world: World, loop: Loop, is_started: bool) -> Iterator[None]:
    """Release the output folder where a new run fails before its first step, so that the same command can run again."""
    try:
        yield
    except Exception as error:
        # A run that a full disk ended can be resumed.
        if world.is_main and not is_started and loop.state.step == 0 and not is_full(error):
            release_folder(config)
        raise


def read_run(config: RunConfig, processes: int, *, weights: bool = True) -> tuple[Inputs, PreTrainedTokenizerBase, int]:
    """A run's data, tokenizer and maximum tokens, after all checks that need no model in memory.

    Args:
        weights: whether a model's folder without weights is refused.

    Raises:
        PenchantError: the configuration, the data or the model's folder is invalid.
    """
    check_sampled(config, processes)
    check_head(config)
    if notice := check_references(config):
        logger.info(notice)
    for line in check_models(config):
        logger.info(line)
    base = adapter_base(config.model)
    if base is not None and config.lora is not None:
        # The new adapter's folder would name the bare base, and lose the adapter it was trained on.
        raise ConfigError(
            "model is an adapter folder, and lora would put another adapter on it",
            where=config.model,
            fix=f"merge it first: penchant merge {config.model} MERGED, then model=MERGED",
        )
    tokenizer = load_tokenizer(config.model, chat_template=config.data.chat_template)
    model_config = load_config(base or config.model, weights=weights)
    if dropout := dropout_settings(model_config):
        logger.info(f"dropout is off, so that log-ratios compare like with like: {dropout}")
    limit = context_length(model_config)
    inputs = tokenize_inputs(config, tokenizer, limit)
    if config.candidates == "sampled":
        longest = max(len(group.prompt) for group in inputs.train) + config.sampling.max_new_tokens
        check_live_reference(config, tokenizer, longest)
    inputs.notes.extend(day_note(config))
    for note in inputs.notes:
        logger.info(note)
    return inputs, tokenizer, limit or NO_LIMIT


def _prepare(
    config: RunConfig, world: World, inputs: Inputs, tokenizer: PreTrainedTokenizerBase, limit: int
) -> tuple[Loop, Trained, list[str]]:
    """The run's loop and model, ready for the first step, and notes on references, model and candidates."""
    settings, needs = config.training, config.built_objective.needs
    # Candidates that are sampled later have no reference log-probs yet.
    train_groups = [] if config.candidates == "sampled" else inputs.train
    groups = [*train_groups, *inputs.held_out, *inputs.reference_held_out]
    # References that are other models come first: they are freed before the policy is loaded.
    longest = config.data.max_length or limit
    tables, notes = reference_tables(config, groups, longest, world)
    if needs.mismatched:
        groups = add_mismatched(groups, settings.seed, longest)
    model = load_trained(config, tokenizer, groups or inputs.train, world)
    notes += model.notes
    model.policy.trained_responses = trained_responses(config, inputs.train)
    if None in tables:
        policy_table = cached_log_probs(
            model.scorer, model.fingerprint, groups, world, settings.resolved_token_budget, settings.resolved_dtype
        )
        tables = [policy_table if table is None else table for table in tables]
    train_end, held_out_end = len(train_groups), len(train_groups) + len(inputs.held_out)
    train, held_out, fitting = (
        Split(groups[part], [table[part] for table in tables if table is not None])
        for part in (slice(train_end), slice(train_end, held_out_end), slice(held_out_end, None))
    )
    state = config.built_objective.initial_state(settings.seed)
    if isinstance(config.built_objective, FittedObjective) and train_end:
        fitting = fitting if needs.fitting_pairs else train
        reference, facts = objective_tables(fitting.groups, fitting.references, torch.device("cpu"))
        state = fit_state(config.built_objective, reference, facts, state)
    source: BatchSource
    if config.candidates == "sampled":
        source, note = _sampled(config, inputs, tokenizer, model, world)
        notes.append(note)
    else:
        source = FixedDataset(train, Order(train_end, settings.batch_size, settings.seed, settings.shuffle))

    moving = MovingReference(model.scorer, settings, world) if config.reference_update == "best" else None

    def save_best() -> None:
        folder = Path(config.output) / "best"
        folder.mkdir(exist_ok=True)
        model.save(folder, world)

    loop_config = LoopConfig(
        folder=Path(config.output),
        resume_command=_resume_command(config),
        objective=config.built_objective,
        training=settings,
        evaluation=config.evaluation,
        checkpoints=config.checkpoints,
        logging=config.logging,
        head_decay=config.head.weight_decay,
    )
    return Loop(loop_config, model.scorer, source, state, held_out, moving, world, save_best), model, notes


def _sampled(
    config: RunConfig,
    inputs: Inputs,
    tokenizer: PreTrainedTokenizerBase,
    model: Trained,
    world: World,
) -> tuple[SampledBatches, str]:
    assert config.reward is not None
    settings = config.training
    reading = Reading(dtype=settings.resolved_dtype, rendering=config.rendering)
    reward = open_reward(config.reward, device=world.device, reading=reading)
    candidates = f"{config.sampling.samples} candidates drawn for each of {len(inputs.train)} prompts"
    note = f"{candidates}, scored by {reward.name}"
    logger.info(note)
    batches = SampledBatches(
        model=model.policy.model,
        tokenizer=tokenizer,
        prompts=[(group.group.prompt, group.prompt) for group in inputs.train],
        order=Order(len(inputs.train), settings.batch_size, settings.seed, settings.shuffle),
        settings=config.sampling,
        reward=reward,
        references=LiveReference(config, model, world) if config.built_objective.needs.references else _no_references,
        folder=Path(config.output) / "samples",
        seed=settings.seed,
    )
    return batches, note


def _no_references(groups: Sequence[TokenizedGroup]) -> References:
    return []
