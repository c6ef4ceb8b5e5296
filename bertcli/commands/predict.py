"""`bertcli predict`: answers for inputs as they come, in their order, a chunk at a time."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

from bertcli.commands.score import answer
from bertcli.commands.trained import Trained, open_trained, seed_runs
from bertcli.data.formats import Row
from bertcli.data.inputs import guess_format, in_chunks, read_inputs
from bertcli.data.sources import load_split
from bertcli.errors import DataError, UsageError, did_you_mean
from bertcli.recipe.schema import HardwareSection
from bertcli.runs.console import Console
from bertcli.tasks.task import Task

FORMATS = ("jsonl", "csv", "tsv")
ROWS_AT_ONCE = 1024

Answer = dict[str, Any]


def predict(
    name: str,
    values: Iterable[Sequence[str]] | None = None,
    output: str = "-",
    format_name: str = "jsonl",
    *,
    input_path: str = "-",
    input_format: str | None = None,
    split: str | None = None,
    columns: Sequence[str] | None = None,
    mirror: Path | None = None,
    hardware: HardwareSection | None = None,
    console: Console | None = None,
) -> int:
    """Write an answer for each input, in order; return their number.

    Args:
        name: run folder (of several seeds: the best by its own choice), model folder or hub name.
        values: the inputs themselves, the values of a row's columns in their order; None: they are read.
        output: a new file, or `-` for standard output.
        format_name: format of the answers, one of `FORMATS`.
        input_path: the file to read, or `-` for standard input.
        input_format: its format; None: as its ending says, plain lines on standard input.
        split: answer this split of the model's task instead.
        columns: names of the input's columns; None: the task's.

    Raises:
        UsageError: an unknown format, or the output file exists.
        DataError: the input cannot be read.
    """
    console = console or Console()
    if format_name not in FORMATS:
        cure = did_you_mean(format_name, FORMATS)
        raise UsageError(f"found format {format_name!r}, expected one of {', '.join(FORMATS)}.{cure}")
    trained = open_trained(best_seed(name), mirror, hardware)
    task = _with_columns(trained, columns)
    if values is not None:
        rows: Iterable[Row] = (_row_of(task, row) for row in values)
    elif split is not None:
        rows = split_rows(trained, split, mirror)
    else:
        kind, also = input_format or guess_format(input_path), (task.id_column,) if task.id_column else ()
        rows = read_inputs(input_path, kind, task.columns, usual=trained.head.usual_columns, also=also)
    count = 0
    with _opened(output) as file:
        count = _write(predictions(trained, task, rows), file, format_name)
    if output != "-":
        console.say(f"{count} answers in {output}")
    return count


def predictions(trained: Trained, task: Task, inputs: Iterable[Row]) -> Iterator[tuple[Row, Answer]]:
    """What is repeated of each input, with its answer; memory does not grow with the number of inputs."""
    import pyarrow
    from datasets import Dataset

    kept = {*trained.head.echoed(task), task.id_column}
    for chunk in in_chunks(inputs, ROWS_AT_ONCE):
        try:
            rows = Dataset.from_list(chunk)
        except pyarrow.ArrowException as error:
            raise DataError(f"some inputs hold texts where others hold lists of them ({error})") from error
        encoded = trained.head.encode(task, rows, trained.tokenizer, trained.data)
        parts = answer(trained.accelerator, trained.model, encoded, trained.head, max_tokens=trained.max_tokens)
        for some, part, logits, _ in parts:
            answers = trained.head.decode(task, rows.select(range(some.start, some.stop)), part, logits)
            for row, given in zip(chunk[some], answers, strict=True):
                yield {name: row[name] for name in row if name in kept}, given


def split_rows(trained: Trained, split: str, mirror: Path | None) -> Iterator[Row]:
    """The rows of a split of the model's task, without their right answers.

    Raises:
        UsageError: the model is no run folder, so its task is not known.
    """
    if trained.recipe is None:
        raise UsageError(f"{trained.name} is not a run folder, so it does not say which data --split means")
    task = trained.task
    rows = load_split(task, split, mirror)
    kept = [*task.columns, *([task.id_column] if task.id_column in rows.column_names else [])]
    return iter(rows.select_columns(kept))


def best_seed(name: str) -> str:
    """Of a run of several seeds, the run whose own choice scored best; else `name` itself."""
    runs = seed_runs(name)
    if len(runs) == 1:
        return runs[0]
    files = {run: Path(run) / "results.json" for run in runs}
    finished = {run: json.loads(file.read_text("utf-8")) for run, file in files.items() if file.is_file()}
    if not finished:
        raise UsageError(f"no run under {name} is finished yet; run the same `bertcli finetune` again, or name one")
    return max(finished, key=lambda run: finished[run]["metrics"]["validation"][finished[run]["best_by"]])


def _with_columns(trained: Trained, columns: Sequence[str] | None) -> Task:
    """The model's task, its columns under the names a person gave."""
    task = trained.task
    if columns is None:
        return task
    if len(columns) < len(task.text_columns) + bool(task.choice_columns) and trained.recipe is not None:
        raise UsageError(
            f"found {len(columns)} names in --columns, expected {len(task.columns)}: {', '.join(task.columns)}"
        )
    num_texts = len(task.text_columns) if task.choice_columns or trained.recipe else len(columns)
    return task.model_copy(
        update={"text_columns": tuple(columns[:num_texts]), "choice_columns": tuple(columns[num_texts:])}
    )


def _row_of(task: Task, values: Sequence[str]) -> Row:
    """A row of values given on the command line; what is beyond the texts are choices.

    Raises:
        UsageError: too few or too many of them.
    """
    num_texts = len(task.text_columns)
    if len(values) != len(task.columns) and not (len(task.choice_columns) == 1 and len(values) > num_texts + 1):
        raise UsageError(
            f"found {len(values)} texts for one input, expected {', '.join(task.columns)}; the second text of a pair "
            "(or the passage of a question) goes with --pair, choices with --choice"
        )
    if len(task.choice_columns) == 1:
        return dict(zip(task.text_columns, values, strict=False)) | {task.choice_columns[0]: list(values[num_texts:])}
    return dict(zip(task.columns, values, strict=True))


def _write(answers: Iterable[tuple[Row, Answer]], file: IO[str], format_name: str) -> int:
    """Write the answers as they come: JSON Lines, or a table whose columns are those of the first."""
    count = 0
    table: Any = None
    stream = iter(answers)
    if format_name != "jsonl":
        first = next(stream, None)
        if first is None:
            return 0
        dialect = "excel" if format_name == "csv" else "excel-tab"
        table = csv.DictWriter(file, list(_flat(*first)), dialect=dialect, lineterminator="\n")
        table.writeheader()
        stream = chain([first], stream)
    for count, (row, given) in enumerate(stream, start=1):
        if table is None:
            file.write(json.dumps(row | given, ensure_ascii=False) + "\n")
        else:
            table.writerow(_flat(row, given))
        if count % ROWS_AT_ONCE == 0:
            file.flush()
    file.flush()
    return count


def _flat(row: Row, given: Answer) -> dict[str, Any]:
    """A row and its answer as the cells of a table: lists joined, each probability a column."""
    cells: dict[str, Any] = {}
    for key, value in (row | given).items():
        if isinstance(value, dict):
            cells |= {f"probability_{label}": share for label, share in value.items()}
        elif isinstance(value, list) and key == "probabilities":
            cells |= {f"probability_{number}": share for number, share in enumerate(value)}
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            cells[key] = json.dumps(value, ensure_ascii=False)
        elif isinstance(value, list):
            cells[key] = (" " if key in ("words", "tags") else ",").join(map(str, value))
        else:
            cells[key] = value
    return cells


@contextmanager
def _opened(output: str) -> Iterator[IO[str]]:
    """The output as a text file; a reader that goes away (`| head`) ends the work quietly."""
    if output != "-":
        try:
            file = open(output, "x", encoding="utf-8", newline="")  # noqa: SIM115 - closed below
        except FileExistsError as error:
            raise UsageError(f"{output} exists already; name another --output or remove it") from error
        except OSError as error:
            raise UsageError(f"cannot write {output}: {error.strerror}") from error
        with file:
            yield file
        return
    try:
        yield sys.stdout
    except BrokenPipeError:
        # Python flushes stdout once more at its end: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
