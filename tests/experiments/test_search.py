"""Searches: trials are ordinary runs, the best one is chosen by validation score, and a kill changes nothing."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bertcli.cli.main import app
from bertcli.commands.evaluate import evaluate
from bertcli.commands.submit import plan_jobs
from bertcli.errors import Interrupted, RunFolderError, TrainingError
from bertcli.experiments import search as search_module
from bertcli.experiments.grid import finetune_grid
from bertcli.experiments.search import finetune_search, prepare_search
from bertcli.experiments.shared_study import SharedStudy
from bertcli.files import file_lock
from bertcli.recipe.expansion import Grid
from bertcli.recipe.load import dump_recipe, load_recipe
from bertcli.recipe.schema import Recipe
from bertcli.recipe.search import Search
from bertcli.recipe.suite import load_finetuning
from bertcli.runs.folder import RunOptions
from bertcli.runs.members import chosen_run
from bertcli.runs.results import CollectionResults, RunResults

from ..conftest import QUIET

SHORT = ["training.max_steps=4", "data.max_train_examples=40", "data.max_eval_examples=20", "evaluation.every_steps=2"]
SPACE = ["search.learning_rate={log_uniform: [1e-5, 1e-2]}", "search.global_batch_size={choice: [4, 8]}"]
OPTIONS = RunOptions(console=QUIET)


def load(*overrides: str) -> Search:
    search = load_finetuning("sample/sentiment", [*SHORT, *SPACE, *overrides])
    assert isinstance(search, Search)
    return search


def trained_at(folder: str) -> dict[str, int]:
    """Return when each trial wrote its model, by name."""
    models = Path(folder).glob("trial-*/model/model.safetensors")
    return {path.parts[1]: path.stat().st_mtime_ns for path in models}


def scores(results: CollectionResults) -> dict[str, Any]:
    return {name: (trial.metrics, trial.best_step) for name, trial in (results.points or {}).items()}


def test_search_chooses_the_best_trial_and_goes_on_when_trials_are_added() -> None:
    full = "data.max_eval_examples=null"
    first = finetune_search(load("search.trials=2", full), Path("search"), OPTIONS)
    before = trained_at("search")
    results = finetune_search(load("search.trials=3", full), Path("search"), OPTIONS)
    assert len(before) == 2
    assert before.items() <= trained_at("search").items()
    assert results.points is not None
    assert list(results.points) == ["trial-0", "trial-1", "trial-2"]
    assert scores(first).items() <= scores(results).items()
    selection_scores = {name: trial.selection_score for name, trial in results.points.items()}
    assert results.chosen == max(selection_scores, key=lambda name: selection_scores[name])
    assert results.metrics == results.points[results.chosen].metrics
    assert chosen_run("search") == f"search/{results.chosen}"
    assert evaluate("search", console=QUIET).values("accuracy") == results.values("accuracy")
    rows = list(csv.DictReader(Path("search/summary.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == list(results.points)
    assert [row["chosen"] for row in rows].count("*") == 1
    assert [row["95 % interval"] for row in rows] == [run.interval_text("accuracy") for run in results.points.values()]
    assert " to " in rows[0]["95 % interval"]
    recipe = load_recipe("search/trial-1/recipe.yaml")
    assert f"{recipe.training.learning_rate:.3g}" == rows[1]["learning_rate"]
    assert str(recipe.training.global_batch_size) == rows[1]["global_batch_size"]
    assert recipe == load(full).trial_recipe(
        {"learning_rate": recipe.training.learning_rate, "global_batch_size": recipe.training.global_batch_size}
    )
    page = Path("search/report.html").read_text()
    assert "3 trials of sample/sentiment" in page
    assert "Validation accuracy by trial" in page
    assert "Importance of the hyperparameters" in page
    assert 'href="./trial-0/report.html"' in page


def test_search_stopped_within_a_trial_ends_like_an_undisturbed_one(stop_after: Callable[..., None]) -> None:
    search, other = load("search.trials=2", "model.dropout=0.1"), load("search.trials=2", "model.dropout=0.1")
    stop_after(3)
    with pytest.raises(Interrupted):
        finetune_search(search, Path("stopped"), OPTIONS)
    assert not Path("stopped/results.json").exists()
    result = CliRunner().invoke(app, ["predict", "stopped", "--text", "x"])
    assert "stopped is not finished (0 of its 1 runs finished)" in result.stderr
    stopped = finetune_search(search, Path("stopped"), OPTIONS)
    assert scores(stopped) == scores(finetune_search(other, Path("whole"), OPTIONS))
    recipes = [Path(folder, "trial-1/recipe.yaml").read_text() for folder in ("stopped", "whole")]
    assert recipes[0] == recipes[1]


class FakeRuns:
    """Stands in for `finetune`: scores each trial by its learning rate, or ends as `outcomes` says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.started: list[str] = []
        self.outcomes: dict[str, Any] = {}
        monkeypatch.setattr(search_module, "finetune", self.finetune)
        monkeypatch.setattr("bertcli.experiments.collection.write_collection_page", lambda *_: None)

    def finetune(self, recipe: Recipe, run: Path, options: RunOptions) -> RunResults:
        self.started.append(run.name)
        outcome = self.outcomes.get(run.name, recipe.training.learning_rate)
        if isinstance(outcome, BaseException):
            raise outcome
        if outcome == "prune":
            assert options.reason_to_stop is not None
            assert options.reason_to_stop(0.5, -1.0) is not None
            outcome = 9.0
        elif options.reason_to_stop is not None:
            assert options.reason_to_stop(0.5, outcome) is None
        metrics = {"validation": {"accuracy": outcome}}
        results = RunResults(run=str(run), best_by="accuracy", metrics=metrics, train_seconds=1)
        run.mkdir(parents=True, exist_ok=True)
        (run / "results.json").write_text(json.dumps(results.to_json()))
        return results


@pytest.fixture
def fake_runs(monkeypatch: pytest.MonkeyPatch) -> FakeRuns:
    return FakeRuns(monkeypatch)


def test_search_never_chooses_a_pruned_trial_and_marks_it(fake_runs: FakeRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bertcli.experiments.shared_study.MIN_TRIALS_TO_PRUNE", 1)
    monkeypatch.setattr("bertcli.experiments.shared_study.MIN_SCORES_TO_PRUNE", 1)
    search = load("search.trials=2", "search.learning_rate={choice: [1e-3]}")
    fake_runs.outcomes["trial-1"] = "prune"
    results = finetune_search(search, Path("search"), OPTIONS)
    assert results.chosen == "trial-0"
    assert [row["state"] for row in results.table] == ["complete", "pruned"]
    assert json.loads(Path("search/trial-1/results.json").read_text())["pruned"] is True
    assert "pruned" not in json.loads(Path("search/trial-0/results.json").read_text())
    seeds = load("search.trials=2", "search.learning_rate={choice: [1e-3]}", "training.seed=[1, 2]")
    fake_runs.outcomes.clear()
    of_seeds = finetune_search(seeds, Path("seeds"), OPTIONS)
    assert of_seeds.members == ["trial-0", "trial-1"]  # whose seeds are not pruned
    assert "95 % interval" not in of_seeds.table[0]


def test_failed_trials_are_reported_and_tried_again_with_their_values(fake_runs: FakeRuns) -> None:
    search = load("search.trials=4")
    fake_runs.outcomes = {"trial-1": TrainingError("no memory"), "trial-2": math.nan}
    with pytest.raises(TrainingError, match="2 of 4 trials failed: trial-1; trial-2"):
        finetune_search(search, Path("search"), OPTIONS)
    failed = json.loads(Path("search/results.json").read_text())["failed"]
    assert failed == {"trial-1": "no memory", "trial-2": "its accuracy on the validation split is not a number"}
    values = [trial.values for trial in SharedStudy(Path("search"), search.space, 1).records()]
    fake_runs.outcomes, fake_runs.started = {}, []
    results = finetune_search(search, Path("search"), OPTIONS)
    assert fake_runs.started == ["trial-1", "trial-2"]
    assert [row["run"] for row in results.table] == ["trial-0", "trial-1", "trial-2", "trial-3"]
    assert [trial.values for trial in SharedStudy(Path("search"), search.space, 1).records()] == values


def test_search_stops_after_several_failures_in_a_row(fake_runs: FakeRuns) -> None:
    fake_runs.outcomes = {f"trial-{number}": TrainingError("the disk is full") for number in range(9)}
    with pytest.raises(TrainingError, match="no trial is complete; trial-0: the disk is full"):
        finetune_search(load("search.trials=9"), Path("search"), OPTIONS)
    assert fake_runs.started == ["trial-0", "trial-1", "trial-2"]


def test_search_by_loss_chooses_the_lowest(fake_runs: FakeRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunResults, "selection_score", property(lambda self: -self.mean("accuracy")))
    results = finetune_search(load("search.trials=4"), Path("search"), OPTIONS)
    assert results.points is not None
    assert results.mean("accuracy") == min(trial.mean("accuracy") for trial in results.points.values())


def test_worker_leaves_the_results_to_the_last_one(fake_runs: FakeRuns) -> None:
    search = load("search.trials=2")
    prepare_search(search, Path("search"), overwrite=False)
    with SharedStudy(Path("search"), search.space, 1).next_trial(2, None) as other:
        assert other is not None
        assert finetune_search(search, Path("search"), OPTIONS).points is None
        assert fake_runs.started == ["trial-1"]
        assert not Path("search/results.json").exists()
        with pytest.raises(RunFolderError, match="trial-0 is in use by another process"):
            finetune_search(search, Path("search"), replace(OPTIONS, overwrite=True))
    assert finetune_search(search, Path("search"), OPTIONS).members == ["trial-0", "trial-1"]


@pytest.mark.parametrize("trials", [2, 3])
def test_search_is_refused_once_the_data_of_its_trials_have_changed(
    recipe_of: Callable[..., Recipe], reviews: Path, monkeypatch: pytest.MonkeyPatch, trials: int
) -> None:
    recipe_of()  # writes small.yaml
    words = ["training.max_steps=1", "search.learning_rate={log_uniform: [1e-5, 1e-2]}"]
    search, more = (load_finetuning("small.yaml", [*words, f"search.trials={number}"]) for number in (2, trials))
    assert isinstance(search, Search)
    assert isinstance(more, Search)
    results = finetune_search(search, Path("search"), OPTIONS)
    assert finetune_search(search, Path("search"), OPTIONS) == results
    reviews.write_text(reviews.read_text("utf-8").replace("vile", "grand"), "utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(search_module, "finetune", lambda *_: pytest.fail("a trial was trained"))
        changed = "data have changed since search/trial-0 was trained.*start over with --overwrite"
        with pytest.raises(RunFolderError, match=changed):
            finetune_search(more, Path("search"), OPTIONS)
        # As for a dataset without local files, whose rows are compared before more trials are trained.
        patch.setattr("bertcli.finetuning.finished_run.has_same_files", lambda *_: True)
        if trials > 2:
            with pytest.raises(RunFolderError, match=changed):
                finetune_search(more, Path("search"), OPTIONS)
        else:
            assert finetune_search(more, Path("search"), OPTIONS) == results
    assert finetune_search(search, Path("search"), replace(OPTIONS, overwrite=True)) != results


def test_trials_on_different_rows_are_not_compared(fake_runs: FakeRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    def finetune(recipe: Recipe, run: Path, options: RunOptions) -> RunResults:
        results = fake_runs.finetune(recipe, run, options).model_copy(update={"data_fingerprint": run.name})
        Path(run, "results.json").write_text(json.dumps(results.to_json() | {"data_fingerprint": run.name}))
        return results

    monkeypatch.setattr(search_module, "finetune", finetune)
    with pytest.raises(RunFolderError, match=r"search/trial-0 and search/trial-1 were trained or scored on different"):
        finetune_search(load("search.trials=2"), Path("search"), OPTIONS)
    assert not Path("search/results.json").exists()


def test_search_with_another_recipe_is_refused_unless_overwritten(fake_runs: FakeRuns) -> None:
    finetune_search(load("search.trials=2"), Path("search"), OPTIONS)
    for overrides in (["training.warmup_ratio=0.2"], ["search.learning_rate={log_uniform: [1e-5, 1e-3]}"]):
        with pytest.raises(
            RunFolderError, match=r"search with a different recipe:\n(training|search)\..* → .*\nChoose"
        ):
            finetune_search(load("search.trials=2", *overrides), Path("search"), OPTIONS)
    notes = Path("search/trial-0/notes.txt")
    notes.write_text("mine")
    copied = Path("search/trial-best")
    shutil.copytree("search/trial-0", copied)
    (copied / "recipe.yaml").write_text(dump_recipe(load().base))
    Path("search/trial-0/recipe.yaml").write_text("task: sample/sentiment\n")
    changed = load("search.trials=1", "training.warmup_ratio=0.2", "hardware.threads=2")
    results = finetune_search(changed, Path("search"), replace(OPTIONS, overwrite=True))
    assert results.members == ["trial-0"]
    assert notes.read_text() == "mine"
    assert (copied / "results.json").is_file()
    assert finetune_search(load("search.trials=1", "training.warmup_ratio=0.2"), Path("search"), OPTIONS) == results


def test_grid_and_search_replace_each_other_only_with_overwrite(fake_runs: FakeRuns) -> None:
    words = [*SHORT, "training.learning_rate=[1e-4, 1e-3]"]
    grid, search = load_finetuning("sample/sentiment", words), load("search.trials=2")
    assert isinstance(grid, Grid)
    finetune_search(search, Path("runs"), OPTIONS)
    for name in ("trial-0", "trial-1"):
        Path("runs", name, "recipe.yaml").write_text(dump_recipe(search.base))
    Path("runs/notes.txt").write_text("mine")
    Path("runs/trial-1/notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="runs holds a search; choose another folder with --run, or rep"):
        finetune_grid(grid, Path("runs"), OPTIONS)
    with (
        file_lock(Path("runs/.trial-1.lock"), lambda _: None),
        pytest.raises(RunFolderError, match="runs/trial-1 is in use by another process"),
    ):
        finetune_grid(grid, Path("runs"), replace(OPTIONS, overwrite=True))
    assert Path("runs/trial-0/results.json").is_file()
    results = finetune_grid(grid, Path("runs"), replace(OPTIONS, overwrite=True))
    assert results.members == ["learning_rate=0.0001", "learning_rate=0.001"]
    names = {"notes.txt", "trial-1", *results.members, "results.json", "README.md", "summary.csv"}
    assert {path.name for path in Path("runs").iterdir()} - {"report.html"} == names
    assert [path.name for path in Path("runs/trial-1").iterdir()] == ["notes.txt"]
    with pytest.raises(RunFolderError, match=r"runs contains trial-1 but no search\.yaml"):
        finetune_search(search, Path("runs"), replace(OPTIONS, overwrite=True))
    assert Path("runs/results.json").is_file()
    shutil.rmtree("runs/trial-1")
    with pytest.raises(RunFolderError, match="runs holds a grid, suite or cross-validation with other runs"):
        finetune_search(search, Path("runs"), OPTIONS)
    again = finetune_search(search, Path("runs"), replace(OPTIONS, overwrite=True))
    assert again.members == ["trial-0", "trial-1"]


def test_damaged_journal_is_refused_until_it_is_overwritten(fake_runs: FakeRuns) -> None:
    finetune_search(load("search.trials=2"), Path("search"), OPTIONS)
    journal = Path("search/search.journal")
    lines = journal.read_text().splitlines(keepends=True)
    for damaged in (["{{\n", *lines], [*lines, "[]\n"], [*lines, "garbage\n"]):
        journal.write_text("".join(damaged))
        with pytest.raises(RunFolderError, match=r"cannot read search/search\.journal.* start over with --overwrite"):
            finetune_search(load("search.trials=2"), Path("search"), OPTIONS)
    results = finetune_search(load("search.trials=1"), Path("search"), replace(OPTIONS, overwrite=True))
    assert results.members == ["trial-0"]


def test_search_does_not_mix_with_other_runs(fake_runs: FakeRuns) -> None:
    finetune_search(load("search.trials=1"), Path("search"), OPTIONS)
    before = {path: path.read_bytes() for path in Path("search").rglob("*") if path.is_file()}
    grid = ["training.epochs=[1,2]"]
    for words in (
        [],
        ["--overwrite"],
        grid,
        [*grid, "--overwrite", "--dry-run"],
        [*grid, "--overwrite", "model.name=./no"],
    ):
        result = CliRunner().invoke(app, ["finetune", "sample/sentiment", "--run", "search", *words])
        assert (result.exit_code == 0) == ("--dry-run" in words), result.output
        assert {path: path.read_bytes() for path in Path("search").rglob("*") if path.is_file()} == before
    Path("other/trial-0").mkdir(parents=True)
    with pytest.raises(RunFolderError, match=r"other contains trial-0 but no search\.yaml; choose another folder"):
        finetune_search(load(), Path("other"), OPTIONS)
    assert not Path("other/search.yaml").exists()


def test_dry_run_of_a_search_prints_the_space_and_the_plan_of_the_first_trial() -> None:
    command = ["finetune", "sample/sentiment", *SHORT, *SPACE, "search.trials=7", "search.budget=2h", "--run", "search"]
    result = CliRunner().invoke(app, [*command, "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"dry_run": True, "run": "search"}
    assert not Path("search").exists()
    space = "learning_rate log_uniform 1e-05, 0.01; global_batch_size choice 4, 8"
    assert f"search    7 trials in at most 2h: {space}" in result.stderr
    assert "run       search/trial-0" in result.stderr


def test_submit_array_of_a_search_runs_the_same_command_in_each_task() -> None:
    plan = plan_jobs("sample/sentiment", [*SPACE, "search.trials=9"], Path("runs/search"), num_workers=3)
    assert [command.arguments for command in plan.array_commands] == [
        ["finetune", "runs/search/search.yaml", "--run", "runs/search"]
    ] * 3
    assert plan.command == plan.array_commands[0]
    assert len(plan_jobs("sample/sentiment", [*SPACE, "search.trials=2"], Path("runs/search")).array_commands) == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_search_trains_each_trial_in_two_processes() -> None:
    command = ["finetune", "sample/sentiment", *SHORT, *SPACE, "search.trials=2", "--run", "search", "--processes", "2"]
    process = subprocess.run([sys.executable, "-m", "bertcli", *command, "--json"], check=False, capture_output=True)
    assert process.returncode == 0, process.stderr
    assert list(json.loads(process.stdout)["points"]) == ["trial-0", "trial-1"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_parallel_search_killed_twice_loses_and_doubles_no_trial() -> None:
    arguments = ["sample/sentiment", *SHORT, *SPACE, "search.trials=8", "--run", "search", "--jobs", "2"]
    command = [sys.executable, "-m", "bertcli", "finetune", *arguments]
    for num_trials in (2, 5):
        process = subprocess.Popen(command, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        while len(trained_at("search")) < num_trials:
            assert process.poll() is None
            time.sleep(0.05)
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
        for pid in (process.pid, *map(int, children.stdout.split())):
            os.kill(pid, signal.SIGKILL)
        process.wait()
    last = subprocess.run(command, check=False, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    results = json.loads(Path("search/results.json").read_text())
    assert list(results["points"]) == [f"trial-{number}" for number in range(8)]
    assert len({Path(f"search/trial-{number}/recipe.yaml").read_text() for number in range(8)}) == 8
    assert not Path("search/trial-8").exists()
