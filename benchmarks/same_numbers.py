"""Does a change leave every number as it was? Records small runs of the command line, and compares them with a record.

    python benchmarks/same_numbers.py record FILE.json [--jobs 2]
    python benchmarks/same_numbers.py check FILE.json [--out NEW.json] [--jobs 2] [--only NAME ...]

Runs every example of a method and one LoRA run, a comparison, evaluations, exports, a recipe and the tuning of a
diffusion model, on tiny random models that this script makes. A record holds the metrics of every step, the JSON that
the verbs print, and a hash of every saved tensor. Only the command line is used, so that names and modules inside
Penchant may change. Losses and hashes depend on the machine and on torch: record and check on the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
POLICY, OTHER, CHAT = "Qwen/Qwen2.5-0.5B-Instruct", "meta-llama/Llama-3.2-1B-Instruct", "Qwen/Qwen2.5-7B-Instruct"
"""The models that the examples name, as folders in the working folder."""
SENTENCE = "the old cat sees a big dog then it runs to small house by river tree bird sings likes finds"
WORDS = SENTENCE.split()
DROPPED = re.compile(
    r"(^|[ _])(seconds|hours|speed|waited|memory|bytes|date|version|path|folder|file|output|host)([ _]|$)"
    r"|^(definitions|signs|notes|notices|verdict|title|alarms|by)$"
)
"""Keys whose values depend on the clock, the machine or the folder, or are sentences for people."""
LISTED = 48
"""A file of more tensors has one hash of all, in place of a hash of every tensor."""
SHOWN = 5
"""Differing values printed for a run."""
FAILED = "failed"
"""The key of a run that failed."""

TINY = """training.max_steps=5 training.batch_size=6 training.token_budget=160 training.learning_rate=1.0e-3
    data.held_out=0.25 evaluation.every=2 evaluation.samples=1 evaluation.sample_tokens=6 logging.every=1"""
SHORT = '"training":{"max_steps":3,"batch_size":8,"learning_rate":0.001}'
PAIRS, GROUPS, REWARD, HEAD = "few_pairs.jsonl", "few_scores.jsonl", "runs/bradley_terry", "runs/preference_head"
EARLY = ("bradley_terry", "dpo", "preference_head")
"""Runs whose models other runs read."""
METHODS = {
    # Held-out groups need candidates, which prompts.jsonl of the examples with fresh samples has not.
    file.stem: [f"train {file} output=runs/{file.stem} {TINY} "
                + "data.train=scores.jsonl sampling.max_new_tokens=6" * ("candidates: sampled" in file.read_text())]
    for file in sorted((EXAMPLES / "methods").glob("*.yaml"))
}  # fmt: skip
RUNS: dict[str, list[str]] = METHODS | {
    "lora": [f"""train {EXAMPLES}/dpo_lora.yaml output=runs/lora {TINY} data.train=chat.jsonl data.split=null
        data.held_out_split=null data.max_length=256 training.dtype=bfloat16"""],
    "compare": ["compare compare.yaml --json"],
    "evaluate": [f"evaluate runs/dpo --data {PAIRS} --reference {POLICY} --per-example runs/evaluate.jsonl --json"],
    "reward_model": [
        f"evaluate {REWARD} --data {GROUPS} --json",
        f"rank {REWARD} --by reward --data {GROUPS} --output runs/reward_model.ranked.jsonl --json",
        f"score {GROUPS} --model {REWARD} --output runs/reward_model.scored.jsonl --json",
    ],
    "head": [
        f"tasks {HEAD} --task tiny=questions.jsonl --head --json",
        f"rank {HEAD} --by head --data {GROUPS} --json",
    ],
    "generate": [f"generate runs/dpo {PAIRS} --max-new-tokens 8 --json"],
    "gguf": ["export runs/dpo runs/gguf.gguf --type q8_0", f"evaluate runs/gguf.gguf --data {PAIRS} --json"],
    "recommend": [f"""recipe recommend {EXAMPLES}/recipes/recommend.yaml output=runs/recommend sft={{{SHORT}}}
        new_model={{"vocabulary":320,"hidden":32,"layers":2,"heads":2,"context":512,{SHORT}}}
        methods=[{{"name":"s_dpo",{SHORT}}},{{"name":"hard","choose":"hard",{SHORT}}}]
        answers=3 catalogue=4 questions.held_out=8"""],
    # With one prompt in a round, the trainer's process begins an update at the same point in every run.
    "diffusion": [f"""recipe self-improve {EXAMPLES}/recipes/self_improve_pictures.yaml output=runs/diffusion
        model=painter prompts=prompts.jsonl verifier.function=functions.py:judge_picture rounds=4
        prompts_per_round=1 attempts=5 pictures.steps=2 pictures.guidance=2.0 pictures.draws=2
        update.new=1 update.lora={{"rank":4}} update.objective={{"name":"dpo","beta":50}}
        update.training.max_steps=3 update.training.batch_size=2"""],
}  # fmt: skip
"""The arguments of a run's commands. A run writes to runs/NAME or to files named runs/NAME.*"""

FUNCTIONS = """
def score(prompt, responses):
    return [float(len(text) % 7) for text in responses]

def judge_picture(prompt, picture):
    return {"rule": int(picture.sum() * 100) % 3 == 0}
"""
COMPARE = f"""
output: runs/compare
base:
  model: {POLICY}
  data: {{train: pairs.jsonl, held_out: 0.25}}
  training: {{max_steps: 4, batch_size: 6, learning_rate: 1.0e-3}}
methods: [dpo, {{label: simpo, objective: {{name: simpo, beta: 2.0, gamma: 1.0}}}}]
baseline: dpo
seeds: [0, 1]
measure: {{samples: 4, max_new_tokens: 6, reward: {{function: "functions.py:score"}}}}
"""
TEMPLATE = """{% for m in messages %}{{ '<' + m.role + '> ' + m.content + eos_token }}{% endfor %}
{%- if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"""


def write_inputs(folder: Path) -> None:
    """The models, data and functions that the runs read, from fixed seeds."""
    draw = random.Random(0)

    def sentence() -> str:
        return " " + " ".join(draw.choices(WORDS, k=draw.randint(2, 12)))

    prompts = [sentence().strip() for _ in range(32)]
    answers = [[sentence() for _ in range(4)] for _ in prompts]
    both = list(zip(prompts, answers, strict=True))
    pairs = [{"prompt": prompt, "chosen": texts[0], "rejected": texts[1]} for prompt, texts in both]
    scored = [{"prompt": p, "candidates": texts, "scores": [draw.gauss(0, 1) for _ in texts]} for p, texts in both]
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    files: dict[str, list[Any]] = {
        "pairs": pairs,
        PAIRS.removesuffix(".jsonl"): pairs[:8],
        "scores": scored,
        "rankings": scored,
        GROUPS.removesuffix(".jsonl"): scored[:8],
        "groups": [{"prompt": prompt, "candidates": texts, "preferred": 0} for prompt, texts in both],
        "labels": [{"prompt": p, "completion": t, "label": t.count("a") > 3} for p, texts in both for t in texts],
        "prompts": [{"prompt": prompt} for prompt in prompts],
        "questions": [{"prompt": p, "options": texts, "answer": n % 4} for n, (p, texts) in enumerate(both)],
        "chat": [{key: [{"role": roles[key], "content": text}] for key, text in pair.items()} for pair in pairs],
    }
    texts = {f"{name}.jsonl": "".join(json.dumps(row) + "\n" for row in rows) for name, rows in files.items()}
    texts |= {"compare.yaml": COMPARE, "functions.py": FUNCTIONS, "my_reward.py": FUNCTIONS}
    texts["movies.dat"] = "".join(f"i{n}::{WORDS[n % 19].title()} {n} (2013)::Drama\n" for n in range(40))
    texts["ratings.dat"] = "".join(f"u{u}::i{(u + t) % 40}::8::{100 * t + u}\n" for u in range(40) for t in range(14))
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    corpus = [*prompts, *(text for candidates in answers for text in candidates)]
    write_language_model(folder / POLICY, corpus, layers=2, seed=0)
    write_language_model(folder / OTHER, corpus, layers=1, seed=1)
    write_language_model(folder / CHAT, corpus, layers=2, seed=2, template=TEMPLATE)
    write_painter(folder / "painter")


def write_language_model(folder: Path, texts: list[str], layers: int, seed: int, template: str | None = None) -> None:
    """A random Llama and a byte-level tokenizer of these texts."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>"]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", chat_template=template
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2,
        tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def write_painter(folder: Path) -> None:
    """A random text-to-picture model of Stable Diffusion's shape, of pictures of 16 x 16 pixels."""
    import diffusers
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    special = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    words = special | {word: index for index, word in enumerate(WORDS, len(special))}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    torch.manual_seed(3)
    blocks = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4, sample_size=16, **blocks,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                num_attention_heads=2, max_position_embeddings=16, bos_token_id=1, eos_token_id=2, pad_token_id=0,
            )
        ),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
            model_max_length=16,
        ),
        unet=diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, cross_attention_dim=16, attention_head_dim=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **blocks,
        ),
        scheduler=diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


def run_commands(name: str, folder: Path) -> dict[str, Any]:
    """Run a run's commands; its numbers by where they were printed or written."""
    start, numbers = time.perf_counter(), dict[str, Any]()
    # A cache of its own: log-probs that another run left there must not decide what this one computes.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = {**os.environ, **threads, "HF_HUB_OFFLINE": "1", "PENCHANT_CACHE": str(folder / "caches" / name)}
    for command in RUNS[name]:
        arguments = [sys.executable, "-m", "penchant", *command.split()]
        process = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if process.returncode:
            print(f"{name}: penchant {command}\n{process.stderr[-2000:]}", file=sys.stderr)
            return {FAILED: f"penchant {command.split()[0]}: exit code {process.returncode}"}
        if command.endswith("--json"):
            numbers[f"stdout of {command.split()[0]}"] = clean(json.loads(process.stdout), folder)
    outputs = [*(folder / "runs" / name).rglob("*"), *(folder / "runs").glob(f"{name}.*")]
    for file in sorted(outputs):
        if not {"checkpoints", "best"} & set(file.parts):
            numbers |= {f"{file.relative_to(folder / 'runs')}{key}": value for key, value in read_numbers(file, folder)}
    print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return numbers


def read_numbers(file: Path, folder: Path) -> Iterator[tuple[str, Any]]:
    """What a record holds of an output file: its lines, its values or hashes of its tensors; nothing of other files."""
    if file.suffix == ".jsonl" and file.name != "timing.jsonl":
        lines = [clean(json.loads(line), folder) for line in file.read_text(encoding="utf-8").splitlines()]
        if file.parent.name == "runs" or file.name == "metrics.jsonl":
            yield from ((f" {n}", line) for n, line in enumerate(lines, 1))
        else:
            yield "", f"{len(lines)} lines {_hash(json.dumps(lines).encode())}"
    elif file.suffix in (".safetensors", ".gguf"):
        hashes = dict(sorted(hash_tensors(file)))
        few = len(hashes) <= LISTED
        yield "", hashes if few else f"{len(hashes)} tensors {_hash(json.dumps(hashes).encode())}"
    elif file.name == "result.json" or file.parent.name == "rounds":
        yield "", clean(json.loads(file.read_text(encoding="utf-8")), folder)


def hash_tensors(file: Path) -> Iterator[tuple[str, str]]:
    """The name of every tensor of a file, with a hash of its type, shape and values."""
    import torch
    from gguf import GGUFReader
    from safetensors.torch import load_file

    if file.suffix == ".gguf":
        for gguf_tensor in GGUFReader(file).tensors:
            yield (
                gguf_tensor.name,
                _hash(
                    f"{gguf_tensor.tensor_type.name} {gguf_tensor.shape.tolist()}".encode() + gguf_tensor.data.tobytes()
                ),
            )
    else:
        for name, tensor in load_file(file).items():
            content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            yield name, _hash(f"{tensor.dtype} {list(tensor.shape)}".encode() + content)


def _hash(content: bytes) -> str:
    """The first 48 bits of SHA-256."""
    return hashlib.sha256(content).hexdigest()[:12]


def clean(value: Any, folder: Path) -> Any:
    """The value without what depends on the clock, the machine or the folder, and without sentences."""
    if isinstance(value, dict):
        return {key: clean(inner, folder) for key, inner in value.items() if not DROPPED.search(key)}
    if isinstance(value, list):
        return [clean(inner, folder) for inner in value]
    if isinstance(value, str):
        return re.sub(r"\b[0-9a-f]{32,}\b", "FINGERPRINT", value.replace(str(folder), "FOLDER"))
    return value


def run_all(names_wanted: list[str], workers: int) -> dict[str, Any]:
    """The record of all runs, or of some, with the machine they ran on."""
    import torch

    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(workers) as pool:
        folder = Path(temporary).resolve()
        write_inputs(folder)
        for names in (EARLY, [name for name in names_wanted or RUNS if name not in EARLY]):
            runs |= zip(names, pool.map(run_commands, names, [folder] * len(names)), strict=True)
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text() if cpuinfo.exists() else "")
    cpu = f"{models[0] if models else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"
    machine = {"cpu": cpu, "torch": torch.__version__}
    return {"machine": machine, "runs": {name: runs[name] for name in sorted(names_wanted or runs)}}


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every single value, as JSON, by its path."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, json.dumps(value)
    else:
        for key, inner in items:
            yield from flatten(inner, f"{path} > {key}" if path else str(key))


def report(record: dict[str, Any], current: dict[str, Any], names_wanted: list[str]) -> bool:
    """Print `same` or the differing values of every run; whether all are the same."""
    if record["machine"] != current["machine"]:
        print(
            f"warning: recorded on {record['machine']}, checked on {current['machine']}; numbers may differ by rounding"
        )
    names = sorted(names_wanted or record["runs"].keys() | current["runs"].keys())
    equal = True
    for name in names:
        recorded_values, current_values = (dict(flatten(runs["runs"].get(name, {}))) for runs in (record, current))
        keys = [key for key in recorded_values | current_values if recorded_values.get(key) != current_values.get(key)]
        equal = equal and not keys
        print(f"{name}: {f'{len(keys)} of {len(recorded_values | current_values)} values differ' if keys else 'same'}")
        for key in keys[:SHOWN]:
            print(f"  {key}: {recorded_values.get(key, 'absent')} -> {current_values.get(key, 'absent')}")
    return equal


def write_record(record: dict[str, Any], file: Path) -> None:
    """A line for every metrics line, JSON document and tensor, so that a diff shows which changed."""
    runs = []
    for name, numbers in record["runs"].items():
        lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(numbers.items()))
        runs.append(f" {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n }")
    text = f'{{"machine": {json.dumps(record["machine"])},\n"runs": {{\n' + ",\n".join(runs) + "\n}}\n"
    file.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("record", "check"))
    parser.add_argument("file", type=Path, help="the record")
    parser.add_argument("--out", type=Path, help="where a check writes the numbers it has")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", nargs="+", default=[], choices=RUNS, metavar="NAME", help="these runs alone")
    options = parser.parse_args()
    current = run_all(options.only, options.jobs)
    if options.verb == "record":
        if failed := [name for name, numbers in current["runs"].items() if FAILED in numbers]:
            raise SystemExit(f"nothing is recorded: {', '.join(failed)} failed")
        write_record(current, options.file)
        return
    if options.out is not None:
        write_record(current, options.out)
    if not report(json.loads(options.file.read_text(encoding="utf-8")), current, options.only):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
