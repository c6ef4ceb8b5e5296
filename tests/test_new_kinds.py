"""A head and an objective defined outside the package, as a class and a line in its table, work everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from typer.testing import CliRunner

from bertcli.cli.main import app
from bertcli.data.encoding import Encoded, encode_texts
from bertcli.heads.base import Head
from bertcli.heads.labels import label_config_fields
from bertcli.pretraining.objective import Text, TokenObjective, TokenTargets
from bertcli.recipe.pretrain_schema import OBJECTIVES
from bertcli.recipe.schema import DataSection, Recipe, TrainingSection
from bertcli.tasks.task import HEADS, Task


class Rating(Head):
    """A rating from 1 to 3 per row, trained as regression and predicted as the nearest integer."""

    model_class = "AutoModelForSequenceClassification"
    pipeline_tag = "text-classification"
    default_columns = ("text",)

    @classmethod
    def answer_kind_of(cls, task: Task) -> str:
        return "single_label"

    @classmethod
    def default_metrics(cls, task: Task) -> tuple[str, ...]:
        return ("accuracy",)

    @classmethod
    def from_data(cls, task: Task, train: Dataset, recipe: Recipe) -> Self:
        return cls()

    @classmethod
    def from_config(cls, task: Task, config: PretrainedConfig, recipe: Recipe | None) -> Self:
        return cls()

    @property
    def answer_kind(self) -> str:
        return "single_label"

    @property
    def config_fields(self) -> dict[str, Any]:
        return label_config_fields(("score",)) | {"problem_type": "regression"}

    def encode(self, task: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase, data: DataSection) -> Encoded:
        gold = self.references(task, rows)
        labels = None if gold is None else gold.astype(np.float32)
        return encode_texts(tokenizer, rows[task.text_columns[0]][:], None, data.max_length, labels)

    def references(self, task: Task, rows: Dataset) -> np.ndarray | None:
        if task.label_column not in rows.column_names:
            return None
        return np.asarray(rows[task.label_column][:], dtype=np.int64)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, training: TrainingSection | None = None) -> torch.Tensor:
        return torch.nn.functional.mse_loss(logits.squeeze(-1), labels, reduction="sum")

    def to_predictions(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(logits[:, 0]), 1, 3).astype(np.int64)

    def to_json(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[dict[str, Any]]:
        return [{"rating": int(rating)} for rating in self.to_predictions(task, rows, encoded, logits)]

    def with_gold(
        self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray, predictions: Sequence[Any]
    ) -> list[dict[str, Any]]:
        gold = self.references(task, rows)
        assert gold is not None
        pairs = zip(gold.tolist(), map(int, predictions), strict=True)
        return [{"gold": str(a), "predicted": str(b), "right": a == b, "loss": abs(a - b)} for a, b in pairs]


class TokenCopy(TokenObjective):
    """Every token is predicted from the unmasked sequence."""

    model_class = "AutoModelForMaskedLM"
    pipeline_tag = "fill-mask"
    has_pipeline = True

    def build_targets(self, texts: Sequence[Text], random: np.random.Generator) -> TokenTargets:
        encoded, _, _ = self.with_special_tokens(texts)
        return TokenTargets(encoded.with_labels(encoded.input_ids, encoded.input_ids.astype(np.int64)))


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_new_head_trains_evaluates_predicts_reports_and_has_a_card(
    encoder: Path, write_csv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HEADS, "rating", Rating)
    rows: list[list[object]] = [["bad train", 1], ["a dull film", 2], ["a fine film", 3], ["a lovely day", 3]] * 5
    data = write_csv("ratings.csv", ["text", "label"], rows)
    Path("rating.yaml").write_text(
        f"task: {{head: rating, files: {{train: {data}, validation: {data}}}, text_columns: [text]}}\n"
        f"model: {{name: {encoder}}}\ndata: {{max_length: 16}}\n"
        "training: {max_steps: 150, global_batch_size: 10, learning_rate: 1e-2}\n"
    )
    run("finetune", "rating.yaml", "--run", "run")
    results = json.loads(Path("run/results.json").read_text())
    assert results["head"] == "rating"
    assert results["metrics"]["validation"]["accuracy"] > 0.9
    scored = json.loads(run("eval", "run", "--json"))
    assert scored["metrics"]["validation"]["accuracy"] == results["metrics"]["validation"]["accuracy"]
    assert json.loads(run("predict", "run", "--text", "bad train")) == {"text": "bad train", "rating": 1}
    assert "accuracy" in run("report", "run")
    assert "rating" in Path("run/report.html").read_text("utf-8")
    card = Path("run/README.md").read_text("utf-8")
    assert "pipeline_tag: text-classification" in card
    assert "AutoModelForSequenceClassification" in card
    refused = CliRunner().invoke(app, ["finetune", "rating.yaml", "training.label_smoothing=0.1", "--run", "other"])
    assert refused.exit_code == 2
    assert "training.label_smoothing is only for" in refused.stderr


def test_new_objective_trains_evaluates_predicts_reports_and_has_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "token_copy", TokenCopy)
    monkeypatch.setenv("BERTCLI_CACHE", "cache")
    overrides = ["objective.kind=token_copy", "training.max_steps=3", "corpus.max_documents=100"]
    run("pretrain", "pretrain/tiny", *overrides, "--run", "run")
    results = json.loads(Path("run/results.json").read_text())
    assert results["objective"] == "token_copy"
    assert json.loads(run("eval", "run", "--json"))["metrics"]["validation"] == pytest.approx(
        results["metrics"]["validation"]
    )
    assert len(json.loads(run("predict", "run", "--text", "a [MASK] day"))["masks"]) == 1
    assert "loss" in run("report", "run")
    assert 'pipeline("fill-mask"' in Path("run/README.md").read_text("utf-8")
    refused = CliRunner().invoke(app, ["pretrain", "pretrain/tiny", *overrides, "objective.masking=span"])
    assert refused.exit_code == 2
    assert "the objective token_copy does not use masking" in refused.stderr
