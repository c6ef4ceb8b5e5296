"""Forward passes over encoded rows without gradients: batches sorted by length, logits in the original order.

Shapes: N items, T tokens in all items, B batch, S sequence, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import ArrayLike

from bertcli.data.batching import token_budget_batches
from bertcli.data.encoding import Encoded
from bertcli.errors import TrainingError
from bertcli.heads.base import Head
from bertcli.models.tokenizer_matching import is_padding_sensitive, min_sequence_length
from bertcli.training.devices import compiles_each_size, pad_to_multiple_of, prepare_batch
from bertcli.training.fsdp import local_batches

if TYPE_CHECKING:
    from datasets import Dataset

MAX_CHUNK_ITEMS = 4096  # bounds the logits that are decoded at once
MAX_KEPT_BYTES = 2**26  # of the logits of a split

Chunk = tuple["Dataset", Encoded, np.ndarray, float]
"""Some rows, their encoded items, the logits [N, C] ([T, C] if the head is per token), and the summed loss."""


def compute_logits(
    accelerator: Accelerator,
    model: torch.nn.Module,
    encoded: Encoded,
    get_logits: Callable[[Any], torch.Tensor],
    *,
    per_token: bool = False,
    get_loss: Callable[[Any, torch.Tensor], torch.Tensor] | None = None,
    max_tokens: int,
    is_shared: bool = True,
    on_batch: Callable[[int], None] = lambda num_items: None,
) -> tuple[np.ndarray, float]:
    """Compute the logits of all items as float32 on the CPU, and their summed loss; each item counts exactly once.

    Args:
        get_logits: returns the logits in a model output: [B, …] or, if `per_token`, [B, S, …].
        get_loss: returns the summed loss of a batch, given the model output and the labels; without either, it is 0.
        max_tokens: maximum tokens per batch on one device, padding included.
        is_shared: divide the batches among all processes, which have the same items; False: every process has others.
        on_batch: called after each batch with its number of items.

    Returns:
        Logits [N, …] or, if `per_token`, [T, …] without padding; and the loss summed over all items.
    """
    model.eval()
    same_length = is_padding_sensitive(model, int(encoded.lengths.max(initial=0)))
    multiple_of = 1 if same_length else pad_to_multiple_of(accelerator)
    min_length = min_sequence_length(model)
    max_tokens = max(1, max_tokens // encoded.num_choices)
    batches = list(token_budget_batches(encoded.lengths, max_tokens, same_length=same_length))
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    losses: list[torch.Tensor] = []
    pending: tuple[np.ndarray, torch.Tensor] | None = None  # computed by the device while the CPU pads the next batch

    def fetch_pending() -> None:
        if pending is not None:
            items, logits = pending
            parts.append((items, logits.cpu().numpy()))
            on_batch(len(items))

    with torch.inference_mode():
        for items, counts in local_batches(batches, accelerator, model) if is_shared else zip(batches, repeat(True)):
            batch = encoded.batch(items, multiple_of if encoded.lengths[items].max() >= min_length else min_length)
            inputs = prepare_batch(batch, model, accelerator.device, round_up=compiles_each_size(accelerator))
            labels = inputs.pop("labels", None)
            with accelerator.autocast():  # Accelerate wraps only whole models in autocast, not submodules
                outputs = model(**inputs)
            if not counts:
                continue
            logits = get_logits(outputs).float()
            if get_loss is not None and labels is not None:
                losses.append(get_loss(outputs, labels))
            if per_token:  # indices come from the mask on the CPU: reading it from the device would synchronize
                token_indices = batch["attention_mask"].flatten().nonzero()[:, 0]
                logits = logits.flatten(0, 1)[token_indices.to(accelerator.device, non_blocking=True)]
            fetch_pending()
            pending = items, logits
        fetch_pending()
    gather = gather_object if is_shared else list
    return _restore_order(encoded, gather(parts), per_token), sum(gather([loss.item() for loss in losses]))


def _restore_order(encoded: Encoded, parts: list[tuple[np.ndarray, np.ndarray]], per_token: bool) -> np.ndarray:
    """Concatenate the logits of all batches in the order of their items (or tokens)."""
    size = len(encoded.input_ids) if per_token else len(encoded)
    logits = np.empty((size, *parts[0][1].shape[1:]), dtype=np.float32)
    for items, values in parts:
        if not per_token:
            logits[items] = values
            continue
        lengths = encoded.lengths[items]
        ends = np.cumsum(lengths)
        positions = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        logits[np.repeat(encoded.offsets[items], lengths) + positions] = values
    return logits


def summed_loss(head: Head) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    """Return a function that computes the head's plain loss in fp32, summed over the targets of a batch."""
    return lambda outputs, labels: head.loss(head.logits(outputs).float(), labels)


def predict_logits(
    accelerator: Accelerator,
    model: torch.nn.Module,
    rows: Dataset,
    encoded: Encoded,
    head: Head,
    *,
    max_tokens: int,
    with_loss: bool = False,
    is_shared: bool = True,
    on_batch: Callable[[int], None] = lambda num_items: None,
) -> Iterator[Chunk]:
    """Predict one chunk of rows at a time, so that memory holds only the logits of one chunk.

    Args:
        is_shared: as in `compute_logits`.

    Raises:
        TrainingError: if some logits are non-finite.
    """
    for chunk_rows, chunk in encoded.chunks(MAX_CHUNK_ITEMS):
        logits, loss = compute_logits(
            accelerator,
            model,
            chunk,
            head.logits,
            per_token=head.per_token,
            get_loss=summed_loss(head) if with_loss else None,
            max_tokens=max_tokens,
            is_shared=is_shared,
            on_batch=on_batch,
        )
        check_finite(logits)
        yield rows.select(range(chunk_rows.start, chunk_rows.stop)), chunk, logits, loss
    if is_shared:
        accelerator.wait_for_everyone()  # a process that exits before the others are done breaks their connections


def chunks_with_logits(rows: Dataset, encoded: Encoded, head: Head, logits: np.ndarray) -> Iterator[Chunk]:
    """Yield the chunks of `predict_logits` with logits that it computed earlier; their loss is 0."""
    start = 0
    for chunk_rows, chunk in encoded.chunks(MAX_CHUNK_ITEMS):
        end = start + (len(chunk.input_ids) if head.per_token else len(chunk))
        yield rows.select(range(chunk_rows.start, chunk_rows.stop)), chunk, logits[start:end], 0.0
        start = end


class KeptLogits:
    """The logits of the chunks of a split, kept as the chunks pass by, up to `MAX_KEPT_BYTES`."""

    def __init__(self, chunks: Iterable[Chunk]):
        self._chunks = chunks
        self._parts: list[np.ndarray] | None = []

    def __iter__(self) -> Iterator[Chunk]:
        for chunk in self._chunks:
            if self._parts is not None:
                self._parts.append(chunk[2])
                if sum(part.nbytes for part in self._parts) > MAX_KEPT_BYTES:
                    self._parts = None
            yield chunk

    @property
    def logits(self) -> np.ndarray | None:
        """The logits of all chunks so far; None if there are none, or too many to keep."""
        return np.concatenate(self._parts) if self._parts else None


def check_finite(values: ArrayLike) -> None:
    """Check that logits or scores are finite.

    Raises:
        TrainingError: if some of them are NaN or infinite.
    """
    if not np.isfinite(values).all():
        raise TrainingError(
            "the model's outputs are non-finite: training diverged (lower training.learning_rate), numbers overflowed "
            "(set hardware.precision=fp32), or the saved weights are corrupt"
        )
