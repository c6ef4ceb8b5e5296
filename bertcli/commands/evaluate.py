"""`bertcli eval`: the scores of a trained model on a split of its task, or of another with the same labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bertcli.console import Console, format_seconds
from bertcli.data.sources import load_split
from bertcli.errors import DataError, ModelError, UsageError
from bertcli.heads import HEADS
from bertcli.heads.labels import check_labels
from bertcli.inference.loaded_model import (
    Trained,
    models_together,
    open_trained,
    pretraining_recipe,
    run_recipe,
    task_from,
)
from bertcli.inference.scoring import score, scores_together
from bertcli.metrics import check_number_of_labels
from bertcli.pretraining.job import score_held_out
from bertcli.recipe.schema import HardwareSection
from bertcli.runs.folder import seed_runs
from bertcli.tasks.task import Task
from bertcli.training.seeds import summarise


def evaluate(
    name: str,
    *,
    task_name: str | None = None,
    split: str = "validation",
    labels: Sequence[str] | None = None,
    mirror: Path | None = None,
    hardware: HardwareSection | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Score a run folder (each of its seeds), a model folder or a hub model; of a pretraining run, its held-out text.

    Of a run of several tasks learned together each is scored by its own model, as the run's `results.json` tells it.
    How long it took is told to `console`.

    Args:
        task_name: a task row or recipe; None: the task of the run.
        split: `train`, `validation`, `test`, or a name the data set knows.
        labels: names for the model's labels, in the order of their numbers, if it spells them otherwise than the task.

    Raises:
        UsageError: the model's task is not known and none was named, or one was named for several models.
        DataError: the split is missing or its labels are hidden.
        ModelError: the model's labels are not the task's.
    """
    console, started_at = console or Console(), time.monotonic()
    pretraining = pretraining_recipe(name)
    if pretraining is not None and task_name is None:
        if labels is not None:
            raise UsageError(f"{name} is a pretraining run, which has no labels; leave out --labels")
        if split != "validation":
            raise UsageError(f"{name} is a pretraining run: it has held-out text (validation) and no split {split!r}")
        results = score_held_out(pretraining, name, mirror=mirror, hardware=hardware, console=console)
    else:
        task = task_from(task_name) if task_name else None
        one = partial(_evaluate_one, split=split, labels=labels, mirror=mirror, hardware=hardware, console=console)
        each = [_evaluate_run(run, task, split, one) for run in seed_runs(name)]
        results = each[0] if len(each) == 1 else summarise(each) | {"run": name}
    console.say(f"scored    {name} on {split} in {format_seconds(time.monotonic() - started_at)}")
    return results


def _evaluate_run(
    name: str, task: Task | None, split: str, evaluate_one: Callable[[str, Task | None], dict[str, Any]]
) -> dict[str, Any]:
    models = models_together(name)
    if not models:
        return evaluate_one(name, task)
    if task is not None:
        raise UsageError(
            f"{name} holds a model for each of its tasks; name one beside --task: {', '.join(models.values())}"
        )
    each = {one: evaluate_one(model, None) for one, model in models.items()}
    recipes = {one: recipe for one, model in models.items() if (recipe := run_recipe(model)) is not None}
    scores = scores_together(recipes, {one: results["metrics"][split] for one, results in each.items()})
    num_examples = sum(results["num_examples"] for results in each.values())
    return {"task": " + ".join(models), "run": name, "num_examples": num_examples, "metrics": {split: scores}}


def _evaluate_one(
    name: str,
    task: Task | None,
    *,
    split: str,
    labels: Sequence[str] | None,
    mirror: Path | None,
    hardware: HardwareSection | None,
    console: Console,
) -> dict[str, Any]:
    trained = open_trained(name, mirror, hardware, labels)
    if task is None and trained.recipe is None:
        raise UsageError(f"{name} is not a run folder, so it does not say what it was made for; name it with --task")
    task = task or trained.task
    rows = load_split(task, split, mirror)
    _tell_of_limit(trained, task, split, len(rows), console)
    task = _with_checked_labels(trained, task, mirror)
    references = trained.head.references(task, rows)
    if references is None:
        raise DataError(
            f"{task.name}: the labels of split {split!r} are hidden; `bertcli predict` answers without them"
        )
    with console.waiting("tokenising"):
        encoded = trained.head.encode(task, rows, trained.tokenizer, trained.data)
    console.warn_of_rows(encoded.notes)
    with console.display(f"eval {split}", len(encoded)) as display:
        scores = score(
            trained.accelerator,
            trained.model,
            rows,
            encoded,
            trained.head,
            task,
            references,
            max_tokens=trained.max_tokens,
            on_batch=display.advance,
        )
    return {"task": task.name, "run": name, "num_examples": len(rows), "metrics": {split: scores}}


def _tell_of_limit(trained: Trained, task: Task, split: str, num_rows: int, console: Console) -> None:
    """Say that the run's own numbers are of fewer rows."""
    limit = trained.recipe.data.max_eval_examples if trained.recipe else None
    scored = ("validation", *task.splits.more_validation) if task is trained.task else ()
    if limit is not None and limit < num_rows and split in scored:
        told = f"the run's numbers are of {limit} (data.max_eval_examples)"
        console.say(f"data      all {num_rows} rows of {split}; {told}")


def _with_checked_labels(trained: Trained, task: Task, mirror: Path | None) -> Task:
    """The task with all its labels, which are those of the model in some order.

    Raises:
        ModelError: they are not, or the model answers in another way.
    """
    if task.answer_kind != trained.head.answer_kind:
        raise ModelError(
            f"{trained.name} was made for {trained.head.answer_kind}, task {task.name} is {task.answer_kind}"
        )
    if not trained.head.labels:
        return task
    labels = task.labels
    if not labels and (task.files.train if task.files else task.splits.train):
        try:  # the training split of a row that does not list them has them all
            labels = HEADS[task.head].labels_of(task, load_split(task, "train", mirror))
        except DataError:
            if task is not trained.task:
                raise
    labels = labels or trained.head.labels  # where there is nothing to learn from, or no longer
    alike = len(labels) == len(trained.head.labels)
    renaming = "If they mean the same, give the task's names for them with --labels; else f" if alike else "F"
    cure = f"{renaming}ine-tune it on this task, or evaluate it on a task with its own labels."
    check_labels(trained.head.labels, labels, trained.name, cure)
    task = task.model_copy(update={"labels": labels})
    check_number_of_labels(task)
    return task
