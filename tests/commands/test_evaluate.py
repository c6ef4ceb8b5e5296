"""Evaluation of a run: the same rows and labels as in training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bertcli.cli.main import app
from bertcli.commands.evaluate import evaluate
from bertcli.finetuning.run import finetune
from bertcli.recipe.schema import Recipe
from bertcli.runs.folder import RunOptions
from bertcli.runs.history import read_records
from tests.conftest import QUIET


def test_eval_skips_the_unlabelled_rows_of_the_held_out_split_as_training_did(recipe_of: Callable[..., Recipe]) -> None:
    labels = ["positive", "negative", ""] * 20
    rows = "".join(f"lovely film {row},{label}\n" for row, label in enumerate(labels, start=1))
    Path("rows.csv").write_text("text,label\n" + rows)
    overrides = ("task.files.train=rows.csv", "task.held_out_fraction=0.5", "training.max_steps=1")
    results = finetune(recipe_of(*overrides, "data.skip_unlabelled=true"), Path("run"), RunOptions(console=QUIET))
    lines = read_records(Path("run/predictions/validation.jsonl"))
    assert len(lines) == 20
    assert [line["row_in_file"] for line in lines] == [int(line["texts"]["text"].split()[-1]) for line in lines]
    evaluated: Any = evaluate("run", console=QUIET)
    assert evaluated.num_examples == 20
    assert evaluated.metrics["validation"]["loss"] == pytest.approx(results.metrics["validation"]["loss"], rel=1e-5)


def test_eval_accepts_labels_that_only_held_out_rows_have(recipe_of: Callable[..., Recipe]) -> None:
    cells = ["rare"] + ["a", "b"] * 10
    Path("rows.csv").write_text("text,label\n" + "".join(f"film,{cell}\n" for cell in cells))
    task = "task={files: {train: rows.csv}, labels: [], problem: multi_label, held_out_fraction: 0.9}"
    finetune(recipe_of(task, "training.max_steps=1"), Path("run"), RunOptions(console=QUIET))
    lines = read_records(Path("run/predictions/validation.jsonl"))
    assert ["rare"] in [line["gold"] for line in lines]
    evaluated: Any = evaluate("run", console=QUIET)
    assert evaluated.num_examples == len(lines)


@pytest.mark.parametrize("command", ["eval", "predict"])
def test_run_of_an_earlier_version_names_its_model(command: str) -> None:
    Path("run/model").mkdir(parents=True)
    Path("run/model/config.json").write_text('{"model_type": "bert"}')
    Path("run/model/model.safetensors").touch()
    Path("run/recipe.yaml").write_text("task: glue/sst2\nanswers: {consistent_tags: false}\n")
    result = CliRunner().invoke(app, [command, "run", *(["--text", "a film"] if command == "predict" else [])])
    assert result.exit_code == 2
    first, second = result.stderr.splitlines()
    assert first.startswith("error: run is a run of another version, or its recipe.yaml was edited")
    assert "Its model works without the recipe: pass run/model" in first
    assert "Did you mean answers.constrained_decoding?" in second
