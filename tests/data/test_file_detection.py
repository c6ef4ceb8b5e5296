"""The format, encoding and separator of a file are found in its content."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertcli.data.file_detection import detect_dialect, detect_encoding
from bertcli.errors import DataError, UsageError

ROWS = "text;label\nschön, sehr schön;gut\nnaja, nun;schlecht\n"
NER = "EU B-ORG\nrejects O\n\nPeter B-PER\nBlackburn I-PER\n\n"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", ROWS.encode(), ("csv", None, "semicolon")),
        ("a.csv", ROWS.encode("utf-8-sig"), ("csv", None, "semicolon")),
        ("a.csv", ROWS.encode("utf-16"), ("csv", None, "semicolon")),
        ("a.csv", ROWS.encode("utf-16-le"), ("csv", "utf-16-le", "semicolon")),
        ("a.csv", ROWS.encode("utf-16-be"), ("csv", "utf-16-be", "semicolon")),
        ("a.csv", ROWS.encode("windows-1252"), ("csv", "windows-1252", "semicolon")),
        ("a.csv", b"text|label\na, b|x\nc, d|y\n", ("csv", None, "pipe")),
        ("a.csv", b"text\tlabel\na, b\tx\nc\ty\n", ("csv", None, "tab")),
        ("a.tsv", b'text\tlabel\na "b" c\tx\n', ("tsv", None, None)),
        ("a.tsv", b'text\tlabel\n"a ""b"" c"\tx\n', ("csv", None, "tab")),
        ("a.txt", b"text\tlabel\na\tx\n", ("tsv", None, None)),
        ("a.dat", b'{"text": "a"}\n{"text": "b"}\n', ("jsonl", None, None)),
        ("a", b'[\n{"text": "a"}\n]\n', ("json", None, None)),
        ("a.tsv", NER.encode(), ("conll", None, None)),
        ("a.txt", b"-DOCSTART- -X- O\n\n" + NER.encode(), ("conll", None, None)),
        ("a.iob", NER.replace(" ", "\t").encode(), ("conll", None, None)),
        ("a.bin", b"PAR1...", ("parquet", None, None)),
    ],
)
def test_dialect_is_found_in_the_content(
    name: str, content: bytes, expected: tuple[str, str | None, str | None]
) -> None:
    Path(name).write_bytes(content)
    dialect = detect_dialect(Path(name))
    assert (dialect.format, dialect.encoding, dialect.delimiter) == expected


def test_evidence_names_the_byte_and_its_line() -> None:
    Path("a.csv").write_bytes(ROWS.encode("windows-1252"))
    assert detect_encoding(Path("a.csv")) == ("windows-1252", "windows-1252 (byte 0xf6 in line 2 is not UTF-8)")


@pytest.mark.parametrize("encoding", ["windows-1251", "iso-8859-7", "koi8-r", "shift_jis"])
def test_other_encodings_are_asked_for(encoding: str) -> None:
    text = {"iso-8859-7": "Καλημέρα κόσμε", "shift_jis": "日本語の文章です"}.get(encoding, "Привет, мир")
    Path("a.csv").write_bytes(f"text,label\n{text},x\n".encode(encoding))
    with pytest.raises(UsageError, match=r"a\.csv:2: .*set --encoding"):
        detect_dialect(Path("a.csv"))
    assert detect_dialect(Path("a.csv"), encoding=encoding).encoding == encoding


def test_files_that_are_not_text_are_refused() -> None:
    Path("a.csv").write_bytes(b"PK\x03\x04...")
    with pytest.raises(DataError, match="save the sheet as CSV"):
        detect_dialect(Path("a.csv"))
    Path("b.csv").write_text("a,b;c\n1,2;3\n")
    with pytest.raises(DataError, match="the separator may be comma or semicolon; set --delimiter comma or semicolon"):
        detect_dialect(Path("b.csv"))
