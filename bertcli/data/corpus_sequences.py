"""From documents to the sequences of one epoch: pieces of single documents, or pairs of texts.

A sequence is one or two ranges of the corpus's tokens. Shapes: P sequences, D documents, T tokens of the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bertcli.data.corpus_tokens import BEGINS_SENTENCE, Corpus
from bertcli.errors import DataError
from bertcli.recipe.pretrain_schema import Pairs, Source

HELD_OUT_SEED = 13  # the held-out documents are the same for every training seed
IN_ORDER, NOT_IN_ORDER = 0, 1  # as `next_sentence_label` of transformers


@dataclass(frozen=True)
class Ranges:
    """P sequences as ranges of tokens; of single texts the second range is empty."""

    first: np.ndarray  # [P, 2] start and end
    second: np.ndarray  # [P, 2]
    pair_labels: np.ndarray | None  # [P]: `IN_ORDER` or `NOT_IN_ORDER`; None for single texts

    def __len__(self) -> int:
        return len(self.first)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence, without special ones. [P]"""
        return (np.diff(self.first) + np.diff(self.second)).ravel()


def divide_documents(corpus: Corpus, held_out_share: float, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the documents to learn from and of those held out, `least` of each kind or more; always the same.

    Raises:
        DataError: there are too few.
    """
    num_documents = len(corpus.documents) - 1
    if num_documents < 2 * least:
        raise DataError(f"found {num_documents} documents, expected {2 * least} or more to learn from and hold out")
    order = np.random.default_rng(HELD_OUT_SEED).permutation(num_documents)
    num_held_out = min(max(least, round(held_out_share * num_documents)), num_documents - least)
    return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])


def documents_of_epoch(
    corpus: Corpus, train: np.ndarray, sources: tuple[Source, ...], random: np.random.Generator
) -> np.ndarray:
    """The training documents as often as their sources' weights say: 2 is twice an epoch, 0.5 is a random half."""
    if all(source.weight == 1.0 for source in sources):
        return train
    parts = []
    for number, source in enumerate(sources):
        start, end = np.searchsorted(train, corpus.sources[number : number + 2])
        own = train[start:end]
        whole, rest = divmod(source.weight, 1.0)
        parts += [own] * int(whole)
        number = int(rest * len(own) + random.random())  # of few documents none now and then, but not always
        parts.append(np.sort(random.choice(own, number, replace=False)))
    return np.concatenate(parts)


def weights_of(corpus: Corpus, documents: np.ndarray, sources: tuple[Source, ...]) -> np.ndarray:
    """How often an epoch passes over each of the documents, on average."""
    of_source = np.searchsorted(corpus.sources, documents, side="right") - 1
    return np.array([source.weight for source in sources])[of_source]


def in_blocks(
    corpus: Corpus, documents: np.ndarray, num_tokens: int, random: np.random.Generator
) -> Iterator[np.ndarray]:
    """The documents by chance in as many blocks as leave each about `num_tokens` tokens at most."""
    number = -(-int(corpus.lengths_of(documents).sum()) // num_tokens)
    if number <= 1:
        yield documents
        return
    block_of = random.integers(number, size=len(documents), dtype=np.uint32)
    for block in range(number):
        yield documents[block_of == block]


def cut_documents(corpus: Corpus, documents: np.ndarray, room: int) -> Ranges:
    """Every document in pieces of `room` tokens; the last one holds what is left."""
    starts, lengths = corpus.documents[documents], corpus.lengths_of(documents)
    counts = -(-lengths // room)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    begins = np.repeat(starts, counts) + within * room
    ends = np.minimum(begins + room, np.repeat(starts + lengths, counts))
    first = np.stack((begins, ends), axis=1)
    return Ranges(first, np.zeros_like(first), None)


def pair_documents(
    corpus: Corpus,
    documents: np.ndarray,
    room: int,
    kind: Pairs,
    short_sequence_probability: float,
    random: np.random.Generator,
) -> Ranges:
    """Pairs of texts of up to `room` tokens, half of them in order.

    `next_sentence`: the second text follows the first, or comes from another document (Devlin et al. 2019; made as
    the original `create_pretraining_data.py` does, but for an exact half). `sentence_order`: the two follow each
    other, or stand the wrong way round (Lan et al. 2020).

    Raises:
        DataError: there is one document only, so that none can be another.
    """
    if kind == "next_sentence" and len(np.unique(documents)) < 2:
        raise DataError("next-sentence pairs need two or more documents; name more, or set objective.pairs=null")
    pairs = _Pairs(corpus, documents, room, kind, random)
    for document in documents:
        bounds = pairs.sentences(int(document))
        at = 0
        while at < len(bounds) - 1:
            is_short = random.random() < short_sequence_probability
            wanted = int(random.integers(2, room + 1)) if is_short else room
            end = at + 1
            while end < len(bounds) - 1 and bounds[end] - bounds[at] < wanted:
                end += 1
            at = pairs.add(int(document), bounds, at, end, wanted)
    return pairs.ranges()


class _Pairs:
    """Pairs as they are made; in order and not in order are kept even."""

    def __init__(
        self, corpus: Corpus, documents: np.ndarray, room: int, kind: Pairs, random: np.random.Generator
    ) -> None:
        self.corpus, self.documents, self.room, self.kind, self.random = corpus, documents, room, kind, random
        self.firsts: list[tuple[int, int]] = []
        self.seconds: list[tuple[int, int]] = []
        self.labels: list[int] = []
        self._balance = 0  # pairs in order less those that are not

    def sentences(self, document: int) -> list[int]:
        """Where the sentences of a document begin, and its end."""
        start, end = self.corpus.documents[document : document + 2]
        begins = np.flatnonzero(self.corpus.flags[start:end] & BEGINS_SENTENCE) + start
        return [*begins.tolist(), int(end)]

    def add(self, document: int, bounds: list[int], at: int, end: int, wanted: int) -> int:
        """Make a pair of the sentences `at` … `end`; return the sentence to go on with."""
        middle = int(self.random.integers(at + 1, end)) if end - at > 1 else end
        in_order = self._balance < 0 or (self._balance == 0 and self.random.random() < 0.5)
        first = (bounds[at], bounds[middle])
        if self.kind == "sentence_order":
            second = (bounds[middle], bounds[end])
            if middle == end:  # a single sentence is cut in two
                half = (bounds[at] + bounds[end]) // 2
                first, second = (bounds[at], half), (half, bounds[end])
            self._keep(*((first, second) if in_order else (second, first)), in_order)
            return end
        if in_order and middle < end:
            self._keep(first, (bounds[middle], bounds[end]), in_order=True)
            return end
        self._keep(first, self._elsewhere(document, wanted - (first[1] - first[0])), in_order=False)
        return middle

    def _elsewhere(self, document: int, wanted: int) -> tuple[int, int]:
        """Sentences of another document, from a random one on: one at least, and until they have `wanted` tokens.

        They are cut by `_keep` alone, as texts in order are, or the cut would tell the two kinds apart.
        """
        other = document
        while other == document:
            other = int(self.random.choice(self.documents))
        bounds = self.sentences(other)
        at = int(self.random.integers(len(bounds) - 1))
        end = at + 1
        while end < len(bounds) - 1 and bounds[end] - bounds[at] < wanted:
            end += 1
        return bounds[at], bounds[end]

    def _keep(self, first: tuple[int, int], second: tuple[int, int], in_order: bool) -> None:
        """Cut the longer text, at its front or its end by chance, until both fit; keep the pair."""
        texts = [list(first), list(second)]
        while (over := sum(end - start for start, end in texts) - self.room) > 0:
            longer = max(texts, key=lambda text: text[1] - text[0])
            shorter = min(texts, key=lambda text: text[1] - text[0])
            length = longer[1] - longer[0]
            difference = length - (shorter[1] - shorter[0])
            cut = max(1, min(over, max(difference, over // 2), length - 1))
            front = int(self.random.binomial(cut, 0.5))
            longer[0] += front
            longer[1] -= cut - front
        self.firsts.append((texts[0][0], texts[0][1]))
        self.seconds.append((texts[1][0], texts[1][1]))
        self.labels.append(IN_ORDER if in_order else NOT_IN_ORDER)
        self._balance += 1 if in_order else -1

    def ranges(self) -> Ranges:
        """All pairs."""
        firsts, seconds = (np.asarray(texts, dtype=np.int64).reshape(-1, 2) for texts in (self.firsts, self.seconds))
        return Ranges(firsts, seconds, np.asarray(self.labels, dtype=np.int64))
