"""`penchant export`, through the command line as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penchant.cli.main import run
from penchant.recipes.small_llama import Sizes, build_small_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with byte-level BPE. Its rows are 40 long, no whole blocks of 32, but for those of ffn_down: 96."""
    folder = tmp_path_factory.mktemp("small") / "model"
    build_small_llama(folder, ["the old cat sees a big dog"], Sizes(300, 40, 2, 2, 64), seed=0)
    return folder


def test_exported_file_can_generate(model, tmp_path, capsys):
    file = tmp_path / "small.gguf"
    assert run(["export", str(model), str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: {file.stat().st_size / 2**20:.1f} MiB; tensors: 5 in f32, 15 in f16\n"
    assert run(["generate", str(file), "the old", "--max-new-tokens", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_matrices_that_stay_f16_are_reported(model, tmp_path, capsys):
    file = tmp_path / "small.gguf"
    assert run(["export", str(model), str(file), "--type", "q8_0", "--json"]) == 0
    out, notes = capsys.readouterr()
    document = json.loads(out)
    assert (
        "13 matrices stay f16, because the length of their rows is no multiple of 32; the first is token_embd.weight"
        in notes
    )
    assert document["tensors"] == {"f16": 13, "f32": 5, "q8_0": 2}
    assert document["bytes"] == file.stat().st_size
    assert len(document["kept_apart"]) == 13
    assert document["notes"] == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere/model", "a.gguf"], ["nowhere/model"]),
        (["{model}", "a.bin"], ["a.bin", "ends in .gguf", "a.bin.gguf"]),
        (["{model}", "there.gguf"], ["there.gguf: it is there already"]),
        (["{model}", "a.gguf", "--type", "q4_0"], ["q4_0"]),
        (["there.gguf", "a.gguf"], ["there.gguf: it cannot be loaded: "]),
        (["{tiny}", "a.gguf"], ["the tokenizer's model is WordLevel"]),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(arguments, says, model, tiny_model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("there.gguf").write_text("mine")
    assert run(["export", *(argument.format(model=model, tiny=tiny_model) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for part in says:
        assert part in error
    assert [entry.name for entry in tmp_path.iterdir()] == ["there.gguf"]
    assert Path("there.gguf").read_text() == "mine"


def test_file_size_limit_leaves_no_partial_file(model, tmp_path, run_penchant):
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    code = limit + "from penchant.cli.main import run; sys.exit(run(sys.argv[1:]))"
    process = run_penchant("-c", code, "export", model, tmp_path / "a.gguf")
    assert process.returncode == 2
    assert "a.gguf: it cannot be written: " in process.stderr
    assert "Traceback" not in process.stderr
    assert list(tmp_path.iterdir()) == []
