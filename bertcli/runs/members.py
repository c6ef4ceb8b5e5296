"""Run folders inside the folder of several runs: of seeds, folds, grid points and trials; and which of them to use."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from bertcli.errors import UsageError
from bertcli.files import MANIFEST
from bertcli.recipe.member_names import SEED_NAME, fold_name, seed_name
from bertcli.recipe.schema import Recipe
from bertcli.runs.folder import RunFolder

MAX_LISTED = 5  # maximum number of runs named in a message


def chosen_run(name: str) -> str:
    """Return the run folder that a finished grid or search has chosen; any other name unchanged.

    Raises:
        UsageError: if the results in the folder cannot be read.
    """
    folder = RunFolder(Path(name))
    chosen = None if folder.recipe.is_file() else folder.read_results_json().get("chosen")
    return str(folder.path / chosen) if isinstance(chosen, str) else name


def seed_run(parent: Path, seed: int) -> Path:
    """Return the run folder of one of several seeds."""
    return parent / seed_name(seed)


def seed_folders(parent: Path, seeds: Sequence[int]) -> list[Path]:
    """Return the run folder of each seed of a recipe: `parent` itself if there is only one seed."""
    return [seed_run(parent, seed) for seed in seeds] if len(seeds) > 1 else [parent]


def seed_runs(name: str) -> list[str]:
    """Return the run folder of each seed or fold if `name` holds several, else `name`.

    For a grid or search, use the run that it has chosen.
    """
    name = chosen_run(name)
    folds = fold_runs(Path(name))
    if folds:
        return [str(run) for run in folds]
    children = [recipe.parent for recipe in Path(name).glob("*/recipe.yaml") if SEED_NAME.fullmatch(recipe.parent.name)]
    return [str(run) for run in sorted(children, key=lambda run: (len(run.name), run.name))] or [name]


def fold_runs(folder: Path) -> list[Path]:
    """Return the run folder of each fold of a finished cross-validation; none for other folders.

    Raises:
        UsageError: if the results in the folder cannot be read.
    """
    folds = {} if RunFolder(folder).recipe.is_file() else RunFolder(folder).read_results_json().get("folds")
    return [folder / name for name in folds] if isinstance(folds, dict) else []


def command_without_folds(folder: Path) -> str:
    """Return the command that trains one model with the recipe of a cross-validation."""
    recipe = RunFolder(folder / fold_name(1)).recipe
    return f"bertcli finetune {recipe} data.folds=null data.fold=null --run FOLDER"


def best_seed(name: str) -> str:
    """Return the run folder of the seed with the best validation score if `name` holds several seeds, else `name`.

    Raises:
        UsageError: if the run, its seeds or the collection are not finished, or the results of a seed cannot be read.
    """
    check_finished(name)
    runs = seed_runs(name)
    if len(runs) == 1:
        return runs[0]
    scores: dict[str, float] = {}
    for run in runs:
        results = RunFolder(Path(run)).read_results()
        try:
            scores[run] = results.selection_score if results is not None else -math.inf
        except ValueError as error:
            raise UsageError(f"cannot choose the best seed of {name}: {run}/results.json has {error}") from error
    return max(scores, key=lambda run: scores[run])


def hash_start_models(recipes: Iterable[Recipe]) -> dict[str, str]:
    """Return hashes of the models that recipes start from or distill, by name, without reading the weights.

    They are recorded with the model of a finished run; other models have none.
    """
    hashes = {}
    names = (name for recipe in recipes for name in (recipe.model.name, recipe.training.teacher))
    for name in filter(None, names):
        with suppress(UsageError, OSError, ValueError, TypeError, KeyError, AttributeError):
            run = Path(best_seed(name))
            manifest = RunFolder(run).model / MANIFEST
            entries = json.loads((manifest if manifest.is_file() else run / MANIFEST).read_text("utf-8"))
            weights = [entries[file]["blake2b"] for file in sorted(entries) if file.endswith((".safetensors", ".bin"))]
            hashes[name] = " ".join(weights)
    return hashes


def check_finished(name: str) -> None:
    """Check that the folder `name`, if it holds a run or a collection of runs, has a model to use.

    Raises:
        UsageError: if it is not finished, or each of its runs has its own model; the message lists the usable ones.
    """
    folder = RunFolder(Path(chosen_run(name)))
    is_run, is_finished = folder.recipe.is_file(), folder.results.is_file()
    if folder.model.is_dir() or (is_run and is_finished) or (folder.path / "config.json").is_file():
        return
    members = [recipe.parent for recipe in sorted(folder.path.glob("*/recipe.yaml"))]
    usable = [str(member) for member in members if RunFolder(member).results.is_file()]
    if not members and not is_run:
        return  # not written by a run
    choice = f"choose one of them: {', '.join(usable[:MAX_LISTED])}{', …' * (len(usable) > MAX_LISTED)}"
    if folds := fold_runs(folder.path):
        raise UsageError(
            f"{folder.path} is a cross-validation of {len(folds)} models, of which none is chosen. Train one model "
            f"without folds with `{command_without_folds(folder.path)}`, or {choice}"
        )
    if is_finished:
        raise UsageError(f"{name} holds {len(members)} runs with a model each; {choice}")
    state = f"{len(usable)} of its {len(members)} runs finished" if members else "it has no model yet"
    raise UsageError(
        f"{name} is not finished ({state}): re-run the command that started it{f', or {choice}' if usable else ''}"
    )
