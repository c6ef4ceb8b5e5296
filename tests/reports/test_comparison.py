"""Runs side by side: best score, its spread over seeds, and how soon each was as good as the weakest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bertcli.cli.main import app
from bertcli.errors import UsageError
from bertcli.reports.comparison import compare_runs, comparison_table, read_runs
from bertcli.runs.folder import RunFolder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(name: str, scores: list[float], metric: str = "f1", **rest: Any) -> str:
    """A finished run with an evaluation every ten steps."""
    folder = RunFolder(Path(name))
    folder.path.mkdir(parents=True)
    folder.recipe.write_text("task: glue/sst2\n")
    best = min(scores) if metric == "loss" else max(scores)
    results = {"task": "a task", "best_by": metric, "metrics": {"validation": {metric: best}}, "model": None}
    folder.results.write_text(json.dumps(results | {"num_train_examples": 50, "train_seconds": 60.0} | rest))
    records = [{"step": 10 * at, f"eval/validation/{metric}": score} for at, score in enumerate(scores, start=1)]
    folder.eval_history.write_text("".join(json.dumps(record) + "\n" for record in records))
    return name


def test_each_run_is_told_with_the_steps_to_what_the_weakest_reached() -> None:
    found = compare_runs(
        read_runs([made("weak", [0.1, 0.5, 0.6, 0.4]), made("strong", [0.3, 0.7, 0.9], model="encoder")])
    )
    assert found["weakest"] == 0.6
    weak, strong = found["runs"]
    assert (weak["mean"], weak["sd"], weak["steps_to_weakest"], weak["start"]) == (0.6, None, 30, "scratch")
    assert (strong["mean"], strong["steps_to_weakest"], strong["start"]) == (0.9, 20, "encoder")
    assert "| strong | encoder | 50       | 0.9000 | 20" in comparison_table(found)
    assert "steps to 0.6000" in comparison_table(found)


def test_seeds_are_averaged_and_each_reaches_the_weakest() -> None:
    made("seeds/seed-1", [0.2, 0.8])
    made("seeds/seed-2", [0.6, 0.4])
    line = compare_runs(read_runs(["seeds"]))["runs"][0]
    assert line["mean"] == pytest.approx(0.7)
    assert line["sd"] == pytest.approx(0.2 / 2**0.5)
    assert line["steps_to_weakest"] == 15


def test_a_lower_loss_is_better() -> None:
    found = compare_runs(read_runs([made("weak", [3.0, 2.5], "loss"), made("strong", [2.7, 2.4, 1.0], "loss")]))
    assert found["weakest"] == 2.5
    assert [line["steps_to_weakest"] for line in found["runs"]] == [20, 20]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UsageError, match="no finished run in gone"):
        compare_runs(read_runs(["gone"]))
    with pytest.raises(UsageError, match="one: a task by f1, other: a task by accuracy"):
        compare_runs(read_runs([made("one", [0.5]), made("other", [0.5], "accuracy")]))
    with pytest.raises(UsageError, match="third: another by f1"):
        compare_runs(read_runs(["one", made("third", [0.5], task="another")]))


def test_a_suite_is_told_to_be_named_alone() -> None:
    Path("all").mkdir()
    Path("all/results.json").write_text('{"table": [], "tasks": {}, "failed": {}}')
    with pytest.raises(UsageError, match="all is a grid or a suite; name it alone"):
        read_runs(["all", made("one", [0.5])])


def test_a_page_without_a_folder_is_told_before_anything() -> None:
    result = CliRunner().invoke(app, ["report", made("one", [0.5]), "--html", "nodir/x.html"])
    assert result.exit_code == 2
    assert "found no folder nodir" in result.stderr
