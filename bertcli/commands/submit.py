"""`bertcli submit`: a recipe as a job of a Slurm cluster, or as an array of them and a job that gathers the results."""

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

from bertcli.cluster.slurm import Place, Request, Task, batch_script
from bertcli.console import Console
from bertcli.errors import ClusterError, UsageError
from bertcli.experiments.results import open_collection
from bertcli.files import write_text
from bertcli.mirror import AnyRecipe, absent
from bertcli.recipe.catalogue import load_any, recipe_of_run
from bertcli.recipe.expansion import Grid
from bertcli.recipe.load import dump_recipe
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.recipe.schema import Recipe
from bertcli.recipe.suite import Suite, ready_runs, single_runs
from bertcli.runs.folder import RunFolder, check_run_folder, open_run_folder, remove_run, seed_run


@dataclass(frozen=True)
class Work:
    """What is to run."""

    whole: Task
    parts: Sequence[Task]  # runs that an array does at once, so that the whole finds them finished
    recipes: Mapping[Path, Recipe | PretrainRecipe]  # by the run folder that holds each before a job starts
    wanted: AnyRecipe  # what all of it was asked for
    later: Sequence[Path] = ()  # run folders whose recipe waits for another run's model


def plan_work(name: str, overrides: Sequence[str], run: Path) -> Work:
    """The words of the jobs for a recipe, a pretraining recipe or a suite.

    A job reads its recipe in the run folder, so it does not matter what becomes of the file while the job waits; the
    one that does a grid, a suite or tasks learned together reads the file.

    Raises:
        RecipeError: with every mistake found.
    """
    name = recipe_of_run(name)
    wanted = load_any(name, overrides)
    words = ["finetune", name, *overrides, "--run", str(run)]
    if isinstance(wanted, Suite) and wanted.together is not None:
        return Work((run.name, words), [], {}, wanted)
    if isinstance(wanted, Suite | Grid):
        ready = ready_runs(wanted, run)
        return Work(
            (run.name, words),
            [(str(path.relative_to(run)), _reading(path, "finetune", path)) for path in ready],
            ready,
            wanted,
            [path for path in single_runs(wanted, run) if path not in ready],
        )
    verb = "pretrain" if isinstance(wanted, PretrainRecipe) else "finetune"
    seeds = {seed: seed_run(run, seed) for seed in wanted.training.seed}
    parts = [(path.name, _reading(run, verb, path, f"training.seed={seed}")) for seed, path in seeds.items()]
    return Work((run.name, _reading(run, verb, run)), parts, {run: wanted}, wanted)


def tell_what_is_absent(work: Work, words: Sequence[str], mirror: Path | None, console: Console) -> None:
    """Warn of what the work needs of the hub and is not on this machine: jobs use no network.

    Args:
        words: recipe and overrides, as `fetch` takes them.
    """
    away = [f"{need.kind}/{need.name}" for need in absent(work.wanted, mirror)]
    if away:
        console.warn(
            f"neither the mirror nor the local cache holds {', '.join(dict.fromkeys(away))}, and jobs use no network: "
            f"bertcli fetch {shlex.join(words)} --mirror DIR, then submit with that --mirror"
        )


def write_scripts(command: str, work: Work, request: Request, place: Place, *, array: bool) -> dict[str, str]:
    """The text of each batch script by its name: `job`, and for what follows an array `gather`.

    Args:
        command: what made them; the scripts tell it.

    Raises:
        UsageError: an array is asked for and there are no several runs, or the request is not as Slurm writes it.
    """
    if not array:
        return {"job": batch_script(command, [work.whole], request, place)}
    if len(work.parts) < 2:
        raise UsageError(
            f"found {len(work.parts)} run for --array, expected several: training.seed=[1,2,3], a grid, or a suite "
            "whose recipes do not start from one another"
        )
    about = f"{command}\nEach run is a task of this array; a job that gathers comes after them."
    afterwards = f"{command}\nFinds the runs of the array finished (else goes on with them) and sums them up."
    return {
        "job": batch_script(about, work.parts, request, place),
        "gather": batch_script(afterwards, [work.whole], request, place),
    }


def place_of(run: Path, mirror: Path | None) -> Place:
    """Jobs run where this program does, with the Python that runs it."""
    program = (sys.executable, "-m", "bertcli")
    return Place(Path.cwd(), _slurm(run), program, mirror.absolute() if mirror else None)


def submit(
    work: Work, scripts: dict[str, str], run: Path, console: Console, *, overwrite: bool = False
) -> dict[str, str]:
    """Write the scripts into the run folder and submit them; the number, script and log of each job.

    Raises:
        UsageError: there is no Slurm here, or an earlier job of this run folder is not over.
        RunFolderError: the run folder holds something else, or a run of another recipe.
        ClusterError: the cluster does not take a job.
    """
    if shutil.which("sbatch") is None:
        raise UsageError("found no sbatch here; submit from a machine of a Slurm cluster, or see the script by --print")
    slurm = _slurm(run)
    _refuse_while_queued(slurm)
    if overwrite and any(path.exists() for path in work.later):
        raise UsageError(f"found --overwrite, but {work.later[0]} starts from another run; choose another --run")
    if overwrite:
        _try_out(scripts)
    if isinstance(work.wanted, Suite) and work.wanted.together is not None:
        if overwrite and run.is_dir():
            remove_run(run)
    elif run not in work.recipes:
        open_collection(run, overwrite=overwrite)
    for path, recipe in work.recipes.items():
        check_run_folder(path, dump_recipe(recipe), overwrite=overwrite)
    for path, recipe in work.recipes.items():
        open_run_folder(path, dump_recipe(recipe), console.say, overwrite=overwrite)
    slurm.mkdir(parents=True, exist_ok=True)
    paths = {name: _write_script(slurm, name, text) for name, text in scripts.items()}
    job = _submit(paths["job"])
    told = {"run": str(run), "job": job, "script": str(paths["job"])}
    if "gather" not in paths:
        return told | {"log": str(slurm / f"{job}.log")}
    # Not `afterok`: one run that fails must not keep the others from being summed up.
    dependency = f"--dependency=afterany:{job}"
    try:
        gathering = _submit(paths["gather"], dependency)
    except ClusterError as error:
        cure = f"it has yet to be gathered: sbatch {dependency} {shlex.quote(str(paths['gather']))}"
        raise ClusterError(f"the array is job {job}, and {cure}\n{error}") from error
    told |= {"log": str(slurm / f"{job}_*.log"), "gathering_job": gathering}
    return told | {"gathering_script": str(paths["gather"]), "gathering_log": str(slurm / f"{gathering}.log")}


def _slurm(run: Path) -> Path:
    """Where scripts and logs go; Slurm wants it written out."""
    return RunFolder(Path(os.path.abspath(run))).slurm


def _reading(holder: Path, verb: str, run: Path, *overrides: str) -> list[str]:
    """The words that run in `run` the recipe that lies in `holder`."""
    return [verb, str(RunFolder(holder).recipe), *overrides, "--run", str(run)]


def _refuse_while_queued(slurm: Path) -> None:
    """Two jobs must not write one run."""
    for line in _ask("squeue", "--me", "--noheader", "--format=%F %o").splitlines():
        job, _, script = line.partition(" ")
        if Path(script).parent == slurm:
            raise UsageError(f"job {job} of {slurm.parent} is not over; wait for it, or end it with `scancel {job}`")


def _write_script(folder: Path, name: str, text: str) -> Path:
    """The path of the script. One that is there with another text is kept, and this one gets a number."""
    number, path = 1, folder / f"{name}.sh"
    while path.exists() and path.read_text("utf-8") != text:
        number += 1
        path = folder / f"{name}-{number}.sh"
    if not path.exists():
        write_text(path, text)
    return path


def _try_out(scripts: Mapping[str, str]) -> None:
    """See that the cluster would take the jobs, before anything is removed for them.

    Raises:
        ClusterError: it would not.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, text in scripts.items():
            _ask("sbatch", "--test-only", str(_write_script(Path(folder), name, text)))


def _submit(script: Path, *options: str) -> str:
    """The number of the new job."""
    return _ask("sbatch", "--parsable", *options, str(script)).partition(";")[0]


def _ask(*command: str) -> str:
    """What a program of Slurm answers."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(
            f"{shlex.join(command)} fails:\n{done.stderr.strip()}\n"
            "Submit where Slurm answers (--print only shows the script), and ask of it what it has: --nodes, --gpus, "
            "--cpus, --time, --partition, --sbatch."
        )
    return done.stdout.strip()
