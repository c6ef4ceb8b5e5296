"""Check that the files of a task have the same columns, before a recipe is written for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from bertcli.data.file_detection import FileDialect
from bertcli.data.inferred_task import Choices, InferredTask
from bertcli.data.prediction_inputs import read_rows
from bertcli.errors import UsageError, did_you_mean, quoted

MAX_COLUMN_ROWS = 1000  # read per file; a row of JSON Lines may lack a column
TEXT_KEYS = ("text_columns", "choice_columns", "sentence_column")
LABEL_KEYS = ("label_column", "label_columns", "span_column", "answer_start_column")

FileColumns = dict[str, bool]
"""The columns of a file, and whether their values are lists or objects, as the reader of files distinguishes."""


def read_columns(path: Path, dialect: FileDialect) -> FileColumns:
    """Return the columns of a file's first rows, and whether each holds lists or objects; empty without rows.

    Raises:
        DataError: if the file cannot be read.
    """
    columns: FileColumns = {}
    for _, row in islice(read_rows(str(path), dialect.format, (), None, dialect.options), MAX_COLUMN_ROWS):
        for name, value in row.items():
            columns[name] = columns.get(name, False) or isinstance(value, list | dict)
    return columns


def common_columns(files: Mapping[Path, FileColumns], choices: Choices) -> list[str]:
    """Return the columns that all training files have.

    Args:
        files: the columns of each training file.

    Raises:
        UsageError: if the columns differ, and `choices` does not name a text and a label that all files have.
    """
    filled = [(path, columns) for path, columns in files.items() if columns]
    if not filled:
        return []
    (first, expected), *others = filled
    common = [name for name in expected if all(name in columns for _, columns in others)]
    chosen = (*choices.text, *choices.label)
    is_decided = choices.text and choices.label and {*chosen} <= {*common}
    for path, columns in others:
        if is_decided or columns.keys() == expected.keys():
            compared = chosen if is_decided else common
            nested = [name for name in compared if columns[name] != expected[name]]
            if nested:
                raise UsageError(
                    f"{path} and {first} differ in column {quoted(nested[0])}: only one of them has lists or objects; "
                    "write both in the same way"
                )
            continue
        raise UsageError(
            f"{path} {_differing(columns, expected)}, but {first} {_differing(expected, columns)}; use the same "
            "columns in all files, write a recipe for each, or name columns that all have with --text and --label"
        )
    return common


def _differing(columns: Iterable[str], others: Iterable[str]) -> str:
    only = [name for name in columns if name not in {*others}]
    return f"has the column{'s' * (len(only) > 1)} {quoted(only)}" if only else "has no others"


def check_splits(
    inferred: InferredTask, splits: Mapping[str, Mapping[Path, FileColumns]], training: Sequence[str]
) -> None:
    """Check that the files for validation and test have the columns that the task uses; a test file needs no labels.

    Args:
        splits: the columns of each file by split.
        training: the columns of the training files.

    Raises:
        UsageError: if a file lacks one; the message names both.
    """
    for split, files in splits.items():
        keys = TEXT_KEYS if split == "test" else (*TEXT_KEYS, *LABEL_KEYS)
        needed = [name for key in keys for name in _names(inferred.keys.get(key)) if name in training]
        for path, columns in files.items():
            missing = [name for name in needed if name not in columns]
            if columns and missing:
                other = [name for name in columns if name not in training]
                raise UsageError(
                    f"{path} ({split}) has no column {quoted(missing[0])}, which the training files have; "
                    f"{f'it has {quoted(other)} instead' if other else 'add it'}.{did_you_mean(missing[0], other)}"
                )


def _names(value: Any) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else () if value is None else (value,)
