"""What a model answers to encoded rows, part by part: logits, before any metric is thought of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import ArrayLike

from bertcli.data.encoding import Encoded
from bertcli.errors import TrainingError
from bertcli.heads.head import Head
from bertcli.training.evaluation import compute_logits

if TYPE_CHECKING:
    from datasets import Dataset

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
