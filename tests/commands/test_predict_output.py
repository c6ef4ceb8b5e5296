"""Where `predict` writes: the format, existing files, pipes, and the input's columns beside the predictions."""

from __future__ import annotations

import csv
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner, Result

from bertcli.cli.main import app
from bertcli.commands import predict as module
from bertcli.commands.predict import predict, predict_features
from bertcli.data import prediction_inputs
from bertcli.data.prediction_inputs import PredictionInput, load_inputs
from bertcli.data.sources import load_split
from bertcli.errors import DataError, UsageError
from bertcli.finetuning.run import finetune
from bertcli.inference import prediction_stream
from bertcli.inference.prediction_formats import TextWriter
from bertcli.inference.prediction_stream import FIRST_CHUNK_SIZE
from bertcli.recipe.load import load_recipe
from bertcli.recipe.schema import HardwareSection, Recipe
from bertcli.runs.folder import RunOptions
from bertcli.tasks import get_task
from bertcli.tasks.task import Splits, Task

from ..conftest import QUIET

TEXTS = PredictionInput([("a fine film",), ("a dull film",)])


@pytest.fixture(scope="module")
def run(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of `sample/sentiment`."""
    folder = tmp_path_factory.mktemp("sentiment") / "run"
    overrides = [f"model.name={encoder}", "training.max_steps=2", "data.max_train_examples=32", "data.max_length=32"]
    finetune(load_recipe("sample/sentiment", overrides), folder, RunOptions(console=QUIET))
    return str(folder)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model fails the test."""

    def fail(*arguments: object, **options: object) -> None:
        pytest.fail("the model was loaded before the output was checked")

    for name in ("ModelSource", "best_seed", "load_for_inference", "write_glue_files"):
        monkeypatch.setattr(module, name, fail)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["predict", "run", *arguments])


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--output", "old.jsonl"),
            "old.jsonl already exists; choose another --output, or replace it with --overwrite",
        ),
        (("--output", "folder"), "folder is a folder, expected the name of a file"),
        (("--output", "folder", "--overwrite"), "folder is a folder, expected the name of a file"),
        (("--output", "none/a.csv"), "none does not exist; create it, or choose another --output"),
        (("--output", "a.csv", "--format", "jsonl"), "found --format jsonl for a.csv; leave out --format"),
        (("--output", "a.JSONL", "--format", "tsv"), "found --format tsv for a.JSONL; leave out --format"),
        (("--output", ""), "--output is empty, expected the name of a file, or - for standard output"),
        (
            ("--output", "a.csv.gz"),
            "found --output a.csv.gz, expected a name that ends in .jsonl, .csv, .tsv or",
        ),
        (("--output", "a.XLSX"), "found --output a.XLSX, expected a name that ends in .jsonl, .csv, .tsv or"),
        (("--output", "a.csv.gz", "--format", "csv"), "found --format csv for a.csv.gz"),
        (("--output", "a.orc"), "expected a name that ends in .jsonl, .csv, .tsv or .parquet"),
        (("--format", "parquet"), "--format parquet cannot be written to standard output; set --output to a file"),
        (("--output", "/dev/null", "--format", "parquet"), "/dev/null is a pipe or a device, expected a file"),
        (("--output", "a.parquet", "--format", "csv"), "found --format csv for a.parquet"),
        (("--output", "a.csv", "--format", "parquet"), "found --format parquet for a.csv"),
        (("--output", "a", "--format", "json"), "Did you mean jsonl?"),
        (("--output", "old.jsonl", "--format", "squad"), "old.jsonl is a file, expected a folder for the files of"),
        (("--output", "folder", "--format", "squad"), "folder/predictions.json already exists"),
        (("--output", "/dev/stdout", "--format", "squad"), "set --output to a folder"),
        (("--output", "new", "--format", "squad", "--keep-columns"), "--keep-columns has no effect with --text"),
        (("--features", "--output", "old.npy"), "old.npy already exists"),
        (("--features", "--output", "a.csv"), "expected a file name that ends in .parquet or .npy"),
        (("--features", "--output", "a.npy", "--pooling", "tokens"), "use a .parquet file"),
        (("--features", "--output", "a.npy", "--format", "csv"), "leave out --format"),
    ],
)
def test_output_is_checked_before_the_model_is_loaded(arguments: tuple[str, ...], message: str) -> None:
    Path("folder").mkdir()
    for name in ("old.jsonl", "old.npy", "folder/predictions.json"):
        Path(name).write_text("kept")
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    result = call("--text", "a film", *arguments, "--quiet")
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("output", ["in.csv", "folder/../in.csv", "link.csv", "hard.csv"])
@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_input_is_never_replaced_by_predictions_or_features(output: str, overwrite: tuple[str, ...]) -> None:
    Path("folder").mkdir()
    Path("in.csv").write_text("text\na film\n")
    Path("link.csv").symlink_to("in.csv")
    Path("hard.csv").hardlink_to("in.csv")
    Path("folder/null_odds.json").symlink_to(Path("in.csv").absolute())
    for target, options, file in (
        (output, (), output),
        (output, ("--features",), output),
        ("folder", ("--format", "squad"), "folder/null_odds.json"),
    ):
        result = call("--input", "in.csv", "--output", target, *overwrite, *options, "--quiet")
        assert result.exit_code == 2, result.stderr
        assert f"{file} is also an input file, which would be lost; choose another --output" in result.stderr
    assert Path("in.csv").read_text() == "text\na film\n"


def test_file_of_the_split_is_never_replaced_by_its_predictions(
    recipe_of: Callable[..., Recipe], reviews: Path
) -> None:
    before = reviews.read_bytes()
    finetune(recipe_of("training.max_steps=1"), Path("run"), RunOptions(console=QUIET))
    inputs = PredictionInput(split="validation")  # held out of the training file
    with pytest.raises(UsageError, match=r"reviews\.csv is also an input file"):
        predict("run", inputs, str(reviews), overwrite=True, console=QUIET)
    Path("out.npy").symlink_to(reviews)
    with pytest.raises(UsageError, match=r"out\.npy is also an input file"):
        predict_features("run", inputs, "out.npy", layers=[-1], pooling="mean", overwrite=True, console=QUIET)
    assert reviews.read_bytes() == before


def test_standard_input_is_never_replaced_by_predictions() -> None:
    Path("in.txt").write_text("a film\n")
    stdin = os.dup(0)
    try:
        with Path("in.txt").open() as file:
            os.dup2(file.fileno(), 0)
        with pytest.raises(UsageError, match=r"^in\.txt is also an input file, which would be lost"):
            predict("run", output="in.txt", overwrite=True)
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)
    assert Path("in.txt").read_text() == "a film\n"


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--input", "folder"), "--input folder is a folder, expected a file"),
        (("--text", "a", "--columns", ""), "--columns '' has an empty name; separate the names by single commas"),
        (("--text", "a", "--columns", "text,"), "--columns 'text,' has an empty name"),
        (("--text", "a", "--labels", ""), "--labels '' has an empty name"),
    ],
)
def test_empty_names_and_folders_are_refused_before_the_model_is_loaded(
    arguments: tuple[str, ...], message: str
) -> None:
    Path("folder").mkdir()
    result = call(*arguments, "--quiet")
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("a.csv", "text,label,"),
        ("a.TSV", "text\tlabel\t"),
        ("a.jsonl", '{"text": '),
        ("a.json", '{"text": '),
        ("a", '{"text": '),
    ],
)
def test_output_format_is_that_of_the_suffix(run: str, name: str, start: str) -> None:
    assert predict(run, TEXTS, name, console=QUIET) == 2
    assert Path(name).read_text().startswith(start)


@pytest.mark.parametrize("name", ["a", "a.txt", "a.out", "a.1"])
def test_output_with_any_other_name_is_json_lines(run: str, name: str) -> None:
    predict(run, TEXTS, name, console=QUIET)
    assert [json.loads(line)["text"] for line in Path(name).read_text().splitlines()] == ["a fine film", "a dull film"]


RUN_OUTPUTS = ["log.txt", "results.json", "model/config.json", "model/new.csv", "predictions/validation.jsonl"]


@pytest.mark.parametrize("name", RUN_OUTPUTS)
def test_overwrite_never_replaces_a_file_of_a_run(run: str, name: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(run).rglob("*")}
    with pytest.raises(UsageError, match=r"is a file of the run in .*; choose another --output"):
        predict(run, TEXTS, f"{run}/{name}", overwrite=True, console=QUIET)
    assert {path: path.stat().st_mtime_ns for path in Path(run).rglob("*")} == before


def test_overwrite_never_replaces_a_file_of_a_model_or_grid(encoder: Path) -> None:
    before = (encoder / "config.json").read_bytes()
    with pytest.raises(UsageError, match=r"config\.json is a file of the model in"):
        predict("run", TEXTS, str(encoder / "config.json"), overwrite=True, console=QUIET)
    assert (encoder / "config.json").read_bytes() == before
    Path("grid").mkdir()
    for name in ("results.json", "report.html"):
        Path("grid", name).touch()
    with pytest.raises(UsageError, match=r"grid/results\.json is a file of the run in"):
        predict("run", TEXTS, "grid/results.json", overwrite=True, console=QUIET)


def test_output_may_be_beside_the_files_of_a_run(run: str) -> None:
    for name in ("predictions/new.csv", "new.csv"):
        for overwrite in (False, True):
            predict(run, TEXTS, f"{run}/{name}", overwrite=overwrite, console=QUIET)
        Path(run, name).unlink()


def test_overwrite_replaces_the_file_that_a_link_leads_to(run: str) -> None:
    Path("target.csv").write_text("old")
    Path("link.csv").symlink_to("target.csv")
    predict(run, TEXTS, "link.csv", overwrite=True, console=QUIET)
    assert Path("link.csv").is_symlink()
    assert Path("target.csv").read_text().startswith("text,label")
    predict_features(run, TEXTS, "a.npy", layers=[-1], pooling="mean", console=QUIET)
    before = Path("a.npy").read_bytes()
    predict_features(run, TEXTS, "a.npy", layers=[-1], pooling="mean", overwrite=True, console=QUIET)
    assert Path("a.npy").read_bytes() == before
    assert {path.name for path in Path().iterdir()} == {"link.csv", "target.csv", "a.npy"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_predict_that_fails_leaves_nothing_and_an_existing_file_as_it_was(run: str, overwrite: bool) -> None:
    Path("in.jsonl").write_text('{"text": "one"}\n' * 2000 + '{"text": 3}\n')
    if overwrite:
        Path("out.jsonl").write_text("kept")
    with pytest.raises(DataError, match="found 3 in column"):
        predict(run, PredictionInput(path="in.jsonl"), "out.jsonl", overwrite=overwrite, console=QUIET)
    assert {path.name for path in Path().iterdir()} == {"in.jsonl"} | ({"out.jsonl"} if overwrite else set())
    assert not overwrite or Path("out.jsonl").read_text() == "kept"


def test_output_may_be_standard_output_a_named_pipe_or_a_device(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    predict(run, TEXTS, "/dev/stdout", console=QUIET)
    expected = capsys.readouterr().out
    assert len(expected.splitlines()) == 2
    os.mkfifo("pipe.jsonl")
    received: list[str] = []
    reader = Thread(target=lambda: received.append(Path("pipe.jsonl").read_text()))
    reader.start()
    predict(run, TEXTS, "pipe.jsonl", console=QUIET)
    reader.join()
    assert received == [expected]
    assert predict(run, TEXTS, "/dev/null", console=QUIET) == 2


def test_first_lines_are_written_immediately_and_a_closed_pipe_ends_the_command_quietly(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in `… | bertcli predict … | head -1`, while most of the input is still to come."""
    os.mkfifo("pipe.jsonl")
    source, target = os.pipe()
    received: list[str] = []

    def write_and_read() -> None:
        with os.fdopen(target, "wb", 0) as lines:
            lines.write(b"a fine film\n" * FIRST_CHUNK_SIZE)
            with Path("pipe.jsonl").open() as predictions:
                received.append(predictions.readline())
            lines.write(b"a dull film\n" * 10 * FIRST_CHUNK_SIZE)

    with os.fdopen(source) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        others = Thread(target=write_and_read)
        others.start()
        predict(run, output="pipe.jsonl", hardware=HardwareSection(device="cpu"), console=QUIET)
        others.join()
    assert [json.loads(line)["text"] for line in received] == ["a fine film"]
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_closed_standard_output_ends_a_process_quietly(run: str) -> None:
    command = [sys.executable, "-m", "bertcli", "predict", run, "--input", "-", "--device", "cpu", "--quiet"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("a fine film\n" * FIRST_CHUNK_SIZE)
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["text"] == "a fine film"
        process.stdout.close()
        with suppress(BrokenPipeError):
            process.stdin.write("a dull film\n" * 10 * FIRST_CHUNK_SIZE)
            process.stdin.flush()
        assert process.wait() == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
        with suppress(BrokenPipeError):
            process.stdin.close()


def test_killed_prediction_is_resumed_by_the_same_command(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything that the predictions depend on in the manifest."""
    monkeypatch.setattr(prediction_stream, "PART_SIZE", 50)
    rows = [{"id": n, "text": f"film {n}", "label": "gold"} for n in range(120)]
    types = pyarrow.schema({"id": pyarrow.int16(), "text": pyarrow.string(), "label": pyarrow.string()})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*rows, {"text": None}], types), "in.parquet")
    inputs = PredictionInput(path="in.parquet", keep_columns=True)
    with pytest.raises(DataError, match=r"in\.parquet, row 121: found None in column 'text'"):
        predict(run, inputs, "out.parquet", console=QUIET)
    assert not Path("out.parquet").exists()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, types), "in.parquet")
    recipe = Path(run, "recipe.yaml")
    before = recipe.read_text("utf-8")
    for options, message in (
        ({"labels": ["bad", "good"]}, "another --labels;"),
        ({"hardware": HardwareSection(precision="bf16")}, "another --precision;"),
        ({"format_name": "parquet", "top_k": 1}, "another --top-k;"),
        ({"inputs": PredictionInput(path="in.parquet")}, "another --keep-columns;"),
        ({"inputs": PredictionInput(path="in.parquet", keep_columns=True, columns=["label"])}, "another --columns;"),
        ({}, "another model;"),
    ):
        if not options:
            recipe.write_text(before + "# changed\n", "utf-8")
        with pytest.raises(UsageError, match=message):
            predict(**({"name": run, "inputs": inputs, "output": "out.parquet", "console": QUIET} | options))
    recipe.write_text(before, "utf-8")
    assert predict(run, inputs, "out.parquet", console=QUIET) == 120
    predict(run, inputs, "again.parquet", console=QUIET)
    table = pyarrow.parquet.read_table("out.parquet")
    assert table.equals(pyarrow.parquet.read_table("again.parquet"))
    assert table.column_names[:4] == ["id", "text", "input_label", "label"]
    assert table.schema.field("id").type == pyarrow.int16()
    assert {path.name for path in Path().iterdir()} == {"in.parquet", "out.parquet", "again.parquet"}


def test_full_disk_names_the_output_and_leaves_nothing(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(TextWriter, "write_file", fail)
    result = CliRunner().invoke(app, ["predict", run, "--text", "a film", "--output", "out.csv", "--quiet"])
    assert result.exit_code == 1
    assert result.stderr == f"error: cannot use {Path('out.csv').absolute()} (No space left on device)\n"
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("/dev/full", "cannot use /dev/full (No space left on device)"),
        ("-", "cannot write the output (No space left on device); free some disk space"),
    ],
)
def test_full_disk_of_standard_output_or_a_device_is_named(run: str, output: str, message: str) -> None:
    command = [sys.executable, "-m", "bertcli", "predict", run, "--text", "a film", "--output", output, "--quiet"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr) == (1, f"error: {message}\n")


ROWS: list[dict[str, Any]] = [
    {"id": 7, "text": "a fine film", "label": "gold", "note": "=1"},
    {"id": 8, "text": "a dull film", "label": "gold", "note": ""},
]


def write_csv_file(path: str) -> None:
    with Path(path).open("w", newline="") as file:
        table = csv.DictWriter(file, list(ROWS[0]), dialect="excel-tab" if path.endswith("tsv") else "excel")
        table.writeheader()
        table.writerows(ROWS)


WRITERS: dict[str, Callable[[str], object]] = {
    "in.csv": write_csv_file,
    "in.tsv": write_csv_file,
    "in.jsonl": lambda path: Path(path).write_text("".join(f"{json.dumps(row)}\n" for row in ROWS)),
    "in.json": lambda path: Path(path).write_text(json.dumps(ROWS)),
    "in.parquet": lambda path: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_kept_columns_stand_beside_the_predictions(run: str, name: str) -> None:
    WRITERS[name](name)
    inputs = PredictionInput(path=name, keep_columns=True)
    predict(run, inputs, "out.jsonl", console=QUIET)
    predict(run, inputs, "out.csv", console=QUIET)
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    with Path("out.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    for row, line, cells in zip(ROWS, lines, table, strict=True):
        assert list(line) == ["id", "text", "input_label", "note", "label", "probabilities"]
        assert (str(line["id"]), line["text"], line["input_label"]) == (str(row["id"]), row["text"], "gold")
        assert line["label"] == cells["label"] in ("negative", "positive")
        assert (cells["input_label"], cells["id"]) == ("gold", str(row["id"]))


@pytest.mark.parametrize("keep_columns", [False, True])
@pytest.mark.parametrize("folder", ["", "model"])
def test_texts_may_be_in_a_column_with_the_name_of_the_labels(run: str, folder: str, keep_columns: bool) -> None:
    predict(run, TEXTS, "expected.jsonl", console=QUIET)
    Path("in.csv").write_text("label\n" + "".join(f"{text}\n" for (text,) in TEXTS.values or ()))
    inputs = PredictionInput(path="in.csv", columns=["label"], keep_columns=keep_columns)
    predict(str(Path(run, folder)), inputs, "out.jsonl", console=QUIET)
    lines = Path("out.jsonl").read_text()
    assert lines.replace('"input_label"', '"text"') == Path("expected.jsonl").read_text()


def test_kept_columns_of_any_type_do_not_reach_the_model(run: str) -> None:
    rows = [{"text": "one", "x": [1], "y": {"a": 1}}, {"text": "two", "x": "b", "y": None}]
    Path("in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    predict(run, PredictionInput(path="in.jsonl", keep_columns=True), "out.jsonl", console=QUIET)
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [(line["x"], line["y"]) for line in lines] == [([1], {"a": 1}), ("b", None)]
    predict(run, PredictionInput(path="in.jsonl", keep_columns=True), "out.csv", console=QUIET)
    with Path("out.csv").open(newline="") as file:
        assert [row["y"] for row in csv.DictReader(file)] == ['{"a": 1}', ""]


def test_kept_nan_and_infinity_are_null_in_json_lines(run: str) -> None:
    nan, infinity = float("nan"), float("inf")
    rows = [{"text": "one", "x": nan, "y": [-infinity, 1.5], "z": {"a": nan}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "in.parquet")
    Path("in.jsonl").write_text(json.dumps(rows[0]))
    for name in ("in.parquet", "in.jsonl"):
        inputs = PredictionInput(path=name, keep_columns=True)
        predict(run, inputs, "out.jsonl", overwrite=True, console=QUIET)
        line = json.loads(Path("out.jsonl").read_text(), parse_constant=pytest.fail)
        assert (line["x"], line["y"], line["z"]) == (None, [None, 1.5], {"a": None})


@pytest.mark.parametrize("name", ["out.csv", "out.tsv", "out.parquet"])
def test_table_without_inputs_is_refused_since_it_would_have_no_header(run: str, name: str) -> None:
    Path("in.csv").write_text("text,label\n")
    with pytest.raises(DataError, match=r"found no inputs, so the columns of the .* file are unknown; add a row, or"):
        predict(run, PredictionInput(path="in.csv"), name, console=QUIET)
    assert not Path(name).exists()
    assert predict(run, PredictionInput(path="in.csv"), "out.jsonl", console=QUIET) == 0


def test_kept_columns_of_a_split_include_its_labels(run: str) -> None:
    predict(run, PredictionInput(split="validation", keep_columns=True), "out.jsonl", console=QUIET)
    line = json.loads(Path("out.jsonl").read_text().splitlines()[0])
    assert {"text", "input_label", "label", "probabilities"} <= line.keys()


@pytest.mark.parametrize(
    "name",  # TSV is read like CSV, and JSON like JSON Lines
    [pytest.param(name, marks=pytest.mark.slow if name in ("in.tsv", "in.json") else ()) for name in WRITERS],
)
def test_kept_columns_of_a_split_are_those_of_its_files(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As those of `--input`; the split is held out of two files, in a random order."""
    labels = ("negative", "positive")
    all_rows = [{"id": row, "text": f"t{row}", "label": labels[row % 2], "note": f"00{row}"} for row in range(40)]
    paths = [f"{part}{name}" for part in (1, 2)]
    for path, rows in zip(paths, (all_rows[:20], all_rows[20:]), strict=True):
        monkeypatch.setattr(f"{__name__}.ROWS", rows)
        WRITERS[name](path)
    task = f"{{files: {{train: [{', '.join(paths)}]}}, text_columns: [text]}}"
    finetune(recipe_of(f"task={task}", "training.max_steps=1"), Path("run"), RunOptions(console=QUIET))
    predict("run", PredictionInput(split="validation"), "plain.jsonl", console=QUIET)
    predict("run", PredictionInput(split="validation", keep_columns=True), "kept.jsonl", console=QUIET)
    for path in paths:
        predict("run", PredictionInput(path=path, keep_columns=True), f"{path}.jsonl", console=QUIET)
    plain, kept, *files = (
        [json.loads(line) for line in Path(path).read_text().splitlines()]
        for path in ("plain.jsonl", "kept.jsonl", *(f"{path}.jsonl" for path in paths))
    )
    row_of_text = {row["text"]: row for row in [*files[0], *files[1]]}
    assert len(kept) == 4
    assert [row["text"] for row in kept] == [row["text"] for row in plain]
    for row in kept:
        expected = row_of_text[row["text"]]
        assert list(row) == list(expected) == ["id", "text", "input_label", "note", "label", "probabilities"]
        inputs = ("id", "text", "input_label", "note", "label")
        assert [row[column] for column in inputs] == [expected[column] for column in inputs]


def test_kept_columns_of_a_split_of_a_dataset_have_no_row_numbers() -> None:
    held_out = get_task("sample/sentiment").model_copy(update={"splits": Splits(validation=None)})
    rows = load_inputs(held_out, PredictionInput(split="validation", keep_columns=True), (), None, from_run=True)
    assert [*next(rows)] == ["text", "label"]


def test_file_that_changes_while_the_columns_of_a_split_are_read_is_refused(
    reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task.model_validate({"files": {"test": str(reviews)}, "text_columns": ("text",)})

    def load_and_change(*arguments: Any) -> Any:
        rows = load_split(*arguments)
        reviews.write_text("text,label\nanother film,positive\n")
        return rows

    monkeypatch.setattr(prediction_inputs, "load_split", load_and_change)
    rows = load_inputs(task, PredictionInput(split="test", keep_columns=True), (), None, from_run=True)
    with pytest.raises(DataError, match=r"reviews\.csv: row 1 changed while the file was read; run the same command"):
        list(rows)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (
            [{"text": "a", "label": 1, "input_label": 2}],
            DataError,
            "cannot keep the column 'label': 'input_label' already exists",
        ),
        (
            [{"text": "a"}, {"text": "b", "more": 1}],
            DataError,
            "row 2 has the column more, which the first row does not",
        ),
    ],
)
def test_columns_that_cannot_be_kept_are_named(
    run: str, rows: list[dict[str, Any]], error: type[Exception], message: str
) -> None:
    Path("in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(error, match=message):
        predict(run, PredictionInput(path="in.jsonl", keep_columns=True), "out.csv", console=QUIET)
    assert not Path("out.csv").exists()


def test_keep_columns_needs_a_format_with_free_columns() -> None:
    for format_name in ("glue", "squad"):
        with pytest.raises(UsageError, match=f"--keep-columns has no effect on --format {format_name}"):
            predict("run", PredictionInput(path="in.csv", keep_columns=True), "out", format_name, console=QUIET)
