"""Cross-validation: each training row is predicted by the model that was trained without it, and all are scored."""

from __future__ import annotations

import json
import shutil
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bertcli.cli.main import app
from bertcli.commands.evaluate import evaluate
from bertcli.errors import DataError, RunFolderError, TrainingError, UsageError
from bertcli.experiments.cross_validation import cross_validate
from bertcli.experiments.grid import finetune_grid
from bertcli.recipe.expansion import Grid
from bertcli.recipe.load import load_recipe
from bertcli.recipe.schema import Recipe
from bertcli.recipe.suite import load_finetuning
from bertcli.runs.folder import RunFolder, RunOptions, check_not_run_output
from bertcli.runs.members import best_seed
from bertcli.runs.results import CollectionResults, SeedScore

from ..conftest import QUIET

OPTIONS = RunOptions(console=QUIET)
WORDS = ["training.max_steps=3", "training.learning_rate=5e-3", "data.max_length=32", "evaluation.every_epochs=null"]


def write_recipe(task: str, encoder: Path) -> None:
    Path("mine.yaml").write_text(f"task: {{{task}, text_columns: [text]}}\nmodel: {{name: {encoder}}}\n", "utf-8")


def load(*overrides: str) -> Recipe:
    return load_recipe("mine.yaml", [*WORDS, *overrides])


def predictions(folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "predictions/out-of-fold.jsonl").read_text("utf-8").splitlines()]


def test_each_training_row_is_predicted_once_and_counts_once_in_the_pooled_score(
    reviews: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recipe("files: {train: reviews.csv, validation: reviews.csv}, metrics: [accuracy, f1, roc_auc]", encoder)
    recipe = load("data.folds=3")
    results = cross_validate(recipe, Path("cv"), OPTIONS)
    lines = predictions("cv")
    texts = [row.split(",")[0] for row in reviews.read_text("utf-8").splitlines()[1:]]
    assert [line["texts"]["text"] for line in lines] == texts
    assert [line["row"] for line in lines] == [line["row_in_file"] for line in lines] == [*range(1, 41)]
    sizes = Counter(line["fold"] for line in lines)
    assert sorted(sizes.values()) == [13, 13, 14]
    for fold in sizes:
        written = (RunFolder(Path(f"cv/fold-{fold}")).predictions / "validation.jsonl").read_text("utf-8").splitlines()
        of_fold = [{**line, "row": 0} for line in lines if line["fold"] == fold]
        assert of_fold == [{"fold": fold} | json.loads(line) | {"row": 0} for line in written]

    accuracy = results.metrics["validation"]["accuracy"]
    assert isinstance(accuracy, SeedScore)
    assert accuracy.sd == statistics.stdev(accuracy.values)
    pooled = results.metrics["out_of_fold"]
    weighted = sum(sizes[fold] * score for fold, score in enumerate(accuracy.values, start=1)) / 40
    assert pooled["accuracy"] == pytest.approx(weighted)
    assert pooled["accuracy"] == statistics.fmean(line["right"] for line in lines)
    assert pooled.keys() == {"accuracy", "f1", "roc_auc"}
    assert [row["fold"] for row in results.table] == [
        *("fold-1", "fold-2", "fold-3", "mean ± sd", "out of fold", "95 % interval")
    ]
    assert [row["rows"] for row in results.table] == [*(str(sizes[fold]) for fold in (1, 2, 3)), "40", "40", ""]
    assert RunFolder(Path("cv")).read_results() == results
    page = Path("cv/report.html").read_text("utf-8")
    assert "3 folds of" in page
    assert page.count('href="./fold-') == 3
    assert evaluate("cv/fold-2", console=QUIET).values("accuracy") == [accuracy.values[1]]
    with pytest.raises(UsageError, match=r"cv is a cross-validation of 3 models.* cv/fold-1/recipe\.yaml data\.folds"):
        best_seed("cv")
    with pytest.raises(UsageError, match=r"out-of-fold\.jsonl is a file of the run in .*cv; choose another --output"):
        check_not_run_output(Path("cv/predictions/out-of-fold.jsonl"))

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bertcli.experiments.cross_validation.write_json_lines", stop)
        for name in ("results.json", "README.md", "report.html", "predictions/out-of-fold.jsonl"):
            Path("cv", name).unlink()
        with pytest.raises(KeyboardInterrupt):
            cross_validate(recipe, Path("cv"), OPTIONS)
    assert cross_validate(recipe, Path("cv"), OPTIONS) == results
    assert predictions("cv") == lines

    before, written = Path("cv/predictions/out-of-fold.jsonl").read_bytes(), Path("cv/fold-1/results.json").stat()
    shutil.rmtree("cv/fold-2")
    again = cross_validate(recipe, Path("cv"), OPTIONS)
    assert again.metrics == results.metrics
    assert Path("cv/predictions/out-of-fold.jsonl").read_bytes() == before
    assert Path("cv/fold-1/results.json").stat() == written

    with reviews.open("a", encoding="utf-8") as file:
        file.write("one more film,positive\n")
    for unfinished in ("nothing", "fold-2"):
        shutil.rmtree(f"cv/{unfinished}", ignore_errors=True)
        with pytest.raises(
            RunFolderError, match="the training or validation data have changed since cv/fold-1 was trained"
        ):
            cross_validate(recipe, Path("cv"), OPTIONS)
    assert not Path("cv/fold-2").exists()
    assert Path("cv/predictions/out-of-fold.jsonl").read_bytes() == before


def test_rows_of_several_files_are_grouped_and_listed_with_their_file_and_id(
    write_csv: Callable[..., Path], encoder: Path
) -> None:
    rows: list[list[object]] = [[f"text {row}", row / 10, f"author {row // 3}", f"id-{row}"] for row in range(20)]
    for name, part in (("b.csv", rows[:12]), ("a.csv", rows[12:])):
        write_csv(name, ["text", "label", "author", "name"], part)
    task = "files: {train: [b.csv, a.csv]}, problem: regression, group_by: author, id_column: name, metrics: [mse]"
    write_recipe(task, encoder)
    results = cross_validate(load("data.folds=2", "training.max_steps=1"), Path("cv"), OPTIONS)
    lines = predictions("cv")
    assert [(line["row"], line["id"]) for line in lines] == [(row + 1, f"id-{row}") for row in range(20)]
    assert [(Path(line["file"]).name, line["row_in_file"]) for line in lines[10:14]] == [
        *(("b.csv", 11), ("b.csv", 12), ("a.csv", 1), ("a.csv", 2))
    ]
    assert len({(row // 3, line["fold"]) for row, line in enumerate(lines)}) == 7
    error = statistics.fmean((line["gold"] - line["predicted"]) ** 2 for line in lines)
    assert results.metrics["out_of_fold"]["mse"] == pytest.approx(error, rel=1e-4)


def test_labels_rarer_than_folds_are_named_and_rows_that_cannot_be_divided_are_refused_before_training(
    write_csv: Callable[..., Path], encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ["a", "b", "c"] * 3 + ["a", "b", "rare"] * 2
    write_csv("rows.csv", ["text", "label"], [[f"text {row}", label] for row, label in enumerate(labels)])
    write_recipe("files: {train: rows.csv}", encoder)
    results = cross_validate(load("data.folds=5"), Path("cv"), RunOptions(dry_run=True))
    assert results.failed == {}
    said = " ".join(capsys.readouterr().err.split())
    assert "found labels with fewer rows than the 5 folds: rare (2), c (3). Some folds are scored without them" in said
    assert "15 training rows in 5 folds, stratified by label" in said
    with pytest.raises(DataError, match=r"rows\.csv: found 15 training rows, expected at least 16.* lower data\.folds"):
        cross_validate(load("data.folds=16"), Path("cv"), OPTIONS)
    with pytest.raises(DataError, match="found at most 5 rows of a label, expected at least 6"):
        cross_validate(load("data.folds=6"), Path("cv"), OPTIONS)
    assert not Path("cv").exists()


def test_failed_fold_leaves_no_results_of_the_others(
    reviews: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bertcli.experiments import cross_validation

    write_recipe("files: {train: reviews.csv}", encoder)
    finetune = cross_validation.finetune

    def fail(recipe: Recipe, run: Path, options: RunOptions) -> Any:
        if run.name == "fold-1":
            raise TrainingError("no memory")
        return finetune(recipe, run, options)

    monkeypatch.setattr(cross_validation, "finetune", fail)
    with pytest.raises(TrainingError, match="1 of 2 folds failed: fold-1"):
        cross_validate(load("data.folds=2"), Path("cv"), OPTIONS)
    assert Path("cv/fold-2/results.json").is_file()
    assert not Path("cv/results.json").exists()
    monkeypatch.undo()
    monkeypatch.chdir(reviews.parent)
    cross_validate(load("data.folds=2"), Path("cv"), OPTIONS)
    monkeypatch.setattr(cross_validation, "finetune", fail)
    changed = load("data.folds=2", "training.learning_rate=1e-3")
    with pytest.raises(TrainingError, match="1 of 2 folds failed: fold-1"):
        cross_validate(changed, Path("cv"), replace(OPTIONS, overwrite=True))
    assert not Path("cv/results.json").exists()  # which had the scores of the earlier folds
    assert not Path("cv/predictions/out-of-fold.jsonl").exists()


def test_grid_chooses_the_point_with_the_best_mean_over_the_folds(reviews: Path, encoder: Path) -> None:
    write_recipe("files: {train: reviews.csv}", encoder)
    words = ["data.folds=2", "training.learning_rate=[1e-12, 2e-2]", "evaluation.best_by=loss", "training.max_steps=8"]
    grid = load_finetuning("mine.yaml", [*WORDS, *words])
    assert isinstance(grid, Grid)
    for _ in range(2):  # the second time, everything is finished
        results = finetune_grid(grid, Path("grid"), OPTIONS)
    assert results.points is not None
    means = {name: point.mean("loss") for name, point in results.points.items()}
    assert results.chosen == min(means, key=lambda name: means[name])
    assert [row["folds"] for row in results.table] == ["2", "2"]
    for name, point in results.points.items():
        assert isinstance(point, CollectionResults)
        assert point.members == ["fold-1", "fold-2"]
        assert len(predictions(f"grid/{name}")) == 40
    assert results.folds is None
    result = CliRunner().invoke(app, ["report", *(f"grid/{name}" for name in means), "--html", "page.html"])
    assert result.exit_code == 0, result.output
    assert "training.learning_rate" in Path("page.html").read_text("utf-8")
    assert "data.fold" not in Path("page.html").read_text("utf-8")
    result = CliRunner().invoke(app, ["predict", "grid", "--text", "fine"])
    assert f"grid/{results.chosen} is a cross-validation of 2 models" in result.stderr
