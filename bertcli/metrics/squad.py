"""The scores of SQuAD 1.1 and 2.0, identical in every digit to those of the official scripts."""

from __future__ import annotations

import functools
import operator
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
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


def score_squad(predictions: Sequence[dict[str, Any]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return SQuAD 1.1 `exact_match` and `f1` in percent, with the maximum over each question's gold answers."""
    # The official script accumulates with `+=`; `sum` and NumPy's `mean` may differ in the last digits.
    return {
        name: 100.0 * functools.reduce(operator.add, scores, 0) / len(scores)
        for name, scores in squad_question_scores(predictions, references).items()
    }


def squad_question_scores(
    predictions: Sequence[dict[str, Any]], references: Sequence[Sequence[str]]
) -> dict[str, list[float]]:
    """Return the SQuAD 1.1 scores of each question, from 0 to 1."""
    texts = [answer["text"] for answer in predictions]
    golds = [list(answers) or [""] for answers in references]
    return {name: _max_over_golds(rule, texts, golds) for name, rule in RULES.items()}


def score_squad_v2(predictions: Sequence[dict[str, Any]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return SQuAD 2.0 scores in percent, with the names of the official script and identical in every digit.

    `exact` and `f1` score the answers as predicted. `best_exact` and `best_f1` are the highest scores over all
    no-answer thresholds, reached at `best_exact_thresh` and `best_f1_thresh`. These thresholds are tuned on the gold
    answers: use them to choose the recipe's threshold, but do not report the `best_` scores.
    """
    golds, has_answer = _golds_v2(references), [bool(answers) for answers in references]
    values = squad_v2_question_scores(predictions, references)
    scores = {name: _percent(value) for name, value in values.items()}
    for group, is_member in (("HasAns", True), ("NoAns", False)):
        if is_member in has_answer:
            for name, value in values.items():
                members = [
                    score for score, answerable in zip(value, has_answer, strict=True) if answerable == is_member
                ]
                scores[f"{group}_{name}"] = _percent(members)
    spans = [answer["best_text"] for answer in predictions]
    null_odds = np.array([answer["null_odds"] for answer in predictions])
    for name, rule in RULES_V2.items():
        span_scores = _max_over_golds(rule, spans, golds)
        best, threshold = best_no_answer_threshold(span_scores, spans, null_odds, np.array(has_answer))
        scores |= {f"best_{name}": best, f"best_{name}_thresh": threshold}
    return scores


def squad_v2_question_scores(
    predictions: Sequence[dict[str, Any]], references: Sequence[Sequence[str]]
) -> dict[str, list[float]]:
    """Return the SQuAD 2.0 scores of each question, from 0 to 1."""
    texts, golds = [answer["text"] for answer in predictions], _golds_v2(references)
    return {name: _max_over_golds(rule, texts, golds) for name, rule in RULES_V2.items()}


def _golds_v2(references: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the gold answers of each question that are not empty after normalization, or one empty answer.

    A question of which all gold answers are empty after normalization still counts as answerable.
    """
    return [[answer for answer in answers if normalize_answer(answer)] or [""] for answers in references]


def best_no_answer_threshold(
    scores: Sequence[float], answers: Sequence[str], null_odds: np.ndarray, has_answer: np.ndarray
) -> tuple[float, float]:
    """Return the best score in percent over all no-answer thresholds, and the threshold that achieves it.

    Null odds above the threshold mean "no answer".

    Args:
        scores: N scores, one for the best span of each question.
        answers: N texts of the best spans.
        null_odds: [N] log odds of "no answer".
        has_answer: [N] whether the question has an answer.
    """
    order = np.argsort(null_odds, kind="stable")
    # Answering an unanswerable question loses the point that "no answer" would have scored.
    gains = np.where(has_answer, scores, [-1.0 if answer else 0.0 for answer in answers])[order]
    totals = np.cumsum([(~has_answer).sum(), *gains])
    best = int(totals.argmax())
    return float(100.0 * totals[best] / len(scores)), float(null_odds[order[best - 1]]) if best else 0.0


def _max_over_golds(
    rule: Callable[[str, str], float], texts: Sequence[str], golds: Sequence[Sequence[str]]
) -> list[float]:
    return [max(rule(text, gold) for gold in answers) for text, answers in zip(texts, golds, strict=True)]


def _percent(scores: Sequence[float]) -> float:
    """Return the mean in percent, computed as in the SQuAD 2.0 script: another order changes the last digits."""
    return 100.0 * sum(scores) / len(scores)
