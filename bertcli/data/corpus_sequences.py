"""Turn documents into one epoch's training sequences: chunks of single documents, or pairs of texts.

A sequence is one or two spans of the corpus tokens. Shapes: P sequences, D documents, T tokens of the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bertcli.data.corpus_tokens import SENTENCE_START, Corpus
from bertcli.errors import DataError
from bertcli.recipe.pretrain_schema import Pairs, Source

HELD_OUT_SEED = 13  # the held-out documents are the same for every training seed
IS_NEXT, NOT_NEXT = 0, 1  # as in transformers' `next_sentence_label`


@dataclass(frozen=True)
class SequenceSpans:
    """P sequences as spans of corpus tokens; the second span is empty for single texts."""

    first: np.ndarray  # [P, 2] start and end
    second: np.ndarray  # [P, 2]
    pair_labels: np.ndarray | None  # [P]: `IS_NEXT` or `NOT_NEXT`; None for single texts

    def __len__(self) -> int:
        return len(self.first)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens in each sequence, without special tokens. [P]"""
        return (np.diff(self.first) + np.diff(self.second)).ravel()


def split_train_held_out(
    corpus: Corpus, held_out_fraction: float, min_documents: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the training and of the held-out documents; the split is deterministic.

    Args:
        min_documents: minimum number of documents in each part.

    Raises:
        DataError: if the corpus has too few documents.
    """
    num_documents = len(corpus.document_offsets) - 1
    if num_documents < 2 * min_documents:
        raise DataError(
            f"found {num_documents} documents, expected at least {2 * min_documents} for training and held-out text"
        )
    order = np.random.default_rng(HELD_OUT_SEED).permutation(num_documents)
    num_held_out = max(min_documents, round(held_out_fraction * num_documents))
    num_held_out = min(num_held_out, num_documents - min_documents)
    return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])


def sample_epoch_documents(
    corpus: Corpus, train: np.ndarray, sources: tuple[Source, ...], random: np.random.Generator
) -> np.ndarray:
    """Return the training documents of one epoch, repeated or sampled according to the weight of their source.

    A weight of 2 uses each document twice; 0.5 samples half of them.
    """
    if all(source.weight == 1.0 for source in sources):
        return train
    parts = []
    for index, source in enumerate(sources):
        start, end = np.searchsorted(train, corpus.source_offsets[index : index + 2])
        documents = train[start:end]
        num_repeats, fraction = divmod(source.weight, 1.0)
        parts += [documents] * int(num_repeats)
        num_sampled = int(fraction * len(documents) + random.random())  # stochastic rounding: unbiased on average
        parts.append(np.sort(random.choice(documents, num_sampled, replace=False)))
    return np.concatenate(parts)


def document_weights(corpus: Corpus, documents: np.ndarray, sources: tuple[Source, ...]) -> np.ndarray:
    """Return how often an epoch uses each document on average."""
    source_indices = np.searchsorted(corpus.source_offsets, documents, side="right") - 1
    return np.array([source.weight for source in sources])[source_indices]


def split_into_shards(
    corpus: Corpus, documents: np.ndarray, max_tokens: int, random: np.random.Generator
) -> Iterator[np.ndarray]:
    """Assign the documents at random to the fewest shards that have about `max_tokens` tokens or fewer each."""
    num_shards = -(-int(corpus.document_lengths(documents).sum()) // max_tokens)
    if num_shards <= 1:
        yield documents
        return
    shard_of = random.integers(num_shards, size=len(documents), dtype=np.uint32)
    for shard in range(num_shards):
        yield documents[shard_of == shard]


def chunk_documents(corpus: Corpus, documents: np.ndarray, max_tokens: int) -> SequenceSpans:
    """Cut every document into chunks of `max_tokens` tokens; the last chunk may be shorter."""
    starts, lengths = corpus.document_offsets[documents], corpus.document_lengths(documents)
    counts = -(-lengths // max_tokens)
    chunk_indices = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    chunk_starts = np.repeat(starts, counts) + chunk_indices * max_tokens
    chunk_ends = np.minimum(chunk_starts + max_tokens, np.repeat(starts + lengths, counts))
    first = np.stack((chunk_starts, chunk_ends), axis=1)
    return SequenceSpans(first, np.zeros_like(first), None)


def build_sentence_pairs(
    corpus: Corpus,
    documents: np.ndarray,
    max_tokens: int,
    kind: Pairs,
    short_seq_prob: float,
    random: np.random.Generator,
) -> SequenceSpans:
    """Build sentence pairs of up to `max_tokens` tokens, half of them positive if possible.

    `next_sentence`: the second text follows the first, or comes from another document (Devlin et al. 2019; as in the
    original `create_pretraining_data.py`, except for this balance). `sentence_order`: the second text
    follows the first, or the two are swapped (Lan et al. 2020).

    Raises:
        DataError: if next-sentence pairs are requested, but there is only one document to sample from; or if no
            document yields a pair.
    """
    if kind == "next_sentence" and len(np.unique(documents)) < 2:
        raise DataError("next-sentence pairs require at least two documents; add more, or set objective.pairs=null")
    builder = _PairBuilder(corpus, documents, max_tokens, kind, random)
    for document in documents:
        bounds = builder.sentence_bounds(int(document))
        start = 0
        while start < len(bounds) - 1:
            is_short = random.random() < short_seq_prob
            target_length = int(random.integers(2, max_tokens + 1)) if is_short else max_tokens
            end = start + 1
            while end < len(bounds) - 1 and bounds[end] - bounds[start] < target_length:
                end += 1
            start = builder.add(int(document), bounds, start, end, target_length)
    if not builder.labels:
        raise DataError("no document has the two tokens that a sentence pair requires; set objective.pairs=null")
    return builder.build()


class _PairBuilder:
    """A builder of sentence pairs that keeps the numbers of positive and negative pairs equal if possible."""

    def __init__(
        self, corpus: Corpus, documents: np.ndarray, max_tokens: int, kind: Pairs, random: np.random.Generator
    ) -> None:
        self.corpus, self.documents, self.max_tokens, self.kind = corpus, documents, max_tokens, kind
        self.random = random
        self.firsts: list[tuple[int, int]] = []
        self.seconds: list[tuple[int, int]] = []
        self.labels: list[int] = []
        self._balance = 0  # positive pairs minus negative ones

    def sentence_bounds(self, document: int) -> list[int]:
        """Return the start of each sentence of a document, and the document's end."""
        start, end = self.corpus.document_offsets[document : document + 2]
        starts = np.flatnonzero(self.corpus.flags[start:end] & SENTENCE_START) + start
        return [*starts.tolist(), int(end)]

    def add(self, document: int, bounds: list[int], start: int, end: int, target_length: int) -> int:
        """Build a pair from sentences `start` to `end` - 1; return the index of the sentence to continue from."""
        middle = int(self.random.integers(start + 1, end)) if end - start > 1 else end
        is_next = self._balance < 0 or (self._balance == 0 and self.random.random() < 0.5)
        first = (bounds[start], bounds[middle])
        if self.kind == "sentence_order":
            if bounds[end] - bounds[start] < 2:
                return end  # a single token, which has no halves
            second = (bounds[middle], bounds[end])
            if middle == end:  # a single sentence is split in half
                half = (bounds[start] + bounds[end]) // 2
                first, second = (bounds[start], half), (half, bounds[end])
            self._append(*((first, second) if is_next else (second, first)), is_next)
            return end
        if is_next and middle < end:
            self._append(first, (bounds[middle], bounds[end]), is_next=True)
            return end
        self._append(first, self._sample_other(document, target_length - (first[1] - first[0])), is_next=False)
        return middle

    def _sample_other(self, document: int, target_length: int) -> tuple[int, int]:
        """Sample consecutive sentences of another document, at least one, until they have `target_length` tokens.

        They are truncated only in `_append`, like positive pairs; otherwise the lengths would reveal the label.
        """
        other = document
        while other == document:
            other = int(self.random.choice(self.documents))
        bounds = self.sentence_bounds(other)
        start = int(self.random.integers(len(bounds) - 1))
        end = start + 1
        while end < len(bounds) - 1 and bounds[end] - bounds[start] < target_length:
            end += 1
        return bounds[start], bounds[end]

    def _append(self, first: tuple[int, int], second: tuple[int, int], is_next: bool) -> None:
        """Truncate the longer text, at random at its start or end, until the pair fits; then add the pair."""
        texts = [list(first), list(second)]
        while (excess := sum(end - start for start, end in texts) - self.max_tokens) > 0:
            longer = max(texts, key=lambda text: text[1] - text[0])
            shorter = min(texts, key=lambda text: text[1] - text[0])
            length = longer[1] - longer[0]
            difference = length - (shorter[1] - shorter[0])
            num_cut = max(1, min(excess, max(difference, excess // 2), length - 1))
            num_cut_at_start = int(self.random.binomial(num_cut, 0.5))
            longer[0] += num_cut_at_start
            longer[1] -= num_cut - num_cut_at_start
        self.firsts.append((texts[0][0], texts[0][1]))
        self.seconds.append((texts[1][0], texts[1][1]))
        self.labels.append(IS_NEXT if is_next else NOT_NEXT)
        self._balance += 1 if is_next else -1

    def build(self) -> SequenceSpans:
        """Return all pairs that were added."""
        firsts, seconds = (np.asarray(texts, dtype=np.int64).reshape(-1, 2) for texts in (self.firsts, self.seconds))
        return SequenceSpans(firsts, seconds, np.asarray(self.labels, dtype=np.int64))
