"""A grid of runs: one table, the best by validation chosen, only what is missing done again, several at once."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from bertcli.cli.main import app
from bertcli.commands.evaluate import evaluate
from bertcli.console import Console
from bertcli.errors import ModelError, RunFolderError, TrainingError
from bertcli.experiments import grid as sweep_module
from bertcli.experiments import run_many
from bertcli.experiments.grid import finetune_grid
from bertcli.finetuning.run import finetune
from bertcli.recipe.expansion import Grid, load_recipe_or_grid
from bertcli.recipe.load import load_recipe
from bertcli.runs.folder import RunOptions, chosen_run

QUIET = Console(quiet=True)
SHORT = ["training.max_steps=3", "data.max_train_examples=40", "data.max_eval_examples=20", "evaluation.every_steps=3"]


def load(*overrides: str) -> Grid:
    grid = load_recipe_or_grid("sample/sentiment", [*SHORT, *overrides])
    assert isinstance(grid, Grid)
    return grid


def test_the_best_by_validation_is_chosen_and_all_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = load("training.learning_rate=[1e-12, 1e-3]", "training.seed=[1, 2]", "data.max_eval_examples=null")
    results = finetune_grid(grid, Path("grid"), RunOptions(console=QUIET))
    means = {row["run"]: float(row["mean"]) for row in results["table"]}
    assert results["chosen"] == max(means, key=lambda name: means[name])
    assert [row["chosen"] for row in results["table"]].count("*") == 1
    assert results["metrics"] == results["points"][results["chosen"]]["metrics"]
    assert results == json.loads(Path("grid/results.json").read_text())
    rows = list(csv.DictReader(Path("grid/summary.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == ["learning_rate=1e-12", "learning_rate=0.001"]
    assert all(row["seeds"] == "2" and row["sd"] and row["median"] for row in rows)
    assert chosen_run("grid") == f"grid/{results['chosen']}"
    page = Path("grid/report.html").read_text()
    assert "2 points of" in page
    assert page.count('href="./learning_rate%3D') == 2
    assert "Validation accuracy" in page
    scores = evaluate("grid", console=QUIET)["metrics"]["validation"]
    assert scores["accuracy"]["values"] == results["metrics"]["validation"]["accuracy"]["values"]
    ran = []
    monkeypatch.setattr(sweep_module, "finetune", lambda *given, **named: ran.append(given) or {})
    with pytest.raises(KeyError):  # the stand-in has no metrics: only the table is missed
        finetune_grid(grid, Path("grid"), RunOptions(console=QUIET))
    assert len(ran) == 2


def test_a_point_that_fails_leaves_the_others() -> None:
    grid = load("training.warmup_steps=[0, 50]")
    with pytest.raises(TrainingError, match="1 of 2 points failed: warmup_steps=50"):
        finetune_grid(grid, Path("grid"), RunOptions(console=QUIET))
    assert json.loads(Path("grid/results.json").read_text())["chosen"] == "warmup_steps=0"
    page = Path("grid/report.html").read_text()
    assert "What failed" in page
    assert "warmup_steps=50" in page
    told = CliRunner().invoke(app, ["report", "grid", "--html", "elsewhere.html", "--plots", "plots"])
    assert told.exit_code == 0, told.output
    assert "| warmup_steps=0 | " in told.stdout
    assert 'href="./grid/warmup_steps%3D0/report.html"' in Path("elsewhere.html").read_text()
    assert Path("plots/loss.png").is_file()


def test_nothing_else_is_replaced_by_what_a_grid_reached() -> None:
    grid = load("training.learning_rate=[1e-4, 1e-3]")
    finetune(grid.first, Path("run"), RunOptions(console=QUIET))
    kept = Path("run/results.json").read_text()
    for dry_run in (True, False):
        with pytest.raises(RunFolderError, match="run holds a run, where runs of a grid or suite are to go"):
            finetune_grid(grid, Path("run"), RunOptions(console=QUIET, dry_run=dry_run))
    words = ["finetune", "sample/sentiment", *SHORT, "training.learning_rate=[1e-4, 1e-3]", "--run", "run"]
    assert CliRunner().invoke(app, [*words, "--jobs", "2"]).exit_code == 2
    assert Path("run/results.json").read_text() == kept
    Path("mine").mkdir()
    Path("mine/README.md").write_text("my own")
    with pytest.raises(RunFolderError, match=r"mine holds README\.md and no grid"):
        finetune_grid(grid, Path("mine"), RunOptions(console=QUIET))
    assert Path("mine/README.md").read_text() == "my own"
    wrong_grid = load("model.name=nowhere/none", "training.seed=[1]", "training.learning_rate=[1e-4, 1e-3]")
    with pytest.raises(ModelError, match="cannot load"):
        finetune_grid(wrong_grid, Path("run"), RunOptions(console=QUIET, overwrite=True))
    wrong = {Path("run"): load_recipe("sample/sentiment", ["model.name=nowhere/none"])}
    with pytest.raises(ModelError, match="cannot load"):
        run_many.run_in_parallel(wrong, 2, RunOptions(console=QUIET, overwrite=True))
    assert Path("run/results.json").read_text() == kept
    results = finetune_grid(grid, Path("run"), RunOptions(console=QUIET, overwrite=True))
    assert not Path("run/recipe.yaml").exists()
    with pytest.raises(RunFolderError, match="not empty and holds no run"):
        finetune(grid.first, Path("run"), RunOptions(console=QUIET))
    assert finetune_grid(grid, Path("run"), RunOptions(console=QUIET)) == results


def finished(folder: str) -> dict[str, int]:
    """When each finished run of a folder was finished."""
    return {str(path.parent): path.stat().st_mtime_ns for path in Path(folder).rglob("seed-*/results.json")}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twelve_runs_stopped_in_the_middle_do_only_what_is_missing() -> None:
    words = ["sample/sentiment", *SHORT, "training.learning_rate=[1e-4, 1e-3, 3e-3]", "training.seed=[1, 2, 3, 4]"]
    command = [sys.executable, "-m", "bertcli", "finetune", *words, "--run", "grid", "--jobs", "2"]
    before: dict[str, int] = {}
    for number, enough in ((signal.SIGTERM, 3), (signal.SIGINT, 6)):
        process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
        while len(finished("grid")) < enough:
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(number)
        assert process.wait(120) == 128 + number
        then, before = before, finished("grid")
        assert enough <= len(before) < 12
        assert then.items() <= before.items()
    again = subprocess.run(command, check=False, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    after = finished("grid")
    assert len(after) == 12
    assert before.items() <= after.items()
    assert len(list(csv.DictReader(Path("grid/summary.csv").read_text().splitlines()))) == 3


@pytest.mark.parametrize("more", [[], ["training.epochs=[1,2]"]])
def test_runs_made_anew_side_by_side_are_not_made_anew_again(monkeypatch: pytest.MonkeyPatch, more: list[str]) -> None:
    asked: list[tuple[int, bool]] = []
    monkeypatch.setattr(
        "bertcli.experiments.run_many.run_in_parallel",
        lambda ready, jobs, options: asked.append((len(ready), options.overwrite)),
    )
    for name in ("finetuning.run.finetune", "experiments.grid.finetune_grid"):
        monkeypatch.setattr(f"bertcli.{name}", lambda recipe, run, options: asked.append((0, options.overwrite)) or {})
    made = CliRunner().invoke(app, ["finetune", "sample/sentiment", *more, "--jobs", "2", "--overwrite"])
    assert made.exit_code == 0, made.output
    assert asked == [(2 if more else 1, True), (0, False)]


@pytest.mark.parametrize(("visible", "gpus"), [(None, ["0", "1"]), ("GPU-5,7", ["GPU-5", "7"]), ("", [None])])
def test_a_run_takes_the_gpu_that_another_has_left(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, gpus: list[str | None]
) -> None:
    computing, seen, ended = [], [], threading.Semaphore(0)

    def start(recipe: Any, folder: Path, file: Path, mirror: Path | None, environment: dict[str, str]) -> Any:
        gpu, is_long = environment.get("CUDA_VISIBLE_DEVICES") or None, folder.name == "seed-1"
        seen.append(gpu)
        computing.append(gpu)
        assert gpu is None or computing.count(gpu) == 1

        def wait(seconds: float) -> int:
            for _ in range(3 if is_long else 0):  # as long as all others together
                ended.acquire(timeout=5)
            computing.remove(gpu)
            ended.release()
            return 0

        return SimpleNamespace(wait=wait)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(gpus) if gpus[0] else 0)
    monkeypatch.setattr(run_many, "_start", start)
    recipe = load_recipe("sample/sentiment", ["training.seed=[1, 2, 3, 4]"])
    run_many.run_in_parallel({Path("run"): recipe}, 2, RunOptions(console=QUIET))
    assert len(seen) == 4
    assert set(seen) == set(gpus)
