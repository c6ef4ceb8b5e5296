"""The options that several verbs share, and what is checked of them before anything heavy is imported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bertcli.errors import UsageError

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
    typer.Option(envvar="BERTCLI_MIRROR", help="Folder with datasets/… and models/…, looked in before the hub."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Only warnings and errors on stderr.")]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Recipe keys, such as `training.epochs=2`; `bertcli recipes show RECIPE` tells all.",
        metavar="KEY=VALUE",
        autocompletion=_complete_key,
    ),
]
RecipeName = Annotated[
    str,
    typer.Argument(
        help="A shipped recipe (`bertcli recipes list`) or a YAML file.",
        metavar="RECIPE",
        autocompletion=_complete_recipe,
    ),
]
RecipesAndKeys = Annotated[
    list[str],
    typer.Argument(
        help="Recipes, then KEY=VALUE for all.",
        metavar="RECIPE|KEY=VALUE",
        autocompletion=_complete_recipe_or_key,
    ),
]
Run = Annotated[Path | None, typer.Option(help="Run folder [default: runs/RECIPE].")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan, train nothing.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in the run folder.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")]
Precision = Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.")]
Processes = Annotated[int, typer.Option(min=1, help="Processes on this machine that share the work.")]
Jobs = Annotated[int, typer.Option(min=1, help="Runs at once, of a grid, a suite or several seeds.")]
TaskName = Annotated[
    str | None,
    typer.Option(help="Task row or recipe, if the model does not say.", autocompletion=_complete_task),
]
Labels = Annotated[
    str | None,
    typer.Option(help="Names for the model's labels, by number, with commas between: `negative,positive`."),
]
RunOrModel = Annotated[str, typer.Argument(help="A run folder, a saved model, or a hub name.", metavar="RUN_OR_MODEL")]


def recipes_and_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """The words that name recipes, and the `key=value` ones."""
    names = [word for word in words if "=" not in word or os.path.exists(word)]
    if not names:
        raise UsageError("name a recipe; KEY=VALUE goes behind it")
    return names, [word for word in words if word not in names]


def given_values(text: list[str] | None, pair: list[str] | None, choice: list[str] | None) -> list[list[str]] | None:
    """The inputs given as options, each a list of its texts; None if there are none."""
    if pair is not None and (text is None or len(pair) != len(text)):
        raise UsageError("give one --pair for each --text")
    if choice is not None and (text is None or len(text) != 1 or pair is not None or len(choice) < 2):
        raise UsageError("give one --text with two or more --choice")
    if text is None:
        return None
    if choice is not None:
        return [[text[0], *choice]]
    return [list(row) for row in zip(text, *([pair] if pair else []), strict=True)]


def names_in(text: str | None) -> list[str] | None:
    """The names of an option with commas between them; None if it was not given."""
    return [name.strip() for name in text.split(",")] if text else None


def whole_numbers(option: str, text: str) -> list[int]:
    """The numbers of an option with commas between them."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"found {option} {text}, expected whole numbers with commas between them") from None


def default_run_folder(recipe: str) -> Path:
    """`runs/glue-sst2` for `glue/sst2`, `runs/mine` for `some/where/mine.yaml`."""
    is_file = recipe.endswith((".yaml", ".yml"))
    return Path("runs") / (Path(recipe).stem if is_file else recipe.replace("/", "-").lstrip("."))


def checked_mirror(mirror: Path | None) -> Path | None:
    """The mirror, which must be a folder."""
    if mirror is not None and not mirror.is_dir():
        raise UsageError(f"found no mirror folder {mirror} (from --mirror or BERTCLI_MIRROR)")
    return mirror


def asked_hardware(device: str | None, precision: str | None) -> HardwareSection | None:
    """A hardware section if a person asked for something; None leaves it to the run's recipe."""
    from pydantic import ValidationError

    from bertcli.recipe.schema import HardwareSection

    given = {name: value for name, value in (("device", device), ("precision", precision)) if value is not None}
    try:
        return HardwareSection.model_validate(given) if given else None
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"found --{first['loc'][0]} {first['input']}, expected {first['ctx']['expected']}") from error
