"""Thresholds of labels: the best for F1, given by name, kept with the model and used by eval and predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertcli.commands.evaluate import evaluate
from bertcli.commands.predict import predict
from bertcli.console import Console
from bertcli.errors import DataError, RecipeError
from bertcli.finetuning.run import finetune
from bertcli.heads.text_classification import TextClassification
from bertcli.heads.thresholds import best_threshold, given_thresholds
from bertcli.recipe.load import load_recipe
from bertcli.recipe.schema import Recipe
from bertcli.runs.folder import RunOptions
from bertcli.tasks.task import Task

QUIET = Console(quiet=True)


def f1(found: np.ndarray, right: np.ndarray) -> float:
    return 2 * (found & right).sum() / max(1, found.sum() + right.sum())


@pytest.mark.parametrize("seed", range(20))
def test_no_threshold_has_a_better_f1(seed: int) -> None:
    generator = np.random.default_rng(seed)
    shares = generator.integers(0, 8, 40) / 8  # many are the same
    right = generator.random(40) < shares * 0.4
    right[int(shares.argmax())] = True
    best = best_threshold(shares, right)
    assert f1(shares > best, right) == max(f1(shares > least, right) for least in np.linspace(-0.01, 1, 400))
    assert best not in shares


def test_where_no_row_is_right_half_is_kept() -> None:
    assert best_threshold(np.array([0.1, 0.9]), np.array([False, False])) == 0.5


def test_a_label_is_answered_above_its_threshold() -> None:
    half = np.log([[0.75, 0.25], [0.6, 0.4], [0.4, 0.6]])
    assert TextClassification("single_label", ("no", "yes")).choose(half).tolist() == [0, 0, 1]
    lower = TextClassification("single_label", ("no", "yes"), thresholds={"yes": 0.3})
    assert lower.choose(half).tolist() == [0, 1, 1]
    assert lower.with_labels(("yes", "no")).choose(half[:, ::-1]).tolist() == [1, 0, 0]
    several = TextClassification("multi_label", ("a", "b"), thresholds={"a": 0.9, "b": 0.1})
    assert several.choose(np.array([[1.0, -1.0], [3.0, -3.0]])).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("labels", "wanted", "words"),
    [
        (("no", "yes"), {"yse": 0.2}, "expected it for yes. Did you mean yes"),
        (("no", "yes"), {"no": 0.2}, "expected it for yes"),
        (("a", "b", "c"), {"a": 0.2}, "found one of 3"),
    ],
)
def test_thresholds_that_fit_no_label_are_refused(labels: tuple[str, ...], wanted: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        given_thresholds(wanted, Task(dataset="x", text_columns=("text",)), labels)


def recipe(encoder: Path, name: str, *overrides: str) -> Recipe:
    words = ["training.max_steps=30", "data.max_train_examples=200", "data.max_eval_examples=400", "data.max_length=32"]
    return load_recipe(f"sample/{name}", [*words, f"model.name={encoder}", "training.learning_rate=1e-3", *overrides])


def labels_of(run: str, texts: list[str]) -> list[Any]:
    Path("in.txt").write_text("\n".join(texts))
    predict(run, None, "out.jsonl", input_path="in.txt", console=QUIET)
    return [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]


def test_tuned_thresholds_are_kept_and_used(encoder: Path) -> None:
    results = finetune(recipe(encoder, "topics", "answers.thresholds=tuned"), Path("run"), RunOptions(console=QUIET))
    before, after = results["metrics"]["validation"], results["metrics"]["validation_tuned"]
    assert after["f1_macro"] > before["f1_macro"]
    assert set(results["thresholds"]) == set(json.loads(Path("run/model/config.json").read_text())["label2id"])
    again = evaluate("run", console=QUIET)["metrics"]["validation"]
    assert {name: again[name] for name in after} == after
    for answer in labels_of("run", ["the soup was good", "the train was late"]):
        likely = {label for label, share in answer["probabilities"].items() if share > results["thresholds"][label]}
        assert set(answer["labels"]) == likely
    assert "threshold of" in Path("run/report.html").read_text()
    assert "Plain `transformers` does not know them" in Path("run/README.md").read_text()
    finetune(recipe(Path("run"), "topics"), Path("later"), RunOptions(console=QUIET))
    assert "thresholds" not in json.loads(Path("later/model/config.json").read_text())
    assert "does not know them" not in Path("later/README.md").read_text()


def test_a_given_threshold_counts_from_the_first_evaluation_on(encoder: Path) -> None:
    results = finetune(
        recipe(encoder, "sentiment", "answers.thresholds={positive: 0.999}"), Path("run"), RunOptions(console=QUIET)
    )
    assert results["thresholds"] == {"positive": 0.999}
    assert {answer["label"] for answer in labels_of("run", ["good", "bad", "the soup was good"])} == {"negative"}
    assert evaluate("run", console=QUIET)["metrics"] == results["metrics"]


@pytest.mark.parametrize("name", ["similarity", "entities", "questions", "choices"])
def test_other_answers_have_no_thresholds(encoder: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="for the labels of texts"):
        finetune(recipe(encoder, name, "answers.thresholds=tuned"), Path("run"), RunOptions(console=QUIET))
