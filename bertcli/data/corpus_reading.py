"""Stream corpus documents from text and JSON Lines files (also compressed), Parquet files, datasets and sample data.

No file is loaded whole and very long lines are split, so memory use does not depend on the size of a file.
"""

from __future__ import annotations

import glob
import re
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from bertcli.data.formats import JSON_LINES_SUFFIXES, NOT_UNICODE, is_unicode, json_excerpt, read_jsonl
from bertcli.data.sources import load_rows
from bertcli.data.text_files import (
    TextOptions,
    check_text,
    open_text,
    read_lines,
    without_compression_suffix,
)
from bertcli.errors import DataError
from bertcli.recipe.pretrain_schema import Source

MAX_DOCUMENT_CHARACTERS = 8_000_000  # longer documents are split
PIECE_CHARACTERS = 10_000  # of a file that is one document, such as a book
READ_SIZE_CHARACTERS = 1 << 20
MAX_WRAPPED_WIDTH, MIN_WRAPPED_FILL = 200, 0.8  # of hard-wrapped lines: characters, and median / longest line
PARQUET_BATCH_SIZE = 1000  # rows
NUM_SAMPLE_DOCUMENTS = 20_000
UNSUPPORTED = (".json", ".csv", ".tsv", ".arrow", ".xz", ".zip", ".tar", ".tgz", ".7z", ".npy", ".pdf", ".docx")
SENTENCE_FINAL = tuple('.!?…。！？।؟"”」')
SEPARATORS = {"blocks": re.compile(r"\n[ \t\r]*\n\s*"), "lines": re.compile(r"\n"), "files": re.compile(r"(?!)")}


def source_files(source: Source) -> list[Path]:
    """Return the files of a source without duplicates: in the order of its patterns, sorted within each pattern.

    Raises:
        DataError: if a pattern does not match any file.
    """
    paths: list[Path] = []
    for pattern in source.files:
        matches = sorted(Path(path) for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
        if not matches:
            raise DataError(f"found no file {pattern}, expected text, JSON Lines or Parquet files")
        paths += [path for path in matches if path not in paths]
    return paths


def read_documents(source: Source, mirror: Path | None) -> Iterator[str]:
    """Yield the documents of a source, skipping empty ones.

    Raises:
        DataError: if a file or dataset is missing, unreadable or damaged, or a file has a different encoding.
    """
    if source.dataset == "sample":
        from bertcli.data.sample import sample_documents

        yield from sample_documents(NUM_SAMPLE_DOCUMENTS)
    elif source.dataset is not None:
        rows = load_rows(source.dataset, source.config, source.split, mirror)
        if source.column not in rows.column_names:
            raise DataError(f"{source.dataset}: found columns {rows.column_names}, expected column {source.column!r}")
        yield from _nonempty(rows[source.column], f"{source.dataset}: row", source.column)
    else:
        paths = source_files(source)
        for path in paths:
            yield from _read_file(path, source, is_only_file=len(paths) == 1)


def _read_file(path: Path, source: Source, *, is_only_file: bool) -> Iterator[str]:
    """Yield the documents of one file; every error message names the file."""
    import pyarrow

    uncompressed = without_compression_suffix(path)
    options = _text_options(source)
    if uncompressed.suffix in UNSUPPORTED:
        raise DataError(
            f"found {path}, expected text or JSON Lines (.jsonl), plain or compressed (.gz, .zst, .bz2), or Parquet"
        )
    try:
        if uncompressed.suffix == ".parquet":
            texts: Iterable[str] = _read_parquet(path, source.column)
        elif uncompressed.suffix in JSON_LINES_SUFFIXES:
            texts = _read_jsonl(path, source.column, options)
        else:
            layout = _file_layout(path, source) if is_only_file else None
            max_characters = PIECE_CHARACTERS if layout == "files" else MAX_DOCUMENT_CHARACTERS
            texts = split_stream(_read_text(path, options), SEPARATORS[layout or source.documents], max_characters)
        yield from _nonempty(texts, f"{path}: document", source.column)
    except (OSError, EOFError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path}: it may be damaged or truncated ({error})") from error


def _text_options(source: Source) -> TextOptions:
    return TextOptions(source.encoding, setting="`{key}: {value}` for this source")


def single_file_layout(source: Source) -> Literal["lines", "files"] | None:
    """Return the document unit of a source of `blocks` that is one text file without blank lines, else None.

    The unit is a line, unless the file has a single line or is hard-wrapped running text. In that case the file is one
    document, which is split into pieces of `PIECE_CHARACTERS`. Only the beginning of the file is read.
    """
    paths = source_files(source) if source.files else []
    return _file_layout(paths[0], source) if len(paths) == 1 else None


def _file_layout(path: Path, source: Source) -> Literal["lines", "files"] | None:
    if source.documents != "blocks" or without_compression_suffix(path).suffix in (".parquet", *JSON_LINES_SUFFIXES):
        return None
    text = next(_read_text(path, _text_options(source)), "").strip()
    if SEPARATORS["blocks"].search(text):
        return None
    lines = [line.strip() for line in text.split("\n")]
    width = max(map(len, lines))
    is_wrapped = (
        width <= MAX_WRAPPED_WIDTH
        and statistics.median(map(len, lines)) >= MIN_WRAPPED_FILL * width
        and sum(line[-1:] in SENTENCE_FINAL for line in lines) < len(lines) / 2
    )
    return "files" if len(lines) == 1 or is_wrapped else "lines"


def _nonempty(texts: Iterable[object], location: str, column: str) -> Iterator[str]:
    """Yield the non-empty texts.

    Raises:
        DataError: if a value is not a string.
    """
    for number, text in enumerate(texts, start=1):
        if text is not None and not isinstance(text, str):
            raise DataError(f"{location} {number} has {text!r:.60} in {column!r}, expected text")
        if text and not text.isspace():
            yield text


def _read_text(path: Path, options: TextOptions) -> Iterator[str]:
    """Yield the text of a file in parts.

    Raises:
        DataError: if the file is not text, or has a different encoding; the message names the line.
    """
    with open_text(path, options) as file:
        try:
            while part := file.read(READ_SIZE_CHARACTERS):
                if "\0" in part:
                    check_text(path, options)
                yield part
        except UnicodeDecodeError as error:
            check_text(path, options)
            raise DataError(f"{path}: not {file.encoding}; {options.cure('encoding', 'NAME')}") from error


def split_stream(
    parts: Iterable[str], separator: re.Pattern[str], max_characters: int = MAX_DOCUMENT_CHARACTERS
) -> Iterator[str]:
    """Split a text that arrives in parts at `separator`; split texts over `max_characters` at a space or line break."""
    rest = ""
    for part in parts:
        *complete, rest = separator.split(rest + part)
        yield from complete
        while len(rest) > max_characters:
            cut = max(rest.rfind(" ", 1, max_characters), rest.rfind("\n", 1, max_characters))
            cut = cut if cut > 0 else max_characters
            yield rest[:cut]
            rest = rest[cut:]
    yield rest


def _read_jsonl(path: Path, column: str, options: TextOptions) -> Iterator[str]:
    for location, row in read_jsonl(read_lines(path, options), str(path)):
        if not isinstance(row.get(column), str):
            found = json_excerpt(row[column]) if column in row else f"the keys {list(row)!r:.80}"
            raise DataError(f"{location}: found {found}, expected text under {column!r}")
        if not is_unicode(row[column]):
            raise DataError(f"{location}: has {NOT_UNICODE.format(column[:80])}")
        yield row[column]


def _read_parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    if column not in file.schema_arrow.names:
        raise DataError(f"{path}: found columns {file.schema_arrow.names}, expected {column!r}")
    for batch in file.iter_batches(columns=[column], batch_size=PARQUET_BATCH_SIZE):
        for value in batch.column(0):
            if value.as_py():
                yield value.as_py()
