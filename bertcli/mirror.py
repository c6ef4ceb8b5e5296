"""Determine which datasets and models a recipe requires, and which of them are not available offline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bertcli.hub import Kind, is_cached
from bertcli.recipe.expansion import Grid
from bertcli.recipe.load import recipe_task
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.recipe.schema import Recipe
from bertcli.recipe.search import Search
from bertcli.recipe.suite import Experiment, Suite, recipes_by_name
from bertcli.tasks import TASKS
from bertcli.tasks.task import Task

AnyRecipe = PretrainRecipe | Experiment


@dataclass(frozen=True)
class Requirement:
    """A dataset or model that a recipe loads by its Hub ID."""

    kind: Kind
    name: str
    part: str | None  # of a dataset: its configuration; of a model: "weights", or None for the tokenizer only


def requirements(recipe: AnyRecipe) -> Iterator[Requirement]:
    """Yield the datasets and models that a recipe loads by Hub ID, not local folders or the built-in sample data."""
    if isinstance(recipe, Suite | Grid | Search):
        for member in recipe.probes() if isinstance(recipe, Search) else recipes_by_name(recipe).values():
            yield from requirements(member)
        return
    if isinstance(recipe, PretrainRecipe):
        datasets = [(source.dataset, source.config) for source in recipe.corpus.sources]
        tokenizer, teacher = recipe.tokenizer.name, None
    else:
        datasets = [(task.dataset, task.config) for task in _tasks(recipe)]
        tokenizer, teacher = recipe.model.tokenizer, recipe.training.teacher
    named: list[tuple[Kind, str | None, str | None]] = [("datasets", name, config) for name, config in datasets]
    named += [("models", recipe.model.name, "weights"), ("models", teacher, "weights"), ("models", tokenizer, None)]
    for kind, name, part in named:
        if name is not None and name != "sample" and not Path(name).is_dir():
            yield Requirement(kind, name, part)


def missing_requirements(recipe: AnyRecipe, mirror: Path | None) -> list[Requirement]:
    """Return a recipe's requirements that are neither in the mirror nor in the local Hugging Face cache."""
    return [
        requirement
        for requirement in dict.fromkeys(requirements(recipe))
        if not (mirror and (mirror / requirement.kind / requirement.name).is_dir())
        and not is_cached(requirement.kind, requirement.name)
    ]


def _tasks(recipe: Recipe) -> Iterator[Task]:
    """Yield the recipe's task, and the additional tasks predicted for its leaderboard submission."""
    task = recipe_task(recipe)
    yield task
    if task.submission:
        yield from (TASKS[name] for name in task.submission.extra_tasks)
