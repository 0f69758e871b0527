"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import importlib.util
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import yaml

WriteConfig = Callable[..., Path]
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets and a tiny real model, kept beside the checkout during development; users do not have them."""
    folder = Path(os.environ.get("PENCHANT_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found: {folder.name}/ is absent beside the checkout")
    return folder


QUICK_CASES = pytest.StashKey[dict[tuple[str, str], bool]]()
"""By test and beginning of ids that its mark `slow_but` names: whether there is such a case."""


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses by marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    """Mark slow cases; files with any come first, as a long test that starts last keeps one process waiting."""
    quick_cases = config.stash.setdefault(QUICK_CASES, {})
    for item in items:
        if marker := item.get_closest_marker("slow_but"):
            for start in marker.args:
                key = (item.nodeid.partition("[")[0], start)
                quick_cases[key] = item.callspec.id.startswith(start) or quick_cases.get(key, False)
            if not item.callspec.id.startswith(marker.args):
                item.add_marker("slow")
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow_files)


def pytest_collection_finish() -> None:
    """Once all modules are imported, save what each run of a test would pay for them."""
    # Without such a device torch formats the stack at each seed, to show it in an error later; pytest's is deep.
    for name in ("torch.cuda", "torch.xpu", "torch.mtia"):
        if name in sys.modules:
            sys.modules[name].traceback = SimpleNamespace(format_stack=list)
    # A run ends with a collection of garbage, which need not go through the modules and the tests.
    gc.collect()
    gc.freeze()
    _cpu_seconds_before.append(_cpu_seconds())


UNMARKED_CPU_SECONDS = 10.0
"""A test that takes more of the processor, with the fixtures made for it, should be marked slow."""

_cpu_seconds_before: list[float] = []


def _cpu_seconds() -> float:
    """Seconds of the processor that this process and those that it waited for have taken; steady on a busy machine."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note with a test's report what it took of the processor, its fixtures included."""
    report = yield
    if report.when == "call" and item.get_closest_marker("slow") is None:
        report.user_properties.append(("cpu", _cpu_seconds() - _cpu_seconds_before[-1]))
    if report.when == "teardown":
        _cpu_seconds_before[:] = [_cpu_seconds()]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that are slow and not marked. No failure: what is slow depends on the machine."""
    for report in terminalreporter.stats.get("passed", ()):
        seconds = dict(report.user_properties).get("cpu", 0.0)
        if seconds > UNMARKED_CPU_SECONDS:
            terminalreporter.write_line(f"{report.nodeid} took {seconds:.0f} s of the processor and is not marked slow")


@pytest.fixture(scope="session", autouse=True)
def _cache_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Paths of new folders: `mktemp` reads the names of all earlier ones. Set for fixtures of a wider scope too."""
    parent = tmp_path_factory.mktemp("cache")
    os.environ["PENCHANT_CACHE"] = str(parent / "session")
    return (parent / str(number) for number in count())


@pytest.fixture(autouse=True)
def _own_cache(_cache_folders: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's reference cache."""
    monkeypatch.setenv("PENCHANT_CACHE", str(next(_cache_folders)))


@pytest.fixture(autouse=True)
def _charts_unrendered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have their charts made of their values and not rendered, where charts are not what is tested.

    Rendering takes Matplotlib longer than a tiny run takes. tests/evaluation and tests/comparison render them, as do
    fixtures of a module's run and all processes beside this one.
    """
    if not {"evaluation", "comparison"} & {*request.path.relative_to(REPOSITORY / "tests").parts}:
        monkeypatch.setattr(
            "penchant.evaluation.figures._markup", lambda figure, title: f'<svg role="img" aria-label="{title}"></svg>'
        )


@pytest.fixture
def missing_quick_cases(request: pytest.FixtureRequest) -> list[tuple[str, str]]:
    """Tests that would have no quick case of a kind, because their mark `slow_but` names one that they lack."""
    if any("[" in argument for argument in request.config.args):
        pytest.skip("single cases were asked for")
    return [test for test, is_there in request.config.stash[QUICK_CASES].items() if not is_there]


class Started:
    """A process of the command line; it has what the tests use of `subprocess.Popen`."""

    def __init__(
        self,
        ask: Callable[..., int | None],
        arguments: tuple[object, ...],
        stdout: str | Path,
        stderr: str | Path,
        variables: Mapping[str, str],
    ) -> None:
        self._ask = ask
        self.returncode: int | None = None
        self.pid = ask(
            arguments=[*map(str, arguments)],
            environment={**os.environ, **variables},
            folder=os.getcwd(),
            stdout=str(stdout),
            stderr=str(stderr),
        )

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._ask(pid=self.pid)
        return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        deadline, pause = time.monotonic() + timeout, 0.001
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("penchant", timeout)
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return self.returncode

    def send_signal(self, number: int) -> None:
        # Until it was asked for its exit code, the process keeps its id.
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


@pytest.fixture(scope="session")
def start_penchant() -> Iterator[Callable[..., Started]]:
    """Start the command line with these arguments, as `python -m penchant` does but without seconds of imports.

    With -c and a program it starts that.
    For tests that start it many times. All it starts have one seed of Python's hashes; a run's end by a plain process
    has another. `stdout` and `stderr` are files for what it prints, `variables` are added to the environment.
    """
    # Without the variable, numpy starts threads where there are more cores.
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("zygote.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,
    )

    def ask(**request: object) -> int | None:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        answer = json.loads(line) if line else f"ended with {process.wait(60)}"
        if isinstance(answer, str):
            raise RuntimeError(f"zygote.py: {answer}")
        return answer

    def start(
        *arguments: object,
        stdout: str | Path = os.devnull,
        stderr: str | Path = os.devnull,
        variables: Mapping[str, str] | None = None,
    ) -> Started:
        return Started(ask, arguments, stdout, stderr, variables or {})

    yield start
    process.stdin.close()
    process.wait(60)


@pytest.fixture
def start_ranks(
    start_penchant: Callable[..., Started], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., list[tuple[Started, Path, Path]]]:
    """Start the command line on a number of processes, with the variables that torchrun sets.

    Of every rank the process, the file of what it prints and that of its errors.
    """

    def start(
        processes: int, *arguments: object, variables: Mapping[str, str] | None = None
    ) -> list[tuple[Started, Path, Path]]:
        with socket.socket() as port_holder:
            port_holder.bind(("127.0.0.1", 0))
            port = str(port_holder.getsockname()[1])
        world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **(variables or {})}
        folder, ranks = tmp_path_factory.mktemp("ranks"), []
        for rank in range(processes):
            stdout, stderr = folder / f"{rank}.out", folder / f"{rank}.err"
            environment = {**world, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = start_penchant(*arguments, stdout=stdout, stderr=stderr, variables=environment)
            ranks.append((process, stdout, stderr))
        return ranks

    return start


@pytest.fixture
def run_penchant(
    start_penchant: Callable[..., Started], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line with these arguments to its end, as `start_penchant` does; its code and what it printed."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        folder = tmp_path_factory.mktemp("printed")
        stdout, stderr = folder / "stdout", folder / "stderr"
        code = start_penchant(*arguments, stdout=stdout, stderr=stderr).wait(120)
        return subprocess.CompletedProcess(arguments, code, stdout.read_text(), stderr.read_text())

    return run


SENTENCE = "the old cat sees a big dog then it runs to small house by river tree bird sings likes finds ."
WORDS = SENTENCE.split()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random Llama and a word-level tokenizer that puts <s> in front."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny") / "model"
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def multimodal_models() -> ModuleType:
    """`multimodal_models.py` beside this file: tiny checkpoints of several families."""
    spec = importlib.util.spec_from_file_location("multimodal_models", REPOSITORY / "tests" / "multimodal_models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def multimodal_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, multimodal_models: ModuleType
) -> Callable[[str], Path]:
    """The folder of a family's tiny multimodal checkpoint; not to be changed."""
    folders: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp("multimodal") / family
            multimodal_models.write_multimodal(family, folders[family], tiny_model)
        return folders[family]

    return make


@pytest.fixture(scope="session")
def tiny_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 pairs of random sentences over 24 prompts; the chosen one is the one with more cats."""
    draw = random.Random(0)

    def sentence() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(2, 12)))

    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    prompts = [sentence() for _ in range(24)]
    with file.open("w", encoding="utf-8") as stream:
        for number in range(48):
            row = {
                "id": f"row-{number}",
                "prompt": prompts[number % 24],
                "chosen": f" cat {sentence()} cat",
                "rejected": f" {sentence()}",
            }
            stream.write(json.dumps(row) + "\n")
    return file


@pytest.fixture
def notices(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The library's log records from level INFO; `notices.messages` holds their texts."""
    caplog.set_level("INFO", logger="penchant")
    caplog.handler.addFilter(logging.Filter("penchant"))
    return caplog


@pytest.fixture
def write_config(tmp_path: Path, tiny_model: Path, tiny_pairs: Path) -> WriteConfig:
    """Write a small run's YAML; sections passed override the defaults."""

    def write(**sections: object) -> Path:
        values: dict[str, object] = {
            "model": str(tiny_model),
            "data": {"train": str(tiny_pairs), "held_out": 0.25},
            "output": str(tmp_path / "run"),
            "objective": {"name": "dpo"},
            "training": {"max_steps": 6, "batch_size": 8, "token_budget": 128, "learning_rate": 1e-3},
            "evaluation": {"samples": 1, "sample_tokens": 4},
            "logging": {"every": 1},
            "checkpoints": {"every": 2},
        }
        for name, section in sections.items():
            default = values.get(name)
            merged = isinstance(default, dict) and isinstance(section, dict)
            values[name] = {**default, **section} if merged else section  # type: ignore[dict-item]
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        return file

    return write


@pytest.fixture
def full_at_the_second_save(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """The disk is full at the second checkpoint; `monkeypatch.undo` makes room again. Returns a mark for each save."""
    from penchant.training import checkpoints

    marks: list[None] = []
    write_shards = checkpoints.write_shards

    def full(*args: object, **kwargs: object) -> object:
        marks.append(None)
        if len(marks) == 2:
            raise OSError(28, "No space left on device")
        return write_shards(*args, **kwargs)

    monkeypatch.setattr(checkpoints, "write_shards", full)
    return marks


class SmallDisk:
    """A file system of its own whose room a test decides.

    Attributes:
        folder: where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resize(self, kilobytes: int) -> None:
        """Set the bytes that it can hold from now on."""
        options = f"remount,size={kilobytes}k"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.folder], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """An empty file system in memory, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, text=True, check=False
        )
    except OSError as error:
        pytest.skip(f"no small file system can be mounted here: {error}")
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield SmallDisk(folder)
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="session")
def small_denoiser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of pictures of 16 pixels that knows the shapes' words, without a VAE."""
    from pictures import build_denoiser
    from shapes import prompts

    folder = tmp_path_factory.mktemp("small_denoiser") / "model"
    build_denoiser(folder, [prompt.text for prompt in prompts()], 16, (32, 64), seed=0)
    return folder


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of Stable Diffusion's shape, as its own pipeline saves it; pictures of 16 pixels, latents of 8."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from pictures import word_tokenizer
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = word_tokenizer(["a red circle above a blue square"])
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("stable_diffusion") / "model"
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=tokenizer.model_max_length,
                eos_token_id=tokenizer.eos_token_id,
            )
        ),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        ),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder
