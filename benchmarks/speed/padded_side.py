"""Preference training in the plain layout: python padded_side.py TASK.json OUT.json

Written for this comparison. Rows are right-padded to the longest of the batch, the prompt in each; the model gives all
logits, log_softmax runs over them and the responses' tokens are gathered; references' log-probs are found once, before
the first step. No checkpointing, no chunks.

    padded          the layout of the DPO authors' code: all chosen, then all rejected, one pair of rows for each
                    (positive, negative)
    padded_groups   the layout of the S-DPO authors' code: each group's positive, then its negatives, 1 + N rows;
                    loss softplus(logsumexp over negatives of beta (Delta_d - Delta_p))
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from measuring import Recorder, Task
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus
from workloads import Group


def rows_by_pair(step: list[Group]) -> list[tuple[list[int], list[int]]]:
    """(prompt, response) of all chosen, then of all rejected."""
    pairs = [(prompt, responses[0], r) for prompt, responses in step for r in responses[1:]]
    return [(p, chosen) for p, chosen, _ in pairs] + [(p, rejected) for p, _, rejected in pairs]


def rows_by_group(step: list[Group]) -> list[tuple[list[int], list[int]]]:
    """(prompt, response) of each group's candidates, the positive first."""
    return [(prompt, r) for prompt, responses in step for r in responses]


def pad(rows: list[tuple[list[int], list[int]]], device: str) -> dict[str, Tensor]:
    """input_ids and attention_mask [rows, longest]; response [rows, longest] is 1 where a token is learnt from."""
    longest = max(len(prompt) + len(response) for prompt, response in rows)
    ids, attention, response_mask = (torch.zeros(len(rows), longest, dtype=torch.int64) for _ in range(3))
    for i, (prompt, response) in enumerate(rows):
        n = len(prompt) + len(response)
        ids[i, :n] = torch.tensor(prompt + response)
        attention[i, :n] = 1
        response_mask[i, len(prompt) : n] = 1
    return {"input_ids": ids.to(device), "attention_mask": attention.to(device), "response": response_mask.to(device)}


def log_probs(model: torch.nn.Module, batch: dict[str, Tensor], dtype: str) -> Tensor:
    """[rows] summed log-probs of the responses."""
    device = batch["input_ids"].device.type
    with torch.autocast(device, dtype=torch.bfloat16) if dtype == "bfloat16" else nullcontext():
        out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    logits = out.logits[:, :-1].float().log_softmax(-1)
    token_log_probs = logits.gather(2, batch["input_ids"][:, 1:, None])[:, :, 0]
    return (token_log_probs * batch["response"][:, 1:]).sum(1)


def pair_loss(ratios: Tensor, beta: float) -> Tensor:
    """DPO of log-ratios [2 pairs], the chosen first."""
    chosen, rejected = ratios.chunk(2)
    return -logsigmoid(beta * (chosen - rejected)).mean()


def group_loss(ratios: Tensor, sizes: list[int], beta: float) -> Tensor:
    """S-DPO of log-ratios [rows], a group's positive before its negatives."""
    parts = ratios.split(sizes)
    return torch.stack([softplus((beta * (part[1:] - part[0])).logsumexp(0)) for part in parts]).mean()


def main() -> None:
    from transformers import AutoModelForCausalLM

    task, out = Task.read(sys.argv[1]), sys.argv[2]
    recorder = Recorder(task)
    grouped = task.side == "padded_groups"
    steps: list[list[Group]] = json.loads((Path(task.folder) / "ids.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(f"{task.folder}/model", dtype=torch.float32).to(task.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    # Of each step, its parts: groups of as many pairs.
    steps_in_parts = [[step[n :: task.parts] for n in range(task.parts)] for step in steps]
    rows = [[rows_by_group(part) if grouped else rows_by_pair(part) for part in step] for step in steps_in_parts]
    with torch.no_grad():
        references = [
            [log_probs(model, pad(part_rows, task.device), task.dtype) for part_rows in step] for step in rows
        ]
    recorder.start()
    for parts, each_rows, each_reference in zip(steps_in_parts, rows, references, strict=True):
        total, tokens = 0.0, 0
        for part, part_rows, reference in zip(parts, each_rows, each_reference, strict=True):
            batch = pad(part_rows, task.device)
            ratios = log_probs(model, batch, task.dtype) - reference
            sizes = [len(responses) for _, responses in part]
            loss = group_loss(ratios, sizes, task.beta) if grouped else pair_loss(ratios, task.beta)
            (loss / task.parts).backward()
            total, tokens = total + loss.item() / task.parts, tokens + int(batch["attention_mask"].sum())
            # Else two parts' activations would be held at once, which the layout does not ask for.
            del batch, ratios, loss
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recorder.end(total, tokens)
    recorder.write(out)


if __name__ == "__main__":
    main()
