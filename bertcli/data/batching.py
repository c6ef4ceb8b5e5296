"""Batch sampling: pure functions from lengths and a seed to batches of row indices.

The training order depends on (seed, epoch) alone, so a resumed run finds its position without replaying steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from bertcli.data.encoding import Encoded

if TYPE_CHECKING:
    import torch

POOL_BATCHES = 100  # batches whose rows are sorted by length together
CUTOFF_SALT = 4  # makes token cutoff independent of the row order, which uses the same seed
BALANCE_SALT = 6  # likewise for over-sampling


class Batchable(Protocol):
    """A sequence of items that can be collated into batches: encoded rows, or examples of a pretraining objective."""

    @property
    def num_tokens(self) -> np.ndarray:
        """Number of tokens in each item. [N]"""

    def batch(self, items: np.ndarray, multiple_of: int = 1) -> dict[str, torch.Tensor]:
        """Collate the given items into padded tensors."""


@dataclass(frozen=True)
class GlobalBatch:
    """One optimizer step's items: the micro-batches of this process, and counts for normalizing the loss."""

    micro_batches: list[dict[str, torch.Tensor]]
    num_examples: int  # over all processes
    num_targets: dict[str, int]  # over all processes: the divisor of the summed loss, by kind of target
    num_tokens: int  # real tokens of this process
    num_padded_tokens: int  # tokens processed by this process, padding included
    num_dummy_batches: int = 0  # trailing micro-batches to ignore in the loss: other processes have more items

    def split(self, max_items: int) -> GlobalBatch:
        """Return the same batch with at most `max_items` items per micro-batch."""
        micro_batches: list[dict[str, torch.Tensor]] = []
        for micro in self.micro_batches:
            starts = range(0, len(micro["input_ids"]), max_items)
            micro_batches += [
                {name: tensor[start : start + max_items] for name, tensor in micro.items()} for start in starts
            ]
        return replace(self, micro_batches=micro_batches)


def length_grouped_batches(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int, shard: int = 0
) -> list[np.ndarray]:
    """Return every row once, in batches of `batch_size` rows of similar length, in random order.

    Rows are shuffled, sorted by length within pools of `POOL_BATCHES` batches and cut into batches, which are shuffled
    again: batches stay random, but contain almost no padding. One of the batches may be smaller.
    """
    random = np.random.default_rng((seed, epoch, shard) if shard else (seed, epoch))
    order = random.permutation(len(lengths))
    pool_size = batch_size * POOL_BATCHES
    batches: list[np.ndarray] = []
    for start in range(0, len(order), pool_size):
        pool = order[start : start + pool_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[first : first + batch_size] for first in range(0, len(pool), batch_size)]
    return [batches[index] for index in random.permutation(len(batches))]


def balanced_items(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return the items of an epoch in which every label is as frequent as the most frequent one in the data.

    Each item of a label is repeated equally often; the rest is sampled without replacement, anew in each epoch.

    Args:
        labels: the label id of each item. [N]
    """
    random = np.random.default_rng((seed, epoch, BALANCE_SALT))
    items: list[np.ndarray] = []
    _, counts = np.unique(labels, return_counts=True)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        num_repeats, num_sampled = divmod(int(counts.max()), len(members))
        items += [np.tile(members, num_repeats), random.permutation(members)[:num_sampled]]
    return np.concatenate(items)


def num_balanced_items(labels: np.ndarray) -> int:
    """Return the number of `balanced_items` of an epoch, given the label id of each item. [N]"""
    _, counts = np.unique(labels, return_counts=True)
    return len(counts) * int(counts.max())


def token_budget_batches(lengths: np.ndarray, max_tokens: int, *, same_length: bool = False) -> Iterator[np.ndarray]:
    """Yield every row once, longest first, in batches of at most `max_tokens` padded tokens (but at least one row).

    Args:
        same_length: require all rows of a batch to have the same length, so that the batch needs no padding.
    """
    order = np.argsort(-lengths, kind="stable")
    num_up_to = np.searchsorted(-lengths[order], -lengths[order], side="right")  # number of rows at least as long
    start = 0
    while start < len(order):
        num_rows = max(1, max_tokens // max(1, int(lengths[order[start]])))
        if same_length:
            num_rows = min(num_rows, int(num_up_to[start]) - start)
        yield order[start : start + num_rows]
        start += num_rows


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
    balance: bool = False,
) -> Iterator[GlobalBatch]:
    """Yield one process's batches for steps `start_step` to `total_steps` - 1.

    Args:
        balance: over-sample items so that all labels are equally frequent (`balanced_items`).
    """
    num_items = num_balanced_items(_item_labels(encoded)) if balance else len(encoded)
    steps_per_epoch = -(-num_items // global_batch_size)
    num_targets = encoded.num_targets
    teacher = {"teacher_logits": encoded.teacher_logits, "teacher_states": encoded.teacher_states}
    kinds = ["labels", *(kind for kind, values in teacher.items() if values is not None)]
    for epoch in range(start_step // steps_per_epoch, -(-total_steps // steps_per_epoch)):
        first_step = epoch * steps_per_epoch
        items = balanced_items(_item_labels(encoded), seed, epoch) if balance else np.arange(len(encoded))
        batches = length_grouped_batches(encoded.lengths[items], global_batch_size, seed, epoch)
        for batch in batches[max(0, start_step - first_step) : total_steps - first_step]:
            yield build_global_batch(
                encoded,
                items[batch],
                # A batch without labeled tokens has no targets; avoid dividing by 0.
                dict.fromkeys(kinds, max(1, int(num_targets[items[batch]].sum()))),
                micro_batch_size=micro_batch_size,
                process=process,
                num_processes=num_processes,
                multiple_of=multiple_of,
            )


def _item_labels(encoded: Encoded) -> np.ndarray:
    assert encoded.labels is not None
    return encoded.labels


def apply_token_cutoff(
    batches: Iterable[GlobalBatch], cutoff: float, seed: int, start_step: int, process: int = 0, kept_position: int = 0
) -> Iterator[GlobalBatch]:
    """Mask out a random fraction `cutoff` of the tokens in each batch, never those at `kept_position`.

    The mask depends on (seed, step, process) alone. Token cutoff: Shen et al. 2020, https://arxiv.org/abs/2009.13818.
    """
    import torch

    for step, batch in enumerate(batches, start=start_step):
        random = np.random.default_rng((seed, step, CUTOFF_SALT, process))
        for micro in batch.micro_batches:
            mask = micro["attention_mask"]
            kept = torch.from_numpy(random.random(tuple(mask.shape)) >= cutoff)
            kept[..., kept_position] = True
            micro["attention_mask"] = mask * kept
        yield batch


def build_global_batch(
    dataset: Batchable,
    items: np.ndarray,
    num_targets: dict[str, int],
    *,
    micro_batch_size: int,
    process: int,
    num_processes: int,
    multiple_of: int,
) -> GlobalBatch:
    """Collate one process's share of `items` into micro-batches."""
    local_items = np.array_split(items, num_processes)[process]
    num_batches = -(-len(items) // (num_processes * micro_batch_size))  # the same on every process
    parts = [part for part in np.array_split(local_items, num_batches) if len(part)]
    num_dummy = num_batches - len(parts)
    micro_batches = [dataset.batch(part, multiple_of) for part in [*parts, *[items[:1]] * num_dummy]]
    return GlobalBatch(
        micro_batches=micro_batches,
        num_examples=len(items),
        num_targets=num_targets,
        num_tokens=int(dataset.num_tokens[local_items].sum()),
        num_padded_tokens=sum(micro["input_ids"].numel() for micro in micro_batches[: len(parts)]),
        num_dummy_batches=num_dummy,
    )
