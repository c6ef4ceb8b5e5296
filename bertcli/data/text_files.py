"""Read text files as people save them: encodings, compression and line endings.

A byte order mark determines the encoding; without one, it is `TextOptions.encoding` or UTF-8. Gzip, bzip2 and Zstandard
are recognized by their first bytes, as are files that are not text. Lines end in \\n or \\r\\n, or in \\r in a file
without any \\n (classic Mac OS). U+2028, U+0085, form feeds and any other \\r are part of the text.
"""

from __future__ import annotations

import codecs
import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertcli.errors import DataError

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16, whose mark is a prefix of this one
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
COMPRESSION = {rb"\x1f\x8b": "gzip", rb"BZh[1-9]1AY&SY": "bz2", rb"\x28\xb5\x2f\xfd": "zstd"}
COMPRESSION_SUFFIXES = (".gz", ".bz2", ".zst")
NOT_TEXT = {
    rb"PK\x03\x04": "a zip archive or an Excel workbook (.xlsx); unpack it, or save the sheet as CSV",
    rb"\xd0\xcf\x11\xe0": "an Excel workbook (.xls); save the sheet as CSV",
    rb"PAR1[\x00-\x1f]": "a Parquet file; rename it to end in .parquet",
    rb"ARROW1\0": "an Arrow file; save it as Parquet",
    rb"\xfd7zXZ\0": "an xz archive; unpack it",
    rb"7z\xbc\xaf": "a 7z archive; unpack it",
    rb"%PDF-\d": "a PDF document; extract its text",
}
MAX_SIGNATURE_BYTES = 10
UTF_8, WINDOWS_1252 = "utf-8", "windows-1252"


@dataclass(frozen=True)
class TextOptions:
    """The user's settings for text files, and how messages refer to these settings.

    Attributes:
        encoding: encoding of files without a byte order mark; None: UTF-8.
        delimiter: name of the separator of CSV, a key of `tasks.task.DELIMITERS`; None: detect it.
        setting: how to set one of the above, a template with `{key}` and `{value}`.
        column_names: names of the columns of CSV and TSV files without a header; empty: they have one.
    """

    encoding: str | None = None
    delimiter: str | None = None
    setting: str = "task.files.{key}={value}"
    column_names: tuple[str, ...] = ()

    def cure(self, key: str, value: str) -> str:
        """Return an instruction to set `key` to `value`, for a message."""
        return f"set {self.setting.format(key=key, value=value)}"


DEFAULT_OPTIONS = TextOptions()


def without_compression_suffix(path: str | Path) -> Path:
    """Return the path without `.gz`, `.bz2` or `.zst`, so that it ends in the suffix of the format."""
    path = Path(path)
    return path.with_suffix("") if path.suffix.lower() in COMPRESSION_SUFFIXES else path


@contextmanager
def open_binary(path: str | Path) -> Iterator[io.BufferedReader]:
    """Open a file (`-` is standard input) for reading; decompress it if necessary.

    Raises:
        DataError: if the file is missing, unreadable or damaged, or is not a text file.
    """
    try:
        if str(path) == "-":
            yield _decompressed(_buffered(sys.stdin.buffer), path)
        else:
            with open(path, "rb") as file:
                yield _decompressed(file, path)
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or f"it may be damaged or truncated ({error!s:.80})"
        raise DataError(f"cannot read {path}: {reason}") from error


def _buffered(file: Any) -> io.BufferedReader:
    return file if hasattr(file, "peek") else io.BufferedReader(file)


def _decompressed(file: io.BufferedReader, path: str | Path) -> io.BufferedReader:
    head = file.peek(MAX_SIGNATURE_BYTES)[:MAX_SIGNATURE_BYTES]
    for signature, found in NOT_TEXT.items():
        if re.match(signature, head):
            raise DataError(f"{path} is not a text file, but {found}")
    for signature, compression in COMPRESSION.items():
        if re.match(signature, head):
            import pyarrow

            return _buffered(pyarrow.input_stream(file, compression=compression))
    if Path(path).suffix.lower() in COMPRESSION_SUFFIXES:
        raise DataError(f"cannot read {path}: it is damaged, or not compressed despite its suffix; fix or rename it")
    return file


def _skip_mark(file: io.BufferedReader, path: str | Path, options: TextOptions) -> str:
    """Return the encoding of a file that was just opened, and skip its byte order mark, even if it is repeated.

    Raises:
        DataError: if the encoding is utf-16 or utf-32, and no mark gives the byte order.
    """
    head = file.peek(4)
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            while file.peek(len(mark)).startswith(mark):
                file.read(len(mark))
            return encoding
    name = codecs.lookup(options.encoding or UTF_8).name
    if head and name in ("utf-16", "utf-32"):
        cure = options.cure("encoding", f"{name}-le or {name}-be")
        raise DataError(f"{path}: has no byte order mark, which {name} requires; {cure}")
    return UTF_8 if name == UTF_8 else str(options.encoding)


@contextmanager
def open_text(path: str | Path, options: TextOptions = DEFAULT_OPTIONS) -> Iterator[io.TextIOWrapper]:
    """Open a text file for reading in parts, with every line ending converted to \\n.

    Reading raises UnicodeDecodeError if the file has a different encoding; `check_text` then names the line.

    Raises:
        DataError: as `open_binary`.
    """
    with open_binary(path) as file:
        encoding = _skip_mark(file, path, options)
        yield io.TextIOWrapper(file, encoding)


def read_lines(path: str | Path, options: TextOptions = DEFAULT_OPTIONS) -> Iterator[str]:
    """Yield the lines of a text file (`-` is standard input) as an editor counts them, with their line endings.

    Raises:
        DataError: as `open_binary`, or if a line has NUL characters or a different encoding; the message names it.
    """
    with open_binary(path) as file:
        encoding = _skip_mark(file, path, options)
        lines = _decoded_lines(file, encoding, str(path), options)
        first = next(lines, "")
        if "\r" in first and not first.endswith("\n"):  # the file has no other line endings
            yield from io.StringIO(first.replace("\r", "\n"))
        elif first:
            yield first
        yield from lines


def _decoded_lines(file: io.BufferedReader, encoding: str, path: str, options: TextOptions) -> Iterator[str]:
    number, is_ascii = 1, True  # so far
    has_lines = "\n".encode(encoding) == b"\n"  # False in UTF-16
    for content in file if has_lines else [file.read()]:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError as error:
            if has_lines and b"\0" in content:
                raise _has_nul(f"{path}:{number}", content.decode("latin-1"), options) from error
            before = content[: error.start]
            number += before.decode(encoding, "replace").count("\n")
            is_damage = encoding != UTF_8 or not is_ascii or not before.isascii()
            raise _wrong_encoding(f"{path}:{number}", None if is_damage else content, encoding, options) from error
        is_ascii = is_ascii and text.isascii()
        for line in [text] if has_lines else io.StringIO(text):
            if "\0" in line:
                raise _has_nul(f"{path}:{number}", line, options)
            yield line
            number += 1


def _wrong_encoding(location: str, content: bytes | None, encoding: str, options: TextOptions) -> DataError:
    """Return the error for bytes that are not in `encoding`.

    Args:
        content: the undecodable bytes, possibly in a single-byte encoding; None: the file is damaged.
    """
    try:
        if content is not None and content.decode(WINDOWS_1252):
            cure = options.cure("encoding", WINDOWS_1252)
            return DataError(f"{location}: not UTF-8, probably {WINDOWS_1252}; {cure}, or convert the file to UTF-8")
    except UnicodeDecodeError:
        pass
    return DataError(f"{location}: not {encoding}; fix this line, or {options.cure('encoding', 'NAME')}")


def _has_nul(location: str, line: str, options: TextOptions) -> DataError:
    if "\0" in line[:2] and line.count("\0") * 3 > len(line):
        cure = options.cure("encoding", "utf-16-be" if line.startswith("\0") else "utf-16-le")
        return DataError(f"{location}: has NUL characters, probably UTF-16 without a byte order mark; {cure}")
    return DataError(f"{location}: has a NUL character; remove it, or check whether this is a text file")


def is_utf8(path: str | Path) -> bool:
    """Return whether the content of a file is UTF-8, or has a byte order mark, so that its encoding needs no setting.

    Raises:
        DataError: as `open_binary`.
    """
    decoder = codecs.getincrementaldecoder(UTF_8)()
    with open_binary(path) as file:
        if file.peek(MAX_SIGNATURE_BYTES).startswith(tuple(BYTE_ORDER_MARKS)):
            return True
        try:
            for block in iter(lambda: file.read(1 << 20), b""):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def check_text(path: str | Path, options: TextOptions = DEFAULT_OPTIONS) -> None:
    """Check that a file is text.

    Raises:
        DataError: as `read_lines`.
    """
    for _ in read_lines(path, options):
        pass


def read_utf8(path: str | Path, options: TextOptions = DEFAULT_OPTIONS) -> bytes:
    """Return the content of a text file in UTF-8 without a byte order mark; lines end in \\n or \\r\\n.

    A file assumed to be in UTF-8 is not validated.

    Raises:
        DataError: as `read_lines`.
    """
    with open_binary(path) as file:
        encoding = _skip_mark(file, path, options)
        content = file.read()
    if encoding != UTF_8:
        content = decode(content, encoding, path, options).encode()
    if b"\0" in content:
        check_text(path, options)
    return content if b"\n" in content else content.replace(b"\r", b"\n")


def read_text(path: str | Path, options: TextOptions = DEFAULT_OPTIONS) -> str:
    """Return the content of a text file as a string; its lines end in \\n or \\r\\n.

    Raises:
        DataError: as `read_lines`.
    """
    return decode(read_utf8(path, options), UTF_8, path, options)


def decode(content: bytes, encoding: str, path: str | Path, options: TextOptions) -> str:
    """Decode the content of a file.

    Raises:
        DataError: if the file has a different encoding; the message names the line.
    """
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        check_text(path, options)
        raise DataError(f"{path}: not {encoding}; {options.cure('encoding', 'NAME')}") from error
