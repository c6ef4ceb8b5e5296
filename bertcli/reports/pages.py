"""Report pages: one self-contained HTML file per run or comparison, without scripts or network requests."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bertcli.console import escape_control, format_count, format_seconds
from bertcli.errors import UsageError
from bertcli.reports.analysis import (
    MAX_TABLE_ROWS,
    confusion_matrix,
    entity_pairs,
    extract_entities,
    fit_row_temperature,
    infer_row_tags,
    measure_calibration,
    per_label_scores,
    to_label_set,
    with_gold_only,
    worst_mistakes,
)
from bertcli.reports.charts import Chart, draw, history_charts, length_histogram, overlay_charts, scatter_chart
from bertcli.reports.excerpts import build_excerpts, truncate_text
from bertcli.runs.environment import mask_text
from bertcli.runs.folder import VALIDATION_PREDICTIONS, RunFolder
from bertcli.runs.history import read_records
from bertcli.runs.results import RunResults
from bertcli.tasks.tags import TagSet, read_tag_set
from bertcli.tasks.task import HEADS, load_class

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Header and rows."""


@dataclass(frozen=True)
class Run:
    """The files of a finished run."""

    path: Path
    results: RunResults
    recipe: str
    environment: dict[str, Any]
    train_records: list[dict[str, Any]]
    eval_records: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """The name of the run folder."""
        return self.path.resolve().name

    @property
    def metric(self) -> str:
        """The metric that selected the best model."""
        return str(self.results.best_by)

    @property
    def best_score(self) -> float:
        """The validation score of the best model, by `metric`."""
        return self.results.best_score

    @cached_property
    def predictions(self) -> list[dict[str, Any]]:
        """The best model's validation predictions with the gold labels; empty for pretraining."""
        return read_records(RunFolder(self.path).predictions / VALIDATION_PREDICTIONS)

    @cached_property
    def tag_set(self) -> TagSet | None:
        """How the tags of the model mark entities; None for other predictions."""
        if self.kind != "tags":
            return None
        config = RunFolder(self.path).model / "config.json"
        if not config.is_file():  # an adapter
            return infer_row_tags(self.predictions)
        return read_tag_set(tuple(json.loads(config.read_text("utf-8"))["id2label"].values()))

    @property
    def task_or_objective(self) -> str:
        """The task, or the pretraining objective."""
        return str(self.results.task or self.results.objective)

    @property
    def kind(self) -> str:
        """The kind of the predictions: label, labels, number, tags or span; `nothing` if there are none."""
        if not self.predictions:
            return "nothing"
        gold, head = self.predictions[0]["gold"], self.results.head
        kind = load_class(HEADS, head).prediction_kind if head in HEADS else "label"
        if kind != "label":
            return kind
        return "number" if isinstance(gold, float) else "labels" if isinstance(gold, list) else "label"


def read_run(path: Path) -> Run:
    """Read the folder of a finished run.

    Raises:
        UsageError: if its results cannot be read, or lack the metric that selected the best model.
    """
    folder = RunFolder(path)
    results = folder.read_results()
    try:
        if results is None:
            raise ValueError("not been written")
        _ = results.best_score
    except ValueError as error:
        raise UsageError(f"cannot report on {path}: its results.json has {error}") from error
    return Run(
        path=path,
        results=results,
        recipe=mask_text(folder.recipe.read_text("utf-8")),
        environment=json.loads(folder.environment.read_text("utf-8")) if folder.environment.is_file() else {},
        train_records=read_records(folder.train_history),
        eval_records=read_records(folder.eval_history),
    )


def run_charts(run: Run) -> list[Chart]:
    """Return all charts of a run: learning curves, then charts of its predictions."""
    charts = history_charts(run.train_records, run.eval_records)
    if run.kind == "number":
        charts.append(scatter_chart([(row["gold"], row["predicted"]) for row in run.predictions]))
    if confidences := _confidences(run):
        charts.append(measure_calibration(*confidences).chart)
    if run.predictions:
        charts.append(length_histogram([row["tokens"] for row in run.predictions]))
    return charts


def run_confusion_matrix(run: Run) -> Any:
    """Return the confusion matrix of labels or entity types; None for other predictions."""
    if run.kind == "label":
        return confusion_matrix((row["gold"], row["predicted"]) for row in run.predictions)
    return confusion_matrix(entity_pairs(run.predictions, run.tag_set)) if run.kind == "tags" else None


def run_page(run: Run) -> str:
    """Return the HTML page of one run."""
    labels = _label_scores(run)
    confidences = _confidences(run)
    calibration = measure_calibration(*confidences) if confidences else None
    return _render(
        "run.html.j2",
        title=f"{run.name}: {run.task_or_objective}",
        run=run,
        summary=_summary(run.results),
        drawings=[draw(chart) for chart in run_charts(run)],
        confusion_matrix=run_confusion_matrix(run),
        label_scores=labels[:MAX_TABLE_ROWS],
        num_labels_omitted=max(0, len(labels) - MAX_TABLE_ROWS),
        expected_calibration_error=calibration.expected_calibration_error if calibration else None,
        temperature=fit_row_temperature(run.predictions) if calibration and run.kind == "label" else None,
        stride=run.predictions[1]["row"] - run.predictions[0]["row"] if len(run.predictions) > 1 else 1,
        mistakes=build_excerpts(run.kind, worst_mistakes(run.predictions), run.tag_set),
        examples=build_excerpts(run.kind, [row for row in run.predictions if row["right"]][:3])
        if run.kind == "span"
        else [],
    )


def comparison_charts(runs: Mapping[str, Sequence[Run]]) -> list[Chart]:
    """Return charts of overlaid curves: one color per run if there are several runs, else one color per seed."""
    is_single = len(runs) == 1
    histories = [
        (
            f"seed {run.results.seed}" if is_single else name,
            index if is_single else color,
            run.train_records,
            run.eval_records,
        )
        for color, (name, seeds) in enumerate(runs.items())
        for index, run in enumerate(seeds)
    ]
    return overlay_charts(histories, next(iter(runs.values()))[0].metric)


def comparison_page(
    title: str,
    table: Table,
    runs: Mapping[str, Sequence[Run]],
    *,
    differences: Sequence[Sequence[str]] | None = None,
    links: Mapping[str, str] | None = None,
    failed: Mapping[str, str] | None = None,
    charts: Sequence[Chart] = (),
    importances: Mapping[str, float] | None = None,
) -> str:
    """Return the HTML page that compares several runs.

    Args:
        table: scores; the first cell of each row is its name.
        runs: seeds of each run whose curves are drawn, by the run's name; empty if the runs have different tasks.
        differences: recipe keys, each with its value in every run; None omits the section.
        links: path of each row's page, relative to this page, by the row's name.
        failed: reason why each failed run failed, by the run's name.
        charts: drawn before the learning curves.
        importances: of the keys of a search, as shares of the variance of the scores; None omits the section.
    """
    return _render(
        "comparison.html.j2",
        title=title,
        names=list(runs),
        table=table,
        overview=[draw(chart) for chart in charts],
        drawings=[draw(chart) for chart in comparison_charts(runs)] if runs else [],
        importances=importances,
        differences=differences,
        links=links or {},
        failed=failed or {},
    )


def _confidences(run: Run) -> tuple[list[float], list[bool]] | None:
    """Return the confidence of each prediction and whether it is correct; None if predictions have no confidence."""
    if not run.predictions or "confidence" not in run.predictions[0]:
        return None
    return [row["confidence"] for row in run.predictions], [row["right"] for row in run.predictions]


def _label_scores(run: Run) -> list[Any]:
    if run.kind not in ("label", "labels", "tags"):
        return []
    rows, to_set = run.predictions, cast("Callable[[Any], set[Any]]", to_label_set)
    if run.kind == "tags":
        rows, to_set = [with_gold_only(row) for row in rows], partial(extract_entities, tag_set=run.tag_set)
    gold, predicted = ([to_set(row[side]) for row in rows] for side in ("gold", "predicted"))
    return per_label_scores(gold, predicted)


def _summary(results: RunResults) -> list[tuple[str, str]]:
    """Return the names and values of the key facts shown below the scores."""
    size = f", {results.size}" if results.size else ""
    return [
        ("base model", results.model or f"randomly initialized{size}"),
        ("seed", str(results.seed)),
        ("best checkpoint", f"step {results.best_step} of {results.total_steps}, by {results.best_by}"),
        ("training examples", format_count(results.num_train_examples)),
        ("parameters", format_count(results.num_parameters)),
        ("training time", format_seconds(results.train_seconds)),
        ("device", f"{results.device}, {results.precision}"),
        *([("logits divided by", f"{results.temperature:.3f}")] if results.temperature is not None else []),
        *((f"threshold for {label}", f"{value:.4f}") for label, value in (results.thresholds or {}).items()),
    ]


def _render(template: str, **content: Any) -> str:
    style = (TEMPLATES / "page.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return _templates().get_template(template).render(style=style, style_hash=digest, **content)


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def escape(value: Any) -> Any:
        return escape_control(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["truncate_text"] = truncate_text
    return templates
