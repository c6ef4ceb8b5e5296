"""The task row: which data set, which columns, which labels, which metrics. Data only, no code per task."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

Names = Annotated[tuple[str, ...], Strict(False)]
Problem = Literal["single_label", "multi_label", "regression"]


class Section(BaseModel):
    """A part of a recipe: unknown keys are mistakes, types are strict, objects are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Files(Section):
    """Files of a person's own: CSV, TSV, JSON Lines or Parquet, by their endings (one path or a list a split)."""

    train: Names = Field((), description="files to learn from")
    validation: Names = Field((), description="files to choose the best checkpoint by")
    test: Names = Field((), description="files to score at the end, with `bertcli eval --split test`")

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


class Task(Section):
    """One row: what data mean. Shipped rows are in `bertcli.tasks.TASKS`; a recipe may hold one of its own."""

    name: str = Field("custom", pattern=r"^[\w.-]+(/[\w.-]+)?$", description="`group/name`")
    head: Literal["text_classification"] = Field("text_classification", description="kind of answer")
    dataset: str | None = Field(None, description="hub name, folder in the hub's layout, or `sample` (embedded)")
    config: str | None = Field(None, description="configuration (subset) of the data set")
    files: Files | None = Field(None, description="own files, instead of `dataset`")
    splits: Splits = Field(Splits(), description="what the data set calls its splits")
    held_out_share: float = Field(
        0.1, gt=0, lt=1, description="share of the training rows kept for validation if there is no such split"
    )
    text_columns: Names = Field(min_length=1, max_length=2, description="one column, or two for a pair of texts")
    label_column: str = Field("label", description="column of the answer")
    problem: Problem = Field("single_label", description="one label, any number of labels, or a number")
    labels: Names = Field((), description="label names; empty: as the data set declares them")
    metrics: Names = Field((), description="what to compute; empty: the usual ones of the problem")
    main_metric: str | None = Field(None, description="the one that decides; null: the first of `metrics`")
    description: str = Field("", description="one line for people")

    @model_validator(mode="after")
    def _check_row(self) -> Self:
        if (self.dataset is None) == (self.files is None):
            raise ValueError("a task needs either `dataset` or `files`")
        if self.problem == "regression" and self.labels:
            raise ValueError("a regression task has no `labels`")
        if self.main_metric is not None and self.main_metric not in self.metric_names:
            raise ValueError(f"main_metric {self.main_metric!r} is not among the metrics {list(self.metric_names)}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("`labels` names one label twice")
        return self

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics to compute, the usual ones of the problem if the row names none."""
        usual = {
            "single_label": ("accuracy", "f1_macro"),
            "multi_label": ("f1_micro", "f1_macro", "exact_match"),
            "regression": ("pearson", "spearman"),
        }
        return self.metrics or usual[self.problem]

    @property
    def deciding_metric(self) -> str:
        """The metric that chooses the best checkpoint (higher is better for all of them)."""
        return self.main_metric or self.metric_names[0]
