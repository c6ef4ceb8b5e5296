"""The built-in task definitions by name."""

from __future__ import annotations

from bertcli.errors import RecipeError, did_you_mean
from bertcli.tasks import glue, multiple_choice, ner, sample, sentiment, squad, xnli
from bertcli.tasks.task import Task

ROWS = (*glue.ROWS, *squad.ROWS, *sentiment.ROWS, *ner.ROWS, *multiple_choice.ROWS, *xnli.ROWS, *sample.ROWS)
TASKS: dict[str, Task] = {row.name: row for row in ROWS}


def get_task(name: str) -> Task:
    """Return the built-in task definition with this name.

    Raises:
        RecipeError: if the name is unknown; the message suggests similar ones.
    """
    if name not in TASKS:
        groups = dict.fromkeys(f"{known.partition('/')[0]}/…" for known in TASKS)
        cure = did_you_mean(name, TASKS) or f" Known: {', '.join(groups)}."
        raise RecipeError([f"found task {name!r}, expected the name of a task definition.{cure}"])
    return TASKS[name]
