"""Which examples go together: pure functions from lengths and a seed to batches of row numbers.

Training order is a function of (seed, epoch) alone, so a resumed run finds its place without replaying anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from bertcli.data.encoding import Encoded

if TYPE_CHECKING:
    import torch

POOL_BATCHES = 100
CUTOFF_SALT = 4  # so that this choice draws other numbers than the order of the rows does


class Batchable(Protocol):
    """Items that batches are made of: encoded rows, or whatever pretraining asks."""

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each item. [N]"""

    def batch(self, items: np.ndarray, multiple_of: int = 1) -> dict[str, torch.Tensor]:
        """Some items as padded tensors."""


@dataclass(frozen=True)
class GlobalBatch:
    """All items of one optimiser step, in the micro-batches this process computes."""

    micro_batches: list[dict[str, torch.Tensor]]
    num_examples: int  # over all processes
    num_targets: dict[str, int]  # over all processes: what the summed loss of each kind of target is divided by
    num_tokens: int  # real tokens of this process
    num_padded_tokens: int  # tokens computed by this process, padding included
    stand_ins: int = 0  # last micro-batches whose loss counts nothing: this process has fewer items than another

    def divided(self, most: int) -> GlobalBatch:
        """The same with at most `most` items in a micro-batch."""
        parts: list[dict[str, torch.Tensor]] = []
        for micro in self.micro_batches:
            rows = len(micro["input_ids"])
            parts += [{name: part[at : at + most] for name, part in micro.items()} for at in range(0, rows, most)]
        return replace(self, micro_batches=parts)


def length_grouped_batches(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int, block: int = 0
) -> list[np.ndarray]:
    """Every row once, in batches of `batch_size` rows of like length, in random order.

    Rows are shuffled, sorted by length within pools of `POOL_BATCHES` batches, cut into batches, and the batches
    are shuffled: chance still decides which rows meet and when, while padding nearly vanishes. The last batch of
    the shuffled rows may be smaller.
    """
    random = np.random.default_rng((seed, epoch, block) if block else (seed, epoch))
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
    taught = {"teacher_logits": encoded.teacher_logits, "teacher_states": encoded.teacher_states}
    kinds = ["labels", *(kind for kind, values in taught.items() if values is not None)]
    for epoch in range(start_step // steps_per_epoch, -(-total_steps // steps_per_epoch)):
        first = epoch * steps_per_epoch
        batches = length_grouped_batches(encoded.lengths, global_batch_size, seed, epoch)
        for rows in batches[max(0, start_step - first) : total_steps - first]:
            yield global_batch(
                encoded,
                rows,
                # Where no word is labelled, nothing is divided.
                dict.fromkeys(kinds, max(1, int(num_targets[rows].sum()))),
                micro_batch_size=micro_batch_size,
                process=process,
                num_processes=num_processes,
                multiple_of=multiple_of,
            )


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


def global_batch(
    items: Batchable,
    chosen: np.ndarray,
    num_targets: dict[str, int],
    *,
    micro_batch_size: int,
    process: int,
    num_processes: int,
    multiple_of: int,
) -> GlobalBatch:
    """One process's share of the `chosen` items, in micro-batches."""
    own = np.array_split(chosen, num_processes)[process]
    number = -(-len(chosen) // (num_processes * micro_batch_size))  # every process computes as often as the others
    parts = [part for part in np.array_split(own, number) if len(part)]
    stand_ins = number - len(parts)
    micro_batches = [items.batch(part, multiple_of) for part in [*parts, *[chosen[:1]] * stand_ins]]
    return GlobalBatch(
        micro_batches=micro_batches,
        num_examples=len(chosen),
        num_targets=num_targets,
        num_tokens=int(items.sizes[own].sum()),
        num_padded_tokens=sum(micro["input_ids"].numel() for micro in micro_batches[: len(parts)]),
        stand_ins=stand_ins,
    )
