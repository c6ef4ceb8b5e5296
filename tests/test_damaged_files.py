"""Corrupt input for every reader gives one clear message that names the file.

Checkpoints and the cache are tested in their own modules.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import transformers
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from bertcli.cli.main import app
from bertcli.data.corpus_reading import read_documents
from bertcli.data.prediction_inputs import infer_format, read_inputs
from bertcli.data.sources import load_split
from bertcli.errors import BertcliError, DataError, ModelError, RunFolderError
from bertcli.finetuning.run import finetune
from bertcli.models.from_pretrained import ModelSource, save_model
from bertcli.recipe.load import load_recipe
from bertcli.recipe.pretrain_schema import Source
from bertcli.recipe.schema import Recipe
from bertcli.reports.comparison import read_runs
from bertcli.runs.folder import RunOptions
from bertcli.tasks.task import Task

from .conftest import CORRUPTIONS, QUIET

ROWS = [{"text": f"film {number}", "label": "ab"[number % 2]} for number in range(3000)]
DEEP = b"[" * 100_000
LONG_NUMBER = b'{"text": ' + b"1" * 5000 + b"}"
DAMAGED = [
    ("a.csv", b'text,label\n"film,a\nfilm,b'),
    ("a.csv", b"text,label\nfilm, or so,a\n"),
    ("a.tsv", b"text\tlabel\nfilm\ta\nfilm\n"),
    ("a.tsv", b"text\0\tlabel\nfilm\ta\n"),
    ("a.json", b'[{"text": "film", "label": "a"}, {"text": "fi'),
    ("a.json", b"[1, 2]"),
    ("a.json", DEEP),
    ("a.jsonl", b'{"text": "film"}\n{"text": "fi\n{"text": "film"}\n'),
    ("a.jsonl", b'{"text": "film"}\nnull\n'),
    ("a.jsonl", b"null"),
    ("a.jsonl", DEEP),
    ("a.conll", b"a B\nb O\nc\n"),
    ("a.conll", b"a B\n\xff O\n"),
    ("squad.json", b'{"data": [{"paragraphs": [{"context": "a", "qas": [{"question": "b"}]}]}]}'),
    ("squad.json", b'{"data": [{"paragraphs": 3}]}'),
]


def parquet() -> bytes:
    """Return a Parquet file with a valid footer and corrupt rows."""
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), "sound.parquet", use_dictionary=False)
    content = bytearray(Path("sound.parquet").read_bytes())
    content[100:3000] = (byte ^ 0x5A for byte in content[100:3000])
    return bytes(content)


@pytest.mark.parametrize(("name", "content"), DAMAGED)
def test_corrupt_training_rows(name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    task = Task.model_validate({"files": {"test": name}, "text_columns": ("text",)})
    with pytest.raises(DataError, match=name):
        load_split(task, "test")


@pytest.mark.parametrize(("name", "content"), [*DAMAGED, ("a.json", LONG_NUMBER), ("a.jsonl", LONG_NUMBER)])
def test_corrupt_prediction_inputs(name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        list(read_inputs(name, infer_format(name), ["text"]))


def test_corrupt_parquet_rows() -> None:
    Path("a.parquet").write_bytes(parquet())
    task = Task.model_validate({"files": {"test": "a.parquet"}, "text_columns": ("text",)})
    with pytest.raises(DataError, match=r"cannot read a\.parquet: .*[Cc]orrupt"):
        list(read_inputs("a.parquet", "parquet", ["text"]))
    with pytest.raises(DataError, match=r"cannot read a\.parquet: .*[Cc]orrupt"):
        load_split(task, "test")


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_corrupt_dataset_in_the_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "mirror" / "datasets" / "some" / "set"
    folder.mkdir(parents=True)
    content = parquet() if ending == "parquet" else b"text,label\na,b\nc,d,e,f\n"
    sound = Path("sound.parquet").read_bytes() if ending == "parquet" else b"text,label\na,b\n"
    for shard in range(3):
        path = folder / f"train-{shard:05d}-of-00003.{ending}"
        path.write_bytes(content if shard == 1 else sound)
    task = Task.model_validate({"dataset": "some/set", "text_columns": ("text",)})
    with pytest.raises(DataError, match=rf"cannot read .*/train-00001-of-00003\.{ending}: .*(?:[Cc]orrupt|saw 4)"):
        load_split(task, "train", tmp_path / "mirror")


@pytest.mark.parametrize("name", ["a.txt.zst", "a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("harm", ["truncated", "corrupt"])
def test_corrupt_documents(name: str, harm: str) -> None:
    codec = "zstd" if name.endswith("zst") else "gzip"
    text = "".join(f"{json.dumps(row)}\n" for row in ROWS).encode()
    Path(name).write_bytes(pyarrow.compress(text, codec=codec, asbytes=True))
    assert list(read_documents(Source(files=(name,)), None))
    CORRUPTIONS[harm](Path(name))
    with pytest.raises(DataError, match=name):
        list(read_documents(Source(files=(name,)), None))


@pytest.mark.parametrize("harm", ["truncated", "corrupt"])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_corrupt_model_files(encoder: Path, name: str, harm: str) -> None:
    shutil.copytree(encoder, "base")
    CORRUPTIONS[harm](Path("base", name))
    with pytest.raises(ModelError, match=rf"in base: .*\({name} is corrupt\)"):
        _ = ModelSource("base").load_tokenizer(), ModelSource("base").load_model("AutoModel")


COMMANDS = {
    "predict": ("predict", "{model}", "--text", "a film"),
    "features": ("predict", "{model}", "--text", "a film", "--features", "--output", "features.npy"),
    "eval": ("eval", "{model}", "--task", "small.yaml"),
    "export": ("export", "{model}", "--output", "exported"),
    "fill-mask": ("predict", "{masked_lm}", "--text", "a [MASK]"),
    "finetune": ("finetune", "small.yaml", "model.name={model}", "--run", "run"),
}


@pytest.fixture
def models(encoder: Path, recipe_of: Callable[..., Recipe]) -> dict[str, str]:
    """A classifier and a masked language model, by their roles in `COMMANDS`; `small.yaml` is a recipe."""
    recipe_of()
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
    names = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    config = transformers.AutoConfig.from_pretrained(encoder, **names)
    save_model(transformers.BertForSequenceClassification(config), tokenizer, Path("classifier"))
    save_model(transformers.BertForMaskedLM(config), tokenizer, Path("mlm"))
    return {"model": "classifier", "masked_lm": "mlm"}


def call(command: str, models: dict[str, str]) -> Result:
    return CliRunner().invoke(app, [argument.format(**models) for argument in COMMANDS[command]])


@pytest.mark.parametrize("command", COMMANDS)
def test_weights_missing_from_a_model_are_refused(models: dict[str, str], command: str) -> None:
    for name in models.values():
        path = Path(name, "model.safetensors")
        tensors = {key: tensor for key, tensor in load_file(path).items() if "layer.1." not in key}
        save_file(tensors, path, metadata={"format": "pt"})
    result = call(command, models)
    message = " ".join(result.stderr.split())
    assert "bert.encoder.layer.1.* (16 tensors)" in message
    if command == "finetune":
        assert result.exit_code == 0, result.stderr
        assert "warning: classifier lacks weights of its encoder" in message
    else:
        assert result.exit_code == 1
        assert "lacks weights that its configuration needs" in message
        assert not Path("features.npy").exists()
        assert not Path("exported").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_tokenizer_larger_than_the_vocabulary_of_the_model_is_refused(models: dict[str, str], command: str) -> None:
    for name in models.values():
        tokenizer = ModelSource(name).load_tokenizer()
        tokenizer.add_tokens([f"new{number}" for number in range(7)])
        tokenizer.save_pretrained(name)
    size = ModelSource("mlm").config.vocab_size
    result = call(command, models)
    assert result.exit_code == 1
    expected = f"found a tokenizer with {size + 7} entries, expected at most {size}"
    assert expected in " ".join(result.stderr.split())


def test_corrupt_history(encoder: Path) -> None:
    short = [f"model.name={encoder}", "training.max_steps=3", "data.max_train_examples=64", "data.max_eval_examples=9"]
    recipe = load_recipe("sample/sentiment", [*short, "evaluation.every_steps=1", "training.seed=1"])
    finetune(recipe, Path("run"), RunOptions(console=QUIET))
    history = Path("run/eval.jsonl")
    lines = history.read_text().splitlines(keepends=True)
    for damaged in (lines[1][:20] + "\n", "3\n", "\n"):
        history.write_text(lines[0] + damaged + lines[2])
        before = history.read_bytes()
        with pytest.raises(BertcliError, match=r"run/eval\.jsonl:2 is corrupt"):
            read_runs(["run"])
        Path("run/results.json").rename("results.json")
        with pytest.raises(RunFolderError, match=r"run/eval\.jsonl:2 is corrupt"):
            finetune(recipe, Path("run"), RunOptions(console=QUIET))
        assert history.read_bytes() == before
        Path("results.json").rename("run/results.json")
