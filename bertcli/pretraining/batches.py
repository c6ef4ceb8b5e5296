"""Batches of a pretraining run: which sequences meet at a step, asked about afresh in every epoch.

All of it is a function of (seed, epoch, step). A resumed run that knows its place makes no earlier block again.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from bertcli.data.batching import GlobalBatch, global_batch, length_grouped_batches
from bertcli.data.corpus_sequences import Ranges, cut_documents, documents_of_epoch, in_blocks, pair_documents
from bertcli.data.corpus_tokens import BEGINS_WORD, Corpus
from bertcli.data.packing import pack
from bertcli.pretraining.objective import Asked, AskedTokens, Objective, Text
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.training.meters import Clock

TOKENS_AT_ONCE = 2**25  # of a block, about
PAIRS_SALT, MASK_SALT, BLOCKS_SALT = 1, 2, 3  # so that choices of different kinds draw different numbers


Place = tuple[int, int, int]
"""The epoch, the number of a block in it, and the step the block begins with."""


@dataclass(frozen=True)
class Stage:
    """A phase with its numbers worked out."""

    start_step: int  # if the run goes by its steps
    end_share: float  # of the run
    max_length: int
    global_batch_size: int
    by_the_clock: bool = False


@dataclass(frozen=True)
class Block:
    """The sequences of a part of an epoch, the rows they are packed in, and the rows of each batch."""

    ranges: Ranges
    packed: list[np.ndarray] | None  # the sequences of each row; None: each is a row of its own
    batches: list[np.ndarray]


class Feed:
    """The training sequences of a corpus, epoch by epoch, block by block: of two blocks at a time they are in memory.

    Args:
        first_position: None: one sequence a row; else sequences are packed, and positions counted from this number.
    """

    def __init__(
        self,
        recipe: PretrainRecipe,
        corpus: Corpus,
        train: np.ndarray,
        objective: Objective,
        seed: int,
        first_position: int | None = None,
    ):
        self.recipe, self.corpus, self.train, self.objective, self.seed = recipe, corpus, train, objective, seed
        self.first_position = first_position
        self.place: Place = (0, 0, 0)  # of the newest batch

    def _documents(self, epoch: int) -> Iterator[np.ndarray]:
        """The documents of each block of an epoch."""
        random = np.random.default_rng((self.seed, epoch, BLOCKS_SALT))
        documents = documents_of_epoch(self.corpus, self.train, self.recipe.corpus.sources, random)
        yield from in_blocks(self.corpus, documents, TOKENS_AT_ONCE, random)

    def _block(self, documents: np.ndarray, stage: Stage, epoch: int, number: int) -> Block:
        """The sequences of some documents and how they are put together."""
        max_length, batch_size = stage.max_length, stage.global_batch_size
        random = np.random.default_rng((self.seed, epoch, PAIRS_SALT, number))
        ranges = ranges_of(self.recipe, self.corpus, documents, self.objective, max_length, random)
        if self.first_position is None:
            return Block(ranges, None, length_grouped_batches(ranges.lengths, batch_size, self.seed, epoch, number))
        rows = pack(ranges.lengths + (max_length - self.objective.room(max_length)), max_length)
        order = random.permutation(len(rows))
        return Block(ranges, rows, [order[at : at + batch_size] for at in range(0, len(rows), batch_size)])

    def _num_batches(self, documents: np.ndarray, stage: Stage) -> int | None:
        """How many batches a block of these documents has; None if only making it tells."""
        if self.first_position is not None or self.recipe.objective.pairs is not None:
            return None
        room = self.objective.room(stage.max_length)
        num_sequences = int((-(-self.corpus.lengths_of(documents) // room)).sum())
        return -(-num_sequences // stage.global_batch_size)

    def batches(
        self,
        stage: Stage,
        start_step: int,
        clock: Clock,
        micro_batch_size: int,
        process: int,
        num_processes: int,
        multiple_of: int,
        place: Place | None = None,
    ) -> Iterator[GlobalBatch]:
        """The batches of the stage from `start_step` on, as one process sees them, until its share is done.

        Where time counts, nobody knows at which step a stage began: a run that goes on draws a new order.

        Args:
            place: what `place` was at some step of this stage before; None: blocks are counted from its beginning.
        """
        if clock.share(start_step) >= stage.end_share:
            return
        for (epoch, at, number), block in _ahead(self._blocks(stage, start_step, place)):
            self.place = (epoch, at, number)
            for step, rows in enumerate(block.batches, start=number):
                if step < start_step:
                    continue
                if clock.share(step) >= stage.end_share:
                    return
                asked = self._ask(block, rows, step)
                yield global_batch(
                    asked,
                    np.arange(len(rows)),
                    asked.counts,
                    micro_batch_size=micro_batch_size,
                    process=process,
                    num_processes=num_processes,
                    multiple_of=multiple_of,
                )

    def _blocks(self, stage: Stage, start_step: int, place: Place | None) -> Iterator[tuple[Place, Block]]:
        """The stage's blocks and their places, epoch after epoch without end, from the one with `start_step` on."""
        epoch, first_block, number = place or (0, 0, stage.start_step)
        if stage.by_the_clock:
            epoch, first_block, number = start_step, 0, start_step
        while True:
            for at, documents in enumerate(self._documents(epoch)):
                if at < first_block:
                    continue
                skipped = self._num_batches(documents, stage) if number < start_step else None
                if skipped is not None and number + skipped <= start_step:
                    number += skipped
                    continue
                block = self._block(documents, stage, epoch, at)
                yield (epoch, at, number), block
                number += len(block.batches)
            epoch, first_block = epoch + 1, 0

    def _ask(self, block: Block, rows: np.ndarray, number: int) -> Asked:
        """The questions of step `number` about the sequences in rows of a block."""
        random = np.random.default_rng((self.seed, number, MASK_SALT))
        if block.packed is None or self.first_position is None:
            return self.objective.ask(texts_of(self.corpus, block.ranges, rows), random)
        packed = [block.packed[row] for row in rows]
        asked = self.objective.ask(texts_of(self.corpus, block.ranges, np.concatenate(packed)), random)
        ends = np.cumsum([len(row) for row in packed])
        assert isinstance(asked, AskedTokens), "a recipe has packing for masked tokens alone"
        return asked.packed(np.split(np.arange(ends[-1]), ends[:-1]), self.first_position)


def _ahead(blocks: Iterator[tuple[Place, Block]]) -> Iterator[tuple[Place, Block]]:
    """The same blocks, each made while the one before is in use: it takes seconds that a GPU need not wait."""
    pool = ThreadPoolExecutor(1)
    try:
        coming = pool.submit(next, blocks)
        while True:
            block = coming.result()
            coming = pool.submit(next, blocks)
            yield block
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def packing_efficiency(
    recipe: PretrainRecipe, corpus: Corpus, documents: np.ndarray, objective: Objective, max_length: int
) -> float:
    """The share of the places that packed rows fill, special tokens included, seen on a block of these documents."""
    documents = next(in_blocks(corpus, documents, TOKENS_AT_ONCE, np.random.default_rng(0)))
    ranges = ranges_of(recipe, corpus, documents, objective, max_length, np.random.default_rng(0))
    lengths = ranges.lengths + (max_length - objective.room(max_length))
    return float(lengths.sum() / (len(pack(lengths, max_length)) * max_length))


def ranges_of(
    recipe: PretrainRecipe,
    corpus: Corpus,
    documents: np.ndarray,
    objective: Objective,
    max_length: int,
    random: np.random.Generator,
) -> Ranges:
    """The sequences of some documents as the recipe's objective wants them."""
    room, section = objective.room(max_length), recipe.objective
    if section.pairs is None:
        return cut_documents(corpus, documents, room)
    return pair_documents(corpus, documents, room, section.pairs, section.short_sequence_probability, random)


def texts_of(corpus: Corpus, ranges: Ranges, rows: np.ndarray) -> list[Text]:
    """The sequences `rows`, read from the corpus."""

    def read(place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        part = slice(*place.tolist())
        return corpus.tokens[part].astype(np.int32), (corpus.flags[part] & BEGINS_WORD) > 0

    labels = ranges.pair_labels
    return [
        Text(*read(ranges.first[row]), *read(ranges.second[row]), None if labels is None else int(labels[row]))
        for row in rows
    ]
