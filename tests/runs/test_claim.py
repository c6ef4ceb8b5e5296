"""The run folder is never overwritten silently."""

from __future__ import annotations

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from bertcli.errors import RunFolderError
from bertcli.files import file_lock, replace_folder, restore_folder, write_manifest, write_text
from bertcli.recipe.load import dump_recipe, load_recipe
from bertcli.runs.claim import claim_run, exclusive_lock
from bertcli.runs.folder import LOG_HEADER

RECIPE = dump_recipe(load_recipe("glue/rte", ["training.epochs=3", "evaluation.every_epochs=1"]))


def open_run(path: Path, recipe_text: str = RECIPE, *, overwrite: bool = False) -> list[str]:
    """Claim and open a run folder; return the messages."""
    messages: list[str] = []
    claim_run(path, recipe_text, overwrite=overwrite).open(messages.append)
    return messages


def test_run_is_resumed_with_the_same_recipe_also_on_other_hardware(tmp_path: Path) -> None:
    run = tmp_path / "run"
    open_run(run)
    for name in ("train.jsonl", "kept"):
        (run / name).touch()
    assert claim_run(run, RECIPE).can_resume
    assert open_run(run) == []
    (message,) = open_run(run, RECIPE.replace("device: auto", "device: cpu"))
    assert message.startswith(f"resuming {run} with hardware.device auto → cpu; ")
    assert (run / "kept").exists()
    assert "device: cpu" in (run / "recipe.yaml").read_text()


def test_run_is_resumed_silently_if_its_recipe_lacks_a_newer_key(tmp_path: Path) -> None:
    open_run(tmp_path / "run", "".join(line for line in RECIPE.splitlines(True) if "token_cutoff" not in line))
    (tmp_path / "run" / "train.jsonl").touch()
    assert open_run(tmp_path / "run") == []
    assert (tmp_path / "run" / "recipe.yaml").read_text() == RECIPE


def test_finished_run_keeps_its_recipe(tmp_path: Path) -> None:
    run = tmp_path / "run"
    open_run(run)
    (run / "results.json").write_text('{"run": "run"}')
    claim = claim_run(run, RECIPE.replace("device: auto", "device: cpu"))
    assert claim.results is not None
    assert not claim.can_resume
    assert open_run(run, claim.recipe_text) == []
    assert (run / "recipe.yaml").read_text() == RECIPE
    assert open_run(run, RECIPE.replace("auto", "cpu"), overwrite=True) == []
    assert not (run / "results.json").exists()


def test_run_of_another_recipe_is_refused_with_the_difference_and_replaced_with_overwrite(tmp_path: Path) -> None:
    run = tmp_path / "run"
    open_run(run)
    (run / "results.json").touch()
    other_recipe = RECIPE.replace("  epochs: 3", "  epochs: 4")
    with pytest.raises(RunFolderError, match=r"(?s)-  epochs: 3.*\+  epochs: 4.*--overwrite"):
        open_run(run, other_recipe)
    claim = claim_run(run, other_recipe, overwrite=True)
    assert (run / "results.json").exists()  # a claim alone writes nothing
    claim.open(print)
    assert not (run / "results.json").exists()


def test_folder_that_is_not_a_run_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(RunFolderError, match="is not a run"):
            open_run(tmp_path, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "recipe_text", ["# mine\nextends: glue/rte\n", "extends: gone\n", "suite: [glue/rte, glue/cola]\n"]
)
def test_recipe_written_by_a_person_is_not_a_run(tmp_path: Path, recipe_text: str, overwrite: bool) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe_text)
    with pytest.raises(RunFolderError, match=r"holds a recipe\.yaml that no run wrote; choose another"):
        open_run(tmp_path, overwrite=overwrite)
    assert (tmp_path / "recipe.yaml").read_text() == recipe_text


def test_overwrite_removes_only_files_of_runs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    open_run(run)
    open_run(run / "seed-1")
    for name in ("results.json", "seed-1/train.jsonl", "mine.csv", "README.md"):
        (run / name).write_text(name)
    (run / "notes").mkdir()
    open_run(run, overwrite=True)
    assert {path.name for path in run.iterdir()} == {"recipe.yaml", "mine.csv", "notes"}


def test_overwrite_keeps_what_a_person_added_to_a_run_or_seed() -> None:
    open_run(Path("run"))
    for folder in ("run/seed-1", "run/seed-2", "run/another", "run/seed-1-copy"):
        open_run(Path(folder))
        Path(folder, "train.jsonl").touch()
    Path("run/train.jsonl").touch()
    Path("run/seed-1/notes.txt").write_text("mine")
    open_run(Path("run"), overwrite=True)
    files = {path.relative_to("run").as_posix() for path in Path("run").rglob("*") if path.is_file()}
    copies = {f"{name}/{file}" for name in ("another", "seed-1-copy") for file in ("recipe.yaml", "train.jsonl")}
    assert files == {"recipe.yaml", "seed-1/notes.txt"} | copies


def test_overwrite_keeps_predictions_that_a_person_wrote() -> None:
    written = ["validation.jsonl", "topics-validation.jsonl"]  # the second by a multitask run
    for folder in ("run", "run/seed-1", "run/seed-2"):
        open_run(Path(folder))
        Path(folder, "model/topics").mkdir(parents=True)
        Path(folder, "predictions").mkdir()
        for name in (*written, "new.csv", "my-validation.jsonl"):
            Path(folder, "predictions", name).write_text(name)
    open_run(Path("run"), overwrite=True)
    open_run(Path("run/seed-2"))
    files = {path.as_posix() for path in Path("run").rglob("*") if path.is_file()}
    kept = {f"predictions/{name}" for name in ("new.csv", "my-validation.jsonl")}
    runs = {"run", "run/seed-1", "run/seed-2"}
    assert files == {f"{run}/{name}" for run in runs for name in kept} | {"run/recipe.yaml", "run/seed-2/recipe.yaml"}


def test_overwrite_is_refused_if_a_person_added_files_to_a_model() -> None:
    for folder in ("run", "run/seed-1"):
        open_run(Path(folder))
        Path(folder, "model").mkdir()
        Path(folder, "model/config.json").write_text("{}")
        write_manifest(Path(folder, "model"))
    Path("run/seed-1/model/onnx").mkdir()
    mine = Path("run/seed-1/model/onnx/model.onnx")
    mine.write_text("mine")
    with pytest.raises(RunFolderError, match=rf"{mine} was not written by the run; move it out of run/seed-1/model"):
        claim_run(Path("run"), RECIPE, overwrite=True)
    assert Path("run/recipe.yaml").is_file()
    mine.unlink()
    open_run(Path("run"), overwrite=True)
    assert {path.name for path in Path("run").iterdir()} == {"recipe.yaml"}


def test_overwrite_keeps_files_that_a_person_added_to_the_folders_of_a_run() -> None:
    written = [
        *(f"slurm/{name}" for name in ("job.sh", "gather-2.sh", "123.log", "124_0.log")),
        *("trackers/bertcli/events.out.tfevents.1.host.2.0", "checkpoints/step-00000004/progress.json", "eval.jsonl"),
        *(".model-step-00000004/config.json", ".model.old/config.json", "checkpoints/.step-00000004.tmp/optimizer.pt"),
    ]
    mine = [
        *("slurm/notes.txt", "slurm/my-job.sh", "trackers/mine/notes.md", "trackers/aim.db"),
        "log.txt",
        "summary.csv",
    ]
    for folder in ("run/seed-1", "run"):
        open_run(Path(folder))
        for name in (*written, *mine):
            Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
            Path(folder, name).write_text(name)
    open_run(Path("run"), overwrite=True)
    files = {path.as_posix() for path in Path("run").rglob("*") if path.is_file()}
    kept = {f"{folder}/{name}" for folder in ("run", "run/seed-1") for name in mine}
    assert files == {*kept, "run/recipe.yaml"}
    assert not any("bertcli" in path.name or "checkpoints" in path.name for path in Path("run").rglob("*"))


def test_run_starts_in_a_folder_with_files_that_overwrite_kept() -> None:
    for name in ("slurm/notes.txt", "trackers/notes.txt", "predictions/new.csv", "log.txt"):
        Path("run", name).parent.mkdir(parents=True, exist_ok=True)
        Path("run", name).touch()
    open_run(Path("run"))
    assert Path("run/recipe.yaml").is_file()


def test_overwrite_removes_the_log_of_a_run_but_not_one_that_a_person_wrote() -> None:
    for text, is_kept in ((f"{LOG_HEADER}warning: …", False), ("my output\n", True), ("", True)):
        open_run(Path("run"))
        Path("run/train.jsonl").touch()
        Path("run/log.txt").write_text(text)
        open_run(Path("run"), overwrite=True)
        assert Path("run/log.txt").exists() == is_kept


@pytest.mark.parametrize("name", ["notes.txt", "step-00000004-good/optimizer.pt", "step-00000004/notes.txt"])
def test_overwrite_is_refused_if_a_person_added_files_to_checkpoints(name: str) -> None:
    open_run(Path("run"))
    checkpoint = Path("run/checkpoints/step-00000004")
    checkpoint.mkdir(parents=True)
    (checkpoint / "progress.json").write_text("{}")
    write_manifest(checkpoint)
    mine = Path("run/checkpoints", name)
    mine.parent.mkdir(exist_ok=True)
    mine.touch()
    with pytest.raises(
        RunFolderError, match=r"run/checkpoints/.* was not written by the run; move it out of run/checkpoints"
    ):
        claim_run(Path("run"), RECIPE, overwrite=True)


def test_overwrite_keeps_a_recipe_and_model_that_no_run_wrote() -> None:
    Path("mine/model").mkdir(parents=True)
    Path("mine/recipe.yaml").write_text("# mine\nextends: glue/rte\n")
    with pytest.raises(RunFolderError, match=r"holds a recipe\.yaml that no run wrote"):
        open_run(Path("mine"), overwrite=True)
    assert Path("mine/model").is_dir()


def test_overwrite_is_refused_while_a_seed_is_in_progress(tmp_path: Path) -> None:
    open_run(tmp_path / "run")
    open_run(tmp_path / "run" / "seed-1")
    with exclusive_lock(tmp_path / "run" / "seed-1"), pytest.raises(RunFolderError, match="seed-1 is in use by"):
        open_run(tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "seed-1" / "recipe.yaml").is_file()


def test_lock_names_its_owner_and_leaves_nothing(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path):
        with pytest.raises(RunFolderError, match=f"is in use by process {os.getpid()} on .*; wait until it ends"):
            exclusive_lock(tmp_path).__enter__()
        assert (tmp_path / ".lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_lock_file_removed_by_its_holder_is_opened_again_by_those_who_wait(tmp_path: Path) -> None:
    path, waits, inside, numbers_inside = tmp_path / ".lock", Event(), list[int](), list[int]()

    def work(number: int) -> None:
        with file_lock(path, lambda owner: waits.set()):
            inside.append(number)
            waits.wait(timeout=20)  # until another thread has opened the file that this one removes
            time.sleep(0.02)
            numbers_inside.append(len(inside))
            inside.remove(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    assert numbers_inside == [1] * 8
    assert list(tmp_path.iterdir()) == []


def test_lock_of_another_process_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with file_lock(path, pytest.fail):
        path.unlink()  # as `rm -r` of the run folder does
        path.write_text("process 1 on another host")
    assert path.exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_system_without_locks_lets_everyone_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with exclusive_lock(tmp_path), exclusive_lock(tmp_path):
        pass


def test_folder_with_the_script_of_a_queued_job_is_fresh(tmp_path: Path) -> None:
    (tmp_path / "run" / "slurm").mkdir(parents=True)
    open_run(tmp_path / "run")
    assert (tmp_path / "run" / "recipe.yaml").is_file()


def test_file_in_place_of_the_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(RunFolderError, match="is a file"):
        open_run(tmp_path / "run")
    with pytest.raises(RunFolderError):
        open_run(tmp_path / "run" / "inner")


def test_failed_write_leaves_the_file_unchanged(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "before")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a", "\ud800")
    assert (tmp_path / "a").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_restore_folder_undoes_an_interrupted_replacement(tmp_path: Path) -> None:
    target = tmp_path / "model"
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".model.old" / "weights").write_text("earlier")
    restore_folder(target)
    assert (target / "weights").read_text() == "earlier"
    restore_folder(target)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_replace_folder_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_overwrite_replaces_runs_of_single_seeds(tmp_path: Path) -> None:
    open_run(tmp_path / "run" / "seed-1")
    (tmp_path / "run" / "seed-1" / "train.jsonl").touch()
    assert open_run(tmp_path / "run", overwrite=True) == []
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.yaml"]


def test_claim_is_checked_again_when_it_is_opened(tmp_path: Path) -> None:
    run = tmp_path / "run"
    claim = claim_run(run, dump_recipe(load_recipe("sample/sentiment", ["training.learning_rate=1e-2"])))
    other = dump_recipe(load_recipe("sample/sentiment"))
    folder = claim_run(run, other).open(print)
    folder.train_history.write_text("{}\n")
    with pytest.raises(RunFolderError, match="a run created with a different recipe"):
        claim.open(print)
    assert folder.recipe.read_text() == other
