"""The run folder is never overwritten silently."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertcli.errors import RunFolderError, UsageError
from bertcli.files import replace_folder, restore_folder, write_text
from bertcli.recipe.load import dump_recipe, load_recipe
from bertcli.runs.folder import alone_in, best_seed, chosen_run, finished_results, open_run_folder

RECIPE = dump_recipe(load_recipe("glue/rte", ["training.epochs=3", "evaluation.every_epochs=1"]))


def open_again(path: Path, recipe: str = RECIPE, overwrite: bool = False) -> list[str]:
    """What is told."""
    told: list[str] = []
    open_run_folder(path, recipe, told.append, overwrite=overwrite)
    return told


def test_the_same_recipe_takes_the_folder_up_again_also_on_other_hardware(tmp_path: Path) -> None:
    open_again(tmp_path / "run")
    for name in ("train.jsonl", "kept"):
        (tmp_path / "run" / name).touch()
    assert open_again(tmp_path / "run") == []
    (told,) = open_again(tmp_path / "run", RECIPE.replace("device: auto", "device: cpu"))
    assert told.startswith(f"{tmp_path}/run goes on with hardware.device auto → cpu; ")
    assert (tmp_path / "run" / "kept").exists()
    assert "device: cpu" in (tmp_path / "run" / "recipe.yaml").read_text()


def test_a_run_begun_before_a_key_was_known_goes_on_without_a_word(tmp_path: Path) -> None:
    open_again(tmp_path / "run", "".join(line for line in RECIPE.splitlines(True) if "token_cutoff" not in line))
    (tmp_path / "run" / "train.jsonl").touch()
    assert open_again(tmp_path / "run") == []
    assert (tmp_path / "run" / "recipe.yaml").read_text() == RECIPE


@pytest.mark.parametrize("content", ["{", "[]", '""'])
def test_results_that_cannot_be_read_are_told_with_their_folder(tmp_path: Path, content: str) -> None:
    for seed in (1, 2):
        open_again(tmp_path / "run" / f"seed-{seed}")
    broken = tmp_path / "run" / "seed-2"
    (broken / "results.json").write_text(content)
    for read in (
        lambda: best_seed(str(broken.parent)),
        lambda: chosen_run(str(broken)),
        lambda: finished_results(broken, RECIPE),
    ):
        with pytest.raises(UsageError, match=r"cannot read the run in .*seed-2: .*results\.json"):
            read()


def test_a_finished_run_keeps_the_hardware_it_was_made_on(tmp_path: Path) -> None:
    open_again(tmp_path / "run")
    (tmp_path / "run" / "results.json").touch()
    assert open_again(tmp_path / "run", RECIPE.replace("device: auto", "device: cpu")) == []
    assert (tmp_path / "run" / "recipe.yaml").read_text() == RECIPE
    assert open_again(tmp_path / "run", RECIPE.replace("auto", "cpu"), overwrite=True) == []


def test_another_recipe_is_refused_with_the_difference_and_replaced_only_when_asked(tmp_path: Path) -> None:
    open_again(tmp_path / "run")
    (tmp_path / "run" / "results.json").touch()
    other = RECIPE.replace("  epochs: 3", "  epochs: 4")
    with pytest.raises(RunFolderError, match=r"(?s)-  epochs: 3.*\+  epochs: 4.*--overwrite"):
        open_again(tmp_path / "run", other)
    open_again(tmp_path / "run", other, overwrite=True)
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_folder_that_is_no_run_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(RunFolderError, match="holds no run"):
            open_again(tmp_path, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("own", ["# mine\nextends: glue/rte\n", "extends: gone\n", "suite: [glue/rte, glue/cola]\n"])
def test_a_persons_own_recipe_is_no_run(tmp_path: Path, own: str, overwrite: bool) -> None:
    (tmp_path / "recipe.yaml").write_text(own)
    with pytest.raises(RunFolderError, match=r"holds a recipe\.yaml that no run wrote; choose another"):
        open_again(tmp_path, overwrite=overwrite)
    assert (tmp_path / "recipe.yaml").read_text() == own


def test_what_no_run_made_stays_when_a_run_is_replaced(tmp_path: Path) -> None:
    run = tmp_path / "run"
    open_again(run)
    open_again(run / "seed-1")
    for name in ("results.json", "seed-1/train.jsonl", "mine.csv", "README.md"):
        (run / name).write_text(name)
    (run / "notes").mkdir()
    open_again(run, overwrite=True)
    assert {path.name for path in run.iterdir()} == {"recipe.yaml", "mine.csv", "notes"}


def test_a_run_within_that_is_going_on_is_not_replaced(tmp_path: Path) -> None:
    open_again(tmp_path / "run")
    open_again(tmp_path / "run" / "seed-1")
    with alone_in(tmp_path / "run" / "seed-1"), pytest.raises(RunFolderError, match="seed-1 is being worked in"):
        open_again(tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "seed-1" / "recipe.yaml").is_file()


def test_a_job_that_waits_has_its_script_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run" / "slurm").mkdir(parents=True)
    open_again(tmp_path / "run")
    assert (tmp_path / "run" / "recipe.yaml").is_file()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(RunFolderError, match="is a file"):
        open_again(tmp_path / "run")
    with pytest.raises(RunFolderError):
        open_again(tmp_path / "run" / "inner")


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "before")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a", "\ud800")
    assert (tmp_path / "a").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_replacing_that_was_cut_off_is_undone(tmp_path: Path) -> None:
    target = tmp_path / "model"
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".model.old" / "weights").write_text("earlier")
    restore_folder(target)
    assert (target / "weights").read_text() == "earlier"
    restore_folder(target)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
