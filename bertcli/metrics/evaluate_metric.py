"""The metrics as `evaluate.Metric` classes, for programs that use `evaluate` (loading by name requires a network)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from bertcli.metrics.answers import collect_answers
from bertcli.metrics.scores import METRICS, check_metric, compute_scores

if TYPE_CHECKING:
    import evaluate


def load_metric(name: str, answer_kind: str) -> evaluate.Metric:
    """Load a metric by name; its scores are those of `compute_scores`.

    Raises:
        DataError: as `check_metric`.
    """
    check_metric(name, answer_kind)
    return _metric_class()(name, answer_kind)


@cache
def _metric_class() -> type[evaluate.Metric]:
    """Return the `evaluate.Metric` class for `METRICS`; `evaluate` takes a second to import."""
    import evaluate
    from datasets import Features, List, Value

    span = {"text": Value("string"), "best_text": Value("string"), "null_odds": Value("float64")}
    features: dict[str, tuple[Any, Any]] = {  # kind → features of predictions and of references
        "single_label": (Value("int64"), Value("int64")),
        "multiple_choice": (Value("int64"), Value("int64")),
        "multi_label": (List(Value("float32")), List(Value("float32"))),
        "regression": (Value("float64"), Value("float64")),
        "token_classification": (List(Value("string")), List(Value("string"))),
        "question_answering": (span, List(Value("string"))),
    }

    class BundledMetric(evaluate.Metric):
        """One of `METRICS`: `compute(predictions=…, references=…)`."""

        def __init__(self, name: str, answer_kind: str):
            self._score_name, self._answer_kind = name, answer_kind
            super().__init__(config_name=name, keep_in_memory=True)

        @property
        def _needs_probabilities(self) -> bool:
            return METRICS[self._score_name].needs == "probabilities"

        def _info(self) -> evaluate.MetricInfo:
            prediction, reference = features[self._answer_kind]
            if self._needs_probabilities:
                prediction = List(Value("float64"))
            return evaluate.MetricInfo(
                description=f"{self._score_name} for {self._answer_kind} predictions",
                citation="",
                features=Features({"predictions": prediction, "references": reference}),
            )

        def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, float]:
            if self._needs_probabilities:
                options["probabilities"], predictions = predictions, references
            return compute_scores(
                collect_answers([self._score_name], self._answer_kind, predictions, references, **options)
            )

    return BundledMetric
