"""Documents of a corpus, one at a time: text, JSON Lines and Parquet files (also compressed), data sets, the sample.

Nothing is read whole: a file with one endless line is cut like any other.
"""

from __future__ import annotations

import glob
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from bertcli.data.formats import jsonl_rows
from bertcli.data.sources import load_rows
from bertcli.errors import DataError
from bertcli.recipe.pretrain_schema import Source

LONGEST_DOCUMENT = 8_000_000  # characters; a longer one is taken for several
CHARACTERS_AT_ONCE = 1 << 20
NUM_SAMPLE_DOCUMENTS = 20_000
COMPRESSED = (".gz", ".zst", ".bz2")
NOT_PROSE = (".json", ".csv", ".tsv", ".arrow", ".xz", ".zip", ".tar", ".tgz", ".7z", ".npy", ".pdf", ".docx")
SEPARATORS = {"blocks": re.compile(r"\n[ \t\r]*\n\s*"), "lines": re.compile(r"\n"), "files": re.compile(r"(?!)")}


def files_of(source: Source) -> list[Path]:
    """The files of a source, sorted.

    Raises:
        DataError: a pattern matches none.
    """
    found: list[Path] = []
    for pattern in source.files:
        matches = sorted(Path(path) for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
        if not matches:
            raise DataError(f"found no file {pattern}, expected text, JSON Lines or Parquet files")
        found += [path for path in matches if path not in found]
    return found


def read_documents(source: Source, mirror: Path | None) -> Iterator[str]:
    """The documents of a source, without empty ones.

    Raises:
        DataError: a file or data set is missing, unreadable, damaged or not UTF-8.
    """
    if source.dataset == "sample":
        from bertcli.data.sample import sample_documents

        yield from sample_documents(NUM_SAMPLE_DOCUMENTS)
    elif source.dataset is not None:
        rows = load_rows(source.dataset, source.config, source.split, mirror)
        if source.column not in rows.column_names:
            raise DataError(f"{source.dataset}: found columns {rows.column_names}, expected {source.column!r}")
        yield from _written(rows[source.column], f"{source.dataset}: row", source.column)
    else:
        for path in files_of(source):
            yield from _read_file(path, source)


def _read_file(path: Path, source: Source) -> Iterator[str]:
    """The documents of one file, whatever goes wrong told with its name."""
    import pyarrow

    plain = path.with_suffix("") if path.suffix in COMPRESSED else path
    if plain.suffix in NOT_PROSE:
        raise DataError(f"found {path}, expected text, JSON Lines (.jsonl) or Parquet, plain or as .gz, .zst or .bz2")
    try:
        if plain.suffix == ".parquet":
            texts: Iterable[str] = _parquet_texts(path, source.column)
        elif plain.suffix in (".jsonl", ".ndjson"):
            texts = _jsonl_texts(path, source.column)
        else:
            texts = split_stream(_characters(path), SEPARATORS[source.documents])
        yield from _written(texts, f"{path}: document", source.column)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte {error.start} of a part); convert it, e.g. `iconv -f latin1 -t utf8`"
        ) from error
    except (OSError, EOFError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path}: it may be damaged or cut short ({error})") from error


def _written(texts: Iterable[object], place: str, column: str) -> Iterator[str]:
    """The texts that are not empty.

    Raises:
        DataError: one is something else than text.
    """
    for number, text in enumerate(texts, start=1):
        if text is not None and not isinstance(text, str):
            raise DataError(f"{place} {number} has {text!r:.60} in {column!r}, expected text")
        if text and not text.isspace():
            yield text


def _opened(path: Path) -> io.TextIOWrapper:
    """The file as text, decompressed as its ending says."""
    import pyarrow

    return io.TextIOWrapper(pyarrow.input_stream(str(path), compression="detect"), encoding="utf-8-sig")


def _characters(path: Path) -> Iterator[str]:
    with _opened(path) as file:
        while part := file.read(CHARACTERS_AT_ONCE):
            yield part


def split_stream(parts: Iterable[str], separator: re.Pattern[str], longest: int = LONGEST_DOCUMENT) -> Iterator[str]:
    """The texts between separators in a stream that comes in parts; one over `longest` is cut at a space."""
    rest = ""
    for part in parts:
        *whole, rest = separator.split(rest + part)
        yield from whole
        while len(rest) > longest:
            cut = max(rest.rfind(" ", 1, longest), rest.rfind("\n", 1, longest))
            cut = cut if cut > 0 else longest
            yield rest[:cut]
            rest = rest[cut:]
    yield rest


def _jsonl_texts(path: Path, column: str) -> Iterator[str]:
    with _opened(path) as file:
        for place, row in jsonl_rows(file, str(path)):
            if not isinstance(row.get(column), str):
                raise DataError(f"{place}: found {list(row)}, expected text under {column!r}")
            yield row[column]


def _parquet_texts(path: Path, column: str) -> Iterator[str]:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    if column not in file.schema_arrow.names:
        raise DataError(f"{path}: found columns {file.schema_arrow.names}, expected {column!r}")
    for batch in file.iter_batches(columns=[column], batch_size=1000):
        for value in batch.column(0):
            if value.as_py():
                yield value.as_py()
