"""Runs TRL's DPO on a model folder and a JSONL of pairs, in file order, and records each step. Run in TRL's own venv.

python trl_dpo.py MODEL PAIRS.jsonl OUT.json STEPS BATCH LEARNING_RATE BETA
"""

from __future__ import annotations

import json
import sys

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer


class RecordingTrainer(DPOTrainer):
    """Keeps every step's loss and log-probs unrounded, and the file's order."""

    def __init__(self, *args, **kwargs):
        self.record = []
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        names = ("logps/chosen", "logps/rejected", "rewards/margins")
        metrics = {name: float(self._metrics["train"][name][-1]) for name in names}
        value = loss[0] if isinstance(loss, tuple) else loss
        self.record.append({"loss": float(value.detach()), **metrics})
        return loss


def main() -> None:
    folder, pairs, out, steps, batch, rate, beta = sys.argv[1:]
    torch.manual_seed(0)
    trainer = RecordingTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=DPOConfig(
            output_dir=out + ".trl",
            per_device_train_batch_size=int(batch),
            max_steps=int(steps),
            learning_rate=float(rate),
            beta=float(beta),
            lr_scheduler_type="constant",
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_norm=1.0,
            max_length=None,
            optim="adamw_torch",
            bf16=False,
            fp16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
            logging_steps=1,
            save_strategy="no",
            seed=0,
        ),
        train_dataset=Dataset.from_json(pairs),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    trainer.train()
    with open(out, "w", encoding="utf-8") as stream:
        json.dump(trainer.record, stream)


if __name__ == "__main__":
    main()
