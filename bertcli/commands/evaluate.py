"""`bertcli eval`: score a trained model on a split of its task, or of another task with the same labels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bertcli.console import Console, format_seconds
from bertcli.data.sources import load_split, load_training_rows
from bertcli.errors import DataError, ModelError, UsageError
from bertcli.heads.labels import check_labels, labelled_rows
from bertcli.inference.loaded_model import (
    LoadedModel,
    find_task,
    finetuning_recipe,
    load_for_inference,
    multitask_models,
    pretraining_recipe,
)
from bertcli.inference.scoring import decode, multitask_scores
from bertcli.metrics.answers import GROUP
from bertcli.metrics.bootstrap import bootstrap_intervals
from bertcli.metrics.scores import check_metrics, check_references, compute_scores
from bertcli.models.from_pretrained import ModelSource
from bertcli.pretraining.job import score_held_out
from bertcli.recipe.schema import HardwareSection
from bertcli.runs.members import check_finished, seed_runs
from bertcli.runs.results import EvalResults, Results, summarize_seeds
from bertcli.tasks.task import Task


def evaluate(
    name: str,
    *,
    task_name: str | None = None,
    split: str = "validation",
    labels: Sequence[str] | None = None,
    mirror: Path | None = None,
    hardware: HardwareSection | None = None,
    console: Console | None = None,
) -> Results:
    """Score a run folder (each of its seeds), a model folder or a Hub model.

    A pretraining run is scored on its held-out text. In a multitask run, every task is scored with its own model, under
    the names that `results.json` uses.

    Args:
        task_name: name of a task definition or a recipe; None: the run's task.
        split: `train`, `validation`, `test`, or the name of another split of the dataset.
        labels: names for the model's labels, in the order of their IDs, if the task uses different names.

    Raises:
        UsageError: if the model's task is unknown and `task_name` is None, or `task_name` is given for a run with
            several models.
        DataError: if the split is missing, its labels are hidden, or a metric is undefined for it.
        ModelError: if the labels of the model and the task differ.
    """
    console, started_at = console or Console(), time.monotonic()
    pretraining = pretraining_recipe(name)
    if pretraining is not None and task_name is None:
        if labels is not None:
            raise UsageError(f"{name} is a pretraining run, which has no labels; leave out --labels")
        if split != "validation":
            raise UsageError(f"{name} is a pretraining run: it has held-out text (validation), but no split {split!r}")
        results: Results = score_held_out(pretraining, name, mirror=mirror, hardware=hardware, console=console)
    else:
        task = find_task(task_name) if task_name else None
        evaluate_one = partial(
            _evaluate_model, split=split, labels=labels, mirror=mirror, hardware=hardware, console=console
        )
        check_finished(name)
        each = [_evaluate_run(run, task, split, evaluate_one) for run in seed_runs(name)]
        results = each[0] if len(each) == 1 else summarize_seeds(each, name)
    console.say(f"evaluated {name} on the {split} split in {format_seconds(time.monotonic() - started_at)}")
    return results


def _evaluate_run(
    name: str, task: Task | None, split: str, evaluate_one: Callable[[str, Task | None], EvalResults]
) -> EvalResults:
    models = multitask_models(name)
    if not models:
        return evaluate_one(name, task)
    if task is not None:
        choice = ", ".join(models.values())
        raise UsageError(f"{name} holds one model per task; to use --task, pass one of them instead: {choice}")
    each = {task_name: evaluate_one(model, None) for task_name, model in models.items()}
    recipes = {
        task_name: recipe for task_name, model in models.items() if (recipe := finetuning_recipe(model)) is not None
    }
    scores = multitask_scores(recipes, {task_name: results.mean_scores(split) for task_name, results in each.items()})
    return EvalResults(
        task=" + ".join(models),
        run=name,
        num_examples=sum(results.num_examples or 0 for results in each.values()),
        metrics={split: {**scores}},
        intervals={
            split: {
                f"{task_name}/{score}": interval
                for task_name, results in each.items()
                for score, interval in results.intervals[split].items()
            }
        },
    )


def _evaluate_model(
    name: str,
    task: Task | None,
    *,
    split: str,
    labels: Sequence[str] | None,
    mirror: Path | None,
    hardware: HardwareSection | None,
    console: Console,
) -> EvalResults:
    loaded = load_for_inference(ModelSource(name, mirror), hardware, labels)
    if task is None and loaded.recipe is None:
        raise UsageError(f"{name} is not a run folder, so its task is unknown; specify it with --task")
    task = task or loaded.task
    rows = load_split(task, split, mirror)
    if loaded.data.skip_unlabelled:
        rows = labelled_rows(task, rows)
    _note_limit(loaded, task, split, len(rows), console)
    task = _with_checked_labels(loaded, task, mirror)
    references = loaded.head.references(task, rows)
    if references is None:
        raise DataError(
            f"{task.name}: the labels of split {split!r} are hidden; `bertcli predict` works without labels"
        )
    check_references(task, split, references, loaded.head.positive_label_id(task))
    with console.waiting("tokenizing"):
        encoded = loaded.head.encode(task, rows, loaded.tokenizer, loaded.data)
    console.warn_about_rows(encoded.row_warnings)
    num_items = math.ceil(len(encoded) / loaded.accelerator.num_processes)  # of this process
    with console.display(f"eval {split}", num_items) as display:
        chunks = loaded.predict_logits(rows, encoded, with_loss=True, on_batch=display.advance)
        decoded = decode(chunks, loaded.head, task, references)
    scores = compute_scores(decoded.answers) | {"loss": decoded.loss}
    intervals = bootstrap_intervals(decoded.answers)
    grouped = {"group_by": task.group_by} if GROUP in decoded.answers else {}
    if grouped:
        console.say(f"intervals resample groups of rows with the same {task.group_by!r:.80}")
    return EvalResults(
        task=task.name,
        run=name,
        num_examples=len(rows),
        metrics={split: {**scores}},
        intervals={split: intervals},
        **grouped,
    )


def _note_limit(loaded: LoadedModel, task: Task, split: str, num_rows: int, console: Console) -> None:
    """Print a note if the scores in the run folder were computed on fewer rows."""
    limit = loaded.recipe.data.max_eval_examples if loaded.recipe else None
    scored_splits = ("validation", *task.splits.extra_validation) if task is loaded.task else ()
    if limit is not None and limit < num_rows and split in scored_splits:
        note = f"the scores in the run folder are from {limit} rows (data.max_eval_examples)"
        console.say(f"data      all {num_rows} rows of {split}; {note}")


def _with_checked_labels(loaded: LoadedModel, task: Task, mirror: Path | None) -> Task:
    """Return the task with all its labels, after checking that the model has the same labels in any order.

    Raises:
        ModelError: if the labels differ, or the model makes another kind of prediction.
    """
    if task.answer_kind != loaded.head.answer_kind:
        raise ModelError(
            f"{loaded.name} was trained for {loaded.head.answer_kind}, but task {task.name} is {task.answer_kind}; "
            "choose a task of the same kind"
        )
    if not loaded.head.labels:
        return task
    labels = task.labels
    if not labels and (task.files.train if task.files else task.splits.train):
        try:  # a task that does not list its labels has all of them in its training split
            labels = loaded.head.task_labels(task, load_training_rows(task, mirror))
        except DataError:
            if task is not loaded.task:
                raise
    labels = labels or loaded.head.labels  # there is no training data, or it is no longer available
    same_number = len(labels) == len(loaded.head.labels)
    renaming = "If they mean the same, set --labels to the task's names for them; otherwise f" if same_number else "F"
    cure = f"{renaming}ine-tune it on this task, or evaluate it on a task with the same labels."
    check_labels(loaded.head.labels, labels, loaded.name, cure)
    task = task.model_copy(update={"labels": labels})
    check_metrics(task)
    return task
