"""A trained model opened for `eval` and `predict`: a run folder, a saved model, or a hub name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertcli.commands.prepare import recipe_task
from bertcli.errors import ModelError, RecipeError, UsageError
from bertcli.heads.text_classification import MODEL_CLASS, TextClassification
from bertcli.models import build
from bertcli.recipe.load import load_recipe
from bertcli.recipe.schema import DataSection, HardwareSection, Recipe
from bertcli.tasks import TASKS, task_named
from bertcli.tasks.task import Problem, Task
from bertcli.training.devices import build_accelerator

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

PROBLEMS: tuple[Problem, ...] = ("single_label", "multi_label", "regression")


@dataclass(frozen=True)
class Trained:
    """A model ready to answer."""

    name: str
    task: Task | None  # None for a bare model folder
    head: TextClassification
    tokenizer: PreTrainedTokenizerBase
    accelerator: Accelerator
    model: torch.nn.Module
    max_length: int
    max_tokens: int


def open_trained(name: str, mirror: Path | None, hardware: HardwareSection | None = None) -> Trained:
    """Load the model `name` with its head; its labels are the ones saved with it.

    Args:
        hardware: where and how to compute; None: as the run's recipe says.

    Raises:
        ModelError: there is no such model, or it has no classifier.
    """
    recipe = run_recipe(name)
    config = build.load_config(name, mirror)
    if not build.has_trained_head(config, MODEL_CLASS):
        raise ModelError(
            f"{name} has no classifier (its architecture: {', '.join(config.architectures or ['unknown'])}); "
            "fine-tune it first with `bertcli finetune`"
        )
    hardware = hardware or (recipe.hardware if recipe else HardwareSection())
    tokenizer = build.load_tokenizer(name, mirror)
    head = _saved_head(config)
    accelerator = build_accelerator(hardware)
    model = accelerator.prepare_model(build.load_model(name, mirror, MODEL_CLASS, {}), evaluation_mode=True)
    longest = build.longest_input(tokenizer, config)
    return Trained(
        name=name,
        task=recipe_task(recipe) if recipe else None,
        head=head,
        tokenizer=tokenizer,
        accelerator=accelerator,
        model=model,
        max_length=min(longest, (recipe.data if recipe else DataSection()).max_length),
        max_tokens=hardware.eval_batch_tokens,
    )


def run_recipe(name: str) -> Recipe | None:
    """The recipe of the run folder `name`; None if it is no run folder."""
    path = Path(name) / "recipe.yaml"
    return load_recipe(str(path)) if path.is_file() else None


def seed_runs(name: str) -> list[str]:
    """The run folders of each seed if `name` holds several; else just `name`."""
    children = sorted(Path(name).glob("seed-*/recipe.yaml"), key=lambda path: (len(path.parent.name), path.parent.name))
    return [str(path.parent) for path in children] or [name]


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


def _saved_head(config: PretrainedConfig) -> TextClassification:
    saved: Any = (config.problem_type or "single_label_classification").removesuffix("_classification")
    if saved not in PROBLEMS:
        raise ModelError(f"found problem_type {config.problem_type!r} in the model, expected one of {PROBLEMS}")
    if config.problem_type is None and config.num_labels == 1:
        saved = "regression"
    return TextClassification(saved, () if saved == "regression" else build.saved_labels(config))
