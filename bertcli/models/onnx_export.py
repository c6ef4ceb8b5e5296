"""A model as an ONNX graph, and how far its answers are from the model's own.

Shapes: B batch, K choices, S sequence.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.errors import BertcliError, ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
LARGEST_FILE = 2_000_000_000  # bytes an ONNX file can hold; beyond, the weights lie beside it
LONGEST = 512  # tokens to compare answers by
BATCHES = ((1, 2), (1, 13), (3, 7), (5, LONGEST))  # B, S


def check_packages() -> None:
    """Raise `BertcliError` with the cure if what writes and runs ONNX is not installed."""
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BertcliError(f'export needs {error.name}, which is not here: pip install "bertcli[export]"') from error


def input_names(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What the tokenizer gives and the model takes."""
    taken = inspect.signature(model.forward).parameters
    return [name for name in INPUTS if name in tokenizer.model_input_names and name in taken]


def write_onnx(model: PreTrainedModel, names: list[str], path: Path) -> None:
    """Write a model in evaluation mode as an ONNX graph whose batch and length (and choices) are free.

    Raises:
        ModelError: the graph of this architecture cannot be captured.
    """
    import torch

    example = _batch(model, names, 2, 7)
    axes = dict(enumerate(("batch", "choices", "length") if has_choices(model) else ("batch", "length")))
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                (),
                kwargs=example,
                input_names=names,
                output_names=list(model(**example).keys()),
                dynamo=True,
                dynamic_shapes=dict.fromkeys(names, axes),
                verbose=False,
            )
            assert program is not None
            for node in program.model.graph.all_nodes():
                node.metadata_props.clear()  # lines of source files, by their paths on this machine
            program.save(path, external_data=4 * model.num_parameters() > LARGEST_FILE)
    except Exception as error:  # torch raises many kinds
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise ModelError(f"no ONNX graph can be made of {type(model).__name__} ({cause})") from error
    finally:
        logger.setLevel(level)


def largest_difference(model: PreTrainedModel, names: list[str], path: Path) -> float:
    """How far the graph's answers are from the model's at most, on padded batches of several sizes and lengths.

    A number beyond 1 counts relative to its size.
    """
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    largest = 0.0
    for batch in _batches(model, names):
        with torch.inference_mode():
            expected = model(**batch).to_tuple()
        found = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})
        for own, other in zip(expected, found, strict=True):
            differences = np.abs(own.numpy() - other) / np.maximum(1.0, np.abs(own.numpy()))
            largest = max(largest, float(differences.max()))
    return largest


def has_choices(model: PreTrainedModel) -> bool:
    """Whether the model reads several sequences at once and chooses among them."""
    return type(model).__name__.endswith("ForMultipleChoice")


def _batches(model: PreTrainedModel, names: list[str]) -> Iterator[Mapping[str, torch.Tensor]]:
    longest = getattr(model.config, "max_position_embeddings", None) or LONGEST
    for rows, length in BATCHES:
        yield _batch(model, names, rows, min(length, longest - 2))  # RoBERTa counts from 2


def _batch(model: PreTrainedModel, names: list[str], rows: int, length: int) -> dict[str, Any]:
    """Random tokens, the last row half of padding. [B, S] or [B, 3, S]"""
    import torch

    generator = torch.Generator().manual_seed(length)
    shape = (rows, 3, length) if has_choices(model) else (rows, length)
    padding: Any = model.config.pad_token_id or 0
    ids = torch.randint(0, model.config.vocab_size, shape, generator=generator)
    ids[ids == padding] = (padding + 1) % model.config.vocab_size
    mask = torch.ones_like(ids)
    if rows > 1:
        mask[-1, ..., (length + 1) // 2 :] = 0
    segments = torch.zeros_like(ids)
    if getattr(model.config, "type_vocab_size", 1) > 1:
        segments[..., length // 2 :] = 1
    given = {"input_ids": ids.where(mask == 1, padding), "attention_mask": mask, "token_type_ids": segments}
    return {name: given[name] for name in names}
