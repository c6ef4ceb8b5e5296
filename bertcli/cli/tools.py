"""The helpers beside the four verbs: `submit`, `report`, `fetch`, `export`, `push`, `recipes` and `env`.

Nothing heavy is imported before one is called.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bertcli.cli.error_handling import reports_errors
from bertcli.cli.options import (
    Debug,
    Json,
    Mirror,
    Overrides,
    Overwrite,
    Quiet,
    RecipeName,
    RecipesAndKeys,
    Run,
    RunOrModel,
    checked_mirror,
    default_run_folder,
    recipes_and_overrides,
)
from bertcli.cli.recipes import recipes_app
from bertcli.errors import UsageError


def add_helpers(app: typer.Typer) -> None:
    """Give the program these verbs."""
    app.command()(submit)
    app.command()(report)
    app.command()(fetch)
    app.command()(export)
    app.command()(push)
    app.command("env")(environment)
    app.add_typer(recipes_app, name="recipes")


@reports_errors
def submit(
    recipe: RecipeName,
    overrides: Overrides = None,
    run: Run = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines of a job.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs on each, with a process for each; 0: one process.")] = 1,
    cpus: Annotated[int | None, typer.Option(min=1, help="Cores of each process.")] = None,
    time: Annotated[
        str | None, typer.Option(help="Time of a job, such as 90 (minutes), 12:00:00 or 2-00:00:00.")
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Partition of the cluster.")] = None,
    directives: Annotated[
        list[str] | None, typer.Option("--sbatch", help="Any other option of sbatch, such as account=ours or mem=64G.")
    ] = None,
    array: Annotated[
        bool,
        typer.Option(
            "--array", help="A job for each seed, point of a grid or recipe of a suite, and one that gathers."
        ),
    ] = False,
    mirror: Mirror = None,
    only_print: Annotated[bool, typer.Option("--print", help="Show the batch script and do nothing.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fine-tune or pretrain as a job of a Slurm cluster.

    A job that is stopped for another one, or at the end of its time, goes back into the queue and on where it was.

    Example: `bertcli submit glue/sst2 --array --time 2:00:00 --partition gpu`
    """
    from bertcli.cluster.slurm import Request
    from bertcli.commands import submit as program
    from bertcli.console import Console, print_result

    folder = run or default_run_folder(recipe)
    work = program.plan_work(recipe, overrides or [], folder)
    request = Request(nodes, gpus, cpus, time, partition, tuple(directives or ()))
    mirror = checked_mirror(mirror)
    place = program.place_of(folder, mirror)
    command = shlex.join(["bertcli", *sys.argv[1:]])
    scripts = program.write_scripts(command, work, request, place, array=array)
    if only_print:
        print_result("\n".join(scripts.values()).rstrip("\n"))
        return
    console = Console(quiet=quiet)
    program.tell_what_is_absent(work, [recipe, *(overrides or [])], mirror, console)
    told = program.submit(work, scripts, folder, console, overwrite=overwrite)
    if as_json:
        print_result(json.dumps(told, ensure_ascii=False))
    for name, value in told.items():
        console.say(f"{name.replace('_', ' '):<18}{value}")
    console.say(f"{'next':<18}squeue --jobs {told['job']}; when it is done, bertcli report {folder}")


@reports_errors
def report(
    runs: Annotated[list[str], typer.Argument(help="Run folders.", metavar="RUN")],
    html: Annotated[Path | None, typer.Option(help="New file for a page that shows them, side by side.")] = None,
    plots: Annotated[Path | None, typer.Option(help="New folder for their charts as PNG files.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show runs side by side: how good, from how many examples, how soon.

    Of one run, grid or suite, its page (`report.html` in its folder) is written anew, unless `--html` names another
    file.

    Example: `bertcli report runs/first runs/second --html compared.html`
    """
    from bertcli.commands.report import report as compare
    from bertcli.console import Console, print_result

    results, table = compare(runs, html=html, plots=plots, console=Console(quiet=quiet))
    print_result(json.dumps(results, ensure_ascii=False) if as_json else table)


@reports_errors
def fetch(
    words: RecipesAndKeys,
    mirror: Annotated[
        Path | None, typer.Option(envvar="BERTCLI_MIRROR", help="Folder to fill; it may hold things already.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be fetched, and its size.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fill a mirror with the data sets and models of recipes, for machines without a network.

    What was broken off goes on; what is there already is checked and kept.

    Example: `bertcli fetch glue/sst2 glue/rte --mirror /data/mirror`
    """
    if mirror is None:
        raise UsageError("name the folder to fill with --mirror (or BERTCLI_MIRROR)")
    from bertcli.recipe.catalogue import load_any

    names, overrides = recipes_and_overrides(words)
    recipes = {name: load_any(name, overrides) for name in names}
    from bertcli.commands.fetch import fetch as fill
    from bertcli.console import Console, print_result

    results = fill(recipes, mirror, dry_run=dry_run, console=Console(quiet=quiet))
    if as_json:
        print_result(json.dumps(results, ensure_ascii=False))


@reports_errors
def export(
    model: RunOrModel,
    output: Annotated[Path, typer.Option(help="New folder: model.onnx, config.json and the tokenizer's files.")],
    format_name: Annotated[str, typer.Option("--format", help="onnx.")] = "onnx",
    mirror: Mirror = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a model as ONNX, for any batch and length, after comparing its answers with the model's own.

    It needs `pip install "bertcli[export]"`. Example: `bertcli export runs/glue-sst2 --output exported`
    """
    if format_name != "onnx":
        raise UsageError(f"found --format {format_name}, expected onnx")
    mirror = checked_mirror(mirror)
    from bertcli.commands.export import export as write
    from bertcli.console import Console, print_result

    results = write(model, output, mirror=mirror, console=Console(quiet=quiet))
    if as_json:
        print_result(json.dumps(results, ensure_ascii=False))


@reports_errors
def push(
    run: Annotated[str, typer.Argument(help="A finished run.", metavar="RUN")],
    name: Annotated[str, typer.Argument(help="ORGANISATION/NAME on the hub.", metavar="REPO_ID")],
    private: Annotated[bool, typer.Option("--private", help="Only you may see it.")] = False,
    license_name: Annotated[
        str | None, typer.Option("--license", help="Its licence, as the hub names it, such as apache-2.0.")
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="Its language, such as en; may be given several times.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and its size.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Send a run's model and model card (with the recipe, as it stands there) to the Hugging Face hub.

    Log in with `hf auth login` before. Example: `bertcli push runs/glue-sst2 me/my-model --private`
    """
    from bertcli.commands.push import push as send
    from bertcli.console import Console, print_result

    options: dict[str, Any] = {"license_name": license_name, "languages": language or (), "private": private}
    results = send(run, name, dry_run=dry_run, console=Console(quiet=quiet), **options)
    if as_json:
        print_result(json.dumps(results, ensure_ascii=False))


@reports_errors
def environment(mirror: Mirror = None, as_json: Json = False, debug: Debug = False) -> None:
    """Say what this machine has: versions, devices, precision, threads, mirror, caches, free disk.

    It is what a bug report should hold. Example: `bertcli env`
    """
    from bertcli.commands.env import environment_lines, look_around
    from bertcli.console import print_result

    found = look_around(mirror)
    print_result(json.dumps(found, ensure_ascii=False) if as_json else "\n".join(environment_lines(found)))
