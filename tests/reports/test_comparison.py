"""Run comparison: best scores, standard deviation over seeds, and steps to the lowest best score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bertcli.cli.main import app
from bertcli.errors import UsageError
from bertcli.metrics.scores import best_value
from bertcli.reports.charts import trials_chart
from bertcli.reports.comparison import compare_runs, comparison_table, read_runs
from bertcli.runs.folder import RunFolder


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_run(name: str, scores: list[float], metric: str = "f1", **rest: Any) -> str:
    """A finished run with an evaluation every ten steps."""
    folder = RunFolder(Path(name))
    folder.path.mkdir(parents=True)
    folder.recipe.write_text("task: glue/sst2\n")
    best = best_value(metric, scores)
    results = {
        "run": name,
        "task": "a task",
        "best_by": metric,
        "metrics": {"validation": {metric: best}},
        "model": None,
    }
    folder.results.write_text(json.dumps(results | {"num_train_examples": 50, "train_seconds": 60.0} | rest))
    records = [{"step": 10 * index, f"eval/validation/{metric}": score} for index, score in enumerate(scores, start=1)]
    folder.eval_history.write_text("".join(json.dumps(record) + "\n" for record in records))
    return name


def test_compare_runs_reports_steps_to_the_lowest_best_score() -> None:
    names = [write_run("weak", [0.1, 0.5, 0.6, 0.4]), write_run("strong", [0.3, 0.7, 0.9], model="encoder")]
    comparison = compare_runs(read_runs(names))
    assert comparison["weakest"] == 0.6
    weak, strong = comparison["runs"]
    assert (weak["mean"], weak["sd"], weak["steps_to_weakest"], weak["start"]) == (0.6, None, 30, "scratch")
    assert (strong["mean"], strong["steps_to_weakest"], strong["start"]) == (0.9, 20, "encoder")
    assert "| strong | encoder | 50       | 0.9000 | 20" in comparison_table(comparison)
    assert "steps to 0.6000" in comparison_table(comparison)


def test_compare_runs_averages_over_seeds() -> None:
    write_run("seeds/seed-1", [0.2, 0.8])
    write_run("seeds/seed-2", [0.6, 0.4])
    run = compare_runs(read_runs(["seeds"]))["runs"][0]
    assert run["mean"] == pytest.approx(0.7)
    assert run["sd"] == pytest.approx(0.2 / 2**0.5)
    assert run["steps_to_weakest"] == 15


@pytest.mark.parametrize("metric", ["loss", "brier", "mae"])
def test_compare_runs_prefers_lower_values_of_a_loss_or_an_error(metric: str) -> None:
    runs = read_runs([write_run("weak", [3.0, 2.5], metric), write_run("strong", [2.7, 2.4, 1.0], metric)])
    comparison = compare_runs(runs)
    assert comparison["weakest"] == 2.5
    assert [run["steps_to_weakest"] for run in comparison["runs"]] == [20, 20]


def test_compare_runs_rejects_different_tasks_and_metrics() -> None:
    with pytest.raises(UsageError, match="no finished run in gone"):
        compare_runs(read_runs(["gone"]))
    with pytest.raises(UsageError, match="one: a task by f1, other: a task by accuracy"):
        compare_runs(read_runs([write_run("one", [0.5]), write_run("other", [0.5], "accuracy")]))
    with pytest.raises(UsageError, match="third: another by f1"):
        compare_runs(read_runs(["one", write_run("third", [0.5], task="another")]))


def test_read_runs_rejects_a_suite_among_others() -> None:
    Path("all").mkdir()
    Path("all/results.json").write_text('{"run": "all", "table": [], "tasks": {}, "failed": {}}')
    with pytest.raises(UsageError, match="all holds several runs; pass it on its own"):
        read_runs(["all", write_run("one", [0.5])])


def test_report_checks_the_folder_of_the_page_first() -> None:
    result = CliRunner().invoke(app, ["report", write_run("one", [0.5]), "--html", "nodir/x.html"])
    assert result.exit_code == 2
    assert "found no folder nodir" in result.stderr


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"best_by": None}, "one: its results.json has no best_by"),
        ({"metrics": {}}, "one: its results.json has no metrics.validation.f1"),
        ({"metrics": {"test": {"f1": 1.0}}}, "one: its results.json has no metrics.validation.f1"),
        ({"metrics": None}, "cannot read the run in one: metrics: "),
        ({"metrics": {"validation": {"f1": {"mean": 1, "sd": 0, "values": []}}}}, "metrics.validation.f1"),
        ({"train_seconds": None}, "cannot read the run in one: train_seconds: "),
        ({"table": [], "points": {}}, "cannot read the run in one: table: "),
        ({"metrics": {"validation": {"f1": 0.9}}}, "one/eval.jsonl has no evaluation with f1 0.9000"),
    ],
)
def test_report_names_the_file_and_key_that_are_missing(change: dict[str, Any], problem: str) -> None:
    write_run("one", [0.5], **change)
    for arguments in (["one"], ["one", write_run("two", [0.9])]):
        result = CliRunner().invoke(app, ["report", *arguments, "--quiet"])
        assert result.exit_code == 2, result.stderr
        assert problem in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_report_of_results_without_counts_says_unknown() -> None:
    write_run("one", [0.5], num_train_examples=None)
    result = CliRunner().invoke(app, ["report", "one"])
    assert result.exit_code == 0, result.stderr
    assert "| one | scratch |          | 0.5000 |" in result.stdout
    assert "unknown" in Path("one/report.html").read_text()


def test_trials_chart_shows_the_best_complete_score_so_far() -> None:
    chart = trials_chart({0: (0.5, False), 1: (0.9, True), 3: (0.4, False), 4: (0.6, False)}, "accuracy")
    assert {series.name: series.points for series in chart.series} == {
        "complete": [(0.0, 0.5), (3.0, 0.4), (4.0, 0.6)],
        "pruned": [(1.0, 0.9)],
        "best so far": [(0.0, 0.5), (3.0, 0.5), (4.0, 0.6)],
    }
    (complete, best) = trials_chart({0: (0.5, False), 1: (0.7, False)}, "loss").series
    assert (complete.points[1], best.points[1]) == ((1.0, 0.7), (1.0, 0.5))
