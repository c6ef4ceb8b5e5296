"""A model's answers for a whole split: longest first, no gradient, original order restored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from bertcli.data.encoding import Encoded
from bertcli.data.loaders import token_budget_batches


def compute_logits(
    accelerator: Accelerator,
    model: torch.nn.Module,
    encoded: Encoded,
    *,
    max_tokens: int,
    multiple_of: int = 1,
    on_batch: Callable[[int], None] = lambda num_examples: None,
) -> np.ndarray:
    """Logits [N, C] of all N examples, float32, on the CPU; each example is computed exactly once.

    Args:
        max_tokens: padded tokens at once on one device.
        on_batch: told the number of examples done after each batch.
    """
    model.eval()
    batches = list(token_budget_batches(encoded.lengths, max_tokens))
    own = batches[accelerator.process_index :: accelerator.num_processes]
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    with torch.inference_mode():
        for rows in own:
            inputs = {
                name: tensor.to(accelerator.device, non_blocking=True)
                for name, tensor in encoded.batch(rows, multiple_of).items()
                if name != "labels"
            }
            parts.append((rows, model(**inputs).logits.float().cpu().numpy()))
            on_batch(len(rows))
    if accelerator.num_processes > 1:
        parts = gather_object(parts)
    logits = np.empty((len(encoded), *parts[0][1].shape[1:]), dtype=np.float32)
    for rows, values in parts:
        logits[rows] = values
    return logits
