"""Multi-task fine-tuning: each task is scored, saved and used separately; an interrupted run resumes exactly."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from bertcli.cli.main import app
from bertcli.commands.evaluate import evaluate
from bertcli.commands.predict import predict
from bertcli.console import Console
from bertcli.data.prediction_inputs import PredictionInput
from bertcli.errors import Interrupted, ModelError, RecipeError, RunFolderError, UsageError
from bertcli.finetuning.multitask import finetune_multitask
from bertcli.recipe.suite import Suite, load_finetuning
from bertcli.runs.folder import RunOptions
from bertcli.runs.results import SeedScore

from ..conftest import QUIET

OPTIONS = RunOptions(console=QUIET)
TASKS = ["sentiment", "similarity", "entities", "choices"]


def load(encoder: Path, *overrides: str) -> Suite:
    Path("suite.yaml").write_text(
        f"suite: [{', '.join(f'sample/{task}' for task in TASKS)}]\n"
        f"multitask: {{sampling: equal}}\nmodel: {{name: {encoder}}}\n"
        "data: {max_length: 64, max_train_examples: 40, max_eval_examples: 10}\n"
        "training: {max_steps: 12, global_batch_size: 8, learning_rate: 1e-3, epochs: 1, seed: 1}\n"
        "evaluation: {every_steps: 6}\n",
        "utf-8",
    )
    suite = load_finetuning("suite.yaml", overrides)
    assert isinstance(suite, Suite)
    return suite


def test_multitask_each_task_is_scored_saved_and_used_separately(
    encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = load(encoder, "data.max_eval_examples=null", "hardware.precision=bf16")
    monkeypatch.setattr("bertcli.console.LOG_INTERVAL_SECONDS", 0.0)
    results = finetune_multitask(suite, Path("run"), RunOptions(console=Console()))
    assert "step 6/12  evaluating 1600  " in capsys.readouterr().err
    scores = results.metrics["validation"]
    assert results.best_by == "average"
    main_metrics = ("sentiment/accuracy", "similarity/pearson", "entities/f1", "choices/accuracy")
    assert scores["average"] == pytest.approx(sum(scores[f"sample/{name}"] for name in main_metrics) / 4)
    for task in TASKS:
        task_scores = evaluate(f"run/model/sample-{task}", console=QUIET).metrics["validation"]
        assert task_scores == pytest.approx({name: scores[f"sample/{task}/{name}"] for name in task_scores})
    evaluated = evaluate("run", console=QUIET)
    assert evaluated.metrics["validation"] == pytest.approx(scores)
    assert evaluated.num_examples == 4 * 400
    with pytest.raises(UsageError, match=r"to use --task, pass one of them instead: run/model/sample-sentiment, "):
        evaluate("run", task_name="sample/sentiment", console=QUIET)
    with pytest.raises(ModelError, match=r"use one of its models: run/model/sample-choices, "):
        predict("run", PredictionInput([["a fine film"]]), console=QUIET)
    encoders = [load_file(f"run/model/sample-{task}/model.safetensors") for task in TASKS]
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert all(torch.equal(encoders[0][name], other[name]) for other in encoders)
    assert not torch.equal(encoders[0]["classifier.weight"], encoders[3]["classifier.weight"])
    AutoModelForSequenceClassification.from_pretrained("run/model/sample-sentiment")
    assert finetune_multitask(suite, Path("run"), RunOptions(console=QUIET)) == results


def test_multitask_seeds_have_extra_validation_splits_predictions_and_a_model_to_predict_with(
    encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.yaml").write_text(
        "extends: sample/sentiment\n"
        "task: {dataset: sample, config: sentiment, text_columns: [text], splits: {extra_validation: [test]}}\n"
    )
    overrides = [
        "suite=[mine.yaml, sample/questions]",
        "training.seed=[1, 2]",
        "training.max_steps=2",
        "evaluation.every_steps=2",
    ]
    results = finetune_multitask(load(encoder, *overrides), Path("run"), RunOptions(console=Console()))
    assert set(results.metrics["test"]) == {f"mine.yaml/{name}" for name in ("accuracy", "f1_macro", "loss")}
    for seed in (1, 2):
        seed_metrics = json.loads(Path(f"run/seed-{seed}/results.json").read_text())["metrics"]
        assert set(seed_metrics["test"]) == set(results.metrics["test"])
        scores = seed_metrics["validation"]
        assert scores["sample/questions/f1"] > 1  # in percent
        expected = (scores["mine.yaml/accuracy"] + scores["sample/questions/f1"] / 100) / 2
        assert scores["average"] == pytest.approx(expected)
        for file in ("mine-validation.jsonl", "sample-questions-validation.jsonl"):
            assert len(Path(f"run/seed-{seed}/predictions/{file}").read_text().splitlines()) == 10
    (model,) = re.findall(r"next +bertcli predict (\S+) ", capsys.readouterr().err)
    assert Path(model, "config.json").is_file()
    evaluated = evaluate("run", console=QUIET).metrics["validation"]
    assert set(evaluated) == set(results.metrics["validation"])
    assert isinstance(evaluated["average"], SeedScore)
    assert len(evaluated["average"].values) == 2


GRADUAL = ("training.strategy=gradual", "training.unfreeze_every_steps=2")


@pytest.mark.parametrize("overrides", [(), pytest.param(GRADUAL, marks=pytest.mark.slow)])
def test_multitask_resumed_run_ends_where_an_uninterrupted_one_ends(
    encoder: Path,
    stop_after: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    overrides: tuple[str, ...],
) -> None:
    suite = load(encoder, *overrides)
    uninterrupted = finetune_multitask(suite, Path("uninterrupted"), RunOptions(console=QUIET))
    stop_after(5)
    with pytest.raises(Interrupted, match="saved after step 5"):
        finetune_multitask(suite, Path("run"), RunOptions(console=QUIET))
    logging_more = load(encoder, *overrides, "hardware.log_every_steps=5")  # does not change the trained model
    resumed = finetune_multitask(logging_more, Path("run"), RunOptions(console=Console()))
    assert (
        "resuming run with hardware.log_every_steps 20 → 5; without dropout, results stay the same"
        in capsys.readouterr().err
    )
    with pytest.raises(RunFolderError, match="with a different recipe"):
        finetune_multitask(load(encoder, *overrides, "training.epochs=2"), Path("run"), RunOptions(console=QUIET))
    assert resumed.metrics == uninterrupted.metrics
    last = "checkpoints/step-00000012/model.safetensors"
    weights = load_file(f"run/{last}")
    for name, tensor in load_file(f"uninterrupted/{last}").items():
        assert torch.equal(tensor, weights[name]), name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.strategy=lora"], "is not supported in multitask training"),
        (["model.name=null"], "requires a shared vocabulary"),
        (["training.epochs=[1, 2]"], "found a list under `training` with multitask"),
        (["start_from={sentiment: choices}"], "found start_from with multitask"),
        (["evaluation.best_by=loss"], "sample/sentiment is scored by loss, where lower is better, but the mean score"),
    ],
)
def test_multitask_unsupported_keys_are_rejected(encoder: Path, overrides: list[str], message: str) -> None:
    def run() -> Any:
        return finetune_multitask(load(encoder, *overrides), Path("run"), RunOptions(console=QUIET))

    with pytest.raises(RecipeError, match=message):
        run()


def test_multitask_finished_run_is_refused_once_the_rows_of_a_task_have_changed(encoder: Path, reviews: Path) -> None:
    for name in ("one", "two"):
        task = f"name: mine/{name}, files: {{train: {reviews}}}, text_columns: [text]"
        Path(f"{name}.yaml").write_text(f"task: {{{task}}}\n")
    Path("suite.yaml").write_text(
        f"suite: [one.yaml, two.yaml]\nmultitask: {{}}\nmodel: {{name: {encoder}}}\ndata: {{max_length: 16}}\n"
    )
    suite = load_finetuning("suite.yaml", ["training.max_steps=2"])
    assert isinstance(suite, Suite)
    first = finetune_multitask(suite, Path("run"), OPTIONS)
    assert len(str(first.source_fingerprint).split()) == len(str(first.data_fingerprint).split()) == 2
    assert finetune_multitask(suite, Path("run"), OPTIONS) == first
    reviews.write_text(f"{reviews.read_text('utf-8')}\n", "utf-8")  # another file, but the same rows
    assert finetune_multitask(suite, Path("run"), OPTIONS) == first
    reviews.write_text(reviews.read_text("utf-8").replace("vile", "grand"), "utf-8")
    with pytest.raises(RunFolderError, match="the training or validation data have changed since run was trained"):
        finetune_multitask(suite, Path("run"), OPTIONS)


def test_multitask_jobs_are_rejected(encoder: Path) -> None:
    load(encoder)
    result = CliRunner().invoke(app, ["finetune", "suite.yaml", "--jobs", "2", "--run", "run"])
    assert result.exit_code == 2
    assert "multitask training is one run" in result.stderr


def test_multitask_recipes_with_different_keys_are_rejected() -> None:
    Path("a.yaml").write_text("extends: sample/sentiment\ntraining: {learning_rate: 1e-5}\n")
    Path("suite.yaml").write_text("suite: [a.yaml, sample/topics]\nmultitask: {}\n")
    with pytest.raises(RecipeError, match=r"found training\.learning_rate 1e-05 \(a\.yaml\).*set it in the suite"):
        load_finetuning("suite.yaml")
