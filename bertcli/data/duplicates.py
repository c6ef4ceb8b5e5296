"""Duplicate texts: equal ones, up to case, spaces and punctuation, and near ones, found by MinHash (Broder 1997).

Two texts are near duplicates if they share most of their pairs of neighboring words. Candidates come from locality-
sensitive hashing: texts with equal MinHash values in one of several bands (Leskovec et al., Mining of Massive Datasets,
section 3.4). Each candidate is then compared exactly, so no pair is reported wrongly; about 1 % of the pairs at the
threshold are missed.
Shapes: R texts, P permutations.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

WORD = re.compile(r"\w+")
NUM_BANDS, ROWS_PER_BAND = 12, 3
MIN_SIMILARITY = 0.7  # Jaccard similarity of the sets of word pairs
MIN_WORDS = 4  # texts with fewer words are compared only for equality
MAX_CANDIDATES = 20  # earlier texts per band that are compared
MINHASH_SEED = 13
BLOCK_SHINGLES = 1 << 21  # hashed at once, to keep temporary arrays small


def normalize_text(text: str) -> str:
    """Return a text without differences in case, spaces and punctuation; text without any word only loses spaces."""
    return " ".join(WORD.findall(text.casefold())) or "".join(text.split())


def find_near_duplicates(texts: Sequence[str]) -> dict[int, int]:
    """Return, for each text that has earlier near duplicates, its index and that of the first one.

    Args:
        texts: distinct texts, as returned by `normalize_text`.
    """
    long = [index for index, text in enumerate(texts) if text.count(" ") >= MIN_WORDS - 1]
    shingles, offsets = _hash_word_pairs([texts[index] for index in long])
    if not long:
        return {}
    signatures = _minhash(shingles, offsets)
    candidates: list[set[int]] = [set() for _ in long]
    for band in range(0, NUM_BANDS * ROWS_PER_BAND, ROWS_PER_BAND):
        keys = np.ascontiguousarray(signatures[:, band : band + ROWS_PER_BAND])
        buckets: dict[bytes, list[int]] = {}
        for row, key in enumerate(map(bytes, keys)):
            bucket = buckets.setdefault(key, [])
            candidates[row].update(bucket)
            if len(bucket) < MAX_CANDIDATES:
                bucket.append(row)
    sets: dict[int, frozenset[int]] = {}

    def shingle_set(row: int) -> frozenset[int]:
        if row not in sets:
            sets[row] = frozenset(shingles[offsets[row] : offsets[row + 1]].tolist())
        return sets[row]

    twins = {}
    for row, others in enumerate(candidates):
        for other in sorted(others):
            one, two = shingle_set(row), shingle_set(other)
            num_shared = len(one & two)
            if num_shared >= MIN_SIMILARITY * (len(one) + len(two) - num_shared):
                twins[long[row]] = long[other]
                break
    return twins


def _hash_word_pairs(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return a hash of each pair of neighboring words of each text, and where the pairs of each text begin. [R + 1]"""
    cache: dict[str, int] = {}

    def hashes() -> Iterator[np.ndarray]:
        for text in texts:
            words = text.split()
            codes = [cache.get(word) or cache.setdefault(word, zlib.crc32(word.encode())) for word in words]
            values = np.asarray(codes, dtype=np.uint64)
            yield (values[:-1] * np.uint64(0x9E3779B1) + values[1:]) & np.uint64(0xFFFFFFFF)

    parts = list(hashes())
    offsets = np.concatenate(([0], np.cumsum([len(part) for part in parts], dtype=np.int64)))
    return (np.concatenate(parts) if parts else np.zeros(0, np.uint64)), offsets


def _minhash(shingles: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the smallest value of each of P random hash functions over the shingles of each text. [R, P] uint32"""
    generator = np.random.default_rng(MINHASH_SEED)
    num_permutations = NUM_BANDS * ROWS_PER_BAND
    factors = generator.integers(1, 2**63, num_permutations, dtype=np.uint64) | np.uint64(1)
    terms = generator.integers(0, 2**63, num_permutations, dtype=np.uint64)
    signatures = np.empty((len(offsets) - 1, num_permutations), dtype=np.uint32)
    starts = offsets[:-1]
    begin = 0
    while begin < len(starts):  # blocks of texts
        end = max(begin + 1, int(np.searchsorted(offsets, offsets[begin] + BLOCK_SHINGLES, side="right")) - 1)
        block = shingles[offsets[begin] : offsets[end]]
        for index in range(num_permutations):  # multiply-shift hashing (Dietzfelbinger et al. 1997); wraps around
            values = ((block * factors[index] + terms[index]) >> np.uint64(32)).astype(np.uint32)
            signatures[begin:end, index] = np.minimum.reduceat(values, starts[begin:end] - offsets[begin])
        begin = end
    return signatures
