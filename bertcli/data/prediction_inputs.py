"""Rows to predict on, read as a stream: plain lines, JSON Lines, CSV, TSV, CoNLL or Parquet, from a file or stdin."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from bertcli.data.formats import Row, checked_object, conll_rows, is_squad, jsonl_rows, squad_rows
from bertcli.data.sources import load_split
from bertcli.errors import DataError, UsageError, did_you_mean
from bertcli.tasks.task import Task

FORMATS = ("text", "jsonl", "json", "csv", "tsv", "conll", "parquet")


ENDINGS = {f".{kind}": kind for kind in FORMATS[1:]} | {".ndjson": "jsonl"}


USUAL_COLUMNS = ("text", "text_pair")


ROWS_AT_ONCE = 1024  # of Parquet in memory
csv.field_size_limit(sys.maxsize)  # a document may be longer than Python's 131,072 characters


Value = str | list[str]


def guess_format(path: str) -> str:
    """The format a file's ending tells; plain lines for standard input and unknown endings."""
    return ENDINGS.get(Path(path).suffix.lower(), "text")


def read_inputs(
    path: str,
    kind: str,
    columns: Sequence[str],
    *,
    usual: Sequence[str] = USUAL_COLUMNS,
    listed: Sequence[str] = (),
    also: Sequence[str] = (),
) -> Iterator[Row]:
    """What a model is asked in each row of `path` (`-` is standard input), one row at a time, under `columns`.

    Args:
        kind: one of `FORMATS`. In plain lines the values of a row stand on one line with tabs between them. `json` is
            a list of objects or SQuAD's official file.
        columns: names of the wanted columns; their values are texts.
        usual: names that serve instead, in their order, if a file does not have the first of `columns`.
        listed: those of the columns whose values may be lists of texts (words, choices).
        also: further columns to keep where they are there, such as an id.

    Raises:
        DataError: the file is missing, not UTF-8, or a row lacks a value.
        UsageError: the format is unknown.
    """
    if kind not in FORMATS:
        raise UsageError(
            f"found input format {kind!r}, expected one of {', '.join(FORMATS)}{did_you_mean(kind, FORMATS)}"
        )
    for place, row in _rows(path, kind, columns, {*columns, *usual, *also}):
        names = columns if columns[0] in row or len(usual) < len(columns) else usual[: len(columns)]
        asked = {
            wanted: _value_of(row, name, wanted, place, may_list=wanted in listed)
            for name, wanted in zip(names, columns, strict=True)
        }
        yield {name: _plain(row[name]) for name in also if name in row} | asked


def _rows(path: str, kind: str, columns: Sequence[str], wanted: set[str]) -> Iterator[tuple[str, Row]]:
    """Each row with its place, and at least those of its values that are `wanted`."""
    if kind == "parquet":
        yield from _read_parquet(path, wanted)
        return
    readers = {"jsonl": jsonl_rows, "json": _read_json, "csv": _read_csv, "tsv": _read_tsv, "conll": _read_conll}
    with _opened(path) as file:
        try:
            yield from _read_lines(file, path, columns) if kind == "text" else readers[kind](file, path)
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text; convert it, e.g. `iconv -f latin1 -t utf8`") from error


def in_chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """`rows` in lists of at most `size`."""
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk


@contextmanager
def _opened(path: str) -> Iterator[IO[str]]:
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


def _read_parquet(path: str, wanted: set[str]) -> Iterator[tuple[str, Row]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    if path == "-":
        raise UsageError("Parquet cannot be read from standard input; name the file")
    number = 0
    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            known = [name for name in names if name in wanted]
            if not known:
                raise DataError(f"{path}: found columns {names}, expected one of {sorted(wanted)}")
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=known):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _read_json(file: IO[str], path: str) -> Iterator[tuple[str, Row]]:
    text = file.read()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):  # many files of JSON Lines end so, too
        yield from jsonl_rows(io.StringIO(text), path)
        return
    rows = squad_rows(content, path) if is_squad(content) else content if isinstance(content, list) else [content]
    for number, row in enumerate(rows, start=1):
        yield f"{path}, entry {number}", checked_object(row, f"{path}, entry {number}")


def _read_csv(file: IO[str], path: str) -> Iterator[tuple[str, Row]]:
    return _read_separated(csv.DictReader(file, strict=True), path)


def _read_tsv(file: IO[str], path: str) -> Iterator[tuple[str, Row]]:
    return _read_separated(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE), path)


def _read_separated(reader: csv.DictReader[str], path: str) -> Iterator[tuple[str, Row]]:
    try:
        for row in reader:
            place = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise DataError(f"{place}: found more or fewer values than the first line has names")
            yield place, row
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: {error}; check the quotes") from error


def _read_conll(file: IO[str], path: str) -> Iterator[tuple[str, Row]]:
    for number, row in enumerate(conll_rows(file, path), start=1):
        yield f"{path}, sentence {number}", row


def _plain(value: Any) -> Any:
    """A value that is only repeated, such as an id, as JSON can hold it."""
    return value if value is None or isinstance(value, str | int | float | list | dict) else str(value)


def _value_of(row: Row, name: str, wanted: str, place: str, *, may_list: bool) -> Value:
    value = row.get(name)
    if may_list and isinstance(value, list) and all(isinstance(part, str) for part in value):
        return value
    if not isinstance(value, str):
        found = f"columns {list(row)}" if name not in row else f"{value!r} in column {name!r}"
        raise DataError(f"{place}: found {found}, expected text in column {wanted!r} (or {name!r})")
    return value


def inputs_of(
    task: Task,
    values: Iterable[Sequence[str]] | None,
    input_path: str,
    kind: str,
    usual: Sequence[str],
    split: str | None,
    mirror: Path | None,
    *,
    refuses_pairs: bool,
) -> Iterator[Row]:
    """The inputs as rows of the task's columns: given values, a split's rows without their answers, or a file's.

    Args:
        values: the values of each row's columns; None: they are a split's or a file's.
        usual: names of columns that serve where a file has not the task's.
        refuses_pairs: whether nobody said how many texts a row has, so that a second one may not be left out.
    """
    if values is not None:
        return (_row_of(task, row) for row in values)
    if split is not None:
        rows = load_split(task, split, mirror)
        return iter(rows.select_columns([*task.columns, *({task.id_column} & set(rows.column_names))]))
    also = (task.id_column,) if task.id_column else ()
    if refuses_pairs and task.columns == USUAL_COLUMNS[:1]:
        return _single_texts(read_inputs(input_path, kind, task.columns, also=USUAL_COLUMNS[1:]))
    return read_inputs(input_path, kind, task.columns, usual=usual, listed=task.list_columns, also=also)


def _single_texts(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, none of which has a second text.

    Raises:
        UsageError: one has.
    """
    first, second = USUAL_COLUMNS
    for row in rows:
        if second in row:
            raise UsageError(
                f"the input has a column {second!r} beside {first!r}, and a model without a run folder does not say "
                f"whether it reads pairs; say --columns {first},{second} or --columns {first}"
            )
        yield row


def with_columns(task: Task, columns: Sequence[str] | None, *, is_known: bool) -> Task:
    """The task, its columns under the names a person gave; one nobody described takes any number of texts."""
    if columns is None:
        return task
    if is_known and len(columns) != len(task.columns):
        raise UsageError(
            f"found {len(columns)} names in --columns, expected {len(task.columns)}, for {', '.join(task.columns)}"
        )
    num_texts = len(task.text_columns) if task.choice_columns or is_known else len(columns)
    names = {"text_columns": tuple(columns[:num_texts]), "choice_columns": tuple(columns[num_texts:])}
    return task.model_copy(update=names)


def fitted(task: Task, values: Iterable[Sequence[str]] | None) -> tuple[Task, list[Sequence[str]] | None]:
    """For a classifier of which only the model is known: its task takes as many texts as are given."""
    if values is None:
        return task, None
    values = list(values)
    if task.head == "text_classification" and values and len(values[0]) <= len(USUAL_COLUMNS):
        task = task.model_copy(update={"text_columns": USUAL_COLUMNS[: len(values[0])]})
    return task, values


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
