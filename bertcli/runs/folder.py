"""The run folder: everything a run produces. Nothing in it is overwritten without `--overwrite`.

runs/<name>/
  recipe.yaml         resolved recipe              environment.json   versions, machine, command
  train.jsonl         loss, learning rate, speed   eval.jsonl         metrics of each evaluation
  checkpoints/step-…  resumable                    model/             loads with `from_pretrained`
  predictions/        predictions next to gold     results.json       final scores
  report.html         curves, mistakes             README.md          model card
  slurm/              batch scripts, logs          trackers/          TensorBoard event files, if enabled
  log.txt             messages of a run started by `--jobs`

The folder of a collection of runs (a grid, search, cross-validation or suite) holds their folders, `results.json`,
`README.md` and `report.html`, and, of a grid or search, `summary.csv`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bertcli.console import Console
from bertcli.errors import ProcessError, UsageError
from bertcli.files import MANIFEST, manifest_problem, restore_folder
from bertcli.runs.results import RunResults

SUMMARY = "summary.csv"  # the table of a grid or search
SEARCH = "search.yaml"  # the recipe of a search
OUT_OF_FOLD_PREDICTIONS = "out-of-fold.jsonl"  # in `predictions/` of a cross-validation
VALIDATION_PREDICTIONS = "validation.jsonl"  # in `predictions/`; multitask runs prefix it with `TASK-`
VALIDATION_ANSWERS = "validation.npz"  # the answers as arrays, likewise
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
        UsageError: if the file is one that a run or a collection of runs writes, or part of a saved model.
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
