"""Allowed tag transitions, and the best valid sequence."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.scheme import IOB2, IOBES, Entities

from bertcli.heads.tag_decoding import allowed_transitions, detect_tag_scheme, viterbi_decode

IOB = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
IOBES_TAGS = (*IOB, "E-PER", "S-PER", "E-LOC", "S-LOC")


def is_valid(row: tuple[int, ...], allowed: np.ndarray) -> bool:
    boundary = len(allowed) - 1
    return all(allowed[tag, next_tag] for tag, next_tag in zip((boundary, *row), (*row, boundary), strict=True))


@pytest.mark.parametrize(("labels", "name", "scheme"), [(IOB, "IOB2", IOB2), (IOBES_TAGS, "IOBES", IOBES)])
def test_valid_sequences_are_those_that_seqeval_reads_completely(
    labels: tuple[str, ...], name: str, scheme: type
) -> None:
    """A sequence is valid if each of its tags except `O` is in an entity that seqeval finds in strict mode."""
    allowed = allowed_transitions(labels, name)
    for row in product(range(len(labels)), repeat=3):
        tags = [labels[tag_id] for tag_id in row]
        (entities,) = Entities([tags], scheme).entities
        covered = {position for entity in entities for position in range(entity.start, entity.end)}
        assert is_valid(row, allowed) == (covered == {index for index, tag in enumerate(tags) if tag != "O"}), tags


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.sampled_from([(IOB, "IOB2"), (IOBES_TAGS, "IOBES")]))
def test_viterbi_finds_the_best_of_all_valid_sequences(seed: int, num_words: int, tags: tuple) -> None:
    labels, scheme = tags
    allowed = allowed_transitions(labels, scheme)
    scores = np.random.default_rng(seed).normal(size=(num_words, len(labels))).astype(np.float32)
    rows = [row for row in product(range(len(labels)), repeat=num_words) if is_valid(row, allowed)]
    best = max(rows, key=lambda row: sum(scores[word, tag] for word, tag in enumerate(row)))
    assert tuple(viterbi_decode(scores, allowed).tolist()) == best


def test_viterbi_decodes_a_million_words_and_none() -> None:
    scores = np.zeros((1_000_000, 2), dtype=np.float32)
    scores[:, 1] = 1.0
    assert viterbi_decode(scores, allowed_transitions(("O", "B-X"), "IOB2")).all()
    assert viterbi_decode(scores[:0], allowed_transitions(("O", "B-X"), "IOB2")).tolist() == []


@pytest.mark.parametrize(
    ("rows", "scheme"),
    [
        (["O B-PER I-PER O", "B-LOC B-LOC"], "IOB2"),
        (["O I-PER I-PER O B-PER", "I-LOC"], None),  # IOB1: entities begin with I
        (["S-PER O B-LOC I-LOC E-LOC"], "IOBES"),
        (["U-PER O B-LOC I-LOC L-LOC"], "BILOU"),
        (["NN VB NN"], None),
        (["O E-mail S-class O"], None),  # not a scheme without `B-`
        (["O"], None),
        (["B-PER I-PER O"] * 99 + ["O I-PER"], "IOB2"),  # an annotation error
        ([], None),
    ],
)
def test_tag_scheme_is_detected(rows: list[str], scheme: str | None) -> None:
    tags = [row.split() for row in rows]
    labels = sorted({tag for row in tags for tag in row})
    assert detect_tag_scheme(labels, tags) == scheme
