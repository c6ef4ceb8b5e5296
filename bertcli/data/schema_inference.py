"""Infer from the rows of data files which columns are texts and labels, and which kind of task they are for.

Each decision that the data leave open is a doubt, which one option of `bertcli init` decides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from bertcli.data.annotation_inference import find_choices, find_questions, find_spans, find_tags
from bertcli.data.column_profile import ID_NAMES, Column, is_blank
from bertcli.data.formats import Row
from bertcli.data.inferred_task import (
    GROUP_NAMES,
    LABEL_NAMES,
    TEXT_NAMES,
    Choices,
    InferredTask,
    shell_argument,
)
from bertcli.data.label_inference import find_classification
from bertcli.errors import UsageError, did_you_mean, quoted, shortened
from bertcli.tasks.task import NUMBER

SPLIT_VALUES = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "val", "dev", "development", "eval"),
    "test": ("test", "testing", "tst", "heldout"),
}
"""Names of each split in columns and file names, the usual ones first."""
MIN_REPEATED_SHARE = 0.01  # of rows with the text of an earlier row, for grouping by text
MAX_NAME_WORDS = 6  # in the name of a column
MAX_GROUP_SHARE = 0.9  # distinct groups per row


def infer_task(rows: Sequence[Row], choices: Choices, *, has_validation: bool) -> InferredTask:
    """Infer the task definition for rows.

    Args:
        rows: sampled rows of the training files.
        choices: what is already decided.
        has_validation: whether there are validation files, so that no rows are held out.

    Raises:
        UsageError: if a chosen column does not exist, or no text or label was found; the message names the option.
    """
    columns = _columns_of(rows)
    _check_choices(columns, choices)
    if not (choices.text and choices.label):
        _check_header(columns)
    split = _find_split_column(columns, choices, has_validation=has_validation)
    usable = {name: column for name, column in columns.items() if column is not split and column.present}
    inferred = _infer_kind(usable, choices)
    _skip_empty(inferred, usable)
    if split is not None:
        _add_split_column(inferred, split)
        has_validation = inferred.keys["splits"]["validation"] is not None
    if not has_validation:
        _add_groups(inferred, usable, choices)
    _note_ignored(inferred, columns)
    return inferred


def _columns_of(rows: Sequence[Row]) -> dict[str, Column]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: Column(name, [row.get(name) for row in rows]) for name in names}


def _check_header(columns: dict[str, Column]) -> None:
    """Check that the names of the columns are names, not the values of a first row.

    Raises:
        UsageError: if a name is a sentence, or one of the values of its column, or the first row has names.
    """
    first = [(column, str(column.values[0]).strip()) for column in columns.values()]
    cells = [cell for column, cell in first if column.counts[cell] == 1]
    if sum(cell.lower() in (*TEXT_NAMES, *LABEL_NAMES, *ID_NAMES) for cell in cells) > 1:
        raise UsageError(
            f"found {quoted([*columns])} as the names of columns, but the first row, {quoted(cells)}, looks like the "
            "header; remove what is above it"
        )
    for name, column in columns.items():
        is_value = name.strip() and column.counts[name.strip()] > 1
        if len(name.split()) > MAX_NAME_WORDS or is_value or (NUMBER.fullmatch(name.strip()) and column.is_number):
            raise UsageError(
                f"found {quoted(name)} as the name of a column, which looks like a value; if the file has no header, "
                f"name its {len(columns)} columns, such as --columns text,label. If it has, set --text and --label"
            )


def _check_choices(columns: dict[str, Column], choices: Choices) -> None:
    chosen = {
        "--text": choices.text,
        "--label": choices.label,
        "--group": (choices.group,),
        "--split": (choices.split,),
    }
    for option, names in chosen.items():
        for name in names:
            if name not in (None, "none") and name not in columns:
                raise UsageError(
                    f"found no column {quoted(name)} ({option}), expected one of {quoted([*columns])}."
                    f"{did_you_mean(str(name), columns)}"
                )


def _infer_kind(columns: dict[str, Column], choices: Choices) -> InferredTask:
    """Return the first kind of task that the columns fit, or the chosen one."""
    finders = {
        "spans": find_spans,
        "tags": find_tags,
        "choices": find_choices,
        "questions": find_questions,
    }
    for kind, find in finders.items():
        if choices.kind in (None, kind) and (inferred := find(columns, choices)) is not None:
            return inferred
        if choices.kind == kind:
            raise UsageError(
                f"found the columns {quoted([*columns])}, but not those of {kind} (--problem); name them with --text "
                "and --label"
            )
    return find_classification(columns, choices)


def _skip_empty(inferred: InferredTask, columns: dict[str, Column]) -> None:
    """Skip rows without a text, if there are some; a row that is a word cannot be skipped."""
    texts = [columns[name] for name in inferred.keys["text_columns"]]
    rows = zip(*(text.values for text in texts), strict=True)
    num_empty = sum(any(is_blank(cell) for cell in cells) for cells in rows)
    if num_empty and "sentence_column" not in inferred.keys:
        inferred.skips_empty = True
        have = "s have" if num_empty > 1 else " has"
        inferred.findings["empty"] = f"{num_empty} row{have} no text and will be skipped (task.files.skip_empty)"


def split_of_name(name: str) -> str | None:
    """Return the split that a file name or a cell names, such as `dev` or `reviews_test`; None if it names none."""
    words = re.findall(r"[^\W\d_]+", name.lower())
    found = [split for split, names in SPLIT_VALUES.items() if {*words} & {*names}]
    return found[0] if len(found) == 1 else None


def _find_split_column(columns: dict[str, Column], choices: Choices, *, has_validation: bool) -> Column | None:
    """Return the column that names each row's split, if there is one.

    Raises:
        UsageError: if most values of a column name a split, but not all, or several name the same one.
    """
    if choices.split == "none" or (has_validation and choices.split is None):
        return None
    if choices.split is not None:
        return columns[choices.split]
    for column in columns.values():
        named = {text: split for text in column.counts if (split := split_of_name(text)) is not None}
        if (
            "train" not in named.values()
            or len({*named.values()}) < 2
            or column.name in (*choices.text, *choices.label)
        ):
            continue
        if len({*named.values()}) == len(column.counts):
            return column
        if sum(column.counts[text] for text in named) > len(column.texts) / 2:
            raise UsageError(
                f"column {quoted(column.name)} seems to name the split of each row, but has the values "
                f"{quoted([*column.counts])}, expected one name each for training, validation and test; correct it, "
                f"use --split {shell_argument(column.name)} to leave out rows with other values, or --split none to "
                "ignore the column"
            )
    return None


def _add_split_column(inferred: InferredTask, column: Column) -> None:
    """Set the keys for a column that names each row's split.

    Raises:
        UsageError: if no value names the training split, or several values name the same split.
    """
    names: dict[str, str | None] = dict.fromkeys(SPLIT_VALUES)
    for text in column.counts:
        split = split_of_name(text)
        if split is not None and names[split] is not None:
            raise UsageError(
                f"found {quoted(names[split])} and {quoted(text)} in column {quoted(column.name)}, which both name the "
                f"{split} split; write them in the same way"
            )
        if split is not None:
            names[split] = text
    if names["train"] is None:
        raise UsageError(
            f"found {quoted([*column.counts])} in column {quoted(column.name)} (--split), expected train, validation "
            "(or dev) and test"
        )
    inferred.keys |= {"split_column": column.name, "splits": names}
    counts = ", ".join(f"{text} ({column.counts[text]})" for text in names.values() if text is not None)
    num_left_out = len(column.values) - sum(column.counts[text] for text in names.values() if text is not None)
    left_out = f"; {num_left_out} row{'s' * (num_left_out > 1)} without one of these left out" if num_left_out else ""
    held_out = "" if names["validation"] else "; 10% of the training rows are held out for validation"
    inferred.findings["splits"] = f"column {quoted(column.name)}: {shortened(counts)}{left_out}{held_out}"


def _add_groups(inferred: InferredTask, columns: dict[str, Column], choices: Choices) -> None:
    """Set the column by which held-out rows are grouped, if one repeats, and describe how rows are held out."""
    used = {*inferred.keys["text_columns"], inferred.keys.get("label_column"), inferred.keys.get("sentence_column")}
    used |= {
        *inferred.keys.get("label_columns", ()),
        inferred.keys.get("span_column"),
        inferred.keys.get("split_column"),
    }
    held_out = "10% of the rows are held out for validation"
    if choices.group is not None:
        group = None if choices.group == "none" else choices.group
    else:
        group = next((name for name, column in columns.items() if name not in used and _is_group(column)), None)
        text = columns.get(inferred.keys["text_columns"][-1 if inferred.kind == "questions" else 0])
        is_word = "sentence_column" in inferred.keys  # words repeat
        if group is None and text is not None and _is_repeated(text) and not is_word:
            group = text.name
        if group is not None:
            inferred.doubts.append(
                f"values of column {quoted(group)} repeat, so rows with the same one stay in one split; --group none "
                "ignores that"
            )
    if group is not None:
        inferred.keys["group_by"] = group
        held_out = f"10% of the values of column {quoted(group)}, with all their rows, are held out for validation"
    elif inferred.kind == "single_label":
        held_out += ", stratified by label"
    inferred.findings.setdefault("splits", held_out)


def _is_group(column: Column) -> bool:
    if not column.texts or len(column.texts) < len(column.values) or not column.name_score((*GROUP_NAMES, *ID_NAMES)):
        return False
    return 2 < len(column.counts) <= MAX_GROUP_SHARE * len(column.texts)


def _is_repeated(text: Column) -> bool:
    num_rows = len(text.texts)
    return num_rows == len(text.values) and 2 < len(text.counts) < (1 - MIN_REPEATED_SHARE) * num_rows


def _note_ignored(inferred: InferredTask, columns: dict[str, Column]) -> None:
    used = {
        name
        for value in inferred.keys.values()
        for name in (value if isinstance(value, tuple) else (value,))
        if isinstance(name, str)
    }
    ignored = [name or "(no name)" for name in columns if name not in used]
    if ignored:
        inferred.findings["ignored"] = f"column{'s' * (len(ignored) > 1)} {shortened(', '.join(ignored))}"
