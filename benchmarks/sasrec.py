"""SASRec (Kang and McAuley 2018) on the very questions of a recommendation recipe: what is gained by language?

    python benchmarks/sasrec.py CONFIG.yaml [KEY=VALUE ...] [--seeds 3] [--json OUT.json]

Causal self-attention over item numbers, trained to name each next item of a user's history by softmax over the whole
catalogue (the authors' one drawn negative does worse: Klenitskiy and Vasilev 2023), stopped by validation. It reads the
history a question shows, no more.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from penchant.config.run import load_section
from penchant.recipes.recommend.baselines import Scorer
from penchant.recipes.recommend.config import RecommendConfig
from penchant.recipes.recommend.histories import Question
from penchant.recipes.recommend.questions import QuestionSet, baseline_metrics, draw_questions, items_not_taken

WIDTH, LAYERS, HEADS, DROPOUT, RATE, BATCH, PATIENCE = 64, 2, 2, 0.3, 1e-3, 128, 8


class SasRec(nn.Module):
    """Logits of every item after each place of a history; items are numbered from 1, 0 fills."""

    def __init__(self, items: int, length: int) -> None:
        super().__init__()
        self.items = nn.Embedding(items + 1, WIDTH, padding_idx=0)
        self.places = nn.Embedding(length, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, WIDTH, DROPOUT, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.dropout = nn.Dropout(DROPOUT)
        nn.init.normal_(self.items.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.02)

    def forward(self, history: Tensor) -> Tensor:
        """[B, L] item numbers, filled on the right -> [B, L, items] logits."""
        length = history.shape[1]
        x = self.dropout(self.items(history) + self.places.weight[:length])
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        return self.layers(x, mask=future) @ self.items.weight[1:].T


def fill(histories: Sequence[Sequence[int]], length: int) -> Tensor:
    return torch.tensor([[*history, *[0] * (length - len(history))] for history in histories])


def fit(question_set: QuestionSet, length: int, seed: int) -> tuple[Scorer, int]:
    """The scorer of the best epoch by validation's hit ratio at 1, and that epoch."""
    torch.manual_seed(seed)
    number = {item: n for n, item in enumerate(question_set.histories.items, 1)}
    end = question_set.parts["validation"][0].time
    sequences = []
    for times in question_set.histories.times_by_user.values():
        items = [number[item] for item, time in sorted(times.items(), key=lambda pair: pair[1]) if time < end]
        sequences += [items[start : start + length + 1] for start in range(0, len(items), length)]
    sequences = [sequence for sequence in sequences if len(sequence) > 1]
    model = SasRec(len(number), length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)

    @torch.no_grad()
    def score(question: Question, titles: Sequence[str]) -> list[float]:
        history = [number[item] for item in question.history]
        logits = model.eval()(fill([history], length))[0, len(history) - 1]
        return [float(logits[number[item] - 1]) for item in titles]

    best, best_weights, epoch, since = -1.0, copy.deepcopy(model.state_dict()), 0, 0
    while since < PATIENCE:
        model.train()
        for rows in torch.randperm(len(sequences)).split(BATCH):
            chosen = [sequences[row] for row in rows.tolist()]
            inputs, targets = (
                fill([sequence[:-1] for sequence in chosen], length),
                fill([sequence[1:] for sequence in chosen], length),
            )
            loss = cross_entropy(model(inputs).flatten(0, 1), targets.flatten() - 1, ignore_index=-1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        epoch += 1
        hit_ratio = baseline_metrics(score, question_set.parts["validation"], question_set.candidate_lists, [1])[
            "hit_ratio@1"
        ]["value"]
        since += 1
        if hit_ratio > best:
            best, best_weights, since = hit_ratio, copy.deepcopy(model.state_dict()), 0
    model.load_state_dict(best_weights)
    return score, epoch - since


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = load_section(RecommendConfig, options.config, options.overrides)
    question_set = draw_questions(config)
    test = question_set.parts["test"]
    catalogue_questions = test[: config.catalogue]
    catalogue_lists = {
        question.id: items_not_taken(question, question_set.histories) for question in catalogue_questions
    }
    rows = []
    for seed in range(options.seeds):
        scorer, epochs = fit(question_set, config.questions.max_history, seed)
        row = {
            "seed": seed,
            "epochs": epochs,
            **baseline_metrics(scorer, test, question_set.candidate_lists, config.cutoffs),
        }
        if catalogue_questions:
            row["catalogue"] = baseline_metrics(scorer, catalogue_questions, catalogue_lists, config.cutoffs)
        rows.append(row)
        for where, metrics in (("listed", row), ("catalogue", row.get("catalogue", {}))):
            values = (
                f"{key} {metrics[key]['value']:.3f}"
                for key in metrics
                if isinstance(metrics[key], dict) and "value" in metrics[key]
            )
            print(f"seed {seed}, {epochs} epochs, {where}: {', '.join(values)}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
