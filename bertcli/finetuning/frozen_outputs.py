"""What a fixed model makes of encoded rows: computed by all processes together, kept in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from bertcli.data.cache import cache_folder, is_whole, make_aside
from bertcli.data.encoding import Encoded
from bertcli.inference.forward import compute_logits

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ITEMS_AT_ONCE = 4096  # what is made of them is in memory at once


def key_of(weights: Mapping[str, torch.Tensor], encoded: Encoded, *facts: object) -> str:
    """A name for what these weights make of these tokens: the same if, and only if, both and the facts are."""
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=16)
    for name, tensor in weights.items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    for values in (encoded.input_ids, encoded.token_type_ids, encoded.offsets):
        if values is not None:
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def computed_once(
    accelerator: Accelerator,
    kind: str,
    key: str,
    compute: Callable[[Path | None], None],
    warn: Callable[[str], None],
) -> Path:
    """The folder `<cache>/<kind>/<key>`; if it is not there, or damaged, `compute` fills it first.

    Args:
        compute: called on every process, with a folder to write to, or None where another process of the machine does.
        warn: told if what the cache holds is damaged, so that it is computed anew.
    """
    folder = cache_folder() / kind / key
    if not all(gather_object([is_whole(folder, warn)])):  # all compute their share, or none does
        if accelerator.is_local_main_process:
            make_aside(folder, compute)
        else:
            compute(None)
    accelerator.wait_for_everyone()
    return folder


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
