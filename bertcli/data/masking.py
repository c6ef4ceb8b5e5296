"""Masking for masked language modeling, as pure functions on ragged arrays.

Nothing here depends on a tokenizer: words are given by their first tokens, so whole-word and span masking work the same
for WordPiece, byte-level BPE and Unigram vocabularies. Shapes: N sequences, T tokens of all sequences, concatenated.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bertcli.data.encoding import IGNORED_LABEL
from bertcli.recipe.pretrain_schema import MaskingUnit

SPAN_LENGTH_WEIGHTS = 0.2 * 0.8 ** np.arange(10)  # of 1 to 10 words, as in SpanBERT (https://arxiv.org/abs/1907.10529)
SPAN_LENGTH_CDF = np.cumsum(SPAN_LENGTH_WEIGHTS / SPAN_LENGTH_WEIGHTS.sum())  # a mean of 3.8 words
MAX_WORD_TOKENS = 10  # longer words, such as URLs, are divided into pieces within the budget of their sequence


@dataclass(frozen=True)
class MaskReplacement:
    """The replacement of selected tokens: by the mask token, by a random token, or not at all."""

    mask_token_id: int
    random_token_ids: np.ndarray  # tokens to sample replacements from: the vocabulary without special tokens
    mask_replace_prob: float = 0.8
    random_replace_prob: float = 0.1


def sample_mask(
    maskable: np.ndarray,
    word_starts: np.ndarray,
    offsets: np.ndarray,
    probability: float,
    unit: MaskingUnit,
    random: np.random.Generator,
) -> np.ndarray:
    """Select the tokens to predict; return the group of each token. [T] int64

    Tokens of the same group are replaced alike. The group of tokens that are not selected is -1.

    Args:
        maskable: [T] whether a token may be selected; never true for special tokens.
        word_starts: [T] whether a token starts a word.
        offsets: [N + 1] offsets of the sequences.
        probability: fraction of the maskable tokens to select. With words and spans, about this fraction of each
            sequence is selected, and at least one word.
        unit: single tokens, whole words (each token is its own group), or spans of words (a span is a group).
    """
    if unit == "token":
        selected = maskable & (random.random(len(maskable)) < probability)
        return np.where(selected, np.arange(len(maskable)), -1)
    words = word_indices(maskable, _divide_long_words(maskable, word_starts, offsets, probability))
    if unit == "whole_word":
        return _sample_words(words, offsets, probability, random)
    return _sample_spans(words, offsets, probability, random)


def word_indices(maskable: np.ndarray, word_starts: np.ndarray) -> np.ndarray:
    """Return the index of each token's word, counted over all sequences; -1 for tokens that are not maskable. [T]

    A new word also starts after each special token, so no word extends into the next sequence.
    """
    after_special = np.concatenate(([True], ~maskable[:-1]))
    return np.where(maskable, np.cumsum(maskable & (word_starts | after_special)) - 1, -1)


def _budgets(words: np.ndarray, offsets: np.ndarray, probability: float) -> np.ndarray:
    """Return the number of tokens to select in each sequence, unrounded. [N]"""
    return probability * np.diff(np.concatenate(([0], np.cumsum(words >= 0)))[offsets])


def _divide_long_words(
    maskable: np.ndarray, word_starts: np.ndarray, offsets: np.ndarray, probability: float
) -> np.ndarray:
    """Return `word_starts` with additional starts that divide long words into pieces within the budget. [T]

    A word is long if it exceeds its sequence's budget and also `MAX_WORD_TOKENS` or, in a short sequence, half of the
    sequence. Undivided, it would never be masked, or as a whole, which leaves little context.
    """
    words = word_indices(maskable, word_starts)
    sizes = np.bincount(words[words >= 0])
    if len(sizes) == 0:
        return word_starts
    budgets = np.repeat(_budgets(words, offsets, probability), np.diff(offsets))
    first_tokens = np.flatnonzero((words >= 0) & (np.diff(words, prepend=-1) != 0))
    position = np.arange(len(words)) - first_tokens[np.maximum(words, 0)]
    max_sizes = np.maximum(budgets, np.minimum(MAX_WORD_TOKENS, budgets / probability / 2))
    is_long = (words >= 0) & (sizes[np.maximum(words, 0)] > max_sizes)
    return word_starts | (is_long & (position % np.maximum(1, budgets.astype(np.int64)) == 0))


def _sample_words(
    words: np.ndarray, offsets: np.ndarray, probability: float, random: np.random.Generator
) -> np.ndarray:
    """Sample words up to each sequence's budget, at least one; each of their tokens is a group.

    A word that exceeds the rest of a budget is selected with a probability that meets the budget on average.
    """
    first_tokens = np.flatnonzero((words >= 0) & (np.diff(words, prepend=-1) != 0))
    if len(first_tokens) == 0:
        return np.full(len(words), -1)
    sizes = np.bincount(words[words >= 0])
    sequences = np.searchsorted(offsets, first_tokens, side="right") - 1  # of each word
    sequence_starts = np.searchsorted(sequences, sequences)  # first word of each word's sequence
    keys = random.random(len(sizes))
    order = np.lexsort((keys, sequences))
    num_before = np.cumsum(sizes[order]) - sizes[order]
    rest = _budgets(words, offsets, probability)[sequences] - (num_before - num_before[sequence_starts])
    is_selected = np.zeros(len(sizes), dtype=bool)
    is_selected[order] = random.random(len(sizes)) * sizes[order] < rest
    num_selected = np.bincount(sequences, is_selected, len(offsets) - 1)
    shortest = np.lexsort((keys, sizes, sequences))[np.unique(sequence_starts)]
    is_selected[shortest] |= num_selected[sequences[shortest]] == 0
    return np.where((words >= 0) & is_selected[words], np.arange(len(words)), -1)


def _sample_spans(
    words: np.ndarray, offsets: np.ndarray, probability: float, random: np.random.Generator
) -> np.ndarray:
    """Sample spans of whole words up to each sequence's budget, at least one word.

    Any unused budget, or any excess over it, is carried over to the next sequence.
    """
    groups = np.full(len(words), -1)
    rest, num_spans = 0.0, 0
    for (start, end), own_budget in zip(pairwise(offsets), _budgets(words, offsets, probability), strict=True):
        sequence = words[start:end]
        starts = np.flatnonzero((sequence >= 0) & (np.diff(sequence, prepend=-2) != 0))  # each word's first token
        if len(starts) == 0:
            continue
        ends = np.append(starts[1:], np.flatnonzero(sequence >= 0)[-1] + 1)
        budget = own_budget + min(max(rest, -own_budget / 2), own_budget)
        free = np.ones(len(starts), dtype=bool)
        for _ in range(4 * len(starts)):  # almost always enough attempts to find the free words
            if budget < 1 or not free.any():
                break
            first = int(random.integers(len(starts)))
            length = 1 + int(np.searchsorted(SPAN_LENGTH_CDF[:-1], random.random(), side="right"))
            last = first
            while last < min(first + length, len(starts)) and free[last] and ends[last] - starts[first] <= budget:
                last += 1
            if last == first:
                continue
            span = slice(start + starts[first], start + ends[last - 1])
            groups[span] = num_spans
            free[first:last] = False
            budget -= ends[last - 1] - starts[first]
            num_spans += 1
        if free.all():
            shortest = int(random.choice(np.flatnonzero(ends - starts == (ends - starts).min())))
            groups[start + starts[shortest] : start + ends[shortest]] = num_spans
            budget -= ends[shortest] - starts[shortest]
            num_spans += 1
        rest = budget
    return np.where(words >= 0, groups, -1)  # there may be a special token between two words of a span


def apply_mask(
    ids: np.ndarray, groups: np.ndarray, replacement: MaskReplacement, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Replace the selected tokens; return the new IDs [T] and the labels [T] (`IGNORED_LABEL` where not selected).

    The tokens of a group are all masked, all replaced by random tokens, or all kept (80/10/10 by default).
    """
    selected = np.flatnonzero(groups >= 0)
    draws = random.random(int(groups.max(initial=-1)) + 1)[groups[selected]]
    mask_prob, random_prob = replacement.mask_replace_prob, replacement.random_replace_prob
    masked = selected[draws < mask_prob]
    is_random = (draws >= mask_prob) & (draws < mask_prob + random_prob)
    new_ids = ids.copy()
    new_ids[masked] = replacement.mask_token_id
    new_ids[selected[is_random]] = random.choice(replacement.random_token_ids, int(is_random.sum()))
    labels = np.full(len(ids), IGNORED_LABEL, dtype=np.int64)
    labels[selected] = ids[selected]
    return new_ids, labels
