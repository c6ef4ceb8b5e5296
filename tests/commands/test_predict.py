"""Predictions keep input order, are streamed, and equal those of plain transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bertcli.cli.options import hardware_section
from bertcli.commands.predict import predict, predict_features
from bertcli.console import Console
from bertcli.data.prediction_inputs import PredictionInput, infer_format, read_inputs
from bertcli.errors import DataError, ModelError, UsageError
from bertcli.finetuning.run import finetune
from bertcli.inference.loaded_model import load_for_inference, predict_inputs
from bertcli.inference.prediction_formats import TextWriter
from bertcli.inference.prediction_stream import CHUNK_SIZE
from bertcli.models.from_pretrained import ModelSource
from bertcli.recipe.load import load_recipe
from bertcli.runs.folder import RunOptions

from ..conftest import QUIET


@pytest.fixture(scope="module")
def run(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `sample/sentiment`."""
    folder = tmp_path_factory.mktemp("sentiment") / "run"
    overrides = [f"model.name={encoder}", "training.max_steps=3", "data.max_train_examples=64", "data.max_length=32"]
    finetune(load_recipe("sample/sentiment", overrides), folder, RunOptions(console=QUIET))
    return folder


def predictions(run: Path, values: list[tuple[str, ...]]) -> list[dict]:
    predict(str(run), PredictionInput(values), "predictions.jsonl", console=QUIET)
    lines = Path("predictions.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_predictions_equal_those_of_plain_transformers_in_input_order(run: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = ["a fine film", "", "the soup was awful " * 30, "🦦 שלום", "bad"]
    rows = predictions(run, [(text,) for text in texts])
    model = AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    for text, row in zip(texts, rows, strict=True):
        with torch.inference_mode():
            inputs = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
            probabilities = model(**inputs).logits.softmax(-1)[0]
        assert row["text"] == text
        assert row["label"] == model.config.id2label[int(probabilities.argmax())]
        assert list(row["probabilities"].values()) == pytest.approx(probabilities.tolist(), abs=1e-5)


def test_progress_counts_predictions_and_features_on_stderr_only(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bertcli.console.LOG_INTERVAL_SECONDS", 0.0)
    inputs = PredictionInput([("a fine film",), ("a dull film",)])
    assert predict(str(run), inputs, console=Console()) == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines() == ["predictions 2"]
    assert [json.loads(line)["text"] for line in printed.out.splitlines()] == ["a fine film", "a dull film"]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    predict(str(run), inputs, console=Console())
    assert capsys.readouterr().err == ""
    predict_features(str(run), inputs, "features.npy", layers=[-1], pooling="mean", console=Console())
    assert "inputs 2" in capsys.readouterr().err.splitlines()


def test_predictions_of_several_chunks_keep_input_order(run: Path) -> None:
    values = [(f"{'film ' * (row % 9)}{row}",) for row in range(2 * CHUNK_SIZE + 3)]
    assert [(row["text"],) for row in predictions(run, values)] == values


@pytest.mark.parametrize(("format_name", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_table_columns_are_text_label_and_probabilities(run: Path, format_name: str, delimiter: str) -> None:
    inputs = PredictionInput([('say "a,b" c',), ("x",)])
    predict(str(run), inputs, f"out.{format_name}", format_name, console=QUIET)
    rows = list(read_inputs(f"out.{format_name}", format_name, ["text", "label", *PROBABILITIES]))
    assert Path(f"out.{format_name}").read_text().splitlines()[0].split(delimiter) == list(rows[0])
    assert rows[0]["text"] == 'say "a,b" c'
    assert sum(float(rows[1][name]) for name in PROBABILITIES) == pytest.approx(1, abs=1e-5)


PROBABILITIES = ["probability_negative", "probability_positive"]
ROUND_TRIP_TEXTS = [
    'say "hi" now', '"quoted"', '"', "a,b", "it's", "\\t", "a\\", "", " ", "  a ", "NA", "null", "None", "nan", "007",
    "1e5", "text", "text,label", "label", "\u00a0a\u00a0", "\u3000", "\ufeffa", "# a", "🦦 שלום",
]  # fmt: skip
CONTROL_TEXTS = ["a\x00b", "a\x85b", "a\u2028b", "\x1b[31m", "a\u202eb", "a\rb", "a\r\nb"]
FORMULA_TEXTS = ["=1+1", "+1", "- a dash", "@a"]


@pytest.mark.parametrize("format_name", ["jsonl", "csv", "tsv"])
def test_texts_of_predictions_are_read_back_as_they_were(run: Path, format_name: str) -> None:
    texts = {
        "tsv": ROUND_TRIP_TEXTS,
        "csv": [*ROUND_TRIP_TEXTS, "a\tb", "a\nb"],
        "jsonl": [*ROUND_TRIP_TEXTS, "a\tb", "\tb", "a\nb", *CONTROL_TEXTS, *FORMULA_TEXTS],
    }[format_name]
    name = f"out.{format_name}"
    writer = TextWriter(format_name)
    writer.write_file([[({"text": text}, {"label": "a"}) for text in texts]], Path(name), 0)
    assert writer.warning is None
    assert [row["text"] for row in read_inputs(name, format_name, ["text"])] == texts
    predict(str(run), PredictionInput(path=name), f"again.{format_name}", format_name, console=QUIET)
    assert [row["text"] for row in read_inputs(f"again.{format_name}", format_name, ["text"])] == texts


def test_named_column_that_the_input_lacks_is_not_replaced_by_another(run: Path) -> None:
    Path("in.jsonl").write_text('{"text": "fine"}\n')
    with pytest.raises(DataError, match=r"in\.jsonl:1: found columns \['text'\], expected text in column 'review'"):
        predict(str(run), PredictionInput(path="in.jsonl", columns=["review"]), "file.jsonl", console=QUIET)


def test_tsv_has_spaces_for_tabs_and_line_breaks_and_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["a\tb", "a\r\nb\n", 'say "hi"']
    predict(str(run), PredictionInput([(text,) for text in texts]), "out.tsv", "tsv", console=QUIET)
    assert [row["text"] for row in read_inputs("out.tsv", "tsv", ["text"])] == ["a b", "a b ", 'say "hi"']
    message = " ".join(capsys.readouterr().err.split())
    assert "warning: cells that differ from the original text: 2; tabs and line breaks become spaces" in message
    assert "--format jsonl" in message


def test_existing_output_and_unknown_format_raise_errors(run: Path) -> None:
    Path("mine.jsonl").write_text("kept")
    with pytest.raises(UsageError, match="already exists"):
        predict(str(run), PredictionInput([("x",)]), "mine.jsonl", console=QUIET)
    assert Path("mine.jsonl").read_text() == "kept"
    with pytest.raises(UsageError, match="Did you mean jsonl"):
        predict(str(run), PredictionInput([]), "-", "json", console=QUIET)


def test_encoder_without_head_raises_an_error(encoder: Path) -> None:
    with pytest.raises(ModelError, match="has no fine-tuned head"):
        predict(str(encoder), PredictionInput([("x",)]), console=QUIET)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "one\n\ntwo\r\n", ["one", "", "two"]),
        ("a.jsonl", '{"text": "one", "label": 1}\n\n{"text": "two"}\n', ["one", "two"]),
        ("a.csv", 'label,text\nx,"a, ""b"""\n', ['a, "b"']),
        ("a.tsv", 'text\tn\nsay "no"\t1\n', ['say "no"']),
    ],
)
def test_input_format_is_inferred_from_the_suffix(name: str, content: str, expected: list[str]) -> None:
    Path(name).write_bytes(content.encode())
    assert [row["text"] for row in read_inputs(name, infer_format(name), ["text"])] == expected


def test_parquet_inputs_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"text": "one", "n": 1}, {"text": "two", "n": 2}, {"text": None, "n": 3}]
    table = pyarrow.Table.from_pylist(rows)
    dates = pyarrow.array([4_000_000] * 3, pyarrow.date32())  # beyond the range of Python's dates
    parquet.write_table(table.append_column("date", dates), "a.parquet")
    monkeypatch.setattr("bertcli.data.prediction_inputs.PARQUET_BATCH_SIZE", 2)
    inputs = read_inputs("a.parquet", "parquet", ["text"], extra_columns=["n"])
    assert [next(inputs), next(inputs)] == [{"n": 1, "text": "one"}, {"n": 2, "text": "two"}]
    with pytest.raises(DataError, match=r"a\.parquet, row 3: found None in column 'text'"):
        next(inputs)
    with pytest.raises(DataError, match=r"a\.parquet, row 1: cannot read the value in column 'date'"):
        next(read_inputs("a.parquet", "parquet", ["text"], extra_columns=["date"]))
    with pytest.raises(DataError, match=r"found columns \['text', 'n', 'date'\]"):
        next(read_inputs("a.parquet", "parquet", ["words"], default_columns=["words"]))
    with pytest.raises(UsageError, match="standard input"):
        next(read_inputs("-", "parquet", ["text"]))


def test_ids_of_mixed_types_are_kept_with_the_predictions(run: Path) -> None:
    loaded = load_for_inference(ModelSource(str(run)))
    task = loaded.task.model_copy(update={"id_column": "id"})
    inputs = [{"text": "one", "id": 1}, {"text": "two", "id": "1"}, {"text": "three", "id": None}]
    ((chunk, rows, _, _),) = predict_inputs(loaded, task, inputs, QUIET)
    assert chunk == inputs
    assert rows["id"][:] == ["1", "1", None]


def test_bad_row_of_a_later_chunk_is_named_by_its_number_in_the_file(encoder: Path) -> None:
    overrides = [f"model.name={encoder}", "training.max_steps=1", "data.max_train_examples=8", "data.max_length=16"]
    finetune(load_recipe("sample/choices", overrides), Path("choices"), RunOptions(console=QUIET))
    rows = [{"text": "a", "choices": ["b", "c"]}] * (CHUNK_SIZE + 10) + [{"text": "a", "choices": ["b"]}]
    Path("a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    bad, first = len(rows), CHUNK_SIZE + 1
    with pytest.raises(DataError, match=rf"a\.jsonl: row {bad} has 1 choice, expected 2, as in row {first}"):
        predict("choices", PredictionInput(path="a.jsonl"), "out.jsonl", console=QUIET)


def test_extra_id_column_is_kept_unchanged() -> None:
    Path("a.jsonl").write_text('{"text": "one", "id": null}\n{"text": "two", "id": 7}\n')
    assert [row["id"] for row in read_inputs("a.jsonl", "jsonl", ["text"], extra_columns=["id"])] == [None, 7]


def test_pairs_are_read_from_two_columns_or_a_tab_separated_line() -> None:
    Path("a.jsonl").write_text('{"p": "one", "h": "two"}\n')
    Path("a.txt").write_text("one\ttwo\n")
    assert list(read_inputs("a.jsonl", "jsonl", ["p", "h"])) == [{"p": "one", "h": "two"}]
    assert list(read_inputs("a.txt", "text", ["p", "h"])) == [{"p": "one", "h": "two"}]


@pytest.mark.parametrize(
    ("content", "input_format", "message"),
    [
        (b'{"text": "a"}\n{"text": 3}\n', "jsonl", r"in\.dat:2: found 3 in column 'text'"),
        (b'{"txt": "a"}\n', "jsonl", r"in\.dat:1: found columns \['txt'\]"),
        (b"{text\n", "jsonl", "not JSON"),
        (b"[1]\n", "jsonl", "entry 1: found int"),
        (b"na\xefve\n", "text", "UTF-8"),
        (b"a\n", "xml", "expected one of"),
    ],
)
def test_invalid_input_errors_name_the_line(content: bytes, input_format: str, message: str) -> None:
    Path("in.dat").write_bytes(content)
    with pytest.raises((DataError, UsageError), match=message):
        list(read_inputs("in.dat", input_format, ["text"]))
    with pytest.raises(DataError, match="cannot read"):
        list(read_inputs("missing.txt", "text", ["text"]))


def test_input_columns_are_the_tasks_unless_named(run: Path) -> None:
    Path("in.csv").write_text("text,other\none,two\n")
    predict(str(run), PredictionInput(path="in.csv"), "text.csv", "csv", console=QUIET)
    predict(str(run), PredictionInput(path="in.csv", columns=["other"]), "other.csv", "csv", console=QUIET)
    assert Path("text.csv").read_text().splitlines()[1].startswith("one,")
    assert Path("other.csv").read_text().splitlines()[1].startswith("two,")


def test_model_folder_takes_single_texts_and_pairs(run: Path) -> None:
    model = str(run / "model")
    predict(model, PredictionInput([("a fine film",)]), "single.jsonl", console=QUIET)
    predict(model, PredictionInput([("a fine film", "a dull film")]), "pair.jsonl", console=QUIET)
    single, pair = (json.loads(Path(name).read_text()) for name in ("single.jsonl", "pair.jsonl"))
    assert set(single) == {"text", "label", "probabilities"}
    assert set(pair) == {"text", "text_pair", "label", "probabilities"}
    assert single["probabilities"] == predictions(run, [("a fine film",)])[0]["probabilities"]


def test_model_folder_needs_columns_for_a_file_with_pairs(run: Path) -> None:
    model, single_text = str(run / "model"), PredictionInput(path="in.csv", columns=["text"])
    Path("in.csv").write_text("text,text_pair\na fine film,a dull film\n")
    with pytest.raises(UsageError, match="--columns text,text_pair or --columns text"):
        predict(model, PredictionInput(path="in.csv"), "none.jsonl", console=QUIET)
    predict(model, PredictionInput(path="in.csv", columns=["text", "text_pair"]), "pair.jsonl", console=QUIET)
    predict(model, PredictionInput([("a fine film", "a dull film")]), "values.jsonl", console=QUIET)
    assert Path("pair.jsonl").read_text() == Path("values.jsonl").read_text()
    predict(model, single_text, "single.jsonl", console=QUIET)
    predict(str(run), PredictionInput(path="in.csv"), "run.jsonl", console=QUIET)  # its recipe has one text column
    assert Path("single.jsonl").read_text() == Path("run.jsonl").read_text()


def test_list_values_are_accepted_for_words_and_choices_only() -> None:
    Path("a.jsonl").write_text('{"text": ["one", "two"]}\n')
    assert list(read_inputs("a.jsonl", "jsonl", ["text"], list_columns=["text"])) == [{"text": ["one", "two"]}]
    with pytest.raises(DataError, match=r"a.jsonl:1: found \['one', 'two'\] in column 'text', expected text"):
        list(read_inputs("a.jsonl", "jsonl", ["text"]))


def test_hardware_settings_default_to_those_of_the_run(run: Path) -> None:
    recipe = run / "recipe.yaml"
    before = recipe.read_text("utf-8")
    recipe.write_text(before.replace("eval_batch_tokens: 8192", "eval_batch_tokens: 64"), "utf-8")
    try:
        loaded = load_for_inference(ModelSource(str(run)), hardware_section("cpu", "fp32"))
    finally:
        recipe.write_text(before, "utf-8")
    assert loaded.max_tokens == 64
