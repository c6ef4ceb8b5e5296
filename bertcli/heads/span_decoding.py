"""Decode start and end logits into answer spans for question answering.

Shapes: N windows, T tokens in all windows, W windows in a batch, S tokens in its longest window, k spans per window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bertcli.data.encoding import Encoded
from bertcli.recipe.schema import AnswersSection

WINDOW_BATCH_SIZE = 256
NOT_IN_PASSAGE = -1  # character offset of question tokens and special tokens
NO_SPAN_ODDS = 1e4  # null odds of a passage without any valid span; finite, so that JSON can represent it


@dataclass(frozen=True)
class Candidate:
    """A possible answer; `start` and `end` are character offsets in the passage, both 0 for no answer."""

    text: str
    start: int
    end: int
    start_logit: float
    end_logit: float
    probability: float  # softmax over the candidates of the question


@dataclass(frozen=True)
class SpanPrediction:
    """The prediction for one question."""

    text: str  # empty: no answer
    best_text: str  # the best span, even if no answer is predicted
    null_odds: float  # the null score (of no answer) minus the score of the best span
    candidates: list[Candidate]  # best first, with distinct texts


@dataclass(frozen=True)
class Spans:
    """The k best spans of each of N windows, best first; a score of -inf marks an invalid span."""

    scores: np.ndarray  # [N, k]
    char_offsets: np.ndarray  # [N, k, 2] start and end (exclusive) in the passage
    logits: np.ndarray  # [N, k, 2] of start and end


def best_spans(encoded: Encoded, logits: np.ndarray, answers: AnswersSection) -> Spans:
    """Return the best spans of each window, combining its best starts and ends like the original `run_squad.py`.

    Args:
        logits: [T, 2] start and end logits.
    """
    assert encoded.alignment is not None
    k = answers.n_best_size
    scores = np.full((len(encoded), k), -np.inf, dtype=np.float32)
    char_offsets = np.zeros((len(encoded), k, 2), dtype=np.int32)
    span_logits = np.zeros((len(encoded), k, 2), dtype=np.float32)
    for first in range(0, len(encoded), WINDOW_BATCH_SIZE):
        batch = slice(first, min(first + WINDOW_BATCH_SIZE, len(encoded)))
        window_starts = encoded.offsets[:-1][batch]
        lengths = encoded.offsets[1:][batch] - window_starts
        mask = np.arange(lengths.max()) < lengths[:, None]  # [W, S]
        tokens = slice(window_starts[0], window_starts[-1] + lengths[-1])
        in_passage = encoded.alignment[tokens, 0] != NOT_IN_PASSAGE
        padded = np.full((2, *mask.shape), -np.inf, dtype=np.float32)
        padded[:, mask] = np.where(in_passage, logits[tokens].T, -np.inf)
        start_logits, end_logits = padded
        top_starts, top_ends = _top_k(start_logits, k), _top_k(end_logits, k)  # [W, k] each
        windows = np.arange(len(mask))[:, None]
        pair_scores = start_logits[windows, top_starts][:, :, None] + end_logits[windows, top_ends][:, None, :]
        distances = top_ends[:, None, :] - top_starts[:, :, None]  # [W, k, k]
        pair_scores[(distances < 0) | (distances >= answers.max_answer_length)] = -np.inf
        flat_scores = pair_scores.reshape(len(mask), -1)
        best = _top_k(flat_scores, k)
        num_spans = best.shape[1]
        start = top_starts[windows, best // top_ends.shape[1]]  # [W, num_spans]
        end = top_ends[windows, best % top_ends.shape[1]]
        scores[batch, :num_spans] = flat_scores[windows, best]
        span_logits[batch, :num_spans, 0] = start_logits[windows, start]
        span_logits[batch, :num_spans, 1] = end_logits[windows, end]
        last = lengths[:, None] - 1  # invalid spans may be in the padding
        char_offsets[batch, :num_spans, 0] = encoded.alignment[window_starts[:, None] + np.minimum(start, last), 0]
        char_offsets[batch, :num_spans, 1] = encoded.alignment[window_starts[:, None] + np.minimum(end, last), 1]
    return Spans(scores, char_offsets, span_logits)


def select_answer(
    passage: str,
    spans: Spans,
    windows: slice,
    null_logits: np.ndarray,
    answers: AnswersSection,
    *,
    unanswerable: bool,
) -> SpanPrediction:
    """Return the prediction for one question from the spans of its windows.

    Args:
        windows: the windows of the question.
        null_logits: [2] start and end logits of no answer, from the window where their sum is lowest.
        unanswerable: whether the question may have no answer.
    """
    scores = spans.scores[windows].ravel()
    best_first = np.argsort(-scores, kind="stable")[: answers.n_best_size]
    entries: dict[str, tuple[int, int, float, float]] = {}
    null_odds = NO_SPAN_ODDS
    for index in best_first[np.isfinite(scores[best_first])]:
        start, end = strip_span(passage, *spans.char_offsets[windows].reshape(-1, 2)[index].tolist())
        if start == end:  # only whitespace
            continue
        if not entries:
            null_odds = float(null_logits.sum() - scores[index])
        start_logit, end_logit = spans.logits[windows].reshape(-1, 2)[index]
        entries.setdefault(passage[start:end], (start, end, float(start_logit), float(end_logit)))
    best_text = next(iter(entries), "")
    if unanswerable or not entries:
        entries.setdefault("", (0, 0, float(null_logits[0]), float(null_logits[1])))
    is_null = unanswerable and null_odds > answers.null_score_diff_threshold
    return SpanPrediction("" if is_null else best_text, best_text, null_odds, _build_candidates(entries))


def strip_span(passage: str, start: int, end: int) -> tuple[int, int]:
    """Return the offsets of a span without surrounding whitespace; start equals end if nothing is left.

    The first token of an answer may include the preceding space (DeBERTa, ModernBERT, SentencePiece).
    """
    text = passage[start:end]
    start += len(text) - len(text.lstrip())
    return start, start + len(text.strip())


def _top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the indices of the k highest scores of each row, in descending order. [W, min(k, S)]"""
    k = min(k, scores.shape[1])
    top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    rows = np.arange(len(scores))[:, None]
    return top[rows, np.argsort(-scores[rows, top], axis=1, kind="stable")]


def _build_candidates(entries: dict[str, tuple[int, int, float, float]]) -> list[Candidate]:
    """Return the candidates, best first, given the start, end, start logit and end logit of each text."""
    scores = np.asarray([start_logit + end_logit for *_, start_logit, end_logit in entries.values()])
    exponentials = np.exp(scores - scores.max())
    probabilities = exponentials / exponentials.sum()
    items = list(entries.items())
    candidates = []
    for index in np.argsort(-scores, kind="stable"):
        text, (start, end, start_logit, end_logit) = items[index]
        candidates.append(Candidate(text, start, end, start_logit, end_logit, float(probabilities[index])))
    return candidates
