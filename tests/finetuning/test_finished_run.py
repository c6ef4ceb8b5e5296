"""Finished runs: their results are shown again only while the data are those that they were trained on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bertcli.console import Console
from bertcli.data.sources import source_fingerprint
from bertcli.errors import Interrupted, RunFolderError
from bertcli.finetuning.finished_run import check_finished_run, has_same_files
from bertcli.finetuning.run import finetune
from bertcli.recipe.load import load_recipe, recipe_task
from bertcli.recipe.schema import Recipe
from bertcli.runs.folder import RunFolder, RunOptions
from bertcli.runs.results import RunResults

from ..conftest import QUIET

OPTIONS = RunOptions(console=QUIET)
CHANGED = "the training or validation data have changed since {run} was trained.*--run, or start over with --overwrite"


def forbid_reading_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("run", "finished_run"):
        monkeypatch.setattr(f"bertcli.finetuning.{module}.set_up", lambda *_: pytest.fail("rows were read"))


def replace_in(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")


@pytest.mark.parametrize("seeds", ["1", "[1, 2]"])
def test_finished_run_is_refused_once_its_data_have_changed(
    recipe_of: Callable[..., Recipe], reviews: Path, monkeypatch: pytest.MonkeyPatch, seeds: str
) -> None:
    recipe = recipe_of(f"training.seed={seeds}", "training.max_steps=1")
    first = finetune(recipe, Path("run"), OPTIONS)
    assert first.data_fingerprint
    assert first.source_fingerprint == source_fingerprint(recipe_task(recipe))
    results = Path("run/results.json").read_bytes()
    with monkeypatch.context() as patch:
        forbid_reading_rows(patch)
        os.utime(reviews, ns=(1, 1))
        assert finetune(recipe, Path("run"), OPTIONS) == first
    reviews.write_text(f"{reviews.read_text('utf-8')}\n", "utf-8")  # other files, but the same rows
    assert finetune(recipe, Path("run"), OPTIONS) == first
    check_finished_run(recipe, Path("run"), None)
    replace_in(reviews, "the film was superb,positive", "the film was superb,negative")
    for options in (OPTIONS, RunOptions(console=QUIET, dry_run=True)):
        run = "run" if seeds == "1" or not options.dry_run else "run/seed-1"
        with pytest.raises(RunFolderError, match=CHANGED.format(run=run)):
            finetune(recipe, Path("run"), options)
    with pytest.raises(RunFolderError, match=CHANGED.format(run="run")):
        check_finished_run(recipe, Path("run"), None)
    assert Path("run/results.json").read_bytes() == results
    again = finetune(recipe, Path("run"), RunOptions(console=QUIET, overwrite=True))
    assert again.data_fingerprint != first.data_fingerprint
    assert finetune(recipe, Path("run"), OPTIONS) == again


def test_seeds_trained_on_other_data_are_refused_before_the_others_are_trained(
    recipe_of: Callable[..., Recipe], reviews: Path
) -> None:
    recipe = recipe_of("training.seed=[1, 2, 3]", "training.max_steps=1")
    finetune(recipe, Path("run"), OPTIONS)
    shutil.rmtree("run/seed-1")
    shutil.rmtree("run/seed-3")
    Path("run/results.json").unlink()
    replace_in(reviews, "vile", "grand")
    for check in (finetune, lambda recipe, run, _: check_finished_run(recipe, run, None)):
        with pytest.raises(RunFolderError, match=CHANGED.format(run="run/seed-2")):
            check(recipe, Path("run"), OPTIONS)
    assert not Path("run/seed-1").exists()


def test_finished_run_is_shown_without_its_data(
    recipe_of: Callable[..., Recipe], reviews: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of("training.max_steps=1")
    first = finetune(recipe, Path("run"), OPTIONS)
    reviews.unlink()
    assert finetune(recipe, Path("run"), RunOptions()) == first
    assert "the data of run are not here, so whether they have changed was not checked" in capsys.readouterr().err


def test_data_of_the_mirror_are_compared_by_their_rows_if_a_file_was_added(
    reviews: Path, encoder: Path, write_recipe: Callable[..., Path]
) -> None:
    folder = Path("mirror/datasets/me/reviews")
    folder.mkdir(parents=True)
    for name in ("train.csv", "test.csv"):
        shutil.copy(reviews, folder / name)
    task = "dataset: me/reviews, text_columns: [text], splits: {validation: null, extra_validation: [test]}"
    path = write_recipe(f"task: {{{task}}}\nmodel: {{name: {encoder}}}\ndata: {{max_length: 16}}\n")
    recipe, options = load_recipe(str(path), ["training.max_steps=1"]), RunOptions(Path("mirror"), console=QUIET)
    first = finetune(recipe, Path("run"), options)
    assert first.source_fingerprint is not None
    (folder / "README.md").write_text("# Reviews\n")
    assert not has_same_files([recipe], first, options.mirror, QUIET)
    assert finetune(recipe, Path("run"), options) == first
    for name in ("train.csv", "test.csv"):
        before = (folder / name).read_bytes()
        replace_in(folder / name, "vile", "grand")
        with pytest.raises(RunFolderError, match=CHANGED.format(run="run")):
            finetune(recipe, Path("run"), options)
        (folder / name).write_bytes(before)
    assert finetune(recipe, Path("run"), OPTIONS) == first  # without the mirror, there is nothing to compare


def test_runs_without_recorded_data_are_shown() -> None:
    recipe = load_recipe("sample/sentiment", ["training.max_steps=1"])
    assert source_fingerprint(recipe_task(recipe)) is None
    Path("sample").mkdir()
    Path("sample/notes.txt").write_text("not the data of the sample")
    assert source_fingerprint(recipe_task(recipe)) is None
    assert has_same_files([recipe], RunResults(run="run"), None, Console())


@pytest.mark.parametrize("key", ["model.name", "training.teacher"])
def test_finished_run_is_refused_once_the_run_it_came_from_was_trained_again(
    recipe_of: Callable[..., Recipe], key: str
) -> None:
    first = recipe_of("training.max_steps=1")
    finetune(first, Path("first"), OPTIONS)
    recipe = recipe_of(f"{key}=first", "training.max_steps=1")
    results = finetune(recipe, Path("second"), OPTIONS)
    assert results.start_models is not None
    assert finetune(recipe, Path("second"), OPTIONS) == results
    finetune(first, Path("first"), RunOptions(console=QUIET, overwrite=True))  # the same weights
    assert finetune(recipe, Path("second"), OPTIONS) == results
    finetune(recipe_of("training.max_steps=2"), Path("first"), RunOptions(console=QUIET, overwrite=True))
    for check in (finetune, lambda recipe, run, _: check_finished_run(recipe, run, None, compare_rows=True)):
        with pytest.raises(RunFolderError, match=r"the model of first has changed since second was trained .*--overwr"):
            check(recipe, Path("second"), OPTIONS)
    shutil.rmtree("first")
    assert finetune(recipe, Path("second"), OPTIONS) == results
    finetune(first, Path("first"), OPTIONS)
    finetune(recipe, Path("second"), RunOptions(console=QUIET, overwrite=True))


@pytest.mark.parametrize("key", ["model.name", "training.teacher"])
def test_run_is_not_resumed_once_the_run_it_came_from_was_trained_again(
    recipe_of: Callable[..., Recipe], stop_after: Callable[..., None], key: str
) -> None:
    finetune(recipe_of("training.max_steps=1"), Path("first"), OPTIONS)
    one, two, both = (
        recipe_of(f"{key}=first", "training.max_steps=2", f"training.seed={seeds}") for seeds in ("1", "2", "[1,2]")
    )
    finetune(one, Path("second/seed-1"), OPTIONS)
    stop_after(1)
    with pytest.raises(Interrupted):
        finetune(two, Path("second/seed-2"), OPTIONS)
    finetune(recipe_of("training.max_steps=2"), Path("first"), RunOptions(console=QUIET, overwrite=True))
    for recipe, folder, seed in ((both, "second", 1), (two, "second/seed-2", 2)):
        changed = f"the model of first has changed since second/seed-{seed} was trained .*--overwr"
        for options in (OPTIONS, RunOptions(console=QUIET, dry_run=True)):
            with pytest.raises(RunFolderError, match=changed):
                finetune(recipe, Path(folder), options)
    assert not RunFolder(Path("second")).results.is_file()
