"""Which tokens a masked language model has to guess, and what stands there instead: pure functions on ragged arrays.

Nothing here knows a tokenizer: words are marked by the tokens that begin them, so whole words and spans are masked
alike on WordPiece, byte-level BPE and Unigram vocabularies. Shapes: T tokens of all sequences laid end to end,
N sequences, W words.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bertcli.data.encoding import IGNORED_LABEL
from bertcli.recipe.pretrain_schema import MaskingUnit

SPAN_STOP = 0.2  # SpanBERT's geometric distribution of span lengths in words (https://arxiv.org/abs/1907.10529) …
LONGEST_SPAN = 10  # … and its limit: 3.8 words on average


@dataclass(frozen=True)
class Replacement:
    """What stands where a token was chosen: the mask, a random token, or the token itself."""

    mask_token_id: int
    random_token_ids: np.ndarray  # [V'] tokens that may stand in by chance: no special ones
    mask_share: float = 0.8
    random_share: float = 0.1


def choose(
    maskable: np.ndarray,
    word_starts: np.ndarray,
    offsets: np.ndarray,
    probability: float,
    unit: MaskingUnit,
    random: np.random.Generator,
) -> np.ndarray:
    """Which tokens are to be guessed, as groups that are replaced alike. [T] int64, -1: not chosen

    Args:
        maskable: [T] whether a token may be chosen: never a special one.
        word_starts: [T] whether a token begins a word.
        offsets: [N + 1] of the sequences.
        probability: share of the maskable tokens to choose.
        unit: single tokens, whole words (each token replaced by itself), or spans of words (replaced as one).
    """
    if unit == "tokens":
        chosen = maskable & (random.random(len(maskable)) < probability)
        return np.where(chosen, np.arange(len(maskable)), -1)
    words = number_words(maskable, word_starts)
    num_words = int(words.max(initial=-1)) + 1
    if unit == "words":
        of_word = random.random(num_words) < probability
        chosen = maskable & of_word[np.maximum(words, 0)] if num_words else maskable
        return np.where(chosen, np.arange(len(maskable)), -1)
    return _choose_spans(words, offsets, probability, random)


def number_words(maskable: np.ndarray, word_starts: np.ndarray) -> np.ndarray:
    """The number of each token's word, counted over all sequences; -1 for tokens that may not be chosen. [T]

    A word also begins behind each special token, so that none reaches from one sequence into the next.
    """
    after_special = np.concatenate(([True], ~maskable[:-1]))
    return np.where(maskable, np.cumsum(maskable & (word_starts | after_special)) - 1, -1)


def _choose_spans(
    words: np.ndarray, offsets: np.ndarray, probability: float, random: np.random.Generator
) -> np.ndarray:
    """Spans of whole words until the share of each sequence is reached; what one lacks, the next makes up for."""
    group = np.full(len(words), -1)
    owed, number = 0.0, 0
    for start, end in pairwise(offsets):
        own = words[start:end]
        firsts = np.flatnonzero((own >= 0) & (np.diff(own, prepend=-2) != 0))  # the first token of each word
        if len(firsts) == 0:
            continue
        ends = np.append(firsts[1:], np.flatnonzero(own >= 0)[-1] + 1)
        owed += probability * int((own >= 0).sum())
        free = np.ones(len(firsts), dtype=bool)
        for _ in range(4 * len(firsts)):  # as many tries as find room where there is some
            if owed < 1 or not free.any():
                break
            first = int(random.integers(len(firsts)))
            length = min(int(random.geometric(SPAN_STOP)), LONGEST_SPAN)
            last = first
            while last < min(first + length, len(firsts)) and free[last] and ends[last] - firsts[first] <= owed:
                last += 1
            if last == first:
                continue
            span = slice(start + firsts[first], start + ends[last - 1])
            group[span] = number
            free[first:last] = False
            owed -= ends[last - 1] - firsts[first]
            number += 1
    return np.where(words >= 0, group, -1)  # a special token may stand between two words of a span


def replace(
    ids: np.ndarray, groups: np.ndarray, replacement: Replacement, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """What the model reads and what it has to say: new ids [T], labels [T] (`IGNORED_LABEL` where nothing is asked).

    Tokens of one group are all masked, all replaced by random tokens, or all left (80/10/10 by default).
    """
    chosen = np.flatnonzero(groups >= 0)
    luck = random.random(int(groups.max(initial=-1)) + 1)[groups[chosen]]
    masked = chosen[luck < replacement.mask_share]
    is_random = (luck >= replacement.mask_share) & (luck < replacement.mask_share + replacement.random_share)
    new = ids.copy()
    new[masked] = replacement.mask_token_id
    new[chosen[is_random]] = random.choice(replacement.random_token_ids, int(is_random.sum()))
    labels = np.full(len(ids), IGNORED_LABEL, dtype=np.int64)
    labels[chosen] = ids[chosen]
    return new, labels
