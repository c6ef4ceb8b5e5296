"""Decision thresholds: best F1, given in the recipe, saved with the model, used by eval and predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import BertConfig

from bertcli.commands.evaluate import evaluate
from bertcli.commands.predict import predict
from bertcli.data.prediction_inputs import PredictionInput
from bertcli.errors import DataError, ModelError, RecipeError
from bertcli.finetuning.run import finetune
from bertcli.heads.text_classification import TextClassification
from bertcli.heads.thresholds import best_f1_threshold, thresholds_from_recipe
from bertcli.recipe.load import load_recipe
from bertcli.recipe.schema import Recipe
from bertcli.runs.folder import RunOptions
from bertcli.tasks.task import Task

from ..conftest import QUIET


def f1(predicted: np.ndarray, gold: np.ndarray) -> float:
    return 2 * (predicted & gold).sum() / max(1, predicted.sum() + gold.sum())


@pytest.mark.parametrize("seed", range(20))
def test_best_f1_threshold_has_the_best_f1_of_all_thresholds(seed: int) -> None:
    generator = np.random.default_rng(seed)
    probabilities = generator.integers(0, 8, 40) / 8  # with ties
    gold = generator.random(40) < probabilities * 0.4
    gold[int(probabilities.argmax())] = True
    best = best_f1_threshold(probabilities, gold)
    candidates = np.linspace(-0.01, 1, 400)
    assert f1(probabilities > best, gold) == max(f1(probabilities > threshold, gold) for threshold in candidates)
    assert best not in probabilities


def test_best_f1_threshold_is_one_half_without_positive_rows() -> None:
    assert best_f1_threshold(np.array([0.1, 0.9]), np.array([False, False])) == 0.5


def test_thresholds_are_applied_to_probabilities() -> None:
    logits = np.log([[0.75, 0.25], [0.6, 0.4], [0.4, 0.6]])
    assert TextClassification("single_label", ("no", "yes")).apply_thresholds(logits).tolist() == [0, 0, 1]
    lower = TextClassification("single_label", ("no", "yes"), thresholds={"yes": 0.3})
    assert lower.apply_thresholds(logits).tolist() == [0, 1, 1]
    assert lower.with_labels(("yes", "no")).apply_thresholds(logits[:, ::-1]).tolist() == [1, 0, 0]
    multi_label = TextClassification("multi_label", ("a", "b"), thresholds={"a": 0.9, "b": 0.1})
    assert multi_label.apply_thresholds(np.array([[1.0, -1.0], [3.0, -3.0]])).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("labels", "thresholds", "message"),
    [
        (("no", "yes"), {"yse": 0.2}, "expected yes. Did you mean yes"),
        (("no", "yes"), {"no": 0.2}, "expected yes"),
        (("a", "b", "c"), {"a": 0.2}, "found 3 labels"),
    ],
)
def test_thresholds_for_other_labels_are_rejected(labels: tuple[str, ...], thresholds: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        thresholds_from_recipe(thresholds, Task(dataset="x", text_columns=("text",)), labels)


def recipe(encoder: Path, name: str, *overrides: str) -> Recipe:
    defaults = [
        "training.max_steps=30",
        "data.max_train_examples=200",
        "data.max_eval_examples=400",
        "data.max_length=32",
    ]
    return load_recipe(
        f"sample/{name}", [*defaults, f"model.name={encoder}", "training.learning_rate=1e-3", *overrides]
    )


def predictions(run: str, texts: list[str]) -> list[Any]:
    Path("in.txt").write_text("\n".join(texts))
    predict(run, PredictionInput(path="in.txt"), "out.jsonl", console=QUIET)
    return [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("thresholds", ["x", ["b"], {"b": "high"}, {"c": 0.4}, {}, {"a": 0.4, "b": 0.4}])
def test_invalid_thresholds_of_a_saved_model_are_refused(thresholds: Any) -> None:
    config = BertConfig(id2label={0: "a", 1: "b"}, thresholds=thresholds)
    task = Task.model_validate({"dataset": "x", "text_columns": ("text",)})
    with pytest.raises(
        ModelError, match=r"config\.json of the model has the thresholds .*, expected a number for one of"
    ):
        TextClassification.from_config(task, config, None)


@pytest.mark.parametrize("problem", ["foo", 5])
def test_unknown_problem_type_of_a_saved_model_is_refused(problem: Any) -> None:
    config = BertConfig()
    config.problem_type = problem
    task = Task.model_validate({"dataset": "x", "text_columns": ("text",)})
    with pytest.raises(ModelError, match=f"found problem_type {problem!r} in the model, expected one of"):
        TextClassification.from_config(task, config, None)


def test_tuned_thresholds_are_saved_and_used(encoder: Path) -> None:
    results = finetune(recipe(encoder, "topics", "answers.thresholds=tuned"), Path("run"), RunOptions(console=QUIET))
    before, after = results.metrics["validation"], results.metrics["validation_tuned"]
    assert after["f1_macro"] > before["f1_macro"]
    assert set(results.thresholds) == set(json.loads(Path("run/model/config.json").read_text())["label2id"])
    scores = evaluate("run", console=QUIET).metrics["validation"]
    assert {name: scores[name] for name in after} == after
    for entry in predictions("run", ["the soup was good", "the train was late"]):
        above = {label for label, value in entry["probabilities"].items() if value > results.thresholds[label]}
        assert set(entry["labels"]) == above
    assert "threshold for" in Path("run/report.html").read_text()
    assert "Plain `transformers` ignores them" in Path("run/README.md").read_text()
    finetune(recipe(Path("run"), "topics"), Path("later"), RunOptions(console=QUIET))
    assert "thresholds" not in json.loads(Path("later/model/config.json").read_text())
    assert "ignores them" not in Path("later/README.md").read_text()


def test_threshold_of_the_recipe_applies_to_every_evaluation(encoder: Path) -> None:
    results = finetune(
        recipe(encoder, "sentiment", "answers.thresholds={positive: 0.999}"), Path("run"), RunOptions(console=QUIET)
    )
    assert results.thresholds == {"positive": 0.999}
    assert {entry["label"] for entry in predictions("run", ["good", "bad", "the soup was good"])} == {"negative"}
    assert evaluate("run", console=QUIET).metrics == results.metrics


@pytest.mark.parametrize("name", ["similarity", "entities", "questions", "choices"])
def test_thresholds_are_rejected_for_other_heads(encoder: Path, name: str) -> None:
    with pytest.raises(RecipeError, match=r"answers\.thresholds is only for"):
        finetune(recipe(encoder, name, "answers.thresholds=tuned"), Path("run"), RunOptions(console=QUIET))
