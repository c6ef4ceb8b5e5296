"""`bertcli bench`: latency and throughput of a model on this machine's CPU, with PyTorch and with ONNX Runtime."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from bertcli.console import Console, format_table
from bertcli.errors import BertcliError, DataError, UsageError
from bertcli.inference.latency import measure_latency
from bertcli.inference.onnx_model import OnnxModel
from bertcli.inference.validation_sample import load_validation_sample
from bertcli.models.from_pretrained import ModelSource
from bertcli.models.onnx_export import check_packages, input_names, load_for_export, random_batch, write_onnx
from bertcli.models.onnx_precision import convert_onnx
from bertcli.models.tokenizer_matching import max_input_length
from bertcli.recipe.schema import HardwareSection
from bertcli.runs.environment import cpu_name, num_cores
from bertcli.runs.members import best_seed
from bertcli.training.devices import available_threads, cpu_computes_bf16, restore_num_threads

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_SIZES = (1, 8, 32)
NUM_ROWS = 40  # timed per batch size, at least; large batches are fewer, but at least MIN_BATCHES
MIN_BATCHES = 5
DEFAULT_LENGTH = 128  # tokens per made-up text

Batches = dict[int, list[dict[str, torch.Tensor]]]
"""Batches by their number of rows."""


def bench(
    name: str,
    *,
    threads: int | None = None,
    length: int | None = None,
    seconds: float = 2.0,
    mirror: Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Time the model of a run (the best of several seeds), a model folder or a Hub model, and return JSON data.

    The inputs are validation texts of the run's task, or made-up texts if there are none.

    Args:
        threads: number of threads; None: `OMP_NUM_THREADS`, or one per core.
        length: number of tokens per made-up text, which are then used in any case.
        seconds: duration of each measurement.

    Raises:
        ModelError: if the model does not exist, lacks weights, or its tokenizer is incompatible.
        UsageError: if `length` exceeds the model's maximum length.
    """
    console = console or Console()
    name = best_seed(name)
    source = ModelSource(name, mirror)
    model, tokenizer = load_for_export(source)
    names = input_names(model, tokenizer)
    max_length = max_input_length(tokenizer, source.config)
    if length is not None and length > max_length:
        raise UsageError(f"found --length {length}, but {name} supports at most {max_length} tokens")
    hardware = HardwareSection(device="cpu", precision="fp32", threads=threads or "auto")
    with restore_num_threads():
        torch.set_num_threads(available_threads(hardware))
        inputs, batches = _load_batches(
            source, model, names, hardware, length, min(DEFAULT_LENGTH, max_length), console
        )
        machine = f"{cpu_name()}, {torch.get_num_threads()} threads on {num_cores()} cores"
        console.say(f"model     {name}: {type(model).__name__}, {model.num_parameters():,} parameters")
        console.say(f"inputs    {inputs}")
        console.say(f"machine   {machine}")
        if (load := os.getloadavg()[0]) > 0.5 * num_cores():
            console.warn(
                f"the machine is busy (load average {load:.1f}), so these times are longer than on an idle one"
            )
        entries = [*_measure(model, names, batches, seconds, console)]
    return {"model": name, "inputs": inputs, "machine": machine, "results": entries}


def _load_batches(
    source: ModelSource,
    model: PreTrainedModel,
    names: list[str],
    hardware: HardwareSection,
    length: int | None,
    default_length: int,
    console: Console,
) -> tuple[str, Batches]:
    """Return a description of the inputs, and the batches of each size."""
    sizes = {size: max(MIN_BATCHES, NUM_ROWS // size) for size in BATCH_SIZES}
    sample = None
    if length is None:
        try:
            sample = load_validation_sample(source, model, hardware)
        except DataError as error:
            console.warn(f"no validation texts: {error}")
    if sample is not None:
        lengths = sample.encoded.lengths
        inputs = f"validation texts of {sample.task.name}, {lengths.min()} to {lengths.max()} tokens"
        return inputs, {size: [*sample.batches(names, size, number)] for size, number in sizes.items()}
    length = length or default_length
    row = random_batch(model, names, 1, length)
    repeated = {
        size: [{name: values.repeat_interleave(size, 0) for name, values in row.items()}] * number
        for size, number in sizes.items()
    }
    return f"made-up texts of {length} tokens", repeated


def _measure(
    model: PreTrainedModel, names: list[str], batches: Batches, seconds: float, console: Console
) -> Iterator[dict[str, Any]]:
    with TemporaryDirectory() as folder:
        for form, module in _forms(model, names, Path(folder), console):
            for size, part in batches.items():
                with console.waiting(f"timing {form} in batches of {size}"):
                    latency = measure_latency(module, part, seconds)
                yield {
                    "form": form,
                    "batch_size": size,
                    "median_ms": round(latency.median_ms, 3),
                    "p95_ms": round(latency.p95_ms, 3),
                    "rows_per_second": round(latency.rows_per_second, 2),
                }


def _forms(
    model: PreTrainedModel, names: list[str], folder: Path, console: Console
) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield the forms of the model that this machine can run, one at a time, each with a name."""
    yield "PyTorch fp32", model
    if cpu_computes_bf16():
        yield "PyTorch bf16", copy.deepcopy(model).bfloat16()
    try:
        check_packages()
        with console.waiting("exporting to ONNX"):
            write_onnx(model, names, folder / "fp32.onnx")
            convert_onnx(folder / "fp32.onnx", folder / "int8.onnx", "int8")
    except BertcliError as error:
        console.warn(f"only PyTorch was timed: {error}")
        return
    for precision in ("fp32", "int8"):
        yield f"ONNX {precision}", OnnxModel(folder / f"{precision}.onnx", model)


def format_results(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the measurements of `bench` as a table."""
    header = ("", "batch", "ms (median)", "ms (p95)", "rows/s")
    return format_table(
        header,
        [
            (
                entry["form"],
                str(entry["batch_size"]),
                f"{entry['median_ms']:.2f}",
                f"{entry['p95_ms']:.2f}",
                f"{entry['rows_per_second']:.1f}",
            )
            for entry in entries
        ],
    )
