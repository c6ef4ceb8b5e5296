"""Load datasets from the built-in sample, the user's files, a mirror folder, the Hugging Face cache or the Hub.

The Hub is tried last, so data that is already on disk needs no network.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.data.duplicates import normalize_text
from bertcli.data.formats import check_json_depth, join_words
from bertcli.data.row_layouts import arrange_rows
from bertcli.data.spans import CUT_COLUMN
from bertcli.data.splitting import HELD_OUT_SEED, assign_folds, sample_groups, stratified_sample
from bertcli.data.table_files import FILE_COLUMN, ROW_COLUMN, label_text, read_files, summarize_error, to_dataset
from bertcli.errors import DataError, did_you_mean, quoted
from bertcli.files import hash_data_files
from bertcli.tasks.task import SPLITS, FoldTask, Task

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

SCAN_BATCH_SIZE = 1000  # rows in memory when scanning all rows
MAX_LISTED_ROWS = 10  # in a message


def load_split(task: Task, split: str, mirror: Path | None = None) -> Dataset:
    """Load one split: `train`, `validation`, `test`, or a split name of the dataset.

    If a task has no validation split, `held_out_fraction` of its training rows (always the same ones) become the
    validation split, and the remaining rows the training split.

    Raises:
        DataError: if the dataset, split or column does not exist, is unreadable, or has no rows.
    """
    if split in ("train", "validation") and task.holds_out_rows:
        return hold_out_rows(task, load_training_rows(task, mirror))[split]
    return _load_all_rows(task, split, mirror)


def load_training_rows(task: Task, mirror: Path | None = None) -> Dataset:
    """Load the training rows, including those that `hold_out_rows` holds out for validation.

    Raises:
        DataError: as `load_split`.
    """
    return _load_all_rows(task, "train", mirror)


def _load_all_rows(task: Task, split: str, mirror: Path | None) -> Dataset:
    rows = _load_named_split(task, split, mirror)
    _check_names(task, split, rows, _layout_keys(task, split, rows))
    if task.files is not None and task.files.skip_empty:
        rows = without_empty_texts(rows, task.text_columns)
    rows = arrange_rows(task, rows, partial(locate_rows, task, rows))
    if len(rows) == 0:
        raise DataError(f"{origin(task, split)}: split {split!r} has no rows")
    _check_columns(task, split, rows)
    return rows


def without_empty_texts(rows: Dataset, text_columns: Sequence[str]) -> Dataset:
    """Return the rows whose texts are all present and not blank; they keep their row numbers."""
    columns = [rows[name][:] for name in text_columns if name in rows.column_names]
    kept = [
        row
        for row, cells in enumerate(zip(*columns, strict=True))
        if all(cell and join_words(cell).strip() for cell in cells)
    ]
    return rows if not columns or len(kept) == len(rows) else with_row_numbers(rows).select(kept).flatten_indices()


def _layout_keys(task: Task, split: str, rows: Dataset) -> dict[str, str]:
    """Return the columns that `arrange_rows` needs, each with the task's key; only training rows need labels."""
    keys = {} if task.sentence_column is None else {task.sentence_column: "sentence_column"}
    if task.span_column is not None and split == "train":
        keys[task.span_column] = "span_column"
    if task.answer_start_column is not None and (split == "train" or task.label_column in rows.column_names):
        keys[task.answer_start_column] = "answer_start_column"
    is_labelled = split == "train" or not {*task.label_columns}.isdisjoint(rows.column_names)
    return keys | (dict.fromkeys(task.label_columns, "label_columns") if is_labelled else {})


def origin(task: Task, split: str = "train") -> str:
    """Return the origin of a split for messages: its files, or the task's name."""
    return ", ".join(split_files(task, split) or [task.name])


def split_files(task: Task, split: str) -> tuple[str, ...]:
    """Return the paths of the files with the rows of a split; none if it has no files."""
    if task.files is None or split not in SPLITS:
        return ()
    in_training_files = task.split_column is not None or (split == "validation" and task.holds_out_rows)
    return getattr(task.files, "train" if in_training_files else split)


def source_fingerprint(task: Task, mirror: Path | None = None) -> str | None:
    """Return a hash of the files with the rows of a run, which is computed without reading their rows.

    It covers the files of the training and validation splits, or all files in the folder of a dataset. Other files may
    have the same rows. None if the files are not on this machine, or for a dataset that is not in a folder or mirror.
    """
    state = hashlib.blake2b(digest_size=16)
    if task.files is not None:
        splits = ("train", "validation", *task.splits.extra_validation)
        paths = [*dict.fromkeys(Path(path) for split in splits for path in split_files(task, split))]
    else:
        folder = Path(resolve_dataset(str(task.dataset), mirror))
        is_folder = task.dataset != "sample" and folder.is_dir()
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()] if is_folder else []
        state.update(json.dumps([path.relative_to(folder).as_posix() for path in paths]).encode())
    if not paths or not all(path.is_file() for path in paths):
        return None
    hash_data_files(state, paths)
    return state.hexdigest()


def hold_out_rows(task: Task, rows: Dataset) -> dict[str, Dataset]:
    """Split the rows deterministically into `train` and the held-out rows, `validation`.

    Rows of a group (`task.group_by`) stay together. Without groups, if each row has one label, the split is stratified
    by label and, if possible, no label is held out entirely. For a `FoldTask`, its fold is held out.

    Raises:
        DataError: if there are too few rows or groups, or a row has no group.
    """
    if len(rows) == 1:
        raise DataError(
            f"{origin(task)}: found one training row, expected at least two to hold some out for validation"
        )
    rows = with_row_numbers(rows)
    if isinstance(task, FoldTask):
        held_out = {*np.flatnonzero(folds_of_rows(task, rows) == task.fold).tolist()}
    elif task.group_by is not None:
        held_out = sample_groups(_groups(task, rows), task.held_out_fraction)
    else:
        num_held_out = min(len(rows) - 1, max(1, math.ceil(task.held_out_fraction * len(rows))))
        labels = strata(task, rows)
        if labels is None:
            parts = rows.train_test_split(test_size=num_held_out, seed=HELD_OUT_SEED)
            return {"train": parts["train"], "validation": parts["test"]}
        held_out = stratified_sample(labels, num_held_out)
    return {
        "train": rows.select([row for row in range(len(rows)) if row not in held_out]),
        "validation": rows.select(sorted(held_out)),
    }


def folds_of_rows(task: FoldTask, rows: Dataset) -> np.ndarray:
    """Return the fold of each training row, from 1. [R]

    Raises:
        DataError: if there are fewer rows or groups than folds, every label has fewer rows, or a row has no group.
    """
    groups = None if task.group_by is None else _groups(task, rows)
    try:
        return assign_folds(len(rows), task.num_folds, strata(task, rows), groups)
    except ValueError as error:
        raise DataError(f"{origin(task)}: {error}; lower data.folds") from error


def strata(task: Task, rows: Dataset) -> list[str] | None:
    """Return the label of each row as text; None if the rows do not have one label each."""
    if not task.has_one_label or task.label_column not in rows.column_names:
        return None
    values = rows[task.label_column][:]
    if any(isinstance(value, list | dict) for value in values):
        return None  # `Head.references` raises the error
    return [str(value).strip() for value in values]


def row_groups(task: Task, rows: Dataset) -> list[Any] | None:
    """Return the group of each row (`task.group_by`), None for a row without one; None if rows are not grouped."""
    if task.group_by is None or task.group_by not in rows.column_names:
        return None
    return [_group_value(value) for value in rows[task.group_by][:]]


def _groups(task: Task, rows: Dataset) -> list[Any]:
    """Return the group of each row."""
    assert task.group_by is not None
    _check_names(task, "train", rows, {task.group_by: "group_by"})
    values = row_groups(task, rows) or []
    if None in values:
        where = locate_rows(task, rows, [values.index(None)])
        raise DataError(f"{where} has no value in column {task.group_by!r}; add one")
    if len(set(values)) < 2:
        raise DataError(
            f"{origin(task)}: column {task.group_by!r} has the same value in all rows, expected at least two "
            "values; set task.group_by to another column, or to null"
        )
    return values


def _group_value(value: Any) -> Any:
    """Return a value that is equal for rows of the same group; None if it is missing: null, NaN or blank text."""
    if isinstance(value, list | dict):  # not hashable
        return json.dumps(value, default=str)
    if isinstance(value, float) and math.isnan(value):
        return None
    return value.strip() or None if isinstance(value, str) else value


def with_row_numbers(rows: Dataset) -> Dataset:
    """Return the rows with their row numbers in the file, for messages about rows selected from them."""
    if ROW_COLUMN in rows.column_names:
        return rows
    return rows.add_column(ROW_COLUMN, np.arange(1, len(rows) + 1))  # datasets hashes an array faster than a list


def column_names(rows: Dataset) -> list[str]:
    """Return the names of the columns, without those that bertcli adds, such as row numbers."""
    return [name for name in rows.column_names if name not in (ROW_COLUMN, FILE_COLUMN, CUT_COLUMN)]


def hash_texts(task: Task, rows: Dataset) -> np.ndarray:
    """Return a 64-bit hash of the texts of each row, ignoring differences in case, spaces and punctuation. [R]

    It covers all input columns, so the same question about another passage has another hash. Hashes are comparable only
    within a process.
    """

    def hash_row(cells: Sequence[str | list[str]]) -> int:
        return hash(tuple(normalize_text(join_words(cell)) for cell in cells))

    batches = rows.select_columns(list(task.columns)).iter(batch_size=SCAN_BATCH_SIZE)
    hashes = (hash_row(cells) for batch in batches for cells in zip(*batch.values(), strict=True))
    return np.fromiter(hashes, dtype=np.int64, count=len(rows))


def row_number(rows: Dataset, row: int) -> int:
    """Return the number of a row in its file or dataset, from 1."""
    return rows[row][ROW_COLUMN] if ROW_COLUMN in rows.column_names else row + 1


def locate_rows(task: Task, rows: Dataset, indices: Sequence[int]) -> str:
    """Return the location of rows for messages: `reviews.csv: row 7`, or `reviews.csv: rows 3, 7, … (12 rows)`.

    Rows are numbered as in the file, even if `rows` is only a part of it. At most `MAX_LISTED_ROWS` are listed.
    """
    files = split_files(task, str(rows.split)) or (task.name,)
    by_file: dict[str, list[int]] = defaultdict(list)
    for index in indices[:MAX_LISTED_ROWS]:
        path = rows[index][FILE_COLUMN] if FILE_COLUMN in rows.column_names else files[0]
        by_file[path].append(row_number(rows, index))
    parts = [
        f"{path}: row{'s' if len(indices) > 1 else ''} {', '.join(map(str, sorted(numbers)))}"
        for path, numbers in by_file.items()
    ]
    more = f", … ({len(indices)} rows)" if len(indices) > MAX_LISTED_ROWS else ""
    return "; ".join(parts) + more


def _load_named_split(task: Task, split: str, mirror: Path | None) -> Dataset:
    from datasets import Dataset

    if task.split_column is not None:
        return _select_split(task, split, _load_undivided_rows(task, mirror))
    if task.files is not None:
        if split not in SPLITS or not getattr(task.files, split):
            held_out = ("validation",) if task.holds_out_rows else ()
            given = [name for name in SPLITS if getattr(task.files, name) or name in held_out]
            raise DataError(f"{task.name}: split {split!r} has no files, expected one of {given}")
        paths = getattr(task.files, split)
        if split != "train" or task.holds_out_rows:
            rows = read_files(paths, task, split)
            if split == "train" or task.group_by is None or task.group_by in rows.column_names:
                return rows
        return read_files(paths, task.model_copy(update={"group_by": None}), split)
    name = getattr(task.splits, split) if split in SPLITS else split
    if name is None:
        raise DataError(f"{task.name}: the task has no {split} split")
    if task.dataset == "sample":
        from bertcli.data.sample import sample_rows

        return Dataset.from_list(sample_rows(task.config or "", name))
    return _load_dataset_split(task, name, mirror)


def _load_undivided_rows(task: Task, mirror: Path | None) -> Dataset:
    """Load the rows of all splits that `task.split_column` distinguishes."""
    if task.files is not None:
        return read_files(task.files.train, task, "train")
    return _load_dataset_split(task, "train", mirror)


def _select_split(task: Task, split: str, rows: Dataset) -> Dataset:
    """Return the rows that belong to a split according to `task.split_column`.

    Raises:
        DataError: if the column is missing, or no row belongs to the split.
    """
    assert task.split_column is not None
    _check_names(task, split, rows, {task.split_column: "split_column"})
    name = getattr(task.splits, split) if split in SPLITS else split
    names = [(label_text(value) or "").strip() for value in rows[task.split_column][:]]
    selected = [row for row, value in enumerate(names) if value == name]
    if not selected:
        values = sorted({*names})
        raise DataError(
            f"{origin(task)}: no row has {name!r} in column {task.split_column!r}, expected one of {quoted(values)}. "
            f"Set task.splits.{split}, or to null if there is no such split."
        )
    part = with_row_numbers(rows).select(selected).remove_columns(task.split_column)
    return to_dataset(part.with_format(None).flatten_indices().data.table, split)


def _load_dataset_split(task: Task, name: str, mirror: Path | None) -> Dataset:
    assert task.dataset is not None
    try:
        return load_rows(task.dataset, task.config, name, mirror)
    except DataError as error:
        raise DataError(f"{task.name}: {error}") from error


def load_rows(dataset: str, config: str | None, split: str, mirror: Path | None) -> Dataset:
    """Load a split of a dataset: from the mirror, a folder, the local cache or the Hub, in this order.

    Raises:
        DataError: if the dataset or split does not exist or is unreadable.
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
            "Set the name of the split in the recipe."
        )
    return splits[split]


def resolve_dataset(name: str, mirror: Path | None) -> str:
    """Return the dataset's folder in the mirror if it has one, else `name` itself (a folder or a Hub dataset ID)."""
    in_mirror = mirror / "datasets" / name if mirror and not {"..", "/"} & {*Path(name).parts} else None
    return str(in_mirror) if in_mirror and in_mirror.is_dir() else name


def _load_dataset(path: str, config: str | None) -> dict[str, Dataset]:
    import datasets

    datasets.disable_progress_bars()
    if Path(path).is_dir():
        for json_file in sorted([*Path(path).rglob("*.json"), *Path(path).rglob("*.jsonl")]):
            with json_file.open("rb") as content:
                check_json_depth(content, str(json_file))
    try:
        return datasets.load_dataset(path, config, cache_dir=_folder_cache(path))
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


def _folder_cache(path: str) -> str | None:
    """Return where to cache the rows of a dataset's folder; None: where the library caches those of a Hub dataset.

    The library does not notice that files of a folder were replaced, or belong to another mirror with the same README:
    it would return the rows that it cached before. So each version of the files has a separate folder.
    """
    import datasets

    if not Path(path).is_dir():
        return None
    files = [file for file in sorted(Path(path).rglob("*")) if file.is_file()]
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    version = hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16]
    return str(Path(datasets.config.HF_DATASETS_CACHE, "folders", version))


def _unreadable_file(folder: str, config: str | None) -> str | None:
    """Return the first file of a dataset that cannot be read by itself; None if all can be read or none are listed."""
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
    """Check that the task's input and ID columns exist, and that the input columns contain text (or lists of text).

    Raises:
        DataError: if a column is missing, or an input column has a missing value or is not of this type.
    """
    key_of_column = {task.id_column: "id_column (null: rows are numbered)"} if task.id_column is not None else {}
    key_of_column |= dict.fromkeys(task.choice_columns, "choice_columns")
    key_of_column |= dict.fromkeys(task.text_columns, "text_columns")
    _check_names(task, split, rows, key_of_column)
    for column in task.columns:
        may_be_list = column in task.list_columns
        values = rows.data.column(column)
        if values.null_count:
            indices = [row for row, is_null in enumerate(values.is_null().to_pylist()) if is_null]
            raise DataError(
                f"{locate_rows(task, rows, indices)} of split {split!r} {'have' if len(indices) > 1 else 'has'} "
                f"no text in column {column!r}; add it or remove the row{'s' if len(indices) > 1 else ''}"
            )
        if _is_list_of_text(values.type) and any(chunk.flatten().null_count for chunk in values.chunks):
            raise DataError(
                f"{origin(task, split)}: a list in column {column!r} of split {split!r} has a missing text; add it"
            )
        if not _is_text(values.type) and not (may_be_list and _is_list_of_text(values.type)):
            expected = "text or lists of text" if may_be_list else "text"
            raise DataError(f"{origin(task, split)}: column {column!r} holds {values.type!s:.80}, expected {expected}")


def _check_names(task: Task, split: str, rows: Dataset, key_of_column: Mapping[str, str]) -> None:
    """Check that the columns exist; for each of them, the task's key that names it is part of the message."""
    names = column_names(rows)
    for column, key in key_of_column.items():
        if column not in names:
            raise DataError(
                f"{origin(task, split)}: split {split!r} has no column {quoted(column)}; it has {quoted(names)}."
                f"{did_you_mean(column, names)} Set task.{key}."
            )


def _is_list_of_text(kind: pyarrow.DataType) -> bool:
    import pyarrow

    is_list = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
    return bool(is_list and _is_text(kind.value_type))


def _is_text(kind: pyarrow.DataType) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))
