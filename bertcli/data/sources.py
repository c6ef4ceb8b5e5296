"""Where rows come from: the embedded sample, own files, a mirror folder, the Hugging Face cache, the hub.

Nothing here asks the network for what lies on the disk: the hub is the last place looked in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from bertcli.data.table_files import first_line, read_files
from bertcli.errors import DataError, did_you_mean
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

ROWS_AT_ONCE = 1000  # of those that are read only to see whether they can be
HELD_OUT_SEED = 13  # the held-out rows are the same for every training seed
SPLITS = ("train", "validation", "test")


def load_split(task: Task, split: str, mirror: Path | None = None) -> Dataset:
    """The rows of one split (`train`, `validation` or `test`, or a name the data set itself knows).

    A task without a validation split gets `held_out_share` of its training rows for it, always the same ones, and
    its training split is what is left.

    Raises:
        DataError: there is no such data set, split or column, it is unreadable, or it has no rows.
    """
    has_validation = bool(task.files.validation) if task.files else task.splits.validation is not None
    if has_validation or split not in ("train", "validation"):
        rows = _load_named_split(task, split, mirror)
    else:
        whole = _load_named_split(task, "train", mirror)
        if len(whole) == 1:
            raise DataError(f"{task.name}: found one training row, expected two or more to hold some out")
        if len(whole) == 0:
            raise DataError(f"{task.name}: split 'train' has no rows")
        rows = _held_out(task, whole, split)
    if len(rows) == 0:
        raise DataError(f"{task.name}: split {split!r} has no rows")
    _check_columns(task, split, rows)
    return rows


def _held_out(task: Task, whole: Dataset, split: str) -> Dataset:
    """The training rows less a share, or that share (`validation`); rows of one group are on the same side."""
    if task.held_out_by is None:
        number = min(len(whole) - 1, max(1, math.ceil(task.held_out_share * len(whole))))
        parts = whole.train_test_split(test_size=number, seed=HELD_OUT_SEED)
        return parts["train" if split == "train" else "test"]
    if task.held_out_by not in whole.column_names:
        raise DataError(
            f"{task.name}: found columns {whole.column_names}, expected task.held_out_by {task.held_out_by!r}"
        )
    values = whole[task.held_out_by][:]
    if None in values:
        row = values.index(None) + 1
        raise DataError(f"{task.name}: row {row} has nothing in column {task.held_out_by!r}; mend it")
    groups = sorted(set(values))
    if len(groups) < 2:
        raise DataError(
            f"{task.name}: column {task.held_out_by!r} has one value, expected two or more to hold some out"
        )
    Random(HELD_OUT_SEED).shuffle(groups)
    held_out = set(groups[: min(len(groups) - 1, max(1, round(task.held_out_share * len(groups))))])
    wanted = split == "validation"
    return whole.select([row for row, value in enumerate(values) if (value in held_out) == wanted])


def _load_named_split(task: Task, split: str, mirror: Path | None) -> Dataset:
    from datasets import Dataset

    if task.files is not None:
        if split not in SPLITS or not getattr(task.files, split):
            given = [name for name in SPLITS if getattr(task.files, name)]
            raise DataError(f"{task.name}: found no files for split {split!r}, expected one of {given}")
        return read_files(getattr(task.files, split), task)
    name = getattr(task.splits, split) if split in SPLITS else split
    if name is None:
        raise DataError(f"{task.name}: the task row says that there is no {split} split")
    if task.dataset == "sample":
        from bertcli.data.sample import sample_rows

        return Dataset.from_list(sample_rows(task.config or "", name))
    return _load_dataset_split(task, name, mirror)


def _load_dataset_split(task: Task, name: str, mirror: Path | None) -> Dataset:
    assert task.dataset is not None
    try:
        return load_rows(task.dataset, task.config, name, mirror)
    except DataError as error:
        raise DataError(f"{task.name}: {error}") from error


def load_rows(dataset: str, config: str | None, split: str, mirror: Path | None) -> Dataset:
    """The rows of a split of a data set: from the mirror, a folder, the local cache or the hub, in this order.

    Raises:
        DataError: there is no such data set or split, or it is unreadable.
    """
    place = resolve_dataset(dataset, mirror)
    if Path(place).is_dir():
        splits = _call_datasets(place, config)
    else:
        try:
            with _offline():
                splits = _call_datasets(place, config)
        except DataError:
            splits = _call_datasets(place, config)
    if split not in splits:
        raise DataError(
            f"found splits {list(splits)} in {place}, expected {split!r}.{did_you_mean(split, splits)} "
            "Name the right one in the recipe."
        )
    return splits[split]


def resolve_dataset(name: str, mirror: Path | None) -> str:
    """The folder that holds data set `name` (the mirror's if it has it), or the name itself, for the hub."""
    in_mirror = mirror / "datasets" / name if mirror and not {"..", "/"} & {*Path(name).parts} else None
    return str(in_mirror) if in_mirror and in_mirror.is_dir() else name


def _call_datasets(place: str, config: str | None) -> dict[str, Dataset]:
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(place, config)
    except Exception as error:  # the library raises many kinds, from the file system up to HTTP
        reason = first_line(error)
        if Path(place).is_dir():
            file = _unreadable_file(place, config)
            raise DataError(
                f"cannot read the data set in {place} ({reason})"
                if file is None
                else f"cannot read {file}: {reason}. Mend it, or fetch the data set again."
            ) from error
        raise DataError(
            f"cannot load data set {place!r} ({reason}). Not in a mirror, not in the local cache, not a "
            "folder, and the hub did not give it: check the name, or point --mirror (or BERTCLI_MIRROR) at a "
            "copy, such as `bertcli fetch` makes."
        ) from error


def _unreadable_file(folder: str, config: str | None) -> str | None:
    """The first file of a data set that cannot be read by itself; None if all can, or they cannot even be told."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(folder, config)
        files = [(split, path) for split, paths in builder.config.data_files.items() for path in paths]
    except Exception:
        return None
    for split, path in files:
        builder.config.data_files = {split: [path]}
        try:
            for _ in builder.as_streaming_dataset(split).with_format("arrow").iter(ROWS_AT_ONCE):
                pass
        except Exception:
            return str(path)
    return None


@contextmanager
def _offline() -> Iterator[None]:
    """Have `datasets` look in its cache only."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _check_columns(task: Task, split: str, rows: Dataset) -> None:
    """Refuse rows without the columns the task names, or with something else than text (or lists of it) in them."""
    missing = [column for column in task.columns if column not in rows.column_names]
    if missing:
        key = "choice_columns" if missing[0] in task.choice_columns else "text_columns"
        raise DataError(
            f"{task.name}: split {split!r} has no column {missing[0]!r}; it has {rows.column_names}."
            f"{did_you_mean(missing[0], rows.column_names)} Set task.{key}."
        )
    listed = task.list_columns
    for column in task.columns:
        values = rows.data.column(column)
        if values.null_count:
            row = values.is_null().to_pylist().index(True)
            raise DataError(
                f"{task.name}: row {row + 1} of split {split!r} has no text in column {column!r}; remove or mend it"
            )
        if _is_list_of_text(values.type) and any(chunk.flatten().null_count for chunk in values.chunks):
            raise DataError(f"{task.name}: a list in column {column!r} of split {split!r} lacks a text; mend it")
        if not _is_text(values.type) and not (column in listed and _is_list_of_text(values.type)):
            kind = "text or lists of text" if column in listed else "text"
            raise DataError(f"{task.name}: column {column!r} holds {values.type}, expected {kind}")


def _is_list_of_text(kind: pyarrow.DataType) -> bool:
    import pyarrow

    is_list = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
    return bool(is_list and _is_text(kind.value_type))


def _is_text(kind: pyarrow.DataType) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))
