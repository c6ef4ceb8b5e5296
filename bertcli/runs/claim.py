"""Claim a run folder for a run: fresh, to be resumed, or finished; and remove an earlier run from it."""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bertcli.errors import RecipeError, RunFolderError
from bertcli.files import file_lock, files_outside_manifest, nearest_folder, write_text
from bertcli.recipe.catalogue import compare_recipe_texts
from bertcli.recipe.load import dump_recipe, load_single_recipe
from bertcli.recipe.member_names import SEED_NAME
from bertcli.recipe.schema import RESUME_MAY_CHANGE
from bertcli.runs.folder import CHECKPOINTS, LOCK, LOG_HEADER, MODEL_LEFTOVERS, RUN_FILES, SEARCH, SUMMARY, RunFolder
from bertcli.runs.results import RunResults

# Files that the manifest of a model lacks if the run was interrupted while it tuned thresholds or calibrated.
REWRITTEN = re.compile(r"config\.json|model\.safetensors|\.(?:config\.json|model\.safetensors)\.[0-9a-f]{8}")


@dataclass(frozen=True)
class RunClaim:
    """A run folder that a run of `recipe_text` may use: fresh, to be resumed, or already finished (`results`)."""

    folder: RunFolder
    recipe_text: str
    can_resume: bool = False
    results: RunResults | None = None
    overwrite: bool = False

    def open(self, say: Callable[[str], None]) -> RunFolder:
        """Create the folder and write `recipe.yaml`; a finished run is left unchanged.

        Args:
            say: called with the keys that differ from the recipe of the run that is resumed.

        Raises:
            RunFolderError: if the folder cannot be written, `overwrite` would remove a run in progress, or a run with a
                different recipe has used the folder since it was claimed.
            UsageError: if the results of a run that has finished there since cannot be read.
        """
        path, folder = self.folder.path, self.folder
        if self.results is not None:
            return folder
        # Since the claim was made, which may be minutes ago, another run may have used the folder.
        current = claim_run(path, self.recipe_text, overwrite=self.overwrite)
        if current.results is not None:
            return folder
        if current.can_resume:
            changes = compare_recipe_texts(*map(_first_recipe, (_resolved_text(folder.recipe), self.recipe_text)))
            if changes:
                listed = ", ".join(f"{key} {before} → {now}" for key, before, now in changes)
                say(f"resuming {path} with {listed}; without dropout, results stay the same up to rounding")
        try:
            if self.overwrite and path.is_dir():
                remove_run(path)
            path.mkdir(parents=True, exist_ok=True)
            write_text(folder.recipe, self.recipe_text)
        except OSError as error:
            raise RunFolderError(
                f"cannot write the run folder {path}: {error.strerror}. Choose another with --run."
            ) from error
        return folder


def claim_run(path: Path, recipe_text: str, *, overwrite: bool = False) -> RunClaim:
    """Check whether and how a run of this recipe may use the folder `path`, without writing anything.

    A run of the same recipe is resumed. Only sections in `RESUME_MAY_CHANGE`, which say how it executes, may differ.

    Args:
        recipe_text: the resolved recipe, as it will be written to `recipe.yaml`.
        overwrite: claim the folder of an earlier run as fresh; `RunClaim.open` removes that run, and nothing else.

    Raises:
        RunFolderError: if the folder holds other files or a run with a different recipe, or cannot be written.
        UsageError: if the results of a finished run cannot be read.
    """
    _check_writable(path)
    folder = RunFolder(path)
    if not path.is_dir() or all(_may_precede_run(entry) for entry in path.iterdir()):
        return RunClaim(folder, recipe_text, overwrite=overwrite)
    if not folder.recipe.is_file():
        raise RunFolderError(f"{path} is not empty and is not a run (no recipe.yaml); choose another with --run")
    check_is_run(path, recipe_text)
    if overwrite:
        _runs_to_remove(path)
    if overwrite or not folder.has_started():
        return RunClaim(folder, recipe_text, overwrite=overwrite)
    existing = _resolved_text(folder.recipe)
    if _without_sections(existing, RESUME_MAY_CHANGE) != _without_sections(recipe_text, RESUME_MAY_CHANGE):
        diff = difflib.unified_diff(existing.splitlines(), recipe_text.splitlines(), "existing", "new", "", "", 0, "")
        difference = "\n".join(diff)
        raise RunFolderError(
            f"{path} holds a run created with a different recipe:\n{difference}\n"
            "Choose another folder with --run, or replace that run with --overwrite."
        )
    results = folder.read_results()
    return RunClaim(folder, recipe_text, can_resume=results is None, results=results)


def check_same_sources(path: Path, results: RunResults, data_fingerprint: str, start_models: Mapping[str, str]) -> None:
    """Check that neither the data nor the models that a finished run came from have changed since.

    Args: as for `check_same_data` and `check_same_models`.

    Raises:
        RunFolderError: if they have.
    """
    check_same_data(path, results, data_fingerprint)
    check_same_models(path, results.start_models, start_models)


def check_same_data(path: Path, results: RunResults, data_fingerprint: str) -> None:
    """Check that the finished run in the folder `path` was trained on the data of today.

    Args:
        data_fingerprint: of the data of today; versions that recorded none in the results are not compared.

    Raises:
        RunFolderError: if they have changed.
    """
    if results.data_fingerprint not in (None, data_fingerprint):
        raise RunFolderError(
            f"the training or validation data have changed since {path} was trained. Restore them, choose another "
            "folder with --run, or start over with --overwrite"
        )


def check_same_models(path: Path, recorded: Mapping[str, str] | None, models: Mapping[str, str]) -> None:
    """Check that the runs whose models the run in `path` started or learned from still hold these models.

    Args:
        recorded: the hashes of the models at that time, by name; versions that recorded none are not compared.
        models: the hashes of today, from `hash_start_models`; a model that is missing now is not compared.

    Raises:
        RunFolderError: if a model has changed.
    """
    for name, value in (recorded or {}).items():
        if models.get(name, value) != value:
            raise RunFolderError(
                f"the model of {name[:80]} has changed since {path} was trained from it. Choose another folder with "
                "--run, or start over with --overwrite"
            )


def _check_writable(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file, expected a folder for the run. Choose another with --run.")
    nearest = nearest_folder(path)
    if not os.access(nearest, os.W_OK | os.X_OK) or not nearest.is_dir():
        raise RunFolderError(f"cannot create the run folder in {nearest}. Choose another with --run.")


def check_is_run(path: Path, recipe_text: str = "") -> None:
    """Check that the recipe in the folder `path` was written by a run, so the folder may be replaced.

    Args:
        recipe_text: a text that also counts as written by a run.

    Raises:
        RunFolderError: if the recipe was not written by a run.
    """
    folder = RunFolder(path)
    histories = (folder.environment, folder.train_history, folder.eval_history, folder.results, folder.slurm)
    if not any(file.exists() for file in histories) and not _is_resolved(folder.recipe, recipe_text):
        raise RunFolderError(f"{path} holds a recipe.yaml that no run wrote; choose another folder with --run")


def remove_run(path: Path) -> None:
    """Remove what a run and its seeds wrote in a folder, and the folder if nothing else is in it.

    Raises:
        RunFolderError: if a run is in progress in the folder or in one below it, or a folder of models or checkpoints
            holds other files.
    """
    with ExitStack() as locks:
        for folder in (path, *(recipe.parent for recipe in path.glob("*/**/recipe.yaml"))):
            locks.enter_context(exclusive_lock(folder))
        for folder in _runs_to_remove(path):
            _remove_run_files(folder)
    for folder in (*[entry for entry in path.glob("*/") if SEED_NAME.fullmatch(entry.name)], path):
        with suppress(OSError):  # the folder holds other files
            folder.rmdir()


def _runs_to_remove(path: Path) -> list[Path]:
    """Return the folders of the seeds of a run, then its own.

    Raises:
        RunFolderError: if a folder of models or checkpoints, which is removed as a whole, holds files that the run did
            not write.
    """
    folders = [*filter(_is_seed_run, path.iterdir()), path]
    for folder in folders:
        run = RunFolder(folder)
        others = [file for file in files_outside_manifest(run.model) if not REWRITTEN.fullmatch(file.name)]
        others += [file for file in sorted(run.checkpoints.glob("*")) if not CHECKPOINTS.fullmatch(file.name)]
        others += [file for step in sorted(run.checkpoints.glob("*/")) for file in files_outside_manifest(step)]
        if others:
            containing = run.model if run.model in others[0].parents else run.checkpoints
            raise RunFolderError(
                f"{others[0]} was not written by the run; move it out of {containing} before --overwrite"
            )
    return folders


def _remove_run_files(path: Path) -> None:
    run = RunFolder(path)
    for folder in run.shared_folders():
        if folder.is_dir() and not folder.is_symlink():
            for file in run.written_files(folder):
                file.unlink(missing_ok=True)
            for emptied in (*sorted(folder.rglob("*/"), reverse=True), folder):
                with suppress(OSError):  # it holds other files, or is a link
                    emptied.rmdir()
    for entry in [entry for entry in path.iterdir() if _is_run_file(entry)]:
        if not entry.is_dir() or entry.is_symlink():
            entry.unlink()
        elif entry not in run.shared_folders():
            shutil.rmtree(entry)


def _is_run_file(path: Path) -> bool:
    """Return whether an entry of a run folder is one that the run wrote, judging by its name or that of its folder.

    A person may have redirected messages to a `log.txt`, so that of a run is recognized by its header.
    """
    run = RunFolder(path.parent)
    if path == run.log:
        with suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
            return file.readline() == LOG_HEADER
        return False
    return path.name in RUN_FILES - {LOCK, SUMMARY, SEARCH} or MODEL_LEFTOVERS.fullmatch(path.name) is not None


def _may_precede_run(path: Path) -> bool:
    """Return whether an entry of a folder does not keep a run from starting in the folder.

    It may be a run of a single seed, the script of a queued job, or files that `--overwrite` of an earlier run kept.
    """
    run = RunFolder(path.parent)
    is_kept = path in run.shared_folders() and not any(file.exists() for file in run.written_files(path))
    return _is_seed_run(path) or path in (run.slurm, run.log) or is_kept


def _is_seed_run(path: Path) -> bool:
    return SEED_NAME.fullmatch(path.name) is not None and RunFolder(path).recipe.is_file()


def _is_resolved(recipe: Path, expected: str) -> bool:
    """Return whether a recipe in a run folder was written by a run, not by the user."""
    text = recipe.read_text("utf-8")
    try:
        return text == expected or text == dump_recipe(load_single_recipe(str(recipe)))
    except RecipeError:
        return False


def _resolved_text(recipe: Path) -> str:
    """Return the text of a resolved recipe; keys that were added after it was written have their defaults."""
    try:
        return dump_recipe(load_single_recipe(str(recipe)))
    except RecipeError:  # it is a suite, or has keys that this version no longer supports
        return recipe.read_text("utf-8")


def _first_recipe(text: str) -> str:
    """Return the recipe of a run, or the first recipe of a multitask run, whose recipes are YAML comments.

    The recipes of a multitask run share every section except `task`.
    """
    if not text.startswith("suite:"):
        return text
    return re.split(r"^# (?! )[^:\n]*$", text, flags=re.MULTILINE)[1].replace("\n# ", "\n")


def _without_sections(recipe_text: str, sections: set[str]) -> list[str]:
    """Return the lines of block-style YAML mappings, commented out or not, without the given top-level sections."""
    kept, skipping = [], False
    for commented in recipe_text.splitlines():
        line = commented.removeprefix("# ")
        if line and not line[0].isspace():
            skipping = line.split(":")[0] in sections
        if not skipping:
            kept.append(line)
    return kept


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on `folder` until the block ends or this process dies.

    On file systems that do not support locking, nothing is locked.

    Raises:
        RunFolderError: if another process holds the lock, or the folder cannot be written.
    """

    def refuse(owner: str) -> None:
        raise RunFolderError(f"{folder} is in use by {owner}; wait until it ends, or choose another folder with --run")

    with ExitStack() as lock:
        try:
            lock.enter_context(file_lock(folder / LOCK, refuse))
        except OSError as error:
            raise RunFolderError(
                f"cannot write the run folder {folder}: {error.strerror}. Choose another with --run."
            ) from error
        yield
