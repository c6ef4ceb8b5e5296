"""Infer text classification and regression from columns: the text or pair of texts, and the labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from bertcli.data.column_profile import Column, is_blank, is_missing
from bertcli.data.inferred_task import (
    GROUP_NAMES,
    LABEL_NAMES,
    Choices,
    InferredTask,
    chosen_columns,
    describe_counts,
    first_named,
    rank_texts,
    shell_argument,
    skip_unlabelled,
)
from bertcli.data.row_layouts import FLAGS, MISSING_FLAGS
from bertcli.data.table_files import label_text
from bertcli.errors import UsageError, quoted
from bertcli.tasks.task import NUMBER, label_key, merge_spellings

PAIR_NAMES = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("text", "text_pair"),
    ("query", "passage"),
    ("query", "document"),
    ("question", "passage"),
    ("question", "context"),
    ("question", "sentence"),
)
LABEL_DELIMITERS = (";", "|", ",", "/")
MAX_CLASSES = 20  # integers with more distinct values are numbers to predict
MAX_LABEL_SHARE = 0.5  # distinct labels per row; a column with more is no label
MIN_DELIMITED_SHARE = 0.02  # of the cells with several labels
MAX_LABEL_WORDS = 5
NUMBER_LIKE = re.compile(r"[$€£¥]?\s?[+-]?\d[\d.,'\s]*[%$€£¥]?")  # also with units, or separators of thousands
MIN_NUMBER_SHARE = 0.5  # of a column's distinct values, which then are numbers
THOUSANDS = {mark: re.compile(rf"[+-]?[1-9]\d{{0,2}}{re.escape(mark)}\d{{3}}") for mark in ",."}  # 1,234 may be 1234
MAX_EXPLAINED_COLUMNS = 3


def find_classification(columns: dict[str, Column], choices: Choices) -> InferredTask:
    """Return the task of one label, several labels or a number for a text or pair of texts.

    Raises:
        UsageError: if no column can be the text or the label; the message names the option.
    """
    doubts: list[str] = []
    texts = _find_texts(columns, choices, doubts)
    rest = [column for column in columns.values() if column not in texts]
    labels = chosen_columns(columns, choices.label) or _find_labels(rest, choices, doubts)
    keys: dict[str, Any] = {"head": "text_classification", "text_columns": tuple(column.name for column in texts)}
    inferred = InferredTask("single_label", keys, doubts=doubts)
    if len(labels) > 1:
        _set_flags(inferred, labels, choices)
    else:
        _set_label(inferred, labels[0], choices)
    inferred.findings = {"text": _describe_texts(texts)} | inferred.findings
    return inferred


def _find_texts(columns: dict[str, Column], choices: Choices, doubts: list[str]) -> list[Column]:
    """Return the text column, or both of a pair."""
    if choices.text:
        if len(choices.text) > 2:
            raise UsageError(f"found {len(choices.text)} columns for --text, expected one, or two for pairs of texts")
        return chosen_columns(columns, choices.text)
    for names in PAIR_NAMES:
        pair = [first_named(columns.values(), [name]) for name in names]
        if None not in pair and all(column is not None and column.texts for column in pair):
            return [column for column in pair if column is not None]
    ranked = rank_texts(column for column in columns.values() if column.name not in choices.label)
    if not ranked:
        raise UsageError(
            f"found no column of texts among {quoted([*columns])}; name it with --text (twice for pairs of texts)"
        )
    long = [column for column in ranked[1:] if column.words_per_text > MAX_LABEL_WORDS / 2]
    if long and len(long[0].counts) > MAX_CLASSES:
        second = long[0].name
        doubts.append(
            f"column {quoted(second)} also has texts; --text {shell_argument(second)} uses it instead, and "
            f"--text {shell_argument(ranked[0].name)} --text {shell_argument(second)} both"
        )
    return ranked[:1]


def _describe_texts(texts: Sequence[Column]) -> str:
    parts = []
    for column in texts:
        num_missing = len(column.values) - len(column.present)
        empty = f", {num_missing} empty" if num_missing else ""
        parts.append(f"column {quoted(column.name)} ({column.words_per_text:.0f} words on average{empty})")
    return " and ".join(parts)


def _find_labels(columns: Sequence[Column], choices: Choices, doubts: list[str]) -> list[Column]:
    """Return the label column, or the columns of 0 and 1.

    Raises:
        UsageError: if no column can be one.
    """
    flags = [column for column in columns if column.is_flag]
    named = [column for column in columns if column.name_score(LABEL_NAMES) == 2]
    if choices.kind == "multi_label" and flags and not named:
        return flags
    if len(flags) > 1 and not any(column.name_score(LABEL_NAMES) == 2 for column in columns):
        doubts.append(
            f"{len(flags)} columns hold 0 and 1, so each is a label; "
            f"--label {shell_argument(flags[0].name)} uses one of them"
        )
        return flags
    ranked = sorted((column for column in columns if _label_score(column) > 0), key=_label_score, reverse=True)
    if not ranked:
        if not columns:
            raise UsageError("found only columns of texts, expected one of labels; add it, or name it with --label")
        reasons = "; ".join(map(_why_no_label, columns[:MAX_EXPLAINED_COLUMNS]))
        more = "; …" if len(columns) > MAX_EXPLAINED_COLUMNS else ""
        raise UsageError(f"found no column of labels: {reasons}{more}. Name it with --label")
    if len(ranked) > 1 and _label_score(ranked[1]) > _label_score(ranked[0]) - 2:
        second = ranked[1].name
        doubts.append(f"column {quoted(second)} may also be the label; --label {shell_argument(second)} uses it")
    return ranked[:1]


def _label_score(column: Column) -> float:
    """Return how likely a column holds labels; 0 if it cannot."""
    score = 3 * column.name_score(LABEL_NAMES)
    if column.present and not column.texts:  # lists or objects
        return score + 2 if all(map(_is_label_set, column.present)) else 0
    if (column.is_reference and column.name_score(LABEL_NAMES) < 2) or len(column.counts) < 2:
        return 0
    share = len(column.counts) / len(column.texts)
    if column.is_number or column.is_comma_number:
        return score + (2 if len(column.counts) <= MAX_CLASSES else 1)
    if share > MAX_LABEL_SHARE and not score:
        return 0
    is_group = column.name_score(GROUP_NAMES) > 0
    return score + (2 if len(column.counts) <= MAX_CLASSES else 1) + 1 - share - 2 * is_group


def _is_label_set(value: Any) -> bool:
    """Return whether a cell holds labels: a list of them, an object of 0 and 1 for each, or a single one."""
    if isinstance(value, dict):
        return all(flag in (None, 0, 1) for flag in value.values())
    if isinstance(value, list | set):
        return not any(isinstance(item, list | dict | set) for item in value)
    return not str(value).strip().startswith(("[", "{"))


def _why_no_label(column: Column) -> str:
    """Return why a column is not taken for labels."""
    name = f"column {quoted(column.name)}"
    if not column.texts:
        wrong = next(value for value in column.present if not _is_label_set(value))
        return f"{name} has {quoted(wrong)}, expected a label"
    if len(column.counts) < 2:
        return f"{name} has one value, {quoted(column.texts[0])}"
    if column.is_reference:
        return f"{name} has IDs, links or dates, such as {quoted(column.texts[0])}"
    num_values, example = len(column.counts), quoted(column.texts[0])
    return f"{name} has {num_values} different values in {len(column.texts)} rows, such as {example}"


def _set_flags(inferred: InferredTask, flags: Sequence[Column], choices: Choices) -> None:
    """Set the keys for a column of 0 and 1 for each label.

    Raises:
        UsageError: if a column has other values, is named twice, or another problem is chosen.
    """
    inferred.kind = "multi_label"
    names = tuple(column.name for column in flags)
    if choices.kind not in (None, "multi_label"):
        raise UsageError(
            f"found {len(flags)} columns of labels and --problem {choices.kind}, expected one; name it with --label"
        )
    if len({*names}) < len(names):
        raise UsageError(f"found a column twice in --label ({quoted(names)}); name each once")
    for column in flags:
        texts = column.texts or [repr(value) for value in column.present]
        wrong = next((text for text in texts if label_key(text) not in (*FLAGS, *MISSING_FLAGS)), None)
        if wrong is not None:
            raise UsageError(
                f"column {quoted(column.name)} has {quoted(wrong)}, expected 0 or 1, as --label names several columns; "
                "name only one for labels in a single column"
            )
    inferred.keys |= {"label_columns": names, "problem": "multi_label"}
    counts = Counter({column.name: sum(label_key(text) in ("1", "true") for text in column.texts) for column in flags})
    rows = [*zip(*(column.values for column in flags), strict=True)]
    missing = [row for row in rows if is_missing(row[0])]
    none = [row for row in rows if {label_key(label_text(cell) or "") for cell in row} <= {"0", "false"}]
    inferred.findings["labels"] = (
        f"{len(flags)} columns of 0 and 1: {describe_counts(counts)}{_without_any_label(len(none))}"
    )
    inferred.skips_unlabelled = bool(missing)


def _set_label(inferred: InferredTask, column: Column, choices: Choices) -> None:
    """Set the keys for a single column of labels."""
    inferred.keys["label_column"] = column.name
    kind, delimiter = _kind_of_label(inferred, column, choices)
    inferred.kind = inferred.keys["problem"] = kind
    where = f"column {quoted(column.name)}"
    if kind == "regression":
        if column.is_comma_number:
            inferred.decimal = "comma"
        elif (wrong := next((text for text in column.texts if not NUMBER.fullmatch(text)), None)) is not None:
            raise UsageError(
                f"{where} has {quoted(wrong)}, expected numbers for --problem regression; correct it, or leave out "
                "--problem"
            )
        numbers = [
            float(text.replace(".", "").replace(",", ".") if inferred.decimal else text) for text in column.texts
        ]
        inferred.findings["labels"] = f"{where}: numbers from {min(numbers):g} to {max(numbers):g}"
        _doubt_thousands(inferred, column)
    elif kind == "multi_label":
        rows = [_labels_in(value, delimiter) for value in column.present]
        if all(isinstance(value, str) for value in column.values):  # an empty cell means none of the labels
            rows += [[] for value in column.values if is_blank(value)]
        counts = Counter(name for names in rows for name in names)
        if delimiter not in (None, ","):
            inferred.keys["label_delimiter"] = delimiter
        separated = "" if delimiter is None else f", separated by {delimiter!r}"
        inferred.findings["labels"] = (
            f"{where}: several labels{separated}; {len(counts)} labels: {describe_counts(counts)}"
            f"{_without_any_label(rows.count([]))}"
        )
    else:
        names = merge_spellings(column.counts)
        inferred.findings["labels"] = f"{where}: {len(names)} labels: {describe_counts(column.counts)}"
        if len(names) == 2:
            inferred.keys["labels"] = _ordered(names)
        elif any(label_key(name) == "-1" for name in names):  # otherwise it would be a missing label
            is_numeric = all(map(NUMBER.fullmatch, names))
            inferred.keys["labels"] = tuple(sorted(names, key=float) if is_numeric else sorted(names))
            inferred.doubts.append(
                "-1 is taken as a label; if it marks rows without one, remove it from task.labels, and set "
                "data.skip_unlabelled=true"
            )
        _doubt_spellings(inferred, column)
    skip_unlabelled(inferred, column)


def _without_any_label(num_rows: int) -> str:
    return f"; {num_rows} row{'s' * (num_rows > 1)} without any label" if num_rows else ""


def _ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Return two labels, the positive one second, whose F1 is the metric `f1`."""
    first, second = sorted(names)
    is_positive = first.lower() in ("pos", "positive", "yes", "true", "spam", "toxic", "1")
    return (second, first) if is_positive else (first, second)


def _kind_of_label(inferred: InferredTask, column: Column, choices: Choices) -> tuple[str, str | None]:
    """Return the kind of task for a column of labels, and the separator of several labels in a cell.

    Raises:
        UsageError: if the column has lists or objects, and a problem with one label per row is chosen; or most values
            are numbers, but some are not.
    """
    delimiter = choices.label_delimiter
    if column.are_lists or not column.texts:
        wrong = next((value for value in column.present if not _is_label_set(value)), None)
        if wrong is not None:
            raise UsageError(
                f"column {quoted(column.name)} has {quoted(wrong)}, expected a label, a list of labels, or an object "
                "of 0 and 1 for each label; name another column with --label"
            )
        if column.present and choices.kind not in (None, "multi_label"):
            raise UsageError(
                f"column {quoted(column.name)} has {quoted(column.present[0])}, expected one value per row for "
                f"--problem {choices.kind}; leave out --problem, or name another column with --label"
            )
        return "multi_label", None
    if choices.kind == "multi_label" or (choices.kind is None and delimiter is not None):
        return "multi_label", delimiter or _find_label_delimiter(column) or ","
    if choices.kind is not None:
        return choices.kind, None
    if column.is_comma_number or (column.is_number and not column.is_integral):
        return "regression", None
    if column.is_integral:
        num_values = len(column.counts)
        if num_values > MAX_CLASSES:
            return "regression", None
        if num_values > 3:
            inferred.doubts.append(
                f"column {quoted(column.name)} has {num_values} different integers, taken as labels; "
                "--problem regression predicts a number"
            )
        return "single_label", None
    _check_numbers(column)
    if (delimiter := _find_label_delimiter(column)) is not None:
        inferred.doubts.append(
            f"cells of column {quoted(column.name)} are taken as several labels separated by {delimiter!r}; "
            "--problem single_label takes each cell as one label"
        )
        return "multi_label", delimiter
    return "single_label", None


def _check_numbers(column: Column) -> None:
    """Check that values are not numbers to predict, of which some are damaged, missing or have a unit.

    Raises:
        UsageError: if most are numbers, and too many to be labels.
    """
    num_numbers = sum(NUMBER_LIKE.fullmatch(text) is not None for text in column.counts)
    if num_numbers > max(MAX_CLASSES, MIN_NUMBER_SHARE * len(column.counts)):
        wrong = next(text for text in column.counts if not NUMBER.fullmatch(text))
        raise UsageError(
            f"column {quoted(column.name)} has numbers, but also {quoted(wrong)} ({column.counts[wrong]}×), expected "
            "numbers such as 1234.5, or an empty cell if there is none; correct it, or set --problem single_label"
        )


def _doubt_thousands(inferred: InferredTask, column: Column) -> None:
    """Doubt that a mark is the decimal separator if it has three digits after it in all numbers, as in 1,234."""
    mark = "," if inferred.decimal == "comma" else "."
    marked = [text for text in column.counts if mark in text]
    if marked and all(map(THOUSANDS[mark].fullmatch, marked)):
        name = "comma" if mark == "," else "point"
        inferred.doubts.append(
            f"the {name} in numbers such as {quoted(marked[0])} is read as a decimal {name}; if it separates "
            "thousands, remove it from the file"
        )


def _find_label_delimiter(column: Column) -> str | None:
    """Return the character that separates several labels in the cells of a column, if their parts recur."""
    for delimiter in LABEL_DELIMITERS:
        cells = [[part.strip() for part in text.split(delimiter)] for text in column.counts]
        several = sum(column.counts[text] for text in column.counts if delimiter in text)
        parts = {part for cell in cells for part in cell if part}
        is_short = all(len(part.split()) <= MAX_LABEL_WORDS for part in parts)
        if several > MIN_DELIMITED_SHARE * len(column.texts) and is_short and len(parts) < len(cells):
            return delimiter
    return None


def _labels_in(value: Any, delimiter: str | None) -> list[str]:
    if isinstance(value, dict):
        return [str(name) for name, flag in value.items() if flag]
    if isinstance(value, list | set):
        return [label_text(item) or "" for item in value]
    text = label_text(value) or ""
    return [part.strip() for part in text.split(delimiter or ",") if part.strip()]


def _doubt_spellings(inferred: InferredTask, column: Column) -> None:
    by_key: dict[str, list[str]] = {}
    for name in merge_spellings(column.counts):
        by_key.setdefault(name.casefold(), []).append(name)
    spelled = next((sorted(names) for names in by_key.values() if len(names) > 1), None)
    if spelled is not None:
        inferred.doubts.append(
            f"labels that differ only in case, such as {quoted(spelled)}, are different labels; if they are one, "
            "correct the file"
        )
    rare = sum(count == 1 for count in column.counts.values())
    if rare:
        inferred.findings["rare"] = f"{rare} label{'s occur' if rare > 1 else ' occurs'} only once"
