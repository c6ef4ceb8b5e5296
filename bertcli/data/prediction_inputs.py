"""Prediction inputs, read as a stream of rows: plain lines, JSON Lines, JSON, CSV, TSV, CoNLL or Parquet."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from bertcli.data.formats import Row, is_squad, read_conll, read_jsonl, read_squad, require_object
from bertcli.data.sources import load_split
from bertcli.data.table_files import check_column_names
from bertcli.errors import DataError, UsageError, did_you_mean
from bertcli.tasks.task import Task

FORMATS = ("text", "jsonl", "json", "csv", "tsv", "conll", "parquet")
FORMAT_OF_SUFFIX = {f".{name}": name for name in FORMATS[1:]} | {".ndjson": "jsonl"}
DEFAULT_TEXT_COLUMNS = ("text", "text_pair")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
PARQUET_BATCH_SIZE = 1024  # rows in memory
csv.field_size_limit(sys.maxsize)  # a document may exceed Python's default of 131,072 characters
Value = str | list[str]


@dataclass(frozen=True)
class PredictionInput:
    """Where inputs to predict come from: values, a split of the model's task, or a file.

    Attributes:
        values: one sequence per input, with the values of the task's columns in order; None: read `split` or `path`.
        path: file to read; `-` is standard input.
        file_format: one of `FORMATS`; None: infer it from the suffix of `path`.
        split: split of the model's task to read instead of `path`.
        columns: names of the input columns; None: those of the task.
        keep_columns: whether rows keep the columns that are not inputs.

    Raises:
        DataError: a value has a lone surrogate: the shell's argument was not UTF-8.
    """

    values: Sequence[Sequence[str]] | None = None
    path: str = "-"
    file_format: str | None = None
    split: str | None = None
    columns: Sequence[str] | None = None
    keep_columns: bool = False

    def __post_init__(self) -> None:
        for number, values in enumerate(self.values or (), start=1):
            for value in values:
                _check_characters(value, f"text {number}")

    @property
    def resolved_format(self) -> str:
        """The format of the file, inferred if it is not set."""
        return self.file_format or infer_format(self.path)


def infer_format(path: str) -> str:
    """Infer the input format from the file's suffix; plain lines for standard input and unknown suffixes."""
    return FORMAT_OF_SUFFIX.get(Path(path).suffix.lower(), "text")


def read_inputs(
    path: str,
    input_format: str,
    columns: Sequence[str],
    *,
    default_columns: Sequence[str] = DEFAULT_TEXT_COLUMNS,
    list_columns: Sequence[str] = (),
    extra_columns: Sequence[str] | None = (),
) -> Iterator[Row]:
    """Yield the rows of `path` (`-` is standard input) one at a time, with their inputs under `columns`.

    Args:
        input_format: one of `FORMATS`. A plain line holds a row's values, separated by tabs. `json` is a list of
            objects or SQuAD's official file.
        columns: names of the columns to read; their values are texts.
        default_columns: names to read instead, in the same order, if a row has no column named as the first of
            `columns`.
        list_columns: those of the columns whose values may be lists of texts (words, choices).
        extra_columns: further columns to keep where they exist, such as an ID; None: all.

    Raises:
        DataError: the file is missing or not UTF-8, or a row lacks a value.
        UsageError: the format is unknown.
    """
    if input_format not in FORMATS:
        raise UsageError(
            f"found input format {input_format!r}, expected one of {', '.join(FORMATS)}"
            f"{did_you_mean(input_format, FORMATS)}"
        )
    needed = None if extra_columns is None else {*columns, *default_columns, *extra_columns}
    for location, row in _read_rows(path, input_format, columns, needed):
        use_defaults = columns[0] not in row and len(default_columns) >= len(columns)
        names = default_columns[: len(columns)] if use_defaults else columns
        inputs = {
            column: _input_value(row, name, column, location, may_be_list=column in list_columns)
            for name, column in zip(names, columns, strict=True)
        }
        kept = row if extra_columns is None else extra_columns
        yield {name: _json_value(row[name]) for name in kept if name in row} | inputs


def _read_rows(
    path: str, input_format: str, columns: Sequence[str], needed: set[str] | None
) -> Iterator[tuple[str, Row]]:
    """Yield each row with its location; columns that are not `needed` (None: all are) may be missing."""
    if input_format == "parquet":
        yield from _read_parquet(path, needed)
        return
    readers = {"jsonl": read_jsonl, "json": _read_json, "csv": _read_csv, "tsv": _read_tsv, "conll": _read_conll}
    with _open(path) as file:
        try:
            yield from _read_lines(file, path, columns) if input_format == "text" else readers[input_format](file, path)
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text; convert it, e.g. `iconv -f latin1 -t utf8`") from error


def batched(rows: Iterable[Row], batch_size: int) -> Iterator[list[Row]]:
    """Yield the rows in lists of at most `batch_size`."""
    iterator = iter(rows)
    while batch := list(islice(iterator, batch_size)):
        yield batch


@contextmanager
def _open(path: str) -> Iterator[IO[str]]:
    if path == "-":
        sys.stdin.reconfigure(encoding="utf-8", errors="strict", newline="")  # type: ignore[union-attr]
        yield sys.stdin
        return
    try:
        file = open(path, encoding="utf-8-sig", newline="")  # noqa: SIM115 - closed below
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    with file:
        yield file


def _read_lines(file: IO[str], path: str, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(file, start=1):
        text = line.rstrip("\r\n")
        values = text.split("\t") if len(columns) > 1 else [text]
        if len(values) != len(columns):
            raise DataError(
                f"{path}:{number}: found {len(values)} values, expected {len(columns)} with tabs between them "
                f"({', '.join(columns)})"
            )
        yield f"{path}:{number}", dict(zip(columns, values, strict=True))


def _read_parquet(path: str, needed: set[str] | None) -> Iterator[tuple[str, Row]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    if path == "-":
        raise UsageError("Parquet cannot be read from standard input; name the file")
    number = 0
    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            check_column_names(names, path)
            columns = [name for name in names if needed is None or name in needed]
            if not columns:
                raise DataError(f"{path}: found columns {names}, expected one of {sorted(needed or ())}")
            for batch in file.iter_batches(PARQUET_BATCH_SIZE, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _read_json(file: IO[str], path: str) -> Iterator[tuple[str, Row]]:
    text = file.read()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):  # JSON Lines files often end in .json, too
        yield from read_jsonl(io.StringIO(text), path)
        return
    rows = read_squad(content, path) if is_squad(content) else content if isinstance(content, list) else [content]
    for number, row in enumerate(rows, start=1):
        yield f"{path}, entry {number}", require_object(row, f"{path}, entry {number}")


def _read_csv(file: IO[str], path: str) -> Iterator[tuple[str, Row]]:
    return _read_delimited(csv.DictReader(file, strict=True), path)


def _read_tsv(file: IO[str], path: str) -> Iterator[tuple[str, Row]]:
    return _read_delimited(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE), path)


def _read_delimited(reader: csv.DictReader[str], path: str) -> Iterator[tuple[str, Row]]:
    try:
        check_column_names(reader.fieldnames or (), path)
        for row in reader:
            location = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise DataError(f"{location}: found more or fewer values than the header has columns")
            yield location, row
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: {error}; check for unbalanced quotes") from error


def _read_conll(file: IO[str], path: str) -> Iterator[tuple[str, Row]]:
    for number, row in enumerate(read_conll(file, path), start=1):
        yield f"{path}, sentence {number}", row


def _json_value(value: Any) -> Any:
    """Convert the value of an extra column, such as an ID, to one that JSON can hold."""
    return value if value is None or isinstance(value, str | int | float | list | dict) else str(value)


def _input_value(row: Row, name: str, column: str, location: str, *, may_be_list: bool) -> Value:
    value = row.get(name)
    if may_be_list and isinstance(value, list) and all(isinstance(part, str) for part in value):
        for part in value:
            _check_characters(part, location)
        return value
    if not isinstance(value, str):
        found = f"columns {list(row)}" if name not in row else f"{value!r:.80} in column {name!r}"
        raise DataError(f"{location}: found {found}, expected text in column {column!r} (or {name!r})")
    _check_characters(value, location)
    return value


def _check_characters(text: str, location: str) -> None:
    """Check that a text consists of characters, so that it can be encoded as UTF-8.

    Raises:
        DataError: it has half of a UTF-16 surrogate pair, as `\\ud800` in JSON.
    """
    if surrogate := LONE_SURROGATE.search(text):
        name = f"U+{ord(surrogate[0]):04X}"
        raise DataError(f"{location}: found the lone surrogate {name}, which is not a character; replace or remove it")


def load_inputs(
    task: Task, inputs: PredictionInput, default_columns: Sequence[str], mirror: Path | None, *, from_run: bool
) -> Iterator[Row]:
    """Load inputs as rows of the task's columns; a split's rows come without labels unless `inputs` keeps all columns.

    Args:
        task: from `with_input_columns`.
        default_columns: columns to read if a file does not have the task's.
        from_run: the task comes from a run folder. If it does not, and `inputs` names no columns, it is not known
            whether the model takes pairs: a file with a second text column raises an error.
    """
    if inputs.values is not None:
        return (_row_from_values(task, values) for values in inputs.values)
    if inputs.split is not None:
        rows = load_split(task, inputs.split, mirror)
        if inputs.keep_columns:
            return ({name: _json_value(value) for name, value in row.items()} for row in rows)
        return iter(rows.select_columns([*task.columns, *({task.id_column} & set(rows.column_names))]))
    if not from_run and inputs.columns is None and task.columns == DEFAULT_TEXT_COLUMNS[:1]:
        kept = None if inputs.keep_columns else DEFAULT_TEXT_COLUMNS[1:]
        return _reject_pairs(read_inputs(inputs.path, inputs.resolved_format, task.columns, extra_columns=kept))
    return read_inputs(
        inputs.path,
        inputs.resolved_format,
        task.columns,
        default_columns=default_columns,
        list_columns=task.list_columns,
        extra_columns=None if inputs.keep_columns else (task.id_column,) if task.id_column else (),
    )


def _reject_pairs(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield the rows unchanged.

    Raises:
        UsageError: a row has a second text.
    """
    first, second = DEFAULT_TEXT_COLUMNS
    for row in rows:
        if second in row:
            raise UsageError(
                f"the input has a column {second!r} beside {first!r}, and a model without a run folder does not say "
                f"whether it reads pairs; say --columns {first},{second} or --columns {first}"
            )
        yield row


def with_input_columns(task: Task, inputs: PredictionInput, *, from_run: bool) -> Task:
    """Return the task with the column names of `inputs`, and without a run folder also its number of texts per input.

    Args:
        from_run: the task comes from a run folder, so the number of its columns is fixed.

    Raises:
        UsageError: the number of named columns is wrong.
    """
    if inputs.columns is not None:
        task = _rename_columns(task, inputs.columns, from_run=from_run)
    if from_run or not inputs.values or task.head != "text_classification":
        return task
    num_texts = len(inputs.values[0])
    if num_texts > len(DEFAULT_TEXT_COLUMNS):
        return task
    return task.model_copy(update={"text_columns": DEFAULT_TEXT_COLUMNS[:num_texts]})


def _rename_columns(task: Task, columns: Sequence[str], *, from_run: bool) -> Task:
    if from_run and len(columns) != len(task.columns):
        raise UsageError(
            f"found {len(columns)} names in --columns, expected {len(task.columns)}, for {', '.join(task.columns)}"
        )
    num_texts = len(task.text_columns) if task.choice_columns or from_run else len(columns)
    names = {"text_columns": tuple(columns[:num_texts]), "choice_columns": tuple(columns[num_texts:])}
    return task.model_copy(update=names)


def _row_from_values(task: Task, values: Sequence[str]) -> Row:
    """Build a row from values given on the command line; values after the texts are choices.

    Raises:
        UsageError: there are too few or too many values.
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
