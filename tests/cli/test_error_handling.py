"""Any failure is one message on stderr, with `--json` also an object on stdout, and an exit code."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bertcli.cli.main import app
from bertcli.errors import DataError


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Result:
    """Call a command that raises `error`."""

    def report(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("bertcli.commands.report.report", report)
    return call("report", "runs/one", "--json")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (("finetune", "glue/sst9", "--json"), 2, "Did you mean glue/sst2"),
        (("finetune", "glue/sst2", "epochs=3", "lr=3", "--json"), 2, "training.epochs?\ncommand line: "),
        (("eval", ".", "--json"), 1, "without config.json"),
        (("finetune", "--json"), 2, "Missing argument 'RECIPE'"),
        (("finetune", "glue/sst2", "--json", "--nonsense"), 2, "No such option: --nonsense"),
        (("finetune", "glue/sst2", "--json", "--jobs", "many"), 2, "Invalid value for '--jobs'"),
        (("recipes", "diff", "glue/sst9", "glue/sst2", "--json"), 2, "Did you mean glue/sst2"),
    ],
)
def test_json_prints_an_error_object_on_failure(arguments: tuple[str, ...], exit_code: int, words: str) -> None:
    result = call(*arguments)
    error = json.loads(result.stdout)
    assert error.keys() == {"error", "exit_code"}
    assert error["exit_code"] == result.exit_code == exit_code
    assert words in error["error"]
    assert not error["error"].startswith("error: ")
    assert result.stderr  # people read that


class PanicError(BaseException):
    """Like pyo3's PanicException, which is not an Exception."""


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (DataError("no rows"), 1, "no rows"),
        (PanicError("capacity overflow\nstack"), 1, "unexpected PanicError: capacity overflow (use --debug for"),
        (ValueError("x" * 5000), 1, f"unexpected ValueError: {'x' * 200} (use --debug"),
        (RecursionError(), 1, "unexpected RecursionError: "),
        (MemoryError(), 1, "out of memory; use less data"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
            1,
            "out of memory;",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"), 1, "out of memory; use less data"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "page.html"), 1, "cannot use page.html (No space left on"),
        (OSError("no details"), 1, "unexpected OSError: no details"),
        (RuntimeError("Could not determine home directory."), 1, "found no home folder; set HOME, or BERTCLI_CACHE"),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), 1, "set TMPDIR"),
    ],
)
def test_any_exception_is_one_message(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, exit_code: int, message: str
) -> None:
    result = fail_with(monkeypatch, error)
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert message in json.loads(result.stdout)["error"]


@pytest.mark.parametrize("name", ["BERTCLI_CACHE", "HF_HOME", "HF_DATASETS_CACHE", "TMPDIR", "HOME"])
def test_unusable_folder_of_a_variable_is_reported_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for other in ("BERTCLI_CACHE", "HF_HOME", "HF_DATASETS_CACHE", "HF_HUB_CACHE", "XDG_CACHE_HOME", "TMPDIR", "HOME"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, str(tmp_path / "file"))
    error = NotADirectoryError(errno.ENOTDIR, "Not a directory", str(tmp_path / "file" / "hub"))
    stderr = fail_with(monkeypatch, error).stderr
    assert f"(Not a directory): set {name} (now {tmp_path / 'file'}) to a writable folder" in stderr


def test_broken_cache_variable_is_named_by_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    monkeypatch.setenv("BERTCLI_CACHE", str(Path("file").absolute()))
    result = call("pretrain", "pretrain/tiny", "training.max_steps=1", "--run", "run", "--quiet")
    assert result.exit_code == 1
    assert "set BERTCLI_CACHE (now " in result.stderr


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (("--learning_rate", "3e-5"), "training.learning_rate=3e-5"),
        (("--learning-rate=3e-5",), "training.learning_rate=3e-5"),
        (("--model_name_or_path", "roberta-base"), "model.name=roberta-base"),
        (("--fp16", "--json"), "without dashes: hardware.precision=fp16"),
        (("--num_train_epochs", "3", "--max_seq_length", "9"), "training.epochs=3 data.max_length=9"),
        (("--output_dir", "out"), "use --run out"),
        (("--output_dir", "out", "--lr=3e-5", "--quiet"), "training.learning_rate=3e-5 Instead of --output_dir: the"),
        (("--config", "mine.yaml"), "the recipe is the first argument, without an option: mine.yaml"),
        (("--report_to", "wandb"), "'hardware.trackers=[wandb]'"),
        (("--resume",), "re-run the same command to resume"),
        (("--max_steps", "-1", "--eval_strategy", "epoch"), "training.max_steps=null evaluation.every_epochs=1"),
        (("--eval_strategy", "steps", "--eval_steps", "50"), "evaluation.every_steps=50"),
        (("--training.learning_rate", "3e-5"), "training.learning_rate=3e-5"),
    ],
)
def test_option_of_another_program_leads_to_the_key(arguments: tuple[str, ...], key: str) -> None:
    result = call("finetune", "glue/sst2", *arguments)
    assert result.exit_code == 2
    assert key in " ".join(result.stderr.replace("│", " ").split())


def test_accumulation_steps_are_part_of_the_global_batch_size() -> None:
    arguments = ("--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "4")
    stderr = call("finetune", "glue/sst2", *arguments).stderr
    assert "training.global_batch_size=32" in stderr
    assert "Instead of" not in stderr


def test_unknown_option_without_a_key_has_no_hint() -> None:
    assert "Recipe keys" not in call("finetune", "glue/sst2", "--nonsense").stderr
    assert "Recipe keys" not in call("env", "--learning_rate", "3").stderr


FULL = "error: cannot use standard output (No space left on device)"


@pytest.mark.parametrize(
    ("arguments", "redirection", "exit_code", "message"),
    [
        ("recipes list", "> /dev/full", 1, FULL),
        pytest.param(*("recipes list --json", "> /dev/full", 1, FULL), marks=pytest.mark.slow),
        ("recipes list", ">&-", 1, "error: cannot use standard output (it is closed)"),
        ("recipes check nonsense", "2>&1 | true", 2, ""),
        pytest.param(*("report nowhere --json", "2>&1 | true", 2, ""), marks=pytest.mark.slow),
        pytest.param(*("recipes show nonsense", "2>&-", 2, ""), marks=pytest.mark.slow),
    ],
)
def test_exit_code_is_right_even_if_output_cannot_be_written(
    arguments: str, redirection: str, exit_code: int, message: str
) -> None:
    if not Path("/dev/full").exists() and "full" in redirection:
        pytest.skip("this system has no /dev/full")
    command = f"({shlex.quote(sys.executable)} -m bertcli {arguments}; echo $? > code) {redirection}"
    process = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert int(Path("code").read_text()) == exit_code
    assert process.stderr.strip() == message
