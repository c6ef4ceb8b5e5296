"""What `bertcli predict` is asked: rows of a task's columns, from the command line, a split or a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bertcli.data.formats import Row
from bertcli.data.inputs import USUAL_COLUMNS, read_inputs
from bertcli.data.sources import load_split
from bertcli.errors import UsageError
from bertcli.tasks.task import Task


def inputs_of(
    task: Task,
    values: Iterable[Sequence[str]] | None,
    input_path: str,
    kind: str,
    usual: Sequence[str],
    split: str | None,
    mirror: Path | None,
    *,
    refuses_pairs: bool,
) -> Iterator[Row]:
    """The inputs as rows of the task's columns: given values, a split's rows without their answers, or a file's.

    Args:
        values: the values of each row's columns; None: they are a split's or a file's.
        usual: names of columns that serve where a file has not the task's.
        refuses_pairs: whether nobody said how many texts a row has, so that a second one may not be left out.
    """
    if values is not None:
        return (_row_of(task, row) for row in values)
    if split is not None:
        rows = load_split(task, split, mirror)
        return iter(rows.select_columns([*task.columns, *({task.id_column} & set(rows.column_names))]))
    also = (task.id_column,) if task.id_column else ()
    if refuses_pairs and task.columns == USUAL_COLUMNS[:1]:
        return _single_texts(read_inputs(input_path, kind, task.columns, also=USUAL_COLUMNS[1:]))
    return read_inputs(input_path, kind, task.columns, usual=usual, listed=task.list_columns, also=also)


def _single_texts(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, none of which has a second text.

    Raises:
        UsageError: one has.
    """
    first, second = USUAL_COLUMNS
    for row in rows:
        if second in row:
            raise UsageError(
                f"the input has a column {second!r} beside {first!r}, and a model without a run folder does not say "
                f"whether it reads pairs; say --columns {first},{second} or --columns {first}"
            )
        yield row


def with_columns(task: Task, columns: Sequence[str] | None, *, is_known: bool) -> Task:
    """The task, its columns under the names a person gave; one nobody described takes any number of texts."""
    if columns is None:
        return task
    if is_known and len(columns) != len(task.columns):
        raise UsageError(
            f"found {len(columns)} names in --columns, expected {len(task.columns)}, for {', '.join(task.columns)}"
        )
    num_texts = len(task.text_columns) if task.choice_columns or is_known else len(columns)
    names = {"text_columns": tuple(columns[:num_texts]), "choice_columns": tuple(columns[num_texts:])}
    return task.model_copy(update=names)


def fitted(task: Task, values: Iterable[Sequence[str]] | None) -> tuple[Task, list[Sequence[str]] | None]:
    """For a classifier of which only the model is known: its task takes as many texts as are given."""
    if values is None:
        return task, None
    values = list(values)
    if task.head == "text_classification" and values and len(values[0]) <= len(USUAL_COLUMNS):
        task = task.model_copy(update={"text_columns": USUAL_COLUMNS[: len(values[0])]})
    return task, values


def _row_of(task: Task, values: Sequence[str]) -> Row:
    """A row of values given on the command line; what is beyond the texts are choices.

    Raises:
        UsageError: too few or too many of them.
    """
    num_texts = len(task.text_columns)
    if len(values) != len(task.columns) and not (len(task.choice_columns) == 1 and len(values) > num_texts + 1):
        raise UsageError(
            f"found {len(values)} texts for one input, expected {', '.join(task.columns)}; the second text of a pair "
            "(or the passage of a question) goes with --pair, choices with --choice"
        )
    if len(task.choice_columns) == 1:
        return dict(zip(task.text_columns, values, strict=False)) | {task.choice_columns[0]: list(values[num_texts:])}
    return dict(zip(task.columns, values, strict=True))
