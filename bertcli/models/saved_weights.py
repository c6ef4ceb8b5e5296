"""Check the names, shapes, types and values of saved weights."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bertcli.errors import ModelError, quoted

if TYPE_CHECKING:
    import torch

MAX_SHAPES_LISTED = 3  # in an error message
FLOAT_DTYPES = ("F", "BF")  # prefixes of safetensors' names of floating-point types


def check_names(expected: Sequence[str], missing: set[str], unexpected: Collection[str], path: str) -> None:
    """Check that saved weights have some of the encoder's.

    Args:
        expected: names of the encoder's parameters.
        missing: names of the model's tensors that are not saved.
        unexpected: names of saved tensors that are not in the model.

    Raises:
        ModelError: if they do not, as with the prefix `module.` of a model wrapped by torch.
    """
    if expected and missing.issuperset(expected):
        found = f"found {', '.join(map(quoted, sorted(unexpected)[:2]))}" if unexpected else "found none"
        raise ModelError(
            f"the weights in {path} have no tensor of its encoder: {found}, expected names such as {expected[0]!r}; "
            "restore the file, or rename its tensors"
        )


def check_shapes(
    mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]], path: str, config_name: str = "config.json"
) -> None:
    """Check that every saved tensor has the shape that the model expects.

    Args:
        mismatched: name, saved shape and expected shape of each tensor that does not.
        config_name: the file that determines the expected shapes.

    Raises:
        ModelError: if some do not; the message lists the first few.
    """
    listed = [
        f"{name} has the shape {list(found)}, expected {list(expected)}" for name, found, expected in sorted(mismatched)
    ]
    if listed:
        more = f" and {len(listed) - MAX_SHAPES_LISTED} more" if len(listed) > MAX_SHAPES_LISTED else ""
        raise ModelError(
            f"the weights in {path} do not match its {config_name}: {'; '.join(listed[:MAX_SHAPES_LISTED])}{more}. "
            "Restore its files"
        )


def check_dtypes(folder: Path, parameters: Container[str], prefix: str = "") -> None:
    """Check that saved parameters are floating-point numbers; loading would convert others, such as rounded ones.

    Args:
        folder: the folder of the model; models in the cache are not checked.
        parameters: names of the model's parameters.
        prefix: a prefix to remove from the names of saved tensors.

    Raises:
        ModelError: if a parameter has another type.
    """
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            for name in sorted(weights.keys()):
                dtype = weights.get_slice(name).get_dtype()
                if name.removeprefix(prefix) in parameters and not dtype.startswith(FLOAT_DTYPES):
                    raise ModelError(
                        f"{name} in {file} is saved as {dtype}, expected a floating-point type such as F32; restore "
                        "the file, or save the model again"
                    )


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], path: str, prefix: str = "") -> None:
    """Check that loaded weights are finite.

    Outputs need not show that weights are not: the fused attention of the CPU ignores scores that are NaN.

    Args:
        tensors: name and value of each tensor of the model.
        path: the folder of the model, or its Hub model ID.
        prefix: a prefix that names in the model and in its file may differ by.

    Raises:
        ModelError: if a floating-point tensor has a NaN or an infinity; the message names its file.
    """
    import torch

    for name, tensor in tensors:
        if not tensor.is_floating_point():
            continue
        # A NaN or an infinity makes the sum not finite too. NumPy's takes 5 ms for 22M numbers, torch's check 600 ms.
        with np.errstate(invalid="ignore", over="ignore"):
            is_sum_finite = np.isfinite(tensor.detach().float().cpu().numpy().sum())
        if not is_sum_finite and not torch.isfinite(tensor).all():
            raise ModelError(
                f"{name} in {_file_of(name, Path(path), prefix)} has values that are NaN or infinite, expected finite "
                "numbers; restore the file"
            )


def _file_of(name: str, folder: Path, prefix: str) -> Path:
    """Return the file that has the tensor `name`; if none has it by that name, the folder."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            saved_names = weights.keys()
        if name.removeprefix(prefix) in {saved.removeprefix(prefix) for saved in saved_names}:
            return file
    return folder
