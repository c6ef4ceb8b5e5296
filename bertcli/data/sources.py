"""Loading datasets: the built-in sample, the user's files, a mirror folder, the Hugging Face cache, the Hub.

The Hub is tried last, so data that is already on the disk needs no network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from bertcli.data.table_files import read_files, summarize_error
from bertcli.errors import DataError, did_you_mean
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

SCAN_BATCH_SIZE = 1000  # rows, when searching for an unreadable file
HELD_OUT_SEED = 13  # the held-out rows are the same for every training seed
SPLITS = ("train", "validation", "test")


def load_split(task: Task, split: str, mirror: Path | None = None) -> Dataset:
    """Load one split: `train`, `validation`, `test`, or a split name of the dataset.

    For a task without a validation split, `held_out_fraction` of its training rows (always the same ones) are the
    validation split, and the remaining rows the training split.

    Raises:
        DataError: the dataset, split or column does not exist, is unreadable, or has no rows.
    """
    has_validation = bool(task.files.validation) if task.files else task.splits.validation is not None
    if has_validation or split not in ("train", "validation"):
        rows = _load_named_split(task, split, mirror)
    else:
        all_rows = _load_named_split(task, "train", mirror)
        if len(all_rows) == 1:
            raise DataError(f"{task.name}: found one training row, expected two or more to hold some out")
        if len(all_rows) == 0:
            raise DataError(f"{task.name}: split 'train' has no rows")
        rows = _hold_out(task, all_rows, split)
    if len(rows) == 0:
        raise DataError(f"{task.name}: split {split!r} has no rows")
    _check_columns(task, split, rows)
    return rows


def _hold_out(task: Task, rows: Dataset, split: str) -> Dataset:
    """Return the held-out rows (`validation`) or the others (`train`); rows of a group stay in the same split."""
    if task.group_by is None:
        num_held_out = min(len(rows) - 1, max(1, math.ceil(task.held_out_fraction * len(rows))))
        parts = rows.train_test_split(test_size=num_held_out, seed=HELD_OUT_SEED)
        return parts["train" if split == "train" else "test"]
    if task.group_by not in rows.column_names:
        raise DataError(f"{task.name}: found no column {task.group_by!r} (task.group_by), only {rows.column_names}")
    values = rows[task.group_by][:]
    if None in values:
        row = values.index(None) + 1
        raise DataError(f"{task.name}: row {row} has no value in column {task.group_by!r}; add one")
    groups = sorted(set(values))
    if len(groups) < 2:
        raise DataError(f"{task.name}: column {task.group_by!r} has one value, expected two or more to hold some out")
    Random(HELD_OUT_SEED).shuffle(groups)
    held_out = set(groups[: min(len(groups) - 1, max(1, round(task.held_out_fraction * len(groups))))])
    is_validation = split == "validation"
    return rows.select([row for row, value in enumerate(values) if (value in held_out) == is_validation])


def _load_named_split(task: Task, split: str, mirror: Path | None) -> Dataset:
    from datasets import Dataset

    if task.files is not None:
        if split not in SPLITS or not getattr(task.files, split):
            given = [name for name in SPLITS if getattr(task.files, name)]
            raise DataError(f"{task.name}: found no files for split {split!r}, expected one of {given}")
        return read_files(getattr(task.files, split), task)
    name = getattr(task.splits, split) if split in SPLITS else split
    if name is None:
        raise DataError(f"{task.name}: the task has no {split} split")
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
    """Load a split of a dataset: from the mirror, a folder, the local cache or the Hub, in this order.

    Raises:
        DataError: the dataset or split does not exist or is unreadable.
    """
    path = resolve_dataset(dataset, mirror)
    if Path(path).is_dir():
        splits = _load_dataset(path, config)
    else:
        try:
            with _offline():
                splits = _load_dataset(path, config)
        except DataError:
            splits = _load_dataset(path, config)
    if split not in splits:
        raise DataError(
            f"found splits {list(splits)} in {path}, expected {split!r}.{did_you_mean(split, splits)} "
            "Name the right one in the recipe."
        )
    return splits[split]


def resolve_dataset(name: str, mirror: Path | None) -> str:
    """Return the dataset's folder in the mirror if there is one, else `name` itself (a folder or a Hub name)."""
    in_mirror = mirror / "datasets" / name if mirror and not {"..", "/"} & {*Path(name).parts} else None
    return str(in_mirror) if in_mirror and in_mirror.is_dir() else name


def _load_dataset(path: str, config: str | None) -> dict[str, Dataset]:
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(path, config)
    except Exception as error:  # the library raises many types, from OSError to HTTP errors
        reason = summarize_error(error)
        if Path(path).is_dir():
            file = _unreadable_file(path, config)
            raise DataError(
                f"cannot read the dataset in {path} ({reason})"
                if file is None
                else f"cannot read {file}: {reason}. Fix it, or fetch the dataset again."
            ) from error
        raise DataError(
            f"cannot load dataset {path!r} ({reason}). It is not in a mirror, not in the local cache, not a folder, "
            "and not available from the Hub: check the name, or point --mirror (or BERTCLI_MIRROR) at a copy made by "
            "`bertcli fetch`."
        ) from error


def _unreadable_file(folder: str, config: str | None) -> str | None:
    """Return the first file of a dataset that cannot be read by itself; None if all can, or cannot be listed."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(folder, config)
        files = [(split, path) for split, paths in builder.config.data_files.items() for path in paths]
    except Exception:
        return None
    for split, path in files:
        builder.config.data_files = {split: [path]}
        try:
            for _ in builder.as_streaming_dataset(split).with_format("arrow").iter(SCAN_BATCH_SIZE):
                pass
        except Exception:
            return str(path)
    return None


@contextmanager
def _offline() -> Iterator[None]:
    """Restrict `datasets` to its local cache."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _check_columns(task: Task, split: str, rows: Dataset) -> None:
    """Check that the task's columns exist and hold text (or lists of text).

    Raises:
        DataError: a column is missing, or has a missing value or another type.
    """
    missing = [column for column in task.columns if column not in rows.column_names]
    if missing:
        key = "choice_columns" if missing[0] in task.choice_columns else "text_columns"
        raise DataError(
            f"{task.name}: split {split!r} has no column {missing[0]!r}; it has {rows.column_names}."
            f"{did_you_mean(missing[0], rows.column_names)} Set task.{key}."
        )
    for column in task.columns:
        may_be_list = column in task.list_columns
        values = rows.data.column(column)
        if values.null_count:
            row = values.is_null().to_pylist().index(True)
            raise DataError(
                f"{task.name}: row {row + 1} of split {split!r} has no text in column {column!r}; "
                "add it or remove the row"
            )
        if _is_list_of_text(values.type) and any(chunk.flatten().null_count for chunk in values.chunks):
            raise DataError(f"{task.name}: a list in column {column!r} of split {split!r} has a missing text; add it")
        if not _is_text(values.type) and not (may_be_list and _is_list_of_text(values.type)):
            expected = "text or lists of text" if may_be_list else "text"
            raise DataError(f"{task.name}: column {column!r} holds {values.type}, expected {expected}")


def _is_list_of_text(kind: pyarrow.DataType) -> bool:
    import pyarrow

    is_list = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
    return bool(is_list and _is_text(kind.value_type))


def _is_text(kind: pyarrow.DataType) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))
