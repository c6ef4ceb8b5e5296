"""Everything a fine-tuning run needs before its first step: rows, labels, tokenizer, head; then the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertcli.data.encoding import Encoded
from bertcli.data.formats import as_text
from bertcli.data.sources import load_split
from bertcli.errors import DataError, ModelError, RecipeError, did_you_mean
from bertcli.heads import HEADS
from bertcli.heads.base import Head
from bertcli.heads.labels import OPTIONAL_FIELDS, check_labels, saved_labels
from bertcli.metrics import check_number_of_labels, load_metric, score_names
from bertcli.models.from_pretrained import has_trained_head, load_config, load_model, load_tokenizer, longest_input
from bertcli.models.from_scratch import build_model
from bertcli.models.tokenizer_training import train_tokenizer
from bertcli.recipe.load import recipe_task
from bertcli.recipe.schema import Recipe, TrainingSection
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
    head: Head
    tokenizer: PreTrainedTokenizerBase
    rows: dict[str, Dataset]  # train and validation
    references: dict[str, Any]  # the right answers to them
    mirror: Path | None
    _encoded: dict[str, Encoded] = field(default_factory=dict)

    def encode(self, split: str) -> Encoded:
        """A split as token ids with labels; tokenised once for all seeds."""
        if split not in self._encoded:
            self._encoded[split] = self.head.encode(self.task, self.rows[split], self.tokenizer, self.recipe.data)
        return self._encoded[split]

    def with_seed(self, seed: int) -> Prepared:
        """The same, for one seed of the recipe."""
        return replace(self, recipe=self.recipe.with_seed(seed))

    def build_model(self) -> PreTrainedModel:
        """The model to fine-tune; what is fresh in it comes from torch's generator, so seed that first."""
        section = self.recipe.model
        model_class, fields = self.head.model_class, self.head.config_fields
        if section.name is None:
            return build_model(section, self.tokenizer, model_class, fields)
        model = load_model(
            section.name, self.mirror, model_class, fields, dropout=section.dropout, fresh_head=section.new_head
        )
        for name in OPTIONAL_FIELDS:
            if name not in fields:
                vars(model.config).pop(name, None)  # it was that of an earlier task
        return model

    def count_parameters(self) -> int:
        """Parameters of the model, without making or loading it."""
        import torch
        import transformers

        with torch.device("meta"):
            if self.recipe.model.name is None:
                return self.build_model().num_parameters()
            config = load_config(self.recipe.model.name, self.mirror)
            return transformers.AutoModel.from_config(config).num_parameters()


def prepare(recipe: Recipe, mirror: Path | None) -> Prepared:
    """Load and check what the recipe names; nothing heavy is computed and nothing written.

    Raises:
        RecipeError, DataError, ModelError: what the recipe asks for does not fit together.
    """
    task = recipe_task(recipe)
    check_recipe(recipe, task)
    rows = {split: load_split(task, split, mirror) for split in ("train", "validation", *task.splits.more_validation)}
    # A part of the rows may lack some of the labels.
    task = task.model_copy(update={"labels": HEADS[task.head].labels_of(task, rows["train"])})
    check_number_of_labels(task)
    rows = _limit(recipe, rows)
    head = HEADS[task.head].learned_from(task, rows["train"], recipe)
    tokenizer = _tokenizer(recipe, task, rows["train"], mirror)
    if recipe.model.name is not None:
        head = _check_model(recipe, task, head, tokenizer, mirror)
    references = {split: head.references(task, part) for split, part in rows.items()}
    for split, known in references.items():
        if known is None:
            raise DataError(f"{task.name}: split {split!r} has no labels, but {split} needs them")
    return Prepared(recipe, task, head, tokenizer, rows, references, mirror)


def check_recipe(recipe: Recipe, task: Task) -> None:
    """Refuse what the task or the strategy has no use for, all at once.

    Raises:
        RecipeError: with every problem found.
    """
    problems = [*_unfit_metrics(recipe, task), *_keys_without_use(recipe, task), *_unfit_strategy(recipe)]
    if task.files is None and task.splits.train is None:
        problems.append(f"{task.name} has no training split: it is only for `eval` and `predict`")
    if problems:
        raise RecipeError(problems)


def _unfit_metrics(recipe: Recipe, task: Task) -> Iterator[str]:
    """Metrics that do not exist, do not fit the task, or are chosen by without being computed."""
    known = score_names(task.metric_names)
    for name in task.metric_names:
        try:
            load_metric(name, task.answer_kind)
        except DataError as error:
            yield str(error)
            return  # what is chosen by may be meant for the right metric
    for key, chosen in (("task.main_metric", task.main_metric), ("evaluation.best_by", recipe.evaluation.best_by)):
        if chosen is not None and chosen not in known:
            yield f"found {key} {chosen!r}, expected one of {known}.{did_you_mean(chosen, known)}"


def _keys_without_use(recipe: Recipe, task: Task) -> Iterator[str]:
    """Keys that this kind of answer does not know."""
    training, data, kind = recipe.training, recipe.data, task.answer_kind
    if training.label_smoothing and kind not in ("single_label", "token_classification", "multiple_choice"):
        yield f"training.label_smoothing is for tasks with one label, and {task.name} is {kind}"
    if training.class_weights is not None and kind not in ("single_label", "multi_label", "token_classification"):
        yield f"training.class_weights are for labels, and {task.name} is {kind}"
    if training.teacher is not None and kind not in ("single_label", "multiple_choice"):
        yield f"training.teacher is for tasks with one label, and {task.name} is {kind}"
    if recipe.answers.thresholds is not None and kind not in ("single_label", "multi_label"):
        yield f"answers.thresholds are for the labels of texts, and {task.name} is {kind}"
    if training.token_cutoff and task.head not in ("text_classification", "multiple_choice"):
        yield f"training.token_cutoff is for whole texts, and {task.name} asks about single tokens"
    if data.long_inputs != "keep_head" and (task.head != "text_classification" or len(task.text_columns) > 1):
        asked = "of pairs" if task.head == "text_classification" else kind
        yield f"data.long_inputs={data.long_inputs} is for a label or number of one text, and {task.name} is {asked}"
    if data.context_tokens and task.head != "token_classification":
        yield f"data.context_tokens are for token_classification, and {task.name} is {kind}"
    if data.mark_capitals and task.head != "token_classification":
        yield f"data.mark_capitals is for token_classification, and {task.name} is {kind}"


def _unfit_strategy(recipe: Recipe) -> Iterator[str]:
    """Keys that the chosen strategy has no use for."""
    training = recipe.training
    if training.teacher is None:
        alone = _given(training, ("teacher_weight", "teacher_temperature", "teacher_hidden_weight"))
        yield from (f"training.{key} needs a training.teacher" for key in alone)
    if training.strategy in ("features", "lora") and recipe.model.name is None:
        yield f"training.strategy {training.strategy} needs a trained encoder: name one as model.name"
    for strategy, keys in {
        "gradual": ("unfreeze_every_epochs", "unfreeze_every_steps"),
        "lora": ("lora_rank", "lora_alpha", "lora_dropout", "lora_merge"),
    }.items():
        if training.strategy != strategy:
            yield from (f"training.{key} is for training.strategy={strategy}" for key in _given(training, keys))
    if recipe.hardware.shard and training.strategy != "full":
        yield f"hardware.shard is for training.strategy=full, found {training.strategy}"
    if training.strategy == "lora" and training.reinitialise_layers:
        yield "training.reinitialise_layers makes weights that training.strategy=lora does not save"
    if training.strategy == "features":
        refused = _given(training, ("reinitialise_layers", "token_cutoff", "teacher_hidden_weight"))
        yield from (f"training.{key} changes what training.strategy=features keeps" for key in refused)


def _given(training: TrainingSection, keys: tuple[str, ...]) -> list[str]:
    """Those of the keys that are not as they are by default."""
    return [key for key in keys if getattr(training, key) != type(training).model_fields[key].default]


def _limit(recipe: Recipe, rows: dict[str, Dataset]) -> dict[str, Dataset]:
    """The rows that the recipe's `max_…_examples` leave."""
    limits = dict.fromkeys(rows, recipe.data.max_eval_examples) | {"train": recipe.data.max_train_examples}
    limited = {}
    for split, part in rows.items():
        most = limits[split]
        if most is not None and most < len(part):
            part = part.shuffle(seed=SUBSET_SEED) if split == "train" else part
            part = part.select(range(most))
        limited[split] = part
    return limited


def _tokenizer(recipe: Recipe, task: Task, train: Dataset, mirror: Path | None) -> PreTrainedTokenizerBase:
    name = recipe.model.tokenizer or recipe.model.name
    if name is not None:
        return load_tokenizer(name, mirror, for_words=task.head == "token_classification")
    return train_tokenizer(partial(_texts, task, train), recipe.model.vocabulary_size)


def _texts(task: Task, rows: Dataset) -> Iterator[str]:
    """All texts of the rows, lists of words joined."""
    for column in task.columns:
        for value in rows[column]:
            yield as_text(value)


def _check_model(
    recipe: Recipe, task: Task, head: Head, tokenizer: PreTrainedTokenizerBase, mirror: Path | None
) -> Head:
    """Check the trained model against the recipe; the head, with the labels in the order of a classifier it keeps."""
    name = recipe.model.name
    assert name is not None
    config = load_config(name, mirror)
    longest = longest_input(tokenizer, config)
    if recipe.data.max_length > longest:
        raise ModelError(f"found data.max_length {recipe.data.max_length}, but {name} reads at most {longest} tokens")
    if recipe.data.mark_capitals and getattr(config, "type_vocab_size", 1) < 2:
        raise ModelError(f"found data.mark_capitals, but {name} tells no two segments apart; leave it out")
    if recipe.model.new_head or not has_trained_head(config, head.model_class):
        return head
    saved = saved_labels(config)
    if head.answer_kind == "regression" and len(saved) != 1:
        raise ModelError(
            f"{name} has a classifier for {list(saved)}, and {task.name} asks for a number; set model.new_head=true"
        )
    if not head.labels:
        return head
    cure = "Make task.labels agree, or set model.new_head=true to learn a new classifier."
    check_labels(saved, head.labels, name, cure)
    return head.with_labels(saved)
