"""Stream prediction inputs as rows from plain lines, JSON Lines, JSON, CSV, TSV, CoNLL or Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertcli.data.delimited import read_csv, read_tsv
from bertcli.data.formats import (
    NOT_UNICODE,
    Row,
    check_column_names,
    is_unicode,
    parse_cell,
    read_conll,
    read_json,
    read_jsonl,
)
from bertcli.data.sources import column_names, load_split, split_files
from bertcli.data.table_files import FILE_COLUMN, FORMAT_OF_SUFFIX, FORMATS, ROW_COLUMN, format_of, text_options
from bertcli.data.text_files import TextOptions, is_utf8, read_lines, read_text, without_compression_suffix
from bertcli.errors import DataError, UsageError, did_you_mean, quoted, shortened
from bertcli.tasks.task import DELIMITERS, Task, check_encoding

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

DEFAULT_TEXT_COLUMNS = ("text", "text_pair")
PARQUET_BATCH_SIZE = 1024  # rows in memory
INPUT_OPTIONS = TextOptions(setting="--input-{key}={value}")
Value = str | list[str]


@dataclass(frozen=True)
class PredictionInput:
    """The source of prediction inputs: values, a split of the model's task, or a file.

    Attributes:
        values: one sequence per input, with the values of the task's columns in order; None: read `split` or `path`.
        path: file to read; `-` is standard input.
        file_format: one of `FORMATS`; None: infer it from the suffix of `path`.
        split: split of the model's task to read instead of `path`.
        columns: names of the input columns; None: those of the task.
        keep_columns: whether rows keep the columns that are not inputs.
        encoding: encoding of a text file without a byte order mark; None: UTF-8.
        delimiter: separator of CSV, a key of `DELIMITERS`; None: detect it.
        column_names: names of the columns of CSV or TSV without a header; None: it has one.

    Raises:
        UsageError: on construction, if the encoding, the separator or the column names are invalid or have no effect,
            or a value is not text.
    """

    values: Sequence[Sequence[str]] | None = None
    path: str = "-"
    file_format: str | None = None
    split: str | None = None
    columns: Sequence[str] | None = None
    keep_columns: bool = False
    encoding: str | None = None
    delimiter: str | None = None
    column_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        input_format = None if self.values is not None or self.split is not None else self.resolved_format
        if self.encoding is not None:
            if input_format in (None, "parquet"):
                raise UsageError("--input-encoding applies only to text files (--input); leave it out")
            try:
                check_encoding(self.encoding)
            except ValueError as error:
                raise UsageError(f"--input-encoding: {error}") from None
        if self.delimiter is not None:
            if input_format != "csv":
                raise UsageError("--input-delimiter applies only to CSV files (--input); leave it out")
            if self.delimiter not in DELIMITERS:
                found = f"found --input-delimiter {self.delimiter[:80]!r}"
                raise UsageError(f"{found}, expected one of {', '.join(DELIMITERS)}")
        if self.column_names is not None:
            if input_format not in ("csv", "tsv"):
                raise UsageError("--input-column-names applies only to CSV and TSV files (--input); leave it out")
            if len({*self.column_names}) < len(self.column_names) or "" in self.column_names:
                raise UsageError(
                    f"found --input-column-names {quoted(','.join(self.column_names))}, expected a different name for "
                    "each column"
                )
        for number, texts in enumerate(self.values or (), start=1):
            if not all(map(is_unicode, texts)):
                raise UsageError(f"input {number} has a lone surrogate (half of a character) or is not UTF-8; fix it")

    @property
    def files(self) -> tuple[str, ...]:
        """The path of the file to read; none for values and splits."""
        return (self.path,) if self.values is None and self.split is None else ()

    @property
    def resolved_format(self) -> str:
        """The format of the file, inferred from `path` if not set."""
        return self.file_format or infer_format(self.path)

    @property
    def text_options(self) -> TextOptions:
        """The options for reading a text file."""
        names = tuple(self.column_names or ())
        return replace(INPUT_OPTIONS, encoding=self.encoding, delimiter=self.delimiter, column_names=names)


class InputRows:
    """Input rows in memory, by column: what predicting needs of a `datasets.Dataset`, which takes long to import.

    Raises:
        DataError: on construction, if a column has both texts and lists of texts.
    """

    split = None  # they are not part of a dataset

    def __init__(self, columns: dict[str, list[Any]]):
        self._columns = columns
        for name, values in columns.items():
            if {str, list} <= {*map(type, values)}:
                rows = columns.get(ROW_COLUMN, range(1, len(values) + 1))
                text, texts = (rows[[*map(type, values)].index(kind)] for kind in (str, list))
                raise DataError(
                    f"column {name[:80]!r} of the inputs has a text in row {text} and a list of texts in row {texts}; "
                    "use one of them"
                )

    @property
    def column_names(self) -> list[str]:
        """The names of the columns."""
        return list(self._columns)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, key: str | int | slice) -> Any:
        """Return a column by its name, a row by its index, or several rows by a slice, as columns."""
        if isinstance(key, str):
            return self._columns[key]
        return {name: values[key] for name, values in self._columns.items()}

    def select(self, indices: Iterable[int]) -> InputRows:
        """Return only the rows with these indices, in their order."""
        return InputRows({name: [values[index] for index in indices] for name, values in self._columns.items()})


def infer_format(path: str) -> str:
    """Return the input format for the file's suffix; plain lines for standard input and unknown suffixes."""
    return FORMAT_OF_SUFFIX.get(without_compression_suffix(path).suffix.lower(), "text")


def read_inputs(
    path: str,
    input_format: str,
    columns: Sequence[str],
    *,
    default_columns: Sequence[str] = DEFAULT_TEXT_COLUMNS,
    list_columns: Sequence[str] = (),
    extra_columns: Sequence[str] | None = (),
    options: TextOptions = INPUT_OPTIONS,
) -> Iterator[Row]:
    """Yield the rows of `path` (`-` is standard input) one at a time, with their inputs under `columns`.

    Args:
        input_format: one of `FORMATS`. A plain line holds a row's values, separated by tabs. `json` is a list of
            objects or SQuAD's official file.
        columns: names of the columns to read; their values are texts.
        default_columns: names to read instead, in the same order, if a row does not have the first of `columns`.
        list_columns: columns whose values may be lists of texts (words, choices).
        extra_columns: additional columns to keep if they exist, such as an ID; None: all.
        options: how to read text files.

    Raises:
        DataError: if the file is missing or not in this format or encoding, or a row lacks a value.
        UsageError: if the format is unknown.
    """
    if input_format not in FORMATS:
        raise UsageError(
            f"found input format {input_format!r}, expected one of {', '.join(FORMATS)}."
            f"{did_you_mean(input_format, FORMATS)}"
        )
    cure = "; if the file has no header, name its columns with --input-column-names"
    cure = cure if input_format in ("csv", "tsv") and not options.column_names else ""
    needed = None if extra_columns is None else {*columns, *default_columns, *extra_columns}
    for location, row in read_rows(path, input_format, columns, needed, options):
        use_defaults = columns[0] not in row and len(default_columns) >= len(columns)
        names = default_columns[: len(columns)] if use_defaults else columns
        inputs = {
            column: _input_value(row, name, column, location, cure, may_be_list=column in list_columns)
            for name, column in zip(names, columns, strict=True)
        }
        kept = row if extra_columns is None else extra_columns
        result = {name: row[name] for name in kept if name in row} | inputs
        for name, value in result.items():
            if not is_unicode(value):
                raise DataError(f"{location}: has {NOT_UNICODE.format(name[:80])}")
        yield result


def read_rows(
    path: str, input_format: str, columns: Sequence[str], needed: set[str] | None, options: TextOptions
) -> Iterator[tuple[str, Row]]:
    """Yield each row of a file with its location, and its values as they are in the file: text in CSV and TSV.

    Args:
        input_format: one of `FORMATS`.
        columns: names that the header of a CSV file should contain, if known; the values of a plain line.
        needed: columns that are read; others may be missing. None: all.

    Raises:
        DataError: if the file is missing or not in this format or encoding.
    """
    if input_format == "parquet":
        yield from _read_parquet(path, needed)
    elif input_format == "json":
        yield from read_json(read_text(path, options), path)
    else:
        lines = read_lines(path, options)
        if input_format == "text":
            yield from _read_plain(lines, path, columns)
        elif input_format == "jsonl":
            yield from read_jsonl(lines, path)
        elif input_format == "conll":
            yield from _read_conll(lines, path)
        else:
            rows = read_tsv(lines, path, options) if input_format == "tsv" else read_csv(lines, path, options, columns)
            _, names = next(rows)
            if needed is None:
                _check_unnamed_columns(names, path)
            yield from ((f"{path}:{line}", dict(zip(names, row, strict=True))) for line, row in rows)


def batched(rows: Iterable[Row], batch_size: int) -> Iterator[list[Row]]:
    """Yield the rows in lists of at most `batch_size`."""
    iterator = iter(rows)
    while batch := list(islice(iterator, batch_size)):
        yield batch


def _read_plain(lines: Iterable[str], path: str, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(lines, start=1):
        text = line.removesuffix("\n").removesuffix("\r")
        values = text.split("\t") if len(columns) > 1 else [text]
        if len(values) != len(columns):
            raise DataError(
                f"{path}:{number}: found {len(values)} values, expected {len(columns)}, separated by tabs "
                f"({', '.join(columns)})"
            )
        yield f"{path}:{number}", dict(zip(columns, values, strict=True))


def _read_parquet(path: str, needed: set[str] | None) -> Iterator[tuple[str, Row]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    if path == "-":
        raise UsageError("Parquet cannot be read from standard input; pass the file's path")
    number = 0
    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            check_column_names(names, path)
            if needed is None:
                _check_unnamed_columns(names, path)
            columns = [name for name in names if needed is None or name in needed]
            if not columns:
                raise DataError(f"{path}: found columns {names!r:.80}, expected one of {sorted(needed or ())}")
            for batch in file.iter_batches(PARQUET_BATCH_SIZE, columns=columns):
                for row in _batch_rows(batch, path, number):
                    number += 1
                    yield f"{path}, row {number}", row
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _batch_rows(batch: pyarrow.RecordBatch, path: str, first_row: int) -> list[Row]:
    """Return the rows of a part of a Parquet file as Python values.

    Raises:
        DataError: if a value has no equivalent in Python, such as a five-digit year or a time with nanoseconds, or is
            not UTF-8; the message names its row and column.
    """
    import pyarrow

    errors = (ValueError, OverflowError, pyarrow.ArrowException)
    times = {field.name for field in batch.schema if field.type == pyarrow.time64("ns")}
    microseconds = pyarrow.time64("us")  # those of Python, which would truncate nanoseconds
    try:
        for name in times:
            batch.column(name).cast(microseconds)
        return batch.to_pylist()
    except errors:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            for row, value in enumerate(column, start=first_row + 1):
                try:
                    (value.cast(microseconds) if name in times else value).as_py()
                except errors as error:
                    where = f"{path}, row {row}: cannot read the value in column {name[:80]!r}"
                    raise DataError(f"{where} ({shortened(str(error))}); correct it, or remove the column") from error
        raise


def _check_unnamed_columns(names: Sequence[str], path: str) -> None:
    """Check that at most one column has no name, since a row has one value for each name."""
    if [*names].count("") > 1:
        raise DataError(f"{path} has several columns without a name, which cannot all be kept; name or remove them")


def parquet_types(path: str) -> dict[str, pyarrow.DataType]:
    """Return the type of each column of a Parquet file.

    Raises:
        DataError: if it cannot be read.
    """
    import pyarrow
    from pyarrow.parquet import read_schema

    try:
        return {field.name: field.type for field in read_schema(path)}
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _read_conll(lines: Iterable[str], path: str) -> Iterator[tuple[str, Row]]:
    for number, row in enumerate(read_conll(lines, path, require_tags=False), start=1):
        yield f"{path}, sentence {number}", row


def _input_value(row: Row, name: str, column: str, location: str, cure: str, *, may_be_list: bool) -> Value:
    value = row.get(name)
    value = parse_cell(value) if may_be_list and isinstance(parse_cell(value), list) else value
    if may_be_list and isinstance(value, list) and all(isinstance(part, str) for part in value):
        return value
    if not isinstance(value, str):
        found = f"columns {list(row)!r:.80}" if name not in row else f"{value!r:.80} in column {name!r}"
        other = "" if name == column else f" (or {name!r})"
        cure = "" if name in row else cure
        raise DataError(f"{location}: found {found}, expected text in column {column!r}{other}{cure}")
    return value


def load_inputs(
    task: Task, inputs: PredictionInput, default_columns: Sequence[str], mirror: Path | None, *, from_run: bool
) -> Iterator[Row]:
    """Load inputs as rows of the task's columns; a split's rows come without labels unless `inputs` keeps all columns.

    Args:
        task: from `with_input_columns`.
        default_columns: columns to read if a file does not have the task's columns and `inputs` does not name any.
        from_run: whether the task comes from a run folder. Otherwise, unless `inputs` names columns, it is unknown
            whether the model takes pairs, and a file with a second text column raises an error.
    """
    if inputs.values is not None:
        return (_row_from_values(task, values) for values in inputs.values)
    if inputs.split is not None:
        rows = load_split(task, inputs.split, mirror)
        if inputs.keep_columns and task.files is not None:
            return _with_all_columns(task, inputs.split, rows)
        used = [*task.columns, *({task.id_column} & {*rows.column_names})]
        rows = rows.select_columns(column_names(rows) if inputs.keep_columns else used)
        return iter(rows)
    if not from_run and inputs.columns is None and task.columns == DEFAULT_TEXT_COLUMNS[:1]:
        kept = None if inputs.keep_columns else DEFAULT_TEXT_COLUMNS[1:]
        options = inputs.text_options
        return _reject_pairs(
            read_inputs(inputs.path, inputs.resolved_format, task.columns, extra_columns=kept, options=options)
        )
    options = inputs.text_options
    if options.encoding is None and _has_encoding_of_task(task, inputs):
        options = replace(options, encoding=task.files.encoding if task.files is not None else None)
    extra_columns = [name for name in (task.id_column, task.sentence_column) if name is not None]
    input_rows = read_inputs(
        inputs.path,
        inputs.resolved_format,
        task.columns,
        default_columns=default_columns if inputs.columns is None else (),
        list_columns=task.list_columns,
        extra_columns=None if inputs.keep_columns else extra_columns,
        options=options,
    )
    return input_rows if task.sentence_column is None else _group_words(task, input_rows)


def _has_encoding_of_task(task: Task, inputs: PredictionInput) -> bool:
    """Return whether a file is not UTF-8, so that it is read in the encoding of the files that the task names."""
    is_set = task.files is not None and task.files.encoding is not None
    return is_set and inputs.path != "-" and inputs.resolved_format != "parquet" and not is_utf8(inputs.path)


def _group_words(task: Task, rows: Iterable[Row]) -> Iterator[Row]:
    """Yield a row for each sentence of rows that hold a word each; other rows, without a sentence, are unchanged."""
    column, current, sentence = str(task.sentence_column), "", dict[str, Any]()
    for row in rows:
        name = str(row.get(column, "")).strip()
        word = row[task.text_columns[0]]
        is_word = column in row and isinstance(word, str)
        if sentence and is_word and name in ("", current):
            sentence[task.text_columns[0]].append(word)
            continue
        if sentence:
            yield sentence
        sentence, current = {}, name
        if is_word:
            sentence = row | {task.text_columns[0]: [word]}
        else:
            yield row
    if sentence:
        yield sentence


def _with_all_columns(task: Task, split: str, rows: Dataset) -> Iterator[Row]:
    """Yield the rows of a split with all columns of the task's files; `rows` has only those that the task uses.

    Raises:
        DataError: if a file has changed since `rows` was read.
    """
    paths = split_files(task, split)
    rows_of_file = {path: list(_read_all_columns(task, path)) for path in paths}
    for index, row in enumerate(rows):
        path, number = row.get(FILE_COLUMN, paths[0]), row.get(ROW_COLUMN, index + 1)
        full_row = rows_of_file[path][number - 1] if number <= len(rows_of_file[path]) else {}
        if any(full_row.get(column) != row[column] for column in task.columns):
            raise DataError(f"{path}: row {number} changed while the file was read; run the same command again")
        yield full_row


def _read_all_columns(task: Task, path: str) -> Iterator[Row]:
    file_format = format_of(path, task) or "text"
    return read_inputs(
        path,
        "json" if file_format == "jsonl" else file_format,  # as `read_files` reads both
        task.columns,
        default_columns=(),
        list_columns=task.list_columns,
        extra_columns=None,
        options=text_options(task),
    )


def _reject_pairs(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield the rows unchanged.

    Raises:
        UsageError: if a row has a second text.
    """
    first, second = DEFAULT_TEXT_COLUMNS
    for row in rows:
        if second in row:
            raise UsageError(
                f"the input has a column {second!r} besides {first!r}, and it is unknown if this model reads pairs "
                f"(it has no run folder); set --columns {first},{second} or --columns {first}"
            )
        yield row


def with_input_columns(task: Task, inputs: PredictionInput, *, from_run: bool) -> Task:
    """Return the task with the column names (and, without a run folder, the number of texts per input) of `inputs`.

    Values that are not read from a file or split have no IDs, so the task then has no ID column.

    Args:
        from_run: whether the task comes from a run folder, which fixes the number of its columns.

    Raises:
        UsageError: if the number of named columns is wrong.
    """
    if inputs.columns is not None:
        task = _rename_columns(task, inputs.columns, from_run=from_run)
    if inputs.values is not None:
        task = task.model_copy(update={"id_column": None})
    if from_run or not inputs.values or task.head != "text_classification":
        return task
    num_texts = len(inputs.values[0])
    if num_texts > len(DEFAULT_TEXT_COLUMNS):
        return task
    return task.model_copy(update={"text_columns": DEFAULT_TEXT_COLUMNS[:num_texts]})


def _rename_columns(task: Task, columns: Sequence[str], *, from_run: bool) -> Task:
    if from_run and len(columns) != len(task.columns):
        raise UsageError(
            f"found {len(columns)} name{'s' * (len(columns) > 1)} in --columns, expected {len(task.columns)}, for "
            f"{', '.join(task.columns)}"
        )
    num_texts = len(task.text_columns) if task.choice_columns or from_run else len(columns)
    names = {"text_columns": tuple(columns[:num_texts]), "choice_columns": tuple(columns[num_texts:])}
    return task.model_copy(update=names)


def _row_from_values(task: Task, values: Sequence[str]) -> Row:
    """Build a row from values given on the command line; any values after the texts are choices.

    Raises:
        UsageError: if there are too few or too many values.
    """
    num_texts = len(task.text_columns)
    if len(task.columns) == 1 < len(values):
        option = "--pair" if len(values) == 2 else "--choice"
        raise UsageError(f"found {len(values)} texts for one input, but this model takes one text; leave out {option}")
    if len(values) != len(task.columns) and not (len(task.choice_columns) == 1 and len(values) > num_texts + 1):
        raise UsageError(
            f"found {len(values)} text{'s' * (len(values) > 1)} for one input, expected {', '.join(task.columns)}; "
            "pass the second text of a pair (or the passage of a question) with --pair, choices with --choice"
        )
    if len(task.choice_columns) == 1:
        return dict(zip(task.text_columns, values, strict=False)) | {task.choice_columns[0]: list(values[num_texts:])}
    return dict(zip(task.columns, values, strict=True))
