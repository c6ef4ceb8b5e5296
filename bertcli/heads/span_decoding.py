"""From the scores of starts and ends to spans and answers (question answering).

Shapes: N windows, T tokens of all windows, W windows looked at together, S longest of them, k spans of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bertcli.data.encoding import Encoded
from bertcli.recipe.schema import AnswersSection

WINDOWS_AT_ONCE = 256
NOT_IN_PASSAGE = -1  # place of a token of the question, and of special tokens
NO_SPAN_ODDS = 1e4  # null odds of a passage without a single span; finite, so that JSON can hold it


@dataclass(frozen=True)
class Candidate:
    """A possible answer; `start` and `end` are characters of the passage, both 0 for `no answer`."""

    text: str
    start: int
    end: int
    start_logit: float
    end_logit: float
    probability: float  # among the candidates of its question


@dataclass(frozen=True)
class SpanAnswer:
    """What was read of one question."""

    text: str  # empty: no answer
    best_text: str  # the best span, whatever the score of `no answer`
    null_odds: float  # score of `no answer` less that of the best span
    candidates: list[Candidate]  # best first, all different


@dataclass(frozen=True)
class Spans:
    """The best spans of each of N windows: k of them, best first; a score of -inf is none."""

    scores: np.ndarray  # [N, k]
    places: np.ndarray  # [N, k, 2] first character and the one after the last
    logits: np.ndarray  # [N, k, 2] of start and end


def best_spans(encoded: Encoded, logits: np.ndarray, answers: AnswersSection) -> Spans:
    """The best spans of each window, of its best starts and its best ends, as the original `run_squad.py` pairs them.

    Args:
        logits: [T, 2] scores of start and end.
    """
    assert encoded.places is not None
    k = answers.n_best_size
    scores = np.full((len(encoded), k), -np.inf, dtype=np.float32)
    places = np.zeros((len(encoded), k, 2), dtype=np.int32)
    kept = np.zeros((len(encoded), k, 2), dtype=np.float32)
    for first in range(0, len(encoded), WINDOWS_AT_ONCE):
        block = slice(first, min(first + WINDOWS_AT_ONCE, len(encoded)))
        begins = encoded.offsets[:-1][block]
        lengths = encoded.offsets[1:][block] - begins
        mask = np.arange(lengths.max()) < lengths[:, None]  # [W, S]
        tokens = slice(begins[0], begins[-1] + lengths[-1])
        in_passage = encoded.places[tokens, 0] != NOT_IN_PASSAGE
        tables = np.full((2, *mask.shape), -np.inf, dtype=np.float32)
        tables[:, mask] = np.where(in_passage, logits[tokens].T, -np.inf)
        starts, ends = (_largest(table, k) for table in tables)  # [W, k] each
        rows = np.arange(len(mask))[:, None]
        pairs = tables[0][rows, starts][:, :, None] + tables[1][rows, ends][:, None, :]  # [W, k, k]
        steps = ends[:, None, :] - starts[:, :, None]
        pairs[(steps < 0) | (steps >= answers.max_answer_length)] = -np.inf
        flat = pairs.reshape(len(mask), -1)
        best = _largest(flat, k)
        num = best.shape[1]
        start, end = starts[rows, best // ends.shape[1]], ends[rows, best % ends.shape[1]]  # [W, num]
        scores[block, :num] = flat[rows, best]
        kept[block, :num, 0], kept[block, :num, 1] = tables[0][rows, start], tables[1][rows, end]
        within = lengths[:, None] - 1  # a span that is none may lie in the padding
        places[block, :num, 0] = encoded.places[begins[:, None] + np.minimum(start, within), 0]
        places[block, :num, 1] = encoded.places[begins[:, None] + np.minimum(end, within), 1]
    return Spans(scores, places, kept)


def read_answer(
    passage: str, found: Spans, windows_of_row: slice, null: np.ndarray, answers: AnswersSection, *, unanswerable: bool
) -> SpanAnswer:
    """The answer of one question from the spans of its windows.

    Args:
        null: [2] the scores of `no answer` in the window that finds it the least likely.
        unanswerable: whether `no answer` may be the answer.
    """
    scores = found.scores[windows_of_row].ravel()
    best_first = np.argsort(-scores, kind="stable")[: answers.n_best_size]
    best_first = best_first[np.isfinite(scores[best_first])]
    entries: dict[str, tuple[int, int, float, float]] = {}
    for at in best_first:
        start, end = (int(place) for place in found.places[windows_of_row].reshape(-1, 2)[at])
        start_logit, end_logit = found.logits[windows_of_row].reshape(-1, 2)[at]
        entries.setdefault(passage[start:end], (start, end, float(start_logit), float(end_logit)))
    null_odds = float(null.sum() - scores[best_first[0]]) if entries else NO_SPAN_ODDS
    best_text = next(iter(entries), "")
    if unanswerable or not entries:
        entries.setdefault("", (0, 0, float(null[0]), float(null[1])))
    is_null = unanswerable and null_odds > answers.null_score_diff_threshold
    return SpanAnswer("" if is_null else best_text, best_text, null_odds, _with_probabilities(entries))


def _largest(table: np.ndarray, k: int) -> np.ndarray:
    """Where the k largest values of each row stand, largest first. [W, min(k, S)]"""
    k = min(k, table.shape[1])
    some = np.argpartition(-table, k - 1, axis=1)[:, :k]
    rows = np.arange(len(table))[:, None]
    return some[rows, np.argsort(-table[rows, some], axis=1, kind="stable")]


def _with_probabilities(entries: dict[str, tuple[int, int, float, float]]) -> list[Candidate]:
    scores = np.asarray([start_logit + end_logit for *_, start_logit, end_logit in entries.values()])
    weights = np.exp(scores - scores.max())
    shares = weights / weights.sum()
    listed = list(entries.items())
    candidates = []
    for at in np.argsort(-scores, kind="stable"):
        text, (start, end, start_logit, end_logit) = listed[at]
        candidates.append(Candidate(text, start, end, start_logit, end_logit, float(shares[at])))
    return candidates
