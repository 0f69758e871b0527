"""TRL's DPOTrainer, watched from outside; run in TRL's own environment: python trl_side.py TASK.json OUT.json

Of TRL 1.16.0. On a GPU the weights are not hashed before the first step (`hash_module`: half a minute for 8B): the hash
names them in a cache, which is empty. Every side has the comparison's weights, data, order, AdamW, constant rate,
clipping and dtype; else

    trl_default          DPOConfig as it comes: gradient checkpointing, a second model as reference in every step,
                         max_length 1024. (Left to itself it would also run in bfloat16, on a CPU too; the dtype is
                         the workload's instead, so that losses can be compared.)
    trl_best             gradient checkpointing off, precompute_ref_log_probs on, max_length off
    trl_compact          as trl_best, with what TRL does on CUDA forced on the CPU: `add_fused_lm_head` of
                         trl.trainer.utils gives its chunked head only the completions' tokens where
                         `_use_triton(device)` holds, which is CUDA or XPU with Triton; elsewhere every position goes
                         through it, prompts and padding too. That one name in trl.trainer.utils is made to say yes.
                         The kernel's module has its own `_use_triton`, which still says no, so each tile is folded
                         by TRL's torch code, as on any CPU.
    trl_group_by_length  as trl_best, with batches of like length. TRL's own setting for it (train_sampling_strategy)
                         fails as it comes: the sampler wants a column `input_ids`, or a `length` that a user adds and
                         that is kept only with remove_unused_columns off; and in a run this short it would sort no
                         more than a few batches at a time. So transformers' `get_length_grouped_indices` is called
                         with the longer sequence of each pair and one mega-batch of the whole run (the best it can
                         do), and the batches are shuffled. The order is another one: losses can be compared in the
                         mean only, and tokens are those of its own steps.
    trl_lora             as trl_best, adapters alone trained (needs peft); on the CPU compact as well
    trl_liger            as trl_best, use_liger_kernel (needs liger-kernel; CUDA)
    trl_flash_pref       as trl_best, each step under flash-pref's prefix sharing, FlashAttention 2 (needs flash-pref
                         and flash-attn; CUDA)
    trl_unsloth          as trl_best, the model loaded and TRL changed by Unsloth, all weights trained (needs unsloth;
                         CUDA; not run by us yet)
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import torch
from measuring import Recorder, Task

if Task.read(sys.argv[1]).side == "trl_unsloth":
    import unsloth  # noqa: F401  # It changes what the libraries below offer.

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer


def settings(task: Task) -> DPOConfig:
    """What is the same for all, and what the side is about."""
    options: dict[str, Any] = {}
    if task.side != "trl_default":
        options |= {"gradient_checkpointing": False, "precompute_ref_log_probs": True, "max_length": None}
    if task.side == "trl_liger":
        options["use_liger_kernel"] = True
    return DPOConfig(
        output_dir=f"{task.work}/trl",
        per_device_train_batch_size=task.pairs // task.parts,
        gradient_accumulation_steps=task.parts,
        max_steps=task.total,
        learning_rate=task.rate,
        beta=task.beta,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        max_grad_norm=1.0,
        bf16=task.dtype == "bfloat16",
        fp16=False,
        use_cpu=task.device == "cpu",
        report_to="none",
        save_strategy="no",
        seed=0,
        **options,
    )


class RecordingTrainer(DPOTrainer):
    """Reads each step's loss and tokens, and keeps the data's order or groups it by length."""

    def __init__(self, task: Task, recorder: Recorder, **kwargs: Any) -> None:
        self.task, self.recorder = task, recorder
        self.losses_and_tokens: list[tuple[torch.Tensor, torch.Tensor]] = []
        super().__init__(**kwargs)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        if self.task.side != "trl_group_by_length":
            return torch.utils.data.SequentialSampler(self.train_dataset)
        return grouped_by_length(self.train_dataset, self.task.pairs // self.task.parts)

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self.task.side != "trl_flash_pref":
            return super().training_step(model, inputs, *args, **kwargs)
        from flash_pref import shared_prefix

        inputs = self._prepare_inputs(inputs)
        with shared_prefix(model, input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]):
            return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.losses_and_tokens.append((loss.detach(), inputs["attention_mask"].sum()))
        return loss


class Clock(TrainerCallback):
    """Tells the recorder of the steps."""

    def __init__(self, trainer: RecordingTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.recorder.start()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        losses, tokens = zip(*self.trainer.losses_and_tokens, strict=True)
        self.trainer.losses_and_tokens.clear()
        self.trainer.recorder.end(float(sum(losses)) / len(losses), int(sum(tokens)))


def grouped_by_length(data: Dataset, batch: int) -> list[int]:
    """Indices of the rows, batches of like length in a random order."""
    from transformers.trainer_pt_utils import get_length_grouped_indices

    lengths = [len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in data]
    generator = torch.Generator().manual_seed(0)
    order = get_length_grouped_indices(lengths, batch, mega_batch_mult=len(lengths) // batch, generator=generator)
    batches = [order[i : i + batch] for i in range(0, len(order), batch)]
    random.Random(0).shuffle(batches)
    return [i for batch_indices in batches for i in batch_indices]


def score_completions_only() -> None:
    """What TRL does where there is Triton; see the module's docstring."""
    import trl.trainer.utils as utils

    if not callable(getattr(utils, "_use_triton", None)):
        raise SystemExit("this TRL decides in another way which tokens its head sees; read add_fused_lm_head again")
    utils._use_triton = lambda device: True


def do_not_hash() -> None:
    """See the module's docstring."""
    import trl.trainer.dpo_trainer as module

    module.hash_module = lambda model: "of this process"


def seed_adapters() -> None:
    """Adapters start from the same random numbers as Penchant's: the seed is set just before they are made."""
    import trl.trainer.dpo_trainer as module

    make = module.get_peft_model

    def seeded(*args: Any, **kwargs: Any) -> Any:
        torch.manual_seed(0)
        return make(*args, **kwargs)

    module.get_peft_model = seeded


def main() -> None:
    task, out = Task.read(sys.argv[1]), sys.argv[2]
    recorder = Recorder(task)
    trainer_options: dict[str, Any] = {}
    weights = torch.float32
    if task.side == "trl_lora":
        from peft import LoraConfig

        trainer_options["peft_config"] = LoraConfig(
            r=task.rank, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        # Frozen weights are held in the run's dtype, as Penchant holds them.
        weights = getattr(torch, task.dtype)
        seed_adapters()
    if task.device == "cuda":
        do_not_hash()
    if task.side == "trl_compact" or (task.side == "trl_lora" and task.device == "cpu"):
        score_completions_only()
    attention = {"attn_implementation": "flash_attention_2"} if task.side == "trl_flash_pref" else {}
    if task.side == "trl_unsloth":
        from unsloth import FastLanguageModel

        model, _ = FastLanguageModel.from_pretrained(
            f"{task.folder}/model", dtype=weights, load_in_4bit=False, full_finetuning=True, max_seq_length=2048
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(f"{task.folder}/model", dtype=weights, **attention)
    trainer = RecordingTrainer(
        task,
        recorder,
        model=model,
        args=settings(task),
        train_dataset=Dataset.from_json(f"{task.folder}/pairs.jsonl"),
        processing_class=AutoTokenizer.from_pretrained(f"{task.folder}/model"),
        **trainer_options,
    )
    expected = len(Path(task.folder, "pairs.jsonl").read_text().splitlines())
    if len(trainer.train_dataset) != expected:
        raise SystemExit(f"TRL dropped {expected - len(trainer.train_dataset)} of {expected} rows")
    trainer.add_callback(Clock(trainer))
    trainer.train()
    recorder.write(
        out,
        gradient_checkpointing=trainer.args.gradient_checkpointing,
        reference_model=trainer.ref_model is not None,
        attention=trainer.model.config._attn_implementation,
    )


if __name__ == "__main__":
    main()
