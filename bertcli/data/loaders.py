"""Which examples go together: pure functions from lengths and a seed to batches of row numbers.

Training order is a function of (seed, epoch) alone, so a resumed run finds its place without replaying anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bertcli.data.encoding import Encoded

if TYPE_CHECKING:
    import torch

POOL_BATCHES = 100
CUTOFF_SALT = 4  # so that this choice draws other numbers than the order of the rows does


@dataclass(frozen=True)
class GlobalBatch:
    """All items of one optimiser step, in the micro-batches this process computes."""

    micro_batches: list[dict[str, torch.Tensor]]
    num_examples: int  # over all processes
    num_targets: dict[str, int]  # over all processes: what the summed loss of each kind of target is divided by
    num_tokens: int  # real tokens of this process
    num_padded_tokens: int  # tokens computed by this process, padding included


def length_grouped_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Every row once, in batches of `batch_size` rows of like length, in random order.

    Rows are shuffled, sorted by length within pools of `POOL_BATCHES` batches, cut into batches, and the batches
    are shuffled: chance still decides which rows meet and when, while padding nearly vanishes. The last batch of
    the shuffled rows may be smaller.
    """
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(lengths))
    pool_size = batch_size * POOL_BATCHES
    batches: list[np.ndarray] = []
    for start in range(0, len(order), pool_size):
        pool = order[start : start + pool_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
    return [batches[at] for at in random.permutation(len(batches))]


def token_budget_batches(lengths: np.ndarray, max_tokens: int) -> Iterator[np.ndarray]:
    """Every row once, longest first, in batches of at most `max_tokens` padded tokens (one row at least)."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        rows_that_fit = max(1, max_tokens // max(1, int(lengths[order[start]])))
        yield order[start : start + rows_that_fit]
        start += rows_that_fit


def training_batches(
    encoded: Encoded,
    *,
    global_batch_size: int,
    micro_batch_size: int,
    seed: int,
    start_step: int,
    total_steps: int,
    process: int = 0,
    num_processes: int = 1,
    multiple_of: int = 1,
) -> Iterator[GlobalBatch]:
    """The batches of steps `start_step` … `total_steps` - 1, as one process sees them."""
    steps_per_epoch = -(-len(encoded) // global_batch_size)
    num_targets = encoded.num_targets
    for epoch in range(start_step // steps_per_epoch, -(-total_steps // steps_per_epoch)):
        first = epoch * steps_per_epoch
        batches = length_grouped_batches(encoded.lengths, global_batch_size, seed, epoch)
        for rows in batches[max(0, start_step - first) : total_steps - first]:
            own = np.array_split(rows, num_processes)[process]
            yield _global_batch(encoded, own, len(rows), int(num_targets[rows].sum()), micro_batch_size, multiple_of)


def cut_off_tokens(
    batches: Iterable[GlobalBatch], share: float, seed: int, start_step: int, process: int = 0
) -> Iterator[GlobalBatch]:
    """The batches with a share of their tokens, never a sequence's first, hidden from attention by chance.

    What is hidden is a function of (seed, step). Token cutoff: Shen et al. 2020, https://arxiv.org/abs/2009.13818.
    """
    import torch

    for step, batch in enumerate(batches, start=start_step):
        random = np.random.default_rng((seed, step, CUTOFF_SALT, process))
        for micro in batch.micro_batches:
            mask = micro["attention_mask"]
            kept = torch.from_numpy(random.random(tuple(mask.shape)) >= share)
            kept[..., 0] = True
            micro["attention_mask"] = mask * kept
        yield batch


def _global_batch(
    encoded: Encoded, rows: np.ndarray, num_examples: int, num_targets: int, micro_batch_size: int, multiple_of: int
) -> GlobalBatch:
    parts: Sequence[np.ndarray] = [rows[at : at + micro_batch_size] for at in range(0, len(rows), micro_batch_size)]
    micro_batches = [encoded.batch(part, multiple_of) for part in parts]
    return GlobalBatch(
        micro_batches=micro_batches,
        num_examples=num_examples,
        num_targets={"labels": max(1, num_targets)},  # windows without a labelled word have nothing to divide
        num_tokens=int(encoded.sizes[rows].sum()),
        num_padded_tokens=sum(micro["input_ids"].numel() for micro in micro_batches),
    )
