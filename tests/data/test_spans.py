"""Spans of annotation tools become a tag per word, and their characters stay where the export says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertcli.data.sources import load_split
from bertcli.data.spans import CUT_COLUMN, Span, find_overlap, parse_spans, place_spans, tags_of_spans, word_spans
from bertcli.errors import DataError
from bertcli.heads.token_classification import TokenClassification
from bertcli.recipe.schema import DataSection
from bertcli.tasks.tags import read_tag_set
from bertcli.tasks.task import Files, Task

FORMS: list[Any] = [
    [[0, 4, "PER"]],
    [{"start": 0, "end": 4, "label": "PER"}],
    [{"start_offset": 0, "end_offset": 4, "label": "PER", "id": 7}],
    [{"start": 0, "end": 4, "labels": ["PER"], "text": "Anna"}],
    {"entities": [[0, 4, "PER"]]},
    '[[0, 4, "PER"]]',
    "[{'start': 0.0, 'end': 4.0, 'label': 'PER'}]",
]


@pytest.mark.parametrize("cell", FORMS)
def test_spans_of_each_form_are_read(cell: Any) -> None:
    spans = parse_spans(cell)
    assert spans is not None
    assert place_spans("Anna ran", spans) == [Span(0, 4, "PER")]


@pytest.mark.parametrize("cell", [None, "", float("nan")])
def test_missing_spans_are_not_an_empty_list(cell: Any) -> None:
    assert parse_spans(cell) is None
    assert parse_spans([]) == []


@pytest.mark.parametrize(
    "cell", ["Anna", [0, 4], [[0, 4]], [{"start": 0, "label": "PER"}], [[0, 4, ""]], [["PER", 0, 4]]]
)
def test_other_forms_are_refused(cell: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_spans(cell)


def test_offsets_in_utf_16_are_converted_if_the_text_says_so() -> None:
    text = "🎈🎈 Anna"
    assert place_spans(text, [Span(5, 9, "PER", "Anna")]) == [Span(3, 7, "PER")]
    with pytest.raises(ValueError, match="has the span 'Bob' at 3 to 7, where the text is 'Anna'"):
        place_spans(text, [Span(3, 7, "PER", "Bob")])


@pytest.mark.parametrize("span", [Span(0, 99, "A"), Span(3, 2, "A"), Span(4, 5, "A"), Span(-1, 2, "A")])
def test_spans_outside_the_text_or_blank_are_refused(span: Span) -> None:
    with pytest.raises(ValueError, match="blank or not within"):
        place_spans("Anna ran", [span])


TEXTS = st.text(st.sampled_from("ab -'.é🎈東"), min_size=1, max_size=20)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(TEXTS, st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.sampled_from("XY")), max_size=4))
def test_entities_of_the_tags_are_the_spans_that_cut_no_word(text: str, raw: list[tuple[int, int, str]]) -> None:
    """Characters before and after are equal: tags → entities → character offsets give the spans back."""
    spans = [Span(start, end, kind) for start, end, kind in raw if start < end <= len(text) and text[start:end].strip()]
    placed = place_spans(text, spans)
    if find_overlap(placed):
        return
    tags, num_cut = tags_of_spans(text, placed)
    words = word_spans(text)
    assert len(tags) == len(words)
    assert "".join(text[start:end] for start, end in words) == "".join(text.split())
    starts, ends = {start for start, _ in words}, {end for _, end in words}
    whole = [span for span in placed if span.start in starts and span.end in ends]
    assert num_cut == len(placed) - len(whole)
    tag_set = read_tag_set(("O", "B-X", "B-Y", "I-X", "I-Y"))
    entities = tag_set.entities([tag or "O" for tag in tags])
    assert [Span(words[first][0], words[last][1], kind) for kind, first, last in entities] == whole


def task_of(rows: list[Any], **keys: Any) -> Task:
    Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = Files(train=("t.jsonl",), validation=("t.jsonl",))
    defaults = {"text_columns": ("text",), "span_column": "label", "label_column": "tags"}
    return Task(head="token_classification", files=files, **(defaults | keys))


def test_overlapping_spans_are_refused_with_their_number_and_the_first() -> None:
    nested = [[0, 18, "ORG"], [14, 18, "LOC"]]
    rows = [{"text": "University of Oslo", "label": spans} for spans in ([], nested, nested)]
    with pytest.raises(DataError) as error:
        load_split(task_of(rows), "train")
    assert str(error.value).startswith(
        "2 rows have nested or overlapping spans, but a word has one tag; the first is t.jsonl: row 2, with "
        "'University of Oslo' (ORG) and 'Oslo' (LOC)."
    )


def test_span_that_cuts_a_word_is_reported_and_trains_nothing(tokenizer: Any) -> None:
    rows = [
        {"text": "a fine film", "label": [[2, 6, "X"]]},
        {"text": "a fine film", "label": [[2, 4, "X"], [7, 11, "Y"]]},
    ]
    task = task_of(rows)
    split = load_split(task, "train")
    assert split["tags"][:] == [["O", "B-X", "O"], ["O", None, "B-Y"]]
    assert split[CUT_COLUMN][:] == [0, 1]
    encoded = TokenClassification(("O", "B-X", "B-Y")).encode(task, split, tokenizer, DataSection())
    assert encoded.row_warnings == ((1, "a span begins or ends inside a word; the words that it covers get no tag"),)
    assert encoded.labels is not None
    assert (encoded.labels >= 0).sum() == 5


def test_characters_of_predicted_entities_are_those_of_the_export(tokenizer: Any) -> None:
    """With logits that favor the gold tags, predictions give back each span: its offsets, label and characters."""
    text = "🎈 Émile's train to New York-based Acme Corp., 東京支社!"
    names = {"Émile": "PER", "New York": "LOC", "Acme Corp.": "ORG", "東京": "LOC", "🎈": "X"}
    spans = [[text.index(name), text.index(name) + len(name), label] for name, label in names.items()]
    task = task_of([{"text": text, "label": spans}, {"text": "none", "label": []}])
    rows = load_split(task, "train")
    labels = TokenClassification.task_labels(task, rows)
    head, task = TokenClassification(labels), task.model_copy(update={"labels": labels})
    encoded = head.encode(task, rows, tokenizer, DataSection(max_length=256))
    assert encoded.labels is not None
    logits = np.eye(len(labels))[np.where(encoded.labels < 0, 0, encoded.labels)]
    first, second = head.to_json(task, rows, encoded, logits)
    assert second["entities"] == []
    found = [[entity["start"], entity["end"], entity["label"]] for entity in first["entities"]]
    assert sorted(found) == sorted(spans)
    assert {text[start:end] for start, end, _ in found} == {*names}
    assert all(entity["text"] == text[entity["start"] : entity["end"]] for entity in first["entities"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"text": "Anna", "label": [[0, 9, "X"]]},
            r"t\.jsonl: row 1 has a span from 0 to 9 \(X\), which is blank or not within",
        ),
        (
            {"text": "Anna", "label": "PER"},
            r"t\.jsonl: row 1 \(column 'label'\): found 'PER', expected a list of spans",
        ),
    ],
)
def test_malformed_spans_are_refused_with_their_row(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_split(task_of([row]), "train")


def test_span_in_a_list_of_words_counts_words_and_includes_the_last() -> None:
    rows = [{"words": ["in", "New", "York"], "ner": [[1, 2, "LOC"]]}]
    split = load_split(task_of(rows, text_columns=("words",), span_column="ner"), "train")
    assert split["tags"][:] == [["O", "B-LOC", "I-LOC"]]
