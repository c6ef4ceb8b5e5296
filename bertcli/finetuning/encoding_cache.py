"""Encoded rows on disk, cached by content: other grid points, processes and commands need not tokenize them again."""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.cache import cache_folder, get_or_create
from bertcli.data.encoding import Encoded
from bertcli.heads.base import Head
from bertcli.recipe.schema import DataSection
from bertcli.runs.environment import package_versions
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

MIN_ROWS = 20_000  # fewer are encoded in less than a second
FORMAT_VERSION = 2  # increase when rows are encoded differently, to invalidate cached ones
HASHED_ROWS = 10_000  # at once, which bounds the memory
FILE = "encoded.safetensors"


def encode_rows(
    head: Head,
    task: Task,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    data: DataSection,
    warn: Callable[[str], None] = warnings.warn,
) -> Encoded:
    """Encode rows as `Head.encode` does, or read them from the cache; few rows are not cached.

    Args:
        warn: called with a message if the cache is damaged or cannot be used, or if another process is encoding them.
    """
    from safetensors import SafetensorError

    if len(rows) < MIN_ROWS or not tokenizer.is_fast:
        return head.encode(task, rows, tokenizer, data)
    folder = cache_folder() / "encoded" / encoding_key(head, task, rows, tokenizer, data)
    try:
        # The whole file is verified: all of it is read anyway, and a wrong token would be learned in silence.
        get_or_create(
            folder, lambda tmp: _write(head.encode(task, rows, tokenizer, data), tmp / FILE), warn, verify_all=True
        )
        return _read(folder / FILE)
    except (OSError, SafetensorError) as error:  # a full disk, or a cache that another user owns or is emptying
        warn(f"encoded rows are not cached: {error}")
        return head.encode(task, rows, tokenizer, data)


def encoding_key(head: Head, task: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase, data: DataSection) -> str:
    """Return a hash of all that `Head.encode` depends on: its arguments, the head, and the versions of the code."""
    state = hashlib.blake2b(digest_size=16)
    kinds = type(head).__qualname__, type(tokenizer).__name__
    state.update(json.dumps([FORMAT_VERSION, package_versions(), *kinds]).encode())
    state.update(pickle.dumps(vars(head)))
    state.update(task.model_dump_json().encode() + data.model_dump_json().encode())
    state.update(tokenizer.backend_tokenizer.to_str().encode())
    state.update(repr((tokenizer.special_tokens_map, tokenizer.padding_side, tokenizer.model_input_names)).encode())
    state.update(repr(rows.features).encode())  # the names of label IDs
    for batch in rows.iter(HASHED_ROWS):
        state.update(json.dumps(batch, default=str).encode())
    return state.hexdigest()


def _write(encoded: Encoded, path: Path) -> None:
    from safetensors.numpy import save_file

    values = {field.name: getattr(encoded, field.name) for field in fields(Encoded)}
    arrays = {name: np.ascontiguousarray(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    others = {name: value for name, value in values.items() if name not in arrays}
    save_file(arrays, path, {"fields": json.dumps(others)})


def _read(path: Path) -> Encoded:
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        values: dict[str, Any] = json.loads(file.metadata()["fields"])
        values |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    values["row_warnings"] = tuple((row, message) for row, message in values["row_warnings"])
    return Encoded(**values)
