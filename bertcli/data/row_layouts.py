"""Rows as people's files have them, arranged as heads read them: one text with its labels, or its words and their tags.

Files may have a column of 0 and 1 for each label, a row for each word, spans instead of tags, a column for the starts
of answers, or lists printed as text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bertcli.data.formats import parse_cell
from bertcli.data.spans import tag_rows
from bertcli.data.table_files import ROW_COLUMN, label_text
from bertcli.errors import DataError, quoted
from bertcli.tasks.task import Task, label_key

if TYPE_CHECKING:
    from datasets import Dataset

FLAGS = {"0": False, "1": True, "false": False, "true": True}
MAX_START_DIGITS = 18  # of an offset in 64 bits
MISSING_FLAGS = ("", "-1", "nan", "NaN")  # -1 as in the hidden test labels of Jigsaw

Locate = Callable[[Sequence[int]], str]
"""Returns the location of rows for messages, given their indices."""


def arrange_rows(task: Task, rows: Dataset, locate: Locate) -> Dataset:
    """Return the rows with the labels of `task.label_column`, and the words of `task.text_columns`, as heads read them.

    Raises:
        DataError: if a row is not as the task definition says; the message names it.
    """
    if task.label_columns and task.label_columns[0] in rows.column_names:
        rows = combine_flags(rows, task.label_columns, task.label_column, locate)
    if task.answer_start_column is not None and {task.label_column, task.answer_start_column} <= {*rows.column_names}:
        rows = join_answers(rows, task.label_column, task.answer_start_column, locate)
    if task.sentence_column is not None:
        rows = group_words(rows, task.text_columns[0], task.label_column, task.sentence_column, locate)
    if task.span_column is not None and {task.span_column, *task.text_columns} <= {*rows.column_names}:
        rows = tag_rows(rows, task.text_columns[0], task.span_column, task.label_column, locate)
    elif task.head_class.reads_words and {task.label_column, *task.text_columns} <= {*rows.column_names}:
        rows = _split_printed_tags(rows, task.text_columns[0], task.label_column)
    return rows


def combine_flags(rows: Dataset, flag_columns: Sequence[str], label_column: str, locate: Locate) -> Dataset:
    """Return the rows with a list of labels instead of a column of 0 and 1 for each label.

    A row whose cells are all empty or -1 has no list.

    Raises:
        DataError: if a cell is none of these, or only some cells of a row are empty; the message names the row.
    """
    from datasets import List, Value

    columns = [_flags(rows[name][:], name, locate) for name in flag_columns]
    labels: list[list[str] | None] = []
    for row, flags in enumerate(zip(*columns, strict=True)):
        if None in flags and any(flag is not None for flag in flags):
            name = flag_columns[flags.index(None)]
            raise DataError(f"{locate([row])} has no value in column {name!r:.80}, expected 0 or 1 for each label")
        labels.append(None if None in flags else [name for name, flag in zip(flag_columns, flags, strict=True) if flag])
    rows = rows.remove_columns([*{*flag_columns, label_column} & {*rows.column_names}])
    return rows.add_column(label_column, labels, feature=List(Value("string")))


def join_answers(rows: Dataset, text_column: str, start_column: str, locate: Locate) -> Dataset:
    """Return the rows with the texts and starts of their answers under `text_column`, as in SQuAD on the Hub.

    A cell holds one text and one start, or (printed) lists of them. Without a text, the question has no answer. If the
    start is a single number, a text such as `[2010]` is not a list, but the answer itself.

    Raises:
        DataError: if a start is not a whole number from 0, texts and starts differ in number, or a text is an object;
            the message names the row.
    """
    from datasets import List, Value

    answers = []
    for row, (text, start) in enumerate(zip(rows[text_column][:], rows[start_column][:], strict=True)):
        if any(isinstance(value, dict) for value in _cells(text)):
            raise DataError(
                f"{locate([row])} has {quoted(text)} in column {text_column!r:.80}, which seems to hold the starts "
                "of answers, too; remove task.answer_start_column"
            )
        is_single = isinstance(text, str) and _start_key(start).isdecimal() and parse_cell(text) != []
        values = [text] if is_single else _cells(text)
        texts = [value for value in values if value is not None and str(value).strip()]
        keys = [_start_key(value) for value in _cells(start)] if texts else []
        if not all(key.isdecimal() and len(key) <= MAX_START_DIGITS for key in keys):
            raise DataError(
                f"{locate([row])} has {quoted(start)} in column {start_column!r:.80}, expected the offset of the "
                "answer in the passage, in characters from 0"
            )
        if len(texts) != len(keys):
            raise DataError(
                f"{locate([row])} has {len(texts)} answers in column {text_column!r:.80}, but {len(keys)} starts in "
                f"column {start_column!r:.80}"
            )
        answers.append({"text": [str(value) for value in texts], "answer_start": [int(key) for key in keys]})
    feature = {"text": List(Value("string")), "answer_start": List(Value("int64"))}
    return rows.remove_columns([text_column, start_column]).add_column(text_column, answers, feature=feature)


def _start_key(value: Any) -> str:
    return label_key(label_text(value) or "")


def _cells(value: Any) -> list[Any]:
    parsed = parse_cell(value)
    return parsed if isinstance(parsed, list) else [value]


def _flags(values: list[Any], name: str, locate: Locate) -> list[bool | None]:
    flags: list[bool | None] = []
    for row, value in enumerate(values):
        key = label_key(label_text(value) or "")
        if key not in FLAGS and key not in MISSING_FLAGS:
            raise DataError(f"{locate([row])} has {quoted(value)} in column {name!r:.80}, expected 0 or 1")
        flags.append(FLAGS.get(key))
    return flags


def group_words(rows: Dataset, word_column: str, tag_column: str, sentence_column: str, locate: Locate) -> Dataset:
    """Return a row for each sentence, with lists of words and tags; other columns have the values of its first word.

    An empty cell in the sentence column means the sentence of the row above, as in Kaggle's `Sentence #`.

    Raises:
        DataError: if a row has no word, the first row has no sentence, or the rows of a sentence are not adjacent.
    """
    from datasets import Dataset

    names = [(label_text(value) or "").strip() for value in rows[sentence_column][:]]
    words = [label_text(value) for value in rows[word_column][:]]
    empty = [row for row, word in enumerate(words) if word is None or not word.strip()]
    if empty:
        raise DataError(f"{locate(empty)} of column {word_column!r} {'have' if len(empty) > 1 else 'has'} no word")
    if names and not names[0]:
        raise DataError(f"{locate([0])} has no sentence in column {sentence_column!r}, expected a number or a name")
    current, starts = "", list[int]()
    seen: set[str] = set()
    for row, name in enumerate(names):
        if row == 0 or (name and name != current):
            if name in seen:
                raise DataError(
                    f"{locate([row])} belongs to sentence {name[:80]!r}, which ended above; sort the rows by sentence"
                )
            seen.add(name)
            starts.append(row)
            current = name
    bounds = list(zip(starts, [*starts[1:], len(names)], strict=True))
    numbers = rows[ROW_COLUMN][:] if ROW_COLUMN in rows.column_names else [*range(1, len(names) + 1)]
    columns: dict[str, list[Any]] = {word_column: [words[start:end] for start, end in bounds]}
    for name in rows.column_names:
        values = rows[name][:] if name not in (word_column, ROW_COLUMN) else []
        if name == tag_column:
            columns[name] = [[label_text(value) for value in values[start:end]] for start, end in bounds]
        elif values:
            columns[name] = [values[start] for start in starts]
    return Dataset.from_dict(columns | {ROW_COLUMN: [numbers[start] for start in starts]}, split=rows.split)


def _split_printed_tags(rows: Dataset, text_column: str, tag_column: str) -> Dataset:
    """Return the rows with lists of tags if the tags are text: printed lists, or separated by spaces or commas.

    The words are then a printed list, or separated by spaces.
    """
    from datasets import List, Value

    if getattr(rows.features[tag_column], "dtype", None) not in ("string", "large_string"):
        return rows
    all_words: list[Any] = []
    all_tags: list[list[str | None] | None] = []
    for text, cell in zip(rows[text_column][:], rows[tag_column][:], strict=True):
        parsed = parse_cell(text)
        words = parsed if isinstance(parsed, list) else str(text or "").split()
        all_words.append([label_text(word) or "" for word in words])
        all_tags.append(_printed_tags(cell, len(words)))
    for name, values in ((text_column, all_words), (tag_column, all_tags)):
        rows = rows.remove_columns(name).add_column(name, values, feature=List(Value("string")))
    return rows


def _printed_tags(cell: str | None, num_words: int) -> list[str | None] | None:
    parsed = parse_cell(cell)
    if isinstance(parsed, list):
        return [label_text(tag) for tag in parsed]
    if cell is None or not cell.strip():
        return [] if num_words == 0 else None
    by_space = cell.split()
    by_comma = [tag.strip() for tag in cell.split(",")]
    return [*by_comma] if len(by_space) != num_words and len(by_comma) == num_words else [*by_space]
