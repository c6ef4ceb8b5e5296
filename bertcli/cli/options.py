"""Arguments and options shared by several commands, and their validation, without heavy imports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bertcli.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from bertcli.recipe.schema import HardwareSection


def _complete_recipe(incomplete: str) -> list[str]:
    from bertcli.recipe.catalogue import complete_recipe

    return complete_recipe(incomplete)


def _complete_key(incomplete: str) -> list[str]:
    from bertcli.recipe.catalogue import complete_key

    return complete_key(incomplete)


def _complete_task(incomplete: str) -> list[str]:
    from bertcli.recipe.catalogue import complete_task

    return complete_task(incomplete)


def _complete_recipe_or_key(incomplete: str) -> list[str]:
    return [*_complete_recipe(incomplete), *_complete_key(incomplete)]


Mirror = Annotated[
    Path | None,
    typer.Option(
        envvar="BERTCLI_MIRROR", help="Local mirror with datasets/… and models/…, searched before the Hugging Face Hub."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="On stderr, print only warnings and errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON to stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Print the full traceback if the command fails.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Override recipe keys, e.g. `training.epochs=2`; `bertcli recipes show RECIPE` lists them all.",
        metavar="KEY=VALUE",
        autocompletion=_complete_key,
    ),
]
RecipeName = Annotated[
    str,
    typer.Argument(
        help="Name of a built-in recipe (see `bertcli recipes list`) or path to a YAML file.",
        metavar="RECIPE",
        autocompletion=_complete_recipe,
    ),
]
RecipesAndKeys = Annotated[
    list[str],
    typer.Argument(
        help="One or more recipes, then overrides that apply to all of them.",
        metavar="RECIPE|KEY=VALUE",
        autocompletion=_complete_recipe_or_key,
    ),
]
Run = Annotated[Path | None, typer.Option(help="Run folder [default: runs/RECIPE, with - for /].")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Check recipe, data, model and disk space, and print the plan, without training."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an existing run in the run folder; other files in it are kept.")
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps [default: from the run's recipe, else auto].")]
Precision = Annotated[
    str | None, typer.Option(help="auto, fp32, bf16 or fp16 [default: from the run's recipe, else auto].")
]
Processes = Annotated[
    int, typer.Option(min=1, help="Number of processes on this machine that share the work, e.g. one per GPU.")
]
Jobs = Annotated[
    int,
    typer.Option(
        min=1, help="Number of runs to execute in parallel: seeds, folds, or those of a grid, search or suite"
    ),
]
Array = Annotated[
    bool,
    typer.Option(
        "--array",
        help="Submit a job array (one task per seed, fold, grid point or recipe) and a job that collects results.",
    ),
]
Workers = Annotated[
    int, typer.Option("--jobs", min=2, help="With --array: number of tasks that share the trials of a search.")
]
TaskName = Annotated[
    str | None,
    typer.Option(help="Task or recipe to evaluate on [default: the run's task].", autocompletion=_complete_task),
]
Labels = Annotated[
    str | None,
    typer.Option(help="Comma-separated names for the model's labels, in index order, e.g. `negative,positive`."),
]
RunOrModel = Annotated[
    str, typer.Argument(help="Run folder, model folder or Hugging Face Hub model ID.", metavar="RUN_OR_MODEL")
]


# Options of `predict`.
InputText = Annotated[list[str] | None, typer.Option(help="Input text; repeat for several inputs.")]
PairText = Annotated[
    list[str] | None, typer.Option(help="Second text of a pair, or the context of a question; one per --text.")
]
Choice = Annotated[list[str] | None, typer.Option(help="Answer choice for a single --text; give it two or more times.")]
InputFile = Annotated[str | None, typer.Option("--input", help="Input file; `-` reads stdin.")]
InputFormat = Annotated[
    str | None,
    typer.Option(
        help="text, jsonl, json, csv, tsv, conll or parquet [default: from the file extension; text for stdin]."
    ),
]
InputEncoding = Annotated[
    str | None,
    typer.Option(
        help="Encoding of --input, such as windows-1252 [default: from its byte order mark, else UTF-8; if it is not "
        "UTF-8, that of the run's files]."
    ),
]
InputDelimiter = Annotated[
    str | None,
    typer.Option(help="Separator of a CSV --input: comma, semicolon, tab or pipe [default: detected]."),
]
InputColumnNames = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated names of the columns of a CSV or TSV --input without a header, in their order [default: "
        "the first line has the names]."
    ),
]
PredictSplit = Annotated[str | None, typer.Option(help="Predict on this split of the run's task.")]
Columns = Annotated[str | None, typer.Option(help="Comma-separated names of the input columns [default: the task's].")]
Output = Annotated[
    str,
    typer.Option(
        help="Output file (folder with --format glue or squad); must not exist unless --overwrite is given; `-` is "
        "stdout. Re-run the same command to resume after it was interrupted; --features, glue and squad start over."
    ),
]
OutputFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="jsonl, csv, tsv (unquoted: tabs and line breaks become spaces), parquet, glue or squad "
        "[default: from the extension of --output, else jsonl].",
    ),
]
OverwriteOutput = Annotated[bool, typer.Option("--overwrite", help="Replace existing output files.")]
KeepColumns = Annotated[
    bool,
    typer.Option(
        "--keep-columns",
        help="Write all input columns alongside the predictions; a column whose name clashes with an output column "
        "gets the prefix `input_`.",
    ),
]
Zip = Annotated[bool, typer.Option("--zip", help="With --format glue: also write the files as one zip archive.")]
TopK = Annotated[
    int, typer.Option(min=1, help="Number of candidates to return per masked token, for masked language models.")
]
Features = Annotated[
    bool, typer.Option("--features", help="Write encoder embeddings (.parquet or .npy) instead of predictions.")
]
Layers = Annotated[
    str,
    typer.Option(help="With --features: comma-separated layers; 0 is the embedding layer, -1 the last hidden layer."),
]
Pooling = Annotated[str, typer.Option(help="With --features: mean, cls, or tokens (one vector per token).")]


def distinct_overrides(overrides: list[str] | None) -> list[str]:
    """Return the `key=value` overrides; none if they were left out.

    Raises:
        RecipeError: if two of them set the same key to different values.
    """
    from bertcli.recipe.yaml_layers import conflicting_overrides

    if problems := list(conflicting_overrides(overrides or [])):
        raise RecipeError(problems)
    return overrides or []


def split_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split positional arguments into recipe names and `key=value` overrides.

    Raises:
        UsageError: if there is no recipe.
        RecipeError: if two overrides set the same key to different values.
    """
    names = [argument for argument in arguments if "=" not in argument or os.path.exists(argument)]
    if not names:
        raise UsageError("found no recipe, expected at least one before the KEY=VALUE overrides")
    return names, distinct_overrides([argument for argument in arguments if argument not in names])


def build_inputs(texts: list[str] | None, pairs: list[str] | None, choices: list[str] | None) -> list[list[str]] | None:
    """Build one list of texts per input from `--text`, `--pair` and `--choice`; None if no `--text` was given."""
    if choices is not None and pairs is not None:
        raise UsageError("--choice cannot be combined with --pair; remove --pair")
    if pairs is not None and (texts is None or len(pairs) != len(texts)):
        raise UsageError("give one --pair for each --text")
    if choices is not None and (texts is None or len(texts) != 1 or len(choices) < 2):
        raise UsageError("pass one --text and at least two --choice options")
    if texts is None:
        return None
    if choices is not None:
        return [[texts[0], *choices]]
    return [list(row) for row in zip(texts, *([pairs] if pairs else []), strict=True)]


def split_names(option: str, value: str | None) -> list[str] | None:
    """Split the value of a comma-separated option; None if it was not given."""
    if value is None:
        return None
    names = [name.strip() for name in value.split(",")]
    if not all(names):
        raise UsageError(f"{option} {value[:80]!r} has an empty name; separate the names by single commas")
    return names


def parse_integers(option: str, value: str) -> list[int]:
    """Parse a comma-separated list of integers."""
    try:
        return [int(number) for number in value.split(",")]
    except ValueError:
        raise UsageError(f"found {option} {value}, expected comma-separated integers") from None


def default_run_folder(recipe: str) -> Path:
    """Return the default run folder: `runs/glue-sst2` for `glue/sst2`, `runs/mine` for `path/to/mine.yaml`."""
    is_file = recipe.endswith((".yaml", ".yml"))
    return Path("runs") / (Path(recipe).stem if is_file else recipe.replace("/", "-").lstrip("."))


def check_mirror(mirror: Path | None) -> Path | None:
    """Return `mirror` unchanged.

    Raises:
        UsageError: if `mirror` is not a folder.
    """
    if mirror is not None and not mirror.is_dir():
        raise UsageError(f"found no mirror folder {mirror} (from --mirror or BERTCLI_MIRROR)")
    return mirror


def hardware_section(device: str | None, precision: str | None) -> HardwareSection | None:
    """Build the hardware section from `--device` and `--precision`; None if neither was given.

    Raises:
        UsageError: if a value is not one of the choices.
    """
    from pydantic import ValidationError

    from bertcli.recipe.schema import HardwareSection

    given = {name: value for name, value in (("device", device), ("precision", precision)) if value is not None}
    try:
        return HardwareSection.model_validate(given) if given else None
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"found --{first['loc'][0]} {first['input']}, expected {first['ctx']['expected']}") from error
