"""A model's scores on an encoded split: used alike between training steps and by `bertcli eval`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator

from bertcli.data.encoding import Encoded
from bertcli.errors import TrainingError
from bertcli.heads.text_classification import TextClassification
from bertcli.metrics import compute_metrics
from bertcli.tasks.task import Task
from bertcli.training.devices import width_multiple
from bertcli.training.evaluation import compute_logits


def score(
    accelerator: Accelerator,
    model: torch.nn.Module,
    encoded: Encoded,
    head: TextClassification,
    task: Task,
    *,
    max_tokens: int,
    on_batch: Callable[[int], None] = lambda num_examples: None,
) -> dict[str, float]:
    """The task's metrics and the mean loss (`loss`) of `model` on labelled examples.

    Raises:
        TrainingError: the model answers with numbers that are not finite.
    """
    assert encoded.labels is not None, "only a labelled split can be scored"
    logits = compute_logits(
        accelerator, model, encoded, max_tokens=max_tokens, multiple_of=width_multiple(accelerator), on_batch=on_batch
    )
    if not np.isfinite(logits).all():
        raise TrainingError("the model answers with numbers that are not finite; its weights are spoilt")
    loss = head.loss(torch.from_numpy(logits), torch.from_numpy(encoded.labels)).item() / len(encoded)
    return compute_metrics(task.metric_names, head.problem, head.decide(logits), encoded.labels) | {"loss": loss}
