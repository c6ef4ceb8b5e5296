"""Scores are those of the saved model and its probabilities, and refused where they are undefined."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from bertcli.cli.main import app
from bertcli.commands.evaluate import evaluate
from bertcli.data.encoding import Encoded
from bertcli.errors import DataError
from bertcli.finetuning.run import finetune
from bertcli.heads.question_answering import QuestionAnswering
from bertcli.metrics.answers import group_indices, load_answers
from bertcli.recipe.load import load_recipe
from bertcli.recipe.schema import Recipe
from bertcli.runs.folder import RunOptions
from bertcli.runs.history import read_records
from bertcli.tasks import TASKS

from ..conftest import QUIET

RANKING = "[f1, roc_auc, average_precision, log_loss, brier]"


def test_probability_scores_are_those_of_the_saved_model_in_plain_transformers(
    recipe_of: Callable[..., Recipe], reviews: Path
) -> None:
    recipe = recipe_of(f"task.metrics={RANKING}", "training.class_weights=auto", "answers.thresholds=tuned")
    results = finetune(recipe, Path("run"), RunOptions(console=QUIET))
    scores = results.mean_scores("validation")
    lines = [json.loads(line) for line in Path("run/predictions/validation.jsonl").read_text().splitlines()]
    gold = [line["gold"] == "positive" for line in lines]
    tokenizer = AutoTokenizer.from_pretrained("run/model")
    model = AutoModelForSequenceClassification.from_pretrained("run/model")
    inputs = tokenizer([line["texts"]["text"] for line in lines], padding=True, return_tensors="pt")
    with torch.no_grad():
        probabilities = model(**inputs).logits.double().softmax(-1)[:, 1].numpy()
    expected = {
        "roc_auc": sklearn.metrics.roc_auc_score(gold, probabilities),
        "average_precision": sklearn.metrics.average_precision_score(gold, probabilities),
        "log_loss": sklearn.metrics.log_loss(gold, probabilities),
        "brier": sklearn.metrics.brier_score_loss(gold, probabilities),
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert scores["loss"] == pytest.approx(expected["log_loss"], abs=1e-5)  # without the weights of training
    tuned = results.mean_scores("validation_tuned")
    assert {name: tuned[name] for name in expected} == {name: scores[name] for name in expected}
    evaluated = evaluate("run", console=QUIET).mean_scores("validation")
    assert evaluated == pytest.approx({**scores, "f1": tuned["f1"]})


def test_windows_of_a_row_are_averaged_before_its_probabilities(recipe_of: Callable[..., Recipe]) -> None:
    overrides = ("data.max_length=8", "data.long_inputs=windows", "data.doc_stride=0")
    recipe = recipe_of(f"task.metrics={RANKING}", *overrides)
    scores = finetune(recipe, Path("run"), RunOptions(console=QUIET)).mean_scores("validation")
    lines = [json.loads(line) for line in Path("run/predictions/validation.jsonl").read_text().splitlines()]
    assert max(line["tokens"] for line in lines) > 8
    gold = np.array([line["gold"] == "positive" for line in lines])
    probabilities = np.array([line["probabilities"]["positive"] for line in lines])
    assert scores["log_loss"] == pytest.approx(sklearn.metrics.log_loss(gold, probabilities), abs=1e-5)
    assert scores["brier"] == pytest.approx(((probabilities - gold) ** 2).mean(), abs=1e-5)


def test_head_without_probabilities_refuses_a_metric_that_needs_them() -> None:
    with pytest.raises(DataError, match="needs probabilities, but question_answering has none"):
        QuestionAnswering().to_probabilities(Encoded(*[np.zeros(0)] * 5, pad_token_id=0), np.zeros((0, 2)))  # type: ignore[misc]


def test_split_with_one_class_is_refused_before_training_and_in_eval(
    recipe_of: Callable[..., Recipe], write_csv: Callable[..., Path]
) -> None:
    one = write_csv("one.csv", ["text", "label"], [["a fine film", "positive"]] * 3)
    needs = r"the metric roc_auc needs rows with a label and rows without it in split 'validation'"
    with pytest.raises(DataError, match=needs):
        finetune(recipe_of(f"task.metrics={RANKING}", f"task.files.validation={one}"), Path("run"), RunOptions())
    assert not Path("run").exists()
    recipe = recipe_of(f"task.metrics={RANKING}", f"task.files.test={one}", "training.max_steps=1")
    finetune(recipe, Path("run"), RunOptions(console=QUIET))
    with pytest.raises(DataError, match=r"the metric roc_auc needs .* in split 'test'"):
        evaluate("run", split="test", console=QUIET)


@pytest.mark.parametrize("task", ["choices", "topics", "similarity"])
def test_other_kinds_of_tasks_are_scored_by_probabilities_and_errors(encoder: Path, task: str) -> None:
    metrics = {"choices": "[accuracy, mrr]", "topics": "[roc_auc_macro, log_loss]", "similarity": "[mae, r2]"}[task]
    row = TASKS[f"sample/{task}"].model_dump(exclude_defaults=True) | {"name": "mine"}
    Path("mine.yaml").write_text(
        f"extends: sample/{task}\ntask: {json.dumps(row)}\nmodel: {{name: {encoder}}}\n"
        "data: {max_length: 32, max_train_examples: 64, max_eval_examples: 50}\n"
    )
    recipe = load_recipe("mine.yaml", [f"task.metrics={metrics}", "training.max_steps=4", "evaluation.every_steps=1"])
    results = finetune(recipe, Path("run"), RunOptions(console=QUIET))
    assert evaluate("run", console=QUIET).mean_scores("validation").keys() == results.metrics["validation"].keys()
    best_by = str(results.best_by)
    history = [record[f"eval/validation/{best_by}"] for record in read_records(Path("run/eval.jsonl"))]
    assert results.best_score == (min if task == "similarity" else max)(history)
    if task == "topics":
        assert results.mean("log_loss") == pytest.approx(results.mean("loss"), abs=1e-5)


def test_rows_of_a_group_are_resampled_together_by_training_evaluation_and_report(
    recipe_of: Callable[..., Recipe], write_csv: Callable[..., Path]
) -> None:
    rows = [["a fine film", "positive", f"author {row // 4}"] if row % 3 else ["a dull film", "negative",
            f"author {row // 4}"] for row in range(64)]  # fmt: skip
    train = write_csv("train.csv", ["text", "label", "author"], rows)
    test = write_csv("test.csv", ["text", "label", "author"], rows[:20])
    bare = write_csv("bare.csv", ["text", "label"], [row[:2] for row in rows[:20]])
    overrides = (f"task.files.train={train}", f"task.files.test={test}", "task.held_out_fraction=0.5")
    recipe = recipe_of(*overrides, "task.group_by=author", "training.max_steps=1")
    results = finetune(recipe, Path("run"), RunOptions(console=QUIET))
    assert results.group_by == "author"
    answers = load_answers(Path("run/predictions/validation.npz"))
    assert len(answers["gold"]) == 32
    assert group_indices(answers).tolist() == [row // 4 for row in range(32)]
    assert evaluate("run", split="test", console=QUIET).group_by == "author"
    assert "drawn together" in Path("run/report.html").read_text()
    finetune(recipe_of(*overrides, "task.group_by=author", "training.seed=2"), Path("other"), RunOptions(console=QUIET))
    output = CliRunner().invoke(app, ["report", "run", "other", "--significance"]).output
    assert "rows with the same 'author' are not independent: they were drawn and swapped together" in " ".join(
        output.split()
    )
    recipe = recipe_of(*overrides[:1], f"task.files.test={bare}", *overrides[2:], "task.group_by=author")
    finetune(recipe, Path("bare"), RunOptions(console=QUIET))
    assert evaluate("bare", split="test", console=QUIET).group_by is None
