"""Texts of any size and script, a million lines, ten thousand labels: an answer for each, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bertcli.commands.predict import predict
from bertcli.console import Console
from bertcli.finetuning.run import finetune
from bertcli.recipe.load import load_recipe
from bertcli.runs.folder import RunOptions

QUIET = Console(quiet=True)
ODD = [
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


def run_of(sample: str, encoder: Path, *overrides: str) -> str:
    small = [f"model.name={encoder}", "training.max_steps=2", "data.max_train_examples=64", "data.max_eval_examples=99"]
    finetune(load_recipe(f"sample/{sample}", [*small, *overrides]), Path(sample), RunOptions(console=QUIET))
    return sample


def answers(run: str, values: list[list[str]]) -> list[dict]:
    predict(run, values, "out.jsonl", console=QUIET)
    lines = Path("out.jsonl").read_text("utf-8").split("\n")[:-1]
    Path("out.jsonl").unlink()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("long_inputs", ["keep_head", "keep_tail", "keep_head_and_tail", "windows"])
def test_odd_texts_have_labels(encoder: Path, long_inputs: str) -> None:
    run = run_of("sentiment", encoder, f"data.long_inputs={long_inputs}")
    assert [answer["text"] for answer in answers(run, [[text] for text in ODD])] == ODD


def test_odd_texts_have_tags_spans_and_choices(encoder: Path) -> None:
    run = run_of("entities", encoder)
    for text, answer in zip(ODD, answers(run, [[text] for text in ODD]), strict=True):
        assert len(answer["words"]) == len(answer["tags"])
        assert all(text[one["start"] : one["end"]] == one["text"] for one in answer["entities"])
    run = run_of("questions", encoder)
    for passage in ODD:
        for answer in answers(run, [["who ?", passage], [passage, "a lovely day"]]):
            assert isinstance(answer["answer"], str)
    run = run_of("choices", encoder)
    assert len(answers(run, [[text, *ODD[:4]] for text in ODD])) == len(ODD)


@pytest.mark.slow
def test_one_text_of_five_megabytes(encoder: Path) -> None:
    text = "the soup was lovely . " * 230_000
    run = run_of("sentiment", encoder)
    assert len(text) > 5_000_000
    assert answers(run, [[text], ["film"]])[0]["text"] == text


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
    answer = answers("run", [["film 7"]])[0]
    assert answer["label"] in labels
    assert len(answer["probabilities"]) == 10_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_does_not_grow_with_the_number_of_inputs(encoder: Path) -> None:
    run = run_of("sentiment", encoder)

    def peak(number: int) -> float:
        """Megabytes a process needs at most to answer so many lines."""
        Path("lines.txt").write_text("the soup was not bad\n" * number)
        code = (
            "import resource; from bertcli.commands.predict import predict; from bertcli.console import Console\n"
            f"assert predict({run!r}, None, 'out.jsonl', input_path='lines.txt', console=Console()) == {number}\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
        )
        made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        Path("out.jsonl").unlink()
        return float(made.stdout)

    few, many = peak(20_000), peak(1_000_000)
    print(f"20,000 lines: {few:.0f} MB; 1,000,000 lines: {many:.0f} MB")
    assert many < few + 50
