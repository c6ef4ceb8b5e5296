"""Cross-validation: a model for each fold of the training rows, and the scores of all rows out of their folds.

Each fold is an ordinary run, whose validation split is the fold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bertcli.console import Console, format_seconds
from bertcli.data.sources import FILE_COLUMN, ROW_COLUMN, folds_of_rows, load_training_rows, split_files, strata
from bertcli.data.splitting import rare_labels
from bertcli.errors import shortened
from bertcli.experiments.collection import write_collection
from bertcli.experiments.preparation import prepare_members
from bertcli.experiments.run_many import raise_if_failed, run_each
from bertcli.files import write_json_lines
from bertcli.finetuning.run import finetune
from bertcli.finetuning.setup import FinetuneSetup, set_up
from bertcli.heads.labels import labelled_rows
from bertcli.metrics.answers import Answers, concatenate_answers, load_answers
from bertcli.metrics.bootstrap import bootstrap_intervals
from bertcli.metrics.scores import compute_scores
from bertcli.recipe.load import recipe_task
from bertcli.recipe.schema import Recipe
from bertcli.runs.claim import check_same_data
from bertcli.runs.folder import (
    OUT_OF_FOLD_PREDICTIONS,
    VALIDATION_ANSWERS,
    VALIDATION_PREDICTIONS,
    RunFolder,
    RunOptions,
)
from bertcli.runs.history import read_records
from bertcli.runs.members import command_without_folds
from bertcli.runs.results import CollectionResults, RunResults, SeedScore, summarize_seeds
from bertcli.tasks.task import FoldTask
from bertcli.training.startup import join_processes

MAX_LISTED_LABELS = 5
# Keys of a summary that belong to single folds.
FOLD_DEPENDENT = {"num_train_examples", "total_steps", "runs", "data_fingerprint"}


def cross_validate(recipe: Recipe, folder: Path, options: RunOptions) -> CollectionResults:
    """Fine-tune a model per fold, each in its own run folder in `folder`; return the content of `results.json`.

    The results are the mean and standard deviation over the folds, and the scores of the predictions of all folds
    together, which are also written. No model is chosen. Re-running the command trains only the folds that are left.

    Raises:
        RunFolderError: if the folder holds other files, or a fold of a different recipe or of other data; nothing is
            trained then.
        DataError: if the training rows cannot be divided into folds.
        Interrupted: if a signal arrived; the run in progress is saved.
        TrainingError: if a fold failed; the others are finished.
    """
    folds = recipe.members
    processes, console = join_processes(recipe.hardware, options.console)
    if processes.is_main_process:
        _report_folds(next(iter(folds.values())), options.mirror, console)
        prepare_members(folder, folds, options)
    runs = {name: partial(finetune, fold, folder / name, options) for name, fold in folds.items()}
    finished, failed = run_each(runs, processes, console)
    if options.dry_run:
        return CollectionResults(dry_run=True, run=str(folder), failed=failed)
    raise_if_failed(failed, len(folds), "folds")
    with console.waiting("scoring the predictions of all folds"):
        setups = {
            name: _set_up_fold(fold, folder / name, finished[name], options.mirror) for name, fold in folds.items()
        }
        answers = [load_answers(RunFolder(folder / name).predictions / VALIDATION_ANSWERS) for name in folds]
        pooled = concatenate_answers(*answers)
    num_rows = {name: len(setup.rows["validation"]) for name, setup in setups.items()}
    results = _results(folder, finished, pooled, num_rows)
    if processes.is_main_process:
        file = RunFolder(folder).predictions / OUT_OF_FOLD_PREDICTIONS
        file.parent.mkdir(parents=True, exist_ok=True)
        write_collection(folder, results, console)  # first: without it, the predictions are not recognized as written
        write_json_lines(file, _out_of_fold_predictions(setups, folder))
        console.say(f"predicted {file}, each training row by the model that was trained without it")
    console.say(f"run       {folder}, from which no model is chosen; to train one without folds:")
    console.say(f"next      {command_without_folds(folder)}")
    return results


def _report_folds(recipe: Recipe, mirror: Path | None, console: Console) -> None:
    """Print how the training rows are divided; warn about labels that some folds lack.

    Raises:
        DataError: if they cannot be divided.
    """
    task = recipe_task(recipe)
    assert isinstance(task, FoldTask)
    rows = load_training_rows(task, mirror)
    folds_of_rows(task, rows)
    console.say(f"data      {len(rows)} training rows in {task.num_folds} folds{task.division}")
    labels = strata(task, labelled_rows(task, rows) if recipe.data.skip_unlabelled else rows)
    rare = rare_labels(labels or [], task.num_folds)
    if rare:
        listed = ", ".join(f"{shortened(label)} ({count})" for label, count in [*rare.items()][:MAX_LISTED_LABELS])
        more = f", … ({len(rare)} labels)" if len(rare) > MAX_LISTED_LABELS else ""
        console.warn(
            f"found labels with fewer rows than the {task.num_folds} folds: {listed}{more}. Some folds are scored "
            "without them; lower data.folds, or merge rare labels"
        )


def _set_up_fold(recipe: Recipe, run: Path, results: RunResults, mirror: Path | None) -> FinetuneSetup:
    """Load the rows of a finished fold again.

    Raises:
        RunFolderError: if they have changed: then the rows that this fold has learned may belong to another one now.
    """
    setup = set_up(recipe, mirror)
    check_same_data(run, results, setup.data_fingerprint)
    return setup


def _out_of_fold_predictions(setups: Mapping[str, FinetuneSetup], folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the line of each training row from the predictions of its fold, with the fold, and its file and ID if any.

    The lines are in the order of the training rows.
    """
    ordered: list[tuple[int, int, dict[str, Any]]] = []
    for name, setup in setups.items():
        task, rows = setup.task, setup.rows["validation"]
        assert isinstance(task, FoldTask)
        files = split_files(task, "train")
        named = {"file": FILE_COLUMN, "id": task.id_column or ""}
        extra = {key: column for key, column in named.items() if column in rows.column_names}
        values = rows.select_columns([ROW_COLUMN, *extra.values()])
        lines = read_records(RunFolder(folder / name).predictions / VALIDATION_PREDICTIONS)
        for line, row in zip(lines, values, strict=True):
            position = files.index(row[FILE_COLUMN]) if FILE_COLUMN in row else 0
            origin = {key: row[column] for key, column in extra.items()}
            ordered.append((position, row[ROW_COLUMN], {"row": 0, "fold": task.fold} | origin | line))
    ordered.sort(key=lambda item: item[:2])
    for number, (_, _, line) in enumerate(ordered, start=1):
        yield line | {"row": number}


def _results(
    folder: Path, finished: Mapping[str, RunResults], answers: Answers, num_rows: Mapping[str, int]
) -> CollectionResults:
    summary = summarize_seeds([*finished.values()], str(folder))
    names, scores = [*summary.metrics["validation"]], compute_scores(answers)
    means = {
        name: f"{score.mean:.4f} ± {score.sd:.4f}"
        for name, score in summary.metrics["validation"].items()
        if isinstance(score, SeedScore)
    }
    total = str(sum(num_rows.values()))
    table = [
        {"fold": fold, "rows": str(num_rows[fold])}
        | {name: f"{results.mean(name):.4f}" for name in names}
        | {"time": format_seconds(results.train_seconds)}
        for fold, results in finished.items()
    ]
    time = format_seconds(summary.train_seconds)
    table.append({"fold": "mean ± sd", "rows": total} | {name: means[name] for name in names} | {"time": time})
    pooled = {name: f"{scores[name]:.4f}" if name in scores else "" for name in names}
    table.append({"fold": "out of fold", "rows": total} | pooled | {"time": ""})
    results = CollectionResults(
        **summary.model_dump(exclude_unset=True, exclude=FOLD_DEPENDENT | {"metrics"}),
        metrics=summary.metrics | {"out_of_fold": {**scores}},
        intervals={"out_of_fold": bootstrap_intervals(answers)},
        table=table,
        folds=dict(finished),
    )
    bounds = {name: results.interval_text(name, "out_of_fold") for name in names}
    table.append({"fold": "95 % interval", "rows": ""} | bounds | {"time": ""})
    return results.model_copy(update={"table": table})
