"""Commands other than `finetune`, `pretrain`, `eval` and `predict`: init, check, submit, report, fetch and others.

Heavy imports are inside the functions.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from bertcli.cli.error_handling import handle_errors
from bertcli.cli.options import (
    Array,
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
    Workers,
    check_mirror,
    default_run_folder,
    distinct_overrides,
    split_overrides,
)
from bertcli.cli.recipes import recipes_app
from bertcli.errors import UsageError

SERVERS = """To serve a text classifier or tagger, pass the model folder of a run, not the exported one, to vLLM,
`vllm serve runs/glue-sst2/model --runner pooling` (POST /classify, or /pooling for tags), or a text classifier to
text-embeddings-inference, `text-embeddings-router --model-id runs/glue-sst2/model` (POST /predict).

Triton serves exported models: `mkdir -p repository/sst2/1 && cp exported/model.onnx* repository/sst2/1/`, then
`tritonserver --model-repository=repository --backend-config=default-max-batch-size=32`; it reads inputs and outputs
from the graph."""


def add_tools(app: typer.Typer) -> None:
    """Register these commands with the app."""
    app.command()(init)
    app.command()(check)
    app.command()(submit)
    app.command()(report)
    app.command()(fetch)
    app.command(epilog=SERVERS)(export)
    app.command()(bench)
    app.command()(push)
    app.command("env")(environment)
    app.add_typer(recipes_app, name="recipes")


@handle_errors
def init(
    data: Annotated[list[Path], typer.Argument(help="Data files, or folders of them.", metavar="DATA")],
    model: Annotated[
        str | None, typer.Option(help="Model to fine-tune: folder, run or Hub ID [default: BERT].")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="New recipe [default: named after the data].")] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="Column of the text; twice for pairs of texts [default: inferred].")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="Column of the label or answer; repeat for columns of 0 and 1 [default: inferred]."),
    ] = None,
    problem: Annotated[
        str | None,
        typer.Option(
            help="single_label, multi_label, regression, tags, spans, questions or choices [default: inferred]."
        ),
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Column whose equal values stay in one split, or none [default: inferred].")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Column of each row's split, or none [default: inferred].")] = None,
    label_delimiter: Annotated[
        str | None, typer.Option(help="Separator of labels in a cell [default: inferred].")
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Encoding of the files, such as windows-1252 [default: detected].")
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="Separator of CSV files: comma, semicolon, tab or pipe [default: detected].")
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Columns of CSV without a header, such as label,text.")] = None,
    mirror: Mirror = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a recipe for your own data files.

    File names such as train.csv, dev.csv and test.csv decide the splits. The summary says what was found, and which
    option decides what is unclear.

    Example: `bertcli init reviews.csv --model google-bert/bert-base-uncased`
    """
    from bertcli.commands.init import init as run_init
    from bertcli.console import print_result
    from bertcli.data.inferred_task import Choices

    choices = Choices(tuple(text or ()), tuple(label or ()), problem, group, split, label_delimiter)
    result = run_init(
        data,
        choices,
        model=model,
        output=output,
        encoding=encoding,
        delimiter=delimiter,
        column_names=columns,
        mirror=check_mirror(mirror),
    )
    print_result(json.dumps(result.to_json(), ensure_ascii=False) if as_json else "\n".join(result.lines))


@handle_errors
def check(
    recipe: RecipeName,
    overrides: Overrides = None,
    mirror: Mirror = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check the data of a recipe: labels, duplicates and leaks between splits, lengths, unknown tokens and more.

    Example: `bertcli check recipe.yaml`
    """
    from bertcli.commands.check import check as run_check
    from bertcli.console import Console, print_result
    from bertcli.finetuning.data_check import describe
    from bertcli.recipe.catalogue import run_recipe_path

    words = distinct_overrides(overrides)
    result = run_check(recipe, words, mirror=check_mirror(mirror), console=Console(quiet=quiet))
    lines = describe(result, shlex.join(["bertcli", "finetune", run_recipe_path(recipe), *words]))
    print_result(json.dumps(result.to_json(), ensure_ascii=False) if as_json else "\n".join(lines))


@handle_errors
def submit(
    recipe: RecipeName,
    overrides: Overrides = None,
    run: Run = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes per job.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs per node, one process each; 0: one CPU process per node.")] = 1,
    cpus: Annotated[int | None, typer.Option(min=1, help="CPU cores per process [default: cluster default].")] = None,
    time: Annotated[
        str | None,
        typer.Option(help="Time limit per job: 90 (minutes), 12:00:00 or 2-00:00:00 [default: cluster default]."),
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm partition [default: cluster default].")] = None,
    directives: Annotated[
        list[str] | None,
        typer.Option("--sbatch", help="Additional sbatch option, e.g. account=ours or mem=64G; repeatable."),
    ] = None,
    array: Array = False,
    workers: Workers = 4,
    mirror: Mirror = None,
    print_only: Annotated[
        bool, typer.Option("--print", help="Print the batch scripts without writing or submitting anything.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fine-tune or pretrain as a job on a Slurm cluster.

    A job that is preempted or reaches its time limit saves a checkpoint, is requeued and resumes.

    Example: `bertcli submit glue/sst2 "training.seed=[1,2,3]" --array --time 2:00:00 --partition gpu`
    """
    mirror = check_mirror(mirror)
    from bertcli.cluster.slurm import JobResources
    from bertcli.commands.submit import submit as run_submit
    from bertcli.console import Console, print_result
    from bertcli.runs.environment import mask_secrets

    submission = run_submit(
        recipe,
        distinct_overrides(overrides),
        run or default_run_folder(recipe),
        JobResources(nodes, gpus, cpus, time, partition, tuple(directives or ())),
        array=array,
        num_workers=workers,
        print_only=print_only,
        overwrite=overwrite,
        mirror=mirror,
        command_line=shlex.join(["bertcli", *mask_secrets(sys.argv[1:])]),
        console=Console(quiet=quiet),
    )
    if print_only:
        print_result("\n".join(submission.scripts.values()).rstrip("\n"))
    elif as_json:
        print_result(json.dumps(submission.jobs, ensure_ascii=False))


@handle_errors
def report(
    runs: Annotated[list[str], typer.Argument(help="Run folders to compare.", metavar="RUN")],
    html: Annotated[
        Path | None, typer.Option(help="Write the comparison to this HTML file, which must not exist yet.")
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(help="Write the charts as PNG files to this folder, which must be new or empty.")
    ] = None,
    significance: Annotated[
        bool, typer.Option("--significance", help="Test on the validation rows whether one of two runs is better.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare runs: scores, number of training examples and training time.

    For a single run, grid, cross-validation or suite, `report.html` in its folder is rewritten unless `--html` names
    another file.

    Example: `bertcli report runs/first runs/second --html compared.html`

    Example: `bertcli report runs/first runs/second --significance`
    """
    from bertcli.commands.report import report as compare
    from bertcli.console import Console, print_result

    results, table = compare(runs, html=html, plots=plots, significance=significance, console=Console(quiet=quiet))
    print_result(json.dumps(results, ensure_ascii=False) if as_json else table)


@handle_errors
def fetch(
    arguments: RecipesAndKeys,
    mirror: Annotated[
        Path | None,
        typer.Option(envvar="BERTCLI_MIRROR", help="Mirror folder to download into; existing files are kept."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files and their sizes without downloading.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Download the datasets and models that recipes need into a local mirror, for offline use.

    Partial downloads are resumed; files that are already there are verified and kept.

    Example: `bertcli fetch glue/sst2 glue/rte --mirror /data/mirror`
    """
    if mirror is None:
        raise UsageError("found no mirror folder to download into; set --mirror or BERTCLI_MIRROR")
    from bertcli.recipe.catalogue import load_any

    names, overrides = split_overrides(arguments)
    recipes = {name: load_any(name, overrides) for name in names}
    from bertcli.commands.fetch import fetch as run_fetch
    from bertcli.console import Console, print_result

    results = run_fetch(recipes, mirror, dry_run=dry_run, console=Console(quiet=quiet))
    if as_json:
        print_result(json.dumps(results, ensure_ascii=False))


@handle_errors
def export(
    model: RunOrModel,
    output: Annotated[Path, typer.Option(help="New folder for model.onnx, config.json and the tokenizer files.")],
    format_name: Annotated[str, typer.Option("--format", help="Export format; only onnx is supported.")] = "onnx",
    precision: Annotated[
        str, typer.Option(help="fp32; int8, smaller and faster on CPUs; or fp16, smaller and faster on GPUs.")
    ] = "fp32",
    mirror: Mirror = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Export a model to ONNX, with dynamic batch size and sequence length.

    Checks ONNX Runtime's outputs against PyTorch's, and compares both in score (on up to 1,000 validation rows of a
    run), size and latency. Requires `pip install "bertcli[export]"`.

    Example: `bertcli export runs/glue-sst2 --output exported --precision int8`
    """
    if format_name != "onnx":
        raise UsageError(f"found --format {format_name}, expected onnx")
    mirror = check_mirror(mirror)
    from bertcli.commands.export import export as run_export
    from bertcli.console import Console, print_result

    results = run_export(model, output, precision=precision, mirror=mirror, console=Console(quiet=quiet))
    if as_json:
        print_result(json.dumps(results, ensure_ascii=False))


@handle_errors
def bench(
    model: RunOrModel,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Number of threads [default: OMP_NUM_THREADS, or one per core].")
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(min=1, help="Time made-up texts of this many tokens [default: the task's validation texts]."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.01, max=600, help="Duration of each measurement.")] = 2.0,
    mirror: Mirror = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Time a model on this machine's CPU: latency and throughput of PyTorch and ONNX Runtime.

    Times batches of 1, 8 and 32 rows in fp32, in bf16 if the CPU has instructions for it, and as ONNX graphs in fp32
    and int8, which requires `pip install "bertcli[export]"`. Tokenization is not included.

    Example: `bertcli bench runs/glue-sst2 --threads 2`
    """
    mirror = check_mirror(mirror)
    from bertcli.commands.bench import bench as run_bench
    from bertcli.commands.bench import format_results
    from bertcli.console import Console, print_result

    results = run_bench(
        model, threads=threads, length=length, seconds=seconds, mirror=mirror, console=Console(quiet=quiet)
    )
    print_result(json.dumps(results, ensure_ascii=False) if as_json else format_results(results["results"]))


@handle_errors
def push(
    run: Annotated[str, typer.Argument(help="Folder of a finished run.", metavar="RUN")],
    name: Annotated[
        str, typer.Argument(help="Repository on the Hub: ORGANIZATION/NAME or USER/NAME.", metavar="REPO_ID")
    ],
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    license_name: Annotated[
        str | None, typer.Option("--license", help="License identifier on the Hub, e.g. apache-2.0.")
    ] = None,
    languages: Annotated[
        list[str] | None, typer.Option("--language", help="Language of the model, e.g. en; repeatable.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files and their sizes without uploading.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Upload a run's model and model card to the Hugging Face Hub.

    The card contains the recipe. Log in first with `hf auth login`.

    Example: `bertcli push runs/glue-sst2 me/my-model --private`
    """
    from bertcli.commands.push import push as run_push
    from bertcli.console import Console, print_result

    results = run_push(
        run,
        name,
        license_name=license_name,
        languages=languages or (),
        private=private,
        dry_run=dry_run,
        console=Console(quiet=quiet),
    )
    if as_json:
        print_result(json.dumps(results, ensure_ascii=False))


@handle_errors
def environment(mirror: Mirror = None, as_json: Json = False, debug: Debug = False) -> None:
    """Show versions, devices, precision, threads, mirror, caches and free disk space.

    Include the output in bug reports.

    Example: `bertcli env`
    """
    from bertcli.commands.env import env
    from bertcli.console import print_result

    facts, text = env(mirror)
    print_result(json.dumps(facts, ensure_ascii=False) if as_json else text)
