"""`bertcli submit`: run a recipe as a Slurm job, or as a job array followed by a job that collects the results."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bertcli.cluster.slurm import JobCommand, JobEnvironment, JobResources, batch_script
from bertcli.console import Console
from bertcli.errors import ClusterError, UsageError
from bertcli.experiments.preparation import prepare_folder
from bertcli.files import write_text
from bertcli.mirror import AnyRecipe, missing_requirements
from bertcli.recipe.catalogue import load_any, run_recipe_path
from bertcli.recipe.expansion import Grid
from bertcli.recipe.load import dump_recipe
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.recipe.schema import Recipe
from bertcli.recipe.search import Search
from bertcli.recipe.suite import Suite, independent_recipes_by_folder, recipes_by_folder
from bertcli.runs.claim import claim_run, remove_run
from bertcli.runs.folder import SEARCH, RunFolder
from bertcli.runs.members import seed_run

DEFAULT_WORKERS = 4  # tasks in the array of a search


@dataclass(frozen=True)
class JobPlan:
    """The commands that jobs run for a recipe.

    Attributes:
        command: runs everything in one job; after an array it resumes unfinished runs and collects the results.
        array_commands: the runs that can train in parallel, one per task of an array.
        recipes: each recipe to write to its run folder before submission, by run folder.
        dependent_folders: run folders whose recipe starts from another run's model, and so is written later.
    """

    recipe: AnyRecipe
    command: JobCommand
    array_commands: Sequence[JobCommand]
    recipes: Mapping[Path, Recipe | PretrainRecipe]
    dependent_folders: Sequence[Path] = ()

    @property
    def is_multitask(self) -> bool:
        """Whether one run trains all recipes of a suite jointly."""
        return isinstance(self.recipe, Suite) and self.recipe.multitask is not None


@dataclass(frozen=True)
class SlurmSubmission:
    """The jobs that were submitted, and their scripts.

    Attributes:
        scripts: the text of each batch script: `job`, and for an array also `gather`.
        jobs: the run folder, and the ID, script and log of each job; empty if nothing was submitted.
    """

    scripts: Mapping[str, str]
    jobs: Mapping[str, str]


def submit(
    name: str,
    overrides: Sequence[str],
    run: Path,
    resources: JobResources,
    *,
    array: bool = False,
    num_workers: int = DEFAULT_WORKERS,
    print_only: bool = False,
    overwrite: bool = False,
    mirror: Path | None = None,
    command_line: str = "bertcli submit",
    console: Console | None = None,
) -> SlurmSubmission:
    """Write the batch scripts of a recipe to its run folder and submit them.

    Jobs run in the current folder, with the Python interpreter of this program.

    Args:
        name: a fine-tuning or pretraining recipe, or a suite.
        array: submit a job array with one task per independent run, and a job that collects their results.
        num_workers: number of tasks in the array of a search, which share its trials.
        print_only: build the scripts, but write and submit nothing.
        overwrite: replace an existing run in `run`.
        command_line: this program's command line, written as a comment at the top of each script.

    Raises:
        RecipeError: if the recipe is invalid; every problem is listed.
        UsageError: if a resource is not valid for Slurm, `array` is set for fewer than two independent runs, this
            machine has no Slurm, or an earlier job of this run folder has not finished.
        RunFolderError: if the run folder holds other files, or a run with a different recipe.
        ClusterError: if the cluster rejects a job.
    """
    console = console or Console()
    plan = plan_jobs(name, overrides, run, num_workers=num_workers)
    environment = JobEnvironment(
        Path.cwd(), _slurm_folder(run), (sys.executable, "-m", "bertcli"), mirror.absolute() if mirror else None
    )
    scripts = _build_scripts(command_line, plan, resources, environment, array=array)
    if print_only:
        return SlurmSubmission(scripts, {})
    _warn_about_missing_requirements(plan.recipe, [name, *overrides], mirror, console)
    jobs = _submit_scripts(plan, scripts, run, console, overwrite=overwrite)
    for key, value in jobs.items():
        console.say(f"{key.replace('_', ' '):<18}{value}")
    console.say(f"{'next':<18}squeue --jobs {jobs['job']}; when it has finished, bertcli report {run}")
    return SlurmSubmission(scripts, jobs)


def plan_jobs(name: str, overrides: Sequence[str], run: Path, *, num_workers: int = DEFAULT_WORKERS) -> JobPlan:
    """Plan the commands for a fine-tuning recipe, its folds, a pretraining recipe, a grid, a search or a suite.

    A job reads the recipe saved in its run folder, so editing the original file while the job is queued has no effect.
    Only a job for all folds, or a whole grid or suite, or for multitask training, reads the original file.

    Args:
        num_workers: number of jobs that share the trials of a search, all with the same command.

    Raises:
        RecipeError: if the recipe is invalid; every problem is listed.
    """
    name = run_recipe_path(name)
    recipe = load_any(name, overrides)
    command = JobCommand(run.name, ["finetune", name, *overrides, "--run", str(run)])
    if isinstance(recipe, Suite) and recipe.multitask is not None:
        return JobPlan(recipe, command, [], {})
    if isinstance(recipe, Suite | Grid) or (isinstance(recipe, Recipe) and recipe.is_cross_validation):
        independent = independent_recipes_by_folder(recipe, run)
        return JobPlan(
            recipe,
            command,
            [JobCommand(str(path.relative_to(run)), _arguments("finetune", path, path)) for path in independent],
            independent,
            [path for path in recipes_by_folder(recipe, run) if path not in independent],
        )
    if isinstance(recipe, Search):
        worker = JobCommand(run.name, ["finetune", str(run / SEARCH), "--run", str(run)])
        return JobPlan(recipe, worker, [worker] * min(num_workers, recipe.settings.trials), {})
    verb = "pretrain" if isinstance(recipe, PretrainRecipe) else "finetune"
    seed_folders = {seed: seed_run(run, seed) for seed in recipe.training.seed}
    array_commands = [
        JobCommand(path.name, _arguments(verb, run, path, f"training.seed={seed}"))
        for seed, path in seed_folders.items()
    ]
    return JobPlan(recipe, JobCommand(run.name, _arguments(verb, run, run)), array_commands, {run: recipe})


def _arguments(verb: str, recipe_folder: Path, run: Path, *overrides: str) -> list[str]:
    """Build the `bertcli` arguments that run the recipe saved in `recipe_folder` into `run`."""
    return [verb, str(RunFolder(recipe_folder).recipe), *overrides, "--run", str(run)]


def _build_scripts(
    command_line: str, plan: JobPlan, resources: JobResources, environment: JobEnvironment, *, array: bool
) -> dict[str, str]:
    """Build the text of each batch script by name: `job`, and for an array also `gather`.

    Raises:
        UsageError: if `array` is set for fewer than two independent runs, or a resource is not valid for Slurm.
    """
    if not array:
        return {"job": batch_script(command_line, [plan.command], resources, environment)}
    if len(plan.array_commands) < 2:
        raise UsageError(
            f"--array requires at least two independent runs, found {len(plan.array_commands)}; use several seeds "
            "(training.seed=[1,2,3]), folds, a grid, or a suite whose recipes do not start from one another, or "
            "leave out --array"
        )
    about_array = f"{command_line}\nEach task of this array trains one run; another job then collects the results."
    about_gather = f"{command_line}\nCollects the results of the array, and resumes any run that has not finished."
    return {
        "job": batch_script(about_array, plan.array_commands, resources, environment),
        "gather": batch_script(about_gather, [plan.command], resources, environment),
    }


def _warn_about_missing_requirements(
    recipe: AnyRecipe, arguments: Sequence[str], mirror: Path | None, console: Console
) -> None:
    """Warn about datasets and models that are not on this machine, because jobs have no network access.

    Args:
        arguments: recipe and overrides, as `bertcli fetch` takes them.
    """
    missing = [f"{requirement.kind}/{requirement.name}" for requirement in missing_requirements(recipe, mirror)]
    if missing:
        console.warn(
            f"{', '.join(dict.fromkeys(missing))} not found in the mirror or the local cache, and jobs have no network "
            f"access: run bertcli fetch {shlex.join(arguments)} --mirror DIR, then submit with that --mirror"
        )


def _submit_scripts(
    plan: JobPlan, scripts: Mapping[str, str], run: Path, console: Console, *, overwrite: bool
) -> dict[str, str]:
    """Write recipes and scripts to the run folder and submit them; return ID, script and log of each job."""
    if shutil.which("sbatch") is None:
        raise UsageError(
            "found no sbatch on this machine; run this command on a node of a Slurm cluster, or print the "
            "batch scripts with --print"
        )
    slurm_folder = _slurm_folder(run)
    _check_no_unfinished_job(slurm_folder)
    if overwrite and any(path.exists() for path in plan.dependent_folders):
        raise UsageError(
            f"--overwrite cannot replace {plan.dependent_folders[0]}, which starts from the model of another run in "
            "the same suite; choose another folder with --run"
        )
    if overwrite:
        _test_submission(scripts)
    _prepare_run_folders(plan, run, console, overwrite=overwrite)
    slurm_folder.mkdir(parents=True, exist_ok=True)
    paths = {name: _write_script(slurm_folder, name, text) for name, text in scripts.items()}
    job_id = _sbatch(paths["job"])
    jobs = {"run": str(run), "job": job_id, "script": str(paths["job"])}
    if "gather" not in paths:
        return jobs | {"log": str(slurm_folder / f"{job_id}.log")}
    dependency = f"--dependency=afterany:{job_id}"  # not `afterok`: one failed run must not block the others' results
    try:
        gather_id = _sbatch(paths["gather"], dependency)
    except ClusterError as error:
        command = f"sbatch {dependency} {shlex.quote(str(paths['gather']))}"
        raise ClusterError(
            f"submitted the array as job {job_id}, but not the job that collects its results; submit it with: "
            f"{command}\n{error}"
        ) from error
    jobs |= {"log": str(slurm_folder / f"{job_id}_*.log"), "gathering_job": gather_id}
    return jobs | {"gathering_script": str(paths["gather"]), "gathering_log": str(slurm_folder / f"{gather_id}.log")}


def _prepare_run_folders(plan: JobPlan, run: Path, console: Console, *, overwrite: bool) -> None:
    """Check every run folder, then write each recipe to its run folder.

    Raises:
        RunFolderError: if a folder holds other files, or a run with a different recipe.
    """
    if isinstance(plan.recipe, Search):
        from bertcli.experiments.search import prepare_search

        prepare_search(plan.recipe, run, overwrite=overwrite)
    elif plan.is_multitask:
        if overwrite and run.is_dir():
            remove_run(run)
    elif run not in plan.recipes:
        prepare_folder(run, [*plan.recipes, *plan.dependent_folders], overwrite=overwrite)
    claims = [claim_run(path, dump_recipe(recipe), overwrite=overwrite) for path, recipe in plan.recipes.items()]
    for claim in claims:
        claim.open(console.say)


def _slurm_folder(run: Path) -> Path:
    """Return the folder for scripts and logs as an absolute path, which Slurm requires."""
    return RunFolder(Path(os.path.abspath(run))).slurm


def _check_no_unfinished_job(slurm_folder: Path) -> None:
    """Raise `UsageError` if a job of this run folder is queued or running: two jobs must not write to one run."""
    for line in _run_slurm("squeue", "--me", "--noheader", "--format=%F %o").splitlines():
        job_id, _, script = line.partition(" ")
        if Path(script).parent == slurm_folder:
            raise UsageError(
                f"job {job_id} of {slurm_folder.parent} has not finished; wait for it, or cancel it with "
                f"`scancel {job_id}`"
            )


def _write_script(folder: Path, name: str, text: str) -> Path:
    """Write a script and return its path; an existing script with other text is kept, and this one is numbered."""
    number, path = 1, folder / f"{name}.sh"
    while path.exists() and path.read_text("utf-8") != text:
        number += 1
        path = folder / f"{name}-{number}.sh"
    if not path.exists():
        write_text(path, text)
    return path


def _test_submission(scripts: Mapping[str, str]) -> None:
    """Check that the cluster accepts the jobs (`sbatch --test-only`), before an existing run is removed.

    Raises:
        ClusterError: if the cluster rejects a job.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, text in scripts.items():
            _run_slurm("sbatch", "--test-only", str(_write_script(Path(folder), name, text)))


def _sbatch(script: Path, *options: str) -> str:
    """Submit a script and return the ID of its job."""
    return _run_slurm("sbatch", "--parsable", *options, str(script)).partition(";")[0]


def _run_slurm(*command: str) -> str:
    """Run a Slurm program and return its output.

    Raises:
        ClusterError: if the program fails.
    """
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise ClusterError(
            f"{shlex.join(command)} failed:\n{process.stderr.strip()}\n"
            "Submit from a machine that can reach Slurm (--print only shows the batch scripts), and request resources "
            "that the cluster has: --nodes, --gpus, --cpus, --time, --partition, --sbatch."
        )
    return process.stdout.strip()
