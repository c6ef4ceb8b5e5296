"""Tags that can follow each other, and the best row of them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.scheme import IOB2, IOBES, Entities

from bertcli.heads.tag_decoding import likeliest_tags, may_follow, scheme_of

IOB = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
IOBES_TAGS = (*IOB, "E-PER", "S-PER", "E-LOC", "S-LOC")


def keeps(row: tuple[int, ...], allowed: np.ndarray) -> bool:
    edge = len(allowed) - 1
    return all(allowed[one, other] for one, other in zip((edge, *row), (*row, edge), strict=True))


@pytest.mark.parametrize(("labels", "name", "scheme"), [(IOB, "IOB2", IOB2), (IOBES_TAGS, "IOBES", IOBES)])
def test_rows_are_allowed_that_seqeval_reads_without_a_rest(labels: tuple[str, ...], name: str, scheme: type) -> None:
    """A row keeps a scheme if each of its tags but `O` stands in an entity that the strict reading finds."""
    allowed = may_follow(labels, name)
    for row in product(range(len(labels)), repeat=3):
        tags = [labels[at] for at in row]
        (entities,) = Entities([tags], scheme).entities
        covered = {at for entity in entities for at in range(entity.start, entity.end)}
        assert keeps(row, allowed) == (covered == {at for at, tag in enumerate(tags) if tag != "O"}), tags


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.sampled_from([(IOB, "IOB2"), (IOBES_TAGS, "IOBES")]))
def test_the_best_row_is_the_best_of_all_that_are_allowed(seed: int, width: int, tags: tuple) -> None:
    labels, scheme = tags
    allowed = may_follow(labels, scheme)
    scores = np.random.default_rng(seed).normal(size=(width, len(labels))).astype(np.float32)
    rows = [row for row in product(range(len(labels)), repeat=width) if keeps(row, allowed)]
    best = max(rows, key=lambda row: sum(scores[at, tag] for at, tag in enumerate(row)))
    assert tuple(likeliest_tags(scores, allowed).tolist()) == best


def test_a_row_of_a_million_words_is_read_and_one_of_none() -> None:
    scores = np.zeros((1_000_000, 2), dtype=np.float32)
    scores[:, 1] = 1.0
    assert likeliest_tags(scores, may_follow(("O", "B-X"), "IOB2")).all()
    assert likeliest_tags(scores[:0], may_follow(("O", "B-X"), "IOB2")).tolist() == []


@pytest.mark.parametrize(
    ("rows", "scheme"),
    [
        (["O B-PER I-PER O", "B-LOC B-LOC"], "IOB2"),
        (["O I-PER I-PER O B-PER", "I-LOC"], None),  # IOB1: an entity begins with I
        (["S-PER O B-LOC I-LOC E-LOC"], "IOBES"),
        (["U-PER O B-LOC I-LOC L-LOC"], "BILOU"),
        (["NN VB NN"], None),
        (["O E-mail S-class O"], None),  # no scheme without a letter that begins
        (["O"], None),
        (["B-PER I-PER O"] * 99 + ["O I-PER"], "IOB2"),  # a slip
        ([], None),
    ],
)
def test_the_scheme_is_read_from_the_rows(rows: list[str], scheme: str | None) -> None:
    tags = [row.split() for row in rows]
    labels = sorted({tag for row in tags for tag in row})
    assert scheme_of(labels, tags) == scheme
