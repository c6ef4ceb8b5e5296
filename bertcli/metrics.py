"""Name → metric. Bundled `evaluate.Metric` classes, because `evaluate.load` by name needs a network.

The arithmetic is scikit-learn's, SciPy's and seqeval's. All are such that higher is better. Shapes: N answers,
C classes.
"""

from __future__ import annotations

import re
import statistics
import string
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Features, List, Value

from bertcli.errors import DataError, did_you_mean
from bertcli.tasks.tags import in_iobes
from bertcli.tasks.task import DECIDING_SCORE, Task

Score = Callable[..., float | dict[str, float]]
"""(N answers, N right answers) → the score, or several by name."""


def _f1(average: str) -> Score:
    def score(predictions: np.ndarray, references: np.ndarray, positive: int = 1) -> float:
        from sklearn.metrics import f1_score

        return f1_score(references, predictions, average=average, zero_division=0.0, pos_label=positive)

    return score


def _accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return accuracy_score(references, predictions)


def _matthews(predictions: np.ndarray, references: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return matthews_corrcoef(references, predictions)


def _correlation(kind: str) -> Score:
    def score(predictions: np.ndarray, references: np.ndarray) -> float:
        from scipy import stats

        if len(references) < 2:
            raise DataError(f"{kind} needs two or more examples, found {len(references)}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            correlation = getattr(stats, kind)(predictions, references).statistic
        # Undefined for a constant answer; an uninformative answer scores 0, as Matthews' does.
        return 0.0 if np.isnan(correlation) else correlation

    return score


def _seqeval(predictions: list[list[str]], references: list[list[str]]) -> dict[str, float]:
    """Precision, recall and F1 of whole entities as conlleval counts them, and the accuracy of the single tags."""
    from seqeval.metrics.sequence_labeling import accuracy_score, precision_recall_fscore_support

    predictions, references = ([in_iobes(row) for row in rows] for rows in (predictions, references))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a kind of entity that is never there, a tag without B- or I-
        precision, recall, f1, _ = precision_recall_fscore_support(
            references, predictions, average="micro", zero_division=0
        )
        accuracy = accuracy_score(references, predictions)
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1), "accuracy": float(accuracy)}


ARTICLES = re.compile(r"\b(a|an|the)\b")


PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and spare white space."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, gold: str) -> float:
    """1 if both are the same once normalised, else 0."""
    return float(normalize(answer) == normalize(gold))


def f1_of_words(answer: str, gold: str) -> float:
    """Harmonic mean of the shares of words the two have in common; 1.1's rule: nothing in common, or no word, is 0."""
    answer_words, gold_words = normalize(answer).split(), normalize(gold).split()
    shared = sum((Counter(answer_words) & Counter(gold_words)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(answer_words), shared / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def f1_or_nothing(answer: str, gold: str) -> float:
    """2.0's rule: where one has no word, 1 if the other has none either."""
    if not normalize(answer).split() or not normalize(gold).split():
        return float(normalize(answer).split() == normalize(gold).split())
    return f1_of_words(answer, gold)


def score_squad(predictions: Sequence[dict[str, Any]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """`exact_match` and `f1` as version 1.1 counts them: the best of each question's right answers."""
    texts = [answer["text"] for answer in predictions]
    golds = [list(answers) or [""] for answers in references]
    return {
        "exact_match": float(100 * _best_of(exact_match, texts, golds).mean()),
        "f1": float(100 * _best_of(f1_of_words, texts, golds).mean()),
    }


def score_squad_v2(predictions: Sequence[dict[str, Any]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """The scores of version 2.0, under the names of its script.

    `exact` and `f1` are of the answers as given. `best_exact` and `best_f1` are what the best threshold for
    `no answer` would reach on these very questions, and `…_thresh` those thresholds: chosen with the right answers
    in sight, they are no result but advice for the recipe.
    """
    # An answer that normalises to nothing is no answer.
    golds = [[answer for answer in answers if normalize(answer)] or [""] for answers in references]
    has_answer = np.array([answers != [""] for answers in golds])
    texts = [answer["text"] for answer in predictions]
    by_kind = {"exact": exact_match, "f1": f1_or_nothing}
    values = {name: 100 * _best_of(rule, texts, golds) for name, rule in by_kind.items()}
    scores = {name: float(value.mean()) for name, value in values.items()}
    for group, chosen in (("HasAns", has_answer), ("NoAns", ~has_answer)):
        if chosen.any():
            scores |= {f"{group}_{name}": float(value[chosen].mean()) for name, value in values.items()}
    spans = [answer["best_text"] for answer in predictions]
    null_odds = np.array([answer["null_odds"] for answer in predictions])
    for name, rule in by_kind.items():
        value, threshold = best_threshold(_best_of(rule, spans, golds), spans, null_odds, has_answer)
        scores |= {f"best_{name}": value, f"best_{name}_thresh": threshold}
    return scores


def best_threshold(
    scores: np.ndarray, answers: Sequence[str], null_odds: np.ndarray, has_answer: np.ndarray
) -> tuple[float, float]:
    """The best score in percent over all thresholds, and the threshold: odds above it mean `no answer`.

    Args:
        scores: [N] of each answer if it is given.
        answers: N best spans.
        null_odds: [N]
        has_answer: [N] whether the question has an answer.
    """
    order = np.argsort(null_odds, kind="stable")
    # Giving an answer where there is none loses the point that silence would have won.
    gains = np.where(has_answer, scores, [-1.0 if answer else 0.0 for answer in answers])[order]
    totals = (~has_answer).sum() + np.concatenate(([0.0], np.cumsum(gains)))
    best = int(totals.argmax())
    return float(100 * totals[best] / len(scores)), float(null_odds[order[best - 1]]) if best else 0.0


def _best_of(rule: Callable[[str, str], float], texts: Sequence[str], golds: Sequence[Sequence[str]]) -> np.ndarray:
    return np.array([max(rule(text, gold) for gold in answers) for text, answers in zip(texts, golds, strict=True)])


SCORES: dict[str, tuple[Score, str]] = {
    "accuracy": (_accuracy, "single_label multiple_choice"),
    "f1": (_f1("binary"), "single_label"),
    "f1_macro": (_f1("macro"), "single_label multi_label"),
    "f1_micro": (_f1("micro"), "single_label multi_label"),
    "matthews": (_matthews, "single_label"),
    "exact_match": (_accuracy, "multi_label"),
    "pearson": (_correlation("pearsonr"), "regression"),
    "spearman": (_correlation("spearmanr"), "regression"),
    "seqeval": (_seqeval, "token_classification"),
    "squad": (score_squad, "question_answering"),
    "squad_v2": (score_squad_v2, "question_answering"),
}


GIVEN = {  # names of the scores of metrics that give several
    "seqeval": ("precision", "recall", "f1", "accuracy"),
    "squad": ("exact_match", "f1"),
    "squad_v2": ("exact", "f1", "best_exact", "best_f1"),
}


SPAN = {"text": Value("string"), "best_text": Value("string"), "null_odds": Value("float64")}


FORMS: dict[str, tuple[Any, Any]] = {  # kind of answer → form of an answer, form of a right answer
    "single_label": (Value("int64"), Value("int64")),
    "multiple_choice": (Value("int64"), Value("int64")),
    "multi_label": (List(Value("float32")), List(Value("float32"))),
    "regression": (Value("float64"), Value("float64")),
    "token_classification": (List(Value("string")), List(Value("string"))),
    "question_answering": (SPAN, List(Value("string"))),
}


class BundledMetric(evaluate.Metric):
    """One of `SCORES` behind the `evaluate` interface: `compute(predictions=…, references=…)`."""

    def __init__(self, name: str, kind: str):
        self._score_name, self._kind = name, kind
        super().__init__(config_name=name, keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        answer, right = FORMS[self._kind]
        return evaluate.MetricInfo(
            description=f"{self._score_name} for {self._kind} answers",
            citation="",
            features=Features({"predictions": answer, "references": right}),
        )

    def _compute(self, predictions: Any, references: Any, **options: int) -> dict[str, float]:
        score, _ = SCORES[self._score_name]
        if self._kind not in ("token_classification", "question_answering"):
            predictions, references = np.asarray(predictions), np.asarray(references)
        value = score(predictions, references, **options)
        return value if isinstance(value, dict) else {self._score_name: float(value)}


def load_metric(name: str, kind: str) -> BundledMetric:
    """The metric called `name` for answers of the kind `kind`.

    Raises:
        DataError: there is no such metric, or it does not fit this kind of answer.
    """
    fitting = [known for known, (_, kinds) in SCORES.items() if kind in kinds.split()]
    if name not in fitting:
        cure = did_you_mean(name, fitting)
        raise DataError(f"found metric {name!r}, expected one that fits {kind}: {', '.join(fitting)}.{cure}")
    return BundledMetric(name, kind)


def check_number_of_labels(task: Task) -> None:
    """Refuse the F1 of the second label where there are more than two.

    Raises:
        DataError: with the metrics to take instead.
    """
    if "f1" in task.metric_names and task.answer_kind == "single_label" and len(task.labels) > 2:
        raise DataError(
            f"{task.name}: found metric f1 with {len(task.labels)} labels, expected it with two; f1_macro and f1_micro "
            "are of any number. Set task.metrics."
        )


def compute_metrics(
    names: Iterable[str], kind: str, predictions: Any, references: Any, positive: int = 1
) -> dict[str, float]:
    """Each named metric's scores of N answers of a kind against the N right ones.

    Args:
        positive: the number of the label that `f1` is of.
    """
    scores: dict[str, float] = {}
    for name in names:
        options = {"positive": positive} if name == "f1" else {}
        scores |= load_metric(name, kind).compute(predictions=predictions, references=references, **options)
    return scores


def score_names(names: Iterable[str]) -> list[str]:
    """The names of the scores that the named metrics give."""
    return [score for name in names for score in GIVEN.get(name, (name,))]


def task_score(task: Task, scores: Mapping[str, float], best_by: str | None = None) -> float:
    """One number for what a task's scores are worth, as averages over tasks take it: a fraction.

    If the row names several metrics, the mean of a score of each, as GLUE has it; else the score that decides.

    Args:
        scores: by name; those of questions are in percent.
        best_by: the score that decides, if it is not the row's.
    """
    named = [DECIDING_SCORE.get(name, name) for name in task.metrics]
    chosen = [best_by] if best_by else named if len(named) > 1 else [task.deciding_metric]
    value = statistics.fmean(scores[name] for name in chosen)
    return value / 100 if task.answer_kind == "question_answering" else value
