"""Datasets from the user's files: CSV, TSV, JSON Lines, JSON, Parquet, SQuAD's JSON and CoNLL, by suffix."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertcli.data.formats import (
    TOO_DEEP,
    Row,
    check_json_depth,
    is_squad,
    read_conll,
    read_jsonl,
    read_squad,
    require_object,
)
from bertcli.errors import DataError
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

BLOCK_BYTES, MAX_BLOCK_BYTES = 1 << 20, 2**31 - 1  # that pyarrow reads at once
NULL_LINE = re.compile(r"^\s*null", re.MULTILINE)  # crashes the process in pyarrow's reader
FIRST_LINE = re.compile(r"\S.*")  # that is not blank
GENERIC_MESSAGE = "An error occurred while generating the dataset"  # from `datasets`, for any cause
CSV_ROW_CONTENT = re.compile(r"(got \d+: ).*", re.DOTALL)  # in pyarrow's message about a row with too many values
READ_ERRORS = (OSError, ValueError, TypeError, OverflowError, RecursionError, csv.Error)
ROW_COLUMN = "__row__"  # number of a row in its file, from 1; where rows are only a part of it
FILE_COLUMN = "__file__"  # path of the file of a row, if there are several


def read_files(paths: Sequence[str], task: Task | None = None, split: str | None = None) -> Dataset:
    """Read CSV (quoted), TSV (unquoted, as GLUE's), JSON Lines, JSON, Parquet, SQuAD or CoNLL files, by suffix.

    Args:
        paths: files with the same columns, which are concatenated.
        task: reads only the columns that the task uses, whatever the others hold, and reads its texts, labels and ids
            as written, without guessing types: `007` stays `007`.
        split: name of the split, which the rows keep.

    Raises:
        DataError: a file is missing, unreadable, not UTF-8, of an unknown format, or has other columns.
    """
    import pyarrow
    from datasets import Dataset, NamedSplit

    tables = []
    for path in map(Path, paths):
        if not path.is_file():
            raise DataError(f"found no file {path}, expected a CSV, TSV, JSON Lines or Parquet file")
        try:
            tables.append(_select_columns(_read_table(path, task), task))
        except (*READ_ERRORS, pyarrow.ArrowException) as error:
            raise DataError(f"cannot read {path}: {_explain(path, error)}") from error
    table = tables[0] if len(tables) == 1 else _concatenate(tables, paths, task)
    try:
        return Dataset(table, split=None if split is None else NamedSplit(split))
    except (ValueError, TypeError, NotImplementedError, pyarrow.ArrowException) as error:  # a type without support
        raise DataError(f"cannot read {', '.join(map(str, paths))}: {summarize_error(error)}") from error


def _concatenate(tables: Sequence[pyarrow.Table], paths: Sequence[str], task: Task | None) -> pyarrow.Table:
    """Concatenate the tables of several files, with the file of each row and its number there."""
    import pyarrow

    label = task.label_column if task is not None else None
    if label is not None and all(label in table.column_names for table in tables):
        types = {table.schema.field(label).type for table in tables}
        if len(types) > 1 and not any(map(pyarrow.types.is_nested, types)):  # 1 and "1" are the same label
            tables = [_with_label_texts(table, label) for table in tables]
    numbered = []
    for path, table in zip(paths, tables, strict=True):
        if table.schema.names != tables[0].schema.names or table.schema.types != tables[0].schema.types:
            columns, first = ({field.name: str(field.type) for field in each.schema} for each in (table, tables[0]))
            raise DataError(f"{path} has the columns {columns}, but {paths[0]} has {first}")
        table = table.append_column(ROW_COLUMN, pyarrow.array(range(1, len(table) + 1), pyarrow.int64()))
        numbered.append(table.append_column(FILE_COLUMN, pyarrow.repeat(str(path), len(table))))
    return pyarrow.concat_tables(numbered)


def _with_label_texts(table: pyarrow.Table, column: str) -> pyarrow.Table:
    import pyarrow

    texts = [label_text(value) for value in table.column(column).to_pylist()]
    return table.set_column(table.column_names.index(column), column, pyarrow.array(texts, pyarrow.string()))


def label_text(value: Any) -> str | None:
    """Return a value as the text of a label: `true`, `1` (also for 1.0) or the text; None if it is missing or NaN."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return None if math.isnan(value) else str(int(value)) if value.is_integer() else str(value)
    return str(value)


def summarize_error(error: BaseException) -> str:
    """Return the first line of an error's message, or of its cause's if the message is generic or empty."""
    message = str(error).removeprefix(GENERIC_MESSAGE).strip()
    if not message and error.__cause__ is not None:
        return summarize_error(error.__cause__)
    return message.partition("\n")[0].rstrip(".") or type(error).__name__


def _explain(path: Path, error: Exception) -> str:
    if isinstance(error, RecursionError):
        return TOO_DEEP
    reason = summarize_error(error)
    if "UTF" in reason.upper():
        return f"not UTF-8 text; convert it, e.g. `iconv -f latin1 -t utf8 {path}`"
    return CSV_ROW_CONTENT.sub(lambda match: f"{match[1]}{match[0][len(match[1]) :]:.80}", reason)


def _used_columns(task: Task) -> list[str]:
    """Return the columns that a task uses, if they exist."""
    names = (*task.columns, task.label_column, task.id_column, task.group_by)
    return list(dict.fromkeys(name for name in names if name is not None))


def _select_columns(table: pyarrow.Table, task: Task | None) -> pyarrow.Table:
    """Return the columns that the task uses, in its order, with types that `datasets` reads."""
    import pyarrow

    if task is None:
        return table
    used = [name for name in _used_columns(task) if name in table.column_names]
    if not {*task.columns, task.label_column} <= {*used}:  # the message about a missing column lists the others
        used += [name for name in table.column_names if name not in used]
    table = table.select(used)
    for index, field in enumerate(table.schema):
        kind = field.type.value_type if pyarrow.types.is_dictionary(field.type) else field.type
        if pyarrow.types.is_string_view(kind):
            kind = pyarrow.string()
        if kind != field.type:  # of categories in pandas, or of text in Polars
            table = table.set_column(index, field.name, table.column(index).cast(kind))
    return table


def check_column_names(names: Iterable[str], path: str) -> None:
    """Check that no two columns have the same name; columns without a name are not used.

    Raises:
        DataError: two have, or a name is not text.
    """
    seen: set[str] = set()
    for name in names:
        if "\0" in name:
            raise DataError(f"{path} has a NUL character in the name of a column; it is not a text file")
        if name and name in seen:
            raise DataError(f"{path} has the column {name[:80]!r} twice; rename or remove one of them")
        seen.add(name)


def _read_table(path: Path, task: Task | None) -> pyarrow.Table:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _read_delimited(path, task, "," if suffix == ".csv" else "\t")
    if suffix == ".parquet":
        return _read_parquet(path, task)
    if suffix in (".jsonl", ".ndjson", ".json"):
        return _read_json(path, task)
    if suffix == ".conll":
        import pyarrow

        with path.open(encoding="utf-8-sig", newline="") as file:
            return pyarrow.Table.from_pylist(list(read_conll(file, str(path))))
    raise DataError(f"found {path}, expected a file that ends in .csv, .tsv, .jsonl, .json, .parquet or .conll")


def _read_parquet(path: Path, task: Task | None) -> pyarrow.Table:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        names = file.schema_arrow.names
        check_column_names(names, str(path))
        return file.read(_columns_to_read(names, task))


def _columns_to_read(names: Sequence[str], task: Task | None) -> list[str] | None:
    """Return the columns of a file that a task uses; None to read all: without a task, or if a column is missing."""
    if task is None or not {*task.columns, task.label_column} <= {*names}:
        return None
    return [name for name in _used_columns(task) if name in names]


def _read_delimited(path: Path, task: Task | None, delimiter: str) -> pyarrow.Table:
    import pyarrow
    from pyarrow import csv as arrow_csv

    with path.open(encoding="utf-8-sig", newline="") as file:
        unquoted = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        names = next(filter(None, csv.reader(file, delimiter=delimiter) if delimiter == "," else unquoted), [])
    check_column_names(names, str(path))
    types: dict[str, pyarrow.DataType] = {}
    if task is not None:
        as_written = (*task.columns, task.label_column, *([task.id_column] if task.id_column else ()))
        types = dict.fromkeys(as_written, pyarrow.string())
    parse_options = arrow_csv.ParseOptions(
        delimiter=delimiter, quote_char='"' if delimiter == "," else False, newlines_in_values=delimiter == ","
    )
    convert_options = arrow_csv.ConvertOptions(column_types=types, include_columns=_columns_to_read(names, task))

    def read(block_size: int) -> pyarrow.Table:
        options = arrow_csv.ReadOptions(block_size=block_size)
        return arrow_csv.read_csv(path, options, parse_options=parse_options, convert_options=convert_options)

    return _read_in_blocks(path, read)


def _read_json(path: Path, task: Task | None) -> pyarrow.Table:
    import pyarrow
    from pyarrow import json as arrow_json

    check_json_depth(path)
    text = path.read_text("utf-8-sig")
    if text.lstrip().startswith("["):
        entries = enumerate(json.loads(text), start=1)
        return _table_of_rows([require_object(row, f"{path}, entry {number}") for number, row in entries], path, task)
    if path.suffix.lower() == ".json" and is_squad(content := _parse_json(text)):
        return pyarrow.Table.from_pylist(list(read_squad(content, str(path))))
    if not text.strip():
        return pyarrow.table({})
    schema = None if task is None or NULL_LINE.search(text) else _schema_of_first_row(text, task)
    if schema is not None:
        options = arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        try:
            return _read_in_blocks(
                path, lambda size: arrow_json.read_json(path, arrow_json.ReadOptions(block_size=size), options)
            )
        except pyarrow.ArrowInvalid as error:
            if "specified twice" in str(error):
                raise
            # Otherwise a row has another type than the first, or is invalid, and the other reader names it.
    return _table_of_rows([row for _, row in read_jsonl(text.split("\n"), str(path))], path, task)


def _schema_of_first_row(text: str, task: Task) -> pyarrow.Schema | None:
    """Return the types of the columns that the task uses in JSON Lines; None if the first row does not determine them.

    With them pyarrow reads dates as text, and ignores all other columns.
    """
    import pyarrow

    line = FIRST_LINE.search(text)
    first = _parse_json(line[0]) if line else None
    if not isinstance(first, dict) or _columns_to_read(list(first), task) is None:
        return None
    try:
        kinds = {name: pyarrow.infer_type([first[name]]) for name in _used_columns(task) if name in first}
    except (pyarrow.ArrowException, OverflowError, UnicodeError):
        return None
    # The keys of an object may be the labels: pyarrow ignores those that are not in the first row.
    has_label_keys = task.head != "question_answering" and pyarrow.types.is_struct(kinds[task.label_column])
    is_determined = len(kinds) == len(_used_columns(task)) and not any("null" in str(kind) for kind in kinds.values())
    return pyarrow.schema(kinds) if is_determined and not has_label_keys else None


def _table_of_rows(rows: Sequence[Row], path: Path, task: Task | None) -> pyarrow.Table:
    """Build a table of the columns that the task uses; labels of several types, such as 1 and "1", become text.

    Raises:
        DataError: the values of a column have different types; the message names the row.
    """
    import pyarrow

    names = list(dict.fromkeys(name for row in rows for name in row))
    used = _columns_to_read(names, task)
    if task is not None and used is None:  # the message about a missing column lists the others
        used = [name for name in _used_columns(task) if name in names]
        return pyarrow.table(
            {name: _column_of_values(name, rows, path, task) for name in used}
            | {name: pyarrow.nulls(len(rows)) for name in names if name not in used}
        )
    return pyarrow.table({name: _column_of_values(name, rows, path, task) for name in used or names})


def _column_of_values(name: str, rows: Sequence[Row], path: Path, task: Task | None) -> pyarrow.Array:
    import pyarrow

    values = [row.get(name) for row in rows]
    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError):
        kinds = {type(value) for value in values if value is not None}
        if task is not None and name in (task.label_column, task.id_column):
            if not kinds & {list, dict}:
                return pyarrow.array(map(label_text, values), pyarrow.string())
            if dict not in kinds and task.problem == "multi_label":
                lists = (value if isinstance(value, list) or value is None else [value] for value in values)
                texts = [None if value is None else [_list_item_text(item) for item in value] for value in lists]
                return pyarrow.array(texts, pyarrow.list_(pyarrow.string()))
            if kinds == {dict}:  # 1 and 1.0 and true in objects of labels
                return pyarrow.array([_with_float_flags(value) for value in values])
        first = next(value for value in values if value is not None)
        other = next((row for row, value in enumerate(values) if type(value) not in (type(None), type(first))), None)
        if other is None:
            raise
        raise DataError(
            f"{path}: row {other + 1} has {_json_kind(values[other])} in column {name!r}, and other rows have "
            f"{_json_kind(first)}; use one of them"
        ) from None


def _list_item_text(value: Any) -> str | None:
    return json.dumps(value) if isinstance(value, list | dict) else label_text(value)


def _with_float_flags(value: dict[str, Any] | None) -> dict[str, Any] | None:
    return value and {key: float(flag) if isinstance(flag, bool | int) else flag for key, flag in value.items()}


def _json_kind(value: Any) -> str:
    """Return what JSON calls a value, with its article."""
    kinds = {str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return kinds.get(type(value), "an object")


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
