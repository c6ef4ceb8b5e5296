"""Answers for people to look at: a row's texts, shortened, with what is right and what was answered marked in them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bertcli.reports.analysis import entities_of

MOST_CHARACTERS = 600  # of a text on a page
AROUND = 200  # characters of a passage that are shown beside an answer
NO_ANSWER = "(no answer)"


@dataclass(frozen=True)
class Excerpt:
    """One row as a page shows it."""

    row: int
    texts: list[tuple[str, list[tuple[str, str]]]]  # column → parts of its text, each with its mark (or none)
    gold: str
    predicted: str
    confidence: float | None
    loss: float


def excerpts(kind: str, rows: Sequence[dict[str, Any]]) -> list[Excerpt]:
    """The rows as a page shows them; `kind` is what an answer is."""
    return [
        Excerpt(
            row=row["row"],
            texts=_texts(kind, row),
            gold=_words(kind, row, "gold"),
            predicted=_words(kind, row, "predicted"),
            confidence=row.get("confidence"),
            loss=row["loss"],
        )
        for row in rows
    ]


def _words(kind: str, row: dict[str, Any], side: str) -> str:
    """An answer in words."""
    answer = row[side]
    if kind == "number":
        return f"{answer:.4g}"
    if kind == "tags":
        named = sorted(entities_of(answer), key=lambda entity: entity[1:])
        words = next(iter(row["texts"].values()))
        return shortened(" · ".join(f"{kind} {_between(words, first, last)}" for kind, first, last in named) or "–")
    if isinstance(answer, list):
        return shortened(" · ".join(answer) or (NO_ANSWER if kind == "span" else "–"))
    return shortened(answer or NO_ANSWER)


def _between(words: Any, first: int, last: int) -> str:
    return " ".join(words[first : last + 1]) if isinstance(words, list) else f"(words {first + 1}–{last + 1})"


def shortened(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"


def _texts(kind: str, row: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    texts = []
    for at, (column, value) in enumerate(row["texts"].items()):
        if kind == "span" and at == 1:
            parts = marked_passage(value, row)
        elif kind == "tags" and isinstance(value, list):
            parts = marked_words(value, row["gold"], row["predicted"])
        elif isinstance(value, list):
            parts = [(shortened(" · ".join(f"{number}: {one}" for number, one in enumerate(value))), "")]
        else:
            parts = [(shortened(str(value)), "")]
        texts.append((column, parts))
    return texts


def marked_passage(passage: str, row: dict[str, Any]) -> list[tuple[str, str]]:
    """The part of a passage around the answers, cut where one begins or ends: text and `missed`, `extra` or `both`."""
    spans: dict[str, tuple[int, int]] = {}
    if row["gold"] and row["gold_start"] is not None:
        spans["missed"] = row["gold_start"], row["gold_start"] + len(row["gold"][0])
    if row["start"] is not None:
        spans["extra"] = row["start"], row["end"]
    if not spans:
        return [(shortened(passage), "")]
    begin = max(0, min(start for start, _ in spans.values()) - AROUND)
    end = min(len(passage), begin + MOST_CHARACTERS + AROUND)
    inside = {place for span in spans.values() for place in span if begin < place < end}
    cuts = [begin, *sorted(inside), end]
    parts = [("…", "")] if begin else []
    for first, last in itertools.pairwise(cuts):
        names = [name for name, (start, stop) in spans.items() if start <= first and last <= stop]
        parts.append((passage[first:last], "both" if len(names) == 2 else names[0] if names else ""))
    return [*parts, ("…", "")] if end < len(passage) else parts


def marked_words(words: Sequence[str], gold: Sequence[str], predicted: Sequence[str]) -> list[tuple[str, str]]:
    """Words, each with `missed`, `extra`, `both` (right) or `confused` (taken for another kind), or no mark."""
    parts = []
    size = 0
    for word, right, found in zip(words, gold, predicted, strict=False):
        mark = "" if right == found == "O" else "both" if right == found else "confused"
        if mark == "confused" and "O" in (right, found):
            mark = "missed" if found == "O" else "extra"
        parts += [(word, mark), (" ", "")]
        size += len(word) + 1
        if size > MOST_CHARACTERS:
            return [*parts, ("…", "")]
    return parts
