"""Penchant's DPO against TRL 1.16's, step by step: same weights, data, order and optimizer, float32.

    python benchmarks/trl_agreement.py

Installs TRL in an environment of its own (benchmarks/.envs/, about 1.5 GB) the first time. Exits with 1 where a loss
or log-prob of any step differs by 1e-4 or more.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from environments import trl_python  # noqa: E402

STEPS, BATCH, RATE, BETA = 10, 4, 1e-4, 0.1
TOLERANCE = 1e-4
SENTENCE = "the old cat sees a big dog then it runs to the small house by river tree bird sings likes finds ."
WORDS = tuple(dict.fromkeys(SENTENCE.split()))


def build_inputs(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """A small random Llama with a word tokenizer, and pairs of random sentences."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    draw = random.Random(seed)

    def sentence(shortest: int, longest: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(shortest, longest)))

    pairs = folder / "pairs.jsonl"
    with pairs.open("w", encoding="utf-8") as stream:
        for _ in range(STEPS * BATCH):
            row = {"prompt": sentence(3, 30), "chosen": " " + sentence(2, 20), "rejected": " " + sentence(2, 20)}
            stream.write(json.dumps(row) + "\n")
    return folder / "model", pairs


def run_penchant(model: Path, pairs: Path, out: Path) -> list[dict[str, float]]:
    """Each step's loss and log-probs from metrics.jsonl."""
    config = out.with_suffix(".yaml")
    config.write_text(f"{{model: {model}, data: {pairs}, output: {out}, objective: {{name: dpo, beta: {BETA}}}}}")
    settings = {
        "max_steps": STEPS,
        "batch_size": BATCH,
        "learning_rate": RATE,
        "schedule": "constant",
        "warmup": 0,
        "shuffle": "false",
    }
    overrides = [f"training.{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "penchant", "train", str(config), *overrides, "logging.every=1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def main() -> int:
    work = HERE / ".work" / "trl_agreement"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    model, pairs = build_inputs(work)
    ours = run_penchant(model, pairs, work / "penchant")
    theirs_file = work / "trl.json"
    arguments = [model, pairs, theirs_file, STEPS, BATCH, RATE, BETA]
    peer = [str(trl_python()), str(HERE / "peers" / "trl_dpo.py"), *map(str, arguments)]
    subprocess.run(peer, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    theirs = json.loads(theirs_file.read_text())
    print(f"{'step':>4} {'loss (Penchant)':>16} {'loss (TRL)':>16} {'largest difference of loss and log-probs':>42}")
    worst = 0.0
    for mine, peer_step in zip(ours, theirs, strict=True):
        difference = max(abs(mine[name] - peer_step[name]) for name in peer_step)
        worst = max(worst, difference)
        print(f"{mine['step']:>4} {mine['loss']:>16.8f} {peer_step['loss']:>16.8f} {difference:>42.2e}")
    verdict = "agree" if worst < TOLERANCE else "DIFFER"
    print(f"{verdict}: largest difference over {STEPS} steps is {worst:.2e} (tolerance {TOLERANCE:.0e})")
    return 0 if worst < TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
