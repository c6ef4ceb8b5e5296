"""Read datasets from the user's files: CSV, TSV, JSON Lines, JSON, Parquet, SQuAD's JSON and CoNLL, by suffix."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertcli.data.delimited import (
    SAMPLED_LINES,
    find_delimiter,
    is_sound,
    read_csv,
    read_tsv,
)
from bertcli.data.formats import (
    NOT_UNICODE,
    TOO_DEEP,
    Row,
    check_column_names,
    check_json_depth,
    is_squad,
    is_unicode,
    parse_json,
    read_conll,
    read_json,
)
from bertcli.data.text_files import (
    DEFAULT_OPTIONS,
    UTF_8,
    TextOptions,
    decode,
    read_lines,
    read_utf8,
    without_compression_suffix,
)
from bertcli.errors import DataError, quoted, shortened
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

BLOCK_BYTES, MAX_BLOCK_BYTES = 1 << 20, 2**31 - 1  # read by pyarrow at once
NULL_LINE = re.compile(r"^\s*null", re.MULTILINE)  # such a line crashes the process in pyarrow's reader
FIRST_LINE = re.compile(r"\S.*")  # the first non-blank line
QUOTED_VALUE = re.compile(r"'([^']{81,})'")
GENERIC_MESSAGE = "An error occurred while generating the dataset"  # raised by `datasets` whatever the cause
READ_ERRORS = (OSError, ValueError, TypeError, OverflowError, RecursionError, csv.Error)
FORMATS = ("text", "jsonl", "json", "csv", "tsv", "conll", "parquet")  # of prediction inputs; a data file is not text
FORMAT_OF_SUFFIX = {f".{name}": name for name in FORMATS[1:]} | {".ndjson": "jsonl", ".conllu": "conll"}
ROW_COLUMN = "__row__"  # number of a row in its file, from 1; added if the rows are only a part of the file
FILE_COLUMN = "__file__"  # path of a row's file; added if there are several files


def read_files(paths: Sequence[str], task: Task | None = None, split: str | None = None) -> Dataset:
    """Read CSV (quoted), TSV (unquoted, as in GLUE), JSON Lines, JSON, Parquet, SQuAD or CoNLL files, by suffix.

    Text files may be compressed and in other encodings; see `text_files`.

    Args:
        paths: files with the same columns; their rows are concatenated.
        task: if given, read only the columns that this task uses, ignoring the others, and read its texts, labels and
            IDs as written, without type inference: `007` stays `007`.
        split: name of the split, which is recorded in the returned rows.

    Raises:
        DataError: if a file is missing or unreadable, its encoding or format is unknown, or the files' columns differ.
    """
    import pyarrow
    from datasets import disable_progress_bars

    disable_progress_bars()  # of what is done with the rows later
    tables = []
    for path in map(Path, paths):
        check_exists(path)
        try:
            tables.append(_select_columns(_read_table(path, task), task))
        except (*READ_ERRORS, pyarrow.ArrowException) as error:
            raise DataError(f"cannot read {path}: {_explain(error)}") from error
    table = tables[0] if len(tables) == 1 else _concatenate(tables, paths, task)
    try:
        return to_dataset(table, split)
    except (ValueError, TypeError, NotImplementedError, pyarrow.ArrowException) as error:  # an unsupported type
        raise DataError(f"cannot read {', '.join(map(str, paths))}: {summarize_error(error)}") from error


def to_dataset(table: pyarrow.Table, split: str | None) -> Dataset:
    """Return a table as a split; its rows are not hashed, as nothing is cached under their fingerprint."""
    from datasets import Dataset, NamedSplit
    from datasets.fingerprint import generate_random_fingerprint

    name = None if split is None else NamedSplit(split)
    return Dataset(table, split=name, fingerprint=generate_random_fingerprint())


def check_exists(path: Path) -> None:
    """Raise `DataError` if the data file `path` does not exist."""
    if not path.is_file():
        raise DataError(f"found no file {path}, expected a CSV, TSV, JSON Lines, JSON, Parquet or CoNLL file")


def _concatenate(tables: Sequence[pyarrow.Table], paths: Sequence[str], task: Task | None) -> pyarrow.Table:
    """Concatenate the tables of several files, adding each row's file and its row number in that file."""
    import pyarrow

    label = task.label_column if task is not None else None
    if label is not None and all(label in table.column_names for table in tables):
        types = {table.schema.field(label).type for table in tables}
        if len(types) > 1 and not any(map(pyarrow.types.is_nested, types)):  # 1 and "1" are the same label
            tables = [_with_label_texts(table, label) for table in tables]
    numbered = []
    for path, table in zip(paths, tables, strict=True):
        if table.schema.names != tables[0].schema.names or table.schema.types != tables[0].schema.types:
            raise DataError(
                f"{path} {_difference(table.schema, tables[0].schema, paths[0])}; use the same columns, in the same "
                "order and of the same types, in all files"
            )
        table = table.append_column(ROW_COLUMN, pyarrow.array(range(1, len(table) + 1), pyarrow.int64()))
        numbered.append(table.append_column(FILE_COLUMN, pyarrow.repeat(str(path), len(table))))
    return pyarrow.concat_tables(numbered)


def _difference(schema: pyarrow.Schema, first: pyarrow.Schema, first_path: str) -> str:
    """Return how the columns of a file differ from those of the first file."""
    for field in schema:
        if field.name in first.names and (kind := first.field(field.name).type) != field.type:
            kinds = f"{shortened(str(field.type))} in column {quoted(field.name)}"
            return f"has {kinds}, but {first_path} has {shortened(str(kind))}"
    return f"has the columns {quoted(schema.names)}, but {first_path} has {quoted(first.names)}"


def _with_label_texts(table: pyarrow.Table, column: str) -> pyarrow.Table:
    import pyarrow

    texts = [label_text(value) for value in table.column(column).to_pylist()]
    return table.set_column(table.column_names.index(column), column, pyarrow.array(texts, pyarrow.string()))


def label_text(value: Any) -> str | None:
    """Return a label's value as text: `true`, `1` (also for 1.0), or text unchanged; None if it is missing or NaN."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return None if math.isnan(value) else str(int(value)) if value.is_integer() else str(value)
    return str(value)


def summarize_error(error: BaseException) -> str:
    """Return the first line of an error's message, or that of its cause if the message is generic or empty.

    Values of the data that the libraries quote in it are truncated.
    """
    message = str(error).removeprefix(GENERIC_MESSAGE).strip()
    if not message and error.__cause__ is not None:
        return summarize_error(error.__cause__)
    first_line = QUOTED_VALUE.sub(lambda match: f"'{shortened(match[1])}'", message.partition("\n")[0].rstrip("."))
    return first_line or type(error).__name__


def _explain(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return TOO_DEEP
    return f"{summarize_error(error):.300}"


def _used_columns(task: Task) -> list[str]:
    """Return the names of the columns that a task uses, whether or not they exist."""
    names = (
        *task.columns,
        *task.target_columns,
        task.id_column,
        task.group_by,
        task.split_column,
        task.sentence_column,
        task.answer_start_column,
    )
    return list(dict.fromkeys(name for name in names if name is not None))


def _select_columns(table: pyarrow.Table, task: Task | None) -> pyarrow.Table:
    """Return the columns that the task uses, in the task's order, with types supported by `datasets`."""
    import pyarrow

    if task is None:
        return table
    used = [name for name in _used_columns(task) if name in table.column_names]
    if len(used) < len(_used_columns(task)):  # the message about a missing column lists the others
        used += [name for name in table.column_names if name and name not in used]
    table = table.select(used)
    for index, field in enumerate(table.schema):
        kind = field.type.value_type if pyarrow.types.is_dictionary(field.type) else field.type
        if pyarrow.types.is_string_view(kind):
            kind = pyarrow.string()
        if kind != field.type:  # categories in pandas, text in Polars
            table = table.set_column(index, field.name, table.column(index).cast(kind))
    return table


def _read_table(path: Path, task: Task | None) -> pyarrow.Table:
    file_format, options = format_of(path, task), text_options(task)
    if file_format == "parquet":
        return _read_parquet(path, task)
    if file_format in ("csv", "tsv"):
        return _read_delimited(path, task, options, is_csv=file_format == "csv")
    if file_format in ("jsonl", "json"):
        return _read_json(path, task, options)
    if file_format == "conll":
        import pyarrow

        return pyarrow.Table.from_pylist(list(read_conll(read_lines(path, options), str(path))))
    raise DataError(
        f"found {path}, expected a file whose name ends in .csv, .tsv, .jsonl, .ndjson, .json or .conll, optionally "
        "followed by .gz, .bz2 or .zst, or in .parquet; else set task.files.format"
    )


def format_of(path: str | Path, task: Task | None) -> str | None:
    """Return the format of a task's data file: that of its recipe, or that of the suffix; None if it is unknown."""
    files = task.files if task is not None else None
    if files is not None and files.format is not None:
        return files.format
    return FORMAT_OF_SUFFIX.get(without_compression_suffix(path).suffix.lower())


def text_options(task: Task | None) -> TextOptions:
    """Return the options for reading a task's text files."""
    files = task.files if task is not None else None
    if files is None:
        return DEFAULT_OPTIONS
    return TextOptions(files.encoding, files.delimiter, column_names=files.column_names)


def _read_parquet(path: Path, task: Task | None) -> pyarrow.Table:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        names = file.schema_arrow.names
        check_column_names(names, str(path))
        return file.read(_columns_to_read(names, task))


def declared_names(path: Path) -> dict[str, list[str]]:
    """Return the label names that a Parquet file written by `datasets` declares, by column of label ids."""
    from pyarrow.parquet import read_schema

    metadata = (read_schema(path).metadata or {}).get(b"huggingface", b"{}")
    features = json.loads(metadata).get("info", {}).get("features", {})
    inner = {name: feature.get("feature", feature) for name, feature in features.items() if isinstance(feature, dict)}
    return {
        name: feature["names"] for name, feature in inner.items() if isinstance(feature, dict) and "names" in feature
    }


def _columns_to_read(names: Sequence[str], task: Task | None) -> list[str] | None:
    """Return the columns of a file that a task uses; None (read all) without a task or if a column is missing."""
    if task is None or not {*_used_columns(task)} <= {*names}:
        return None
    return _used_columns(task)


def _read_delimited(path: Path, task: Task | None, options: TextOptions, *, is_csv: bool) -> pyarrow.Table:
    """Read CSV or TSV with pyarrow; if pyarrow would fail or misread it, parse it row by row and requote it first."""
    import pyarrow

    columns = (*task.columns, *task.target_columns) if task is not None else ()
    content = read_utf8(path, options)

    def rows(lines: Iterable[str]) -> Iterator[list[str]]:
        numbered = read_csv(lines, str(path), options, columns) if is_csv else read_tsv(lines, str(path), options)
        return (row for _, row in numbered)

    sample = list(islice(read_lines(path, options), SAMPLED_LINES))
    has_header = not options.column_names
    names, *_ = islice(rows(sample), 1 if has_header else 2)  # the second is checked not to be a header
    delimiter, num_skipped = find_delimiter(sample, str(path), options, columns) if is_csv else ("\t", 0)
    begins_blank = bool(sample) and sample[0].strip("\r\n").isspace()  # pyarrow would take the line for the header
    if num_skipped == 0 and not begins_blank and is_sound(content, delimiter, is_quoted=is_csv):
        with suppress(pyarrow.ArrowInvalid):
            return _parse_delimited(content, names, task, delimiter, is_quoted=is_csv, has_header=has_header)
    quoted = io.StringIO()
    csv.writer(quoted, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows(read_lines(path, options)))
    return _parse_delimited(quoted.getvalue().encode(), names, task, ",", is_quoted=True)


def _parse_delimited(
    content: bytes,
    names: Sequence[str],
    task: Task | None,
    delimiter: str,
    *,
    is_quoted: bool,
    has_header: bool = True,
) -> pyarrow.Table:
    import pyarrow
    from pyarrow import csv as arrow_csv

    types: dict[str, pyarrow.DataType] = {}
    if task is not None:
        types = dict.fromkeys(_used_columns(task), pyarrow.string())
    parse_options = arrow_csv.ParseOptions(
        delimiter=delimiter, quote_char='"' if is_quoted else False, newlines_in_values=is_quoted
    )
    convert_options = arrow_csv.ConvertOptions(column_types=types, include_columns=_columns_to_read(names, task))

    def read(file: pyarrow.BufferReader, block_size: int) -> pyarrow.Table:
        options = arrow_csv.ReadOptions(block_size=block_size, column_names=None if has_header else names)
        return arrow_csv.read_csv(file, options, parse_options=parse_options, convert_options=convert_options)

    return _read_in_blocks(content, read)


def _read_json(path: Path, task: Task | None, options: TextOptions) -> pyarrow.Table:
    import pyarrow
    from pyarrow import json as arrow_json

    content = read_utf8(path, options)
    check_json_depth(io.BytesIO(content), str(path))
    text = decode(content, UTF_8, path, options)
    is_table = text.lstrip().startswith("{") and not (path.suffix.lower() == ".json" and is_squad(parse_json(text)))
    schema = _schema_of_first_row(text, task) if task is not None and is_table and not NULL_LINE.search(text) else None
    if schema is not None:
        parse_options = arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        with suppress(pyarrow.ArrowInvalid):  # a row is invalid or differs from the first in type: see below
            table = _read_in_blocks(
                content,
                lambda file, size: arrow_json.read_json(file, arrow_json.ReadOptions(block_size=size), parse_options),
            )
            if len(table) == sum(not line.isspace() for line in io.BytesIO(content)):  # pyarrow allows `{…} {…}`
                return table
    return _table_of_rows([row for _, row in read_json(text, str(path))], path, task)


def _schema_of_first_row(text: str, task: Task) -> pyarrow.Schema | None:
    """Return the types of the columns that the task uses in JSON Lines; None if the first row does not determine them.

    Given this schema, pyarrow reads dates as text and ignores all other columns.
    """
    import pyarrow

    line = FIRST_LINE.search(text)
    first = parse_json(line[0]) if line else None
    if not isinstance(first, dict) or _columns_to_read(list(first), task) is None or task.span_column is not None:
        return None
    try:
        kinds = {name: pyarrow.infer_type([first[name]]) for name in _used_columns(task) if name in first}
    except (pyarrow.ArrowException, OverflowError, UnicodeError):
        return None
    # The keys of an object may be the labels, and pyarrow would ignore those that are not in the first row.
    labels = [kinds[name] for name in task.target_columns if name in kinds]
    has_label_keys = task.head != "question_answering" and any(map(pyarrow.types.is_struct, labels))
    is_determined = len(kinds) == len(_used_columns(task)) and not any("null" in str(kind) for kind in kinds.values())
    return pyarrow.schema(kinds) if is_determined and not has_label_keys else None


def _table_of_rows(rows: Sequence[Row], path: Path, task: Task | None) -> pyarrow.Table:
    """Build a table of the columns that the task uses; labels of mixed types, such as 1 and "1", become text.

    Raises:
        DataError: if the values of a column have different types; the message names the row.
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
    if task is not None and name in task.columns:  # NaN is pandas' missing text
        values = [None if isinstance(value, float) and math.isnan(value) else value for value in values]
    if task is not None and name == task.span_column:  # `[0, 4, "PER"]` mixes types, which a column cannot
        values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    try:
        return pyarrow.array(values)
    except UnicodeEncodeError:
        row = next(row for row, value in enumerate(values) if not is_unicode(value))
        raise DataError(f"{path}: row {row + 1} has {NOT_UNICODE.format(name[:80])}") from None
    except (pyarrow.ArrowException, OverflowError):
        kinds = {type(value) for value in values if value is not None}
        if task is not None and name in (*task.target_columns, task.id_column, task.split_column):
            if not kinds & {list, dict}:
                return pyarrow.array(map(label_text, values), pyarrow.string())
            if dict not in kinds and task.problem == "multi_label":
                lists = (value if isinstance(value, list) or value is None else [value] for value in values)
                texts = [None if value is None else [_list_item_text(item) for item in value] for value in lists]
                return pyarrow.array(texts, pyarrow.list_(pyarrow.string()))
            if kinds == {dict} and task.head != "question_answering":  # 1, 1.0 and true in objects of labels
                return pyarrow.array([_with_float_flags(value) for value in values])
        if (problem := _type_conflict(name, values)) is None:
            raise
        raise DataError(f"{path}: {problem}; use the same type in all rows") from None


def _type_conflict(name: str, values: Sequence[Any]) -> str | None:
    """Describe the first value, possibly inside a list or an object, with another JSON type than those in other rows.

    Returns:
        None if all types agree, for example if a number is too large for pyarrow.
    """
    kinds: dict[str, str] = {}
    for row, value in enumerate(values, start=1):
        for inner_name, kind in _json_kinds(value, name):
            if (other := kinds.setdefault(inner_name, kind)) != kind:
                return f"row {row} has {kind} in column {inner_name!r:.80}, but other rows have {other}"
    return None


def _json_kinds(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield the name and JSON type of a value and of all values inside it, such as `answers.text[…]`, except nulls."""
    if value is None:
        return
    yield name, _json_kind(value)
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _json_kinds(inner, f"{name}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from _json_kinds(inner, f"{name}[…]")


def _list_item_text(value: Any) -> str | None:
    return json.dumps(value) if isinstance(value, list | dict) else label_text(value)


def _with_float_flags(value: dict[str, Any] | None) -> dict[str, Any] | None:
    return value and {key: float(flag) if isinstance(flag, bool | int) else flag for key, flag in value.items()}


def _json_kind(value: Any) -> str:
    """Return the JSON type of a value, with an article."""
    kinds = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return kinds.get(type(value), "an object")


def _read_in_blocks(content: bytes, read: Callable[[pyarrow.BufferReader, int], pyarrow.Table]) -> pyarrow.Table:
    """Call `read` with the default block size in bytes, or with one block for all content if a row exceeds it."""
    import pyarrow

    buffer = pyarrow.py_buffer(content)
    try:
        return read(pyarrow.BufferReader(buffer), BLOCK_BYTES)
    except pyarrow.ArrowInvalid:
        if len(content) < BLOCK_BYTES:
            raise
        return read(pyarrow.BufferReader(buffer), min(len(content) + 1, MAX_BLOCK_BYTES))
