"""The task row: which data set, which columns, which labels, which metrics. Data only, no code per task."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, Strict, WithJsonSchema, model_validator

Names = Annotated[tuple[str, ...], Strict(False)]
A_PATH_OR_MORE = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
Paths = Annotated[tuple[str, ...], Strict(False), WithJsonSchema(A_PATH_OR_MORE)]
FileName = Annotated[str, Field(pattern=r"^[\w.-]+$")]
Problem = Literal["single_label", "multi_label", "regression"]
HeadName = Literal["text_classification", "token_classification", "question_answering", "multiple_choice"]
USUAL_METRICS = {  # kind of answer → what to compute if the row names nothing
    "single_label": ("accuracy", "f1_macro"),
    "multi_label": ("f1_micro", "f1_macro", "exact_match"),
    "regression": ("pearson", "spearman"),
    "token_classification": ("seqeval",),
    "question_answering": ("squad",),
    "multiple_choice": ("accuracy",),
}
DECIDING_SCORE = {"seqeval": "f1", "squad": "f1", "squad_v2": "f1"}  # of the metrics that give several scores


class Section(BaseModel):
    """A part of a recipe: unknown keys are mistakes, types are strict, objects are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Files(Section):
    """Files of a person's own, by their endings CSV, TSV, JSON, JSON Lines, Parquet or CoNLL; one or a list a split."""

    train: Paths = Field((), description="files to learn from")
    validation: Paths = Field((), description="files to choose the best checkpoint by")
    test: Paths = Field((), description="files to score at the end, with `bertcli eval --split test`")

    @model_validator(mode="before")
    @classmethod
    def _one_path_is_a_list_of_one(cls, given: object) -> object:
        if isinstance(given, dict):
            return {split: (paths,) if isinstance(paths, str) else paths for split, paths in given.items()}
        return given


class Splits(Section):
    """What the data set calls its splits; null says that it has none."""

    train: str | None = Field("train", description="split to learn from")
    validation: str | None = Field("validation", description="split to choose the best checkpoint by")
    test: str | None = Field("test", description="split for the final score; its labels may be hidden")
    more_validation: Names = Field((), description="further splits to score with the best model, never chosen by")


class Submission(Section):
    """What a leaderboard wants of a task."""

    files: dict[str, FileName] = Field(description="split of the data set → name of its file, without the ending")
    answers: Literal["numbers", "names"] = Field("numbers", description="labels as their numbers or their names")
    also: Names = Field((), description="rows that this task's model answers too")


class Reference(Section):
    """Published numbers to hold one's own against; they come from others' models and are no bounds."""

    model: str = Field(description="which model reached them")
    scores: dict[str, float] = Field(description="score's name → value, counted as we count it")
    split: str = Field("validation", description="split they were counted on")
    source: str = Field(description="where they are published")


class Task(Section):
    """One row: what data mean. Shipped rows are in `bertcli.tasks.TASKS`; a recipe may hold one of its own."""

    name: str = Field("custom", pattern=r"^[\w.-]+(/[\w.-]+)?$", description="`group/name`")
    head: HeadName = Field("text_classification", description="kind of answer")
    dataset: str | None = Field(None, description="hub name, folder in the hub's layout, or `sample` (embedded)")
    config: str | None = Field(None, description="configuration (subset) of the data set")
    files: Files | None = Field(None, description="own files, instead of `dataset`")
    splits: Splits = Field(Splits(), description="what the data set calls its splits")
    held_out_share: float = Field(
        0.1, gt=0, lt=1, description="share of the training rows kept for validation if there is no such split"
    )
    held_out_by: str | None = Field(
        None, description="column whose equal values stay together when rows are held out, such as an article's title"
    )
    text_columns: Names = Field(
        min_length=1,
        max_length=2,
        description="one column, or two for a pair of texts; the words; question and passage; "
        "the text (and the beginning of each choice) before the choices",
    )
    choice_columns: Names = Field((), description="columns of the choices, or one that holds a list (multiple_choice)")
    label_column: str = Field("label", description="column of the answer")
    id_column: str | None = Field(None, description="column of the question's id; null: its row number")
    problem: Problem = Field("single_label", description="one label, any number of labels, or a number")
    unanswerable: bool = Field(False, description="whether a question may have no answer in its passage")
    labels: Names = Field((), description="label names; empty: as the data set declares them")
    metrics: Names = Field((), description="what to compute; empty: the usual ones of the kind of answer")
    main_metric: str | None = Field(None, description="the score that decides; null: the first metric's")
    submission: Submission | None = Field(None, description="what the leaderboard wants (`predict --format glue`)")
    reference: Reference | None = Field(None, description="published numbers")
    description: str = Field("", description="one line for people")

    @model_validator(mode="after")
    def _check_row(self) -> Self:
        if (self.dataset is None) == (self.files is None):
            raise ValueError("a task needs either `dataset` or `files`")
        if self.problem != "single_label" and self.head != "text_classification":
            raise ValueError(f"`problem` is for the head text_classification, not for {self.head}")
        if self.answer_kind in ("regression", "question_answering", "multiple_choice") and self.labels:
            raise ValueError(f"a {self.answer_kind} task has no `labels`")
        if self.head == "question_answering" and len(self.text_columns) != 2:
            raise ValueError("question_answering needs two `text_columns`: the question's and the passage's")
        if self.head == "token_classification" and len(self.text_columns) != 1:
            raise ValueError("token_classification needs one column in `text_columns`: the words")
        if (self.head == "multiple_choice") != bool(self.choice_columns):
            raise ValueError("`choice_columns` are for the head multiple_choice, and it needs them")
        if self.unanswerable and self.head != "question_answering":
            raise ValueError("`unanswerable` is for the head question_answering")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("`labels` names one label twice")
        return self

    @property
    def answer_kind(self) -> str:
        """What metrics have to fit: the problem of a text classification, else the head."""
        return self.problem if self.head == "text_classification" else self.head

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns a model is given, in order."""
        return (*self.text_columns, *self.choice_columns)

    @property
    def list_columns(self) -> tuple[str, ...]:
        """The columns whose cells may be lists of texts: words, or choices."""
        return self.text_columns if self.head == "token_classification" else self.choice_columns

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics to compute, the usual ones of the kind of answer if the row names none."""
        if not self.metrics and self.unanswerable:
            return ("squad_v2",)
        return self.metrics or USUAL_METRICS[self.answer_kind]

    @property
    def deciding_metric(self) -> str:
        """The score that chooses the best checkpoint (higher is better for all of them)."""
        first = self.metric_names[0]
        return self.main_metric or DECIDING_SCORE.get(first, first)
