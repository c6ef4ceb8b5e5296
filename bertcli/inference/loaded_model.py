"""A fine-tuned model loaded for `eval` and `predict`, from a run folder, a model folder or the Hub."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertcli.console import Console
from bertcli.data.encoding import Encoded, RowWarning
from bertcli.data.formats import Row
from bertcli.data.prediction_inputs import InputRows, batched
from bertcli.data.table_files import FILE_COLUMN, ROW_COLUMN, label_text
from bertcli.errors import ModelError, RecipeError, UsageError, quoted, shortened
from bertcli.heads.base import Head
from bertcli.heads.labels import label_config_fields
from bertcli.inference.forward import Chunk, predict_logits
from bertcli.inference.prediction_formats import Prediction
from bertcli.inference.prediction_stream import CHUNK_SIZE
from bertcli.models.from_pretrained import ModelSource, has_head
from bertcli.models.padding_free import optimize_forward
from bertcli.models.tokenizer_matching import check_end_of_text, match_tokenizer, max_input_length
from bertcli.recipe.load import load_recipe, load_single_recipe, recipe_task
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.recipe.schema import DataSection, HardwareSection, Recipe
from bertcli.recipe.suite import run_folder
from bertcli.recipe.yaml_layers import read_yaml_file
from bertcli.runs.folder import RunFolder
from bertcli.tasks import TASKS, get_task
from bertcli.tasks.task import HEADS, Task, load_class
from bertcli.training.devices import build_accelerator

if TYPE_CHECKING:
    import numpy as np
    import torch
    from accelerate import Accelerator
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_DATA = DataSection(max_length=512)  # of models without a run folder; capped at the model's maximum length


@dataclass(frozen=True)
class LoadedModel:
    """A model with its head and tokenizer, ready to predict.

    Attributes:
        recipe: the recipe of the run; None for a model folder or a model from the Hub.
        task: the task of the recipe, else the head's default task.
        data: how inputs are encoded.
        max_tokens: maximum tokens per batch, padding included.
    """

    name: str
    recipe: Recipe | None
    task: Task
    head: Head
    tokenizer: PreTrainedTokenizerBase
    accelerator: Accelerator
    model: torch.nn.Module
    data: DataSection
    max_tokens: int

    def predict_logits(self, rows: Dataset | InputRows, encoded: Encoded, **options: Any) -> Iterator[Chunk]:
        """Predict encoded rows, one chunk at a time; the options are those of `bertcli.inference.forward`."""
        return predict_logits(
            self.accelerator, self.model, rows, encoded, self.head, max_tokens=self.max_tokens, **options
        )


def load_for_inference(
    source: ModelSource,
    hardware: HardwareSection | None = None,
    labels: Sequence[str] | None = None,
    *,
    model: PreTrainedModel | None = None,
) -> LoadedModel:
    """Load a model with its head.

    Args:
        hardware: overrides for the run's hardware settings.
        labels: new names for the model's labels, in the order of their IDs; None: the saved names.
        model: the model, already loaded from `source`, to be used as transformers runs it; None: load it, and skip
            unnecessary computation.

    Raises:
        ModelError: if the model does not exist, has no supported head, lacks weights, or is incompatible with its
            tokenizer.
        UsageError: if `labels` are not distinct names, one for each of the model's labels, or the model has no labels.
    """
    recipe = finetuning_recipe(source.name)
    config = copy.deepcopy(source.config)
    head_name = recipe_task(recipe).head if recipe else _find_head_name(config)
    head_class = load_class(HEADS, head_name) if head_name else None
    if head_name is None or head_class is None or not has_head(config, head_class.model_class):
        raise ModelError(
            f"{source.name} has no fine-tuned head (architecture: {', '.join(config.architectures or ['unknown'])}"
            "); fine-tune it first with `bertcli finetune`"
        )
    task = recipe_task(recipe) if recipe else head_class.default_task(head_name)
    head = head_class.from_config(task, config, recipe)
    if labels is not None:
        _rename_labels(config, labels, head, source.name)
        head = head_class.from_config(task, config, recipe)
    hardware = (recipe.hardware if recipe else HardwareSection()).with_overrides(hardware)
    tokenizer = source.load_tokenizer(is_split_into_words=head_class.reads_words)
    match_tokenizer(tokenizer, source.config, source.name)
    check_end_of_text(tokenizer, source.config, head_class.model_class, source.name)
    data = recipe.data if recipe else DEFAULT_DATA
    accelerator = build_accelerator(hardware)
    if model is None:
        model = source.load_model(head_class.model_class)
        optimize_forward(model, accelerator.device)
    return LoadedModel(
        name=source.name,
        recipe=recipe,
        task=task,
        head=head.with_tokenizer(tokenizer),
        tokenizer=tokenizer,
        accelerator=accelerator,
        model=accelerator.prepare_model(model, evaluation_mode=True),
        data=data.model_copy(update={"max_length": min(max_input_length(tokenizer, source.config), data.max_length)}),
        max_tokens=hardware.eval_batch_tokens,
    )


def _rename_labels(config: PretrainedConfig, labels: Sequence[str], head: Head, name: str) -> None:
    """Rename the labels in the configuration, including those of its thresholds."""
    saved_labels = head.labels
    if not saved_labels:
        raise UsageError(f"{name} predicts {head.answer_kind}, which has no labels; leave out --labels")
    if len(set(labels)) != len(saved_labels) or len(labels) != len(saved_labels):
        raise UsageError(
            f"found --labels {shortened(','.join(labels))}, expected {len(saved_labels)} distinct names: {name} has "
            f"{quoted(list(saved_labels))}"
        )
    thresholds = getattr(config, "thresholds", None) or {}
    new_names = dict(zip(saved_labels, labels, strict=True))
    config.update(label_config_fields(tuple(labels)))
    if thresholds:
        config.update({"thresholds": {new_names[label]: threshold for label, threshold in thresholds.items()}})


def predict_inputs(
    loaded: LoadedModel, task: Task, inputs: Iterable[Row], console: Console, path: str | None = None
) -> Iterator[tuple[list[Row], InputRows, Encoded, np.ndarray]]:
    """Predict a stream of inputs one chunk at a time, so that memory use does not grow with their number.

    Args:
        path: the file that the inputs were read from, for messages; None: another source.

    Yields:
        The inputs of a chunk, the same inputs by column, their encoded items, and the logits.

    Raises:
        DataError: if a column has both texts and lists of texts.
    """
    for chunk_index, chunk in enumerate(batched(inputs, CHUNK_SIZE)):
        first_row = chunk_index * CHUNK_SIZE
        rows, encoded = _encode(loaded, task, chunk, first_row, path)
        console.warn_about_rows(encoded.row_warnings, first_row=first_row)
        remaining = iter(chunk)
        for part_rows, part, logits, _ in loaded.predict_logits(rows, encoded, is_shared=True):
            yield list(islice(remaining, len(part_rows))), part_rows, part, logits


def predict_rows(
    loaded: LoadedModel, task: Task, rows: list[Row], first_row: int, path: str | None
) -> tuple[list[Prediction], list[RowWarning]]:
    """Predict rows in this process alone; return predictions as they are written, and warnings about rows.

    Args:
        first_row: index of the first row, for messages.
        path: as for `predict_inputs`.

    Raises:
        DataError: if a row is invalid, or a column has both texts and lists of texts.
    """
    inputs, encoded = _encode(loaded, task, rows, first_row, path)
    predictions = [
        prediction
        for part_rows, part, logits, _ in loaded.predict_logits(inputs, encoded, is_shared=False)
        for prediction in loaded.head.to_json(task, part_rows, part, logits)
    ]
    return predictions, list(encoded.row_warnings)


def _encode(
    loaded: LoadedModel, task: Task, rows: list[Row], first_row: int, path: str | None
) -> tuple[InputRows, Encoded]:
    """Return the columns of rows that the model reads, with what messages need to name a row, and the encoded rows."""
    used = {*task.columns, task.id_column}
    columns = {name: [row.get(name) for row in rows] for name in rows[0] if name in used}
    if task.id_column in columns:
        columns[task.id_column] = [*map(label_text, columns[task.id_column])]
    columns[ROW_COLUMN] = [*range(first_row + 1, first_row + len(rows) + 1)]
    if path is not None:
        columns[FILE_COLUMN] = [path] * len(rows)
    if task.label_column in columns:  # the name of an input here
        task = task.model_copy(update={"label_column": ""})
    inputs = InputRows(columns)
    return inputs, loaded.head.encode(task, inputs, loaded.tokenizer, loaded.data)


def _find_head_name(config: PretrainedConfig) -> str | None:
    """Return the name of the head that the model was saved with; None if it has no supported head."""
    return next((name for name in HEADS if has_head(config, load_class(HEADS, name).model_class)), None)


def finetuning_recipe(name: str) -> Recipe | None:
    """Load the recipe of the run folder `name`; return None if `name` is not a fine-tuning run."""
    recipe = _load_run_recipe(name)
    return recipe if isinstance(recipe, Recipe) else None


def pretraining_recipe(name: str) -> PretrainRecipe | None:
    """Load the recipe of the run folder `name`; return None if `name` is not a pretraining run."""
    recipe = _load_run_recipe(name)
    return recipe if isinstance(recipe, PretrainRecipe) else None


def _load_run_recipe(name: str) -> Recipe | PretrainRecipe | None:
    folder = RunFolder(Path(name))
    if not folder.recipe.is_file() or multitask_models(name):
        return None
    try:
        return load_single_recipe(str(folder.recipe))
    except RecipeError as error:
        cause = f"{name} is a run of another version, or its recipe.yaml was edited; this version cannot read it."
        cure = f"Its model works without the recipe: pass {folder.model} (`bertcli eval` also needs --task)."
        raise RecipeError([f"{cause} {cure}", *error.problems]) from error


def multitask_models(name: str) -> dict[str, str]:
    """Return the model folder of each task of a multitask run, by the task's name; empty for other runs."""
    run = RunFolder(Path(name))
    tasks = read_yaml_file(run.recipe, Recipe).values.get("suite", ()) if run.recipe.is_file() else ()
    return {task: str(run_folder(run.model, task)) for task in tasks}


def find_task(name_or_recipe: str) -> Task:
    """Return the task with this name, or the task of this recipe.

    Raises:
        UsageError: if there is no such task, nor a valid recipe.
    """
    if name_or_recipe in TASKS:
        return get_task(name_or_recipe)
    try:
        return recipe_task(load_recipe(name_or_recipe))
    except RecipeError as error:
        raise UsageError(
            f"found --task {name_or_recipe}, expected the name of a task or a valid recipe.\n{error}"
        ) from error
