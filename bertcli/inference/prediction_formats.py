"""The file formats of `bertcli predict`: JSON Lines, CSV and TSV as text, and Parquet."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from bertcli.console import escape_control
from bertcli.data.formats import Row
from bertcli.errors import DataError, shortened

if TYPE_CHECKING:
    import pyarrow

INPUT_PREFIX = "input_"  # for a kept column whose name the prediction also has
TABLE_OPTIONS: dict[str, dict[str, Any]] = {
    "csv": {},
    "tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None},
}
SEPARATOR = re.compile(r"\r\n|[\t\r\n]")  # characters in a text that TSV cannot represent
NEGATIVE_NUMBER = re.compile(r"-(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)  # not a formula
CSV_CHANGES = (
    "an apostrophe precedes = + - @ at the start of a cell, except in negative numbers, and control characters are "
    "written as \\uXXXX"
)
TABLE_CHANGES = {"csv": CSV_CHANGES, "tsv": f"tabs and line breaks become spaces, {CSV_CHANGES}"}
NO_COLUMNS = (
    "found no inputs, so the columns of the {} file are unknown; add a row, or write JSON Lines (--format jsonl)"
)
JSON_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=str)  # dates and bytes as text

Prediction = dict[str, Any]
Chunk = Sequence[tuple[Row, Prediction]]
"""The echoed columns and the prediction of consecutive inputs."""


class PredictionWriter(Protocol):
    """Writes predictions to one file, or to several parts that are joined at the end.

    Attributes:
        columns: names of the columns if they are those of the first row, else None.
        num_changed_cells: number of cells that differ from the original text.
    """

    columns: list[str] | None
    num_changed_cells: int

    @property
    def warning(self) -> str | None:
        """Which cells differ from the original text, and why; None if all are the same."""

    def write_file(self, chunks: Iterable[Chunk], path: Path, first_row: int) -> int:
        """Write a file, or the part that starts at row `first_row`, and return its number of rows."""

    def join(self, parts: Sequence[Path], path: Path) -> None:
        """Join the parts, one at a time in memory."""


class TextWriter:
    """Writes JSON Lines, or a table (CSV, TSV) with the columns of its first row.

    Args:
        format_name: `jsonl`, `csv` or `tsv`.
        columns: the columns of a table whose header has been written; None: not yet.
        num_changed_cells: number of cells that differ from the original text in the rows that have been written.
    """

    def __init__(self, format_name: str, columns: list[str] | None = None, num_changed_cells: int = 0):
        self.format_name, self.columns, self.num_changed_cells = format_name, columns, num_changed_cells

    @property
    def warning(self) -> str | None:
        """Which cells differ from the original text, and why; None if all are the same."""
        if not self.num_changed_cells:
            return None
        changes = TABLE_CHANGES[self.format_name]
        note = f"cells that differ from the original text: {self.num_changed_cells}; {changes}"
        return f"{note}; --format jsonl keeps all texts unchanged"

    def write_file(self, chunks: Iterable[Chunk], path: Path, first_row: int) -> int:
        """Write a file, or the part that starts at row `first_row`, and return its number of rows."""
        with path.open("w", encoding="utf-8", newline="") as file:
            return self.write(chunks, file, first_row)

    def write(self, chunks: Iterable[Chunk], file: IO[str], first_row: int = 0) -> int:
        """Stream rows to an open file, complete after each chunk, and return their number.

        Raises:
            DataError: if the columns of a row differ from those of the first one, or a table would have none.
        """
        num_rows = first_row
        for chunk in chunks:
            if self.format_name == "jsonl":
                file.writelines([escape_control(_to_json(row | prediction)) + "\n" for row, prediction in chunk])
            else:
                self._write_cells(chunk, file, num_rows)
            num_rows += len(chunk)
            file.flush()  # a reader of a pipe may wait for complete chunks
        if self.columns is None and self.format_name != "jsonl":
            raise DataError(NO_COLUMNS.format(self.format_name.upper()))
        return num_rows - first_row

    def _write_cells(self, chunk: Chunk, file: IO[str], first_row: int) -> None:
        table = csv.writer(file, lineterminator="\n", **TABLE_OPTIONS[self.format_name])
        if self.columns is None:
            self.columns = list(_table_row(*chunk[0]))
            table.writerow([_escape_cell(name, self.format_name) for name in self.columns])
        for number, (row, prediction) in enumerate(chunk, start=first_row + 1):
            cells = _table_row(row, prediction)
            if new := cells.keys() - set(self.columns):
                raise DataError(
                    f"row {number} has the column {min(new):.80}, which the first row does not have; "
                    "write JSON Lines (--format jsonl)"
                )
            values = [cells.get(name, "") for name in self.columns]
            escaped = [_escape_cell(value, self.format_name) for value in values]
            self.num_changed_cells += sum(
                new != old for new, old in zip(escaped, values, strict=True) if isinstance(old, str)
            )
            table.writerow(escaped)

    def join(self, parts: Sequence[Path], path: Path) -> None:
        """Join the parts, of which only the first one has a header."""
        import shutil

        with path.open("wb") as file:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, file)


class ParquetWriter:
    """Writes Parquet, with one row group per part.

    The columns are those of a table, but lists and objects stay as they are. The columns of the input have the types
    of the input file, other types follow from the values.

    Args:
        types: type of each column of the input; empty if the input is not Parquet.
    """

    columns: list[str] | None = None
    num_changed_cells = 0
    warning: str | None = None

    def __init__(self, types: Mapping[str, pyarrow.DataType]):
        self._types = types
        self._schema: pyarrow.Schema | None = None

    def write_file(self, chunks: Iterable[Chunk], path: Path, first_row: int) -> int:
        """Write a file, or the part that starts at row `first_row`, and return its number of rows.

        Raises:
            DataError: if the values of a column are of several types, also in different parts, or there are no rows.
        """
        from pyarrow import ArrowException
        from pyarrow.parquet import write_table

        rows = list(chain.from_iterable(chunks))
        if not rows:
            raise DataError(NO_COLUMNS.format("Parquet"))
        table = self._to_table(rows)
        self._schema = _unify([table.schema] if self._schema is None else [self._schema, table.schema])
        try:
            write_table(table, path)
        except ArrowException as error:
            raise _not_parquet(error) from error
        return len(table)

    def join(self, parts: Sequence[Path], path: Path) -> None:
        """Join the parts, one at a time in memory.

        Raises:
            DataError: if a column has another type in some parts.
        """
        import pyarrow
        from pyarrow import parquet

        schema = _unify([parquet.read_schema(part) for part in parts])
        with parquet.ParquetWriter(path, schema) as writer:
            for part in parts:
                with parquet.ParquetFile(part) as file:
                    tables = [schema.empty_table(), file.read()]
                try:
                    table = pyarrow.concat_tables(tables, promote_options="permissive")
                except pyarrow.ArrowException as error:  # such as large integers among fractions
                    raise _not_parquet(error) from error
                writer.write_table(table)

    def _to_table(self, rows: Chunk) -> pyarrow.Table:
        import pyarrow

        predictions = [_split_probabilities(prediction) for _, prediction in rows]
        predicted = {*chain.from_iterable(predictions)}
        cells = [row | prediction for (row, _), prediction in zip(rows, predictions, strict=True)]
        columns = {}
        for name in dict.fromkeys(chain.from_iterable(cells)):
            values = [row.get(name) for row in cells]
            kind = None if name in predicted else self._type_of(name)
            # Lists of words or choices that the input has as text were parsed.
            is_parsed = kind is not None and not pyarrow.types.is_nested(kind) and list in map(type, values)
            try:
                columns[name] = pyarrow.array(values, None if is_parsed else kind)
            except (pyarrow.ArrowException, OverflowError, TypeError, ValueError) as error:
                raise _not_parquet(error, f"column {name[:80]!r}: ") from error
        return pyarrow.table(columns)

    def _type_of(self, name: str) -> pyarrow.DataType | None:
        """Return the type of a column of the input, which may have been renamed; None if it is unknown."""
        return self._types.get(name, self._types.get(name.removeprefix(INPUT_PREFIX)))


def _unify(schemas: Sequence[pyarrow.Schema]) -> pyarrow.Schema:
    """Return a schema with the columns of all schemas; columns that are always empty in some have the others' type."""
    import pyarrow

    try:
        return pyarrow.unify_schemas(list(schemas), promote_options="permissive")
    except pyarrow.ArrowException as error:
        raise _not_parquet(error) from error


def _not_parquet(error: Exception, where: str = "") -> DataError:
    reason = shortened(str(error).partition("\n")[0])
    return DataError(
        f"cannot write Parquet, where all values of a column need the same type: {where}{reason}; write JSON Lines "
        "(--format jsonl)"
    )


def output_columns(prediction: Prediction) -> set[str]:
    """Return the names of a prediction's columns in any of the formats."""
    return {*prediction, *_split_probabilities(prediction)}


def _split_probabilities(prediction: Prediction) -> Prediction:
    """Return the prediction with a column for each probability."""
    cells: Prediction = {}
    for key, value in prediction.items():
        if isinstance(value, dict):
            cells |= {f"probability_{label}": probability for label, probability in value.items()}
        elif isinstance(value, list) and key == "probabilities":
            cells |= {f"probability_{index}": probability for index, probability in enumerate(value)}
        else:
            cells[key] = value
    return cells


def _table_row(row: Row, prediction: Prediction) -> dict[str, Any]:
    """Flatten a row and its prediction for a table: lists are joined, each probability gets its own column.

    Objects, and lists that contain lists or objects, become JSON.
    """
    cells: dict[str, Any] = {}
    for key, value in (row | _split_probabilities(prediction)).items():
        is_nested = isinstance(value, list) and any(isinstance(part, dict | list | tuple) for part in value)
        if isinstance(value, dict) or is_nested:
            cells[key] = _to_json(value)
        elif isinstance(value, list):
            cells[key] = (" " if key in ("words", "tags") else ",").join(map(str, value))
        else:
            cells[key] = value
    return cells


def _escape_cell(value: Any, format_name: str) -> Any:
    """Escape a text cell as `TABLE_CHANGES` says, against terminal control codes and spreadsheet formulas (OWASP)."""
    if not isinstance(value, str):
        return value
    text = escape_control(SEPARATOR.sub(" ", value) if format_name == "tsv" else value)
    is_formula = text.startswith(("=", "+", "-", "@", "\t")) and not NEGATIVE_NUMBER.fullmatch(text)
    return f"'{text}" if is_formula else text


def _to_json(value: Any) -> str:
    """Return the value as JSON, which has no NaN and no infinity: they become null."""
    try:
        return JSON_ENCODER.encode(value)
    except ValueError:
        return JSON_ENCODER.encode(_without_non_finite(value))


def _without_non_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_non_finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_non_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
