"""Label names from task definitions, datasets and model configurations, and label weights in the loss.

Shapes: R rows, C labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.data.formats import join_words, parse_cell
from bertcli.data.sources import column_names, locate_rows, origin, row_number, with_row_numbers
from bertcli.data.table_files import label_text
from bertcli.errors import MAX_QUOTED_CHARS, DataError, ModelError, did_you_mean, quoted
from bertcli.tasks.task import NUMBER, Task, label_key, merge_spellings

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig

MISSING_LABEL = -1  # in GLUE's test splits, whose labels are hidden
OPTIONAL_CONFIG_FIELDS = ("thresholds", "target_scale", "tag_scheme", "casing_feature", "marks_capitals")
"""Fields of config.json that not every head sets; `marks_capitals` is the earlier name of `casing_feature`."""
MAX_PROBABILITIES = 20  # labels listed with a prediction
MAX_IDS_LISTED = 10  # in an error message
MAX_EXCERPT_CHARS = 60  # of a row in an error message
MAX_AUTO_WEIGHT = 100.0
NAN_TEXTS = ("nan", "NaN")  # as Python and R print NaN
MULTI_HOT_PROBLEM = (
    "this looks like 0 or 1 for each label, expected the names of the row's labels, or an object such as "
    "{'sports': 1, 'music': 0}"
)


def label_config_fields(labels: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields of a model configuration that hold label names."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {name: index for index, name in enumerate(labels)},
    }


def labels_from_config(config: PretrainedConfig) -> tuple[str, ...]:
    """Return the label names in a model configuration, in the order of their ids.

    Raises:
        ModelError: if a label has no name, two labels have the same name, the ids are not consecutive from 0,
            or label2id has another id for a name.
    """
    names: dict[int, str] = {}
    found = f"the id2label in config.json of {config.name_or_path or 'the model'}"
    for index, name in (config.id2label or {}).items():
        if not isinstance(name, str | int | float) or (text := label_text(name)) is None:
            raise ModelError(f"{found} has {quoted(name)} for label {index}, expected text; give each label a name")
        names[int(index)] = text
    if sorted(names) != [*range(len(names))]:
        raise ModelError(f"{found} has the ids {[*sorted(names)][:MAX_IDS_LISTED]}, expected 0 to {len(names) - 1}")
    first_ids: dict[str, int] = {}
    for index, name in sorted(names.items()):
        if first_ids.setdefault(name, index) != index:
            raise ModelError(
                f"{found} has the same name for labels {first_ids[name]} and {index}, {name[:80]!r}; give each label a "
                "different name"
            )
    for name, index in (config.label2id or {}).items():  # names that id2label lacks, such as LABEL_0, are not used
        if str(index) != str(first_ids.get(name, index)):
            raise ModelError(
                f"{found} has the ID {first_ids[name]} for {name[:80]!r}, but its label2id has {quoted(index)}; "
                "correct or restore config.json"
            )
    return tuple(names[index] for index in range(len(names)))


def check_labels(model_labels: Sequence[str], task_labels: Sequence[str], name: str, cure: str) -> None:
    """Check that a model with a trained classifier has the labels of the task, in any order.

    Args:
        name: the name of the model.
        cure: the last sentences of the error message, which say how to fix the problem.

    Raises:
        ModelError: if the labels differ; the message lists both.
    """
    if task_labels and sorted(model_labels) != sorted(task_labels):
        found, expected = list_labels(model_labels), list_labels(task_labels)
        raise ModelError(f"the labels do not match: model {name} has {found}, the task has {expected}. {cure}")


def declared_labels(feature: Any) -> list[str]:
    """Return the names that a `ClassLabel` feature (or a list of them) declares; empty for other features."""
    inner = getattr(feature, "feature", feature)
    return list(getattr(inner, "names", None) or [])


def check_label_column(task: Task, rows: Dataset, split: str = "train") -> None:
    """Check that the rows of a split, arranged as heads read them, have labels.

    Raises:
        DataError: if they do not; the message lists the columns that they have.
    """
    if task.label_column not in rows.column_names:
        names, expected = column_names(rows), task.target_columns[0]
        key = "label_columns" if task.label_columns else "span_column" if task.span_column else "label_column"
        raise DataError(
            f"{origin(task, split)}: found columns {quoted(names)}, expected the label column {expected!r}."
            f"{did_you_mean(expected, names)} Set task.{key}."
        )


def predefined_labels(task: Task, train: Dataset) -> tuple[str, ...]:
    """Return the labels that the task definition lists, else those that the dataset declares; empty if neither does.

    Raises:
        DataError: if the label column is missing, or the task definition and the dataset disagree.
    """
    check_label_column(task, train)
    declared = declared_labels(train.features[task.label_column])
    if task.labels and declared and set(task.labels) != set(declared):
        raise DataError(
            f"{task.name}: the task definition lists the labels {list_labels(task.labels)}, the dataset declares "
            f"{list_labels(declared)}; "
            "make task.labels match"
        )
    return task.labels or task.label_columns or tuple(declared)


def resolve_labels(task: Task, train: Dataset) -> tuple[str, ...]:
    """Return the label names in order: from the task definition, else the dataset, else the training rows, sorted.

    Raises:
        DataError: if the task definition and the dataset disagree, there are too few labels, or cells are not labels.
    """
    if task.problem == "regression":
        return ()
    labels, hint = predefined_labels(task, train), ""
    if not labels:
        values = train[task.label_column][:]
        hint = minus_one_hint(task, train, values)
        row_labels = label_names(task, train, values)
        distinct = {
            label
            for value in row_labels
            if value is not None
            for label in ([value] if isinstance(value, str) else value)
        }
        if task.problem == "multi_label":  # the keys of an object are labels even if no row has them
            distinct |= {key.strip() for cell in map(parse_cell, values) if isinstance(cell, dict) for key in cell}
        labels = sort_labels(merge_spellings(distinct))
    if len(labels) < (2 if task.problem == "single_label" else 1):
        minimum = "two labels" if task.problem == "single_label" else "one label"
        found = f"found {len(labels)}: {list_labels(labels)}"
        raise DataError(f"{origin(task)}: expected at least {minimum}, {found}{hint and '.'}{hint}")
    return labels


def sort_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Return labels in numeric order if all are numbers, else alphabetically; `f1` scores the second of two labels."""
    labels = sorted(labels)
    return tuple(sorted(labels, key=float) if all(map(NUMBER.fullmatch, labels)) else labels)


def label_names(task: Task, rows: Dataset, values: list[Any]) -> list[Any]:
    """Return the label of each row as a name (or a list of names); None if it is missing.

    Surrounding whitespace is stripped from names. If the dataset does not declare label names, -1 is an ordinary label
    where the task definition lists it.

    Raises:
        DataError: if a cell is not a label (or several), such as a list in a single-label task.
    """
    declared = declared_labels(rows.features[task.label_column])
    listed = () if declared else task.labels
    if task.problem == "single_label":
        return _single_labels(task, rows, values, declared, listed)
    return _label_lists(task, rows, values, declared, listed)


def _single_labels(
    task: Task, rows: Dataset, values: list[Any], declared: Sequence[str], listed: Sequence[str]
) -> list[str | None]:
    def name_of(value: Any) -> str | None:
        if is_missing_label(value) and label_text(value) not in listed:
            return None
        if isinstance(value, list | dict | bytes) or (
            isinstance(value, str) and value not in listed and isinstance(parse_cell(value), list | dict | set)
        ):
            row = next(row for row, other in enumerate(values) if other == value)
            raise DataError(
                f"{locate_rows(task, rows, [row])} has {value!r:.60} in column {task.label_column!r}, expected one "
                "label, a text or a number; for several labels per row, set task.problem=multi_label"
            )
        return declared[value] if declared and isinstance(value, int) and 0 <= value < len(declared) else _strip(value)

    names: dict[Any, str | None] = {}  # by distinct value; all values have the same type
    result = []
    for value in values:
        if isinstance(value, list | dict):
            name_of(value)
        if value not in names:
            names[value] = name_of(value)
        result.append(names[value])
    return result


def _strip(value: Any) -> str:
    return (label_text(value) or "").strip()


def _label_lists(
    task: Task, rows: Dataset, values: list[Any], declared: Sequence[str], listed: Sequence[str]
) -> list[list[str] | None]:
    """Return the labels of each row of a multi-label task.

    A cell is a list, an object (label → whether the row has it), text separated by `label_delimiter`, the printed form
    of a list or object (as pandas writes it to CSV), or a single label.
    """
    result: list[list[str] | None] = []
    for row, value in enumerate(values):
        cell = value if isinstance(value, str) and value in listed else parse_cell(value)
        if cell not in listed and (
            is_nan(cell) or (not isinstance(cell, str | list | dict | set) and is_missing_label(cell))
        ):
            result.append(None)
            continue
        problem, names = _names_in_cell(cell, declared, listed, task.label_delimiter)
        if problem:
            where = locate_rows(task, rows, [row])
            raise DataError(f"{where} has {value!r:.60} in column {task.label_column!r}: {problem}")
        result.append(names)
    _check_not_multi_hot(task, rows, values, result, declared)
    return result


def _names_in_cell(cell: Any, declared: Sequence[str], listed: Sequence[str], delimiter: str) -> tuple[str, list[str]]:
    """Return an error message (empty if there is no error) and the labels in a cell of a multi-label task."""
    if isinstance(cell, dict):
        if any(flag not in (None, 0, 1) for flag in cell.values()):
            return "expected 0 or 1 (or false or true) for each label in the object", []
        return "", [key.strip() for key, flag in cell.items() if flag]
    if isinstance(cell, set):
        cell = sorted(cell, key=str)
    if isinstance(cell, str):
        names = _split_labels(cell, delimiter)
        if cell.strip().startswith(("[", "{", "('", '("')) and not {*names} <= {*listed}:
            problem = "cannot parse the printed list, expected comma-separated labels"
            return f"{problem}; if labels begin with a bracket, list them in task.labels", []
        return "", names
    names = []
    for value in cell if isinstance(cell, list) else [cell]:
        if is_missing_label(value) and label_text(value) not in listed:
            return "a label in the list is missing", []
        if isinstance(value, list | dict | bytes) or (
            isinstance(cell, list) and isinstance(value, float) and not value.is_integer()
        ):
            return "expected a list of label names", []
        is_id = isinstance(value, int) and 0 <= value < len(declared)
        names.append(declared[value] if is_id else _strip(value))
    return "", names


def _check_not_multi_hot(
    task: Task, rows: Dataset, values: list[Any], names: list[list[str] | None], declared: Sequence[str]
) -> None:
    """Check that lists of 0 and 1 are label ids, rather than a 0 or 1 for each label (multi-hot).

    Raises:
        DataError: if a row repeats a 0 or 1, or all rows have equally many labels and all of these are 0 or 1.
    """
    flags = {"0", "1", "false", "true"}
    lengths = set()
    for row, row_names in enumerate(names):
        keys = [label_key(name) for name in row_names] if row_names and len(row_names) > 1 else []
        is_doubled = len(set(keys)) < len(keys) and flags.issuperset(keys)
        if is_doubled and not declared:
            where = locate_rows(task, rows, [row])
            raise DataError(f"{where} has {values[row]!r:.60} in column {task.label_column!r}: {MULTI_HOT_PROBLEM}")
        if row_names is not None:
            lengths.add(len(keys) if flags.issuperset(keys) else -1)
    if not declared and len(task.labels) <= 2 and len(lengths) == 1 and min(lengths) > 1 and len(names) > 1:
        where = locate_rows(task, rows, [0])
        raise DataError(f"{where} has {values[0]!r:.60} in column {task.label_column!r}: {MULTI_HOT_PROBLEM}")


def _split_labels(text: str, delimiter: str) -> list[str]:
    return [label.strip() for label in text.split(delimiter) if label.strip()]


def match_labels(
    task: Task, labels: Sequence[str], rows: Dataset, names: Sequence[str] | Sequence[Sequence[str]]
) -> dict[str, int]:
    """Return the id of each distinct name in the rows. `True` is the label `true`, unless both are labels.

    Args:
        labels: label names in the order of their ids.
        names: the label or the list of labels of each row.

    Raises:
        DataError: if some names are unknown; the message lists the rows.
    """
    label2id = {label: index for index, label in enumerate(labels)}
    by_key: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        by_key.setdefault(label_key(label), []).append(index)
    ids: dict[str, int] = {}
    unknown = set()
    for name in {name for row in names for name in ([row] if isinstance(row, str) else row)}:
        matches = [label2id[name]] if name in label2id else by_key.get(label_key(name), [])
        if len(matches) == 1:
            ids[name] = matches[0]
        else:
            unknown.add(name)
    if unknown:
        bad_rows = [
            row
            for row, row_names in enumerate(names)
            if not unknown.isdisjoint([row_names] if isinstance(row_names, str) else row_names)
        ]
        first = names[bad_rows[0]]
        label = first if isinstance(first, str) else next(name for name in first if name in unknown)
        raise _unknown_label(task, labels, rows, bad_rows, label)
    return ids


def _unknown_label(task: Task, labels: Iterable[str], rows: Dataset, bad_rows: Sequence[int], label: str) -> DataError:
    where = locate_rows(task, rows, bad_rows[:1])
    count = len(bad_rows)
    more = f" In all, {count} rows have unknown labels: {locate_rows(task, rows, bad_rows)}." if count > 1 else ""
    return DataError(
        f"{where} has the label {label!r:.80}, expected one of {list_labels(labels)}.{did_you_mean(label, labels)} "
        f"{row_excerpt(task, rows, bad_rows[0])}{more} Fix the row{'s' if count > 1 else ''}, or task.labels."
    )


def list_labels(labels: Iterable[str]) -> str:
    """Return the labels as a list for an error message, truncated to `MAX_QUOTED_CHARS` characters."""
    labels = list(labels)
    text = quoted(labels)
    return text if len(str(labels)) <= MAX_QUOTED_CHARS else f"{text} ({len(labels)} labels)"


def missing_labels(task: Task, rows: Dataset, bad_rows: Sequence[int], hint: str = "") -> DataError:
    """Return the error for rows that have no label although others do."""
    several = len(bad_rows) > 1
    excerpt = row_excerpt(task, rows, bad_rows[0])
    if several:
        excerpt = f"Row {row_number(rows, bad_rows[0])} begins{excerpt.removeprefix('It begins')}"
    return DataError(
        f"{locate_rows(task, rows, bad_rows)} {'have' if several else 'has'} no label, but other rows do. {excerpt} "
        f"Label or remove {'them' if several else 'it'}, or set data.skip_unlabelled=true.{hint}"
    )


def labelled_rows(task: Task, rows: Dataset) -> Dataset:
    """Return the rows that have a label (`data.skip_unlabelled`), or all rows if none has one."""
    if task.label_column not in rows.column_names:
        return rows
    values = rows[task.label_column][:]
    listed = () if declared_labels(rows.features[task.label_column]) else task.labels

    def is_missing(value: Any) -> bool:
        if task.problem == "regression":
            return is_missing_number(value)
        if task.problem == "multi_label" and isinstance(value, str):
            return is_nan(value) and value not in listed  # an empty cell: the row has none of the labels
        return is_missing_label(value) and label_text(value) not in listed

    labelled = [row for row, value in enumerate(values) if not is_missing(value)]
    return with_row_numbers(rows).select(labelled) if 0 < len(labelled) < len(rows) else rows


def label_name(declared: Sequence[str], value: Any) -> str:
    """Return the name that the dataset declares for a label id; other values are already names."""
    return declared[value] if isinstance(value, int) and 0 <= value < len(declared) else str(value)


def is_missing_label(value: Any) -> bool:
    """Return whether a cell has no label: it is empty, NaN, or -1 as in GLUE's test splits."""
    if isinstance(value, str):
        return is_nan(value) or label_key(value) in ("", str(MISSING_LABEL))
    return value in (None, MISSING_LABEL) or is_nan(value)


def minus_one_hint(task: Task, rows: Dataset, values: Sequence[Any]) -> str:
    """Return a sentence that says how to use -1 as a label, if a cell has -1 and was taken as unlabeled."""
    if str(MISSING_LABEL) in task.labels or declared_labels(rows.features[task.label_column]):
        return ""
    cells = (value for value in values if isinstance(value, str | int | float))
    is_found = any(label_key(label_text(value) or "") == str(MISSING_LABEL) for value in cells)
    return f" If {MISSING_LABEL} is a label, list it in task.labels." if is_found else ""


def is_nan(value: Any) -> bool:
    """Return whether a cell is NaN, as a number or as text in CSV."""
    return value.strip() in NAN_TEXTS if isinstance(value, str) else isinstance(value, float) and math.isnan(value)


def is_missing_number(value: Any) -> bool:
    """Return whether a cell of a regression task is empty or NaN."""
    is_blank = isinstance(value, str) and not value.strip()
    return value is None or is_blank or is_nan(value)


def compute_class_weights(
    weights: str | dict[str, float] | None, task: Task, labels: tuple[str, ...], gold: np.ndarray
) -> list[float] | None:
    """Return the weight of each label in the loss.

    `auto` is R / (C × rows with the label), like scikit-learn's `balanced`; the weights then average 1 over the rows.
    For multi-label tasks, it is the ratio of rows without the label to rows with it, at most 100.

    Args:
        weights: `training.class_weights` of the recipe.
        gold: gold labels, as returned by `TextClassification.references`.

    Raises:
        DataError: if the recipe's weights are not for exactly these labels, or a label has no rows.
    """
    if weights is None:
        return None
    if isinstance(weights, dict):
        return weights_from_recipe(weights, labels)
    if task.problem == "multi_label":
        counts = gold.sum(0)
        return [float(min(MAX_AUTO_WEIGHT, (len(gold) - count) / max(1.0, count))) for count in counts]
    consequence = "has no automatic weight; add such rows, or list a weight for each label in training.class_weights"
    check_all_labels_occur(task, labels, gold, consequence)
    counts = np.bincount(gold, minlength=len(labels))
    return [float(len(gold) / (len(labels) * count)) for count in counts]


def check_all_labels_occur(task: Task, labels: tuple[str, ...], gold: np.ndarray, consequence: str) -> None:
    """Check that each label of a single-label task has training rows.

    Args:
        gold: the label ids of the training rows. [R]
        consequence: what the error message says about a label without rows, and the cure.

    Raises:
        DataError: if a label has none.
    """
    counts = np.bincount(gold, minlength=len(labels))
    if not counts.all():
        label = quoted(labels[int(counts.argmin())])
        raise DataError(f"{origin(task)}: no training row has the label {label}, so it {consequence}")


def weights_from_recipe(weights: dict[str, float], labels: tuple[str, ...]) -> list[float]:
    """Return the weights of a recipe in the order of the labels.

    Raises:
        DataError: if the weights are not for exactly these labels.
    """
    if set(weights) != set(labels):
        found, expected = list_labels(weights), list_labels(labels)
        raise DataError(f"found training.class_weights for {found}, expected one for each of {expected}")
    return [weights[label] for label in labels]


def lookup_label_id(task: Task, label2id: Mapping[str, int], rows: Dataset, row: int, label: str) -> int:
    """Return the id of `label`, the label of row `row`.

    Raises:
        DataError: if the label is unknown.
    """
    if label not in label2id:
        raise _unknown_label(task, label2id, rows, [row], label)
    return label2id[label]


def row_excerpt(task: Task, rows: Dataset, row: int) -> str:
    """Return a sentence that quotes the start of a row, to help identify it."""
    return f"It begins {join_words(rows[row][task.columns[0]])[:MAX_EXCERPT_CHARS]!r}."


def labels_with_gold(
    labels: Sequence[str], logits: np.ndarray, predicted: np.ndarray, gold: np.ndarray
) -> list[dict[str, Any]]:
    """Return predictions next to gold labels in the format of `Head.with_gold`, for tasks with one label per row.

    Args:
        logits: [R, C].
        predicted: label ids [R].
        gold: label ids [R].
    """
    from scipy.special import log_softmax

    entries = []
    log_probabilities = log_softmax(logits.astype(np.float64), axis=-1)
    for row, predicted_id, gold_id in zip(log_probabilities, predicted.tolist(), gold.tolist(), strict=True):
        entries.append(
            {
                "gold": labels[gold_id],
                "predicted": labels[predicted_id],
                "right": predicted_id == gold_id,
                "confidence": float(np.exp(row[predicted_id])),
                "loss": float(-row[gold_id]),
                "probabilities": {labels[index]: float(np.exp(row[index])) for index in top_label_ids(row)},
            }
        )
    return entries


def top_label_ids(scores: np.ndarray) -> np.ndarray:
    """Return the ids of the (at most `MAX_PROBABILITIES`) highest-scoring labels, in descending order of score.

    Args:
        scores: [C].
    """
    top = np.argpartition(-scores, min(MAX_PROBABILITIES, len(scores)) - 1)[:MAX_PROBABILITIES]
    return top[np.argsort(-scores[top], kind="stable")]
