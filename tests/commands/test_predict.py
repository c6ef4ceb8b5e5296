"""Answers in order, as a stream, the same as plain transformers'."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from bertcli.cli.options import asked_hardware
from bertcli.commands.predict import predict, predict_features
from bertcli.console import Console
from bertcli.data.prediction_inputs import read_inputs
from bertcli.errors import DataError, ModelError, UsageError
from bertcli.finetuning.run import finetune
from bertcli.inference.loaded_model import ROWS_AT_ONCE, open_trained
from bertcli.recipe.load import load_recipe
from bertcli.runs.folder import RunOptions

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def trained(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over the sample's sentiment rows."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    overrides = [f"model.name={encoder}", "training.max_steps=3", "data.max_train_examples=64", "data.max_length=32"]
    finetune(load_recipe("sample/sentiment", overrides), folder, RunOptions(console=QUIET))
    return folder


def answers(run: Path, texts: list[tuple[str, ...]], **options: str) -> list[dict]:
    predict(str(run), texts, "answers.jsonl", console=QUIET, **options)
    lines = Path("answers.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_answers_are_plain_transformers_answers_in_order(trained: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = ["a fine film", "", "the soup was awful " * 30, "🦦 שלום", "bad"]
    ours = answers(trained, [(text,) for text in texts])
    model = AutoModelForSequenceClassification.from_pretrained(trained / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(trained / "model")
    for text, answer in zip(texts, ours, strict=True):
        with torch.inference_mode():
            inputs = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
            probabilities = model(**inputs).logits.softmax(-1)[0]
        assert answer["text"] == text
        assert answer["label"] == model.config.id2label[int(probabilities.argmax())]
        assert list(answer["probabilities"].values()) == pytest.approx(probabilities.tolist(), abs=1e-5)


def test_a_log_counts_answers_and_vectors_and_the_output_holds_answers_alone(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bertcli.console.SECONDS_BETWEEN_LINES", 0.0)
    texts = [("a fine film",), ("a dull film",)]
    assert predict(str(trained), texts, console=Console()) == 2
    told = capsys.readouterr()
    assert told.err.splitlines() == ["answers 1", "answers 2"]
    assert [json.loads(line)["text"] for line in told.out.splitlines()] == ["a fine film", "a dull film"]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    predict(str(trained), texts, console=Console())
    assert capsys.readouterr().err == ""
    predict_features(str(trained), texts, "vectors.npy", layers=[-1], pooling="mean", console=Console())
    assert "inputs 2" in capsys.readouterr().err.splitlines()


def test_more_inputs_than_one_chunk_keep_their_order(trained: Path) -> None:
    texts = [(f"{'film ' * (row % 9)}{row}",) for row in range(2 * ROWS_AT_ONCE + 3)]
    assert [(answer["text"],) for answer in answers(trained, texts)] == texts


@pytest.mark.parametrize(("kind", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_tables_hold_text_label_and_probabilities(trained: Path, kind: str, delimiter: str) -> None:
    predict(str(trained), [('say "a,b"\tc',), ("x",)], f"out.{kind}", kind, console=QUIET)
    with Path(f"out.{kind}").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter=delimiter))
    assert list(rows[0]) == ["text", "label", "probability_negative", "probability_positive"]
    assert rows[0]["text"] == 'say "a,b"\tc'
    assert float(rows[1]["probability_negative"]) + float(rows[1]["probability_positive"]) == pytest.approx(1, abs=1e-5)


def test_an_existing_output_and_an_unknown_format_are_refused(trained: Path) -> None:
    Path("mine.jsonl").write_text("kept")
    with pytest.raises(UsageError, match="exists already"):
        predict(str(trained), [("x",)], "mine.jsonl", console=QUIET)
    assert Path("mine.jsonl").read_text() == "kept"
    with pytest.raises(UsageError, match="Did you mean jsonl"):
        predict(str(trained), [], "-", "json", console=QUIET)


def test_an_encoder_without_a_classifier_is_refused(encoder: Path) -> None:
    with pytest.raises(ModelError, match="has no classifier"):
        predict(str(encoder), [("x",)], console=QUIET)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "one\n\ntwo\r\n", ["one", "", "two"]),
        ("a.jsonl", '{"text": "one", "label": 1}\n\n{"text": "two"}\n', ["one", "two"]),
        ("a.csv", 'label,text\nx,"a, ""b"""\n', ['a, "b"']),
        ("a.tsv", 'text\tn\nsay "no"\t1\n', ['say "no"']),
    ],
)
def test_inputs_are_read_by_their_kind(name: str, content: str, expected: list[str]) -> None:
    from bertcli.data.prediction_inputs import guess_format

    Path(name).write_bytes(content.encode())
    assert [row["text"] for row in read_inputs(name, guess_format(name), ["text"])] == expected


def test_inputs_in_parquet_are_read_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"text": "one", "n": 1}, {"text": "two", "n": 2}, {"text": None, "n": 3}]
    table = pyarrow.Table.from_pylist(rows)
    beyond = pyarrow.array([4_000_000] * 3, pyarrow.date32())  # which Python has no date for
    parquet.write_table(table.append_column("beyond", beyond), "a.parquet")
    monkeypatch.setattr("bertcli.data.prediction_inputs.ROWS_AT_ONCE", 2)
    found = read_inputs("a.parquet", "parquet", ["text"], also=["n"])
    assert [next(found), next(found)] == [{"n": 1, "text": "one"}, {"n": 2, "text": "two"}]
    with pytest.raises(DataError, match=r"a\.parquet, row 3: found None in column 'text'"):
        next(found)
    with pytest.raises(DataError, match=r"cannot read a\.parquet"):
        next(read_inputs("a.parquet", "parquet", ["text"], also=["beyond"]))
    with pytest.raises(DataError, match=r"found columns \['text', 'n', 'beyond'\]"):
        next(read_inputs("a.parquet", "parquet", ["words"], usual=["words"]))
    with pytest.raises(UsageError, match="standard input"):
        next(read_inputs("-", "parquet", ["text"]))


def test_an_id_is_repeated_as_it_stands() -> None:
    Path("a.jsonl").write_text('{"text": "one", "id": null}\n{"text": "two", "id": 7}\n')
    assert [row["id"] for row in read_inputs("a.jsonl", "jsonl", ["text"], also=["id"])] == [None, 7]


def test_pairs_are_read_from_two_columns_or_a_tab() -> None:
    Path("a.jsonl").write_text('{"p": "one", "h": "two"}\n')
    Path("a.txt").write_text("one\ttwo\n")
    assert list(read_inputs("a.jsonl", "jsonl", ["p", "h"])) == [{"p": "one", "h": "two"}]
    assert list(read_inputs("a.txt", "text", ["p", "h"])) == [{"p": "one", "h": "two"}]


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (b'{"text": "a"}\n{"text": 3}\n', "jsonl", r"in\.dat:2: found 3 in column 'text'"),
        (b'{"txt": "a"}\n', "jsonl", r"in\.dat:1: found columns \['txt'\]"),
        (b"{text\n", "jsonl", "not JSON"),
        (b"[1]\n", "jsonl", "found list"),
        (b"na\xefve\n", "text", "UTF-8"),
        (b"a\n", "xml", "expected one of"),
    ],
)
def test_a_bad_input_names_its_line(content: bytes, kind: str, words: str) -> None:
    Path("in.dat").write_bytes(content)
    with pytest.raises((DataError, UsageError), match=words):
        list(read_inputs("in.dat", kind, ["text"]))
    with pytest.raises(DataError, match="cannot read"):
        list(read_inputs("gone.txt", "text", ["text"]))


def test_inputs_are_not_read_ahead_of_a_chunk(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bertcli.commands.predict import predictions

    taken = 0

    def endless() -> object:
        nonlocal taken
        while True:
            taken += 1
            yield {"text": "film"}

    run = open_trained(str(trained), None)
    stream = predictions(run, run.task, endless(), QUIET)  # type: ignore[arg-type]
    next(stream)
    assert taken == ROWS_AT_ONCE


def test_a_file_is_read_by_the_tasks_columns_or_the_named_ones(trained: Path) -> None:
    Path("in.csv").write_text("text,other\none,two\n")
    predict(str(trained), None, "text.csv", "csv", input_path="in.csv", console=QUIET)
    predict(str(trained), None, "other.csv", "csv", input_path="in.csv", columns=["other"], console=QUIET)
    assert Path("text.csv").read_text().splitlines()[1].startswith("one,")
    assert Path("other.csv").read_text().splitlines()[1].startswith("two,")


def test_a_bare_model_folder_takes_one_text_or_a_pair(trained: Path) -> None:
    model = trained / "model"
    predict(str(model), [("a fine film",)], "one.jsonl", console=QUIET)
    predict(str(model), [("a fine film", "a dull film")], "two.jsonl", console=QUIET)
    one, two = (json.loads(Path(name).read_text()) for name in ("one.jsonl", "two.jsonl"))
    assert set(one) == {"text", "label", "probabilities"}
    assert set(two) == {"text", "text_pair", "label", "probabilities"}
    assert one["probabilities"] == answers(trained, [("a fine film",)])[0]["probabilities"]


def test_a_second_text_is_not_left_out_of_what_a_bare_model_reads(trained: Path) -> None:
    model, options = str(trained / "model"), {"input_path": "in.csv", "console": QUIET}
    Path("in.csv").write_text("text,text_pair\na fine film,a dull film\n")
    with pytest.raises(UsageError, match="--columns text,text_pair or --columns text"):
        predict(model, None, "none.jsonl", **options)
    predict(model, None, "two.jsonl", columns=["text", "text_pair"], **options)
    predict(model, [("a fine film", "a dull film")], "given.jsonl", console=QUIET)
    assert Path("two.jsonl").read_text() == Path("given.jsonl").read_text()
    predict(model, None, "one.jsonl", columns=["text"], **options)
    predict(str(trained), None, "run.jsonl", **options)  # whose recipe says that it reads one text
    assert Path("one.jsonl").read_text() == Path("run.jsonl").read_text()


def test_lists_are_read_where_words_or_choices_are_expected() -> None:
    Path("a.jsonl").write_text('{"text": ["one", "two"]}\n')
    assert list(read_inputs("a.jsonl", "jsonl", ["text"], listed=["text"])) == [{"text": ["one", "two"]}]
    with pytest.raises(DataError, match=r"a.jsonl:1: found \['one', 'two'\] in column 'text', expected text"):
        list(read_inputs("a.jsonl", "jsonl", ["text"]))


def test_what_is_not_asked_for_is_computed_as_the_run_was(trained: Path) -> None:
    recipe = trained / "recipe.yaml"
    before = recipe.read_text("utf-8")
    recipe.write_text(before.replace("eval_batch_tokens: 8192", "eval_batch_tokens: 64"), "utf-8")
    try:
        opened = open_trained(str(trained), None, asked_hardware("cpu", "fp32"))
    finally:
        recipe.write_text(before, "utf-8")
    assert opened.max_tokens == 64
