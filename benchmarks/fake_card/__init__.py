"""A CUDA device without data on a build of torch without CUDA, for counting what a card would be asked to do."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("guard.cpp")
COMPILER = os.environ.get("CXX", "g++")


def has_compiler() -> bool:
    """Whether the C++ compiler that builds the device is there."""
    return shutil.which(COMPILER) is not None


def load() -> None:
    """Build the device once for this torch, in the user's cache, and register it with this process's torch.

    It is of compute capability 9.0, and autocast acts on it too, in bfloat16.
    """
    specification = importlib.util.find_spec("torch")
    assert specification is not None
    assert specification.origin is not None
    torch_folder = Path(specification.origin).parent
    version = (torch_folder / "version.py").read_bytes()
    key = hashlib.sha256(SOURCE.read_bytes() + version + str(torch_folder).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "penchant-benchmarks"
    library = cache / f"fake_card-{key}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            new_library = Path(folder) / library.name
            libraries = torch_folder / "lib"
            options = ["-O0", "-std=c++20", "-fPIC", "-shared", f"-I{torch_folder / 'include'}"]
            linking = [f"-L{libraries}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{libraries}"]
            subprocess.run([COMPILER, *options, SOURCE, "-o", new_library, *linking], check=True)
            new_library.replace(library)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    import torch

    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
