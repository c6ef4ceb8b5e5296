"""Folders of several runs: the point or seed that is chosen, and what is unfinished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bertcli.errors import UsageError
from bertcli.recipe.load import dump_recipe, load_recipe
from bertcli.runs.claim import claim_run
from bertcli.runs.members import best_seed, chosen_run, seed_runs

RECIPE = dump_recipe(load_recipe("glue/rte", ["training.epochs=3", "evaluation.every_epochs=1"]))


def open_run(path: Path, recipe_text: str = RECIPE, *, overwrite: bool = False) -> list[str]:
    """Claim and open a run folder; return the messages."""
    messages: list[str] = []
    claim_run(path, recipe_text, overwrite=overwrite).open(messages.append)
    return messages


@pytest.mark.parametrize("content", ["{", "[]", '""'])
def test_unreadable_results_are_reported_with_their_folder(tmp_path: Path, content: str) -> None:
    for seed in (1, 2):
        open_run(tmp_path / "run" / f"seed-{seed}")
    open_run(tmp_path / "run")
    broken, grid = tmp_path / "run" / "seed-2", tmp_path / "seed-2"
    grid.mkdir()
    for folder in (broken, grid):
        (folder / "results.json").write_text(content)
    (tmp_path / "run" / "results.json").write_text('{"run": "run"}')
    for read in (
        lambda: best_seed(str(broken.parent)),
        lambda: chosen_run(str(grid)),
        lambda: claim_run(broken, RECIPE),
    ):
        with pytest.raises(UsageError, match=r"cannot read the run in .*seed-2: .*results\.json"):
            read()


@pytest.mark.parametrize("content", ["{", "{}", '{"run": null, "metrics": null, "train_seconds": null}'])
def test_model_of_a_run_is_found_without_its_results(content: str) -> None:
    """`predict` needs nothing of them."""
    open_run(Path("run"))
    (Path("run/results.json")).write_text(content)
    assert best_seed("run") == chosen_run("run") == "run"


def test_chosen_point_of_a_grid_is_found_without_the_rest_of_its_results() -> None:
    Path("grid").mkdir()
    open_run(Path("grid/epochs=1"))
    Path("grid/epochs=1/model").mkdir()
    Path("grid/results.json").write_text('{"chosen": "epochs=1", "table": [], "points": null}')
    assert best_seed("grid") == "grid/epochs=1"


@pytest.mark.parametrize(
    ("results", "missing"),
    [
        ('{"run": "a"}', "no best_by"),
        ('{"run": "a", "best_by": "f1"}', r"no metrics\.validation\.f1"),
        ('{"run": "a", "best_by": "f1", "metrics": {"validation": {}}}', r"no metrics\.validation\.f1"),
    ],
)
def test_best_seed_names_the_key_that_results_lack(results: str, missing: str) -> None:
    open_run(Path("run"))
    Path("run/results.json").write_text('{"run": "run"}')
    for seed in (1, 2):
        open_run(Path(f"run/seed-{seed}"))
        Path(f"run/seed-{seed}/results.json").write_text(results)
    with pytest.raises(UsageError, match=rf"best seed of run: run/seed-1/results\.json has {missing}"):
        best_seed("run")


@pytest.mark.parametrize(("metric", "best"), [("f1", 2), ("mse", 1), ("loss", 1)])
def test_best_seed_has_the_highest_score_or_the_lowest_error(metric: str, best: int) -> None:
    open_run(Path("run"))
    Path("run/results.json").write_text('{"run": "run"}')
    for seed in (1, 2):
        open_run(Path(f"run/seed-{seed}"))
        results = {"run": "run", "best_by": metric, "metrics": {"validation": {metric: float(seed)}}}
        Path(f"run/seed-{seed}/results.json").write_text(json.dumps(results))
    assert best_seed("run") == f"run/seed-{best}"


def test_copy_of_a_seed_is_not_a_seed() -> None:
    for name in ("run", "run/seed-1", "run/seed-10", "run/seed-2", "run/seed-2-copy", "run/seed-best"):
        open_run(Path(name))
    assert seed_runs("run") == ["run/seed-1", "run/seed-2", "run/seed-10"]


def test_unfinished_seeds_or_grid_are_reported_with_what_can_be_used() -> None:
    open_run(Path("new"))
    with pytest.raises(
        UsageError, match=r"new is not finished \(it has no model yet\): re-run the command that started"
    ):
        best_seed("new")
    for parent, members in (("seeds", ("seed-1", "seed-2")), ("grid", ("epochs=1", "epochs=2"))):
        if parent == "seeds":
            open_run(Path(parent))
        for member in members:
            open_run(Path(parent, member))
        with pytest.raises(
            UsageError, match=rf"{parent} is not finished \(0 of its 2 runs finished\): re-run the command"
        ):
            best_seed(parent)
        Path(parent, members[0], "results.json").write_text("{}")
        with pytest.raises(
            UsageError, match=rf"1 of its 2 runs finished.*, or choose one of them: {parent}/{members[0]}$"
        ):
            best_seed(parent)
    Path("grid/results.json").write_text('{"tasks": {}}')
    with pytest.raises(UsageError, match="grid holds 2 runs with a model each; choose one of them: grid/epochs=1"):
        best_seed("grid")
    Path("run").mkdir()
    Path("run/model").mkdir()
    assert best_seed("run") == "run"  # a run in progress: its best model so far
    assert best_seed("bert-base-cased") == "bert-base-cased"
