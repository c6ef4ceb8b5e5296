"""Rows of a person's own files: CSV, TSV, JSON Lines, JSON, Parquet, SQuAD's JSON and CoNLL, by their endings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bertcli.data.formats import checked_object, conll_rows, is_squad, jsonl_rows, squad_rows
from bertcli.errors import DataError
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

USUAL_BLOCK, LARGEST_BLOCK = 1 << 20, 2**31 - 1  # bytes that pyarrow reads at once
NULL_LINE = re.compile(r"^\s*null", re.MULTILINE)  # ends the whole process in pyarrow's reader
SAYS_NOTHING = "An error occurred while generating the dataset"  # `datasets`, of whatever went wrong


def read_files(paths: Sequence[str], task: Task | None = None) -> Dataset:
    """Rows of CSV (quoted), TSV (unquoted, as GLUE's), JSON Lines, Parquet, SQuAD or CoNLL files, by their endings.

    With a task its text columns are read as text and its label column as text or number, whatever they look like:
    `007` stays `007`.

    Raises:
        DataError: a file is missing, unreadable, not UTF-8 or of an unknown kind.
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
            raise DataError(f"cannot read {path}: {_plain_reason(path, error)}") from error
    for name, table in zip(paths, tables, strict=True):
        if table.features != tables[0].features:
            raise DataError(f"{name} has the columns {table.features}, but {paths[0]} has {tables[0].features}")
    return concatenate_datasets(tables)


def first_line(error: BaseException) -> str:
    """What an error says, or its cause if it says nothing of its own, on one line."""
    words = str(error).removeprefix(SAYS_NOTHING).strip()
    if not words and error.__cause__ is not None:
        return first_line(error.__cause__)
    return words.partition("\n")[0].rstrip(".") or type(error).__name__


def _plain_reason(path: Path, error: Exception) -> str:
    reason = first_line(error)
    return f"not UTF-8 text; convert it, e.g. `iconv -f latin1 -t utf8 {path}`" if "UTF" in reason.upper() else reason


def _read_table(path: Path, task: Task | None) -> pyarrow.Table:
    ending = path.suffix.lower()
    if ending in (".csv", ".tsv"):
        return _read_separated(path, task, "," if ending == ".csv" else "\t")
    if ending == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path)
    if ending in (".jsonl", ".ndjson", ".json"):
        return _read_json(path)
    if ending == ".conll":
        import pyarrow

        return pyarrow.Table.from_pylist(list(conll_rows(path.read_text("utf-8-sig").splitlines(), str(path))))
    raise DataError(f"found {path}, expected a file that ends in .csv, .tsv, .jsonl, .json, .parquet or .conll")


def _read_separated(path: Path, task: Task | None, delimiter: str) -> pyarrow.Table:
    import pyarrow
    from pyarrow import csv

    types: dict[str, pyarrow.DataType] = {}
    if task is not None:
        types = dict.fromkeys(task.columns, pyarrow.string())
        types[task.label_column] = pyarrow.float64() if task.problem == "regression" else pyarrow.string()
    quoting = csv.ParseOptions(
        delimiter=delimiter, quote_char='"' if delimiter == "," else False, newlines_in_values=delimiter == ","
    )
    kinds = csv.ConvertOptions(column_types=types)
    return _in_blocks(
        path,
        lambda size: csv.read_csv(path, csv.ReadOptions(block_size=size), parse_options=quoting, convert_options=kinds),
    )


def _read_json(path: Path) -> pyarrow.Table:
    import pyarrow
    from pyarrow import json as arrow_json

    text = path.read_text("utf-8-sig")
    if text.lstrip().startswith("["):
        entries = enumerate(json.loads(text), start=1)
        return pyarrow.Table.from_pylist([checked_object(row, f"{path}, entry {number}") for number, row in entries])
    if path.suffix.lower() == ".json" and is_squad(content := _whole_json(text)):
        return pyarrow.Table.from_pylist(list(squad_rows(content, str(path))))
    if not text.strip():
        return pyarrow.table({})
    if NULL_LINE.search(text):
        list(jsonl_rows(text.split("\n"), str(path)))  # tells of the line
    return _in_blocks(path, lambda size: arrow_json.read_json(path, arrow_json.ReadOptions(block_size=size)))


def _in_blocks(path: Path, read: Callable[[int], pyarrow.Table]) -> pyarrow.Table:
    """What `read` makes of a file in blocks of so many bytes; of one block if a row is longer than the usual ones."""
    import pyarrow

    try:
        return read(USUAL_BLOCK)
    except pyarrow.ArrowInvalid:
        whole = min(path.stat().st_size + 1, LARGEST_BLOCK)
        if whole <= USUAL_BLOCK:
            raise
        return read(whole)


def _whole_json(text: str) -> object:
    """The JSON value a text is; None if it is several lines of them."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
