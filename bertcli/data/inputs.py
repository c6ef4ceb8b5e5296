"""Rows to predict on, read as a stream: plain lines, JSON Lines, CSV or TSV, from a file or standard input."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO

from bertcli.errors import DataError, UsageError, did_you_mean

FORMATS = ("text", "jsonl", "csv", "tsv")
ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv"}
USUAL_COLUMNS = ("text", "text_pair")
csv.field_size_limit(sys.maxsize)  # a document may be longer than Python's 131,072 characters

Texts = tuple[str, ...]
"""One text, or the two of a pair."""


def guess_format(path: str) -> str:
    """The format a file's ending tells; plain lines for standard input and unknown endings."""
    return ENDINGS.get(Path(path).suffix.lower(), "text")


def read_inputs(path: str, kind: str, columns: Sequence[str]) -> Iterator[Texts]:
    """The texts of each row of `path` (`-` is standard input), one row at a time.

    Args:
        kind: one of `FORMATS`. In plain lines the texts of a pair stand on one line with a tab between them.
        columns: names of the text columns; `text` (and `text_pair`) serve if a file has none of them.

    Raises:
        DataError: the file is missing, not UTF-8, or a row lacks a text.
        UsageError: the format is unknown.
    """
    if kind not in FORMATS:
        raise UsageError(
            f"found input format {kind!r}, expected one of {', '.join(FORMATS)}{did_you_mean(kind, FORMATS)}"
        )
    readers = {"text": _read_lines, "jsonl": _read_jsonl, "csv": _read_csv, "tsv": _read_tsv}
    with _opened(path) as file:
        try:
            yield from readers[kind](file, path, columns)
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text; convert it, e.g. `iconv -f latin1 -t utf8`") from error


def in_chunks(rows: Iterable[Texts], size: int) -> Iterator[list[Texts]]:
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


def _read_lines(file: IO[str], path: str, columns: Sequence[str]) -> Iterator[Texts]:
    for number, line in enumerate(file, start=1):
        texts = tuple(line.rstrip("\r\n").split("\t")) if len(columns) == 2 else (line.rstrip("\r\n"),)
        if len(texts) != len(columns):
            raise DataError(f"{path}:{number}: found {len(texts)} texts, expected two with a tab between them")
        yield texts


def _read_jsonl(file: IO[str], path: str, columns: Sequence[str]) -> Iterator[Texts]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON ({error.msg}); each line must be one object") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: found {type(row).__name__}, expected an object on each line")
        yield _texts_of(row, columns, f"{path}:{number}")


def _read_csv(file: IO[str], path: str, columns: Sequence[str]) -> Iterator[Texts]:
    reader = csv.DictReader(file)
    for row in reader:
        yield _texts_of(row, columns, f"{path}:{reader.line_num}")


def _read_tsv(file: IO[str], path: str, columns: Sequence[str]) -> Iterator[Texts]:
    reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    for row in reader:
        yield _texts_of(row, columns, f"{path}:{reader.line_num}")


def _texts_of(row: dict[str, object], columns: Sequence[str], place: str) -> Texts:
    names = columns if columns[0] in row else USUAL_COLUMNS[: len(columns)]
    texts = []
    for name, wanted in zip(names, columns, strict=True):
        value = row.get(name)
        if not isinstance(value, str):
            found = f"columns {list(row)}" if name not in row else f"{value!r} in column {name!r}"
            raise DataError(f"{place}: found {found}, expected text in column {wanted!r} (or {name!r})")
        texts.append(value)
    return tuple(texts)
