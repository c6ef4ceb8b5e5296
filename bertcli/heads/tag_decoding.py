"""Constrained decoding of tags: which tags may follow each other, and the best valid sequence (Viterbi 1967).

The prefix of an entity tag gives the word's position in the entity: `B-` begins it, `I-` continues it and, in schemes
with more prefixes, `E-` or `L-` ends it and `S-` or `U-` is a single-word entity. A model that scores each word
separately can predict `I-` without `B-`. Sequences that are already valid are left unchanged, at no extra cost.
Shapes: W words in a row, C tags.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bertcli.tasks.tags import split_tags

TAG_SCHEMES = {"IOBES": "ES", "BILOU": "LU", "IOB2": ""}
"""Schemes, strictest first, and their prefixes for the last word of an entity and for single-word entities."""
MAX_VIOLATION_RATE = 0.01  # tolerated violations (annotation errors) per word in an entity


def detect_tag_scheme(labels: Sequence[str], tags: Sequence[Sequence[str | None]]) -> str | None:
    """Return the strictest scheme that the rows of `tags` follow with few exceptions; None if there is none.

    Tags that are not entity tags have no scheme, and IOB1 is not supported. Words without a tag (None) are skipped.
    """
    positions = [position for position, _ in split_tags(labels)]
    prefixes = {position for position in positions if position}
    label2id = {label: index for index, label in enumerate(labels)}
    tagged = ([label2id[tag] for tag in row if tag is not None] for row in tags)
    rows = [np.array(row) for row in tagged if row]
    entity_ids = [index for index, position in enumerate(positions) if position]
    num_entity_words = sum(int(np.isin(row, entity_ids).sum()) for row in rows)
    for scheme, ends in TAG_SCHEMES.items():
        if "B" in prefixes and prefixes <= {*"BI", *ends} and (not ends or prefixes & {*ends}):
            allowed = allowed_transitions(labels, scheme)
            if sum(len(_violations(row, allowed)) for row in rows) <= MAX_VIOLATION_RATE * num_entity_words:
                return scheme
    return None


def allowed_transitions(labels: Sequence[str], scheme: str) -> np.ndarray:
    """Return whether each tag (row) may be followed by each other tag (column).

    The last row stands for the start of a sequence, the last column for its end. Tags without a prefix are outside
    entities.

    Returns:
        A boolean array [C + 1, C + 1].
    """
    end_prefix = TAG_SCHEMES[scheme][:1]
    parts = [*split_tags(labels), ("", "")]
    allowed = np.zeros((len(parts), len(parts)), dtype=bool)
    for index, (prefix, entity_type) in enumerate(parts):
        for next_index, (next_prefix, next_type) in enumerate(parts):
            is_open = prefix in ("B", "I")
            continues = next_prefix != "" and next_prefix in ("I", end_prefix)
            is_same_entity = is_open and entity_type == next_type
            allowed[index, next_index] = is_same_entity if continues else not (is_open and end_prefix)
    return allowed


def viterbi_decode(scores: np.ndarray, allowed: np.ndarray | None) -> np.ndarray:
    """Return the tag ids [W] of the valid sequence with the highest sum of scores [W, C].

    Args:
        allowed: as returned by `allowed_transitions`; None: every sequence is valid.
    """
    best: np.ndarray = scores.argmax(-1)
    if allowed is None or not len(best) or not len(_violations(best, allowed)):
        return best
    transition_scores = np.where(allowed, 0.0, -np.inf)
    totals = scores[0] + transition_scores[-1, :-1]
    backpointers = np.zeros(scores.shape, dtype=np.int64)
    for word in range(1, len(scores)):
        candidates = totals[:, None] + transition_scores[:-1, :-1]
        backpointers[word] = candidates.argmax(0)
        totals = candidates.max(0) + scores[word]
    best[-1] = (totals + transition_scores[:-1, -1]).argmax()
    for word in range(len(scores) - 1, 0, -1):
        best[word - 1] = backpointers[word, best[word]]
    return best


def _violations(tag_ids: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Return the invalid transitions in a row of tag ids [W]: the index of the word that follows, or W at the end."""
    boundary = len(allowed) - 1
    return np.flatnonzero(~allowed[np.append(boundary, tag_ids), np.append(tag_ids, boundary)])
