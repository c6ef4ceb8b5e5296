"""The task definition: a task's dataset, columns, labels and metrics. Data only; no code per task."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

Names = Annotated[tuple[str, ...], Strict(False)]
PATH_OR_LIST_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
Paths = Annotated[tuple[str, ...], Strict(False), WithJsonSchema(PATH_OR_LIST_SCHEMA)]
FileName = Annotated[str, Field(pattern=r"^[\w.-]+$")]
Problem = Literal["single_label", "multi_label", "regression"]
HEADS: dict[str, str | type] = {
    "text_classification": "bertcli.heads.text_classification:TextClassification",
    "token_classification": "bertcli.heads.token_classification:TokenClassification",
    "question_answering": "bertcli.heads.question_answering:QuestionAnswering",
    "multiple_choice": "bertcli.heads.multiple_choice:MultipleChoice",
}
"""Each head's class by name, or the import path of the class, so recipes can be read without importing any head."""
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}  # of CSV files
BOOLEANS = ("true", "false")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
COMMA_NUMBER = re.compile(r"[+-]?(\d{1,3}(\.\d{3})+|\d+)(,\d+)?", re.ASCII)  # 1.234,5: with a decimal comma
INTEGRAL = re.compile(r"(-?\d+)\.0+", re.ASCII)
MAIN_SCORES = {"seqeval": "f1", "squad": "f1", "squad_v2": "f1"}  # of metrics that compute several scores


def load_class(table: Mapping[str, str | type], name: str) -> Any:
    """Return the class registered as `name` in a table such as `HEADS`."""
    entry = table[name]
    return pkgutil.resolve_name(entry) if isinstance(entry, str) else entry


def known_name(table: Mapping[str, str | type]) -> AfterValidator:
    """Return a validator for names in a table such as `HEADS`; the error for an unknown name lists the known ones."""

    def check(name: str) -> str:
        if name not in table:
            raise PydanticKnownError("literal_error", {"expected": ", ".join(table)})
        return name

    return AfterValidator(check)


HeadName = Annotated[str, known_name(HEADS), WithJsonSchema({"type": "string", "enum": list(HEADS)})]


def check_encoding(name: str) -> str:
    """Return `name` unchanged if it is the name of a text encoding.

    Raises:
        ValueError: if the encoding is unknown.
    """
    try:
        "".encode(name)
    except (LookupError, ValueError):
        raise ValueError(
            f"found {name[:80]!r}, expected an encoding such as utf-8, windows-1252, utf-16 or shift_jis"
        ) from None
    return name


Encoding = Annotated[str, AfterValidator(check_encoding)]
Delimiter = Literal["comma", "semicolon", "tab", "pipe"]  # the keys of DELIMITERS
FileFormat = Literal["csv", "tsv", "jsonl", "json", "conll", "parquet"]


def label_key(name: str) -> str:
    """Return the same key for all ways to write a boolean or an integer: `True` and `true`, `1` and `1.0`."""
    text = name.strip()
    integral = INTEGRAL.fullmatch(text)
    return integral[1] if integral else text.lower() if text.lower() in BOOLEANS else text


def merge_spellings(names: Iterable[str]) -> set[str]:
    """Return the distinct labels in `names`; if some are spelled in several ways, each is replaced by its `label_key`.

    If there are other words among them, `True` and `true` are words too, and remain two labels.
    """
    distinct = {name.strip() for name in names}
    keys = {label_key(name) for name in distinct}
    if len(keys) == len(distinct):
        return distinct
    has_words = any(key not in BOOLEANS and not NUMBER.fullmatch(key) for key in keys)
    return {name if has_words and name.lower() in BOOLEANS else label_key(name) for name in distinct}


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, types are strict, numbers are finite, objects are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


SPLITS = ("train", "validation", "test")


class Files(Section):
    """The data files of each split, a path or a list of paths; the suffix determines the format by default."""

    train: Paths = Field((), description="training files: CSV, TSV, JSON, JSON Lines, Parquet or CoNLL")
    validation: Paths = Field((), description="validation files, which select the best checkpoint")
    test: Paths = Field((), description="test files, scored by `bertcli eval --split test`")
    encoding: Encoding | None = Field(
        None, description="encoding of text files without a byte order mark, such as windows-1252; null: UTF-8"
    )
    delimiter: Delimiter | None = Field(None, description="separator of .csv files; null: detected in each file")
    column_names: Names = Field(
        (), description="names of the columns of CSV and TSV files without a header; empty: the first line has them"
    )
    skip_empty: bool = Field(False, description="skip rows without a text; false: a missing text is an error")
    decimal: Literal["point", "comma"] = Field("point", description="decimal separator of the numbers in a regression")
    format: FileFormat | None = Field(None, description="format of all files; null: by the suffix of each")

    @field_validator("column_names")
    @classmethod
    def _check_column_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len({*names}) < len(names):
            raise ValueError("a name occurs twice; name each column differently")
        return names

    @field_validator("train", "validation", "test", mode="before")
    @classmethod
    def _wrap_single_paths(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class Splits(Section):
    """The names of the splits in the dataset, or in `split_column`; null for a split that does not exist."""

    train: str | None = Field("train", description="training split")
    validation: str | None = Field("validation", description="validation split, which selects the best checkpoint")
    test: str | None = Field("test", description="test split; its labels may be hidden")
    extra_validation: Names = Field(
        (), description="additional splits scored with the best model, never used to select it"
    )


class Submission(Section):
    """The leaderboard's submission format."""

    files: dict[str, FileName] = Field(description="split of the dataset → name of its file without the extension")
    answers: Literal["numbers", "names"] = Field("numbers", description="write labels as IDs or as names")
    extra_tasks: Names = Field((), description="additional task definitions that this task's model predicts")


class Reference(Section):
    """Published scores of other models, for comparison; they are not upper bounds."""

    model: str = Field(description="the model that was scored")
    scores: dict[str, float] = Field(description="score name → value, in the same unit as ours")
    split: str = Field("validation", description="the split that was scored")
    source: str = Field(description="where the scores are published")


class Task(Section):
    """A task definition. Built-in tasks are in `bertcli.tasks.TASKS`; a recipe may contain an inline definition."""

    name: str = Field("custom", pattern=r"^[\w.-]+(/[\w.-]+)?$", description="name, or `group/name`")
    head: HeadName = Field("text_classification", description="kind of prediction")
    dataset: str | None = Field(None, description="Hub dataset ID, folder in the Hub's layout, or `sample` (built in)")
    config: str | None = Field(None, description="configuration (subset) of the dataset")
    files: Files | None = Field(None, description="data files, instead of `dataset`")
    splits: Splits = Field(Splits(), description="names of the splits in the dataset, or in `split_column`")
    split_column: str | None = Field(
        None, description="column with the name of each row's split, if the training files hold all splits"
    )
    held_out_fraction: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="fraction of the training rows (with `group_by`, of the groups) held out for validation if there "
        "is no validation split",
    )
    group_by: str | None = Field(
        None,
        description="column by which held-out rows are grouped, such as an article's title: rows with the same value "
        "stay in one split, and are drawn together for confidence intervals",
    )
    text_columns: Names = Field(
        min_length=1,
        max_length=2,
        description="the text, or a pair of texts; the words (token_classification); question and passage "
        "(question_answering); the text before the choices, and the beginning of each choice (multiple_choice)",
    )
    choice_columns: Names = Field((), description="columns of the choices, or one that holds a list (multiple_choice)")
    label_column: str = Field("label", description="column of the label or answer")
    answer_start_column: str | None = Field(
        None,
        description="column of the offset of the answer in the passage, in characters from 0, if `label_column` holds "
        "only its text (question_answering)",
    )
    label_columns: Names = Field(
        (), description="columns that hold 0 or 1, one per label, instead of `label_column` (multi_label)"
    )
    label_delimiter: str = Field(
        ",", min_length=1, description="separator of the labels in a text that holds several (multi_label)"
    )
    span_column: str | None = Field(
        None,
        description="column of labelled spans, with start, end and label each, as annotation tools export them, "
        "instead of `label_column` (token_classification)",
    )
    sentence_column: str | None = Field(
        None,
        description="column that numbers the sentences if each row is one word; empty: as above (token_classification)",
    )
    id_column: str | None = Field(None, description="column of the question ID; null: the row number")
    problem: Problem = Field(
        "single_label",
        description="single_label, multi_label (a list per row; in CSV, separated by `label_delimiter`) or regression",
    )
    unanswerable: bool = Field(False, description="whether questions may have no answer in the passage")
    labels: Names = Field((), description="label names, as in the data; empty: as declared by the dataset")
    metrics: Names = Field((), description="metrics to compute; empty: the defaults of the head")
    main_metric: str | None = Field(
        None, description="score that selects the best model; null: the main score of the first metric"
    )
    submission: Submission | None = Field(
        None, description="the leaderboard's submission format (`predict --format glue`)"
    )
    reference: Reference | None = Field(None, description="published scores")
    description: str = Field("", description="one-line description")

    @model_validator(mode="after")
    def _check_row(self) -> Self:
        if (self.dataset is None) == (self.files is None):
            raise ValueError("a task needs either `dataset` or `files`")
        if len(merge_spellings(self.labels)) != len(self.labels):
            raise ValueError("`labels` contains a label twice; surrounding spaces are ignored, and 1.0 is the label 1")
        if self.label_columns and self.labels and {*self.labels} != {*self.label_columns}:
            raise ValueError("`labels` differs from `label_columns`, whose names are the labels; remove `labels`")
        if self.split_column is not None and self.files is not None and (self.files.validation or self.files.test):
            raise ValueError("`split_column` divides the training files; remove the other files, or `split_column`")
        if self.span_column is not None and self.sentence_column is not None:
            raise ValueError("found `span_column` and `sentence_column`, expected one of them")
        return self

    @property
    def holds_out_rows(self) -> bool:
        """Whether training rows are held out for validation because there is no validation split."""
        by_file = self.files is not None and self.split_column is None
        return not (self.files.validation if self.files is not None and by_file else self.splits.validation)

    @property
    def has_one_label(self) -> bool:
        """Whether each row has one label, by which rows can be stratified."""
        return self.head == "text_classification" and self.problem == "single_label"

    @property
    def target_columns(self) -> tuple[str, ...]:
        """The columns in the data that hold the labels."""
        return self.label_columns or (self.span_column or self.label_column,)

    @property
    def head_class(self) -> Any:
        """The class of the head, a subclass of `bertcli.heads.base.Head`."""
        return load_class(HEADS, self.head)

    @property
    def answer_kind(self) -> str:
        """The kind of prediction that metrics must support: the problem for text classification, else the head."""
        return self.head_class.answer_kind_of(self)

    @property
    def columns(self) -> tuple[str, ...]:
        """All input columns, in order."""
        return (*self.text_columns, *self.choice_columns)

    @property
    def list_columns(self) -> tuple[str, ...]:
        """The columns whose values may be lists of texts: words or choices."""
        return self.text_columns if self.head_class.reads_words else self.choice_columns

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics to compute: those of the task definition, or the defaults of its head."""
        return self.metrics or self.head_class.default_metrics(self)

    @property
    def primary_metric(self) -> str:
        """The score that selects the best checkpoint unless the recipe sets `evaluation.best_by`."""
        first = self.metric_names[0]
        return self.main_metric or MAIN_SCORES.get(first, first)


class FoldTask(Task):
    """A task in cross-validation: its validation split is a fold of its training rows, also if it has another one."""

    num_folds: int
    fold: int  # from 1

    @property
    def holds_out_rows(self) -> bool:
        """Always true."""
        return True

    @property
    def division(self) -> str:
        """How the training rows are divided into folds, for the plan: empty, or with a leading comma."""
        rules = ["stratified by label"] * self.has_one_label
        rules += [f"grouped by {self.group_by}"] if self.group_by is not None else []
        unused = "" if super().holds_out_rows else "; the validation split of the task is not used"
        return ", ".join(["", *rules]) + unused
