"""A trained model opened for `eval` and `predict`: a run folder, a saved model, or a hub name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from bertcli.console import Console
from bertcli.data.encoding import Encoded
from bertcli.data.formats import Row
from bertcli.data.prediction_inputs import in_chunks
from bertcli.errors import DataError, ModelError, RecipeError, UsageError
from bertcli.heads import HEADS
from bertcli.heads.base import Head
from bertcli.heads.labels import label_fields
from bertcli.inference.forward import answer
from bertcli.models.from_pretrained import has_trained_head, load_config, load_model, load_tokenizer, longest_input
from bertcli.models.padding_free import speed_up
from bertcli.recipe.load import load_any_recipe, load_recipe, recipe_task
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.recipe.schema import DataSection, HardwareSection, Recipe
from bertcli.recipe.suite import run_folder
from bertcli.recipe.yaml_layers import read_file
from bertcli.runs.folder import RunFolder
from bertcli.tasks import TASKS, task_named
from bertcli.tasks.task import HeadName, Task
from bertcli.training.devices import build_accelerator

if TYPE_CHECKING:
    import numpy as np
    import torch
    from accelerate import Accelerator
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

DATA_OF_BARE_MODELS = DataSection(max_length=512)  # as far as the model reads
ROWS_AT_ONCE = 1024  # inputs that are held in memory


@dataclass(frozen=True)
class Trained:
    """A model ready to answer."""

    name: str
    recipe: Recipe | None  # None for a bare model folder
    task: Task  # of the recipe; else what the model's kind usually takes
    head: Head
    tokenizer: PreTrainedTokenizerBase
    accelerator: Accelerator
    model: torch.nn.Module
    data: DataSection  # how inputs are encoded
    max_tokens: int


def open_trained(
    name: str, mirror: Path | None, hardware: HardwareSection | None = None, labels: Sequence[str] | None = None
) -> Trained:
    """Load the model `name` with its head.

    Args:
        hardware: where and how to compute; what it does not set is as the run's recipe says.
        labels: names for its labels, in the order of their numbers; None: those saved with it.

    Raises:
        ModelError: there is no such model, or it has no classifier.
        UsageError: it has more or fewer labels, or none.
    """
    recipe = run_recipe(name)
    config = load_config(name, mirror)
    kind = recipe_task(recipe).head if recipe else _saved_kind(config)
    if kind is None or not has_trained_head(config, HEADS[kind].model_class):
        raise ModelError(
            f"{name} has no classifier (its architecture: {', '.join(config.architectures or ['unknown'])}); "
            "fine-tune it first with `bertcli finetune`"
        )
    task = recipe_task(recipe) if recipe else usual_task(kind)
    head = HEADS[kind].saved_with(task, config, recipe)
    if labels is not None:
        _rename_labels(config, labels, head, name)
        head = HEADS[kind].saved_with(task, config, recipe)
    hardware = (recipe.hardware if recipe else HardwareSection()).with_asked(hardware)
    tokenizer = load_tokenizer(name, mirror, for_words=kind == "token_classification")
    data = recipe.data if recipe else DATA_OF_BARE_MODELS
    accelerator = build_accelerator(hardware)
    model = load_model(name, mirror, HEADS[kind].model_class, {})
    speed_up(model, accelerator.device)
    return Trained(
        name=name,
        recipe=recipe,
        task=task,
        head=head,
        tokenizer=tokenizer,
        accelerator=accelerator,
        model=accelerator.prepare_model(model, evaluation_mode=True),
        data=data.model_copy(update={"max_length": min(longest_input(tokenizer, config), data.max_length)}),
        max_tokens=hardware.eval_batch_tokens,
    )


def _rename_labels(config: PretrainedConfig, labels: Sequence[str], head: Head, name: str) -> None:
    saved = head.labels
    if not saved:
        raise UsageError(f"{name} answers {head.answer_kind}, which has no labels; leave out --labels")
    if len(set(labels)) != len(saved) or len(labels) != len(saved):
        raise UsageError(
            f"found --labels {','.join(labels)}, expected {len(saved)} different names: {name} has {list(saved)}"
        )
    thresholds = getattr(config, "thresholds", None) or {}
    new_name = dict(zip(saved, labels, strict=True))
    config.update(label_fields(tuple(labels)))
    if thresholds:
        config.update({"thresholds": {new_name[label]: least for label, least in thresholds.items()}})


def answer_inputs(
    trained: Trained, task: Task, inputs: Iterable[Row], console: Console
) -> Iterator[tuple[list[Row], Dataset, Encoded, np.ndarray]]:
    """The model's logits for inputs as they come, a part at a time: as given, as rows, as items, the logits.

    Memory does not grow with the number of inputs.

    Raises:
        DataError: texts and lists of them stand in one column.
    """
    import pyarrow
    from datasets import Dataset

    for number, chunk in enumerate(in_chunks(inputs, ROWS_AT_ONCE)):
        try:
            rows = Dataset.from_list(chunk)
        except pyarrow.ArrowException as error:
            raise DataError(f"some inputs hold texts where others hold lists of them ({error})") from error
        encoded = trained.head.encode(task, rows, trained.tokenizer, trained.data)
        console.warn_of_rows(encoded.notes, first_row=number * ROWS_AT_ONCE)
        given = iter(chunk)
        parts = answer(trained.accelerator, trained.model, rows, encoded, trained.head, max_tokens=trained.max_tokens)
        for some, part, logits, _ in parts:
            yield list(islice(given, len(some))), some, part, logits


def _saved_kind(config: PretrainedConfig) -> HeadName | None:
    """The kind of answer a saved model was made for; None if it has no head that is known here."""
    return next((kind for kind, head in HEADS.items() if has_trained_head(config, head.model_class)), None)


def usual_task(kind: HeadName) -> Task:
    """A row for inputs of a model that does not say what it was made for."""
    columns = HEADS[kind].usual_columns
    if kind == "multiple_choice":
        return Task(head=kind, dataset="unknown", text_columns=columns[:1], choice_columns=columns[1:])
    return Task(head=kind, dataset="unknown", text_columns=columns[:1] if kind == "text_classification" else columns)


def run_recipe(name: str) -> Recipe | None:
    """The recipe of the run folder `name`; None if it is no run folder, or one of pretraining."""
    recipe = _saved_recipe(name)
    return recipe if isinstance(recipe, Recipe) else None


def pretraining_recipe(name: str) -> PretrainRecipe | None:
    """The recipe of the pretraining run `name`; None if it is none."""
    recipe = _saved_recipe(name)
    return recipe if isinstance(recipe, PretrainRecipe) else None


def _saved_recipe(name: str) -> Recipe | PretrainRecipe | None:
    path = RunFolder(Path(name)).recipe
    return load_any_recipe(str(path)) if path.is_file() and not models_together(name) else None


def models_together(name: str) -> dict[str, str]:
    """The models of a run of several tasks learned together, by the tasks' names in its recipe; none of other runs."""
    run = RunFolder(Path(name))
    tasks = read_file(run.recipe, Recipe).values.get("suite", ()) if run.recipe.is_file() else ()
    return {task: str(run_folder(run.model, task)) for task in tasks}


def task_from(name_or_recipe: str) -> Task:
    """The task of a row's name or of a recipe.

    Raises:
        UsageError: it is neither.
    """
    if name_or_recipe in TASKS:
        return task_named(name_or_recipe)
    try:
        return recipe_task(load_recipe(name_or_recipe))
    except RecipeError as error:
        raise UsageError(f"--task {name_or_recipe}: neither a task row nor a usable recipe.\n{error}") from error
