"""…"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bertcli.hub import Kind, is_cached
from bertcli.recipe.expansion import Grid
from bertcli.recipe.load import recipe_task
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.recipe.schema import Recipe
from bertcli.recipe.suite import Suite, singles
from bertcli.tasks import TASKS
from bertcli.tasks.task import Task

AnyRecipe = Recipe | PretrainRecipe | Grid | Suite


@dataclass(frozen=True)
class Need:
    """Something a recipe names that a mirror can hold."""

    kind: Kind
    name: str
    part: str | None  # the configuration of a data set; of a model `weights`, else its tokenizer alone


def needs_of(recipe: AnyRecipe) -> Iterator[Need]:
    """What a recipe names that is neither made here nor on this machine's disk."""
    if isinstance(recipe, Suite | Grid):
        for one in singles(recipe).values():
            yield from needs_of(one)
        return
    if isinstance(recipe, PretrainRecipe):
        data = [(source.dataset, source.config) for source in recipe.corpus.sources]
        tokenizer, teacher = recipe.tokenizer.name, None
    else:
        data = [(task.dataset, task.config) for task in _tasks_of(recipe)]
        tokenizer, teacher = recipe.model.tokenizer, recipe.training.teacher
    named: list[tuple[Kind, str | None, str | None]] = [("datasets", name, config) for name, config in data]
    named += [("models", recipe.model.name, "weights"), ("models", teacher, "weights"), ("models", tokenizer, None)]
    for kind, name, part in named:
        if name is not None and name != "sample" and not Path(name).is_dir():
            yield Need(kind, name, part)


def absent(recipe: AnyRecipe, mirror: Path | None) -> list[Need]:
    """What a recipe needs of the hub and neither the mirror nor the local cache has anything of."""
    return [
        need
        for need in dict.fromkeys(needs_of(recipe))
        if not (mirror and (mirror / need.kind / need.name).is_dir()) and not is_cached(need.kind, need.name)
    ]


def _tasks_of(recipe: Recipe) -> Iterator[Task]:
    """The recipe's task, and those that its leaderboard has the same model answer."""
    task = recipe_task(recipe)
    yield task
    if task.submission:
        yield from (TASKS[name] for name in task.submission.also)
