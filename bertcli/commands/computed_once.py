"""What a fixed model makes of encoded rows: computed by all processes together, kept in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from bertcli.data.cache import cache_folder, is_whole, make_aside
from bertcli.data.encoding import Encoded

if TYPE_CHECKING:
    import torch

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
