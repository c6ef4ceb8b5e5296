"""Predictions for texts of any size and script, a million lines and ten thousand labels, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bertcli.commands.predict import predict
from bertcli.data.prediction_inputs import PredictionInput
from bertcli.finetuning.run import finetune
from bertcli.recipe.load import load_recipe
from bertcli.runs.folder import RunOptions

from ..conftest import QUIET

ODD_TEXTS = [
    "",
    " ",
    "\t",
    "🦦🦦🦦",
    "שלום עולם",
    "مرحبا",
    "\u200b\u200d\ufeff",
    "a\u0000b",
    "é" * 999,
    "\u202etxt",
    "𝕗𝕚𝕟𝕖",
    "。",
]


def finetune_sample(sample: str, encoder: Path, *overrides: str) -> str:
    small = [f"model.name={encoder}", "training.max_steps=2", "data.max_train_examples=64", "data.max_eval_examples=99"]
    finetune(load_recipe(f"sample/{sample}", [*small, *overrides]), Path(sample), RunOptions(console=QUIET))
    return sample


def predictions(run: str, values: list[list[str]]) -> list[dict]:
    predict(run, PredictionInput(values), "out.jsonl", console=QUIET)
    lines = Path("out.jsonl").read_text("utf-8").split("\n")[:-1]
    Path("out.jsonl").unlink()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("long_inputs", ["keep_head", "keep_tail", "keep_head_and_tail", "windows"])
def test_labels_of_odd_texts(encoder: Path, long_inputs: str) -> None:
    run = finetune_sample("sentiment", encoder, f"data.long_inputs={long_inputs}")
    assert [row["text"] for row in predictions(run, [[text] for text in ODD_TEXTS])] == ODD_TEXTS


def test_tags_spans_and_choices_of_odd_texts(encoder: Path) -> None:
    run = finetune_sample("entities", encoder)
    for text, prediction in zip(ODD_TEXTS, predictions(run, [[text] for text in ODD_TEXTS]), strict=True):
        assert len(prediction["words"]) == len(prediction["tags"])
        assert all(text[entity["start"] : entity["end"]] == entity["text"] for entity in prediction["entities"])
    run = finetune_sample("questions", encoder)
    for passage in ODD_TEXTS:
        for prediction in predictions(run, [["who ?", passage], [passage, "a lovely day"]]):
            assert isinstance(prediction["answer"], str)
    run = finetune_sample("choices", encoder)
    assert len(predictions(run, [[text, *ODD_TEXTS[:4]] for text in ODD_TEXTS])) == len(ODD_TEXTS)


@pytest.mark.slow
def test_text_of_five_megabytes(encoder: Path) -> None:
    text = "the soup was lovely . " * 230_000
    run = finetune_sample("sentiment", encoder)
    assert len(text) > 5_000_000
    assert predictions(run, [[text], ["film"]])[0]["text"] == text


@pytest.mark.slow
def test_ten_thousand_labels(encoder: Path) -> None:
    labels = [f"label {number:05d}" for number in range(10_000)]
    rows = [json.dumps({"text": f"film {number}", "label": labels[number]}) for number in range(0, 10_000, 50)]
    Path("rows.jsonl").write_text("\n".join(rows))
    Path("wide.yaml").write_text(
        f"task: {{files: {{train: rows.jsonl}}, text_columns: [text], labels: {json.dumps(labels)}}}\n"
        f"model: {{name: {encoder}}}\ndata: {{max_length: 16}}\ntraining: {{max_steps: 2, seed: 1}}\n"
    )
    finetune(load_recipe("wide.yaml"), Path("run"), RunOptions(console=QUIET))
    prediction = predictions("run", [["film 7"]])[0]
    assert prediction["label"] in labels
    assert len(prediction["probabilities"]) == 10_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_prediction_memory_does_not_grow_with_the_number_of_inputs(encoder: Path) -> None:
    run = finetune_sample("sentiment", encoder)

    def peak_megabytes(num_lines: int) -> float:
        """Peak memory of a process that predicts `num_lines` lines."""
        Path("lines.txt").write_text("the soup was not bad\n" * num_lines)
        code = (
            "import re; from bertcli.commands.predict import predict; from bertcli.console import Console\n"
            "from bertcli.data.prediction_inputs import PredictionInput\n"
            "inputs = PredictionInput(path='lines.txt')\n"
            f"assert predict({run!r}, inputs, 'out.jsonl', console=Console()) == {num_lines}\n"
            "print(int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]) / 1024)"
        )
        process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        Path("out.jsonl").unlink()
        return float(process.stdout)

    few, many = peak_megabytes(20_000), peak_megabytes(1_000_000)
    print(f"20,000 lines: {few:.0f} MB; 1,000,000 lines: {many:.0f} MB")
    assert many < few + 50
