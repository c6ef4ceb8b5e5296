"""The command-line interface: exit codes, one clear error message, results on stdout and the rest on stderr."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BertForSequenceClassification
from typer.testing import CliRunner, Result

from bertcli.cli.main import app
from bertcli.cli.options import default_run_folder
from bertcli.data.sources import source_fingerprint
from bertcli.models.from_pretrained import ModelSource, save_model
from bertcli.recipe.load import dump_recipe, load_recipe, recipe_task
from bertcli.runs.results import RunResults

UNNEEDED = {"evaluate", "matplotlib", "onnx", "onnxruntime", "optuna", "peft", "seqeval", "sklearn", "tensorboard"}


def call(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def start(*arguments: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bertcli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]


@pytest.fixture
def small(encoder: Path, reviews: Path, write_recipe: Callable[..., Path]) -> Path:
    return write_recipe(
        f"task:\n  files: {{train: {reviews}}}\n  text_columns: [text]\n  labels: [negative, positive]\n"
        f"model: {{name: {encoder}}}\ndata: {{max_length: 16}}\ntraining: {{max_steps: 2, seed: 1}}\n",
        "small.yaml",
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ("training.seed=1", "training.seed=2"),
        ("training={seed: 1}", "training.seed=[1, 2]"),
        ("task.name=mine", "task=glue/sst2"),
        ("suite=[a.yaml]", "suite=[b.yaml]"),
    ],
)
@pytest.mark.parametrize("command", ["finetune", "pretrain", "submit", "recipes show", "recipes check", "fetch"])
def test_key_given_twice_on_the_command_line_is_an_error(
    command: str, overrides: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BERTCLI_MIRROR", ".")
    result = call(*command.split(), "sample/sentiment", *overrides)
    assert result.exit_code == 2
    first, second = map(repr, overrides)
    assert result.stderr == f"error: command line: found both {first} and {second}; remove one of them\n"


def test_key_given_twice_with_the_same_value_is_accepted() -> None:
    words = ["training.learning_rate=1e-5", "training.learning_rate=0.00001", "training={epochs: 2}"]
    result = call("recipes", "show", "sample/sentiment", *words, "--no-comments")
    assert "learning_rate: 1e-05\n" in result.stdout
    assert "epochs: 2" in result.stdout


def test_finetune_then_eval_then_predict(small: Path) -> None:
    trained = call("finetune", str(small), "--json")
    assert trained.exit_code == 0, trained.stderr
    results = json.loads(trained.stdout)
    assert results["run"] == "runs/small"
    assert "next      bertcli predict runs/small" in trained.stderr

    scored = call("eval", "runs/small", "--json", "--quiet")
    assert json.loads(scored.stdout)["metrics"] == results["metrics"]
    assert scored.stderr == ""
    printed = call("eval", "runs/small")
    assert "accuracy" in printed.stdout
    assert re.fullmatch(r"evaluated runs/small on the validation split in \d+s", printed.stderr.splitlines()[-1])
    model_folder = call("eval", "runs/small/model", "--task", str(small), "--json")
    assert json.loads(model_folder.stdout)["metrics"] == results["metrics"]

    predicted = call("predict", "runs/small", "--input", "-", stdin="a fine film\na dull film\n")
    rows = [json.loads(line) for line in predicted.stdout.splitlines()]
    assert [row["text"] for row in rows] == ["a fine film", "a dull film"]
    single = call("predict", "runs/small", "--text", "a fine film")
    assert json.loads(single.stdout)["label"] == rows[0]["label"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("finetune", "glue/sst9"), 2, "Did you mean glue/sst2"),
        (("finetune", "glue/sst2", "epochs=3"), 2, "training.epochs"),
        (("finetune", "glue/sst2", "--mirror", "nowhere"), 2, "no mirror folder"),
        (("finetune", "glue/sst2"), 1, "--mirror"),
        (("finetune",), 2, "Missing argument"),
        (("eval", "nowhere"), 1, "cannot load"),
        (("eval", "."), 1, "without config.json"),
        (("predict", "nowhere"), 2, "give exactly one of --text"),
        (("predict", "nowhere", "--text", "a", "--pair", "b", "--pair", "c"), 2, "one --pair for each"),
        (("predict", "nowhere", "--text", "a", "--choice", "b"), 2, "at least two --choice"),
        (
            ("predict", "nowhere", "--text", "a", "--choice", "b", "--choice", "c", "--pair", "d"),
            2,
            "--choice cannot be combined with --pair; remove --pair",
        ),
        (("predict", "nowhere", "--text", "a", "--format", "glue"), 2, "with --format glue, none of them"),
        (("predict", "nowhere", "--text", "a", "--device", "tpu"), 2, "--device tpu"),
        (("nonsense",), 2, "nonsense"),
    ],
)
def test_errors_give_one_message_and_an_exit_code(arguments: tuple[str, ...], code: int, message: str) -> None:
    result = call(*arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_eval_suggests_the_right_model_name(small: Path) -> None:
    assert "found file small.yaml" in call("eval", "small.yaml").stderr
    Path("runs/small").mkdir(parents=True)
    assert "Did you mean runs/small?" in call("eval", "runs/smal").stderr
    task_model = Path("runs/small/model/one")
    task_model.mkdir(parents=True)
    (task_model / "config.json").write_text("{}")
    assert f"use one of its models: {task_model}" in call("eval", "runs/small").stderr


@pytest.mark.parametrize("arguments", [("-h",), ("finetune", "-h"), ("recipes", "check", "-h")])
def test_help_has_a_short_option(arguments: tuple[str, ...]) -> None:
    result = call(*arguments)
    assert result.exit_code == 0
    assert "[[" not in result.stdout


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in call("eval", ".", "--debug").stderr


def test_finetune_reports_a_read_only_folder(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("readonly").mkdir(mode=0o500)
    monkeypatch.setattr(os, "access", lambda path, mode: bool(path.stat().st_mode & 0o200))  # root can write anywhere
    result = call("finetune", str(small), "--run", "readonly/run")
    assert result.exit_code == 2
    assert "cannot create the run folder in readonly" in result.stderr


def test_finetune_reports_an_unwritable_path_even_to_root(small: Path) -> None:
    result = call("finetune", str(small), "--run", "/proc/run")
    assert result.exit_code == 2
    assert "/proc" in result.stderr
    assert "Traceback" not in result.stderr


def test_eval_reports_missing_splits_and_different_labels(small: Path, write_csv: Callable[..., Path]) -> None:
    call("finetune", str(small))
    assert "split 'test' has no files" in call("eval", "runs/small", "--split", "test").stderr
    other = call("eval", "runs/small", "--task", "sample/inference")
    assert other.exit_code == 1
    assert "labels do not match" in other.stderr


SIGNALS = pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 85)]
)


@SIGNALS
def test_signal_saves_and_sets_the_exit_code(
    small: Path, number: int, code: int, stop_after: Callable[..., None]
) -> None:
    stop_after(2, number)
    result = call("finetune", str(small), "training.max_steps=100")
    assert result.exit_code == code, result.stderr
    assert "re-run the same command to resume" in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in Path("runs/small/checkpoints").iterdir()] == ["step-00000002"]


@pytest.mark.slow
@SIGNALS
def test_signal_to_a_process_saves_and_sets_its_exit_code(small: Path, number: int, code: int) -> None:
    process = start("finetune", str(small), "training.max_steps=100000", "hardware.log_every_steps=1")
    history = Path("runs/small/train.jsonl")
    while not (history.is_file() and history.stat().st_size) and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == code, errors
    assert "re-run the same command to resume" in errors
    assert "Traceback" not in errors
    assert 1 <= len(list(Path("runs/small/checkpoints").glob("step-*"))) <= 2


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.slow
def test_broken_pipe_ends_predict_quietly(small: Path, processes: str) -> None:
    call("finetune", str(small))
    Path("many.txt").write_text("film\n" * 20000)
    process = start("predict", "runs/small", "--input", "many.txt", "--quiet", "--processes", processes)
    assert process.stdout is not None
    assert process.stderr is not None
    assert json.loads(process.stdout.readline())["text"] == "film"
    process.stdout.close()
    assert process.wait() in (0, -signal.SIGPIPE)
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.parametrize("is_launched", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        ("--input", "pipe"),  # each process would read some of its rows
        ("--input", "-"),
        ("--text", "fine"),
        ("--input", "texts.txt", "--features", "--output", "features.npy"),
        ("--split", "test", "--format", "squad", "--output", "answers"),
        ("--format", "glue", "--output", "glue"),
    ],
)
def test_predict_refuses_to_divide_anything_but_a_file_or_split_among_processes(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], is_launched: bool
) -> None:
    os.mkfifo("pipe")
    Path("texts.txt").write_text("fine\n")
    if is_launched:  # by torchrun
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
    result = call("predict", "run", *arguments, *(() if is_launched else ("--processes", "2")))
    assert result.exit_code == 2
    assert "several processes" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_broken_pipe_ends_recipes_list_quietly() -> None:
    process = start("recipes", "list")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait() == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()


def test_help_does_not_import_torch() -> None:
    code = """
import sys
from typer.testing import CliRunner
from bertcli.cli.main import app
assert CliRunner().invoke(app, ["--help"]).exit_code == 0
heavy = {"torch", "transformers", "datasets", "pandas", "numpy", "pydantic"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_mistakes_and_finished_runs_are_reported_before_the_libraries_are_loaded(
    write_recipe: Callable[..., Path],
) -> None:
    recipe = write_recipe("task: sample/sentiment\nmodel: {size: tiny}\n")
    no_rows = write_recipe("task: {files: {train: no.csv}, text_columns: [text]}\nmodel: {size: tiny}\n", "rows.yaml")
    Path("rows.csv").write_text("text,label\nfine,good\nawful,bad\n")
    of_files = write_recipe(
        "task: {files: {train: rows.csv}, text_columns: [text]}\nmodel: {size: tiny}\n", "mine.yaml"
    )
    for folder in ("empty", "notes", "started", "done", "done-files"):
        Path(folder).mkdir()
    Path("notes", "notes.txt").write_text("not from a run")
    for folder in ("started", "done"):
        Path(folder, "recipe.yaml").write_text(dump_recipe(load_recipe(str(recipe))))
        Path(folder, "train.jsonl").touch()
    Path("done", "results.json").write_text(json.dumps(RunResults(run="done").to_json()))
    Path("done", "report.html").touch()
    Path("done-files", "recipe.yaml").write_text(dump_recipe(load_recipe(str(of_files))))
    fingerprint = source_fingerprint(recipe_task(load_recipe(str(of_files))))
    results = RunResults(run="done-files", source_fingerprint=fingerprint, data_fingerprint="0f")
    Path("done-files", "results.json").write_text(json.dumps(results.to_json()))
    Path("done-files", "report.html").touch()
    code = f"""
import sys
from typer.testing import CliRunner
from bertcli.cli.main import app
for arguments, exit_code, message in (
    (["finetune", {str(recipe)!r}, "evaluation.best_by=f2"], 2, "evaluation.best_by 'f2', expected one of"),
    (["finetune", {str(recipe)!r}, "training.strategy=lora"], 2, "requires a pretrained encoder"),
    (["finetune", {str(recipe)!r}, "data.context_tokens=4"], 2, "data.context_tokens is only for token classification"),
    (["predict", "nowhere", "--input", "nothing.csv"], 2, "found no file nothing.csv"),
    (["predict", "./nowhere", "--text", "a"], 1, "found no folder ./nowhere"),
    (["predict", "started", "--text", "a"], 2, "started is not finished"),
    (["eval", "./nowhere"], 1, "found no folder ./nowhere"),
    (["finetune", {str(recipe)!r}, "model={{name: empty}}"], 1, "found folder empty without config.json"),
    (["finetune", {str(recipe)!r}, "training.teacher=./nowhere"], 1, "found no folder ./nowhere"),
    (["finetune", {str(no_rows)!r}], 1, "found no file"),
    (["finetune", {str(recipe)!r}, "--run", "notes"], 2, "notes is not empty and is not a run"),
    (["finetune", {str(recipe)!r}, "training.seed=2", "--run", "started"], 2, "a run created with a different recipe"),
    (["pretrain", "pretrain/tiny", "--run", "notes"], 2, "notes is not empty and is not a run"),
):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == exit_code, result.stderr
    assert message in result.stderr, result.stderr
for folder, recipe in (("done", {str(recipe)!r}), ("done-files", {str(of_files)!r})):
    done = CliRunner().invoke(app, ["finetune", recipe, "--run", folder])
    assert f"{{folder}} is already finished" in done.stderr, done.stderr
heavy = {{"torch", "transformers", "datasets", "pandas"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_predict_and_dry_run_import_only_what_they_use(small: Path, encoder: Path, tmp_path: Path) -> None:
    classifier = BertForSequenceClassification.from_pretrained(encoder)
    save_model(classifier, ModelSource(str(encoder)).load_tokenizer(), tmp_path / "classifier")
    code = f"""
import gc, sys
from typer.testing import CliRunner
from bertcli.cli.main import app

def run(*arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    return {{name.split(".")[0] for name in sys.modules}} & {UNNEEDED | {"datasets", "pandas", "pyarrow"}}

found = run("predict", "classifier", "--text", "a fine film")
assert not found, found
assert gc.isenabled()
assert gc.get_freeze_count() > 100_000  # the collector skips what the libraries created
found = run("finetune", {str(small)!r}, "--dry-run") - {{"datasets", "pandas", "pyarrow"}}
assert not found, found
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_default_run_folder_is_named_after_the_recipe() -> None:
    assert default_run_folder("glue/sst2") == Path("runs/glue-sst2")
    assert default_run_folder("some/where/mine.yaml") == Path("runs/mine")


@pytest.mark.parametrize(
    "arguments",
    [("-m", "bertcli", "--help"), ("-c", "from bertcli.console import Console; Console().warn('text')")],
)
def test_no_color_variable_is_respected(arguments: tuple[str, ...]) -> None:
    outputs = []
    plain = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    for variables in ({}, {"NO_COLOR": "1"}):
        environment = plain | {"FORCE_COLOR": "1", "TERM": "xterm-256color"} | variables
        process = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, check=True, env=environment
        )
        outputs.append(process.stdout + process.stderr)
    colors = [re.findall(r"\x1b\[(?:[\d;]*;)?[349]\d[;m]", output) for output in outputs]
    assert colors[0]
    assert not colors[1]


def test_labels_option_renames_the_labels_of_a_model(small: Path) -> None:
    call("finetune", str(small))
    config = Path("runs/small/model/config.json")
    names = json.loads(config.read_text())["id2label"].values()
    numbered = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    numbered["thresholds"] = {"LABEL_1": 1.0}  # never reached
    config.write_text(json.dumps(json.loads(config.read_text()) | numbered))
    model = "runs/small/model"
    refused = call("eval", model, "--task", str(small))
    assert refused.exit_code == 1
    assert "--labels" in refused.stderr
    scored = call("eval", model, "--task", str(small), "--labels", ",".join(names), "--json")
    results = json.loads(Path("runs/small/results.json").read_text())
    losses = [content["metrics"]["validation"]["loss"] for content in (json.loads(scored.stdout), results)]
    assert losses[0] == pytest.approx(losses[1])
    prediction = json.loads(call("predict", model, "--text", "a fine film", "--labels", ",".join(names)).stdout)
    assert list(prediction["probabilities"]) == list(names)
    assert prediction["label"] == next(iter(names))
    short = call("predict", model, "--text", "a fine film", "--labels", "good")
    assert short.exit_code == 2
    assert "expected 2 distinct names" in short.stderr
    assert "has no effect" in call("predict", model, "--text", "a", "--features", "--labels", "a,b").stderr
