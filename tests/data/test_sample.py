"""The embedded sample language."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from itertools import islice

import pytest

from bertcli.data.sample import MAKERS, SPLIT_SIZES, sample_documents, sample_rows
from bertcli.errors import DataError
from bertcli.tasks import TASKS

# printed by: json.dumps([sample_rows(c, "test")[:20] for c in MAKERS]) → sha256
FIRST_ROWS = "f76e0f75f80cc6d73818a2757a097d9dfac05f04f224c2f3d6fbe9a8e5924974"


def test_rows_are_the_same_on_every_machine() -> None:
    rows = json.dumps([sample_rows(config, "test")[:20] for config in MAKERS])
    assert hashlib.sha256(rows.encode()).hexdigest() == FIRST_ROWS


@pytest.mark.parametrize("config", MAKERS)
def test_no_text_of_one_split_stands_in_another(config: str) -> None:
    texts = {
        split: {
            tuple(str(value) for key, value in row.items() if key not in ("id", "label", "tags", "answers"))
            for row in sample_rows(config, split)
        }
        for split in SPLIT_SIZES
    }
    assert {split: len(found) for split, found in texts.items()} == SPLIT_SIZES
    assert not texts["train"] & texts["validation"] | texts["train"] & texts["test"]


@pytest.mark.parametrize("config", ["sentiment", "inference"])
def test_labels_are_the_rows_labels_and_balanced(config: str) -> None:
    counts = Counter(row["label"] for row in sample_rows(config, "train"))
    labels = TASKS[f"sample/{config}"].labels
    assert set(counts) == set(labels)
    assert all(abs(count / 2000 - 1 / len(labels)) < 0.05 for count in counts.values())


def test_negation_flips_the_label() -> None:
    plain = {row["text"]: row["label"] for row in sample_rows("sentiment", "train")}
    words = {text: label for text, label in plain.items() if text.startswith("the ") and "," not in text}
    for text, label in words.items():
        if " not " in text and text.replace(" not ", " ") in words:
            assert words[text.replace(" not ", " ")] != label


def test_similarity_counts_from_nothing_to_all() -> None:
    assert {row["label"] for row in sample_rows("similarity", "train")} >= {0.0, 1.0, 2.0, 3.0, 4.0}


def test_answers_stand_where_they_say() -> None:
    for config, least in (("questions", 0), ("open-questions", 0.28)):
        rows = sample_rows(config, "train")
        for row in rows:
            for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
                assert row["context"][start : start + len(text)] == text
        without = sum(not row["answers"]["text"] for row in rows) / len(rows)
        assert least <= without <= least + 0.1


def test_every_word_has_a_tag_that_goes_on_from_the_one_before() -> None:
    for row in sample_rows("entities", "train"):
        assert len(row["tokens"]) == len(row["tags"])
        for before, tag in zip(["O", *row["tags"]], row["tags"], strict=False):
            assert not tag.startswith("I-") or before[2:] == tag[2:]


def test_documents_come_one_at_a_time_and_repeat_with_the_seed() -> None:
    endless = sample_documents(10**9, seed=3)
    assert list(islice(endless, 5)) == list(sample_documents(5, seed=3))
    assert list(sample_documents(5, seed=3)) != list(sample_documents(5, seed=4))


def test_unknown_names_answer_with_the_known_ones() -> None:
    with pytest.raises(DataError, match="Did you mean sentiment"):
        sample_rows("sentimnt", "train")
    with pytest.raises(DataError, match="expected one of"):
        sample_rows("sentiment", "dev")
