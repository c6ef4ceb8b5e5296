"""What the data mean: the shipped task rows by name."""

from __future__ import annotations

from bertcli.errors import RecipeError, did_you_mean
from bertcli.tasks import choice, glue, ner, sample, sentiment, squad
from bertcli.tasks.task import Task

ROWS = (*glue.ROWS, *squad.ROWS, *sentiment.ROWS, *ner.ROWS, *choice.ROWS, *sample.ROWS)
TASKS: dict[str, Task] = {row.name: row for row in ROWS}


def task_named(name: str) -> Task:
    """The shipped row called `name`.

    Raises:
        RecipeError: no row has that name; the message holds the nearest ones.
    """
    if name not in TASKS:
        cure = did_you_mean(name, TASKS) or f" Known: {', '.join(TASKS)}."
        raise RecipeError([f"found task {name!r}, expected the name of a task row.{cure}"])
    return TASKS[name]
