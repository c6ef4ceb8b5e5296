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
FIRST_ROWS = "35c9f97eedf214d9783f8ab9250b3917227332aee4d03f6c180b90710a1dee22"


def test_rows_are_the_same_on_every_machine() -> None:
    rows = json.dumps([sample_rows(config, "test")[:20] for config in MAKERS])
    assert hashlib.sha256(rows.encode()).hexdigest() == FIRST_ROWS


@pytest.mark.parametrize("config", MAKERS)
def test_no_text_of_one_split_stands_in_another(config: str) -> None:
    texts = {
        split: {tuple(value for key, value in row.items() if key != "label") for row in sample_rows(config, split)}
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


def test_documents_come_one_at_a_time_and_repeat_with_the_seed() -> None:
    endless = sample_documents(10**9, seed=3)
    assert list(islice(endless, 5)) == list(sample_documents(5, seed=3))
    assert list(sample_documents(5, seed=3)) != list(sample_documents(5, seed=4))


def test_unknown_names_answer_with_the_known_ones() -> None:
    with pytest.raises(DataError, match="Did you mean sentiment"):
        sample_rows("sentimnt", "train")
    with pytest.raises(DataError, match="expected one of"):
        sample_rows("sentiment", "dev")
