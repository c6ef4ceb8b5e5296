"""Labelled spans as annotation tools export them, and their conversion to one tag per word.

Offsets of spans in a text count characters, end exclusive (Label Studio, doccano, Prodigy, spaCy). Spans in a list of
words count words, end inclusive (GLiNER).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bertcli.data.formats import parse_cell
from bertcli.errors import DataError, quoted, shortened

if TYPE_CHECKING:
    from datasets import Dataset

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # written without spaces: each character is a word
SPAN_WORD_PATTERN = re.compile(rf"[{CJK}]|[^\W_{CJK}]+|\S")
"""Words of texts with annotated spans: finer than others, since spans may end before `'s` or a hyphen."""
CUT_COLUMN = "__cut_spans__"  # number of a row's spans that begin or end inside a word
CUT_WARNING = "a span begins or ends inside a word; the words that it covers get no tag"
START_KEYS = ("start", "start_offset", "start_char", "begin")
END_KEYS = ("end", "end_offset", "end_char", "stop")
LABEL_KEYS = ("label", "labels", "entity_group", "entity", "type", "tag")
LIST_KEYS = ("entities", "spans", "ner")  # of an object that holds the list of spans
EXPECTED = "expected the start, the end and the label of each span"
MAX_NAME_CHARS = 30  # of a span in an error message

Locate = Callable[[Sequence[int]], str]
"""Returns the location of rows for messages, given their indices."""


@dataclass(frozen=True)
class Span:
    """A labelled part of a text; `text` is its content according to the export, if it has that."""

    start: int
    end: int  # exclusive; in a list of words, inclusive
    label: str
    text: str | None = None


def parse_spans(cell: Any) -> list[Span] | None:
    """Return the spans in a cell, in the order of the cell; None if the cell is missing.

    A cell is a list, its printed form, or an object that holds it (`{"entities": […]}`). A span is a list of start, end
    and label, or an object with these keys under any of their usual names.

    Raises:
        ValueError: if the cell has another form; the message says what was found.
    """
    cell = parse_cell(cell)
    if cell is None or (isinstance(cell, float) and cell != cell) or (isinstance(cell, str) and not cell.strip()):
        return None
    if isinstance(cell, dict):
        cell = next((cell[key] for key in LIST_KEYS if key in cell), cell)
    if not isinstance(cell, list):
        raise ValueError(f"found {quoted(cell)}, expected a list of spans")
    return [_parse_span(entry) for entry in cell]


def _parse_span(entry: Any) -> Span:
    text = None
    if isinstance(entry, dict):
        start, end, label = (
            next((entry[key] for key in keys if entry.get(key) is not None), None)
            for keys in (START_KEYS, END_KEYS, LABEL_KEYS)
        )
        text = entry.get("text") if isinstance(entry.get("text"), str) else None
    elif isinstance(entry, list | tuple) and len(entry) == 3:
        start, end, label = entry
    else:
        raise ValueError(f"found {quoted(entry)}, {EXPECTED}")
    if isinstance(label, list):
        if len(label) > 1:
            raise ValueError(f"found several labels for a span, {quoted(label)}, expected one")
        label = label[0] if label else None
    start, end = (int(value) if isinstance(value, float) and value.is_integer() else value for value in (start, end))
    if type(start) is not int or type(end) is not int or not isinstance(label, str | int) or not str(label).strip():
        raise ValueError(f"found {quoted(entry)}, {EXPECTED}")
    return Span(start, end, str(label).strip(), text)


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return the character offsets of the words of a text with annotated spans: start, and end (exclusive)."""
    return [match.span() for match in SPAN_WORD_PATTERN.finditer(text)]


def place_spans(text: str | list[str], spans: Sequence[Span]) -> list[Span]:
    """Return the distinct spans in the order of the text, end exclusive, without surrounding whitespace.

    Raises:
        ValueError: if a span is outside the text, is blank, or is not where the export says.
    """
    if isinstance(text, list):
        placed = [replace(span, end=span.end + 1) for span in spans]
    else:
        placed = [_trimmed(text, _checked(text, span)) for span in spans]
    for span in placed:
        if not 0 <= span.start < span.end <= len(text):
            unit = "words" if isinstance(text, list) else "characters"
            end = span.end - isinstance(text, list)
            raise ValueError(
                f"has a span from {span.start} to {end} ({shortened(span.label)}), which is blank or not within the "
                f"{len(text)} {unit}"
            )
    return sorted(set(placed), key=lambda span: (span.start, span.end, span.label))


def _checked(text: str, span: Span) -> Span:
    """Return a span with offsets in characters, also if the export counts UTF-16 code units, as JavaScript does."""
    plain = replace(span, text=None)
    if span.text is None or _same_text(text[max(0, span.start) : span.end], span.text):
        return plain
    units = text.encode("utf-16-le")
    start, end = (len(units[: 2 * max(0, offset)].decode("utf-16-le", "ignore")) for offset in (span.start, span.end))
    if _same_text(text[start:end], span.text):
        return replace(plain, start=start, end=end)
    found = text[max(0, span.start) : span.end][:MAX_NAME_CHARS]
    raise ValueError(
        f"has the span {span.text[:MAX_NAME_CHARS]!r} at {span.start} to {span.end}, where the text is {found!r}; "
        "export the annotations again"
    )


def _same_text(one: str, other: str) -> bool:
    return one == other or one.split() == other.replace("\\n", "\n").split()


def _trimmed(text: str, span: Span) -> Span:
    content = text[span.start : span.end] if 0 <= span.start <= span.end <= len(text) else "?"
    if not content.strip():
        return replace(span, end=span.start)
    return replace(
        span,
        start=span.start + len(content) - len(content.lstrip()),
        end=span.end - len(content) + len(content.rstrip()),
    )


def find_overlap(spans: Sequence[Span]) -> tuple[Span, Span] | None:
    """Return the first two of the placed spans that share a part of the text; None if there are none."""
    reach: Span | None = None
    for span in spans:
        if reach is not None and span.start < reach.end:
            return reach, span
        reach = span
    return None


def tags_of_spans(text: str | list[str], spans: Sequence[Span]) -> tuple[list[str | None], int]:
    """Return a tag in IOB2 for each word of a text, and the number of spans that begin or end inside a word.

    The words that such a span covers get no tag (None).

    Args:
        spans: placed spans that do not overlap.
    """
    words = [(index, index + 1) for index in range(len(text))] if isinstance(text, list) else word_spans(text)
    tags: list[str | None] = ["O"] * len(words)
    num_cut, first = 0, 0
    for span in spans:
        while first < len(words) and words[first][1] <= span.start:
            first += 1
        last = first
        while last < len(words) and words[last][0] < span.end:
            last += 1
        is_cut = first == last or words[first][0] < span.start or words[last - 1][1] > span.end
        num_cut += is_cut
        for index in range(first, last):
            tags[index] = None if is_cut else f"{'B' if index == first else 'I'}-{span.label}"
    return tags, num_cut


def tag_rows(rows: Dataset, text_column: str, span_column: str, tag_column: str, locate: Locate) -> Dataset:
    """Return the rows with a list of tags under `tag_column` instead of the spans, and `CUT_COLUMN`.

    Raises:
        DataError: if a row's spans are malformed or not in its text, or some overlap; the message names the row.
    """
    from datasets import List, Value

    texts = rows[text_column][:]
    tags: list[list[str | None] | None] = []
    counts: list[int] = []
    overlaps: dict[int, tuple[Span, Span]] = {}
    for row, (text, cell) in enumerate(zip(texts, rows[span_column][:], strict=True)):
        try:
            spans = parse_spans(cell)
            placed = None if spans is None else place_spans(text, spans)
        except ValueError as error:
            message = str(error)
            where = f"{locate([row])} {'' if message.startswith('has') else f'(column {span_column!r}): '}"
            raise DataError(f"{where}{message}") from None
        if placed is None:
            tags.append(None)
            counts.append(0)
            continue
        if (overlap := find_overlap(placed)) is not None:
            overlaps[row] = overlap
        row_tags, num_cut = tags_of_spans(text, placed)
        tags.append(row_tags)
        counts.append(num_cut)
    if overlaps:
        raise _overlapping(texts, overlaps, locate)
    rows = rows.remove_columns(span_column)
    if tag_column in rows.column_names:
        rows = rows.remove_columns(tag_column)
    rows = rows.add_column(tag_column, tags, feature=List(Value("string")))
    return rows.add_column(CUT_COLUMN, counts)


def _overlapping(texts: list[Any], overlaps: dict[int, tuple[Span, Span]], locate: Locate) -> DataError:
    row, spans = next(iter(overlaps.items()))
    names = " and ".join(_describe(texts[row], span) for span in spans)
    count = len(overlaps)
    return DataError(
        f"{count} row{'s have' if count > 1 else ' has'} nested or overlapping spans, but a word has one tag; the "
        f"first is {locate([row])}, with {names}. Keep one of them in each place, for example the longest"
    )


def _describe(text: str | list[str], span: Span) -> str:
    content = text[span.start : span.end]
    content = content if isinstance(content, str) else " ".join(content)
    return f"{content[:MAX_NAME_CHARS]!r} ({span.label[:MAX_NAME_CHARS]})"


def iter_cut_warnings(rows: Dataset) -> Iterator[tuple[int, str]]:
    """Yield a warning for each row with spans that begin or end inside a word, with the row's index."""
    if CUT_COLUMN in rows.column_names:
        yield from ((row, CUT_WARNING) for row, count in enumerate(rows[CUT_COLUMN][:]) if count)
