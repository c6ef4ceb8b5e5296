"""The run folder: where everything a run made lands. Nothing in it is ever overwritten without being asked.

runs/<name>/
  recipe.yaml         resolved recipe            environment.json   versions, machine, command
  train.jsonl         loss, rate, speed          eval.jsonl         metrics of each evaluation
  checkpoints/step-…  resumable                  model/             loads with `from_pretrained`
  predictions/        answers beside right ones  results.json       final numbers
  report.html         curves, mistakes           README.md          model card
  slurm/              batch scripts, logs        trackers/          what TensorBoard reads, if a recipe asks for it
"""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bertcli.console import Console
from bertcli.errors import RecipeError, RunFolderError, UsageError
from bertcli.files import restore_folder, write_text
from bertcli.recipe.catalogue import compare_texts
from bertcli.recipe.load import dump_recipe, load_any_recipe
from bertcli.recipe.schema import SPEED_ONLY

SUMMARY = "summary.csv"  # of a grid
LOCK = ".lock"


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that its recipe does not hold.

    Attributes:
        mirror: folder in which data sets and models are looked up first.
        dry_run: check everything and print the plan, but train nothing and write nothing.
        overwrite: replace an earlier run in the run folder.
    """

    mirror: Path | None = None
    dry_run: bool = False
    overwrite: bool = False
    console: Console = field(default_factory=Console)


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
        """Loss, rate and speed, a line every few steps."""
        return self.path / "train.jsonl"

    @property
    def eval_history(self) -> Path:
        """Metrics, a line for each evaluation."""
        return self.path / "eval.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of resumable checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Best model so far, as `save_pretrained` writes it."""
        return self.path / "model"

    @property
    def results(self) -> Path:
        """Final numbers; the run is finished when this is there."""
        return self.path / "results.json"

    @property
    def slurm(self) -> Path:
        """Batch scripts and their logs, if it is a cluster's job."""
        return self.path / "slurm"

    @property
    def card(self) -> Path:
        """Model card."""
        return self.path / "README.md"

    @property
    def predictions(self) -> Path:
        """What the best model answers beside what is right."""
        return self.path / "predictions"

    @property
    def report(self) -> Path:
        """The page with curves, tables and mistakes."""
        return self.path / "report.html"

    @property
    def trackers(self) -> Path:
        """What trackers write, such as TensorBoard's events."""
        return self.path / "trackers"

    def read_results(self) -> dict[str, Any] | None:
        """Its final numbers; None if it is not finished.

        Raises:
            UsageError: they cannot be read.
        """
        try:
            return {**json.loads(self.results.read_text("utf-8"))} if self.results.is_file() else None
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"cannot read the run in {self.path}: {error} (results.json)") from error

    def has_begun(self) -> bool:
        """Whether a run has left more here than what it was to do, or waits for its turn on a cluster."""
        left = (self.train_history, self.eval_history, self.checkpoints, self.model, self.results, self.slurm)
        return any(path.exists() for path in left)

    def tidy(self) -> None:
        """Undo what a save that was cut off in the middle has left."""
        restore_folder(self.model)
        for left in (*self.checkpoints.glob(".step-*"), self.path / ".model.tmp"):
            shutil.rmtree(left, ignore_errors=True)


MADE = {LOCK, SUMMARY} | {
    getattr(RunFolder(Path()), name).name for name, kind in vars(RunFolder).items() if isinstance(kind, property)
}
"""The names of what runs leave in their folders."""


def chosen_run(name: str) -> str:
    """The best run of a finished grid; anything else as it is.

    Raises:
        UsageError: its results cannot be read.
    """
    chosen = (RunFolder(Path(name)).read_results() or {}).get("chosen")
    return name if chosen is None else str(Path(name) / chosen)


def seed_run(parent: Path, seed: int) -> Path:
    """The run folder of one of several seeds."""
    return parent / f"seed-{seed}"


def seed_runs(name: str) -> list[str]:
    """The run folders of each seed if `name` holds several; else just `name`. Of a grid, the chosen point's."""
    name = chosen_run(name)
    children = sorted(Path(name).glob("seed-*/recipe.yaml"), key=lambda path: (len(path.parent.name), path.parent.name))
    return [str(path.parent) for path in children] or [name]


def best_seed(name: str) -> str:
    """Of a run of several seeds, the run whose own choice scored best; else `name` itself.

    Raises:
        UsageError: none of them is finished, or the results of one cannot be read.
    """
    runs = seed_runs(name)
    if len(runs) == 1:
        return runs[0]
    results = {run: RunFolder(Path(run)).read_results() for run in runs}
    finished = {run: found for run, found in results.items() if found is not None}
    if not finished:
        raise UsageError(f"no run under {name} is finished yet; run the same `bertcli finetune` again, or name one")
    return max(finished, key=lambda run: finished[run]["metrics"]["validation"][finished[run]["best_by"]])


def open_run_folder(path: Path, recipe_text: str, say: Callable[[str], None], *, overwrite: bool) -> RunFolder:
    """Make the folder, or take it up again if it holds a run of the same recipe; a finished one stays as it is.

    Sections of the recipe that change only the speed may differ from the earlier run's.

    Args:
        recipe_text: the resolved recipe, as it will stand in `recipe.yaml`.
        say: told what differs there.
        overwrite: remove what an earlier run left there, and nothing else.

    Raises:
        RunFolderError: the folder holds something else, a run of another recipe, a run that is going on, or cannot be
            written.
    """
    folder = RunFolder(path)
    check_run_folder(path, recipe_text, overwrite=overwrite)
    if folder.recipe.is_file() and folder.has_begun() and not overwrite:
        if folder.results.is_file():
            return folder
        changes = compare_texts(*map(first_recipe, (with_newer_keys(folder.recipe), recipe_text)))
        if changes:
            told = ", ".join(f"{key} {before} → {now}" for key, before, now in changes)
            say(f"{path} goes on with {told}; what is learned is the same within rounding")
    try:
        if overwrite and path.is_dir():
            remove_run(path)
        path.mkdir(parents=True, exist_ok=True)
        write_text(folder.recipe, recipe_text)
    except OSError as error:
        raise RunFolderError(
            f"cannot write the run folder {path}: {error.strerror}. Choose another with --run."
        ) from error
    return folder


def remove_run(path: Path) -> None:
    """Remove what runs made in a folder, and the folder if that was all; what else is in it stays.

    Raises:
        RunFolderError: a run is going on in it, or in a folder of it.
    """
    with ExitStack() as locks:
        for folder in (path, *(recipe.parent for recipe in path.glob("*/**/recipe.yaml"))):
            locks.enter_context(alone_in(folder))
        for made in [one for one in path.iterdir() if _is_made(one)]:
            if made.is_dir() and not made.is_symlink():
                shutil.rmtree(made)
            else:
                made.unlink()
        if not any(path.iterdir()):
            path.rmdir()


def finished_results(path: Path, recipe_text: str) -> dict[str, Any] | None:
    """The results of a finished run of this recipe; None if there is none.

    Raises:
        RunFolderError: the folder holds something else.
        UsageError: they cannot be read.
    """
    results = RunFolder(path).read_results()
    if results is not None:
        check_run_folder(path, recipe_text, overwrite=False)
    return results


def check_run_folder(path: Path, recipe_text: str, *, overwrite: bool) -> None:
    """Raise what `open_run_folder` would, without writing anything."""
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file, expected a folder for the run. Choose another with --run.")
    nearest = nearest_folder(path)
    if not os.access(nearest, os.W_OK | os.X_OK) or not nearest.is_dir():
        raise RunFolderError(f"cannot write in {nearest}, where the run folder goes. Choose another with --run.")
    if not path.is_dir() or all(_is_seed_run(one) or one.name == RunFolder(path).slurm.name for one in path.iterdir()):
        return  # nothing, or runs of single seeds to be summed up here, or the script of a job to come
    folder = RunFolder(path)
    if not folder.recipe.is_file():
        raise RunFolderError(f"{path} is not empty and holds no run (no recipe.yaml); choose another with --run")
    if not folder.has_begun() and not is_resolved(folder.recipe, recipe_text):
        raise RunFolderError(f"{path} holds a recipe.yaml that no run wrote; choose another folder with --run")
    if overwrite or not folder.has_begun():
        return
    before, now = with_newer_keys(folder.recipe), recipe_text
    if without(before, SPEED_ONLY) != without(now, SPEED_ONLY):
        difference = "\n".join(
            difflib.unified_diff(before.splitlines(), now.splitlines(), "there", "asked", "", "", 0, "")
        )
        raise RunFolderError(
            f"{path} holds a run of another recipe:\n{difference}\n"
            "Choose another folder with --run, or replace that run with --overwrite."
        )


def _is_made(path: Path) -> bool:
    """Whether something in a run folder is a run's, or a run itself."""
    inner = RunFolder(path)
    is_run = inner.recipe.is_file() and (inner.has_begun() or is_resolved(inner.recipe, ""))
    return is_run or path.name in MADE or path.name.startswith(f".{inner.model.name}.")


def _is_seed_run(path: Path) -> bool:
    return path.name.startswith("seed-") and RunFolder(path).recipe.is_file()


def nearest_folder(path: Path) -> Path:
    """`path`, or the nearest above it that is there: whose disk and rights are those of what is made at `path`."""
    while not path.exists():
        path = path.parent
    return path


def is_resolved(recipe: Path, asked: str) -> bool:
    """Whether a recipe in a run folder is one that a run wrote there, and no person."""
    text = recipe.read_text("utf-8")
    try:
        return text == asked or text == dump_recipe(load_any_recipe(str(recipe)))
    except RecipeError:
        return False


def with_newer_keys(recipe: Path) -> str:
    """The text of a resolved recipe, with the keys that bertcli has learned since it was written, at their defaults."""
    try:
        return dump_recipe(load_any_recipe(str(recipe)))
    except RecipeError:  # of a suite, or no longer understood
        return recipe.read_text("utf-8")


def first_recipe(text: str) -> str:
    """The recipe of a run; of tasks learned together, whose recipes stand there as comments, the first.

    Those have all sections but their task's in common.
    """
    if not text.startswith("suite:"):
        return text
    return re.split(r"^# (?! )[^:\n]*$", text, flags=re.MULTILINE)[1].replace("\n# ", "\n")


def without(recipe_text: str, sections: set[str]) -> list[str]:
    """The lines of block-style YAML mappings, commented out or not, less the given top-level sections."""
    kept, skipping = [], False
    for commented in recipe_text.splitlines():
        line = commented.removeprefix("# ")
        if line and not line[0].isspace():
            skipping = line.split(":")[0] in sections
        if not skipping:
            kept.append(line)
    return kept


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from working in `folder` until the block ends, or this process does, however it ends.

    On a disk that knows no locks nobody is kept out.

    Raises:
        RunFolderError: another process works in it.
    """
    path = folder / LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(descriptor, 200).decode("utf-8", "replace").strip() or "another process"
            raise RunFolderError(
                f"{folder} is being worked in by {owner}; wait until that is done, or choose another folder with --run"
            ) from error
        except OSError:
            yield
            return
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        try:
            yield
        finally:
            with suppress(OSError):  # the folder may be gone
                path.unlink()
    finally:
        os.close(descriptor)
