"""The verbs of `bertcli recipes`. Nothing heavy is imported before one is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bertcli.cli.error_handling import reports_errors
from bertcli.cli.options import Debug, Json, Overrides, RecipeName, RecipesAndKeys, recipes_and_overrides
from bertcli.errors import RecipeError

recipes_app = typer.Typer(no_args_is_help=True, help="Look at recipes: list, show, copy, check, diff, schema.")


@recipes_app.command("list")
@reports_errors
def list_shipped(
    words: Annotated[list[str] | None, typer.Argument(help="Only those that name all these words.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the shipped recipes: what each is for, and which score to expect, how soon, under which conditions.

    Example: `bertcli recipes list sentiment`
    """
    from bertcli.console import print_result
    from bertcli.recipe.catalogue import list_recipes

    found = list_recipes(words or [])
    if as_json:
        print_result(json.dumps(found, ensure_ascii=False))
        return
    width = max((len(str(recipe["recipe"])) for recipe in found), default=0)
    for recipe in found:
        time, conditions = (recipe[part] for part in ("time", "conditions"))
        words = [
            recipe["score"] or "not measured",
            f"in {time}" if time else "",
            f"({conditions})" if conditions else "",
        ]
        print_result(f"{recipe['recipe']:<{width}}  {recipe['about']}")
        print_result(f"{'':<{width}}  expected: {' '.join(filter(None, words))}")


@recipes_app.command()
@reports_errors
def show(recipe: RecipeName, overrides: Overrides = None, debug: Debug = False) -> None:
    """Show a recipe, or a run's, with every key that it resolves to.

    Example: `bertcli recipes show glue/sst2 training.epochs=1`
    """
    from bertcli.console import print_result
    from bertcli.recipe.catalogue import show_recipe

    print_result(show_recipe(recipe, overrides or []).rstrip("\n"))


@recipes_app.command()
@reports_errors
def copy(
    recipe: RecipeName,
    target: Annotated[Path, typer.Argument(help="New file.")],
    with_schema: Annotated[
        bool, typer.Option("--schema", help="Put the JSON schema beside it, and name it to editors in the first line.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Copy a shipped recipe to a new file, to edit it.

    Example: `bertcli recipes copy sentiment/own-csv mine.yaml`
    """
    from bertcli.recipe.catalogue import copy_recipe

    copy_recipe(recipe, target, with_schema=with_schema)
    typer.echo(f"{target} is yours to edit; `bertcli recipes check {target}` checks it", err=True)


@recipes_app.command()
@reports_errors
def check(
    words: RecipesAndKeys,
    debug: Debug = False,
) -> None:
    """Check recipes without running them; exit code 2 if one is wrong.

    Example: `bertcli recipes check mine.yaml glue/sst2 training.epochs=1`
    """
    from bertcli.console import print_result
    from bertcli.recipe.catalogue import check_recipes

    problems = check_recipes(*recipes_and_overrides(words))
    for name, found in problems.items():
        if not found:
            print_result(f"{name}: fine")
    wrong = [problem for found in problems.values() for problem in found]
    if wrong:
        raise RecipeError(wrong)


@recipes_app.command()
@reports_errors
def diff(
    one: Annotated[str, typer.Argument(help="A recipe or a run folder.")],
    other: Annotated[str, typer.Argument(help="Another.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the keys in which two recipes or runs differ.

    Example: `bertcli recipes diff runs/first runs/second`
    """
    from bertcli.console import format_table, print_result
    from bertcli.recipe.catalogue import compare_recipes

    found = compare_recipes(one, other)
    if as_json:
        rows = [dict(zip(("key", "one", "other"), row, strict=True)) for row in found]
        print_result(json.dumps(rows, ensure_ascii=False))
    elif found:
        print_result(format_table(["key", one, other], found))


@recipes_app.command()
@reports_errors
def schema(
    kind: Annotated[str, typer.Argument(help="finetune or pretrain.")] = "finetune", debug: Debug = False
) -> None:
    """Print the JSON schema of recipes, for editors.

    Example: `bertcli recipes schema > finetune.schema.json`, and `# yaml-language-server: $schema=finetune.schema.json`
    on the first line of a recipe.
    """
    from bertcli.console import print_result
    from bertcli.recipe.catalogue import schema_text

    print_result(schema_text(kind).rstrip("\n"))
