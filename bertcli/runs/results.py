"""What `results.json` holds: the scores of a run, of its seeds or of a collection of runs, and how they came about."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, field_validator


class SeedScore(BaseModel):
    """One metric over several seeds or folds."""

    model_config = ConfigDict(frozen=True)

    mean: float
    sd: float
    values: Annotated[list[float], Field(min_length=1)]


Score = float | SeedScore
Metrics = dict[str, dict[str, Score]]
"""Scores by split and metric name."""
Intervals = dict[str, dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]]]
"""95 % confidence intervals by split and name of the score, as far as there are any."""


class Results(BaseModel):
    """The scores of a model, from a training run or `bertcli eval`.

    Extra keys added by a head or an objective are preserved.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    run: str
    task: str | None = None
    objective: str | None = None
    head: str | None = None
    model: str | None = None
    metrics: Metrics = {}
    intervals: Intervals = {}  # not for the mean of several seeds
    group_by: str | None = None  # column of the groups of rows that were resampled for the intervals; None: rows were

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Results:
        """Parse the content of the `results.json` of a run or a collection of runs.

        Raises:
            pydantic.ValidationError: if `content` is not an output of `to_json`.
        """
        return (CollectionResults if "table" in content or "points" in content else RunResults).model_validate(content)

    def to_json(self) -> dict[str, Any]:
        """Return the content of `results.json`: the keys that were set."""
        return self.model_dump(exclude_unset=True)

    def values(self, metric: str, split: str = "validation") -> list[float]:
        """Return a metric's value for each seed."""
        score = self.metrics[split][metric]
        return score.values if isinstance(score, SeedScore) else [score]

    def mean(self, metric: str, split: str = "validation") -> float:
        """Return a metric's mean over the seeds."""
        return statistics.fmean(self.values(metric, split))

    def mean_scores(self, split: str) -> dict[str, float]:
        """Return the mean of each metric of a split over the seeds."""
        return {metric: self.mean(metric, split) for metric in self.metrics[split]}

    def interval_text(self, metric: str, split: str = "validation") -> str:
        """Return the 95 % confidence interval of a score as text; empty if it has none."""
        interval = self.intervals.get(split, {}).get(metric)
        return "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"

    def mean_metrics(self) -> dict[str, dict[str, float]]:
        """Return the mean of each metric over the seeds, by split."""
        return {split: self.mean_scores(split) for split in self.metrics}


class EvalResults(Results):
    """The results that `bertcli eval` prints."""

    num_examples: int | None = None


class RunResults(Results):
    """The results of a training run, or of all seeds of a recipe (listed in `runs`, with metrics as `SeedScore`)."""

    size: str | None = None
    seed: int | None = None
    best_by: str | None = None
    best_step: int | None = None
    total_steps: int | None = None
    num_evaluations: int | None = None
    num_train_examples: int | None = None
    train_seconds: float = 0.0
    examples_per_second: float | None = None
    tokens_per_second: float | None = None
    num_skipped_steps: int | None = None
    num_overflowed_steps: int | None = None
    padding_share: float | None = None
    num_parameters: int | None = None
    num_trainable_parameters: int | None = None
    device: str | None = None
    precision: str | None = None
    data_fingerprint: str | None = None  # of the training and validation data as they were encoded
    dry_run: bool = False
    runs: list[str] | None = None
    # Only for pretraining.
    family: str | None = None
    vocab_size: int | None = None
    num_documents: int | None = None
    num_tokens: int | None = None
    unknown_token_share: float | None = None
    unigram_cross_entropy: float | None = None
    # Only for fine-tuning.
    thresholds: dict[str, float] | None = None
    temperature: float | None = None  # that the logits were divided by
    source_fingerprint: str | None = None  # of the files with the rows; None: they were not in a local folder
    start_models: dict[str, str] | None = None  # hashes of the weights of runs that it started or learned from, by name
    pruned: bool = False  # as a trial of a search

    @property
    def best_score(self) -> float:
        """The validation score that selected the best model, averaged over the seeds.

        Raises:
            ValueError: if a required key is missing; the message names it.
        """
        if self.best_by is None:
            raise ValueError("no best_by, expected the metric that selected the best model")
        if self.best_by not in self.metrics.get("validation", {}):
            raise ValueError(f"no metrics.validation.{self.best_by}, expected the score of the best model")
        return self.mean(self.best_by)

    @property
    def selection_score(self) -> float:
        """The `best_score`, negated if lower is better: the highest selects a seed or a point of a grid.

        Raises:
            ValueError: if a required key is missing; the message names it.
        """
        from bertcli.metrics.scores import selection_score

        return selection_score(str(self.best_by), self.best_score)


def _member(content: Any) -> Any:
    return Results.from_json(content) if isinstance(content, Mapping) else content


Member = Annotated[SerializeAsAny[RunResults], BeforeValidator(_member)]
"""The results of a point, fold or task; the results of a grid in a suite remain a collection."""


class CollectionResults(RunResults):
    """The results of a grid, search, cross-validation or suite, whose runs are in `points`, `folds` or `tasks`.

    The metrics of a grid or search are those of the `chosen` point or trial; those of a cross-validation are over its
    folds (`validation`), and of the predictions of all folds as if they were one split (`out_of_fold`).
    """

    table: list[dict[str, str]] = []
    points: dict[str, Member] | None = None
    chosen: str | None = None
    folds: dict[str, Member] | None = None
    tasks: dict[str, Member] | None = None
    average: float | None = None
    importances: dict[str, float] | None = None  # only for a search: of each key of `training`, in the scores
    failed: dict[str, str] = {}

    @field_validator("table")
    @classmethod
    def _has_rows(cls, table: list[dict[str, str]]) -> list[dict[str, str]]:
        if not table or any(row.keys() != table[0].keys() for row in table):
            raise ValueError("expected at least one row, and the same columns in all of them")
        return table

    @property
    def members(self) -> list[str]:
        """The names of the points, folds or tasks that finished."""
        return list(next((runs for runs in (self.points, self.folds, self.tasks) if runs is not None), {}))


SHARED_BY_SEEDS = (
    "task",
    "head",
    "model",
    "size",
    "best_by",
    "group_by",
    "total_steps",
    "num_train_examples",
    "num_parameters",
    "precision",
    "data_fingerprint",
    "source_fingerprint",
    "start_models",
)
"""Keys of `RunResults` with an equal value for every seed."""


def summarize_seeds(results: Sequence[Results], run: str) -> RunResults:
    """Combine the results of several seeds or folds: each metric's mean, standard deviation and values."""
    first = results[0]
    metrics: Metrics = {}
    for split, scores in first.metrics.items():
        metrics[split] = {}
        for name in scores:
            values = [value for seed in results for value in seed.values(name, split)]
            sd = statistics.stdev(values) if len(values) > 1 else 0.0
            metrics[split][name] = SeedScore(mean=statistics.fmean(values), sd=sd, values=values)
    shared = {name: getattr(first, name) for name in SHARED_BY_SEEDS if name in first.model_fields_set}
    seconds = sum(seed.train_seconds for seed in results if isinstance(seed, RunResults))
    runs = [seed.run for seed in results]
    return RunResults(**shared, metrics=metrics, train_seconds=seconds, runs=runs, run=run)
