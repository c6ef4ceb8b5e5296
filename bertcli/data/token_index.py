"""Which tokens of a padded batch are computed and read, worked out before it goes to the device.

Where they are given, the device is not asked which they are, which would mean to wait for it. Shapes: B rows of a
batch, S places in each, D sequences in them (D > B if rows are packed), T tokens that are computed, M that are read at
the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import torch

WORTH_GATHERING = 0.9  # on a CPU, batches with a larger share of real tokens are as fast with their padding
SIZES_AN_OCTAVE = 16  # of numbers of tokens on a CPU, whose library compiles bf16 products for each anew
Reading = Literal["all", "first", "asked"]
"""The tokens whose last hidden state a model's head reads: all, each sequence's first, or those marked `asked`."""


@dataclass(frozen=True)
class Gathered:
    """Some tokens of a batch, sequence after sequence. n tokens, the longest sequence has L of them.

    Behind them f places of padding may follow, which are computed along and belong to no sequence.
    """

    places: torch.Tensor  # [n + f] where each stands among all: in the flattened batch [B * S], or among the T computed
    starts: torch.Tensor  # [D + 1] int32: where each sequence begins among them, and the end of the last
    within: torch.Tensor  # [n] where each stands in a table of the sequences [D * L]
    longest: int  # L

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Gathered:
        """The same on a device, as a tensor goes there."""
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Gathered:
        """The same where a GPU can fetch it by itself, as a tensor goes there."""
        return self._each(lambda part: part.pin_memory())

    def _each(self, made: Callable[[torch.Tensor], torch.Tensor]) -> Gathered:
        return Gathered(made(self.places), made(self.starts), made(self.within), self.longest)


def gather(
    places: np.ndarray, sequences: np.ndarray, num_sequences: int, padding: np.ndarray | None = None
) -> Gathered:
    """The tokens at the `places` [n], each of a sequence with a number below `num_sequences`, in ascending order.

    Args:
        padding: places to compute along [f].
    """
    import torch

    counts = np.bincount(sequences, minlength=num_sequences)
    starts = np.concatenate(([0], np.cumsum(counts)))
    longest = max(1, int(counts.max()))
    within = np.arange(len(places)) - starts[sequences] + sequences * longest
    if padding is not None:
        places = np.concatenate((places, padding))
    return Gathered(
        torch.from_numpy(places), torch.from_numpy(starts.astype(np.int32)), torch.from_numpy(within), longest
    )


def with_layout(batch: dict[str, Any], reading: Reading, *, on_cpu: bool) -> dict[str, Any]:
    """A batch for a padding-free model: `computed` and `read` are there where they save arithmetic, `is_full` if full.

    Args:
        batch: its `attention_mask` [B, S] (or [B, K, S]) is 0 where no token is, else a number that tells a row's
            sequences apart.
    """
    numbers = batch["attention_mask"].numpy()
    numbers = numbers.reshape(-1, numbers.shape[-1])
    is_packed = "position_ids" in batch
    gathers = _is_worth_gathering(numbers, reading, is_packed=is_packed, on_cpu=on_cpu)
    if is_packed and not gathers:
        batch = with_block_mask(batch)
    if not is_packed and numbers.all():
        batch = batch | {"is_full": True}  # or the device would be asked
    if reading == "all" and not gathers:
        return batch
    order, sequences = np.arange(numbers.size), np.repeat(np.arange(len(numbers)), numbers.shape[1])
    if gathers:
        order, sequences = _sequences(numbers)
        padding = np.flatnonzero(numbers.ravel() == 0)[: _filling(len(order))] if on_cpu else None
        batch = batch | {"computed": gather(order, sequences, int(sequences[-1]) + 1, padding)}
    if reading == "all":
        return batch
    if reading == "first":
        is_read = order % numbers.shape[1] == 0
    else:
        is_read = batch["asked"].numpy().ravel()[order]
        batch = {name: value for name, value in batch.items() if name != "asked"}
    read = np.flatnonzero(is_read)
    return batch | {"read": gather(read, sequences[read], int(sequences[-1]) + 1)}


def with_block_mask(batch: dict[str, Any]) -> dict[str, Any]:
    """A packed batch, its sequence numbers [B, S] made a mask [B, 1, S, S] of who may see whom."""
    numbers = batch["attention_mask"]
    # Padding sees padding: a place that sees nothing has no softmax.
    return batch | {"attention_mask": (numbers[:, :, None] == numbers[:, None, :])[:, None]}


def _is_worth_gathering(numbers: np.ndarray, reading: Reading, *, is_packed: bool, on_cpu: bool) -> bool:
    num_real = int(np.count_nonzero(numbers))
    if is_packed:  # on a CPU a mask costs less than a table of all the sequences in rows that are full anyway
        return not on_cpu
    if num_real == numbers.size or (on_cpu and num_real > WORTH_GATHERING * numbers.size):
        return False
    # A token hidden from attention is only left out if nobody reads it either.
    return reading == "first" or not (numbers[:, 1:] > numbers[:, :-1]).any()


def _filling(number: int) -> int:
    """How many tokens `number` lacks to be one of `SIZES_AN_OCTAVE` numbers between two powers of two."""
    return -number % max(1, 2 ** (number.bit_length() - 1) // SIZES_AN_OCTAVE)


def _sequences(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of the real tokens in the flattened batch, and the number of the sequence of each. [T]"""
    flat = numbers.ravel()
    places = np.flatnonzero(flat)
    begins = (np.diff(places // numbers.shape[1]) != 0) | (np.diff(flat[places]) != 0)
    return places, np.concatenate(([0], np.cumsum(begins)))
