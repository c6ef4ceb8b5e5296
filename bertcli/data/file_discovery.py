"""Find the data files that a person names, or that are in a folder, and which split each of them holds."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from bertcli.data.schema_inference import split_of_name
from bertcli.data.table_files import FORMAT_OF_SUFFIX
from bertcli.data.text_files import without_compression_suffix
from bertcli.errors import UsageError, quoted
from bertcli.recipe.yaml_layers import RECIPE_SUFFIXES
from bertcli.tasks.task import SPLITS


def data_name(paths: Sequence[Path]) -> str:
    """Return a name for data files: that of the first file or folder, or of its folder if it only says the split."""
    path = paths[0].resolve()
    name = path.name if path.is_dir() else without_compression_suffix(path.name).stem
    if split_of_name(name) is not None and path.parent.name:
        name = path.parent.name
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "custom"


def files_by_split(paths: Sequence[Path]) -> tuple[dict[str, list[Path]], list[Path]]:
    """Return the files of each split, and files that are left out because the names of the others say their split.

    Raises:
        UsageError: if a path does not exist or is a recipe, a folder has no data files, or none of the files is for
            training.
    """
    named: dict[str | None, list[Path]] = {split: [] for split in (*SPLITS, None)}
    seen: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise UsageError(f"found no file or folder {path}")
        if path.is_file() and path.suffix.lower() in RECIPE_SUFFIXES:
            raise UsageError(f"{path} is a recipe, not data; train with `bertcli finetune {path}`, or name data files")
        for file in _data_files(path):
            if file.resolve() in seen:
                continue
            seen.add(file.resolve())
            name = file.name if path.is_file() else str(file.relative_to(path))
            named[split_of_name(without_compression_suffix(name).stem if path.is_file() else name)].append(file)
    unnamed = named.pop(None)
    files = {split: named[split] for split in SPLITS}
    if files["train"]:
        return files, unnamed
    if unnamed:
        return files | {"train": unnamed}, []
    if sum(map(len, files.values())) == 1:  # a single file is for training, whatever its name
        return {split: [] for split in SPLITS} | {"train": next(filter(None, files.values()))}, []
    raise UsageError("found no training file, expected one whose name has `train`, or no split in its name")


def _data_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file()
        and without_compression_suffix(file).suffix.lower() in FORMAT_OF_SUFFIX
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    if not files:
        expected = f"found no data files in {path}, expected {', '.join(FORMAT_OF_SUFFIX)}"
        raise UsageError(_folders_of_texts(path) or f"{expected}; name the files")
    return files


def _folders_of_texts(path: Path) -> str | None:
    """Return how to convert a folder of `.txt` files for each label, as in IMDb's original layout; None without them.

    The command converts one split: the training files, if folders are named after their split.
    """
    names: dict[Path, set[str]] = {}
    for file in path.rglob("*/*.txt"):
        if file.parent != path and split_of_name(file.parent.name) is None:
            names.setdefault(file.parent.parent, set()).add(file.parent.name)
    splits = [folder for folder in sorted(names) if len(names[folder]) > 1]
    if not splits:
        return None
    folder = next((folder for folder in splits if split_of_name(folder.name) == "train"), splits[0])
    labels = sorted(names[folder])
    script = (
        f'import csv, pathlib; w = csv.writer(open("{split_of_name(folder.name) or "train"}.csv", "x", '
        'encoding="utf-8", newline="")); w.writerow(["text", "label"]); '
        'w.writerows([f.read_text("utf-8"), f.parent.name] for f in '
        f'sorted(pathlib.Path({json.dumps(str(folder))}).glob("*/*.txt")) if f.parent.name in {json.dumps(labels)})'
    )
    others = [other.name for other in splits if other != folder]
    return (
        f"found a folder of .txt files for each of {quoted(labels)} in {folder}, expected one file with a row for each "
        "text. Convert them, leaving out folders that are not a label, and run init on the result:\n  python -c "
        f"{shlex.quote(script)}" + (f"\nConvert {quoted(others)} in the same way." if others else "")
    )
