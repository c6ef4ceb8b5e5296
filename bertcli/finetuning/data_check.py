"""Check the data of a recipe: sizes, labels, duplicates and leaks, lengths, unknown tokens, scripts, and spans.

Shapes: R rows of a split, L texts.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.console import Console, format_count
from bertcli.data.duplicates import find_near_duplicates, normalize_text
from bertcli.data.encoding import iter_input_ids, special_tokens_template
from bertcli.data.formats import join_words
from bertcli.data.sources import hold_out_rows, load_split, load_training_rows, locate_rows
from bertcli.data.spans import CUT_COLUMN
from bertcli.data.unknown_tokens import count_unknown_parts
from bertcli.errors import BertcliError, DataError, shortened
from bertcli.finetuning.setup import random_subset
from bertcli.heads.labels import check_label_column, label_names, labelled_rows
from bertcli.heads.text_classification import gold_numbers
from bertcli.heads.token_classification import tag_names
from bertcli.heads.word_alignment import row_words, tokenize_words
from bertcli.metrics.scores import check_references
from bertcli.models.from_pretrained import ModelSource
from bertcli.recipe.load import recipe_task
from bertcli.recipe.schema import Recipe
from bertcli.runs.members import best_seed
from bertcli.tasks.tags import read_tag_set, split_tags
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

MAX_ROWS = 200_000  # in all splits together; with more, near duplicates are not searched for
MAX_TOKENIZED_ROWS = 20_000  # per split, drawn at random
MIN_LABEL_ROWS = 10  # fewer training rows of a label are reported
MAX_ID_SHARE = 0.5  # distinct labels per row, above which labels look like IDs
MIN_SCRIPT_SHARE = 0.01  # of a split's rows, for a second script to be reported
MAX_CUT_SHARE = 0.05  # of a split's rows that are truncated
MAX_UNKNOWN_SHARE = 0.01  # of a split's tokens
MAX_LISTED_LABELS = 6


@dataclass(frozen=True)
class Finding:
    """A property of the data that may be a mistake.

    Attributes:
        topic: such as `leak` or `labels`.
        message: what was found, with an example.
        count: how many rows, texts or labels it concerns.
        split: the split; None: several.
    """

    topic: str
    message: str
    count: int
    split: str | None = None


@dataclass
class SplitSummary:
    """The figures of a split; token figures are None without a tokenizer, and are of a sample if there are many rows.

    Attributes:
        labels: rows (or words, or spans) with each label; empty for regression, questions and choices.
        num_counted: number of rows (or words, or spans) that `labels` counts; several labels of a row count once.
        without_labels: rows whose list of labels is empty, in multi-label tasks.
        numbers: smallest, mean and largest number of a regression.
        tokens: mean, 95th percentile and maximum number of tokens per row, with special tokens.
        cut_share: share of the rows that exceed `data.max_length`.
        unknown_share: share of the tokens that are the unknown token.
        scripts: rows by their main script, such as LATIN.
    """

    rows: int
    unlabelled: int = 0
    empty_texts: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    num_counted: int = 0
    without_labels: int = 0
    numbers: tuple[float, float, float] | None = None
    tokens: tuple[float, float, int] | None = None
    cut_share: float | None = None
    unknown_share: float | None = None
    scripts: dict[str, int] = field(default_factory=dict)


@dataclass
class DataCheck:
    """The result of checking a recipe's data: the figures of each split, and the findings."""

    task: str
    max_length: int
    splits: dict[str, SplitSummary] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON data."""
        return asdict(self)

    def add(self, topic: str, message: str, count: int, split: str | None = None) -> None:
        """Add a finding, unless it was added before."""
        finding = Finding(topic, message, count, split)
        if finding not in self.findings:
            self.findings.append(finding)


@dataclass
class _SplitRows:
    """The rows of a split, their texts and their labels as text."""

    task: Task
    name: str
    rows: Dataset

    @cached_property
    def texts(self) -> list[str]:
        """The text of each row; those of several columns are joined by a line break. [R]"""
        columns = [self.rows[name][:] for name in self.task.columns]
        return ["\n".join(join_words(cell) for cell in cells) for cells in zip(*columns, strict=True)]

    @cached_property
    def keys(self) -> list[str]:
        """The normalized text of each row, with a line for each column. [R]"""
        columns = [[normalize_text(join_words(cell)) for cell in self.rows[name][:]] for name in self.task.columns]
        return ["\n".join(cells) for cells in zip(*columns, strict=True)]

    @cached_property
    def labels(self) -> list[Any] | None:
        """The label of each row, comparable: text, number, tuple or None; None if there are no labels."""
        task, rows = self.task, self.rows
        if task.label_column not in rows.column_names:
            return None
        values = rows[task.label_column][:]
        if task.problem == "regression":
            values = gold_numbers(task, values)
        elif task.head == "text_classification":
            values = label_names(task, rows, values)
        elif task.head_class.reads_words:
            names = tag_names(task, rows, values)
            values = [None if tags is None else [names.get(tag) for tag in tags] for tags in values]
        labels = [tuple(value) if isinstance(value, list) else value for value in values]
        return None if all(label is None for label in labels) else labels

    def locate(self, indices: Sequence[int]) -> str:
        """Return the location of rows in their files, and their split, for messages."""
        return f"{locate_rows(self.task, self.rows, indices)} ({self.name})"


def check_data(recipe: Recipe, mirror: Path | None, console: Console) -> DataCheck:
    """Check the data of a recipe.

    Raises:
        DataError: if the training or validation rows cannot be read.
    """
    task = recipe_task(recipe)
    check = DataCheck(task.name, recipe.data.max_length)
    with console.waiting("reading rows"):
        splits = _load_splits(task, mirror, check)
    for split in splits:
        summary = check.splits[split.name] = SplitSummary(len(split.rows))
        summary.scripts = dict(Counter(map(main_script, split.texts)).most_common())
        _check_texts(check, split, summary)
        _check_labels(check, split, summary)
    _compare_labels(check, splits)
    _check_head(check, splits, recipe)
    with console.waiting("comparing texts"):
        _check_duplicates(check, splits)
    with console.waiting("tokenizing"):
        _check_tokens(check, splits, recipe, mirror)
    if check.findings and task.files is not None:
        check.notes.append("rows are numbered as in their files, the first one after any header being row 1")
    return check


def _load_splits(task: Task, mirror: Path | None, check: DataCheck) -> list[_SplitRows]:
    training = load_training_rows(task, mirror)
    rows = hold_out_rows(task, training) if task.holds_out_rows else {"train": training}
    labelled = task
    try:  # labels are collected from all training rows, as in training
        if task.problem != "regression":
            labelled = task.model_copy(update={"labels": task.head_class.task_labels(task, training)})
    except DataError as error:
        check.add("labels", str(error), 1, "train")
    for name in ("validation", *task.splits.extra_validation):
        rows[name] = rows.get(name) or load_split(task, name, mirror)
    for name, part in rows.items():  # training and validation need labels
        check_label_column(task, part, name)
    has_test = task.files.test if task.files is not None and task.split_column is None else task.splits.test
    if has_test:
        try:
            rows["test"] = load_split(task, "test", mirror)
        except DataError as error:
            check.notes.append(f"the test split is not checked: {shortened(str(error))}")
    return [_SplitRows(labelled, name, part) for name, part in rows.items()]


@lru_cache(maxsize=1 << 16)
def _script(character: str) -> str:
    return unicodedata.name(character, "UNKNOWN").partition(" ")[0].partition("-")[0]


def main_script(text: str) -> str:
    """Return the script of most letters of a text, as in Unicode's names (LATIN, CYRILLIC, CJK); NONE without any."""
    counts = Counter(_script(letter) for letter in text if letter.isalpha())
    return counts.most_common(1)[0][0] if counts else "NONE"


def _check_texts(check: DataCheck, split: _SplitRows, summary: SplitSummary) -> None:
    empty = [row for row, text in enumerate(split.texts) if not text.strip()]
    summary.empty_texts = len(empty)
    if empty:
        check.add("empty", f"{_rows(len(empty))} without a text: {split.locate(empty)}", len(empty), split.name)
    others = {
        script: count
        for script, count in list(summary.scripts.items())[1:]
        if script != "NONE" and count > MIN_SCRIPT_SHARE * len(split.texts)
    }
    if others:
        main = next(iter(summary.scripts))
        listed = ", ".join(f"{script} ({count})" for script, count in others.items())
        example = next(row for row, text in enumerate(split.texts) if main_script(text) in others)
        check.add(
            "scripts",
            f"most texts are {main}, but others are {listed}, for example {split.locate([example])}",
            sum(others.values()),
            split.name,
        )
    if split.name == "train" and all(text.strip().isdecimal() for text in split.texts):
        check.add("columns", f"the texts (column {split.task.text_columns[0]!r:.80}) are numbers", len(split.texts))


def _rows(count: int) -> str:
    return f"{count} row{'s' if count > 1 else ''}"


def _check_labels(check: DataCheck, split: _SplitRows, summary: SplitSummary) -> None:
    task = split.task
    try:
        labels = split.labels
    except DataError as error:
        check.add("labels", str(error), 1, split.name)
        return
    if labels is None:
        summary.unlabelled = len(split.rows)
        return
    missing = [row for row, label in enumerate(labels) if label is None]
    summary.unlabelled = len(missing)
    if missing:
        check.add(
            "unlabelled", f"{_rows(len(missing))} without a label: {split.locate(missing)}", len(missing), split.name
        )
    if task.problem == "regression":
        numbers = [label for label in labels if label is not None and math.isfinite(label)]
        if numbers:
            summary.numbers = (min(numbers), sum(numbers) / len(numbers), max(numbers))
    elif task.head_class.reads_words:
        _check_tags(check, split, summary, labels)
    elif task.head == "text_classification":
        names = [{*label} if isinstance(label, tuple) else {label} for label in labels if label is not None]
        counts = Counter(name for row in names for name in sorted(row))
        summary.labels = dict(counts.most_common())
        summary.num_counted, summary.without_labels = len(names), names.count(set())
        if len(counts) > MAX_ID_SHARE * len(labels) and len(labels) > MIN_LABEL_ROWS:
            what = f"column {task.label_column!r:.80} looks like an ID"
            message = f"{len(counts)} different labels in {len(labels)} rows: {what}"
            check.add("columns", message, len(counts), split.name)


def _check_tags(check: DataCheck, split: _SplitRows, summary: SplitSummary, labels: list[Any]) -> None:
    """Count the entities of each type, or each tag if tags do not mark entities; check positions and spans."""
    tag_set = read_tag_set(split.task.labels)
    words = Counter(tag for tags in labels if tags is not None for tag in tags if tag is not None)
    counts = Counter(kind for tags in labels if tags for kind, _, _ in tag_set.entities([tag or "O" for tag in tags]))
    counted = counts if tag_set.marks_entities else words
    summary.labels, summary.num_counted = dict(counted.most_common()), counted.total()
    if tag_set.problem is not None:
        check.add("tags", tag_set.problem, 1, split.name)
    parts = dict(zip(split.task.labels, split_tags(split.task.labels), strict=True))
    if any(position == "B" for position, _ in parts.values()):
        bad = [row for row, tags in enumerate(labels) if tags and _starts_inside(tags, parts)]
        if bad:
            message = f"{_rows(len(bad))} with an entity that begins with I-, not B-: {split.locate(bad)}"
            check.add("tags", message, len(bad), split.name)
    if split.name == "train" and counts and all(tags is None or {*tags} != {"O"} for tags in labels):
        check.add(
            "tags", "each training row has an entity, so the model may learn to always find one", len(labels), "train"
        )
    if CUT_COLUMN in split.rows.column_names:
        cut = split.rows[CUT_COLUMN][:]
        rows = [row for row, count in enumerate(cut) if count]
        if rows:
            message = f"{sum(cut)} spans begin or end inside a word, and train nothing: {split.locate(rows)}"
            check.add("spans", message, sum(cut), split.name)


def _starts_inside(tags: Sequence[str | None], parts: dict[str, tuple[str, str]]) -> bool:
    """Return whether an I- tag does not continue an entity of its type."""
    before = ("", "")
    for tag in tags:
        position, kind = parts.get(tag or "", ("", ""))
        if position == "I" and before[1] != kind:
            return True
        before = (position, kind)
    return False


def _compare_labels(check: DataCheck, splits: Sequence[_SplitRows]) -> None:
    """Check which labels are rare in training, differ only in case, or are in some splits only."""
    labels = {split.name: check.splits[split.name].labels for split in splits if check.splits[split.name].labels}
    if "train" not in labels:
        return
    train = labels["train"]
    rare = {name: count for name, count in train.items() if count < MIN_LABEL_ROWS}
    if rare:
        check.add("labels", f"fewer than {MIN_LABEL_ROWS} in training: {_listed(rare)}", len(rare), "train")
    for name, counts in labels.items():
        unseen = {label: count for label, count in counts.items() if label not in train}
        if unseen:
            check.add("labels", f"in {name}, but not in training: {_listed(unseen)}", len(unseen), name)
        absent = {label: count for label, count in train.items() if label not in counts}
        if absent:
            check.add("labels", f"in training, but not in {name}: {_listed(absent)}", len(absent), name)
    spellings: dict[str, list[str]] = defaultdict(list)
    for label in train:
        spellings[label.casefold()].append(label)
    doubled = {label: train[label] for names in spellings.values() if len(names) > 1 for label in names}
    if doubled:
        check.add("labels", f"differ only in case: {_listed(doubled)}", len(doubled), "train")


def _check_head(check: DataCheck, splits: Sequence[_SplitRows], recipe: Recipe) -> None:
    """Report labels and answers for which `finetune` refuses the rows; rows without any are reported elsewhere."""
    train, task = splits[0], splits[0].task
    try:
        head = task.head_class.from_data(task, labelled_rows(task, train.rows), recipe)
    except DataError as error:
        check.add("labels", str(error), 1, train.name)
        return
    for split in splits[1:]:
        try:
            gold = head.references(task, labelled_rows(task, split.rows))
            if gold is not None:
                check_references(task, split.name, gold, head.positive_label_id(task))
        except DataError as error:
            check.add("labels", str(error), 1, split.name)


def _listed(counts: dict[str, int]) -> str:
    listed = ", ".join(f"{label[:30]} ({count})" for label, count in list(counts.items())[:MAX_LISTED_LABELS])
    return f"{shortened(listed)}{', …' if len(counts) > MAX_LISTED_LABELS else ''}"


def _check_duplicates(check: DataCheck, splits: Sequence[_SplitRows]) -> None:
    """Find rows with the same text within a split, across splits and under two labels, and near duplicates."""
    first_rows: dict[str, dict[str, int]] = {}
    for split in splits:
        first: dict[str, int] = {}
        repeated = [row for row, key in enumerate(split.keys) if first.setdefault(key, row) != row]
        first_rows[split.name] = first
        if repeated:
            twin = first[split.keys[repeated[0]]]
            message = (
                f"{_rows(len(repeated))} ({len(repeated) / len(split.keys):.2%}) with the text of an earlier row, for "
                f"example {split.locate([twin, repeated[0]])}"
            )
            check.add("duplicates", message, len(repeated), split.name)
    train = splits[0]
    for split in splits[1:]:
        _check_leak(check, train, split, first_rows["train"])
    _check_two_labels(check, splits)
    if sum(len(split.keys) for split in splits) > MAX_ROWS:
        check.notes.append(f"near duplicates are searched for in at most {format_count(MAX_ROWS)} rows")
        return
    _check_near_duplicates(check, splits, first_rows)


def _check_leak(check: DataCheck, train: _SplitRows, split: _SplitRows, train_rows: dict[str, int]) -> None:
    shared = [row for row, key in enumerate(split.keys) if key in train_rows]
    if shared:
        twin = train_rows[split.keys[shared[0]]]
        share = len(shared) / len(split.keys)
        example = f"{split.locate(shared[:1])} and {train.locate([twin])}"
        message = f"{_rows(len(shared))} ({share:.2%}) with the text of a training row, for example {example}"
        check.add("leak", message, len(shared), split.name)


def _check_two_labels(check: DataCheck, splits: Sequence[_SplitRows]) -> None:
    """Find texts that have different labels in different rows, whichever their splits."""
    first: dict[str, tuple[_SplitRows, int, Any]] = {}
    conflicts: dict[str, str] = {}
    for split in splits:
        try:
            labels = split.labels
        except DataError:  # reported by `_check_labels`
            continue
        for row, label in enumerate(labels or ()):
            if label is None or split.task.head in ("question_answering", "multiple_choice"):
                continue
            key = split.keys[row]
            other, other_row, other_label = first.setdefault(key, (split, row, label))
            if other_label != label and key not in conflicts:
                conflicts[key] = f"{other.locate([other_row])} and {split.locate([row])}"
    if conflicts:
        number = len(conflicts)
        example = next(iter(conflicts.values()))
        message = f"{number} text{'s have' if number > 1 else ' has'} different labels, for example {example}"
        check.add("two labels", message, number)


def _check_near_duplicates(
    check: DataCheck, splits: Sequence[_SplitRows], first_rows: dict[str, dict[str, int]]
) -> None:
    """Report rows that share most word pairs with another row, but do not have the same text."""
    distinct: dict[str, tuple[_SplitRows, int]] = {}
    for split in splits:
        for key, row in first_rows[split.name].items():
            distinct.setdefault(key, (split, row))
    positions = list(distinct.values())
    twins = find_near_duplicates([*distinct])
    by_split: dict[tuple[str, bool], list[tuple[int, int]]] = defaultdict(list)
    for index, twin in twins.items():
        (split, _), (other, _) = positions[index], positions[twin]
        is_leak = other.name == "train" != split.name
        if is_leak or other is split:
            by_split[split.name, is_leak].append((index, twin))
    for (name, is_leak), pairs in by_split.items():
        (split, row), (other, other_row) = (positions[at] for at in pairs[0])
        what = "a training row" if is_leak else "an earlier row"
        message = (
            f"{_rows(len(pairs))} ({len(pairs) / len(split.keys):.2%}) with nearly the text of {what}, for example "
            f"{split.locate([row])} and {other.locate([other_row])}"
        )
        check.add("near leak" if is_leak else "near duplicates", message, len(pairs), name)


def _check_tokens(check: DataCheck, splits: Sequence[_SplitRows], recipe: Recipe, mirror: Path | None) -> None:
    """Count tokens per row, rows that are truncated, and unknown tokens."""
    name = recipe.model.tokenizer or recipe.model.name
    if name is None:
        check.notes.append("the tokenizer is trained with the model, so tokens are not counted")
        return
    try:
        source = ModelSource(best_seed(name), mirror)
        tokenizer = source.load_tokenizer(is_split_into_words=splits[0].task.head_class.reads_words)
    except BertcliError as error:
        check.notes.append(f"tokens are not counted: {shortened(str(error))}")
        return
    for split in splits:
        rows = split.rows
        if len(rows) > MAX_TOKENIZED_ROWS:
            rows = random_subset(rows, MAX_TOKENIZED_ROWS)
        lengths, num_unknown = _count_tokens(split.task, rows, tokenizer)
        summary, num_tokens = check.splits[split.name], int(lengths.sum())
        template = special_tokens_template(tokenizer, pair=len(split.task.columns) > 1)
        lengths = lengths + template.num_special_tokens
        summary.tokens = (float(lengths.mean()), float(np.quantile(lengths, 0.95)), int(lengths.max()))
        summary.cut_share = float((lengths > check.max_length).mean())
        summary.unknown_share = num_unknown / max(1, num_tokens)
        if summary.cut_share > MAX_CUT_SHARE:
            message = f"{summary.cut_share:.1%} of the rows have more than {check.max_length} tokens (data.max_length)"
            check.add("lengths", message, round(summary.cut_share * len(split.rows)), split.name)
        if summary.unknown_share > MAX_UNKNOWN_SHARE:
            texts = (join_words(cell) for column in split.task.columns for cell in rows[column][:])
            parts = dict(count_unknown_parts(tokenizer, texts).most_common(MAX_LISTED_LABELS + 1))
            most = f", most often {_listed(parts)}" if parts else ""
            message = (
                f"{summary.unknown_share:.1%} of the tokens are unknown to the tokenizer of {name}{most}; add them "
                "(model.add_tokens), or use another model"
            )
            check.add("unknown tokens", message, num_unknown, split.name)


def _count_tokens(task: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, int]:
    """Return the number of tokens of each row [R] without special tokens, and the number of unknown tokens.

    With several choices, a row has the tokens of its texts and of its longest choice.
    """
    unknown = tokenizer.unk_token_id
    if task.head_class.reads_words:
        ids, _, bounds = tokenize_words(tokenizer, row_words(task, rows))
        return np.diff(bounds), ids.count(unknown) if unknown is not None else 0
    lengths, num_unknown = np.zeros(len(rows), dtype=np.int64), 0
    longest = np.zeros(len(rows), dtype=np.int64)
    for column in task.columns:
        texts = [join_words(cell) for cell in rows[column][:]]
        counts = np.zeros(len(rows), dtype=np.int64)
        for row, ids in enumerate(iter_input_ids(tokenizer, texts)):
            counts[row] = len(ids)
            num_unknown += ids.count(unknown) if unknown is not None else 0
        if column in task.choice_columns:
            longest = np.maximum(longest, counts)
        else:
            lengths += counts
    return lengths + longest, num_unknown


def describe(check: DataCheck, next_command: str) -> Iterator[str]:
    """Yield the lines of the text report; the last ones are the number of findings and the next command."""
    for name, summary in check.splits.items():
        yield f"{name:<16}{format_count(summary.rows)} rows{_describe_labels(summary)}"
        if summary.tokens is not None:
            mean, quantile, longest = summary.tokens
            yield (
                f"{'':<16}{mean:.0f} tokens on average, 95% have at most {quantile:.0f}, the longest {longest}; "
                f"{summary.cut_share:.1%} exceed {check.max_length}; {summary.unknown_share:.2%} unknown"
            )
    for finding in check.findings:
        where = f"{finding.split}: " if finding.split else ""
        yield f"{finding.topic:<16}{where}{finding.message}"
    for note in check.notes:
        yield f"{'note':<16}{note}"
    number = len(check.findings)
    yield f"{'verdict':<16}{number or 'no'} finding{'s' * (number != 1)}"
    yield f"{'next':<16}{next_command}"


def _describe_labels(summary: SplitSummary) -> str:
    if summary.numbers is not None:
        return "; numbers from {:g} to {:g}, {:g} on average".format(*(summary.numbers[at] for at in (0, 2, 1)))
    if not summary.labels:
        return "" if summary.unlabelled < summary.rows else ", unlabelled"
    listed = [
        f"{label[:30]} {format_count(count)} ({count / summary.num_counted:.1%})"
        for label, count in list(summary.labels.items())[:MAX_LISTED_LABELS]
    ]
    more = f", … {len(summary.labels)} labels" if len(summary.labels) > MAX_LISTED_LABELS else ""
    rest = f"; {_rows(summary.without_labels)} without any label" if summary.without_labels else ""
    return f"; {', '.join(listed)}{more}{rest}"
