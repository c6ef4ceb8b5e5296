"""Exact match and F1 of answers as the official scripts of SQuAD 1.1 and 2.0 count them, in percent.

https://rajpurkar.github.io/SQuAD-explorer/ (`evaluate-v1.1.py`, `evaluate-v2.0.py`). Shapes: N questions.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

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
