"""The run folder: everything a run produces. Nothing in it is overwritten without `--overwrite`.

runs/<name>/
  recipe.yaml         resolved recipe              environment.json   versions, machine, command
  train.jsonl         loss, learning rate, speed   eval.jsonl         metrics of each evaluation
  checkpoints/step-…  resumable                    model/             loads with `from_pretrained`
  predictions/        predictions next to gold     results.json       final scores
  report.html         curves, mistakes             README.md          model card
  slurm/              batch scripts, logs          trackers/          TensorBoard event files, if enabled
  log.txt             messages of a run started by `--jobs`
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bertcli.console import Console
from bertcli.errors import ProcessError, RecipeError, RunFolderError, UsageError
from bertcli.files import MANIFEST, file_lock, files_outside_manifest, manifest_problem, restore_folder, write_text
from bertcli.recipe.catalogue import compare_recipe_texts
from bertcli.recipe.load import dump_recipe, load_any_recipe
from bertcli.recipe.schema import RESUME_MAY_CHANGE
from bertcli.runs.results import RunResults

SUMMARY = "summary.csv"  # the table of a grid or search
SEARCH = "search.yaml"  # the recipe of a search
OUT_OF_FOLD_PREDICTIONS = "out-of-fold.jsonl"  # in `predictions/` of a cross-validation
VALIDATION_PREDICTIONS = "validation.jsonl"  # in `predictions/`; multitask runs prefix it with `TASK-`
VALIDATION_ANSWERS = "validation.npz"  # the answers as arrays, likewise
MAX_LISTED = 5  # maximum number of runs named in a message
LOCK = ".lock"
SLURM_FILES = re.compile(r"(?:job|gather)(?:-\d+)?\.sh|\d+(?:_\d+)?\.log")  # scripts and logs of `bertcli submit`
LOG_HEADER = "# messages of a run started by `bertcli finetune --jobs`\n"  # of `log.txt`
CHECKPOINTS = re.compile(r"\.?step-\d{8}(?:\.tmp|\.old)?")
MODEL_LEFTOVERS = re.compile(r"\.model(?:\.old|\.tmp|-step-\d{8})")  # of an interrupted save
MODEL_SUFFIXES = {".json", ".safetensors", ".txt", ".model", ".bin"}  # of files that `save_pretrained` writes


ReasonToStop = Callable[[float, float], str | None]
"""Why a run ends after an evaluation that is not its last; None if it continues.

Called with the completed share of the run and the evaluation's selection score, of which the highest is the best;
called again for the last evaluation when a run is resumed. With several processes, each has one, but only that of the
main process is called.
"""


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that are not part of its recipe.

    Attributes:
        mirror: folder that is searched for datasets and models first.
        dry_run: check everything and print the plan, but train nothing and write nothing.
        overwrite: replace an earlier run in the run folder.
        failed: errors, by folder, of runs that have just failed in another process; they are not tried again.
        reason_to_stop: asked after each evaluation whether the run ends early; None: it does not.
    """

    mirror: Path | None = None
    dry_run: bool = False
    overwrite: bool = False
    console: Console = field(default_factory=Console)
    failed: Mapping[Path, ProcessError] = field(default_factory=dict)
    reason_to_stop: ReasonToStop | None = None


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run."""

    path: Path

    @property
    def recipe(self) -> Path:
        """Resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def environment(self) -> Path:
        """Versions and machine."""
        return self.path / "environment.json"

    @property
    def train_history(self) -> Path:
        """Loss, learning rate and speed, one line every few steps."""
        return self.path / "train.jsonl"

    @property
    def eval_history(self) -> Path:
        """Metrics, one line per evaluation."""
        return self.path / "eval.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of resumable checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Best model so far, as `save_pretrained` writes it."""
        return self.path / "model"

    def unpublished_model(self, step: int) -> Path:
        """Model of an evaluation at `step`, until the checkpoint that selects it as the best is saved."""
        return self.path / f".model-step-{step:08d}"

    @property
    def results(self) -> Path:
        """Final scores; the run is finished once this file exists."""
        return self.path / "results.json"

    @property
    def slurm(self) -> Path:
        """Batch scripts and their logs, if the run is a Slurm job."""
        return self.path / "slurm"

    @property
    def log(self) -> Path:
        """Warnings and errors from a run started with `--jobs`."""
        return self.path / "log.txt"

    @property
    def card(self) -> Path:
        """Model card."""
        return self.path / "README.md"

    @property
    def validation_logits(self) -> Path:
        """Logits of the best model on the validation split, until the run is finished."""
        return self.path / ".logits.safetensors"

    @property
    def predictions(self) -> Path:
        """Predictions of the best model next to the gold labels."""
        return self.path / "predictions"

    @property
    def report(self) -> Path:
        """HTML page with curves, tables and mistakes."""
        return self.path / "report.html"

    @property
    def trackers(self) -> Path:
        """Folder for the output of trackers, such as TensorBoard event files."""
        return self.path / "trackers"

    def read_results(self) -> RunResults | None:
        """Return the final scores, or None if the run is not finished.

        Raises:
            UsageError: if the file cannot be read.
        """
        if not self.results.is_file():
            return None
        try:
            results = RunResults.from_json(self.read_results_json())
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise UsageError(f"cannot read the run in {self.path}: {problem} (results.json)") from error
        assert isinstance(results, RunResults)
        return results

    def read_results_json(self) -> dict[str, Any]:
        """Return the content of `results.json` unvalidated, for callers that need little of it; empty without the file.

        Raises:
            UsageError: if the file is not a JSON object.
        """
        try:
            return {**json.loads(self.results.read_text("utf-8"))} if self.results.is_file() else {}
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UsageError(f"cannot read the run in {self.path}: {error} (results.json)") from error

    def model_problem(self) -> str | None:
        """Return what has changed in `model/` since it was saved, or None if it is intact.

        In runs of versions that wrote no manifest, only missing weights are noticed.
        """
        if not self.model.is_dir():
            return "the folder is missing"
        if (self.model / MANIFEST).is_file():
            return manifest_problem(self.model)
        return None if any(self.model.rglob("*.safetensors")) else "it has no weights"

    def has_started(self) -> bool:
        """Return whether a run has written more than its recipe here, or is queued on a cluster."""
        outputs = (self.train_history, self.eval_history, self.checkpoints, self.model, self.results, self.slurm)
        return any(path.exists() for path in outputs)

    def written_predictions(self) -> list[Path]:
        """Return the paths at which the run writes predictions; other files in `predictions/` are the user's."""
        prefixes = ("", *(f"{task.name}-" for task in self.model.glob("*/")))
        names = (VALIDATION_PREDICTIONS, VALIDATION_ANSWERS)
        return [self.predictions / f"{prefix}{name}" for prefix in prefixes for name in names]

    def shared_folders(self) -> tuple[Path, ...]:
        """Return the folders in which a person, or a tracker other than TensorBoard, may keep other files."""
        return (self.predictions, self.slurm, self.trackers)

    def written_files(self, folder: Path) -> list[Path]:
        """Return the paths at which the run, its jobs and TensorBoard write files in one of the shared folders."""
        if folder == self.predictions:
            return self.written_predictions()
        if folder == self.slurm:
            return [file for file in folder.glob("*") if SLURM_FILES.fullmatch(file.name)]
        return [*folder.rglob("events.out.tfevents.*")]

    def clean_up(self) -> None:
        """Remove files left by an interrupted save."""
        restore_folder(self.model)
        for leftover in (*self.checkpoints.glob(".step-*"), *self.path.glob(".model-step-*")):
            shutil.rmtree(leftover, ignore_errors=True)


RUN_FILES = {LOCK, SUMMARY, SEARCH} | {
    getattr(RunFolder(Path()), name).name for name, kind in vars(RunFolder).items() if isinstance(kind, property)
}
"""Names of the files and folders that a run writes."""


def check_not_run_output(output: Path) -> None:
    """Check that a command may write the file `output`, which must not be part of a run, a collection or a model.

    Raises:
        UsageError: if the file is one that a run, grid, cross-validation or suite writes, or part of a saved model.
    """
    path = Path(os.path.realpath(output))
    for parent in path.parents:
        folder = RunFolder(parent)
        is_run = folder.recipe.is_file() and folder.environment.is_file()
        is_collection = folder.results.is_file() and folder.report.is_file()
        if (is_run or is_collection) and _is_run_output(folder, path):
            raise UsageError(f"{output} is a file of the run in {parent}; choose another --output")
    is_model = (path.parent / "config.json").is_file() and any(path.parent.glob("*.safetensors"))
    if is_model and path.is_file() and path.suffix in MODEL_SUFFIXES:
        raise UsageError(f"{output} is a file of the model in {path.parent}; choose another --output")


def _is_run_output(folder: RunFolder, path: Path) -> bool:
    entry = folder.path / path.relative_to(folder.path).parts[0]
    if entry != folder.predictions:
        return entry.name in RUN_FILES
    is_run = folder.recipe.is_file()
    return path in (folder.written_predictions() if is_run else [folder.predictions / OUT_OF_FOLD_PREDICTIONS])


def chosen_run(name: str) -> str:
    """Return the best point of a finished grid, or any other name unchanged.

    Raises:
        UsageError: if the results of the grid cannot be read.
    """
    folder = RunFolder(Path(name))
    chosen = None if folder.recipe.is_file() else folder.read_results_json().get("chosen")
    return str(folder.path / chosen) if isinstance(chosen, str) else name


def seed_run(parent: Path, seed: int) -> Path:
    """Return the run folder of one of several seeds."""
    return parent / f"seed-{seed}"


def seed_folders(parent: Path, seeds: Sequence[int]) -> list[Path]:
    """Return the run folder of each seed of a recipe: `parent` itself if there is only one seed."""
    return [seed_run(parent, seed) for seed in seeds] if len(seeds) > 1 else [parent]


def seed_runs(name: str) -> list[str]:
    """Return the run folder of each seed or fold if `name` holds several, else `name`.

    For a grid, use its chosen point.
    """
    name = chosen_run(name)
    folds = fold_runs(Path(name))
    if folds:
        return [str(run) for run in folds]
    children = sorted(Path(name).glob("seed-*/recipe.yaml"), key=lambda path: (len(path.parent.name), path.parent.name))
    return [str(path.parent) for path in children] or [name]


def fold_runs(folder: Path) -> list[Path]:
    """Return the run folder of each fold of a finished cross-validation; none for other folders.

    Raises:
        UsageError: if the results in the folder cannot be read.
    """
    folds = {} if RunFolder(folder).recipe.is_file() else RunFolder(folder).read_results_json().get("folds")
    return [folder / name for name in folds] if isinstance(folds, dict) else []


def train_without_folds(folder: Path) -> str:
    """Return the command that trains one model with the recipe of a cross-validation."""
    recipe = RunFolder(folder / "fold-1").recipe
    return f"bertcli finetune {recipe} data.folds=null data.fold=null --run FOLDER"


def best_seed(name: str) -> str:
    """Return the run folder of the seed with the best validation score if `name` holds several seeds, else `name`.

    Raises:
        UsageError: if the run, its seeds or the grid are not finished, or the results of a seed cannot be read.
    """
    check_finished(name)
    runs = seed_runs(name)
    if len(runs) == 1:
        return runs[0]
    scores: dict[str, float] = {}
    for run in runs:
        results = RunFolder(Path(run)).read_results()
        try:
            scores[run] = results.selection_score if results is not None else -math.inf
        except ValueError as error:
            raise UsageError(f"cannot choose the best seed of {name}: {run}/results.json has {error}") from error
    return max(scores, key=lambda run: scores[run])


def check_finished(name: str) -> None:
    """Check that the folder `name`, if it holds a run, a grid or a suite, has a model to use.

    Raises:
        UsageError: if it is not finished, or each of its runs has its own model; the message lists the usable ones.
    """
    folder = RunFolder(Path(chosen_run(name)))
    is_run, is_finished = folder.recipe.is_file(), folder.results.is_file()
    if folder.model.is_dir() or (is_run and is_finished) or (folder.path / "config.json").is_file():
        return
    members = [recipe.parent for recipe in sorted(folder.path.glob("*/recipe.yaml"))]
    usable = [str(member) for member in members if RunFolder(member).results.is_file()]
    if not members and not is_run:
        return  # not written by a run
    choice = f"choose one of them: {', '.join(usable[:MAX_LISTED])}{', …' * (len(usable) > MAX_LISTED)}"
    if folds := fold_runs(folder.path):
        raise UsageError(
            f"{folder.path} is a cross-validation of {len(folds)} models, of which none is chosen. Train one model "
            f"without folds with `{train_without_folds(folder.path)}`, or {choice}"
        )
    if is_finished:
        raise UsageError(f"{name} holds {len(members)} runs with a model each; {choice}")
    state = f"{len(usable)} of its {len(members)} runs finished" if members else "it has no model yet"
    raise UsageError(
        f"{name} is not finished ({state}): re-run the command that started it{f', or {choice}' if usable else ''}"
    )


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
            changes = compare_recipe_texts(*map(first_recipe, (resolved_text(folder.recipe), self.recipe_text)))
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
    existing = resolved_text(folder.recipe)
    if _without_sections(existing, RESUME_MAY_CHANGE) != _without_sections(recipe_text, RESUME_MAY_CHANGE):
        diff = difflib.unified_diff(existing.splitlines(), recipe_text.splitlines(), "existing", "new", "", "", 0, "")
        difference = "\n".join(diff)
        raise RunFolderError(
            f"{path} holds a run created with a different recipe:\n{difference}\n"
            "Choose another folder with --run, or replace that run with --overwrite."
        )
    results = folder.read_results()
    return RunClaim(folder, recipe_text, can_resume=results is None, results=results)


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
    for folder in (*filter(Path.is_dir, path.glob("seed-*")), path):
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
        # `config.json` is missing from the manifest if the run was interrupted while it tuned thresholds.
        others = [file for file in files_outside_manifest(run.model) if file.name != "config.json"]
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
    return path.name.startswith("seed-") and RunFolder(path).recipe.is_file()


def nearest_folder(path: Path) -> Path:
    """Return `path` or its nearest existing parent, whose disk and permissions apply to what is created at `path`."""
    while not path.exists():
        path = path.parent
    return path


def _is_resolved(recipe: Path, expected: str) -> bool:
    """Return whether a recipe in a run folder was written by a run, not by the user."""
    text = recipe.read_text("utf-8")
    try:
        return text == expected or text == dump_recipe(load_any_recipe(str(recipe)))
    except RecipeError:
        return False


def resolved_text(recipe: Path) -> str:
    """Return the text of a resolved recipe; keys that were added after it was written have their defaults."""
    try:
        return dump_recipe(load_any_recipe(str(recipe)))
    except RecipeError:  # it is a suite, or has keys that this version no longer supports
        return recipe.read_text("utf-8")


def first_recipe(text: str) -> str:
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
