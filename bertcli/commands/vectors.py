"""What a fixed encoder makes of encoded rows: computed once, kept on disk, memory-mapped.

<cache>/vectors/<key>/vectors.npy   float32, keyed by the encoder's weights and the tokens
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import Accelerator

from bertcli.commands.computed_once import ITEMS_AT_ONCE, computed_once, key_of
from bertcli.data.encoding import Encoded
from bertcli.training.evaluation import compute_logits

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NAME = "vectors.npy"


def with_vectors(
    accelerator: Accelerator,
    model: PreTrainedModel,
    encoded: Encoded,
    max_tokens: int,
    on_batch: Callable[[int], None],
    warn: Callable[[str], None],
) -> Encoded:
    """The rows with the last hidden states of the encoder of `model`: of each first token if its head reads no other.

    Args:
        max_tokens: padded tokens at once on one device.
        on_batch: told the number of sequences done after each batch.
        warn: told if what the cache holds is damaged, so that it is computed anew.
    """
    reading: Any = getattr(model, "padding_free", None)
    first_only = reading is not None and reading.reading == "first"
    encoder = {name: part for name, part in model.base_model.state_dict().items() if "pooler" not in name}
    # The pooler follows the encoder, and learns.
    key = key_of(encoder, encoded, type(model).__name__, first_only, accelerator.mixed_precision)

    def compute(aside: Path | None) -> None:
        _compute(accelerator, model, encoded, max_tokens, aside and aside / NAME, first_only, on_batch)

    folder = computed_once(accelerator, "vectors", key, compute, warn)
    return replace(encoded, vectors=np.load(folder / NAME, mmap_mode="r"))


def _compute(
    accelerator: Accelerator,
    model: PreTrainedModel,
    encoded: Encoded,
    max_tokens: int,
    path: Path | None,
    first_only: bool,
    on_batch: Callable[[int], None],
) -> None:
    """Write the vectors to `path`, if this process is to, part by part."""
    singles = replace(
        encoded,
        num_choices=1,
        rows=np.arange(len(encoded.offsets) - 1),
        labels=None,
        teacher_logits=None,
        teacher_states=None,
    )
    number = len(singles) if first_only else len(singles.input_ids)
    table, at = None, 0
    for _, part in singles.parts(ITEMS_AT_ONCE):
        vectors, _ = compute_logits(
            accelerator,
            model.base_model,
            part,
            _first_hidden if first_only else _hidden,
            per_token=not first_only,
            max_tokens=max_tokens,
            on_batch=on_batch,
        )
        if path is None:
            continue
        if table is None:
            shape = (number, vectors.shape[1])
            table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        table[at : at + len(vectors)] = vectors
        at += len(vectors)
    if table is not None:
        table.flush()


def _hidden(outputs: Any) -> torch.Tensor:
    return outputs.last_hidden_state


def _first_hidden(outputs: Any) -> torch.Tensor:
    return outputs.last_hidden_state[:, 0]
