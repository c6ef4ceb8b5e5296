"""Read CSV and TSV: detect the separator, and yield rows with their line numbers. Errors name the line."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice

import numpy as np

from bertcli.data.formats import check_column_names
from bertcli.data.text_files import DEFAULT_OPTIONS, TextOptions
from bertcli.errors import DataError
from bertcli.tasks.task import DELIMITERS

SAMPLED_LINES = 100  # used to detect the separator
SEPARATOR_LINE = re.compile(r'"?sep=([,;\t|])"? *', re.IGNORECASE)  # the first line of some files saved by Excel
BLOCK_BYTES = 1 << 20  # compared at once, to keep temporary arrays small
csv.field_size_limit(sys.maxsize)  # a document may exceed Python's default of 131,072 characters
Cells = tuple[int, list[str]]
"""The line number on which a row begins, and its values."""


def read_csv(
    lines: Iterable[str], path: str, options: TextOptions = DEFAULT_OPTIONS, columns: Sequence[str] = ()
) -> Iterator[Cells]:
    """Yield the rows of a CSV file, the header first; blank lines are skipped.

    Args:
        lines: lines of the file, with their line endings.
        columns: names that the header should contain, if known.

    Raises:
        DataError: if the separator is ambiguous, a row has more or fewer values than the header, or a quote is
            misplaced.
    """
    lines = iter(lines)
    sample = list(islice(lines, SAMPLED_LINES))
    delimiter, num_skipped = find_delimiter(sample, path, options, columns)
    lines = islice(chain(sample, lines), num_skipped, None)
    yield from _with_header(_split_csv(lines, num_skipped + 1, path, delimiter), path, delimiter, options.column_names)


def read_tsv(lines: Iterable[str], path: str, options: TextOptions = DEFAULT_OPTIONS) -> Iterator[Cells]:
    """Yield the rows of an unquoted TSV file, the header first; blank lines are skipped.

    Raises:
        DataError: if a row has more or fewer values than the header.
    """
    rows = ((number, line.removesuffix("\n").removesuffix("\r")) for number, line in enumerate(lines, start=1))
    cells = ((number, row.split("\t") if row else []) for number, row in rows)
    yield from _with_header(cells, path, "\t", options.column_names)


def find_delimiter(
    sample: Sequence[str], path: str, options: TextOptions = DEFAULT_OPTIONS, columns: Sequence[str] = ()
) -> tuple[str, int]:
    """Return the separator of a CSV file, and the number of lines before its header.

    The separator is the one set in `options` or in a first line such as Excel's `sep=;`. Otherwise it is the one with
    the most `columns` in the header and, if several tie, the one that gives every row as many values as the header.
    Without a header, it is one that gives the first row as many values as there are column names. For one name,
    it is the one that divides all rows alike, so that the row is refused, else the comma.

    Args:
        sample: the first lines, with their line endings.

    Raises:
        DataError: if the separator is ambiguous.
    """
    line = SEPARATOR_LINE.fullmatch(sample[0].strip("\r\n")) if sample else None
    if options.delimiter is not None:
        return DELIMITERS[options.delimiter], int(line is not None)
    if line is not None:
        return line[1], 1
    headers = {delimiter: next(_rows(sample, delimiter), []) for delimiter in DELIMITERS.values()}
    num_named = {delimiter: len({*columns} & {*names}) for delimiter, names in headers.items() if len(names) > 1}
    candidates = [delimiter for delimiter in num_named if num_named[delimiter] == max(num_named.values())]
    if len(options.column_names) == 1:  # every separator that does not occur gives one value, so expect none that does
        dividing = (delimiter for delimiter in num_named if _widths_agree(sample, delimiter))
        return next(dividing, ",") if len(sample) > 1 else ",", 0
    if options.column_names:
        candidates = [delimiter for delimiter, row in headers.items() if len(row) == len(options.column_names)]
    if len(candidates) > 1:
        agreeing = [delimiter for delimiter in candidates if _widths_agree(sample, delimiter)]
        if len(agreeing) != 1:
            names = " or ".join(name for name, delimiter in DELIMITERS.items() if delimiter in candidates)
            raise DataError(f"{path}: the separator may be {names}; {options.cure('delimiter', names)}")
        candidates = agreeing
    return (candidates or [","])[0], 0


def _rows(sample: Sequence[str], delimiter: str) -> Iterator[list[str]]:
    """Yield the non-blank rows of a sample, up to the first that is not valid CSV."""
    with suppress(csv.Error):
        for row in csv.reader(sample, delimiter=delimiter):
            if len(row) > 1 or "".join(row).strip(" \t"):
                yield row


def _widths_agree(sample: Sequence[str], delimiter: str) -> bool:
    widths = [len(row) for row in _rows(sample, delimiter)]
    if len(sample) == SAMPLED_LINES:  # the last row may continue after the sample
        del widths[-1]
    return len({*widths}) == 1


def is_sound(content: bytes, delimiter: str, *, is_quoted: bool) -> bool:
    """Return whether all CSV readers parse a file alike.

    This is so if every \\r precedes a \\n, and every quote opens or closes a value or is doubled within one.

    Args:
        content: UTF-8 without a byte order mark.
        is_quoted: False for TSV, in which quotes are part of the values.
    """
    codes = np.frombuffer(content, np.uint8)
    quotes = _positions(codes, '"') if is_quoted else np.zeros(0, np.int64)
    if len(quotes) % 2:
        return False
    return (
        _all_in(codes, _positions(codes, "\r") + 1, "\n")
        and _all_in(codes, quotes[::2] - 1, f'{delimiter}\r\n"')
        and _all_in(codes, quotes[1::2] + 1, f'{delimiter}\r\n"')
    )


def _positions(codes: np.ndarray, character: str) -> np.ndarray:
    code, starts = ord(character), range(0, len(codes), BLOCK_BYTES)
    found = [start + np.flatnonzero(codes[start : start + BLOCK_BYTES] == code) for start in starts]
    return np.concatenate([np.zeros(0, np.int64), *found])


def _all_in(codes: np.ndarray, positions: np.ndarray, characters: str) -> bool:
    """Return whether every position holds one of the characters; positions outside the file are ignored."""
    is_allowed = np.zeros(256, bool)
    is_allowed[[ord(character) for character in characters]] = True
    return bool(is_allowed[codes[positions[(positions >= 0) & (positions < len(codes))]]].all())


def _split_csv(lines: Iterable[str], first_line: int, path: str, delimiter: str) -> Iterator[Cells]:
    record: list[str] = []  # the lines of the current row

    def recorded() -> Iterator[str]:
        for line in lines:
            record.append(line)
            yield line

    reader = csv.reader(recorded(), delimiter=delimiter, strict=True)
    number = first_line
    while True:
        record.clear()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(_explain_quotes("".join(record), number, path, delimiter)) from error
        yield number, row
        number += len(record)


def _explain_quotes(record: str, first_line: int, path: str, delimiter: str) -> str:
    """Return the error message for a row that is not valid CSV."""
    value = re.compile(rf'(?P<quoted>"(?:[^"]|"")*+(?P<close>"?))|[^{re.escape(delimiter)}\r\n]*+')
    start = 0
    while match := value.match(record, start):
        line = first_line + record.count("\n", 0, match.start())
        end = match.end()
        if match["quoted"] and not match["close"]:
            return (
                f"{path}:{line}: the quote that opens a value here is never closed; close it or, if it is part of the "
                "text, double it and quote the value"
            )
        if match["quoted"] and record[end : end + 1] not in (delimiter, "\r", "\n", ""):
            closing = first_line + record.count("\n", 0, end)
            return (
                f"{path}:{line}: the quote that opens a value here is closed {f'on line {closing} ' * (closing > line)}"
                "in the middle of a value; quote the full value, and double the quotes within it"
            )
        if record[end : end + 1] != delimiter:
            break
        start = end + 1
    return f"{path}:{first_line}: has a carriage return in the middle of a value; remove it, or quote the value"


def _with_header(rows: Iterable[Cells], path: str, delimiter: str, column_names: Sequence[str]) -> Iterator[Cells]:
    """Yield the non-blank rows, the header first; check that every row has as many values as the header.

    Args:
        column_names: the header of a file that has none.
    """
    header, width = 1, len(column_names)
    if column_names:
        yield 0, [*column_names]
    for number, row in rows:
        if not row or (width != 1 and len(row) == 1 and not row[0].strip(" \t")):
            continue
        if row == [*column_names]:
            raise DataError(
                f"{path}:{number}: this line has the names of the columns, so the file has a header; do not name them"
            )
        if width == 0:
            check_column_names(row, path, "; if the file has no header, add one")
            header, width = number, len(row)
        if len(row) != width:
            name = next(name for name, value in DELIMITERS.items() if value == delimiter)
            cure = f"; if line {header} is not the header, remove it" if width == 1 else ""
            source = "for the given column names" if column_names else "as in the header"
            raise DataError(
                f"{path}:{number}: found {len(row)} value{'s' * (len(row) > 1)}, separated by {name}, expected {width} "
                f"{source}{cure}"
            )
        yield number, row
    if width == 0:
        raise DataError(f"{path} is empty, expected a header line with the column names")
