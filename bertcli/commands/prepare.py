"""Everything a fine-tuning run needs before its first step: rows, labels, tokenizer, head; then the model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bertcli.data.encoding import Encoded
from bertcli.data.sources import load_split
from bertcli.errors import DataError, ModelError, RecipeError
from bertcli.heads.text_classification import MODEL_CLASS, TextClassification, resolve_labels
from bertcli.metrics import load_metric
from bertcli.models import build
from bertcli.recipe.schema import Recipe
from bertcli.tasks import task_named
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SUBSET_SEED = 13  # a part of the training rows is the same part for every training seed


@dataclass(frozen=True)
class Prepared:
    """What all seeds of a recipe share."""

    recipe: Recipe
    task: Task
    head: TextClassification
    tokenizer: PreTrainedTokenizerBase
    rows: dict[str, Dataset]  # train and validation
    mirror: Path | None
    _encoded: dict[str, Encoded] = field(default_factory=dict)

    def encode(self, split: str) -> Encoded:
        """A split as token ids with labels; tokenised once for all seeds."""
        if split not in self._encoded:
            rows, length = self.rows[split], self.recipe.data.max_length
            self._encoded[split] = self.head.encode(self.task, rows, self.tokenizer, length)
        return self._encoded[split]

    def with_seed(self, seed: int) -> Prepared:
        """The same, for one seed of the recipe."""
        training = self.recipe.training.model_copy(update={"seed": (seed,)})
        return replace(self, recipe=self.recipe.model_copy(update={"training": training}))

    def build_model(self) -> PreTrainedModel:
        """The model to fine-tune; what is fresh in it comes from torch's generator, so seed that first."""
        section = self.recipe.model
        fields = self.head.config_fields
        if section.name is None:
            return build.build_model(section, self.tokenizer, MODEL_CLASS, fields)
        return build.load_model(
            section.name, self.mirror, MODEL_CLASS, fields, dropout=section.dropout, fresh_head=section.new_head
        )

    def count_parameters(self) -> int:
        """Parameters of the model, without making or loading it."""
        import torch
        import transformers

        with torch.device("meta"):
            if self.recipe.model.name is None:
                return self.build_model().num_parameters()
            config = build.load_config(self.recipe.model.name, self.mirror)
            return transformers.AutoModel.from_config(config).num_parameters()


def prepare(recipe: Recipe, mirror: Path | None) -> Prepared:
    """Load and check what the recipe names; nothing heavy is computed and nothing written.

    Raises:
        RecipeError, DataError, ModelError: what the recipe asks for does not fit together.
    """
    task = recipe_task(recipe)
    check_metrics(recipe, task)
    rows = {split: load_split(task, split, mirror) for split in ("train", "validation")}
    rows = _limit(recipe, rows)
    labels = resolve_labels(task, rows["train"])
    tokenizer = _tokenizer(recipe, task, rows["train"], mirror)
    if recipe.model.name is not None:
        labels = _check_model(recipe, labels, tokenizer, mirror)
    head = TextClassification(task.problem, labels)
    for split, part in rows.items():
        answers = head.read_labels(task, part)
        if answers is None:
            raise DataError(f"{task.name}: split {split!r} has no labels, but {split} needs them")
        if split == "train" and task.problem == "single_label" and len(np.unique(answers)) < 2:
            raise DataError(f"{task.name}: all training rows have the same label, there is nothing to learn")
    return Prepared(recipe, task, head, tokenizer, rows, mirror)


def recipe_task(recipe: Recipe) -> Task:
    """The recipe's task row, shipped or its own."""
    return task_named(recipe.task) if isinstance(recipe.task, str) else recipe.task


def check_metrics(recipe: Recipe, task: Task) -> None:
    """Refuse metrics that do not exist, do not fit the task, or are chosen by without being computed."""
    for name in task.metric_names:
        load_metric(name, task.problem)
    best_by = recipe.evaluation.best_by
    if best_by is not None and best_by not in task.metric_names:
        raise RecipeError([f"found evaluation.best_by {best_by!r}, expected one of {list(task.metric_names)}"])


def _limit(recipe: Recipe, rows: dict[str, Dataset]) -> dict[str, Dataset]:
    train, validation = rows["train"], rows["validation"]
    most = recipe.data.max_train_examples
    if most is not None and most < len(train):
        train = train.shuffle(seed=SUBSET_SEED).select(range(most))
    most = recipe.data.max_eval_examples
    if most is not None and most < len(validation):
        validation = validation.select(range(most))
    return {"train": train, "validation": validation}


def _tokenizer(recipe: Recipe, task: Task, train: Dataset, mirror: Path | None) -> PreTrainedTokenizerBase:
    name = recipe.model.tokenizer or recipe.model.name
    if name is not None:
        return build.load_tokenizer(name, mirror)
    texts = chain.from_iterable(train[column] for column in task.text_columns)
    return build.train_tokenizer(texts, recipe.model.vocabulary_size)


def _check_model(
    recipe: Recipe, labels: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, mirror: Path | None
) -> tuple[str, ...]:
    """Check the trained model against the recipe; the labels, in the order of its classifier if it keeps that."""
    name = recipe.model.name
    assert name is not None
    config = build.load_config(name, mirror)
    longest = build.longest_input(tokenizer, config)
    if recipe.data.max_length > longest:
        raise ModelError(f"found data.max_length {recipe.data.max_length}, but {name} reads at most {longest} tokens")
    if recipe.model.new_head or not build.has_trained_head(config, MODEL_CLASS):
        return labels
    build.check_labels(config, labels, name)
    return tuple(build.saved_labels(config)) if labels else labels
