"""Export a model as an ONNX graph, and compare the graph's outputs with the model's.

Shapes: B batch, K choices, S sequence.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.errors import BertcliError, ModelError
from bertcli.models.from_pretrained import ModelSource, has_head
from bertcli.models.onnx_precision import MAX_ONNX_BYTES, convert_onnx
from bertcli.models.tokenizer_matching import match_tokenizer, max_positions
from bertcli.tasks.task import HEADS, load_class

if TYPE_CHECKING:
    import torch
    from onnxruntime import InferenceSession
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
PRETRAINING_CLASSES = ("AutoModelForMaskedLM", "AutoModelForPreTraining")
HEADLESS_CLASS = "AutoModel"
MAX_DIFFERENCES = {  # between the outputs of PyTorch and ONNX Runtime, by precision
    "fp32": 1e-4,
    "fp16": 0.05,
    "int8": 0.5,  # of wrong graphs, 1 or more; only a score says how much quantization errors matter
}
MAX_LENGTH = 512  # tokens, in the comparison
BATCH_SHAPES = ((1, 2), (1, 13), (3, 7), (5, MAX_LENGTH))  # (B, S), in the comparison


def check_packages() -> None:
    """Check that the packages that write and run ONNX are installed.

    Raises:
        BertcliError: if a package is missing; the message says how to install it.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BertcliError(f'ONNX needs {error.name}, which is not installed: pip install "bertcli[export]"') from error


def load_for_export(source: ModelSource) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model as it was saved, with or without a head, in evaluation mode, and its tokenizer.

    Raises:
        ModelError: if the architecture cannot be exported, the model lacks weights, or its tokenizer is incompatible.
    """
    tokenizer = source.load_tokenizer()
    match_tokenizer(tokenizer, source.config, source.name)
    fields = {"use_cache": False} if hasattr(source.config, "use_cache") else {}  # of decoders, for generation only
    return source.load_model(_model_class(source.config, source.name), fields).eval(), tokenizer


def _model_class(config: PretrainedConfig, name: str) -> str:
    """Return the transformers class whose weights were all saved with the model, so that none is newly initialized.

    Raises:
        ModelError: if the model has a head that cannot be exported.
    """
    supported = (*(load_class(HEADS, head).model_class for head in HEADS), *PRETRAINING_CLASSES)
    model_class = next((candidate for candidate in supported if has_head(config, candidate)), None)
    architecture = (config.architectures or ["unknown"])[0]
    if model_class is None and ("For" in architecture or "LMHead" in architecture):
        raise ModelError(
            f"{name} is a {architecture}, expected an encoder without a head or with one of {', '.join(supported)}"
        )
    return model_class or HEADLESS_CLASS


def input_names(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the names of the inputs that the tokenizer produces and the model accepts."""
    parameters = inspect.signature(model.forward).parameters
    return [name for name in INPUTS if name in tokenizer.model_input_names and name in parameters]


def export_onnx(model: PreTrainedModel, names: list[str], path: Path, precision: str) -> float:
    """Export a model as an ONNX graph in a precision, and check that the model and the graph give the same outputs.

    Args:
        names: of the inputs, from `input_names`.
        precision: `fp32`, `fp16` or `int8`.

    Returns:
        The largest difference between the outputs, as `largest_difference` defines it.

    Raises:
        ModelError: if this architecture cannot be exported, or the outputs differ.
    """
    with TemporaryDirectory(dir=path.parent) as folder:
        graph = Path(folder, path.name)
        write_onnx(model, names, graph)
        difference = _check_outputs(model, names, graph, "fp32")
        if precision == "fp32":
            for file in [*graph.parent.iterdir()]:  # the weights of a large model are in a file of their own
                file.rename(path.with_name(file.name))
        else:
            convert_onnx(graph, path, precision)
            difference = _check_outputs(model, names, path, precision)
    return difference


def _check_outputs(model: PreTrainedModel, names: list[str], path: Path, precision: str) -> float:
    difference = largest_difference(model, names, path, precision)
    if not difference <= MAX_DIFFERENCES[precision]:  # also true for NaN
        cure = "" if precision == "fp32" else "; export it with --precision fp32"
        raise ModelError(
            f"outputs of the {precision} ONNX graph differ from the model's by {difference:.1g}, expected at most "
            f"{MAX_DIFFERENCES[precision]:g}{cure}"
        )
    return difference


def write_onnx(model: PreTrainedModel, names: list[str], path: Path) -> None:
    """Export a model in evaluation mode as an ONNX graph with dynamic batch size and length (and number of choices).

    Raises:
        ModelError: if this architecture cannot be exported.
    """
    import torch

    example = random_batch(model, names, 2, 7)
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
                node.metadata_props.clear()  # source locations, which contain paths on this machine
            program.save(path, external_data=4 * model.num_parameters() > MAX_ONNX_BYTES)
    except Exception as error:  # torch raises many types
        cause = str(error.__cause__ or error).strip().splitlines()[0].rstrip(":.")
        raise ModelError(f"cannot export {type(model).__name__} to ONNX ({cause})") from error
    finally:
        logger.setLevel(level)


def largest_difference(model: PreTrainedModel, names: list[str], path: Path, precision: str = "fp32") -> float:
    """Return the largest difference between the graph's outputs and the model's, on padded batches of several shapes.

    The difference is absolute for outputs up to 1 and relative for larger ones. In int8, where the errors of a few
    outputs are large even if predictions stay the same, it is the root mean square over the outputs of a batch.
    """
    import torch

    session = load_session(path)
    largest = 0.0
    for batch in _batches(model, names):
        with torch.inference_mode():
            expected = model(**batch).to_tuple()
        outputs = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})
        for reference, output in zip(expected, outputs, strict=True):
            difference = np.abs(reference.numpy() - output)
            if precision == "int8":
                relative = _root_mean_square(difference) / max(1.0, _root_mean_square(reference.numpy()))
            else:
                relative = (difference / np.maximum(1.0, np.abs(reference.numpy()))).max()
            largest = float(np.maximum(largest, relative))  # unlike max, keeps NaN
    return largest


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean()))


def load_session(path: Path, num_threads: int = 0) -> InferenceSession:
    """Load a graph for the CPU.

    Args:
        num_threads: number of threads; 0: ONNX Runtime's default, one per core.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3  # errors only: it warns of fp16 constants that it cannot fold on a CPU
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def has_choices(model: PreTrainedModel) -> bool:
    """Return whether this is a multiple-choice model, with inputs [B, K, S]."""
    return type(model).__name__.endswith("ForMultipleChoice")


def _batches(model: PreTrainedModel, names: list[str]) -> Iterator[Mapping[str, torch.Tensor]]:
    num_positions = max_positions(model.config) or MAX_LENGTH
    for rows, length in BATCH_SHAPES:
        yield random_batch(model, names, rows, min(length, num_positions))


def random_batch(model: PreTrainedModel, names: list[str], rows: int, length: int) -> dict[str, Any]:
    """Return random tokens [B, S] or [B, 3, S]; half of the last row is padding."""
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
    inputs = {"input_ids": ids.where(mask == 1, padding), "attention_mask": mask, "token_type_ids": segments}
    return {name: inputs[name] for name in names}
