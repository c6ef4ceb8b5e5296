"""A model's answers for encoded items: longest first, no gradient, original order restored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from bertcli.training.devices import on_device, width_multiple
from bertcli.training.fsdp import own_share

if TYPE_CHECKING:
    from datasets import Dataset


def compute_logits(
    accelerator: Accelerator,
    model: torch.nn.Module,
    encoded: Encoded,
    logits_of: Callable[[Any], torch.Tensor],
    *,
    per_token: bool = False,
    loss_of: Callable[[Any, torch.Tensor], torch.Tensor] | None = None,
    max_tokens: int,
    on_batch: Callable[[int], None] = lambda num_items: None,
) -> tuple[np.ndarray, float]:
    """Logits of all N items, float32, on the CPU, and their summed loss; each item is computed exactly once.

    Args:
        logits_of: from the model's output to its logits, [B, …] or, if `per_token`, [B, S, …].
        loss_of: from the model's output and the labels to the summed loss of a batch; None (or no labels): 0.
        max_tokens: padded tokens at once on one device.
        on_batch: told the number of items done after each batch.

    Returns:
        logits [N, …], or [T, …] without padding if `per_token`; the loss summed over all items.
    """
    model.eval()
    batches = list(token_budget_batches(encoded.lengths, max(1, max_tokens // encoded.num_choices)))
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    losses: list[torch.Tensor] = []
    ahead: tuple[np.ndarray, torch.Tensor] | None = None  # still at work on the device while the next batch is made

    def fetch() -> None:
        if ahead is not None:
            items, logits = ahead
            parts.append((items, logits.cpu().numpy()))
            on_batch(len(items))

    with torch.inference_mode():
        for items, counts in own_share(batches, accelerator, model):
            batch = encoded.batch(items, width_multiple(accelerator))
            inputs = on_device(batch, model, accelerator.device)
            labels = inputs.pop("labels", None)
            with accelerator.autocast():  # which Accelerate gives the whole module alone, not a part of it
                outputs = model(**inputs)
            if not counts:
                continue
            logits = logits_of(outputs).float()
            if loss_of is not None and labels is not None:
                losses.append(loss_of(outputs, labels))
            if per_token:
                real = batch["attention_mask"].flatten().nonzero()[:, 0]  # asked of the device, it would be waited for
                logits = logits.flatten(0, 1)[real.to(accelerator.device, non_blocking=True)]
            fetch()
            ahead = items, logits
        fetch()
    total = sum(loss.item() for loss in losses)
    return _in_order(encoded, gather_object(parts), per_token), sum(gather_object([total]))


def _in_order(encoded: Encoded, parts: list[tuple[np.ndarray, np.ndarray]], per_token: bool) -> np.ndarray:
    """The logits of all batches at the places of their items (or of their tokens)."""
    size = len(encoded.input_ids) if per_token else len(encoded)
    logits = np.empty((size, *parts[0][1].shape[1:]), dtype=np.float32)
    for items, values in parts:
        if not per_token:
            logits[items] = values
            continue
        lengths = encoded.lengths[items]
        ends = np.cumsum(lengths)
        within = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        logits[np.repeat(encoded.offsets[items], lengths) + within] = values
    return logits


ITEMS_AT_ONCE = 4096  # their logits are what evaluation keeps in memory


def summed_loss(head: Head) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    """The head's loss of a model's output, in fp32, summed over its targets."""
    return lambda outputs, labels: head.loss(head.logits(outputs).float(), labels)


def answer(
    accelerator: Accelerator,
    model: torch.nn.Module,
    rows: Dataset,
    encoded: Encoded,
    head: Head,
    *,
    max_tokens: int,
    with_loss: bool = False,
    on_batch: Callable[[int], None] = lambda num_items: None,
) -> Iterator[tuple[Dataset, Encoded, np.ndarray, float]]:
    """The model's logits for a part of the rows at a time: those rows, their items, the logits, the summed loss.

    Raises:
        TrainingError: the model answers with numbers that are not finite.
    """
    for some, part in encoded.parts(ITEMS_AT_ONCE):
        logits, loss = compute_logits(
            accelerator,
            model,
            part,
            head.logits,
            per_token=head.per_token,
            loss_of=summed_loss(head) if with_loss else None,
            max_tokens=max_tokens,
            on_batch=on_batch,
        )
        check_finite(logits)
        yield rows.select(range(some.start, some.stop)), part, logits, loss


def check_finite(numbers: ArrayLike) -> None:
    """Refuse what a model has answered, or how good that was, if some of it is no finite number.

    Raises:
        TrainingError: some is not.
    """
    if not np.isfinite(numbers).all():
        raise TrainingError("the model answers with numbers that are not finite; its weights are spoilt")
