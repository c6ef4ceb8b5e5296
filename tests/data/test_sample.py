"""The built-in sample data."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from itertools import islice

import pytest

from bertcli.data.sample import GENERATORS, SPLIT_SIZES, sample_documents, sample_rows
from bertcli.errors import DataError
from bertcli.tasks import TASKS

# printed by: json.dumps([sample_rows(c, "test")[:20] for c in GENERATORS]) → sha256
FIRST_ROWS = "f76e0f75f80cc6d73818a2757a097d9dfac05f04f224c2f3d6fbe9a8e5924974"


def test_sample_rows_are_the_same_on_every_machine() -> None:
    rows = json.dumps([sample_rows(config, "test")[:20] for config in GENERATORS])
    assert hashlib.sha256(rows.encode()).hexdigest() == FIRST_ROWS


@pytest.mark.parametrize("config", GENERATORS)
def test_sample_splits_do_not_overlap(config: str) -> None:
    texts = {
        split: {
            tuple(str(value) for key, value in row.items() if key not in ("id", "label", "tags", "answers"))
            for row in sample_rows(config, split)
        }
        for split in SPLIT_SIZES
    }
    assert {split: len(distinct) for split, distinct in texts.items()} == SPLIT_SIZES
    assert not texts["train"] & texts["validation"] | texts["train"] & texts["test"]


@pytest.mark.parametrize("config", ["sentiment", "inference"])
def test_sample_labels_are_the_task_s_and_balanced(config: str) -> None:
    counts = Counter(row["label"] for row in sample_rows(config, "train"))
    labels = TASKS[f"sample/{config}"].labels
    assert set(counts) == set(labels)
    assert all(abs(count / 2000 - 1 / len(labels)) < 0.05 for count in counts.values())


def test_sample_negation_flips_the_label() -> None:
    labels = {row["text"]: row["label"] for row in sample_rows("sentiment", "train")}
    clauses = {text: label for text, label in labels.items() if text.startswith("the ") and "," not in text}
    for text, label in clauses.items():
        if " not " in text and text.replace(" not ", " ") in clauses:
            assert clauses[text.replace(" not ", " ")] != label


def test_sample_similarity_covers_all_scores() -> None:
    assert {row["label"] for row in sample_rows("similarity", "train")} >= {0.0, 1.0, 2.0, 3.0, 4.0}


def test_sample_answers_are_at_their_offsets() -> None:
    for config, min_unanswerable in (("questions", 0), ("open-questions", 0.28)):
        rows = sample_rows(config, "train")
        for row in rows:
            for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
                assert row["context"][start : start + len(text)] == text
        unanswerable = sum(not row["answers"]["text"] for row in rows) / len(rows)
        assert min_unanswerable <= unanswerable <= min_unanswerable + 0.1


def test_sample_tags_are_valid_bio() -> None:
    for row in sample_rows("entities", "train"):
        assert len(row["tokens"]) == len(row["tags"])
        for before, tag in zip(["O", *row["tags"]], row["tags"], strict=False):
            assert not tag.startswith("I-") or before[2:] == tag[2:]


def test_sample_documents_are_lazy_and_depend_on_the_seed() -> None:
    endless = sample_documents(10**9, seed=3)
    assert list(islice(endless, 5)) == list(sample_documents(5, seed=3))
    assert list(sample_documents(5, seed=3)) != list(sample_documents(5, seed=4))


def test_sample_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(DataError, match="Did you mean sentiment"):
        sample_rows("sentimnt", "train")
    with pytest.raises(DataError, match="expected one of"):
        sample_rows("sentiment", "dev")
