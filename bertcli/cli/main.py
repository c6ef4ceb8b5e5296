"""The command line: parse, call one command, answer with an exit code. No torch is imported for `--help`."""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import Annotated, Any

import typer

from bertcli import __version__
from bertcli.cli.error_handling import reports_errors
from bertcli.cli.options import (
    Debug,
    Device,
    DryRun,
    Jobs,
    Json,
    Labels,
    Mirror,
    Overrides,
    Overwrite,
    Precision,
    Processes,
    Quiet,
    RecipeName,
    Run,
    RunOrModel,
    TaskName,
    asked_hardware,
    checked_mirror,
    default_run_folder,
    given_values,
    names_in,
    whole_numbers,
)
from bertcli.cli.tools import add_helpers
from bertcli.errors import UsageError

ENVIRONMENT = {  # what libraries read before they begin, unless it is set already
    "TOKENIZERS_PARALLELISM": "true",
    "THP_MEM_ALLOC_ENABLE": "1",  # torch on a CPU: large pages, far fewer of them to map
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "2048",  # bf16 on a CPU: kernels of 0.7 MB, made for each number of tokens
    "HF_HUB_VERBOSITY": "error",  # its retries are noise beside the one message that follows
}

app = typer.Typer(
    name="bertcli",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Pretrain and fine-tune BERT-family encoders from a recipe, score them and use them.",
    epilog="Exit codes: 0 done · 1 failure · 2 wrong usage or recipe · stopped by Ctrl-C 130, SIGTERM 143, SIGUSR1 85",
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
@reports_errors
def finetune(
    recipe: RecipeName,
    overrides: Overrides = None,
    run: Run = None,
    mirror: Mirror = None,
    processes: Processes = 1,
    jobs: Jobs = 1,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fine-tune a model as a recipe says.

    A list under a key of `training` makes a grid: a run for each combination, the best by validation chosen. The same
    command again goes on where the run stopped.

    Example: `bertcli finetune glue/sst2 training.seed=1 --run runs/first`
    """
    from bertcli.commands.finetune import finetune as run_finetune
    from bertcli.console import Console, print_result
    from bertcli.recipe.suite import load_finetuning
    from bertcli.runs.folder import RunOptions

    loaded = load_finetuning(recipe, overrides or [])
    if processes > 1 and jobs > 1:
        raise UsageError("give one of --processes (they share a run) and --jobs (each has a run of its own)")
    mirror = checked_mirror(mirror)
    _spread(processes)
    options = RunOptions(mirror, dry_run, overwrite, Console(quiet=quiet))
    results = run_finetune(loaded, run or default_run_folder(recipe), options, jobs=jobs)
    if as_json:
        print_result(json.dumps(results, ensure_ascii=False))


@app.command()
@reports_errors
def pretrain(
    recipe: RecipeName,
    overrides: Overrides = None,
    run: Run = None,
    mirror: Mirror = None,
    processes: Processes = 1,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Pretrain a model on plain text as a recipe says.

    The same command again goes on where the run stopped.

    Example: `bertcli pretrain pretrain/tiny --run runs/tiny`
    """
    from bertcli.console import LOADING, Console, print_result
    from bertcli.recipe.load import load_pretrain_recipe
    from bertcli.runs.folder import RunOptions

    loaded = load_pretrain_recipe(recipe, overrides or [])
    mirror = checked_mirror(mirror)
    _spread(processes)
    options = RunOptions(mirror, dry_run, overwrite, Console(quiet=quiet))
    with options.console.waiting(LOADING):
        from bertcli.commands.pretrain import pretrain as run_pretrain
    results = run_pretrain(loaded, run or default_run_folder(recipe), options)
    if as_json:
        print_result(json.dumps(results, ensure_ascii=False))


@app.command("eval")
@reports_errors
def evaluate(
    model: RunOrModel,
    task: TaskName = None,
    split: Annotated[str, typer.Option(help="train, validation, test, or a name the data set knows.")] = "validation",
    labels: Labels = None,
    mirror: Mirror = None,
    device: Device = None,
    precision: Precision = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Score a model on a split.

    Example: `bertcli eval runs/glue-sst2 --split validation --json`
    """
    mirror = checked_mirror(mirror)
    hardware = asked_hardware(device, precision)
    from bertcli.console import LOADING, Console, print_result

    console = Console(quiet=quiet)
    with console.waiting(LOADING):
        from bertcli.commands.evaluate import evaluate as run_evaluate
    asked: dict[str, Any] = {"labels": names_in(labels), "mirror": mirror, "hardware": hardware, "console": console}
    results = run_evaluate(model, task_name=task, split=split, **asked)
    if as_json:
        print_result(json.dumps(results, ensure_ascii=False))
        return
    scores = results["metrics"][split]
    width = max(20, *(len(name) + 2 for name in scores))
    for name, value in scores.items():
        words = f"{value['mean']:.6f} ± {value['sd']:.6f}" if isinstance(value, dict) else f"{value:.6f}"
        print_result(f"{name:<{width}}{words}")


@app.command()
@reports_errors
def predict(
    model: RunOrModel,
    text: Annotated[list[str] | None, typer.Option(help="A text; may be given several times.")] = None,
    pair: Annotated[
        list[str] | None, typer.Option(help="The second text (or the passage of a question), one for each --text.")
    ] = None,
    choice: Annotated[list[str] | None, typer.Option(help="A choice for the one --text; two or more times.")] = None,
    input_file: Annotated[str | None, typer.Option("--input", help="File of inputs; `-` is stdin.")] = None,
    input_format: Annotated[
        str | None,
        typer.Option(help="text, jsonl, json, csv, tsv, conll, parquet [default: by the ending; stdin: text]."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Answer this split of the run's own task.")] = None,
    columns: Annotated[str | None, typer.Option(help="Columns of the input, with commas between them.")] = None,
    output: Annotated[
        str, typer.Option(help="New file (a folder for glue and squad) for the answers; `-` is stdout.")
    ] = "-",
    format_name: Annotated[str, typer.Option("--format", help="jsonl, csv, tsv, glue or squad.")] = "jsonl",
    as_zip: Annotated[bool, typer.Option("--zip", help="Pack the files of --format glue into one.")] = False,
    top_k: Annotated[int, typer.Option(min=1, help="Tokens to list for each mask, if the model fills masks.")] = 5,
    features: Annotated[
        bool, typer.Option("--features", help="Vectors of the encoder instead of answers (.parquet or .npy).")
    ] = False,
    layers: Annotated[str, typer.Option(help="Layers for --features; 0 is the embeddings, -1 the last.")] = "-1",
    pooling: Annotated[str, typer.Option(help="mean, cls or tokens, for --features.")] = "mean",
    labels: Labels = None,
    mirror: Mirror = None,
    device: Device = None,
    precision: Precision = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Answer for texts, in their order.

    Examples: `bertcli predict runs/glue-sst2 --text "a fine film"` ·
    `bertcli predict runs/glue-sst2 --input reviews.csv --output answers.csv --format csv`
    """
    if [text, input_file, split].count(None) != (3 if format_name == "glue" else 2):
        raise UsageError("give one of --text (once or more), --input FILE (`-` for stdin) and --split NAME")
    if labels and (features or format_name == "glue"):
        raise UsageError("--labels renames the answers of one model, not vectors or GLUE's files; leave it out")
    values = given_values(text, pair, choice)
    mirror = checked_mirror(mirror)
    hardware = asked_hardware(device, precision)
    from bertcli.console import LOADING, Console

    console = Console(quiet=quiet)
    with console.waiting(LOADING):
        from bertcli.commands.predict import predict as run_predict
        from bertcli.commands.predict import predict_features
    asked: dict[str, Any] = {"input_path": input_file or "-", "input_format": input_format, "split": split}
    asked |= {"columns": names_in(columns), "mirror": mirror, "hardware": hardware, "console": console}
    if features:
        predict_features(model, values, output, layers=whole_numbers("--layers", layers), pooling=pooling, **asked)
        return
    run_predict(model, values, output, format_name, as_zip=as_zip, top_k=top_k, labels=names_in(labels), **asked)


add_helpers(app)


def _spread(processes: int) -> None:
    """Go on in so many processes, and end with their exit code, unless this is one of several."""
    from bertcli.cluster.launch import is_joined, join_step, launch

    join_step()
    if processes > 1 and not is_joined():
        raise typer.Exit(launch(processes, sys.argv[1:]))


def main() -> None:
    """The console script."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore", FutureWarning)  # what libraries tell each other's authors
    app()
