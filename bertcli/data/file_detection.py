"""Detect how a data file is written, by evidence in its content: format, encoding and separator."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from bertcli.data.annotation_exports import is_spacy_example
from bertcli.data.delimited import SAMPLED_LINES, find_delimiter
from bertcli.data.formats import DOCUMENT_START, parse_json
from bertcli.data.table_files import FORMAT_OF_SUFFIX
from bertcli.data.text_files import (
    BYTE_ORDER_MARKS,
    UTF_8,
    WINDOWS_1252,
    TextOptions,
    open_binary,
    read_lines,
    without_compression_suffix,
)
from bertcli.errors import DataError, UsageError
from bertcli.tasks.task import DELIMITERS

MAX_SAMPLED_BYTES = 1 << 26  # read to detect the encoding
MAX_SAMPLED_LINES = 1000  # read to detect the format
MIN_NUL_SHARE = 0.3  # of the bytes at even or at odd positions, in UTF-16 without a byte order mark
LETTER_RUN = re.compile(r"[À-ÖØ-öø-ÿ]{3,}")  # rare in Western languages; a sign of Cyrillic, Greek and others
MAX_RUN_SHARE = 0.2  # of the letters beyond ASCII
MAX_TAGS = 200  # distinct last columns in a CoNLL file's sample
QUOTED_CELL = re.compile(r'(?:^|\t)"(?:[^"]|"")*"(?=\t|\r?$)', re.MULTILINE)
PARQUET_MARK = b"PAR1"
INIT_OPTIONS = TextOptions(setting="--{key} {value}")
FORMAT_NAMES = {
    "csv": "CSV",
    "tsv": "TSV",
    "jsonl": "JSON Lines",
    "json": "JSON",
    "conll": "CoNLL (one word per line)",
    "parquet": "Parquet",
}


@dataclass(frozen=True)
class FileDialect:
    """How a data file is written.

    Attributes:
        format: one of `FORMAT_NAMES`.
        encoding: encoding to set in a recipe; None: UTF-8, or a byte order mark determines it.
        delimiter: name of the separator of CSV, a key of `DELIMITERS`; None in other formats.
        evidence: what the encoding was inferred from; empty for plain UTF-8.
        column_names: names of the columns of CSV or TSV without a header; empty: the first line has them.
    """

    format: str
    encoding: str | None = None
    delimiter: str | None = None
    evidence: str = ""
    column_names: tuple[str, ...] = ()

    @property
    def options(self) -> TextOptions:
        """The options for reading the file."""
        return TextOptions(self.encoding, self.delimiter, INIT_OPTIONS.setting, self.column_names)

    @property
    def description(self) -> str:
        """The format, separator and encoding in words."""
        separator = "" if self.delimiter in (None, "comma") else f" separated by {self.delimiter}"
        return f"{FORMAT_NAMES[self.format]}{separator}" + (f", {self.evidence}" if self.evidence else "")


def detect_dialect(
    path: Path, encoding: str | None = None, delimiter: str | None = None, column_names: tuple[str, ...] = ()
) -> FileDialect:
    """Detect how a data file is written.

    Args:
        encoding: its encoding, if known; `delimiter` likewise.
        column_names: names of the columns, if it has no header.

    Raises:
        DataError: if the file cannot be read, or is not a text file or Parquet.
        UsageError: if its encoding or separator is unclear; the message names the option that decides.
    """
    suffix_format = FORMAT_OF_SUFFIX.get(without_compression_suffix(path).suffix.lower())
    if suffix_format == "parquet" or _is_parquet(path):
        return FileDialect("parquet")
    evidence = ""
    if encoding is None:
        encoding, evidence = detect_encoding(path)
    options = TextOptions(encoding, delimiter, INIT_OPTIONS.setting, column_names)
    lines = list(islice(read_lines(path, options), MAX_SAMPLED_LINES))
    if not "".join(lines).strip():
        expected = "rows" if suffix_format in ("json", "jsonl", "conll") else "rows with a header line"
        raise DataError(f"{path} is empty, expected {expected}")
    file_format = _detect_format(lines, suffix_format)
    if file_format not in ("csv", "tsv"):
        return FileDialect(file_format, encoding, evidence=evidence)
    if file_format == "tsv" and not QUOTED_CELL.search("".join(lines)):
        return FileDialect("tsv", encoding, evidence=evidence, column_names=column_names)
    if file_format == "tsv":  # quoted, so it is read as CSV
        return FileDialect("csv", encoding, "tab", evidence, column_names)
    separator, _ = find_delimiter(lines[:SAMPLED_LINES], str(path), options)
    name = next(name for name, value in DELIMITERS.items() if value == separator)
    return FileDialect("csv", encoding, name, evidence, column_names)


def _is_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(PARQUET_MARK)) == PARQUET_MARK
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def detect_encoding(path: Path) -> tuple[str | None, str]:
    """Return the encoding to set for a text file (None: none is needed), and the evidence (empty for plain UTF-8).

    Raises:
        DataError: if the file cannot be read or is not a text file.
        UsageError: if the encoding is unclear.
    """
    with open_binary(path) as file:
        content = file.read(MAX_SAMPLED_BYTES)
    for mark, name in BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            return None, f"{name.upper()} with a byte order mark"
    for offset, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        part = content[offset::2]
        if part and part.count(0) > MIN_NUL_SHARE * len(part) and content.count(0) < 2 * part.count(0):
            return name, f"{name.upper()} (every other byte is 0)"
    try:
        content.decode(UTF_8)
        return None, ""
    except UnicodeDecodeError as error:
        if error.end >= len(content) == MAX_SAMPLED_BYTES:  # the sample ends within a character
            return None, ""
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
    cure = "set --encoding, for example to windows-1251, iso-8859-7 or shift_jis"
    try:
        text = content.decode(WINDOWS_1252)
    except UnicodeDecodeError:
        raise UsageError(f"{path}:{line}: neither UTF-8 nor {WINDOWS_1252} (byte 0x{byte:02x}); {cure}") from None
    num_letters = sum(character >= "À" for character in text)
    if sum(map(len, LETTER_RUN.findall(text))) > MAX_RUN_SHARE * max(1, num_letters):
        raise UsageError(f"{path}:{line}: not UTF-8 (byte 0x{byte:02x}), and probably not a Western encoding; {cure}")
    return WINDOWS_1252, f"{WINDOWS_1252} (byte 0x{byte:02x} in line {line} is not UTF-8)"


def _detect_format(lines: Sequence[str], suffix_format: str | None) -> str:
    """Return the format of a text file, given its first lines; the suffix decides unless the content contradicts it."""
    first = next(line.strip() for line in lines if line.strip())
    if suffix_format in ("json", "jsonl", "conll"):
        return suffix_format
    if first.startswith(("{", "[")):
        is_line = isinstance(parse_json(first), dict) or is_spacy_example(parse_json(first))
        return "jsonl" if is_line else "json"
    if _is_conll(lines):
        return "conll"
    if suffix_format is not None:
        return suffix_format
    return "tsv" if "\t" in first else "csv"


def _is_conll(lines: Sequence[str]) -> bool:
    """Return whether lines hold a word and its tag each, in sentences separated by blank lines."""
    texts = [line.strip() for line in lines]
    while texts and not texts[-1]:
        texts.pop()
    words = [text.split() for text in texts if text and not text.startswith(("#", DOCUMENT_START))]
    has_sentences = "" in texts and len(words) > texts.count("")
    widths = {len(columns) for columns in words}
    return has_sentences and len(widths) == 1 and min(widths) > 1 and len({words[-1] for words in words}) <= MAX_TAGS
