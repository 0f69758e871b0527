"""Every mistake a user can make ends in one message that says where, what was found and what to do, and in exit 2."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from penchant.cli.main import run

Refused = Callable[..., str]
ROW = {"prompt": "the old cat", "chosen": " sees a dog", "rejected": " runs"}


@pytest.fixture
def assert_refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command line that must be refused, and gives back its message."""

    def refuse(*arguments: object, says: list[str]) -> str:
        capsys.readouterr()
        assert run([str(argument) for argument in arguments]) == 2
        # Before it may stand a bar of progress.
        _, error, message = capsys.readouterr().err.partition("error: ")
        assert error
        assert "Traceback" not in message
        for part in says:
            assert part in message
        return message

    return refuse


@pytest.fixture
def assert_run_refused(assert_refused: Refused, write_config, tmp_path: Path) -> Refused:
    """Runs `penchant train` on overrides that must be refused before the output folder is touched."""

    def refuse(*overrides: str, says: list[str], **sections: object) -> str:
        message = assert_refused("train", write_config(**sections), *overrides, says=says)
        assert "what to do: " in message
        assert not (tmp_path / "run").exists()
        return message

    return refuse


def write_rows(file: Path, *rows: object) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class TestDataFile:
    """The same reader serves every verb; training is where nothing must be left behind."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return tmp_path / "bad.jsonl"

    def test_missing(self, assert_run_refused, tmp_path):
        write_rows(tmp_path / "pairs.jsonl", ROW)
        path = tmp_path / "pears.jsonl"
        assert_run_refused(
            f"data.train={path}", says=[str(path), "there is no such file", "did you mean", "pairs.jsonl?"]
        )

    def test_empty(self, assert_run_refused, file):
        file.write_text("")
        assert_run_refused(f"data.train={file}", says=["bad.jsonl: it is empty; expected at least one row"])

    def test_bad_json(self, assert_run_refused, file):
        write_rows(file, ROW, ROW)
        with file.open("a") as stream:
            stream.write('{"prompt": "the", "chosen": }\n')
        assert_run_refused(f"data.train={file}", says=["bad.jsonl, line 3: not valid JSON at column 29"])

    def test_missing_column(self, assert_run_refused, file):
        write_rows(file, *[{"prompt": "the", "chosen": " cat", "rejekted": " dog"}] * 2)
        assert_run_refused(
            f"data.train={file}", says=["bad.jsonl: ", "lacks 'rejected' (is it 'rejekted'?)", "data.columns="]
        )

    def test_wrong_type(self, assert_run_refused, file):
        write_rows(file, ROW, {**ROW, "chosen": 7})
        assert_run_refused(
            f"data.train={file}", "data.format=pairs", says=["bad.jsonl, line 2", "'chosen'", "a number, 7", "expected"]
        )

    def test_candidate_without_tokens(self, assert_run_refused, file):
        write_rows(file, ROW, {**ROW, "rejected": ""})
        assert_run_refused(
            f"data.train={file}",
            "data.held_out=null",
            says=["bad.jsonl, group 1: candidate 1 is empty", "1 of 2 groups", "data.empty=drop"],
        )

    def test_chosen_equals_rejected(self, assert_run_refused, file):
        write_rows(file, {**ROW, "id": "seven", "rejected": ROW["chosen"]}, ROW)
        assert_run_refused(
            f"data.train={file}",
            "data.held_out=null",
            says=["bad.jsonl, group seven: candidate 0 is said to be better than candidate 1", "data.identical=drop"],
        )

    def test_empty_candidate_in_the_held_out_file_names_that_file(self, assert_run_refused, file):
        write_rows(file, {**ROW, "chosen": " "})
        assert_run_refused(f"data.held_out={file}", says=["bad.jsonl, group 0: candidate 0 is empty"])

    def test_one_candidate_for_a_pairwise_loss(self, assert_run_refused, file):
        write_rows(file, *[{"prompt": "the", "completion": " cat"}] * 2)
        assert_run_refused(
            f"data.train={file}",
            "data.held_out=null",
            says=["bad.jsonl: dpo compares at least 2 candidates, 2 of 2 groups have fewer", "objective.name=sft"],
        )

    def test_ties_alone_for_a_pairwise_loss(self, assert_run_refused, file):
        write_rows(file, {"prompt": "the", "candidates": [" cat", " dog"], "scores": [1, 1]})
        assert_run_refused(f"data.train={file}", "data.held_out=null", says=["no group says which candidate is better"])

    def test_mixed_formats(self, assert_run_refused, file):
        write_rows(file, ROW, ROW, {"prompt": "the", "completion": " cat", "label": True})
        assert_run_refused(
            f"data.train={file}",
            says=["rows of several formats: pairs (2 rows, first: bad.jsonl, line 1); unpaired (1 row"],
        )

    def test_not_utf8(self, assert_run_refused, file):
        write_rows(file, ROW)
        with file.open("ab") as stream:
            stream.write('{"prompt": "caf\u00e9"}\n'.encode("latin-1"))
        assert_run_refused(
            f"data.train={file}", says=["bad.jsonl, line 2: byte 0xe9 at offset", "is not UTF-8", "iconv"]
        )

    def test_gzip_that_ends_early(self, assert_run_refused, tmp_path):
        file = tmp_path / "bad.jsonl.gz"
        whole = gzip.compress(b"".join(json.dumps({**ROW, "id": i}).encode() + b"\n" for i in range(500)))
        file.write_bytes(whole[: len(whole) // 2])
        assert_run_refused(
            f"data.train={file}", says=["bad.jsonl.gz: the gzip data is cut or damaged", "copy it again"]
        )

    def test_parquet_with_null_cells(self, assert_run_refused, tmp_path):
        import pyarrow
        import pyarrow.parquet

        file = tmp_path / "bad.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROW, {**ROW, "rejected": None}]), file)
        assert_run_refused(
            f"data.train={file}", says=["bad.parquet, row 2: column 'rejected' is null; expected a value"]
        )

    def test_held_out_file_missing(self, assert_run_refused, tmp_path):
        assert_run_refused(f"data.held_out={tmp_path / 'none.jsonl'}", says=["none.jsonl: there is no such file"])

    def test_share_that_holds_out_nothing(self, assert_run_refused, file):
        write_rows(file, ROW)
        assert_run_refused(f"data.train={file}", says=["bad.jsonl: a share of 0.25 of 1 prompts leaves one side empty"])

    def test_hub_id_while_offline(self, assert_run_refused):
        assert_run_refused(
            "data.train=nobody/nothing", says=["nobody/nothing: ", "the hub did not give", "name a local file"]
        )


class TestConfiguration:
    def test_unknown_keys_name_the_nearest(self, assert_run_refused):
        assert_run_refused(
            training={"learning_rte": 1e-3}, says=["run.yaml: 1 problem", "training.learning_rte", "learning_rate?"]
        )

    @pytest.mark.parametrize(
        ("override", "says"),
        [
            ("training.batch_size=many", ["training.batch_size: ", "valid integer", "found 'many'"]),
            ("training.batch_size=0", ["training.batch_size: ", "greater than or equal to 1", "found 0"]),
            ("training.learning_rate=.inf", ["training.learning_rate: ", "finite", "found inf"]),
            ("training.schedule=square", ["training.schedule: ", "'cosine', 'linear' or 'constant'", "'square'"]),
            ("data.held_out=1.5", ["data.held_out", "between 0 and 1", "found 1.5"]),
            ("objective.beta=-1", ["objective: beta is -1.0, expected a number above 0"]),
            ("objective.beta=high", ["objective.beta: ", "valid number"]),
            ("objective.betta=1", ["objective.betta: dpo has no such hyper-parameter (did you mean beta?)"]),
            ("objective.name=dpoo", ["objective.name: 'dpoo' is no objective (did you mean dpo?)", "one of: "]),
            ("objective.beta.high=1", ["objective.beta.high: "]),
        ],
    )
    def test_values(self, assert_run_refused, override, says):
        sections = {"objective": {"beta": 0.1}} if override.startswith("objective.beta.") else {}
        assert_run_refused(override, says=says, **sections)

    def test_all_problems_at_once(self, assert_run_refused):
        assert_run_refused(
            "training.batch_size=0",
            "objective.beta=-1",
            "modle=x",
            says=["3 problem(s)", "training.batch_size", "beta is -1.0", "modle: there is no such key (did you mean m"],
        )

    def test_key_that_is_needed(self, assert_refused, tmp_path):
        file = tmp_path / "run.yaml"
        file.write_text("model: x\ndata: y.jsonl\nobjective: {name: dpo}\n")
        assert_refused("train", file, says=[str(file), "output: this key is needed"])

    @pytest.mark.parametrize("override", ["training.learning_rate", "=3", "0.1"])
    def test_override_that_is_none(self, assert_run_refused, override):
        assert_run_refused(override, says=[f"{override!r} is not of the form key=value"])

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("model: [a\noutput: b", ["this is not YAML", "line 2"]),
            ("just a sentence", ["the file has no keys"]),
            ("", ["the file has no keys"]),
            ("model: {}\n", ["model: "]),
        ],
    )
    def test_yaml_without_keys(self, assert_refused, tmp_path, text, says):
        file = tmp_path / "run.yaml"
        file.write_text(text)
        assert "what to do: " in assert_refused("train", file, says=[str(file), *says])

    def test_yaml_that_is_not_utf8(self, assert_refused, tmp_path):
        file = tmp_path / "run.yaml"
        file.write_bytes(b"model: caf\xe9\n")
        assert "what to do: " in assert_refused("train", file, says=[str(file), "byte 10 is not UTF-8"])

    def test_yaml_missing(self, assert_refused, tmp_path):
        file = tmp_path / "none.yaml"
        assert_refused("train", file, says=[f"{file}: there is no such file", "what to do: "])

    def test_folder_without_resume(self, assert_refused, tmp_path):
        assert_refused("train", tmp_path, says=[f"{tmp_path}: this is a folder", f"penchant train --resume {tmp_path}"])

    def test_resume_of_a_folder_without_a_run(self, assert_refused, tmp_path):
        assert_refused("train", tmp_path, "--resume", says=[f"{tmp_path}: the folder contains no run", "what to do: "])
        assert contents(tmp_path) == {}

    def test_max_length_above_the_context(self, assert_run_refused):
        assert_run_refused(
            "data.max_length=500",
            says=["data.max_length is 500, the model's context is 128 tokens", "data.max_length=128"],
        )

    def test_prompt_longer_than_the_context(self, assert_run_refused, tmp_path):
        file = write_rows(tmp_path / "long.jsonl", ROW, {**ROW, "prompt": "cat " * 200})
        assert_run_refused(
            f"data.train={file}",
            "data.held_out=null",
            says=["long.jsonl, group 1: ", "tokens with the longest response, data.max_length is 128", "=drop"],
        )

    def test_output_that_holds_another_run(self, assert_refused, write_config, tmp_path):
        folder = tmp_path / "run"
        folder.mkdir()
        (folder / "run.json").write_text("{}")
        (folder / "config.yaml").write_text("model: other\n")
        contents_before = contents(folder)
        assert_refused("train", write_config(), says=["another run", str(folder), f"--resume {folder}", "output=DIR"])
        assert contents(folder) == contents_before

    def test_output_that_is_a_file(self, assert_refused, write_config, tmp_path):
        (tmp_path / "run").write_text("thesis")
        assert_refused("train", write_config(), says=["output is a file", "name a folder"])
        assert (tmp_path / "run").read_text() == "thesis"


class TestModelFolder:
    @pytest.fixture
    def model(self, tmp_path: Path, tiny_model: Path) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny_model, folder)
        return folder

    def test_absent(self, assert_run_refused, tmp_path):
        assert_run_refused(
            f"model={tmp_path / 'no-model'}", says=["no-model: there is no such folder", "check the path"]
        )

    def test_absent_under_a_relative_name(self, assert_run_refused):
        assert_run_refused("model=no-model", says=["no-model: there is no such folder", "org/name"])

    def test_a_file(self, assert_run_refused, tmp_path, write_config):
        assert_run_refused(f"model={write_config()}", says=["run.yaml: this is a file; a model is a folder"])

    def test_hub_id_while_offline(self, assert_run_refused):
        assert_run_refused(
            "model=nobody/nothing", says=["nobody/nothing: this is no local folder", "download it first"]
        )

    def test_without_config(self, assert_run_refused, model):
        (model / "config.json").unlink()
        assert_run_refused(f"model={model}", says=[f"{model}: the folder has no config.json"])

    def test_with_a_config_that_is_not_json(self, assert_run_refused, model):
        (model / "config.json").write_text("{")
        assert_run_refused(f"model={model}", says=[f"{model}: it cannot be loaded"])

    def test_without_weights(self, assert_run_refused, model):
        (model / "model.safetensors").unlink()
        assert_run_refused(f"model={model}", says=[f"{model}: ", "no weights (*.safetensors)", "download the weights"])

    def test_without_tokenizer(self, assert_run_refused, model):
        for file in model.glob("token*"):
            file.unlink()
        assert_run_refused(
            f"model={model}", says=[f"{model}: the folder has no tokenizer", "tokenizer.save_pretrained"]
        )

    def test_without_a_chat_template_for_conversations(self, assert_run_refused, tmp_path, tiny_model):
        row = {
            "prompt": [{"role": "user", "content": "the old cat"}],
            "chosen": [{"role": "assistant", "content": "sees"}],
            "rejected": [{"role": "assistant", "content": "runs"}],
        }
        file = write_rows(tmp_path / "chat.jsonl", row)
        assert_run_refused(
            f"data.train={file}",
            "data.held_out=null",
            says=[f"{tiny_model}: ", "the tokenizer has no chat template", "data.chat_template=FILE"],
        )

    @pytest.mark.parametrize(("content", "says"), [(None, "No such file"), (b"{{ \xe9 }}", "not UTF-8")])
    def test_chat_template_that_cannot_be_read(self, assert_run_refused, tmp_path, content, says):
        file = tmp_path / "template.jinja"
        if content is not None:
            file.write_bytes(content)
        assert_run_refused(f"data.chat_template={file}", says=[f"{file}: the chat template cannot be read", says])

    def test_truncated_weights(self, assert_run_refused, model):
        os.truncate(model / "model.safetensors", 2000)
        assert_run_refused(f"model={model}", says=[f"{model}: it cannot be loaded", "get the whole folder again"])

    def test_weight_missing_inside_the_file_is_never_random(self, assert_run_refused, model):
        from safetensors.torch import load_file, save_file

        tensors = load_file(model / "model.safetensors")
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
        says = [f"{model}: 1 weights", "model.layers.1.mlp.up_proj.weight", "random numbers"]
        assert_run_refused(f"model={model}", says=says)

    def test_weight_of_another_shape(self, assert_run_refused, model):
        values = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**values, "intermediate_size": 48}))
        assert_run_refused(f"model={model}", says=[f"{model}: "])

    def test_tokenizer_larger_than_the_embedding(self, assert_run_refused, model):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model)
        tokenizer.add_tokens(["hamster", "newt"])
        highest = len(tokenizer) - 1
        tokenizer.save_pretrained(model)
        says = [f"{model}: the tokenizer has token ids up to {highest}", f"{highest - 1} rows", "resize_token"]
        assert_run_refused(f"model={model}", says=says)

    def test_lora_targets_that_match_nothing(self, assert_run_refused):
        assert_run_refused(lora={"rank": 2, "targets": ["q_prj"]}, says=["lora.targets: ", "q_prj", "all-linear"])

    def test_metric_that_does_not_exist(self, assert_run_refused):
        says = ["evaluation.metric is 'acuracy', which dpo does not have", "rewards/accuracies"]
        assert_run_refused("evaluation.every=1", "evaluation.metric=acuracy", says=says)

    def test_metric_without_a_direction(self, assert_run_refused):
        says = ["evaluation.metric is 'rewards/ties', which is better neither higher nor lower", "rewards/margins"]
        assert_run_refused("evaluation.every=1", "evaluation.metric=rewards/ties", says=says)

    def test_patience_without_evaluations(self, assert_run_refused):
        assert_run_refused("evaluation.patience=2", says=["evaluation.patience is 2, and evaluation.every is null"])

    def test_frozen_backbone_without_a_head(self, assert_run_refused):
        assert_run_refused("head.freeze_backbone=true", says=["head.freeze_backbone is true, and dpo has no head"])


class TestOtherVerbs:
    def test_generate_from_a_file_that_is_missing(self, assert_refused, tiny_model, tmp_path):
        file = tmp_path / "none.jsonl"
        assert_refused("generate", tiny_model, file, says=[f"{file}: there is no such file", "what to do: "])

    def test_generate_from_nothing(self, assert_refused, tiny_model):
        assert_refused("generate", tiny_model, "", says=["the prompt is empty", "what to do: "])

    @pytest.mark.parametrize(
        "flag",
        [
            "--samples=0",
            "--max-new-tokens=0",
            "--temperature=-1",
            "--top-p=0",
            "--top-p=1.5",
            "--seed=-1",
            "--batch-size=0",
            "--limit=0",
        ],
    )
    def test_generate_with_a_number_out_of_range(self, assert_refused, tiny_model, flag):
        assert_refused("generate", tiny_model, "the cat", flag, says=[flag.partition("=")[0], "Must be"])

    @pytest.mark.parametrize("flag", ["--beta=0", "--max-length=1", "--token-budget=0"])
    def test_evaluate_with_a_number_out_of_range(self, assert_refused, tiny_model, tiny_pairs, flag):
        assert_refused("evaluate", tiny_model, "--data", tiny_pairs, flag, says=[flag.partition("=")[0], "Must be"])

    def test_evaluate_beyond_the_context(self, assert_refused, tiny_model, tiny_pairs):
        says = ["the length limit is 4000", "128 tokens"]
        assert_refused("evaluate", tiny_model, "--data", tiny_pairs, "--max-length=4000", says=says)

    def test_evaluate_names_the_file_of_a_bad_group(self, assert_refused, tiny_model, tmp_path):
        file = write_rows(tmp_path / "blank.jsonl", {**ROW, "rejected": " "})
        assert_refused("evaluate", tiny_model, "--data", file, says=[f"{file}, group 0", "empty"])

    def test_evaluate_into_a_place_that_cannot_be_written(self, assert_refused, tiny_model, tiny_pairs, tmp_path):
        (tmp_path / "file").write_text("x")
        path = tmp_path / "file" / "lines.jsonl"
        arguments = ["evaluate", tiny_model, "--data", tiny_pairs, "--per-example", path]
        assert_refused(*arguments, says=[str(path), "cannot be written", "what to do: "])

    def test_evaluate_without_a_model(self, assert_refused, tiny_pairs, tmp_path):
        says = [f"{tmp_path / 'none'}: there is no such folder"]
        assert_refused("evaluate", tmp_path / "none", "--data", tiny_pairs, says=says)

    def test_check_a_length_without_a_tokenizer(self, assert_refused, tiny_pairs):
        says = ["--max-length counts tokens, and no tokenizer is given", "--tokenizer MODEL"]
        assert_refused("data", "check", tiny_pairs, "--max-length", 9, says=says)

    def test_show_an_unknown_id(self, assert_refused, tiny_pairs):
        assert_refused(
            "data", "show", tiny_pairs, "row-99", says=[f"{tiny_pairs}: no group has the id row-99", "what to do"]
        )

    def test_split_onto_an_existing_file(self, assert_refused, tiny_pairs, tmp_path):
        train_file, out = tmp_path / "train.jsonl", tmp_path / "held-out.jsonl"
        out.write_text("mine")
        arguments = ["data", "split", tiny_pairs, "--train-output", train_file, "--held-out-output", out]
        assert_refused(*arguments, says=[f"{out}: the file exists already", "name a new file"])
        assert contents(tmp_path) == {"held-out.jsonl": b"mine"}

    def test_split_onto_one_file(self, assert_refused, tiny_pairs, tmp_path):
        out = tmp_path / "both.jsonl"
        assert_refused("data", "split", tiny_pairs, "--train-output", out, "--held-out-output", out, says=[str(out)])
        assert contents(tmp_path) == {}

    def test_convert_onto_an_existing_file(self, assert_refused, tiny_pairs, tmp_path):
        out = tmp_path / "out.jsonl"
        out.write_text("mine")
        assert_refused("data", "convert", tiny_pairs, out, says=[f"{out}: the file exists already"])
        assert out.read_text() == "mine"


class TestCommandLine:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["trian", "run.yaml"], ["trian"]),
            (["evaluate", "model", "--data", "x", "--refrence", "y"], ["--refrence"]),
            (["evaluate", "model"], ["--data"]),
            (["evaluate", "model", "--data", "x", "--beta", "high"], ["--beta", "high"]),
            (["evaluate", "model", "--data", "x", "--truncation", "cut"], ["--truncation", "cut"]),
            (["data", "chek", "x"], ["chek"]),
        ],
    )
    def test_mistyped(self, assert_refused, arguments, says):
        assert_refused(*arguments, says=says)

    def test_unexpected_failure_exits_with_1_and_shows_where(self, capsys, monkeypatch, tiny_pairs, tmp_path):
        def fail(*arguments: object, **options: object) -> None:
            raise RuntimeError("a defect of ours")

        monkeypatch.setattr("penchant.data.reading.read_groups", fail)
        assert run(["data", "convert", str(tiny_pairs), str(tmp_path / "out.jsonl")]) == 1
        message = capsys.readouterr().err
        assert "Traceback" in message
        assert "RuntimeError: a defect of ours" in message

    def test_interrupted(self, capsys, monkeypatch, tiny_pairs, tmp_path):
        def pressed(*arguments: object, **options: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("penchant.data.reading.read_groups", pressed)
        assert run(["data", "convert", str(tiny_pairs), str(tmp_path / "out.jsonl")]) == 130
        assert "interrupted" in capsys.readouterr().err

    def test_process_exits_with_2(self, tmp_path, monkeypatch, run_penchant):
        monkeypatch.chdir(tmp_path)
        process = run_penchant("train", "missing.yaml")
        assert process.returncode == 2
        assert process.stdout == ""
        assert process.stderr.startswith("error: missing.yaml: there is no such file")
        assert "Traceback" not in process.stderr


def test_configuration_of_these_tests_is_otherwise_valid(write_config):
    """Else the refusals above could have another cause."""
    from penchant.config.run import load_config

    file = write_config()
    assert load_config(file).output == yaml.safe_load(file.read_text())["output"]
