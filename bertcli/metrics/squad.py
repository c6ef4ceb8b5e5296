"""The scores of SQuAD 1.1 and 2.0, identical in every digit to those of the official scripts.

Shapes: N questions.
"""

from __future__ import annotations

import functools
import operator
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lowercase, and remove ASCII punctuation, articles and extra whitespace, as the SQuAD script does."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, gold: str) -> float:
    """Return 1 if the answers are equal after normalization, else 0."""
    return float(normalize_answer(answer) == normalize_answer(gold))


def token_f1(answer: str, gold: str) -> float:
    """Return token-level F1 by the rules of SQuAD 1.1: 0 if no token is shared or either answer is empty."""
    answer_tokens, gold_tokens = normalize_answer(answer).split(), normalize_answer(gold).split()
    num_shared = sum((Counter(answer_tokens) & Counter(gold_tokens)).values())
    if num_shared == 0:
        return 0.0
    precision, recall = num_shared / len(answer_tokens), num_shared / len(gold_tokens)
    return 2 * precision * recall / (precision + recall)


def token_f1_v2(answer: str, gold: str) -> float:
    """Return token-level F1 by the rules of SQuAD 2.0: 1 if both answers are empty, 0 if only one is."""
    if not normalize_answer(answer).split() or not normalize_answer(gold).split():
        return float(normalize_answer(answer).split() == normalize_answer(gold).split())
    return token_f1(answer, gold)


RULES = {"exact_match": exact_match, "f1": token_f1}
RULES_V2 = {"exact": exact_match, "f1": token_f1_v2}
ANSWERABLE = {"HasAns": True, "NoAns": False}
"""Groups of questions that SQuAD 2.0 also scores apart, by whether they have a gold answer."""


def squad_answers(predictions: Sequence[dict[str, Any]], references: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """Return the SQuAD 1.1 scores of each question, from 0 to 1, with the maximum over its gold answers. Each [N]"""
    texts = [answer["text"] for answer in predictions]
    golds = [list(answers) or [""] for answers in references]
    return {name: _max_over_golds(rule, texts, golds) for name, rule in RULES.items()}


def score_squad(answers: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return SQuAD 1.1 `exact_match` and `f1` in percent, given the `squad_answers`."""
    # The official script accumulates with `+=`; `sum` and NumPy's `mean` may differ in the last digits.
    return {
        name: 100.0 * functools.reduce(operator.add, answers[name].tolist(), 0) / len(answers[name]) for name in RULES
    }


def squad_v2_answers(
    predictions: Sequence[dict[str, Any]], references: Sequence[Sequence[str]]
) -> dict[str, np.ndarray]:
    """Return the SQuAD 2.0 scores of each question, and what its scores with other thresholds depend on. Each [N]

    `exact` and `f1` score the answers as predicted, `span_exact` and `span_f1` the best spans, from 0 to 1. `has_span`
    is whether there is such a span, and `null_odds` are the log odds of "no answer".
    """
    # A question of which all gold answers are empty after normalization still counts as answerable.
    golds = [[answer for answer in answers if normalize_answer(answer)] or [""] for answers in references]
    texts, spans = ([answer[key] for answer in predictions] for key in ("text", "best_text"))
    return {
        **{name: _max_over_golds(rule, texts, golds) for name, rule in RULES_V2.items()},
        **{f"span_{name}": _max_over_golds(rule, spans, golds) for name, rule in RULES_V2.items()},
        "has_span": np.array([bool(span) for span in spans]),
        "null_odds": np.array([answer["null_odds"] for answer in predictions]),
    }


def score_squad_v2(answers: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return SQuAD 2.0 scores in percent, with the names of the official script and identical in every digit.

    `exact` and `f1` score the answers as predicted. `best_exact` and `best_f1` are the highest scores over all
    no-answer thresholds, reached at `best_exact_thresh` and `best_f1_thresh`. These thresholds are tuned on the gold
    answers: use them to choose the recipe's threshold, but do not report the `best_` scores.

    Args:
        answers: the `squad_v2_answers`, and `has_answer`: whether each question has a gold answer. [N]
    """
    has_answer = answers["has_answer"]
    scores = {name: _percent(answers[name]) for name in RULES_V2}
    for group, is_member in ANSWERABLE.items():
        if is_member in has_answer:
            scores |= {f"{group}_{name}": _percent(answers[name][has_answer == is_member]) for name in RULES_V2}
    for name in RULES_V2 if "null_odds" in answers else ():  # earlier versions did not save them
        best, threshold = best_no_answer_threshold(
            answers[f"span_{name}"], answers["has_span"], answers["null_odds"], has_answer
        )
        scores |= {f"best_{name}": best, f"best_{name}_thresh": threshold}
    return scores


def best_no_answer_threshold(
    scores: np.ndarray, has_span: np.ndarray, null_odds: np.ndarray, has_answer: np.ndarray
) -> tuple[float, float]:
    """Return the best score in percent over all no-answer thresholds, and the threshold that achieves it.

    Null odds above the threshold mean "no answer".

    Args:
        scores: of the best span of each question, from 0 to 1. [N]
        has_span: whether there is such a span. [N]
        null_odds: log odds of "no answer". [N]
        has_answer: whether the question has an answer. [N]
    """
    order = np.argsort(null_odds, kind="stable")
    # Answering an unanswerable question loses the point that "no answer" would have scored.
    gains = np.where(has_answer, scores, -has_span.astype(np.float64))[order]
    totals = np.cumsum([(~has_answer).sum(), *gains])
    best = int(totals.argmax())
    return float(100.0 * totals[best] / len(scores)), float(null_odds[order[best - 1]]) if best else 0.0


def _max_over_golds(
    rule: Callable[[str, str], float], texts: Sequence[str], golds: Sequence[Sequence[str]]
) -> np.ndarray:
    return np.array([max(rule(text, gold) for gold in answers) for text, answers in zip(texts, golds, strict=True)])


def _percent(scores: np.ndarray) -> float:
    """Return the mean in percent, computed as in the SQuAD 2.0 script: another order changes the last digits."""
    return 100.0 * sum(scores.tolist()) / len(scores)
