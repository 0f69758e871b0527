"""Environments of their own for the sides of a comparison, under benchmarks/.envs/, each made the first time.

Penchant's holds what a user installs. Libraries look for what else is there: transformers alone loads 34 MB of SciPy
where a development tool has brought it along.
"""

from __future__ import annotations

import hashlib
import subprocess
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TRL = "1.16.0"
BFCL = "2026.3.23"
LLAMA_CPP = "2026.10.11549"
"""Of the package xllamacpp."""
AUTOGEN = "0.7.5"
SEMANTIC_KERNEL = "1.45.0"


def penchant_python() -> Path:
    """The interpreter of an environment with this checkout of Penchant, without its extras."""
    return _python("penchant", "-e", str(ROOT))


def trl_python() -> Path:
    """The interpreter of an environment with TRL."""
    return _python(f"trl-{TRL}", f"trl=={TRL}", "torch", "transformers", "peft")


def llama_cpp_python() -> Path:
    """The interpreter of an environment with llama.cpp's server."""
    return _python(f"llama-cpp-{LLAMA_CPP}", f"xllamacpp=={LLAMA_CPP}")


def autogen_python() -> Path:
    """The interpreter of an environment with AutoGen's agents and their client of OpenAI's protocol."""
    return _python(f"autogen-{AUTOGEN}", f"autogen-agentchat=={AUTOGEN}", f"autogen-ext[openai]=={AUTOGEN}")


def semantic_kernel_python() -> Path:
    """The interpreter of an environment with Semantic Kernel."""
    return _python(f"semantic-kernel-{SEMANTIC_KERNEL}", f"semantic-kernel=={SEMANTIC_KERNEL}")


def bfcl_python() -> Path:
    """The interpreter of an environment with the official checker of tool calls, and what the checker itself loads."""
    loaded = ("overrides", "tenacity", "pandas", "tqdm", "filelock", "pydantic", "python-dotenv", "mpmath")
    python = _python(f"bfcl-{BFCL}", *loaded)
    installed = [python, "-m", "pip", "install", "-q", "--no-deps", f"bfcl-eval=={BFCL}"]
    subprocess.run(installed, check=True)
    return python


def _python(name: str, *packages: str) -> Path:
    folder = HERE / ".envs" / name
    python, marker = folder / "bin" / "python", folder / ".installed"
    constraints = ROOT / "constraints.txt"
    requirements = [*packages, constraints.read_text(), (ROOT / "pyproject.toml").read_text()]
    fingerprint = hashlib.sha256("".join(requirements).encode()).hexdigest()
    if not marker.exists() or marker.read_text() != fingerprint:
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-c", constraints, *packages], check=True)
        marker.write_text(fingerprint)
    return python
