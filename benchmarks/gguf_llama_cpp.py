"""Largest difference of log-probs between llama.cpp and transformers, for tiny random models of every GGUF family.

    python benchmarks/gguf_llama_cpp.py

llama.cpp comes with the package xllamacpp, in an environment of its own. It computes log-probs of all tokens after each
prefix of one random text. On CPUs it looks a Gemma's GELU up in a table of f16: a second row of each Gemma, whose
feed-forward layers are scaled by 1/128, shows the rest.
"""

import json
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import torch

sys.path.extend([str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests" / "models")])

import gguf_models
from environments import LLAMA_CPP, llama_cpp_python

from penchant.models.gguf.writing import export_gguf
from penchant.models.loading import load_model

LLAMA_CPP_LOG_PROBS = """
import json, os, sys
import xllamacpp
path, letter, ids = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
parameters = xllamacpp.CommonParams()
parameters.model.path = path
parameters.n_ctx, parameters.n_parallel, parameters.verbosity = 256, 1, 0
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(parameters)
request = {"n_predict": 1, "temperature": 0, "n_probs": 10**6, "cache_prompt": False, "logit_bias": [[letter, 1e6]]}
for length in range(1, len(ids) + 1):
    choice = server.handle_completions({"prompt": ids[:length], **request})["choices"][0]
    log_probs = {token["id"]: token["logprob"] for token in choice["logprobs"]["content"][0]["top_logprobs"]}
    print(json.dumps([log_probs[token] for token in sorted(log_probs)]), flush=True)
os._exit(0)
"""
"""Prints a row of log-probs a line, as they are before the bias, which lets the server write a whole character."""


def largest_differences(folder: Path, letter: int) -> list[float]:
    """Largest absolute difference of log-probs, in nats, of the file in f32, f16 and q8_0."""
    ids = torch.randint(5, 300, (1, 90), generator=torch.Generator().manual_seed(1))
    expected = load_model(str(folder))(ids).logits[0].log_softmax(-1)
    differences = []
    for storage_type in ("f32", "f16", "q8_0"):
        file = folder / f"{storage_type}.gguf"
        export_gguf(str(folder), file, storage_type)
        command = [llama_cpp_python(), "-c", LLAMA_CPP_LOG_PROBS, str(file), str(letter), json.dumps(ids[0].tolist())]
        lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        log_probs = torch.tensor([json.loads(line) for line in lines if line.startswith("[")])
        differences.append(float((log_probs - expected).abs().max()))
    return differences


@torch.no_grad()
def main() -> None:
    title = f"{date.today()}, {platform.machine()}, CPU, llama.cpp of xllamacpp {LLAMA_CPP}"
    print(f"{title}\n{'nats':<28}{'f32':>9}{'f16':>9}{'q8_0':>9}")
    for name, (kind, changes) in gguf_models.MODELS.items():
        for label in (name, f"{name}, 1/128") if "gemma" in name else (name,):
            with tempfile.TemporaryDirectory() as folder:
                tokenizer = gguf_models.tokenizer_of(kind)
                gguf_models.build(Path(folder), kind, tokenizer, **changes)
                if label != name:
                    model = load_model(folder)
                    for layer in model.model.layers:
                        layer.post_feedforward_layernorm.weight.add_(1).div_(128).sub_(1)
                    model.save_pretrained(folder)
                differences = largest_differences(Path(folder), tokenizer.convert_tokens_to_ids("e"))
            print(f"{label:<28}{differences[0]:>9.6f}{differences[1]:>9.4f}{differences[2]:>9.3f}", flush=True)


if __name__ == "__main__":
    main()
