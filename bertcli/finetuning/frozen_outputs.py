"""Outputs of a frozen model on encoded rows, computed once by all processes together and cached by content hash."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from bertcli.cache import cache_folder, create_atomically, is_valid_entry
from bertcli.data.encoding import Encoded
from bertcli.inference.forward import compute_logits

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

MAX_CHUNK_ITEMS = 4096  # bounds the outputs held in memory
HIDDEN_STATES = "hidden_states.npy"
NAMES = {"_name_or_path", "id2label", "label2id"}  # in a configuration; they do not change what a model computes


def outputs_key(
    config: PretrainedConfig, weights: Mapping[str, torch.Tensor], encoded: Encoded, *settings: object
) -> str:
    """Return the cache key of a model's outputs: a hash of its configuration and weights, the token IDs and settings.

    The weights alone do not determine the outputs: the numbers of heads, the activation function and much more are only
    in the configuration.
    """
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
    fields = {name: value for name, value in config.to_dict().items() if name not in NAMES}
    digest.update(json.dumps(fields, sort_keys=True, default=str).encode())
    for name, tensor in weights.items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    for values in (encoded.input_ids, encoded.token_type_ids, encoded.offsets):
        if values is not None:
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def create_array(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    """Create a memory-mapped array in a `.npy` file, and allocate its space on disk.

    Raises:
        OSError: if the disk is full. Without the allocation, writing to the array would then kill the process.
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # not supported by the file system
                    raise
    return array


def get_or_compute(
    accelerator: Accelerator,
    kind: str,
    key: str,
    compute: Callable[[Path | None], None],
    warn: Callable[[str], None],
) -> Path:
    """Return the folder `<cache>/<kind>/<key>`; if it is missing or damaged, compute its content first.

    Args:
        compute: called on every process, with the folder to write to, or None on processes that must not write.
        warn: called with a message if the cached folder is damaged.
    """
    folder = cache_folder() / kind / key
    if not all(gather_object([is_valid_entry(folder, warn)])):  # either all processes compute their share, or none
        if accelerator.is_local_main_process:
            create_atomically(folder, compute)
        else:
            compute(None)
    accelerator.wait_for_everyone()
    return folder


def with_frozen_outputs(
    accelerator: Accelerator,
    model: PreTrainedModel,
    encoded: Encoded,
    max_tokens: int,
    on_batch: Callable[[int], None],
    warn: Callable[[str], None],
) -> Encoded:
    """Return the rows with the last hidden states of the model's encoder.

    If the head uses only the first token of a sequence, only that token's states are returned.

    Args:
        max_tokens: maximum tokens per batch on one device, padding included.
        on_batch: called after each batch with its number of sequences.
        warn: called with a message if the cached hidden states are corrupt.
    """
    padding_free: Any = getattr(model, "padding_free", None)
    first_only = padding_free is not None and padding_free.output_tokens == "first"
    # The pooler comes after the encoder and is trained.
    encoder = {name: part for name, part in model.base_model.state_dict().items() if "pooler" not in name}
    settings = type(model).__name__, first_only, accelerator.mixed_precision
    key = outputs_key(model.config, encoder, encoded, *settings)

    def compute(folder: Path | None) -> None:
        path = folder and folder / HIDDEN_STATES
        _compute_hidden_states(accelerator, model, encoded, max_tokens, path, first_only, on_batch)

    folder = get_or_compute(accelerator, "frozen_hidden_states", key, compute, warn)
    return replace(encoded, frozen_hidden_states=np.load(folder / HIDDEN_STATES, mmap_mode="r"))


def _compute_hidden_states(
    accelerator: Accelerator,
    model: PreTrainedModel,
    encoded: Encoded,
    max_tokens: int,
    path: Path | None,
    first_only: bool,
    on_batch: Callable[[int], None],
) -> None:
    """Compute the hidden states chunk by chunk, and write them to `path` unless it is None."""
    sequences = replace(
        encoded,
        num_choices=1,
        rows=np.arange(len(encoded.offsets) - 1),
        labels=None,
        teacher_logits=None,
        teacher_states=None,
    )
    num_vectors = len(sequences) if first_only else len(sequences.input_ids)
    array, start = None, 0
    for _, chunk in sequences.chunks(MAX_CHUNK_ITEMS):
        hidden, _ = compute_logits(
            accelerator,
            model.base_model,
            chunk,
            _first_hidden_state if first_only else _last_hidden_state,
            per_token=not first_only,
            max_tokens=max_tokens,
            on_batch=on_batch,
        )
        if path is None:
            continue
        if array is None:
            array = create_array(path, np.float32, (num_vectors, hidden.shape[1]))
        array[start : start + len(hidden)] = hidden
        start += len(hidden)
    if array is not None:
        array.flush()


def _last_hidden_state(outputs: Any) -> torch.Tensor:
    return outputs.last_hidden_state


def _first_hidden_state(outputs: Any) -> torch.Tensor:
    return outputs.last_hidden_state[:, 0]
