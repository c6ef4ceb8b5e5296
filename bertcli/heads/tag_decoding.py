"""Which tags can follow each other, and the likeliest row of tags that do.

Tags of entities say where in one a word stands: `B-` begins, `I-` goes on and, in schemes of more letters, `E-` or `L-`
ends and `S-` or `U-` is all of it. A model that scores each word by itself lets entities go on that never began; the
best row without that (Viterbi 1967) costs nothing where there was none. Shapes: W words of a row, C tags.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bertcli.tasks.tags import parts_of

SCHEMES = {"IOBES": "ES", "BILOU": "LU", "IOB2": ""}  # strictest first: the letters for ends and for single words
MOST_EXCEPTIONS = 0.01  # of the words in entities: slips of those who wrote the tags


def scheme_of(labels: Sequence[str], tags: Sequence[Sequence[str]]) -> str | None:
    """The strictest scheme that all but a few of the rows of `tags` keep; None: they have none, or an older one."""
    letters = {letter for label in labels if (letter := parts_of(label)[0])}
    place = {label: at for at, label in enumerate(labels)}
    rows = [np.array([place[tag] for tag in row]) for row in tags if row]
    inside = sum(int(np.isin(row, [at for at, label in enumerate(labels) if parts_of(label)[0]]).sum()) for row in rows)
    for scheme, ends in SCHEMES.items():
        if "B" in letters and letters <= {*"BI", *ends} and (not ends or letters & {*ends}):
            allowed = may_follow(labels, scheme)
            if sum(len(_breaks(row, allowed)) for row in rows) <= MOST_EXCEPTIONS * inside:
                return scheme
    return None


def may_follow(labels: Sequence[str], scheme: str) -> np.ndarray:
    """Whether a tag (row) may be followed by another (column); the last row is the start, the last column the end.

    [C + 1, C + 1]. What has no letter of the scheme is outside of entities.
    """
    end = SCHEMES[scheme][:1]
    parts = [*map(parts_of, labels), ("", "")]
    allowed = np.zeros((len(parts), len(parts)), dtype=bool)
    for at, (letter, kind) in enumerate(parts):
        for next_at, (next_letter, next_kind) in enumerate(parts):
            is_open = letter in ("B", "I")
            goes_on = next_letter != "" and next_letter in ("I", end)
            is_same = is_open and kind == next_kind
            allowed[at, next_at] = is_same if goes_on else not (is_open and end)
    return allowed


def likeliest_tags(scores: np.ndarray, allowed: np.ndarray | None) -> np.ndarray:
    """The tags of a row that may follow each other (None: all) and whose scores [W, C] sum to the most. [W]"""
    best: np.ndarray = scores.argmax(-1)
    if allowed is None or not len(best) or not len(_breaks(best, allowed)):
        return best
    barred = np.where(allowed, 0.0, -np.inf)
    sums = scores[0] + barred[-1, :-1]
    came_from = np.zeros(scores.shape, dtype=np.int64)
    for word in range(1, len(scores)):
        ways = sums[:, None] + barred[:-1, :-1]
        came_from[word] = ways.argmax(0)
        sums = ways.max(0) + scores[word]
    best[-1] = (sums + barred[:-1, -1]).argmax()
    for word in range(len(scores) - 1, 0, -1):
        best[word - 1] = came_from[word, best[word]]
    return best


def _breaks(row: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Where a row of tag numbers [W] breaks the rule: before which word, W for its end."""
    edge = len(allowed) - 1
    return np.flatnonzero(~allowed[np.append(edge, row), np.append(row, edge)])
