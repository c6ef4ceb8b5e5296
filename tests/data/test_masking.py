"""Masking, tested by counting: fractions, units, and tokens that are never masked."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from bertcli.data.encoding import IGNORED_LABEL
from bertcli.data.masking import MaskReplacement, apply_mask, sample_mask, word_indices
from bertcli.recipe.pretrain_schema import MaskingUnit

CLS, SEP, MASK = 1, 2, 3
VOCABULARY = np.arange(10, 1000)
UNITS: tuple[MaskingUnit, ...] = ("token", "whole_word", "span")


@cache
def corpus(num_sequences: int = 1000) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return about 100,000 tokens: IDs, which are maskable, which start a word (of 1 to 4 tokens), offsets."""
    random = np.random.default_rng(0)
    ids, starts, lengths = [], [], []
    for _ in range(num_sequences):
        words = [random.choice(VOCABULARY, random.integers(1, 5)) for _ in range(random.integers(5, 76))]
        lengths.append(sum(map(len, words)) + 2)
        ids += [[CLS], *words, [SEP]]
        starts += [True, *(index == 0 for word in words for index in range(len(word))), True]
    ids = np.concatenate(ids)
    return ids, (ids != CLS) & (ids != SEP), np.array(starts), np.concatenate(([0], np.cumsum(lengths)))


@cache
def masked(unit: MaskingUnit, probability: float = 0.15, seed: int = 1) -> tuple[np.ndarray, ...]:
    ids, maskable, starts, offsets = corpus()
    random = np.random.default_rng(seed)
    groups = sample_mask(maskable, starts, offsets, probability, unit, random)
    new, labels = apply_mask(ids, groups, MaskReplacement(MASK, VOCABULARY), random)
    return ids, maskable, starts, offsets, groups, new, labels


@pytest.mark.parametrize("probability", [0.15, 0.4])
@pytest.mark.parametrize("unit", UNITS)
def test_mask_selects_the_given_fraction(unit: MaskingUnit, probability: float) -> None:
    _, maskable, _, _, _, _, labels = masked(unit, probability)
    assert maskable.sum() > 90_000
    assert (labels != IGNORED_LABEL).sum() / maskable.sum() == pytest.approx(probability, abs=0.01)


@pytest.mark.parametrize("unit", UNITS)
def test_mask_replaces_eighty_ten_ten(unit: MaskingUnit) -> None:
    ids, _, _, _, _, new, labels = masked(unit)
    selected = labels != IGNORED_LABEL
    assert (new[selected] == MASK).mean() == pytest.approx(0.8, abs=0.01)
    assert ((new[selected] != MASK) & (new[selected] != ids[selected])).mean() == pytest.approx(0.1, abs=0.01)
    assert (new[selected] == ids[selected]).mean() == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("unit", UNITS)
def test_mask_labels_are_the_selected_tokens_and_others_stay(unit: MaskingUnit) -> None:
    ids, maskable, _, _, _, new, labels = masked(unit)
    selected = labels != IGNORED_LABEL
    assert (labels[selected] == ids[selected]).all()
    assert (new[~selected] == ids[~selected]).all()
    assert not (selected & ~maskable).any()
    assert set(new[selected & (new != ids)]) - {MASK} <= set(VOCABULARY)


@pytest.mark.parametrize("unit", ["whole_word", "span"])
def test_mask_selects_whole_words(unit: MaskingUnit) -> None:
    _, maskable, starts, _, _, _, labels = masked(unit)
    words = word_indices(maskable, starts)
    selected, sizes = (np.bincount(words[maskable], weights) for weights in ((labels != IGNORED_LABEL)[maskable], None))
    assert set(np.unique(selected / sizes)) == {0.0, 1.0}


def test_mask_spans_consist_of_words_and_are_replaced_alike() -> None:
    ids, maskable, starts, offsets, groups, new, _ = masked("span")
    words = word_indices(maskable, starts)
    sequence = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    lengths = []
    for group in range(groups.max() + 1):
        indices = np.flatnonzero(groups == group)
        assert (np.diff(indices) == 1).all()
        assert len(set(sequence[indices])) == 1
        assert (new[indices] == MASK).all() or not (new[indices] == MASK).any()
        lengths.append(len(set(words[indices])))
    assert 2.2 < np.mean(lengths) < 3.8  # SpanBERT's 3.8, less what a sequence's budget cuts off
    assert max(lengths) <= 10
    assert (ids == new).any()


def test_span_lengths_are_distributed_as_in_spanbert() -> None:
    every_token = np.ones(400_000, dtype=bool)
    offsets = np.array([0, len(every_token)])
    groups = sample_mask(every_token, every_token, offsets, 0.02, "span", np.random.default_rng(0))
    lengths = np.bincount(groups[groups >= 0])
    shares = np.bincount(lengths, minlength=11)[1:] / len(lengths)
    geometric = 0.2 * 0.8 ** np.arange(10)
    assert shares == pytest.approx(geometric / geometric.sum(), abs=0.02)
    assert lengths.mean() == pytest.approx(3.8, abs=0.2)


def test_word_indices_end_at_special_tokens() -> None:
    maskable = np.array([False, True, True, False, True, False, False, True])
    starts = np.array([True, True, False, True, False, True, True, False])
    assert word_indices(maskable, starts).tolist() == [-1, 0, 0, -1, 1, -1, -1, 2]


def test_mask_depends_on_the_generator_alone() -> None:
    for unit in UNITS:
        assert (masked(unit, seed=1)[5] == masked.__wrapped__(unit, seed=1)[5]).all()
        assert not (masked(unit, seed=1)[5] == masked(unit, seed=2)[5]).all()


@pytest.mark.parametrize("unit", UNITS)
def test_mask_without_maskable_tokens(unit: MaskingUnit) -> None:
    nothing = np.zeros(3, dtype=bool)
    groups = sample_mask(nothing, ~nothing, np.array([0, 3, 3]), 0.15, unit, np.random.default_rng(0))
    new, labels = apply_mask(np.array([1, 2, 1]), groups, MaskReplacement(MASK, VOCABULARY), np.random.default_rng(0))
    assert (new.tolist(), set(labels.tolist())) == ([1, 2, 1], {IGNORED_LABEL})


@pytest.mark.parametrize("unit", ["whole_word", "span"])
@pytest.mark.parametrize("num_tokens", [12, 24, 64, 200])
@pytest.mark.parametrize("word_length", [1, 4, 1000])
def test_mask_fraction_of_each_sequence_is_bounded(unit: MaskingUnit, num_tokens: int, word_length: int) -> None:
    """Words of 1000 tokens are URLs, base64, or lines of a script without spaces: one word takes the sequence."""
    offsets = np.arange(0, 300 * num_tokens + 1, num_tokens)
    position = np.arange(offsets[-1]) % num_tokens
    maskable = (position > 0) & (position < num_tokens - 1)
    groups = sample_mask(maskable, (position - 1) % word_length == 0, offsets, 0.15, unit, np.random.default_rng(0))
    fractions = (groups >= 0).reshape(-1, num_tokens).sum(1) / (num_tokens - 2)
    assert fractions.min() > 0
    assert fractions.max() <= (0.5 if num_tokens <= 24 else 0.31)
    tolerance = {12: 0.13, 24: 0.03}.get(num_tokens, 0.01)  # a word may be larger than the budget of a short sequence
    assert fractions.mean() == pytest.approx(0.15, abs=tolerance)


@pytest.mark.parametrize("unit", ["whole_word", "span"])
def test_mask_selects_at_least_one_token_of_short_sequences(unit: MaskingUnit) -> None:
    offsets = np.arange(0, 301, 3)
    maskable = np.arange(300) % 3 == 1
    groups = sample_mask(maskable, np.ones(300, bool), offsets, 0.15, unit, np.random.default_rng(0))
    assert ((groups >= 0) == maskable).all()


@pytest.mark.parametrize("unit", ["whole_word", "span"])
def test_mask_budget_of_a_long_sequence_is_not_used_up_by_short_ones(unit: MaskingUnit) -> None:
    offsets = np.concatenate((np.arange(0, 303, 3), [502]))
    maskable = (np.arange(502) % 3 == 1) | (np.arange(502) >= 302)
    groups = sample_mask(maskable, np.ones(502, bool), offsets, 0.15, unit, np.random.default_rng(0))
    assert 0.07 < (groups[302:] >= 0).mean() < 0.31
