"""Grids: one table, the best point chosen by validation score, resuming, and several runs in parallel."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from bertcli.cli.main import app
from bertcli.commands.evaluate import evaluate
from bertcli.errors import ModelError, RunFolderError, TrainingError
from bertcli.experiments import grid as grid_module
from bertcli.experiments import run_many
from bertcli.experiments.grid import finetune_grid
from bertcli.finetuning.run import finetune
from bertcli.recipe.expansion import Grid
from bertcli.recipe.load import dump_recipe, load_recipe
from bertcli.recipe.schema import Recipe
from bertcli.recipe.suite import load_finetuning
from bertcli.runs.claim import claim_run
from bertcli.runs.folder import LOG_HEADER, RunFolder, RunOptions
from bertcli.runs.members import chosen_run
from bertcli.runs.results import RunResults

from ..conftest import QUIET

SHORT = ["training.max_steps=3", "data.max_train_examples=40", "data.max_eval_examples=20", "evaluation.every_steps=3"]


def load(*overrides: str) -> Grid:
    grid = load_finetuning("sample/sentiment", [*SHORT, *overrides])
    assert isinstance(grid, Grid)
    return grid


def test_grid_chooses_the_best_point_by_validation_score_and_tabulates_all(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = load("training.learning_rate=[1e-12, 1e-3]", "training.seed=[1, 2]", "data.max_eval_examples=null")
    results = finetune_grid(grid, Path("grid"), RunOptions(console=QUIET))
    means = {row["run"]: float(row["mean"]) for row in results.table}
    assert results.chosen == max(means, key=lambda name: means[name])
    assert [row["chosen"] for row in results.table].count("*") == 1
    assert results.points is not None
    assert results.metrics == results.points[results.chosen].metrics
    assert results.to_json() == json.loads(Path("grid/results.json").read_text())
    rows = list(csv.DictReader(Path("grid/summary.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == ["learning_rate=1e-12", "learning_rate=0.001"]
    assert all(row["seeds"] == "2" and row["sd"] and row["median"] for row in rows)
    assert "95 % interval" not in rows[0]
    assert chosen_run("grid") == f"grid/{results.chosen}"
    page = Path("grid/report.html").read_text()
    assert "2 points of" in page
    assert page.count('href="./learning_rate%3D') == 2
    assert "Validation accuracy" in page
    assert evaluate("grid", console=QUIET).values("accuracy") == results.values("accuracy")
    points, rerun = results.points, []

    def finetune_again(recipe: Recipe, run: Path, options: RunOptions) -> RunResults:
        rerun.append(run.name)
        return points[run.name]

    monkeypatch.setattr(grid_module, "finetune", finetune_again)
    assert finetune_grid(grid, Path("grid"), RunOptions(console=QUIET)) == results
    assert rerun == list(grid.points)


def test_grid_by_loss_chooses_the_lowest() -> None:
    grid = load("training.learning_rate=[1e-3, 1e-12]", "training.seed=[1, 2]", "evaluation.best_by=loss")
    results = finetune_grid(grid, Path("grid"), RunOptions(console=QUIET))
    assert results.points is not None
    means = {name: point.mean("loss") for name, point in results.points.items()}
    assert results.chosen == min(means, key=lambda name: means[name])
    (chosen,) = [row for row in results.table if row["chosen"]]
    assert float(chosen["best"]) == pytest.approx(min(results.values("loss")), abs=1e-4)


def test_grid_failed_point_does_not_stop_the_others() -> None:
    grid = load("training.warmup_steps=[0, 50]")
    with pytest.raises(TrainingError, match="1 of 2 points failed: warmup_steps=50"):
        finetune_grid(grid, Path("grid"), RunOptions(console=QUIET))
    assert json.loads(Path("grid/results.json").read_text())["chosen"] == "warmup_steps=0"
    page = Path("grid/report.html").read_text()
    assert "Failed runs" in page
    assert "warmup_steps=50" in page
    result = CliRunner().invoke(app, ["report", "grid", "--html", "elsewhere.html", "--plots", "plots"])
    assert result.exit_code == 0, result.output
    assert "| warmup_steps=0 | " in result.stdout
    assert 'href="./grid/warmup_steps%3D0/report.html"' in Path("elsewhere.html").read_text()
    assert Path("plots/loss.png").is_file()


@pytest.mark.parametrize("options", [[], ["--jobs", "2"]])
def test_grid_or_seeds_with_a_run_on_other_data_are_refused_as_a_whole(
    recipe_of: Callable[..., Recipe], reviews: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    recipe_of()  # writes small.yaml
    monkeypatch.setattr(run_many, "start_run", lambda *_: pytest.fail("a run was started"))
    command = ["finetune", "small.yaml", "training.max_steps=1", "--run"]
    grid, seeds = ["grid", "training.learning_rate=[1e-4, 1e-3]"], ["seeds", "training.seed=[1, 2]"]
    for words in (grid, seeds):
        assert CliRunner().invoke(app, [*command, *words]).exit_code == 0
    before = Path("grid/results.json").read_bytes()
    reviews.write_text(reviews.read_text("utf-8").replace("vile", "grand"), "utf-8")
    for words, finished in ((grid, "grid/learning_rate=0.0001"), (seeds, "seeds")):
        result = CliRunner().invoke(app, [*command, *words, *options])
        assert result.exit_code == 2, result.output
        assert f"data have changed since {finished} was trained" in " ".join(result.stderr.split())
    shutil.rmtree("grid/learning_rate=0.0001")
    shutil.rmtree("seeds/seed-1")
    Path("seeds/results.json").unlink()
    for words, finished in ((grid, "grid/learning_rate=0.001"), (seeds, "seeds/seed-2")):
        result = CliRunner().invoke(app, [*command, *words, *options])
        assert result.exit_code == 2, result.output
        assert f"data have changed since {finished} was trained" in " ".join(result.stderr.split())
        assert [str(path.parent) for path in Path(words[0]).glob("*/results.json")] == [finished]
    assert Path("grid/results.json").read_bytes() == before
    assert not Path("seeds/results.json").exists()


def test_grid_does_not_replace_other_files_or_runs() -> None:
    grid = load("training.learning_rate=[1e-4, 1e-3]")
    finetune(grid.representative, Path("run"), RunOptions(console=QUIET))
    single_results = Path("run/results.json").read_text()
    for dry_run in (True, False):
        with pytest.raises(RunFolderError, match="run holds a single run, expected a folder for the runs of a grid"):
            finetune_grid(grid, Path("run"), RunOptions(console=QUIET, dry_run=dry_run))
    command = ["finetune", "sample/sentiment", *SHORT, "training.learning_rate=[1e-4, 1e-3]", "--run", "run"]
    assert CliRunner().invoke(app, [*command, "--jobs", "2"]).exit_code == 2
    assert Path("run/results.json").read_text() == single_results
    Path("other").mkdir()
    Path("other/README.md").write_text("notes")
    with pytest.raises(RunFolderError, match=r"other contains README\.md but is not the folder of a grid"):
        finetune_grid(grid, Path("other"), RunOptions(console=QUIET))
    assert Path("other/README.md").read_text() == "notes"
    wrong_grid = load("model.name=nowhere/none", "training.seed=[1]", "training.learning_rate=[1e-4, 1e-3]")
    with pytest.raises(ModelError, match="cannot load"):
        finetune_grid(wrong_grid, Path("run"), RunOptions(console=QUIET, overwrite=True))
    wrong_recipes = {Path("run"): load_recipe("sample/sentiment", ["model.name=nowhere/none"])}
    with pytest.raises(ModelError, match="cannot load"):
        run_many.run_in_parallel(wrong_recipes, 2, RunOptions(console=QUIET, overwrite=True))
    assert Path("run/results.json").read_text() == single_results
    results = finetune_grid(grid, Path("run"), RunOptions(console=QUIET, overwrite=True))
    assert not Path("run/recipe.yaml").exists()
    with pytest.raises(RunFolderError, match="not empty and is not a run"):
        finetune(grid.representative, Path("run"), RunOptions(console=QUIET))
    assert finetune_grid(grid, Path("run"), RunOptions(console=QUIET)) == results


def test_grid_with_other_points_is_refused_unless_it_only_adds_some(monkeypatch: pytest.MonkeyPatch) -> None:
    def finetune(recipe: Recipe, run: Path, options: RunOptions) -> RunResults:
        return RunResults(run=str(run), best_by="accuracy", metrics={"validation": {"accuracy": 0.5}}, train_seconds=1)

    monkeypatch.setattr(grid_module, "finetune", finetune)
    monkeypatch.setattr("bertcli.experiments.collection.write_collection_page", lambda *_: None)
    finetune_grid(load("training.learning_rate=[1e-4, 1e-3]"), Path("grid"), RunOptions(console=QUIET))
    before = Path("grid/results.json").read_text(), Path("grid/summary.csv").read_text()
    other = load("training.learning_rate=[1e-4, 2e-3]")
    for dry_run in (True, False):
        with pytest.raises(RunFolderError, match=r"grid, suite .* with other runs: learning_rate=0\.001 would be lost"):
            finetune_grid(other, Path("grid"), RunOptions(console=QUIET, dry_run=dry_run))
    command = ["finetune", "sample/sentiment", *SHORT, "training.learning_rate=[1e-4, 2e-3]", "--run", "grid"]
    assert CliRunner().invoke(app, [*command, "--jobs", "2"]).exit_code == 2
    assert (Path("grid/results.json").read_text(), Path("grid/summary.csv").read_text()) == before
    more = finetune_grid(load("training.learning_rate=[1e-4, 1e-3, 2e-3]"), Path("grid"), RunOptions(console=QUIET))
    assert [row["run"] for row in more.table] == ["learning_rate=0.0001", "learning_rate=0.001", "learning_rate=0.002"]
    finetune_grid(other, Path("grid"), RunOptions(console=QUIET, overwrite=True))
    assert "learning_rate=0.001," not in Path("grid/summary.csv").read_text()


@pytest.mark.parametrize("options", [["--overwrite"], ["--overwrite", "--dry-run"], ["--overwrite", "--jobs", "2"]])
def test_grid_with_overwrite_keeps_a_recipe_that_a_person_wrote(options: list[str]) -> None:
    recipe = Path("mine/recipe.yaml")
    recipe.parent.mkdir()
    recipe.write_text("# mine\nextends: sample/sentiment\n")
    arguments = ["finetune", str(recipe), *SHORT, "training.learning_rate=[1e-4, 1e-3]", "--run", "mine", *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "mine holds a recipe.yaml that no run wrote; choose another folder with --run" in result.stderr
    assert recipe.read_text().startswith("# mine")


def test_dry_run_of_a_grid_prints_no_table() -> None:
    arguments = ["finetune", "sample/sentiment", *SHORT, "training.learning_rate=[1e-4, 1e-3]", "--dry-run", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--run", "grid", "--quiet"])
    assert json.loads(result.stdout) == {"dry_run": True, "run": "grid", "failed": {}}


def finish_times(folder: str) -> dict[str, int]:
    """Return the time at which each finished run in a folder wrote its results."""
    return {str(path.parent): path.stat().st_mtime_ns for path in Path(folder).rglob("seed-*/results.json")}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_parallel_runs_that_were_stopped_train_only_what_is_missing() -> None:
    arguments = ["sample/sentiment", *SHORT, "training.learning_rate=[1e-4, 1e-3, 3e-3]", "training.seed=[1, 2, 3, 4]"]
    command = [sys.executable, "-m", "bertcli", "finetune", *arguments, "--run", "grid", "--jobs", "2"]
    before: dict[str, int] = {}
    for signal_number, num_runs in ((signal.SIGTERM, 3), (signal.SIGINT, 6)):
        process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
        while len(finish_times("grid")) < num_runs:
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal_number)
        assert process.wait(120) == 128 + signal_number
        earlier, before = before, finish_times("grid")
        assert num_runs <= len(before) < 12
        assert earlier.items() <= before.items()
    last = subprocess.run(command, check=False, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    after = finish_times("grid")
    assert len(after) == 12
    assert before.items() <= after.items()
    assert len(list(csv.DictReader(Path("grid/summary.csv").read_text().splitlines()))) == 3


@pytest.mark.parametrize("overrides", [[], ["training.epochs=[1,2]"]])
def test_parallel_runs_are_overwritten_only_once(monkeypatch: pytest.MonkeyPatch, overrides: list[str]) -> None:
    calls: list[tuple[int, bool]] = []

    def run_in_parallel(recipes: dict[Path, Recipe], jobs: int, options: RunOptions) -> None:
        calls.append((len(recipes), options.overwrite))

    def finetune_or_grid(recipe: Recipe | Grid, run: Path, options: RunOptions) -> RunResults:
        calls.append((0, options.overwrite))
        return RunResults(run=str(run))

    monkeypatch.setattr("bertcli.experiments.run_many.run_in_parallel", run_in_parallel)
    for name in ("finetuning.run.finetune", "experiments.grid.finetune_grid"):
        monkeypatch.setattr(f"bertcli.{name}", finetune_or_grid)
    result = CliRunner().invoke(app, ["finetune", "sample/sentiment", *overrides, "--jobs", "2", "--overwrite"])
    assert result.exit_code == 0, result.output
    assert calls == [(2 if overrides else 1, True), (0, False)]


@pytest.mark.parametrize(("visible", "gpus"), [(None, ["0", "1"]), ("GPU-5,7", ["GPU-5", "7"]), ("", [None])])
def test_parallel_runs_use_the_gpu_that_an_earlier_run_has_released(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, gpus: list[str | None]
) -> None:
    in_use, used, finished = [], [], threading.Semaphore(0)

    def start_run(recipe: Any, folder: Path, file: Path, mirror: Path | None, environment: dict[str, str]) -> Any:
        gpu, is_long = environment.get("CUDA_VISIBLE_DEVICES") or None, folder.name == "seed-1"
        used.append(gpu)
        in_use.append(gpu)
        assert gpu is None or in_use.count(gpu) == 1

        def wait(seconds: float) -> int:
            for _ in range(3 if is_long else 0):  # outlasts the three other runs
                finished.acquire()
            in_use.remove(gpu)
            finished.release()
            return 0

        return SimpleNamespace(wait=wait)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(gpus) if gpus[0] else 0)
    monkeypatch.setattr(run_many, "start_run", start_run)
    recipe = load_recipe("sample/sentiment", ["training.seed=[1, 2, 3, 4]"])
    run_many.run_in_parallel({Path("run"): recipe}, 2, RunOptions(console=QUIET))
    assert len(used) == 4
    assert set(used) == set(gpus)


def test_unreadable_results_of_one_run_do_not_stop_the_parallel_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("sample/sentiment")
    damaged, other = claim_run(tmp_path / "damaged", dump_recipe(recipe)).open(print), tmp_path / "other"
    damaged.results.write_text("{broken")
    started: list[Path] = []

    def start_run(recipe: Recipe, folder: Path, *_: Any) -> SimpleNamespace:
        started.append(folder)
        return SimpleNamespace(wait=lambda _: 0)

    monkeypatch.setattr(run_many, "start_run", start_run)
    run_many.run_in_parallel({damaged.path: recipe, other: recipe}, 2, RunOptions(console=QUIET))
    assert started == [other]


def fail_children(monkeypatch: pytest.MonkeyPatch, output: str, code: int) -> list[Path]:
    """Have each child process print `output`, log three lines and end with `code`; return the folders of all."""
    started: list[Path] = []

    def start_run(recipe: Recipe, folder: Path, file: Path, *_: Any) -> SimpleNamespace:
        started.append(folder)
        file.with_suffix(".json").write_text(output)
        RunFolder(folder).log.write_text(f"{LOG_HEADER}step 1\nTraceback\nBus error")
        return SimpleNamespace(wait=lambda _: code)

    monkeypatch.setattr(run_many, "start_run", start_run)
    return started


@pytest.mark.parametrize(
    ("output", "code", "message"),
    [
        ('{"error": "no rows", "exit_code": 2}', 2, "no rows (log: {folder}/log.txt)"),
        ("", -9, "the run in {folder} died (killed, perhaps for lack of memory); re-run the same command to resume"),
        ("{", 3, "the run in {folder} died (exit code 3); re-run the same command to resume (log: {folder}/log.txt)"),
    ],
)
def test_failed_parallel_run_shows_its_message_and_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, output: str, code: int, message: str
) -> None:
    started = fail_children(monkeypatch, output, code)
    command = ["finetune", "sample/sentiment", "--jobs", "2", "--quiet", "--json"]
    result = CliRunner().invoke(app, [*command, "training.seed=[1, 2]", "--run", "seeds"])
    assert sorted(started) == [Path("seeds/seed-1"), Path("seeds/seed-2")]
    assert message.format(folder="seeds/seed-1") in result.stderr
    assert ("  Bus error" in result.stderr) == (code != 2)
    assert result.exit_code == json.loads(result.stdout)["exit_code"] == (code if code > 0 else 137)
    assert not Path("seeds/seed-1/train.jsonl").exists()
    result = CliRunner().invoke(app, [*command, "training.learning_rate=[1e-4, 1e-3]", "--run", "grid"])
    assert f"learning_rate=0.001 failed: {message.format(folder='grid/learning_rate=0.001')}" in result.stderr
    assert "all 2 points failed" in result.stderr
    assert len(started) == 4
    assert Path("grid/learning_rate=0.001/log.txt").read_text().endswith("Bus error")


def test_log_of_a_parallel_run_is_removed_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_children(monkeypatch, "", 1)
    command = ["finetune", "sample/sentiment", "training.seed=[1, 2]", "--jobs", "2", "--run", "run"]
    CliRunner().invoke(app, command)
    monkeypatch.setattr(run_many, "start_run", lambda *_: SimpleNamespace(wait=lambda _: 1))
    CliRunner().invoke(app, [*command, "--overwrite"])
    assert not list(Path("run").rglob("log.txt"))


def test_log_of_a_parallel_run_begins_with_a_header_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_many.subprocess, "Popen", lambda *_, stderr, **__: stderr.write("warning: …".encode()))
    for _ in range(2):
        run_many.start_run(load_recipe("sample/sentiment"), tmp_path, tmp_path / "1.yaml", None, {})
    assert (tmp_path / "log.txt").read_text("utf-8") == f"{LOG_HEADER}warning: …warning: …"


@pytest.mark.parametrize("options", [[], ["--jobs", "2"]])
def test_grid_with_a_point_of_another_recipe_is_refused_as_a_whole(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_many, "start_run", lambda *_: pytest.fail("a run was started"))
    command = ["finetune", "sample/sentiment", *SHORT, "--run", "grid", "--quiet"]
    assert CliRunner().invoke(app, [*command, "training.learning_rate=[1e-4, 1e-3]"]).exit_code == 0
    files = [path for path in Path("grid").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    more = [*command, "training.learning_rate=[5e-4, 1e-4, 1e-3]", "training.seed=7"]
    result = CliRunner().invoke(app, [*more, *options])
    assert result.exit_code == 2, result.output
    assert "grid/learning_rate=0.0001 holds a run created with a different recipe" in result.stderr
    assert {path: path.read_bytes() for path in Path("grid").rglob("*") if path.is_file()} == before
