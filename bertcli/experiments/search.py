"""Search for hyperparameters: train trials, each an ordinary run, and choose the one with the best validation score.

Any number of processes may run the same search in the same folder: `--jobs`, the tasks of a Slurm array, or the same
command on several machines. Each trains one trial after another until all are used up; the last one writes the results.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from bertcli.console import Console, format_seconds
from bertcli.errors import RunFolderError, TrainingError, UsageError
from bertcli.experiments.collection import results_of_chosen, write_collection
from bertcli.experiments.preparation import prepare_folder
from bertcli.experiments.run_many import attempt, raise_if_failed, run_workers
from bertcli.experiments.shared_study import (
    HeldTrial,
    SharedStudy,
    TrialRecord,
    check_optuna,
    propose,
)
from bertcli.files import write_json, write_text
from bertcli.finetuning.finished_run import check_finished_run
from bertcli.finetuning.run import finetune
from bertcli.finetuning.setup import set_up
from bertcli.recipe.catalogue import compare_recipe_texts
from bertcli.recipe.member_names import TRIAL_NAME, trial_name
from bertcli.recipe.schema import HardwareSection
from bertcli.recipe.search import Search, SearchSection, dump_search
from bertcli.recipe.suite import load_finetuning
from bertcli.runs.folder import SEARCH, RunFolder, RunOptions
from bertcli.runs.results import CollectionResults, RunResults
from bertcli.training.startup import join_processes

MAX_FAILURES = 3  # in a row, after which a worker stops proposing trials


def finetune_search(search: Search, folder: Path, options: RunOptions, *, jobs: int = 1) -> CollectionResults:
    """Train the trials of a search in run folders in `folder`; return the content of `results.json`.

    Trials of earlier commands count, and interrupted ones are resumed. If other processes still train trials at the
    end, nothing is written: the last process does it.

    Args:
        jobs: number of trials to train in parallel, each in its own process.

    Raises:
        UsageError: if Optuna is not installed.
        RunFolderError: if the folder holds other files, or a different search, or the data have changed since a trial
            was trained.
        Interrupted: if a signal arrived; the trials in progress are saved.
        TrainingError: if a trial failed; the others are finished.
    """
    check_optuna()
    processes, console = join_processes(search.base.hardware, options.console)
    if processes.is_main_process:
        check = partial(set_up, search.base, options.mirror)
        prepare_search(search, folder, overwrite=options.overwrite, dry_run=options.dry_run, check=check)
    if options.dry_run:
        return _dry_run(search, folder, options, console)
    processes.wait_for_everyone()
    study = SharedStudy(folder, search.space, search.base.training.seed[0]) if processes.is_main_process else None
    if study is not None:
        _check_data(search, study, folder, options)
    console.say(f"search    {_describe_space(search)}")
    if jobs > 1 and study is not None:
        console.say(f"workers   {jobs}, with their messages in {RunFolder(folder).log}")
        errors = run_workers(folder / SEARCH, folder, jobs, options, _progress(study, console))
    else:
        errors = []
        _train_trials(search, study, folder, replace(options, overwrite=False), processes, console)
    results = _collect(search, study, folder, console) if study is not None else None
    (results,) = broadcast_object_list([results])
    if results.points == {}:
        name, problem = next(iter(results.failed.items()), ("", ""))
        raise errors[0] if errors else TrainingError(f"no trial is complete; {name}: {problem}")
    raise_if_failed(results.failed, len(results.failed) + len(results.members), "trials")
    return results


def prepare_search(
    search: Search,
    folder: Path,
    *,
    overwrite: bool,
    dry_run: bool = False,
    check: Callable[[], object] = lambda: None,
) -> None:
    """Check that `folder` can hold the search, and write its recipe there.

    The number of trials, the budget and the hardware may differ from those of a search that is resumed.

    Args:
        overwrite: remove an earlier search, a single run, or the results of other runs.
        dry_run: write and remove nothing.
        check: called before anything is removed; raises an error if the search could not start.

    Raises:
        RunFolderError: if the folder holds other files, or a different search.
    """
    recipe, text = folder / SEARCH, dump_search(search)
    trials = [path.name for path in folder.glob("*") if TRIAL_NAME.fullmatch(path.name)]
    if recipe.is_file() and not overwrite:
        _check_same(search, folder)
    elif trials and not recipe.is_file():
        raise RunFolderError(f"{folder} contains {min(trials)} but no {SEARCH}; choose another folder with --run")
    else:
        prepare_folder(folder, [], overwrite=overwrite, dry_run=dry_run, check=check)
    if not dry_run and not (recipe.is_file() and recipe.read_text("utf-8") == text):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(recipe, text)


def _check_same(search: Search, folder: Path) -> None:
    """Raise `RunFolderError` if the folder holds a search with another recipe or other distributions."""
    earlier = load_finetuning(str(folder / SEARCH))
    assert isinstance(earlier, Search)
    if differences := compare_recipe_texts(*map(_text_to_compare, (earlier, search))):
        listed = "".join(f"\n{key}: {before} → {now}" for key, before, now in differences)
        raise RunFolderError(
            f"{folder} holds a search with a different recipe:{listed}\n"
            "Choose another folder with --run, or replace that search with --overwrite."
        )


def _text_to_compare(search: Search) -> str:
    """Return the text of a search without what may differ when it is resumed."""
    base = search.base.model_copy(update={"hardware": HardwareSection()})
    return dump_search(Search(base, search.space, SearchSection()))


def _check_data(search: Search, study: SharedStudy, folder: Path, options: RunOptions) -> None:
    """Check that a finished trial was trained on the data of today; `results_of_chosen` checks that all have the same.

    Before more trials are trained, the rows are compared, even if their files are not in a local folder.

    Raises:
        RunFolderError: if the data have changed.
    """
    finished = {
        folder / trial.name: search.trial_recipe(trial.values) for trial in study.records() if trial.is_finished
    }
    for run, recipe in [*finished.items()][:1]:
        check_finished_run(recipe, run, options.mirror, compare_rows=len(finished) < search.settings.trials)


def _dry_run(search: Search, folder: Path, options: RunOptions, console: Console) -> CollectionResults:
    """Print the distributions and the plan of the first trial."""
    values = propose([], search.space, search.base.training.seed[0])
    console.say(f"search    {_describe_space(search)}")
    console.say(f"\n{trial_name(0)} of {search.settings.trials}: {_describe_values(values)}")
    finetune(search.trial_recipe(values), folder / trial_name(0), options)
    return CollectionResults(dry_run=True, run=str(folder))


def _describe_space(search: Search) -> str:
    """Describe the settings and the distributions of a search in one line."""
    space = "; ".join(
        f"{key} {distribution.kind} {', '.join(map(_format_value, distribution.values))}"
        for key, distribution in search.space.items()
    )
    budget = f" in at most {search.settings.budget}" if search.settings.budget else ""
    return f"{search.settings.trials} trials{budget}: {space}"


def _describe_values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_format_value(value)}" for key, value in values.items())


def _format_value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _train_trials(
    search: Search,
    study: SharedStudy | None,
    folder: Path,
    options: RunOptions,
    processes: PartialState,
    console: Console,
) -> None:
    """Train one trial after another until they are used up, or several in a row fail.

    Args:
        study: None in all processes but the main one.
    """
    settings, num_failures = search.settings, 0
    while num_failures < MAX_FAILURES:
        next_trial = study.next_trial(settings.trials, search.budget_seconds) if study is not None else nullcontext()
        with next_trial as trial:
            (assigned,) = broadcast_object_list([trial and (trial.number, trial.values)])
            if assigned is None:
                return
            number, values = assigned
            console.say(f"\n{trial_name(number)} of {settings.trials}: {_describe_values(values)}")
            recipe, run = search.trial_recipe(values), folder / trial_name(number)
            if len(recipe.training.seed) == 1:
                options = replace(options, reason_to_stop=_never if trial is None else trial.reason_to_stop)
            started_at = time.monotonic()
            try:
                results = attempt(run.name, partial(finetune, recipe, run, options), processes, console)
            finally:
                if trial is not None:
                    trial.add_seconds(time.monotonic() - started_at)
            num_failures = num_failures + 1 if isinstance(results, str) else 0
            if trial is not None:
                _report(trial, run, results)
    console.warn(f"the last {MAX_FAILURES} trials failed, so no more are started")


def _never(share: float, score: float) -> None:
    """Stands for the `reason_to_stop` of the main process, the only one in which it is called."""


def _progress(study: SharedStudy, console: Console) -> Callable[[], None]:
    """Return a function that prints the trials that have finished since it was called last."""
    printed = {trial.number for trial in study.records() if trial.is_finished}

    def print_finished() -> None:
        for trial in study.records():
            if trial.is_finished and trial.number not in printed:
                printed.add(trial.number)
                state = "pruned" if trial.is_pruned else "done"
                console.say(f"{trial.name}: {state}, {_describe_values(trial.values)}")

    return print_finished


def _report(trial: HeldTrial, run: Path, results: RunResults | str) -> None:
    """Write the end of a trial to the journal, and whether it was pruned to its results."""
    if isinstance(results, str):
        trial.fail(results)
        return
    score = results.selection_score
    if math.isnan(score):
        trial.fail(f"its {results.best_by} on the validation split is not a number")
        return
    if trial.is_pruned:
        write_json(RunFolder(run).results, results.to_json() | {"pruned": True})
    trial.finish(score)


def _collect(search: Search, study: SharedStudy, folder: Path, console: Console) -> CollectionResults:
    """Choose the best of the complete trials, and write and print the results unless other processes still train."""
    trials = study.records()
    if running := [trial.name for trial in trials if trial.is_in_progress]:
        console.say(f"\n{', '.join(running)}: in progress in other processes; the last process writes the results")
        return CollectionResults(run=str(folder))
    finished: dict[TrialRecord, RunResults] = {}
    failed: dict[str, str] = {}
    for trial in trials:
        try:
            if not trial.is_finished:
                raise TrainingError(trial.error or f"was interrupted (log: {RunFolder(folder / trial.name).log})")
            finished[trial] = _read_results(folder / trial.name)
        except (TrainingError, UsageError) as error:
            failed[trial.name] = str(error)
    complete = [trial for trial in finished if not trial.is_pruned]
    if not complete:
        return CollectionResults(run=str(folder), points={}, failed=failed)
    results = _results(search, folder, finished, failed, study.importances())
    write_collection(folder, results, console)
    if results.importances:
        shares = ", ".join(f"{key} {share:.0%}" for key, share in results.importances.items())
        console.say(f"keys      {shares} of the variance of the scores")
    console.say(f"chosen    {results.chosen}, by {results.best_by} on the validation split\nrun       {folder}")
    console.say(f'next      bertcli predict {folder} --text "…"')
    return results


def _read_results(run: Path) -> RunResults:
    results = RunFolder(run).read_results()
    if results is None:
        raise UsageError(f"{run} has no results.json any more; restore it, or start over with --overwrite")
    return results


def _results(
    search: Search,
    folder: Path,
    finished: Mapping[TrialRecord, RunResults],
    failed: dict[str, str],
    importances: dict[str, float],
) -> CollectionResults:
    chosen = max(
        (trial for trial in finished if not trial.is_pruned), key=lambda trial: finished[trial].selection_score
    )
    metric, has_several_seeds = str(finished[chosen].best_by), len(search.base.training.seed) > 1
    table = [
        {
            "run": trial.name,
            **{key: _format_value(trial.values[key]) for key in search.space},
            "metric": metric,
            "score": f"{results.best_score:.4f}",
            **({} if has_several_seeds else {"95 % interval": results.interval_text(metric)}),  # a mean has none
            "state": "pruned" if trial.is_pruned else "complete",
            "time": format_seconds(results.train_seconds),
            "chosen": "*" if trial == chosen else "",
        }
        for trial, results in finished.items()
    ]
    points = {trial.name: results for trial, results in finished.items()}
    return results_of_chosen(chosen.name, points, failed, folder, table, importances)
