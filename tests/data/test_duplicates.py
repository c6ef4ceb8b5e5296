"""Near duplicates: every reported pair is one, and nearly all pairs are found, compared with all pairs."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from bertcli.data.duplicates import MIN_SIMILARITY, find_near_duplicates, normalize_text

WORDS = [f"w{number}" for number in range(300)]


@pytest.mark.parametrize(
    ("one", "other"), [("A fine film!", "a  fine, film"), ("ÉMILE", "émile"), ("Straße", "STRASSE"), ("? !", "?!")]
)
def test_case_spaces_and_punctuation_make_no_difference(one: str, other: str) -> None:
    assert normalize_text(one) == normalize_text(other)


def test_texts_of_punctuation_alone_differ() -> None:
    assert normalize_text("!!") != normalize_text("??") != ""


def similarity(one: str, other: str) -> float:
    pairs = [{*pairwise(text.split())} for text in (one, other)]
    return len(pairs[0] & pairs[1]) / len(pairs[0] | pairs[1])


def test_near_duplicates_equal_those_of_comparing_all_pairs() -> None:
    generator = Random(1)
    texts = []
    for _ in range(300):
        words = generator.choices(WORDS, k=generator.randint(5, 40))
        texts.append(" ".join(words))
        for _ in range(generator.randint(0, 2)):  # changed copies
            for _ in range(generator.randint(1, 4)):
                words[generator.randrange(len(words))] = generator.choice(WORDS)
            texts.append(" ".join(words))
    texts = list(dict.fromkeys(texts))
    found = find_near_duplicates(texts)
    expected = {
        row for row, text in enumerate(texts) if any(similarity(text, other) >= MIN_SIMILARITY for other in texts[:row])
    }
    assert all(similarity(texts[row], texts[twin]) >= MIN_SIMILARITY and twin < row for row, twin in found.items())
    assert len(found) >= 0.98 * len(expected) > 50


def test_short_texts_are_not_near_duplicates() -> None:
    assert find_near_duplicates(["a b", "a c", "a b c"]) == {}
    assert find_near_duplicates([]) == {}
    assert find_near_duplicates(["a b c d e f g h i j k", "x", "z b c d e f g h i j k"]) == {2: 0}
