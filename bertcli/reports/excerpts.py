"""Excerpts of predictions for report pages: truncated texts with gold and predicted spans marked."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bertcli.reports.analysis import extract_entities, infer_row_tags, with_gold_only
from bertcli.tasks.tags import TagSet, infer_tag_set

MAX_CHARACTERS = 600  # of a text on a page
CONTEXT_CHARACTERS = 200  # of a passage shown on either side of an answer
NO_ANSWER = "(no answer)"


@dataclass(frozen=True)
class Excerpt:
    """One row as shown on a page."""

    row: int
    texts: list[tuple[str, list[tuple[str, str]]]]  # column, and the parts of its text with their marks ("" for none)
    gold: str
    predicted: str
    confidence: float | None
    loss: float


def build_excerpts(kind: str, rows: Sequence[dict[str, Any]], tag_set: TagSet | None = None) -> list[Excerpt]:
    """Return the rows as shown on a page.

    Args:
        kind: kind of the predictions, as in `Run.kind`.
        tag_set: how tags mark entities; None: infer it from the rows.
    """
    if kind == "tags" and tag_set is None:
        tag_set = infer_row_tags(rows)
    return [
        Excerpt(
            row=row.get("row_in_file", row["row"]),
            texts=_texts(kind, row, tag_set),
            gold=_format_answer(kind, row, "gold", tag_set),
            predicted=_format_answer(kind, row, "predicted", tag_set),
            confidence=row.get("confidence"),
            loss=row["loss"],
        )
        for row in rows
    ]


def _format_answer(kind: str, row: dict[str, Any], side: str, tag_set: TagSet | None) -> str:
    answer = row[side]
    if kind == "number":
        return f"{answer:.4g}"
    if kind == "tags":
        words = next(iter(row["texts"].values()))
        if isinstance(words, list):  # without the words that are not evaluated
            answer, words = (
                with_gold_only(row)[side],
                list(itertools.compress(words, [tag is not None for tag in row["gold"]])),
            )
        entities = sorted(extract_entities(answer, tag_set), key=lambda entity: entity[1:])
        return truncate_text(
            " · ".join(f"{kind} {_join_words(words, first, last)}" for kind, first, last in entities) or "–"
        )
    if isinstance(answer, list):
        return truncate_text(" · ".join(answer) or (NO_ANSWER if kind == "span" else "–"))
    return truncate_text(answer or NO_ANSWER)


def _join_words(words: Any, first: int, last: int) -> str:
    return " ".join(words[first : last + 1]) if isinstance(words, list) else f"(words {first + 1}–{last + 1})"


def truncate_text(text: str) -> str:
    """Truncate a long text and append an ellipsis."""
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…"


def _texts(kind: str, row: dict[str, Any], tag_set: TagSet | None) -> list[tuple[str, list[tuple[str, str]]]]:
    texts = []
    for index, (column, value) in enumerate(row["texts"].items()):
        if kind == "span" and index == 1:
            parts = mark_passage(value, row)
        elif kind == "tags" and isinstance(value, list):
            parts = mark_words(value, row["gold"], row["predicted"], tag_set)
        elif isinstance(value, list):
            parts = [(truncate_text(" · ".join(f"{number}: {choice}" for number, choice in enumerate(value))), "")]
        else:
            parts = [(truncate_text(str(value)), "")]
        texts.append((column, parts))
    return texts


def mark_passage(passage: str, row: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the part of a passage around its answers, split into (text, mark).

    Marks: `missed` (gold only), `extra` (predicted only), `both`, or "".
    """
    spans: dict[str, tuple[int, int]] = {}
    if row["gold"] and row["gold_start"] is not None:
        spans["missed"] = row["gold_start"], row["gold_start"] + len(row["gold"][0])
    if row["start"] is not None:
        spans["extra"] = row["start"], row["end"]
    if not spans:
        return [(truncate_text(passage), "")]
    begin = max(0, min(start for start, _ in spans.values()) - CONTEXT_CHARACTERS)
    end = min(len(passage), begin + MAX_CHARACTERS + CONTEXT_CHARACTERS)
    boundaries = {offset for span in spans.values() for offset in span if begin < offset < end}
    cuts = [begin, *sorted(boundaries), end]
    parts = [("…", "")] if begin else []
    for first, last in itertools.pairwise(cuts):
        names = [name for name, (start, stop) in spans.items() if start <= first and last <= stop]
        parts.append((passage[first:last], "both" if len(names) == 2 else names[0] if names else ""))
    return [*parts, ("…", "")] if end < len(passage) else parts


def mark_words(
    words: Sequence[str], gold: Sequence[str | None], predicted: Sequence[str], tag_set: TagSet | None = None
) -> list[tuple[str, str]]:
    """Return words with marks: `both` (correct), `missed`, `extra`, `confused` (wrong type), or "" outside entities.

    Args:
        gold: gold tags; a word without a gold tag (None) has no mark.
        tag_set: how the tags mark entities; None: infer it from these tags.
    """
    tag_set = tag_set or infer_tag_set([gold, predicted])
    parts = []
    num_characters = 0
    for word, gold_tag, predicted_tag in zip(words, gold, predicted, strict=False):
        is_outside = gold_tag is None or tag_set.is_outside(gold_tag), tag_set.is_outside(predicted_tag)
        if gold_tag is None or all(is_outside):
            mark = ""
        elif any(is_outside):
            mark = "extra" if is_outside[0] else "missed"
        else:
            mark = "both" if gold_tag == predicted_tag else "confused"
        parts += [(word, mark), (" ", "")]
        num_characters += len(word) + 1
        if num_characters > MAX_CHARACTERS:
            return [*parts, ("…", "")]
    return parts
