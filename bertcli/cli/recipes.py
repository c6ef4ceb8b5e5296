"""The commands of `bertcli recipes`. Heavy imports are inside the commands."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from bertcli.cli.error_handling import handle_errors
from bertcli.cli.options import Debug, Json, Overrides, RecipeName, RecipesAndKeys, distinct_overrides, split_overrides
from bertcli.errors import RecipeError

recipes_app = typer.Typer(no_args_is_help=True, help="List, show, copy, check and compare recipes.")
TIME_UNITS = {"seconds": "s", "second": "s", "minutes": "min", "minute": "min", "hours": "h", "hour": "h"}


@recipes_app.command("list")
@handle_errors
def list_shipped(
    words: Annotated[
        list[str] | None, typer.Argument(help="Show only recipes that mention all of these words.", metavar="WORD")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the built-in recipes with their descriptions and, where measured, expected scores and training times.

    With `--json`, the settings and machine used for each measured score are included.

    Example: `bertcli recipes list sentiment`
    """
    from bertcli.console import print_result
    from bertcli.recipe.catalogue import list_recipes

    recipes = list_recipes(words or [])
    if as_json:
        print_result(json.dumps(recipes, ensure_ascii=False))
    elif recipes:
        print_result(_format_recipes(recipes))


def _format_recipes(recipes: Iterable[Mapping[str, str | None]]) -> str:
    """Format recipes as a table as wide as the terminal."""
    import io
    import shutil

    from rich.console import Console
    from rich.table import Table

    width = shutil.get_terminal_size().columns
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("recipe", no_wrap=True)
    table.add_column("description", min_width=20)
    table.add_column("expected score", max_width=max(18, width // 4))
    table.add_column("time", no_wrap=True)
    for recipe in recipes:
        number, _, unit = (recipe["time"] or "").partition(" ")
        table.add_row(
            recipe["recipe"], recipe["about"], recipe["score"], f"{number} {TIME_UNITS.get(unit, unit)}".strip()
        )
    text = io.StringIO()
    Console(file=text, width=width, highlight=False, markup=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip("\n").splitlines())


@recipes_app.command()
@handle_errors
def show(
    recipe: RecipeName,
    overrides: Overrides = None,
    no_comments: Annotated[bool, typer.Option("--no-comments", help="Omit the descriptions of the keys.")] = False,
    debug: Debug = False,
) -> None:
    """Show a recipe with defaults and overrides applied: every key with its value and description.

    RECIPE may also be a run folder.

    Example: `bertcli recipes show glue/sst2 training.epochs=1`
    """
    from bertcli.console import print_result
    from bertcli.recipe.catalogue import show_recipe

    print_result(show_recipe(recipe, distinct_overrides(overrides), comments=not no_comments).rstrip("\n"))


@recipes_app.command()
@handle_errors
def copy(
    recipe: RecipeName,
    target: Annotated[Path, typer.Argument(help="File to write; must not exist yet.", metavar="TARGET")],
    with_schema: Annotated[
        bool,
        typer.Option(
            "--schema", help="Also write the JSON Schema and reference it in the recipe, for editor completion."
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """Copy a recipe to a new file for editing.

    Example: `bertcli recipes copy sentiment/custom-csv mine.yaml`
    """
    from bertcli.recipe.catalogue import copy_recipe

    copy_recipe(recipe, target, with_schema=with_schema)
    typer.echo(f"copied {recipe} to {target}; check your edits with `bertcli recipes check {target}`", err=True)


@recipes_app.command()
@handle_errors
def check(
    words: RecipesAndKeys,
    debug: Debug = False,
) -> None:
    """Check recipes without running them; the exit code is 2 if any is invalid.

    Example: `bertcli recipes check mine.yaml glue/sst2 training.epochs=1`
    """
    from bertcli.console import print_result
    from bertcli.recipe.catalogue import check_recipes

    problems_by_recipe = check_recipes(*split_overrides(words))
    for name, problems in problems_by_recipe.items():
        if not problems:
            print_result(f"{name}: ok")
    all_problems = [problem for problems in problems_by_recipe.values() for problem in problems]
    if all_problems:
        raise RecipeError(all_problems)


@recipes_app.command()
@handle_errors
def diff(
    one: Annotated[str, typer.Argument(help="A recipe or a run folder.", metavar="FIRST")],
    other: Annotated[str, typer.Argument(help="A recipe or a run folder to compare with.", metavar="SECOND")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the keys that differ between two recipes or runs.

    Example: `bertcli recipes diff runs/first runs/second`
    """
    from bertcli.console import format_table, print_result
    from bertcli.recipe.catalogue import compare_recipes

    differences = compare_recipes(one, other)
    if as_json:
        rows = [dict(zip(("key", "one", "other"), row, strict=True)) for row in differences]
        print_result(json.dumps(rows, ensure_ascii=False))
    elif differences:
        print_result(format_table(["key", one, other], differences))


@recipes_app.command()
@handle_errors
def schema(
    kind: Annotated[str, typer.Argument(help="finetune or pretrain.", metavar="KIND")] = "finetune",
    debug: Debug = False,
) -> None:
    """Print the JSON Schema of recipes, for editor completion and validation.

    Save it to a file, and begin your recipe with this line: `# yaml-language-server: $schema=finetune.schema.json`

    Example: `bertcli recipes schema > finetune.schema.json`
    """
    from bertcli.console import print_result
    from bertcli.recipe.catalogue import schema_text

    print_result(schema_text(kind).rstrip("\n"))
