"""Batches of a pretraining run, as a stream over epochs, shards and phases; targets are resampled in every epoch.

Everything is a function of (seed, epoch, step), so a resumed run builds only the shards from its position on.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from bertcli.data.batching import GlobalBatch, build_global_batch, length_grouped_batches
from bertcli.data.corpus_sequences import (
    SequenceSpans,
    build_sentence_pairs,
    chunk_documents,
    sample_epoch_documents,
    split_into_shards,
)
from bertcli.data.corpus_tokens import WORD_START, Corpus
from bertcli.data.packing import pack_sequences
from bertcli.pretraining.objective import Objective, TargetSequences, Text, TokenTargets
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.training.meters import RunClock

SHARD_TOKENS = 2**25  # approximate maximum number of tokens in a shard; two shards are in memory at a time
PAIRS_SALT, MASK_SALT, SHARDS_SALT = 1, 2, 3  # make the random numbers of different purposes independent


StreamPosition = tuple[int, int, int]
"""Epoch, index of the shard in the epoch, and the first step of the shard."""


@dataclass(frozen=True)
class ResolvedPhase:
    """A phase of the recipe with its derived numbers."""

    start_step: int  # not used with a time budget
    end_share: float  # share of the run completed when the phase ends
    max_length: int
    global_batch_size: int
    has_time_budget: bool = False


@dataclass(frozen=True)
class Shard:
    """The sequences of one part of an epoch, their packing into rows, and the rows of each batch."""

    spans: SequenceSpans
    packed_rows: list[np.ndarray] | None  # indices of the sequences in each row; None: one sequence per row
    batches: list[np.ndarray]


class BatchStream:
    """The stream of training batches of a corpus.

    Args:
        documents: indices of the training documents.
        first_position_id: position id of a sequence's first token if sequences are packed; None: not packed.

    Attributes:
        position: position of the newest batch.
    """

    def __init__(
        self,
        recipe: PretrainRecipe,
        corpus: Corpus,
        documents: np.ndarray,
        objective: Objective,
        seed: int,
        first_position_id: int | None = None,
    ):
        self.recipe, self.corpus, self.documents, self.objective = recipe, corpus, documents, objective
        self.seed, self.first_position_id = seed, first_position_id
        self.position: StreamPosition = (0, 0, 0)

    def batches(
        self,
        phase: ResolvedPhase,
        start_step: int,
        clock: RunClock,
        micro_batch_size: int,
        process: int,
        num_processes: int,
        multiple_of: int,
        position: StreamPosition | None = None,
    ) -> Iterator[GlobalBatch]:
        """Yield one process's batches of a phase, from `start_step` until the clock has reached the phase's end.

        With a time budget, the first step of a phase depends on speed, so a resumed run reshuffles the corpus.

        Args:
            position: `self.position` at an earlier step of this phase; None: count shards from the start of the phase.
        """
        if clock.share(start_step) >= phase.end_share:
            return
        for shard_position, shard in _prefetch(self._shards(phase, start_step, position)):
            self.position = shard_position
            _, _, first_step = shard_position
            for step, rows in enumerate(shard.batches, start=first_step):
                if step < start_step:
                    continue
                if clock.share(step) >= phase.end_share:
                    return
                targets = self._build_targets(shard, rows, step)
                yield build_global_batch(
                    targets,
                    np.arange(len(rows)),
                    targets.num_targets,
                    micro_batch_size=micro_batch_size,
                    process=process,
                    num_processes=num_processes,
                    multiple_of=multiple_of,
                )

    def _shards(
        self, phase: ResolvedPhase, start_step: int, position: StreamPosition | None
    ) -> Iterator[tuple[StreamPosition, Shard]]:
        """Yield the shards of a phase with their positions, epoch after epoch, starting at `start_step`."""
        epoch, first_shard, step = position or (0, 0, phase.start_step)
        if phase.has_time_budget:  # seed the order with the step instead of the epoch
            epoch, first_shard, step = start_step, 0, start_step
        while True:
            for index, documents in enumerate(self._epoch_shards(epoch)):
                if index < first_shard:
                    continue
                num_batches = self._num_batches(documents, phase) if step < start_step else None
                if num_batches is not None and step + num_batches <= start_step:
                    step += num_batches
                    continue
                shard = self.build_shard(documents, phase, epoch, index)
                yield (epoch, index, step), shard
                step += len(shard.batches)
            epoch, first_shard = epoch + 1, 0

    def _epoch_shards(self, epoch: int) -> Iterator[np.ndarray]:
        """Yield the documents of each shard of an epoch."""
        random = np.random.default_rng((self.seed, epoch, SHARDS_SALT))
        documents = sample_epoch_documents(self.corpus, self.documents, self.recipe.corpus.sources, random)
        yield from split_into_shards(self.corpus, documents, SHARD_TOKENS, random)

    def _num_batches(self, documents: np.ndarray, phase: ResolvedPhase) -> int | None:
        """Return the number of batches in a shard of these documents; None if the shard must be built to know."""
        if self.first_position_id is not None or self.recipe.objective.pairs is not None:
            return None
        max_tokens = self.objective.max_text_tokens(phase.max_length)
        num_sequences = int((-(-self.corpus.document_lengths(documents) // max_tokens)).sum())
        return -(-num_sequences // phase.global_batch_size)

    def build_shard(self, documents: np.ndarray, phase: ResolvedPhase, epoch: int, index: int) -> Shard:
        """Build the sequences of a shard's documents, pack them if enabled, and divide them into batches."""
        max_length, batch_size = phase.max_length, phase.global_batch_size
        random = np.random.default_rng((self.seed, epoch, PAIRS_SALT, index))
        spans = build_sequences(self.recipe, self.corpus, documents, self.objective, max_length, random)
        if self.first_position_id is None:
            return Shard(spans, None, length_grouped_batches(spans.lengths, batch_size, self.seed, epoch, index))
        rows = pack_sequences(_lengths_with_special_tokens(spans, self.objective, max_length), max_length)
        order = random.permutation(len(rows))
        return Shard(spans, rows, [order[start : start + batch_size] for start in range(0, len(rows), batch_size)])

    def _build_targets(self, shard: Shard, rows: np.ndarray, step: int) -> TargetSequences:
        """Build inputs and targets of a step from rows of a shard."""
        random = np.random.default_rng((self.seed, step, MASK_SALT))
        if shard.packed_rows is None or self.first_position_id is None:
            return self.objective.build_targets(read_texts(self.corpus, shard.spans, rows), random)
        packed = [shard.packed_rows[row] for row in rows]
        targets = self.objective.build_targets(read_texts(self.corpus, shard.spans, np.concatenate(packed)), random)
        ends = np.cumsum([len(row) for row in packed])
        assert isinstance(targets, TokenTargets), "the recipe allows packing only with token targets"
        return targets.packed(np.split(np.arange(ends[-1]), ends[:-1]), self.first_position_id)


def _prefetch(shards: Iterator[tuple[StreamPosition, Shard]]) -> Iterator[tuple[StreamPosition, Shard]]:
    """Build each shard in a thread while the previous one is in use, because building takes seconds."""
    pool = ThreadPoolExecutor(1)
    try:
        upcoming = pool.submit(next, shards)
        while True:
            shard = upcoming.result()
            upcoming = pool.submit(next, shards)
            yield shard
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def packing_efficiency(
    recipe: PretrainRecipe, corpus: Corpus, documents: np.ndarray, objective: Objective, max_length: int
) -> float:
    """Return the share of non-padding tokens in packed rows, measured on one shard of the documents."""
    documents = next(split_into_shards(corpus, documents, SHARD_TOKENS, np.random.default_rng(0)))
    spans = build_sequences(recipe, corpus, documents, objective, max_length, np.random.default_rng(0))
    lengths = _lengths_with_special_tokens(spans, objective, max_length)
    return float(lengths.sum() / (len(pack_sequences(lengths, max_length)) * max_length))


def _lengths_with_special_tokens(spans: SequenceSpans, objective: Objective, max_length: int) -> np.ndarray:
    return spans.lengths + (max_length - objective.max_text_tokens(max_length))


def build_sequences(
    recipe: PretrainRecipe,
    corpus: Corpus,
    documents: np.ndarray,
    objective: Objective,
    max_length: int,
    random: np.random.Generator,
) -> SequenceSpans:
    """Build the sequences of some documents: chunks of single documents or, with `objective.pairs`, sentence pairs."""
    max_tokens, section = objective.max_text_tokens(max_length), recipe.objective
    if section.pairs is None:
        return chunk_documents(corpus, documents, max_tokens)
    return build_sentence_pairs(corpus, documents, max_tokens, section.pairs, section.short_seq_prob, random)


def read_texts(corpus: Corpus, spans: SequenceSpans, indices: np.ndarray) -> list[Text]:
    """Read the sequences with these indices from the corpus."""

    def read(span: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tokens = slice(*span.tolist())
        return corpus.tokens[tokens].astype(np.int32), (corpus.flags[tokens] & WORD_START) > 0

    labels = spans.pair_labels
    return [
        Text(*read(spans.first[index]), *read(spans.second[index]), None if labels is None else int(labels[index]))
        for index in indices
    ]
