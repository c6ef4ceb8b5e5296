"""Files as people save them: in every encoding, with every separator and line end, damaged, and under the wrong name.

What a file holds is written down here before it is written to the file, so nothing is compared with the readers.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertcli.data.corpus_reading import read_documents
from bertcli.data.corpus_tokens import corpus_key
from bertcli.data.prediction_inputs import PredictionInput, infer_format, read_inputs
from bertcli.data.sources import load_split
from bertcli.data.text_files import TextOptions, is_utf8, read_lines
from bertcli.errors import DataError, RecipeError, UsageError
from bertcli.recipe.load import load_recipe, recipe_task
from bertcli.recipe.pretrain_schema import CorpusSection, Source
from bertcli.tasks.task import Task

Rows = list[tuple[str, str]]
STEADY = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MARKS = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}
ODD = "ab é'\u00a0\u3000\u2028\u2029\x85\x1c\x1d\x1e\x0b\x0c€漢😀=#-.;,|"
TEXTS = st.text(st.sampled_from(ODD + '"\t\r\n'), max_size=8)
LABELS = st.sampled_from(["good", "bad", "a;b", "1,5"])
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}


def train_rows(path: str, **files: Any) -> Rows | str:
    """Return the rows of a file as training reads them, or the error message."""
    task = Task.model_validate({"files": {"test": path, **files}, "text_columns": ("text",)})
    try:
        rows = load_split(task, "test")
    except DataError as error:
        return str(error)
    return list(zip(rows["text"], rows["label"] if "label" in rows.column_names else rows["text"], strict=True))


def predict_texts(path: str, **files: Any) -> list[str] | str:
    """Return the texts of a file as `predict --input` reads them, or the error message."""
    inputs = PredictionInput(path=path, **files)
    try:
        return [row["text"] for row in read_inputs(path, infer_format(path), ["text"], options=inputs.text_options)]
    except DataError as error:
        return str(error)


def csv_text(rows: Rows, delimiter: str, line_end: str, quote_all: bool) -> str:
    def cell(value: str) -> str:
        if quote_all or not value or {*value} & {*f'{delimiter}"\r\n'}:
            return '"' + value.replace('"', '""') + '"'
        return value

    return "".join(delimiter.join(map(cell, row)) + line_end for row in [("text", "label"), *rows])


def encodable(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


@STEADY
@given(
    rows=st.lists(st.tuples(TEXTS, LABELS), min_size=1, max_size=5),
    suffix=st.sampled_from(["csv", "csv", "tsv", "jsonl", "json"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be", "windows-1252", "shift_jis"]),
    delimiter=st.sampled_from([*DELIMITERS]),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    compress=st.sampled_from([None, gzip.compress, bz2.compress]),
    quote_all=st.booleans(),
    blank=st.booleans(),
    named=st.booleans(),
)
def test_what_was_written_is_what_is_read(
    rows: Rows,
    suffix: str,
    encoding: str,
    delimiter: str,
    line_end: str,
    compress: Callable[[bytes], bytes] | None,
    quote_all: bool,
    blank: bool,
    named: bool,
) -> None:
    if suffix == "tsv":
        rows = [(text.replace("\t", " ").replace("\n", " "), label) for text, label in rows]
    if line_end == "\r" and suffix != "json":
        rows = [(text.replace("\r", " ").replace("\n", " "), label) for text, label in rows]
    rows = [("".join(each for each in text if encodable(each, encoding)), label) for text, label in rows]
    files = {} if encoding.startswith("utf") else {"encoding": encoding}
    if suffix == "csv":
        text = csv_text(rows, DELIMITERS[delimiter], line_end, quote_all) + line_end * blank
        files |= {"delimiter": delimiter} if named else {}
    elif suffix == "tsv":
        text = "".join("\t".join(row) + line_end for row in [("text", "label"), *rows]) + line_end * blank
    else:
        objects = [json.dumps({"text": text, "label": label}, ensure_ascii=quote_all) for text, label in rows]
        text = f"[{','.join(objects)}]" if suffix == "json" and blank else line_end.join(objects) + line_end
    if not encodable(text, encoding):
        return
    content = MARKS.get(encoding, b"") + text.encode(encoding)
    path = f"rows.{suffix}" + {None: "", gzip.compress: ".gz", bz2.compress: ".bz2"}[compress]
    Path(path).write_bytes(compress(content) if compress else content)
    trained, predicted = train_rows(path, **files), predict_texts(path, **files)
    if isinstance(trained, str) and "the separator may be" in trained:
        assert (suffix, named) == ("csv", False)
        return
    assert trained == rows
    assert predicted == [text for text, _ in rows]


FRAGMENTS = st.sampled_from(
    ["text", "label", "x" * 100, ",", ";", "\t", "|", '"', '""', "\n", "\r\n", "\r", "\n\n", " ", "\0", "é", "\u2028",
     "\x85", "{", "}", "[", "]", '{"text": "', '", "label": "', '"}', "null", "NaN", "-Infinity", "1e999", "\\ud83d",
     "\\u0000", "\ufeff", "# ", "text,label\n", "text;label\n", "text\tlabel\n", '{"data": [', "sep=;\n"]
)  # fmt: skip
STARTS = st.sampled_from(
    [b"", b"", b"", b"text,label\n", b"text,label\na,x\n", b'{"text": "a", "label": "x"}\n', b"PK\x03\x04", b"PAR1\x15",
     b"\x1f\x8b", b"BZh91AY&SY", b"\xef\xbb\xbf", b"\xff\xfe"]
)  # fmt: skip


@STEADY
@given(
    parts=st.lists(FRAGMENTS, max_size=12),
    suffix=st.sampled_from(["csv", "tsv", "jsonl", "json", "conll", "parquet", "txt", "csv.gz"]),
    encoding=st.sampled_from(["utf-8", "utf-8", "utf-16", "utf-16-le", "latin1"]),
    start=STARTS,
    tail=st.binary(max_size=2),
)
def test_any_file_is_read_or_refused_in_one_sentence(
    parts: list[str], suffix: str, encoding: str, start: bytes, tail: bytes
) -> None:
    path = f"any.{suffix}"
    Path(path).write_bytes(start + "".join(parts).encode(encoding, "ignore") + tail)
    trained, predicted = train_rows(path), predict_texts(path)
    for result in (trained, predicted):
        if isinstance(result, str):
            assert path in result, result
            assert "\n" not in result, result
            assert len(result) < 300, result
            assert "x" * 81 not in result
            assert "unexpected" not in result
    if not isinstance(trained, str) and not isinstance(predicted, str) and suffix != "txt":
        assert [text for text, _ in trained] == predicted


@STEADY
@given(
    rows=st.lists(st.tuples(TEXTS, LABELS), min_size=1, max_size=4),
    quote_all=st.booleans(),
    position=st.integers(0, 40),
    inserted=st.sampled_from(["", '"', ",", "\n", "\r", ";", "\0"]),
    removed=st.integers(0, 1),
)
def test_damaged_csv_is_trained_on_and_predicted_alike(
    rows: Rows, quote_all: bool, position: int, inserted: str, removed: int
) -> None:
    text = csv_text(rows, ",", "\n", quote_all)
    position %= len(text)
    Path("rows.csv").write_bytes((text[:position] + inserted + text[position + removed :]).encode())
    trained, predicted = train_rows("rows.csv"), predict_texts("rows.csv")
    if isinstance(trained, str):
        assert isinstance(predicted, str) or predicted == [] or "no column 'text'" in trained
    else:
        assert predicted == [text for text, _ in trained]


def refusal(path: str, content: bytes) -> str:
    """Return the message that refuses a file; `predict` has the same, but for the name of the setting."""
    Path(path).write_bytes(content)
    message, other = train_rows(path), predict_texts(path)
    assert isinstance(message, str)
    assert isinstance(other, str)
    assert other.replace("--input-", "task.files.") == message
    return message


CSV = b"text,label\na,x\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        # quotes
        ("a.csv", b'text,label\na,x\n"b,y\nc,z\n', "a.csv:3: the quote that opens a value here is never closed"),
        ("a.csv", b'text,label\n"a\nb",x\nc,"d\n"e",y\n', "a.csv:4: the quote that opens a value here is closed on"),
        ("a.csv", b'text,label\n"5" screen",x\n', "a.csv:2: the quote that opens a value here is closed in the middle"),
        ("a.csv", b'text,label\n""a,x\n', "a.csv:2: .* closed in the middle .*; quote the full value, and double"),
        ("a.csv", b"text,label\na\rb,x\n", "a.csv:2: has a carriage return in the middle of a value"),
        # rows
        ("a.csv", b'text,label\n"a\nb",x\nc\n', "a.csv:4: found 1 value, separated by comma, expected 2"),
        ("a.csv", b"text;label\n\na;x;y\n", "a.csv:3: found 3 values, separated by semicolon, expected 2"),
        ("a.tsv", b"text\tlabel\na\tx\nb\n", "a.tsv:3: found 1 value, separated by tab, expected 2"),
        ("a.csv", b"t,n;l\na,1;x\n", "a.csv: the separator may be comma or semicolon; set task.files.delimiter=comma"),
        ("a.csv", b"text,text\na,b\n", "a.csv has the column 'text' twice"),
        # encodings
        ("a.csv", CSV + b"na\xefve,x\n", "a.csv:3: not UTF-8, probably windows-1252; set .*=windows-1252"),
        ("a.csv", CSV + "é,x\n".encode() + b"na\xefve,x\n", "a.csv:4: not utf-8; fix this line, or set .*=NAME"),
        ("a.tsv", b"text\tlabel\nna\xefve\tx\n", "a.tsv:2: not UTF-8, probably windows-1252"),
        ("a.jsonl", b'{"text": "na\xefve", "label": "x"}\n', "a.jsonl:1: not UTF-8, probably windows-1252"),
        ("a.json", b'[\n{"text": "na\xefve", "label": "x"}]', "a.json:2: not UTF-8, probably windows-1252"),
        ("a.conll", b"a O\nna\xefve O\n", "a.conll:2: not UTF-8, probably windows-1252"),
        ("a.csv", CSV.decode().encode("utf-16-le"), "a.csv:1: has NUL characters, probably UTF-16 .*=utf-16-le"),
        ("a.csv", CSV + b"a\0,x\n", "a.csv:3: has a NUL character"),
        ("a.jsonl", b'\n{"text": "a\0", "label": "x"}\n', "a.jsonl:2: has a NUL character"),
        # JSON
        ("a.jsonl", b'{"text": "a", "text": "b"}\n', "a.jsonl:1: has the key 'text' twice"),
        ("a.json", b'[{"text": "a"},\n{"text": "a", "text": "b"}]', "a.json:2: has the key 'text' twice"),
        ("a.json", b'[{"text": "a"},\n{"text": "a" "b"}]', "a.json:2: not JSON"),
        ("a.json", b'{"text": "a"}\n{"text": "a" "b"}\n', "a.json:2: not JSON"),
        ("a.json", b'{\n "text": "a" "b"}\n', "a.json:2: not JSON"),
        # other files
        ("a.csv", b"", "a.csv is empty, expected a header line with the column names"),
        ("a.csv", b"\xef\xbb\xbf\n \n\n", "a.csv is empty"),
        ("a.csv", b"PK\x03\x04\x14\0", r"a.csv is not a text file, but a zip archive or an Excel workbook \(.xlsx\)"),
        ("a.jsonl", b"PAR1\x15\x04", "a.jsonl is not a text file, but a Parquet file"),
        ("a.tsv", b"\xd0\xcf\x11\xe0\xa1", r"a.tsv is not a text file, but an Excel workbook \(.xls\)"),
        ("a.csv.gz", CSV, "cannot read a.csv.gz: it is damaged, or not compressed despite its suffix"),
        ("a.csv.gz", gzip.compress(CSV * 99, mtime=0)[:40], "cannot read a.csv.gz: it may be damaged or truncated"),
    ],
)  # fmt: skip
def test_refused_file_names_the_line_and_the_cure(name: str, content: bytes, message: str) -> None:
    found = refusal(name, content)
    assert re.match(message, found), found


def test_utf16_error_names_the_line() -> None:
    content = "text,label\na,x\n".encode("utf-16") + b"\x00\xd8,\0x\0\n\0"
    assert refusal("a.csv", content).startswith("a.csv:3: not utf-16-le")


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_lone_surrogate_is_refused_with_its_row(suffix: str) -> None:
    path = f"a.{suffix}"
    good, bad = '{"text": "\\ud83d\\ude00", "label": "x"}', '{"text": "\\ud83d", "label": "x"}'
    Path(path).write_text(f"{good}\n{bad}\n" if suffix == "jsonl" else f"[{good}, {bad}]")
    half = r"has a lone surrogate \(half of a character, such as \\ud83d\) in column 'text'"
    assert re.match(rf"{path}: row 2 {half}", str(train_rows(path)))
    assert re.match(rf"{path}(:2:|, entry 2:) {half}", str(predict_texts(path)))
    Path("a.jsonl").write_text(f"{good}\n{bad}\n")
    with pytest.raises(DataError, match=rf"a\.jsonl:2: {half}"):
        list(read_documents(Source(files=("a.jsonl",)), None))


def test_lone_surrogate_in_a_given_text_is_refused() -> None:
    with pytest.raises(UsageError, match=r"input 2 has a lone surrogate \(half of a character\)"):
        PredictionInput([("fine",), ("a \ud83d",)])


def test_european_excel_csv_is_read() -> None:
    Path("a.csv").write_bytes('sep=;\r\ntext;label;price\r\nschön, gut;x;1,5\r\n"a;b";y;2,5\r\n'.encode("windows-1252"))
    assert train_rows("a.csv", encoding="windows-1252") == [("schön, gut", "x"), ("a;b", "y")]
    Path("a.csv").write_bytes("text,n;label;price\nschön, gut;x;1,5\na,b;y;2,5\n".encode())
    assert str(predict_texts("a.csv", delimiter="semicolon")).startswith("a.csv:2: found columns ['text,n', 'label'")
    Path("a.csv").write_bytes(b"text;label\n1,5;x\n2,5;y\n")
    assert train_rows("a.csv") == [("1,5", "x"), ("2,5", "y")]


def test_byte_order_mark_overrides_the_encoding_of_the_recipe() -> None:
    Path("a.csv").write_bytes("\ufefftext,label\né,x\n".encode())
    assert train_rows("a.csv", encoding="windows-1252") == [("é", "x")]


def test_regression_with_decimal_commas_is_refused_with_its_row() -> None:
    from bertcli.heads.text_classification import TextClassification

    Path("a.csv").write_bytes(b"text;label\na;1.5\nb;1,5\n")
    task = Task.model_validate({"files": {"test": "a.csv"}, "text_columns": ("text",), "problem": "regression"})
    with pytest.raises(
        DataError, match=r"a\.csv: row 2 has no finite number in column 'label', found '1,5'.* such as 1\.5"
    ):
        TextClassification.from_data(task, load_split(task, "test"), None)  # type: ignore[arg-type]


def test_json_nan_is_a_missing_text() -> None:
    Path("a.json").write_text('[{"text": "a", "label": "x"}, {"text": NaN, "label": "x"}]')
    assert str(train_rows("a.json")).startswith("a.json: row 2 of split 'test' has no text in column 'text'")


@pytest.mark.parametrize("content", ['[{"text": "a", "label": "x"}]', '\n[\n{"text": "a",\n"label": "x"}\n]\n'])
def test_json_list_named_jsonl_is_read(content: str) -> None:
    Path("a.jsonl").write_text(content)
    assert train_rows("a.jsonl") == [("a", "x")]
    assert predict_texts("a.jsonl") == ["a"]


@pytest.mark.parametrize("content", [b"text,label\na,x", b"  \ntext,label\na,x", b"text,label\n\na,x\n   \n\n"])
def test_blank_csv_lines_are_skipped(content: bytes) -> None:
    Path("a.csv").write_bytes(content)
    assert train_rows("a.csv") == [("a", "x")]
    assert predict_texts("a.csv") == ["a"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_standard_input_is_decoded_by_its_byte_order_mark(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("é\u2028\nb\n".encode(encoding))))
    assert list(read_inputs("-", "text", ["text"])) == [{"text": "é\u2028"}, {"text": "b"}]


def test_options_of_prediction_inputs_are_checked() -> None:
    for options, message in (
        ({"encoding": "utf-9"}, "--input-encoding: found 'utf-9', expected an encoding such as"),
        ({"delimiter": ":"}, "found --input-delimiter ':', expected one of comma, semicolon, tab, pipe"),
        ({"column_names": ["a", "a"]}, "found --input-column-names 'a,a', expected a different name for each"),
    ):
        with pytest.raises(UsageError, match=message):
            PredictionInput(path="a.csv", **options)
    for has_no_effect in (
        {"path": "a.tsv", "delimiter": "tab"},
        {"values": [["a"]], "encoding": "utf-8"},
        {"path": "a.jsonl", "column_names": ["a"]},
        {"values": [["a"]], "column_names": ["a"]},
    ):
        with pytest.raises(UsageError, match="applies only to"):
            PredictionInput(**has_no_effect)  # type: ignore[arg-type]


def test_recipe_names_the_encoding_and_separator_of_files() -> None:
    Path("mine.yaml").write_text("task: {files: {train: a.csv}, text_columns: [text]}\n")
    files = ["task.files.encoding=windows-1252", "task.files.delimiter=semicolon"]
    task = recipe_task(load_recipe("mine.yaml", files))
    assert task.files is not None
    assert (task.files.encoding, task.files.delimiter) == ("windows-1252", "semicolon")
    assert task.files.train == (str(Path("a.csv").resolve()),)
    with pytest.raises(RecipeError, match=r"the encoding of text files is task\.files\.encoding"):
        load_recipe("mine.yaml", ["data.encoding=cp1252"])
    with pytest.raises(RecipeError, match=r"in task.files.encoding: found 'cp9', expected an encoding such as utf-8"):
        load_recipe("mine.yaml", ["task.files.encoding=cp9"])


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
def test_corpus_in_another_encoding_is_refused_or_read(name: str) -> None:
    text = '{"text": "naïve"}\n' if "jsonl" in name else "fine\n\nnaïve\n"
    compress = gzip.compress if name.endswith("gz") else bytes
    Path(name).write_bytes(compress(text.encode("windows-1252")))
    line = 1 if "jsonl" in name else 3
    with pytest.raises(DataError, match=rf"{name}:{line}: not UTF-8, .* set `encoding: windows-1252` for this source"):
        list(read_documents(Source(files=(name,)), None))
    documents = list(read_documents(Source(files=(name,), encoding="windows-1252"), None))
    assert documents[-1].strip() == "naïve"
    Path(name).write_bytes(compress(text.encode("utf-16")))
    assert list(read_documents(Source(files=(name,)), None)) == documents
    Path(name).write_bytes(compress(text.encode("utf-16-le")))
    with pytest.raises(DataError, match=rf"{name}:1: has NUL characters, probably UTF-16"):
        list(read_documents(Source(files=(name,)), None))


def test_corpus_cache_distinguishes_encodings() -> None:
    Path("a.txt").write_bytes(b"na\xefve\n")
    keys = {corpus_key(CorpusSection(sources=(Source(files=("a.txt",), encoding=encoding),)), None, None)
            for encoding in (None, "windows-1252", "windows-1251")}  # fmt: skip
    assert len(keys) == 3


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "UTF_16"])
def test_utf_16_without_a_byte_order_mark_needs_the_byte_order(encoding: str) -> None:
    Path("a.csv").write_bytes("text,label\na,x\n".encode(f"{encoding}-be"))
    with pytest.raises(DataError, match=r"a\.csv: has no byte order mark, .*utf-(16|32)-le or utf-(16|32)-be"):
        list(read_lines("a.csv", TextOptions(encoding=encoding)))
    assert list(read_lines("a.csv", TextOptions(encoding=f"{encoding}-be"))) == ["text,label\n", "a,x\n"]


@pytest.mark.parametrize("first", ["sep=;", "SEP=;", "sep=; ", '"Sep=;"'])
def test_separator_line_is_read_in_any_case_and_with_spaces(first: str) -> None:
    Path("a.csv").write_text(f"{first}\ntext;label\na;x\n")
    assert train_rows("a.csv") == [("a", "x")]
    assert predict_texts("a.csv") == ["a"]


def test_repeated_byte_order_mark_is_skipped() -> None:
    Path("a.csv").write_bytes(b"\xef\xbb\xbf" * 2 + b"text,label\na,x\n")
    assert train_rows("a.csv") == [("a", "x")]
    assert predict_texts("a.csv") == ["a"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("schön".encode(), True),
        (b"plain", True),
        (b"", True),
        ("schön".encode("utf-8-sig"), True),
        ("schön".encode("utf-16"), True),
        ("schön".encode("windows-1252"), False),
        ("schön".encode()[:-2], False),
        (gzip.compress("schön".encode("windows-1252"), mtime=0), False),
        (b"a" * ((1 << 20) - 1) + "ö".encode(), True),  # a character that begins in one block and ends in the next
    ],
)
def test_files_in_utf_8_or_with_a_byte_order_mark_need_no_encoding(content: bytes, expected: bool) -> None:
    Path("a.txt").write_bytes(content)
    assert is_utf8("a.txt") is expected
