"""The command line: parse arguments, call one command, print its result. `--help` does not import torch."""

from __future__ import annotations

import json
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bertcli import __version__
from bertcli.cli.error_handling import Commands, handle_errors
from bertcli.cli.options import (
    Choice,
    Columns,
    Debug,
    Device,
    DryRun,
    Features,
    InputColumnNames,
    InputDelimiter,
    InputEncoding,
    InputFile,
    InputFormat,
    InputText,
    Jobs,
    Json,
    KeepColumns,
    Labels,
    Layers,
    Mirror,
    Output,
    OutputFormat,
    Overrides,
    Overwrite,
    OverwriteOutput,
    PairText,
    Pooling,
    Precision,
    PredictSplit,
    Processes,
    Quiet,
    RecipeName,
    Run,
    RunOrModel,
    TaskName,
    TopK,
    Zip,
    build_inputs,
    check_mirror,
    default_run_folder,
    distinct_overrides,
    hardware_section,
    parse_integers,
    split_names,
)
from bertcli.cli.tools import add_tools
from bertcli.errors import UsageError
from bertcli.malloc import without_garbage_collection

DEFAULT_ENVIRONMENT = {  # libraries read these at import; variables that are already set are left unchanged
    "TOKENIZERS_PARALLELISM": "true",
    # GNU OpenMP, which torch uses: waiting threads spin for microseconds, not milliseconds. On a busy core, those that
    # spin keep the thread that they wait for from running, and training is up to ten times slower.
    "GOMP_SPINCOUNT": "2000",
    "THP_MEM_ALLOC_ENABLE": "1",  # torch on CPU: transparent huge pages, so far fewer page faults
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "2048",  # bf16 on CPU: one kernel of about 0.7 MB per distinct number of tokens
    # transformers would have a service convert pickled weights, and open a pull request on the Hub.
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "HF_HUB_VERBOSITY": "error",  # hide the retry warnings; the final error is reported once
}
SEVERAL_PROCESSES = (
    "several processes (--processes, torchrun, srun) divide the rows of a file (--input) or --split; use a single one "
    "for --text, standard input, pipes, --features, --format glue and --format squad"
)
ONE_INPUT = (
    "give exactly one of --text (repeatable), --input FILE (`-` for stdin) and --split NAME; "
    "with --format glue, none of them"
)

app = typer.Typer(
    name="bertcli",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Pretrain, fine-tune, evaluate and run BERT-family encoders from YAML recipes.",
    epilog="Exit codes: 0 success · 1 failure · 2 invalid usage or recipe · 130 Ctrl-C · 143 SIGTERM · 85 SIGUSR1",
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
@handle_errors
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
    """Fine-tune a model from a recipe.

    If a `training` key other than `seed` is a list, a grid search trains each combination of values, once per seed, and
    chooses the one with the best mean validation score over seeds. With `search`, trials draw values from ranges.
    With `data.folds=5`, a model is trained for each of five folds of the training rows (cross-validation).
    Re-run the same command to resume.

    Example: `bertcli finetune glue/sst2 training.seed=1 --run runs/first`
    """
    from bertcli.commands.finetune import finetune as run_finetune
    from bertcli.console import Console, print_result
    from bertcli.recipe.suite import load_finetuning
    from bertcli.runs.folder import RunOptions

    loaded = load_finetuning(recipe, distinct_overrides(overrides))
    if jobs > 1 and _has_several_processes(processes):
        raise UsageError("give either --processes (several processes per run) or --jobs (several runs), not both")
    mirror = check_mirror(mirror)
    _launch_processes(processes)
    options = RunOptions(mirror, dry_run, overwrite, Console(quiet=quiet))
    results = run_finetune(loaded, run or default_run_folder(recipe), options, jobs=jobs)
    if as_json:
        print_result(json.dumps(results.to_json(), ensure_ascii=False))


@app.command()
@handle_errors
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
    """Pretrain a model on plain text from a recipe.

    Re-run the same command to resume.

    Example: `bertcli pretrain pretrain/tiny --run runs/tiny`
    """
    from bertcli.console import LOADING, Console, print_result
    from bertcli.recipe.load import dump_recipe, load_pretrain_recipe
    from bertcli.runs.claim import claim_run
    from bertcli.runs.folder import RunOptions

    loaded = load_pretrain_recipe(recipe, distinct_overrides(overrides))
    mirror = check_mirror(mirror)
    _launch_processes(processes)
    options, run = RunOptions(mirror, dry_run, overwrite, Console(quiet=quiet)), run or default_run_folder(recipe)
    claim_run(run, dump_recipe(loaded), overwrite=overwrite)  # `run_pretrain` repeats this, after seconds of imports
    with options.console.waiting(LOADING), without_garbage_collection():
        from bertcli.commands.pretrain import pretrain as run_pretrain
    results = run_pretrain(loaded, run, options)
    if as_json:
        print_result(json.dumps(results.to_json(), ensure_ascii=False))


@app.command("eval")
@handle_errors
def evaluate(
    model: RunOrModel,
    task: TaskName = None,
    split: Annotated[
        str, typer.Option(help="Split to score: train, validation, test, or another split of the dataset.")
    ] = "validation",
    labels: Labels = None,
    mirror: Mirror = None,
    processes: Processes = 1,
    device: Device = None,
    precision: Precision = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Evaluate a model on one split of a task.

    Example: `bertcli eval runs/glue-sst2 --split validation --json`
    """
    mirror = check_mirror(mirror)
    hardware = hardware_section(device, precision)
    from bertcli.console import LOADING, Console, is_first_process, print_result
    from bertcli.models.from_pretrained import ModelSource

    if not os.path.isdir(model):  # a folder may hold several models
        ModelSource(model, mirror)
    _launch_processes(processes)
    console = Console(quiet=quiet, mute=not is_first_process())
    with console.waiting(LOADING), without_garbage_collection():
        from bertcli.commands.evaluate import evaluate as run_evaluate
    results = run_evaluate(
        model,
        task_name=task,
        split=split,
        labels=split_names("--labels", labels),
        mirror=mirror,
        hardware=hardware,
        console=console,
    )
    if as_json:
        print_result(json.dumps(results.to_json(), ensure_ascii=False))
        return
    scores = results.metrics[split]
    width = max(20, *(len(name) + 2 for name in scores))
    for name, score in scores.items():
        text = f"{score:.6f}" if isinstance(score, float) else f"{score.mean:.6f} ± {score.sd:.6f}"
        interval = results.interval_text(name, split)
        print_result(f"{name:<{width}}{text}{f'  95 % interval {interval}' if interval else ''}")


@app.command()
@handle_errors
def predict(
    model: RunOrModel,
    text: InputText = None,
    pair: PairText = None,
    choice: Choice = None,
    input_file: InputFile = None,
    input_format: InputFormat = None,
    input_encoding: InputEncoding = None,
    input_delimiter: InputDelimiter = None,
    input_column_names: InputColumnNames = None,
    split: PredictSplit = None,
    columns: Columns = None,
    output: Output = "-",
    format_name: OutputFormat = None,
    overwrite: OverwriteOutput = False,
    keep_columns: KeepColumns = False,
    as_zip: Zip = False,
    top_k: TopK = 5,
    features: Features = False,
    layers: Layers = "-1",
    pooling: Pooling = "mean",
    labels: Labels = None,
    mirror: Mirror = None,
    processes: Processes = 1,
    device: Device = None,
    precision: Precision = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Predict labels, tags or answers for texts; outputs are in input order.

    Example: `bertcli predict runs/glue-sst2 --text "a fine film"`

    Example: `bertcli predict runs/glue-sst2 --input reviews.csv --output predictions.csv`
    """
    _check_inputs(text, input_file, split, format_name)
    _check_have_effect(labels, keep_columns, features, text, format_name)
    if _has_several_processes(processes):
        _check_divisible(input_file, split, is_single=features or format_name in ("glue", "squad"))
    values = build_inputs(text, pair, choice)
    format_name = _check_output(output, format_name, pooling if features else None, input_file, keep_columns, overwrite)
    mirror, hardware = check_mirror(mirror), hardware_section(device, precision)
    _check_model(model, mirror, format_name)
    from bertcli.console import LOADING, Console, is_first_process

    _launch_processes(processes)
    console = Console(quiet=quiet, mute=not is_first_process())
    with console.waiting(LOADING), without_garbage_collection():
        from bertcli.commands import predict as command
        from bertcli.data.prediction_inputs import PredictionInput
    new_labels, names = split_names("--labels", labels), split_names("--columns", columns)
    source = (input_file or "-", input_format, split, names, keep_columns)
    header = split_names("--input-column-names", input_column_names)
    inputs = PredictionInput(values, *source, input_encoding, input_delimiter, header)
    if features:
        write = partial(command.predict_features, layers=parse_integers("--layers", layers), pooling=pooling)
    else:
        write = partial(command.predict, format_name=format_name, as_zip=as_zip, top_k=top_k, labels=new_labels)
    write(model, inputs, output, overwrite=overwrite, mirror=mirror, hardware=hardware, console=console)


add_tools(app)


def _check_have_effect(
    labels: str | None, keep_columns: bool, features: bool, text: list[str] | None, format_name: str | None
) -> None:
    if labels and (features or format_name == "glue"):
        raise UsageError("--labels has no effect with --features or --format glue; leave it out")
    if keep_columns and (features or text):
        raise UsageError("--keep-columns has no effect with --text or --features; leave it out")


def _check_inputs(text: list[str] | None, input_file: str | None, split: str | None, format_name: str | None) -> None:
    if [text, input_file, split].count(None) != (3 if format_name == "glue" else 2):
        raise UsageError(ONE_INPUT)
    if input_file is None or input_file == "-":
        return
    if os.path.isdir(input_file):
        raise UsageError(f"--input {input_file} is a folder, expected a file; predict each of its files by itself")
    if not os.path.exists(input_file):
        raise UsageError(f"found no file {input_file} (from --input)")


def _check_divisible(input_file: str | None, split: str | None, *, is_single: bool) -> None:
    # Each process reads all rows and predicts some of them, which it could not do with a pipe.
    if is_single or (split is None and not (input_file and os.path.isfile(input_file))):
        raise UsageError(SEVERAL_PROCESSES)


def _check_model(name: str, mirror: Path | None, format_name: str | None) -> None:
    """Check that a model exists before the libraries are imported."""
    from bertcli.models.from_pretrained import ModelSource
    from bertcli.runs.members import best_seed

    if format_name != "glue":  # which also predicts with each model of a suite
        ModelSource(best_seed(name), mirror)


def _check_output(
    output: str,
    format_name: str | None,
    pooling: str | None,
    input_file: str | None,
    keep_columns: bool,
    overwrite: bool,
) -> str | None:
    """Check arguments of `predict` before the libraries are imported; return the format, or None for features.

    Args:
        pooling: how features are pooled; None: predictions are written.
    """
    from bertcli.inference.prediction_outputs import check_feature_output, check_outputs, resolve_format

    inputs = [] if input_file is None else [input_file]
    if pooling is None:
        format_name = resolve_format(format_name, output)
        check_outputs(format_name, output, inputs, keep_columns=keep_columns, overwrite=overwrite)
        return format_name
    if format_name is not None:
        raise UsageError(
            "--features writes .parquet or .npy, according to the extension of --output; leave out --format"
        )
    check_feature_output(Path(output), pooling, inputs, overwrite=overwrite)
    return None


def _has_several_processes(processes: int) -> bool:
    """Return whether this command runs, or will run, in several processes, given `--processes`."""
    from bertcli.cluster.launch import join_slurm_step, world_size

    join_slurm_step()
    return max(processes, world_size()) > 1


def _launch_processes(num_processes: int) -> None:
    """Re-run this command in `num_processes` processes and exit, unless this is one of them."""
    from bertcli.cluster.launch import is_worker_process, join_slurm_step, launch

    join_slurm_step()
    if num_processes > 1 and not is_worker_process():
        launch(num_processes, sys.argv[1:])
        raise typer.Exit


def main() -> None:
    """Entry point of the `bertcli` console script."""
    for name, value in DEFAULT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore", FutureWarning)  # library deprecations that users of bertcli cannot act on
    try:
        app()
    except SystemExit as end:
        from bertcli.cluster.launch import end_process

        end_process(end.code if isinstance(end.code, int) else 0)
        raise
