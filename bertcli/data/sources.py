"""Where rows come from: the embedded sample, own files, a mirror folder, the Hugging Face cache, the hub.

Nothing here asks the network for what lies on the disk: the hub is the last place looked in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from bertcli.data.formats import conll_rows, is_squad, squad_rows
from bertcli.errors import DataError, did_you_mean
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

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
        parts = whole.train_test_split(test_size=task.held_out_share, seed=HELD_OUT_SEED)
        return parts["train" if split == "train" else "test"]
    if task.held_out_by not in whole.column_names:
        raise DataError(
            f"{task.name}: found columns {whole.column_names}, expected task.held_out_by {task.held_out_by!r}"
        )
    values = whole[task.held_out_by][:]
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
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"cannot load data set {place!r} ({reason}). Not in a mirror, not in the local cache, not a "
            "folder, and the hub did not give it: check the name, or point --mirror (or BERTCLI_MIRROR) at a "
            "copy, such as `bertcli fetch` makes."
            if not Path(place).is_dir()
            else f"cannot read the data set in {place} ({reason})"
        ) from error


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


def read_files(paths: Sequence[str], task: Task | None = None) -> Dataset:
    """Rows of CSV (quoted), TSV (unquoted, as GLUE's), JSON Lines, Parquet, SQuAD or CoNLL files, by their endings.

    With a task its text columns are read as text and its label column as text or number, whatever they look like:
    `007` stays `007`.

    Raises:
        DataError: a file is missing, unreadable, not UTF-8 or of an unknown kind.
    """
    import pyarrow
    from datasets import Dataset, concatenate_datasets

    tables = []
    for path in map(Path, paths):
        if not path.is_file():
            raise DataError(f"found no file {path}, expected a CSV, TSV, JSON Lines or Parquet file")
        try:
            tables.append(Dataset(_read_table(path, task)))
        except (pyarrow.ArrowException, UnicodeDecodeError, json.JSONDecodeError, TypeError) as error:
            raise DataError(f"cannot read {path}: {_plain_reason(path, error)}") from error
    for name, table in zip(paths, tables, strict=True):
        if table.features != tables[0].features:
            raise DataError(f"{name} has the columns {table.features}, but {paths[0]} has {tables[0].features}")
    return concatenate_datasets(tables)


def _plain_reason(path: Path, error: Exception) -> str:
    reason = str(error).splitlines()[0]
    return f"not UTF-8 text; convert it, e.g. `iconv -f latin1 -t utf8 {path}`" if "UTF" in reason.upper() else reason


def _read_table(path: Path, task: Task | None) -> pyarrow.Table:
    ending = path.suffix.lower()
    if ending in (".csv", ".tsv"):
        return _read_separated(path, task, "," if ending == ".csv" else "\t")
    if ending == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path)
    if ending in (".jsonl", ".ndjson", ".json"):
        return _read_json(path)
    if ending == ".conll":
        import pyarrow

        return pyarrow.Table.from_pylist(list(conll_rows(path.read_text("utf-8-sig").splitlines(), str(path))))
    raise DataError(f"found {path}, expected a file that ends in .csv, .tsv, .jsonl, .json, .parquet or .conll")


def _read_separated(path: Path, task: Task | None, delimiter: str) -> pyarrow.Table:
    import pyarrow
    from pyarrow import csv

    types: dict[str, pyarrow.DataType] = {}
    if task is not None:
        types = dict.fromkeys(task.columns, pyarrow.string())
        types[task.label_column] = pyarrow.float64() if task.problem == "regression" else pyarrow.string()
    quoting = csv.ParseOptions(
        delimiter=delimiter, quote_char='"' if delimiter == "," else False, newlines_in_values=delimiter == ","
    )
    return csv.read_csv(path, parse_options=quoting, convert_options=csv.ConvertOptions(column_types=types))


def _read_json(path: Path) -> pyarrow.Table:
    import pyarrow
    from pyarrow import json as arrow_json

    text = path.read_text("utf-8-sig")
    if text.lstrip().startswith("["):
        return pyarrow.Table.from_pylist(json.loads(text))
    if path.suffix.lower() == ".json" and is_squad(content := _whole_json(text)):
        return pyarrow.Table.from_pylist(list(squad_rows(content, str(path))))
    if not text.strip():
        return pyarrow.table({})
    return arrow_json.read_json(path)


def _whole_json(text: str) -> object:
    """The JSON value a text is; None if it is several lines of them."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def _check_columns(task: Task, split: str, rows: Dataset) -> None:
    """Refuse rows without the columns the task names, or with something else than text (or lists of it) in them."""
    missing = [column for column in task.columns if column not in rows.column_names]
    if missing:
        key = "choice_columns" if missing[0] in task.choice_columns else "text_columns"
        raise DataError(
            f"{task.name}: split {split!r} has no column {missing[0]!r}; it has {rows.column_names}."
            f"{did_you_mean(missing[0], rows.column_names)} Set task.{key}."
        )
    listed = task.text_columns if task.head == "token_classification" else task.choice_columns
    for column in task.columns:
        values = rows.data.column(column)
        if values.null_count:
            row = values.is_null().to_pylist().index(True)
            raise DataError(
                f"{task.name}: row {row + 1} of split {split!r} has no text in column {column!r}; remove or mend it"
            )
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
