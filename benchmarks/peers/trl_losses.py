"""TRL's own losses on given log-probs. Run in TRL's own venv.

python trl_losses.py CASES.json OUT.json

Each loss comes from the piece of TRL that computes it in training, called with a stand-in for the trainer whose "model"
answers with the log-probs of the case.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from types import SimpleNamespace

import torch
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer


def tables(log_probs, lengths):
    """Rows of one prompt token and n completion tokens, whose log-probs sum to what is given."""
    width = max(lengths) + 1
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    values = torch.zeros(len(lengths), width - 1)
    for row, (total, n) in enumerate(zip(log_probs, lengths, strict=True)):
        mask[row, 1 : n + 1] = 1
        values[row, :n] = total / n
    return mask, values


def stand_in(**fields):
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    return SimpleNamespace(
        accelerator=accelerator,
        model=SimpleNamespace(training=False),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        ld_alpha=None,
        use_weighting=False,
        **fields,
    )


def answering(values):
    def model(**inputs):
        zeros = torch.zeros_like(values)
        return SimpleNamespace(log_probs=values, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

    return model


def dpo(case, loss_type, beta, label_smoothing=0.0):
    mask, values = tables(case["chosen"] + case["rejected"], case["n_chosen"] + case["n_rejected"])
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": torch.tensor(case["ref_chosen"]),
        "ref_rejected_logps": torch.tensor(case["ref_rejected"]),
    }
    trainer = stand_in(
        beta=beta,
        label_smoothing=label_smoothing,
        loss_types=[loss_type],
        loss_weights=[1.0],
        f_divergence_type="reverse_kl",
    )
    return float(DPOTrainer._compute_loss(trainer, answering(values), inputs, False))


def simpo(case, beta, gamma):
    means = [
        torch.tensor(case[k]) / torch.tensor(case[n]) for k, n in (("chosen", "n_chosen"), ("rejected", "n_rejected"))
    ]
    trainer = stand_in(alpha=0.0, beta=beta, simpo_gamma=gamma, loss_type="simpo", label_smoothing=0.0)
    return float(CPOTrainer.cpo_loss(trainer, *means)[0].mean())


def orpo_odds(case, weight):
    means = [
        torch.tensor(case[k]) / torch.tensor(case[n]) for k, n in (("chosen", "n_chosen"), ("rejected", "n_rejected"))
    ]
    return float(-ORPOTrainer.odds_ratio_loss(stand_in(beta=weight), *means)[0].mean())


def kto(case, beta, desirable, undesirable):
    mask, values = tables(case["chosen"] + case["rejected"], case["n_chosen"] + case["n_rejected"])
    g = len(case["chosen"])
    batch = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "label": torch.tensor([True] * g + [False] * g),
        "ref_logps": torch.tensor(case["ref_chosen"] + case["ref_rejected"]),
        "ref_KL_logps": torch.tensor(case["ref_mismatched"]),
    }
    trainer = stand_in(
        beta=beta, desirable_weight=desirable, undesirable_weight=undesirable, loss_type="kto", calculate_KL=True
    )
    trainer._compute_kl_logps = lambda model, batch: torch.tensor(case["mismatched"])
    return float(KTOTrainer._compute_loss(trainer, answering(values), batch, False))


def main():
    with open(sys.argv[1]) as stream:
        cases = json.load(stream)
    losses = [
        {
            "dpo": dpo(case, "sigmoid", 0.1),
            "cdpo": dpo(case, "sigmoid", 0.1, 0.2),
            "robust_dpo": dpo(case, "robust", 0.1, 0.2),
            "ipo": dpo(case, "ipo", 0.1),
            "hinge": dpo(case, "hinge", 0.1),
            "length_normalized_dpo": dpo(case, "sigmoid_norm", 5.0),
            "simpo": simpo(case, 2.0, 0.5),
            "orpo": orpo_odds(case, 0.1),
            "kto": kto(case, 0.1, 1.0, 1.5),
        }
        for case in cases
    ]
    with open(sys.argv[2], "w") as stream:
        json.dump(losses, stream)


if __name__ == "__main__":
    main()
