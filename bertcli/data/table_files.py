"""Datasets from the user's files: CSV, TSV, JSON Lines, JSON, Parquet, SQuAD's JSON and CoNLL, by suffix."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bertcli.data.formats import is_squad, read_conll, read_jsonl, read_squad, require_object
from bertcli.errors import DataError
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

BLOCK_BYTES, MAX_BLOCK_BYTES = 1 << 20, 2**31 - 1  # that pyarrow reads at once
NULL_LINE = re.compile(r"^\s*null", re.MULTILINE)  # crashes the process in pyarrow's reader
GENERIC_MESSAGE = "An error occurred while generating the dataset"  # from `datasets`, for any cause


def read_files(paths: Sequence[str], task: Task | None = None) -> Dataset:
    """Read CSV (quoted), TSV (unquoted, as GLUE's), JSON Lines, JSON, Parquet, SQuAD or CoNLL files, by suffix.

    Args:
        paths: files with the same columns, which are concatenated.
        task: reads the task's text columns as text, and its label column as text or a number, without guessing types:
            `007` stays `007`.

    Raises:
        DataError: a file is missing, unreadable, not UTF-8, of an unknown format, or has other columns.
    """
    import pyarrow
    from datasets import Dataset, concatenate_datasets

    tables = []
    for path in map(Path, paths):
        if not path.is_file():
            raise DataError(f"found no file {path}, expected a CSV, TSV, JSON Lines or Parquet file")
        try:
            tables.append(Dataset(_read_table(path, task)))
        except (OSError, ValueError, TypeError, RecursionError, pyarrow.ArrowException) as error:
            raise DataError(f"cannot read {path}: {_explain(path, error)}") from error
    for name, table in zip(paths, tables, strict=True):
        if table.features != tables[0].features:
            raise DataError(f"{name} has the columns {table.features}, but {paths[0]} has {tables[0].features}")
    return concatenate_datasets(tables)


def summarize_error(error: BaseException) -> str:
    """Return the first line of an error's message, or of its cause's if the message is generic or empty."""
    message = str(error).removeprefix(GENERIC_MESSAGE).strip()
    if not message and error.__cause__ is not None:
        return summarize_error(error.__cause__)
    return message.partition("\n")[0].rstrip(".") or type(error).__name__


def _explain(path: Path, error: Exception) -> str:
    reason = summarize_error(error)
    return f"not UTF-8 text; convert it, e.g. `iconv -f latin1 -t utf8 {path}`" if "UTF" in reason.upper() else reason


def _read_table(path: Path, task: Task | None) -> pyarrow.Table:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _read_delimited(path, task, "," if suffix == ".csv" else "\t")
    if suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path)
    if suffix in (".jsonl", ".ndjson", ".json"):
        return _read_json(path)
    if suffix == ".conll":
        import pyarrow

        return pyarrow.Table.from_pylist(list(read_conll(path.read_text("utf-8-sig").splitlines(), str(path))))
    raise DataError(f"found {path}, expected a file that ends in .csv, .tsv, .jsonl, .json, .parquet or .conll")


def _read_delimited(path: Path, task: Task | None, delimiter: str) -> pyarrow.Table:
    import pyarrow
    from pyarrow import csv

    types: dict[str, pyarrow.DataType] = {}
    if task is not None:
        types = dict.fromkeys(task.columns, pyarrow.string())
        types[task.label_column] = pyarrow.float64() if task.problem == "regression" else pyarrow.string()
    parse_options = csv.ParseOptions(
        delimiter=delimiter, quote_char='"' if delimiter == "," else False, newlines_in_values=delimiter == ","
    )
    convert_options = csv.ConvertOptions(column_types=types)

    def read(block_size: int) -> pyarrow.Table:
        options = csv.ReadOptions(block_size=block_size)
        return csv.read_csv(path, options, parse_options=parse_options, convert_options=convert_options)

    return _read_in_blocks(path, read)


def _read_json(path: Path) -> pyarrow.Table:
    import pyarrow
    from pyarrow import json as arrow_json

    text = path.read_text("utf-8-sig")
    if text.lstrip().startswith("["):
        entries = enumerate(json.loads(text), start=1)
        return pyarrow.Table.from_pylist([require_object(row, f"{path}, entry {number}") for number, row in entries])
    if path.suffix.lower() == ".json" and is_squad(content := _parse_json(text)):
        return pyarrow.Table.from_pylist(list(read_squad(content, str(path))))
    if not text.strip():
        return pyarrow.table({})
    if NULL_LINE.search(text):
        list(read_jsonl(text.split("\n"), str(path)))  # raises an error that names the line
    return _read_in_blocks(path, lambda size: arrow_json.read_json(path, arrow_json.ReadOptions(block_size=size)))


def _read_in_blocks(path: Path, read: Callable[[int], pyarrow.Table]) -> pyarrow.Table:
    """Call `read` with a block size in bytes; if a row is longer than a block, read the file as one block."""
    import pyarrow

    try:
        return read(BLOCK_BYTES)
    except pyarrow.ArrowInvalid:
        file_bytes = min(path.stat().st_size + 1, MAX_BLOCK_BYTES)
        if file_bytes <= BLOCK_BYTES:
            raise
        return read(file_bytes)


def _parse_json(text: str) -> object:
    """Parse a JSON value; None if the text is not a single one."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
