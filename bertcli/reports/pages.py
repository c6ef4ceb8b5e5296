"""Pages about runs: from the files in their folders to one HTML file each, which fetches nothing and runs no script."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertcli.console import format_seconds, harmless
from bertcli.reports.analysis import (
    MOST_TABLE_ROWS,
    calibration,
    confusion,
    entities_of,
    entity_pairs,
    scores_by_label,
    temperature_of,
    things_of,
    worst,
)
from bertcli.reports.charts import Chart, curves, draw, histogram, overlaid, scatter
from bertcli.reports.excerpts import excerpts, shortened
from bertcli.runs.folder import RunFolder
from bertcli.runs.history import read_records

if TYPE_CHECKING:
    from jinja2 import Environment

PREDICTIONS = "validation.jsonl"
TEMPLATES = Path(__file__).parent / "templates"

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Header and rows."""


@dataclass(frozen=True)
class Run:
    """What the files of a finished run say."""

    path: Path
    results: dict[str, Any]
    recipe: str
    environment: dict[str, Any]
    train: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """What its folder is called."""
        return self.path.resolve().name

    @property
    def metric(self) -> str:
        """The score that chose the best model."""
        return str(self.results["best_by"])

    @property
    def best(self) -> float:
        """That score of the best model on validation rows."""
        return float(self.results["metrics"]["validation"][self.metric])

    @cached_property
    def answers(self) -> list[dict[str, Any]]:
        """The best model's answers beside the right ones; none of a pretraining run."""
        return read_records(RunFolder(self.path).predictions / PREDICTIONS)

    @property
    def work(self) -> str:
        """The task, or the objective of pretraining."""
        return str(self.results.get("task") or self.results["objective"])

    @property
    def kind(self) -> str:
        """What an answer is: a label, labels, a number, tags, a choice or a span."""
        if not self.answers:
            return "nothing"
        first, head = self.answers[0]["gold"], self.results["head"]
        if head == "text_classification":
            return "number" if isinstance(first, float) else "labels" if isinstance(first, list) else "label"
        return {"token_classification": "tags", "question_answering": "span"}.get(head, "label")


def read_run(path: Path) -> Run:
    """Read the folder of a finished run."""
    folder = RunFolder(path)
    return Run(
        path=path,
        results=json.loads(folder.results.read_text("utf-8")),
        recipe=folder.recipe.read_text("utf-8"),
        environment=json.loads(folder.environment.read_text("utf-8")) if folder.environment.is_file() else {},
        train=read_records(folder.train_history),
        evaluations=read_records(folder.eval_history),
    )


def run_charts(run: Run) -> list[Chart]:
    """Every chart of a run's page: its histories, then what its answers tell."""
    charts = curves(run.train, run.evaluations)
    if run.kind == "number":
        charts.append(scatter([(row["gold"], row["predicted"]) for row in run.answers]))
    if sure := _sure(run):
        charts.append(calibration(*sure).chart)
    if run.answers:
        charts.append(histogram([row["tokens"] for row in run.answers]))
    return charts


def run_confusion(run: Run) -> Any:
    """The confusion matrix of labels or entities; None where answers are neither."""
    if run.kind == "label":
        return confusion((row["gold"], row["predicted"]) for row in run.answers)
    return confusion(entity_pairs(run.answers)) if run.kind == "tags" else None


def run_page(run: Run) -> str:
    """The page of one run."""
    labels = _label_scores(run)
    sure = _sure(run)
    return _page(
        "run.html.j2",
        title=f"{run.name}: {run.work}",
        run=run,
        facts=_facts(run.results),
        drawings=[draw(chart) for chart in run_charts(run)],
        confusion=run_confusion(run),
        label_scores=labels[:MOST_TABLE_ROWS],
        num_labels_left_out=max(0, len(labels) - MOST_TABLE_ROWS),
        expected_error=calibration(*sure).expected_error if sure else None,
        temperature=temperature_of(run.answers) if sure and run.kind == "label" else None,
        stride=run.answers[1]["row"] - run.answers[0]["row"] if len(run.answers) > 1 else 1,
        mistakes=excerpts(run.kind, worst(run.answers)),
        examples=excerpts(run.kind, [row for row in run.answers if row["right"]][:3]) if run.kind == "span" else [],
    )


def comparison_charts(runs: Mapping[str, Sequence[Run]]) -> list[Chart]:
    """The curves of several runs, the seeds of each in one colour; or the seeds of one, each in its own."""
    single = len(runs) == 1
    histories = [
        (f"seed {run.results['seed']}" if single else name, at if single else color, run.train, run.evaluations)
        for color, (name, each) in enumerate(runs.items())
        for at, run in enumerate(each)
    ]
    return overlaid(histories, next(iter(runs.values()))[0].metric)


def comparison_page(
    title: str,
    table: Table,
    runs: Mapping[str, Sequence[Run]],
    *,
    differences: Sequence[Sequence[str]] | None = None,
    links: Mapping[str, str] | None = None,
    failed: Mapping[str, str] | None = None,
) -> str:
    """The page of several runs (by name, each as its seeds) side by side.

    Args:
        table: of the scores; the first cell of a row is the name of what it tells of.
        runs: whose curves to draw; none if they are not of one task.
        differences: recipe keys, each with its value in every run; None leaves them out.
        links: pages of what the rows tell of, relative to this page.
        failed: what did not finish, and why.
    """
    return _page(
        "comparison.html.j2",
        title=title,
        names=list(runs),
        table=table,
        drawings=[draw(chart) for chart in comparison_charts(runs)] if runs else [],
        differences=differences,
        links=links or {},
        failed=failed or {},
    )


def _sure(run: Run) -> tuple[list[float], list[bool]] | None:
    """The probability of each answer and whether it is right, if the answers know that."""
    if not run.answers or "confidence" not in run.answers[0]:
        return None
    return [row["confidence"] for row in run.answers], [row["right"] for row in run.answers]


def _label_scores(run: Run) -> list[Any]:
    if run.kind not in ("label", "labels", "tags"):
        return []
    read = entities_of if run.kind == "tags" else things_of
    gold, predicted = ([read(row[side]) for row in run.answers] for side in ("gold", "predicted"))
    return scores_by_label(gold, predicted)


def _facts(results: dict[str, Any]) -> list[tuple[str, str]]:
    """What a person asks first, after the scores."""
    size = f", {results['size']}" if results.get("size") else ""
    return [
        ("start", results["model"] or f"fresh weights{size}"),
        ("seed", str(results["seed"])),
        ("best", f"step {results['best_step']} of {results['total_steps']}, by {results['best_by']}"),
        ("training examples", f"{results['num_train_examples']:,}"),
        ("parameters", f"{results['num_parameters']:,}"),
        ("training time", format_seconds(results["train_seconds"])),
        ("machine", f"{results['device']}, {results['precision']}"),
        *((f"threshold of {label}", f"{value:.4f}") for label, value in results.get("thresholds", {}).items()),
    ]


def _page(template: str, **content: Any) -> str:
    style = (TEMPLATES / "page.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return _templates().get_template(template).render(style=style, style_hash=digest, **content)


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def readable(value: Any) -> Any:
        return harmless(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=readable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["shortened"] = shortened
    return templates
