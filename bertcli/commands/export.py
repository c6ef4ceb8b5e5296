"""`bertcli export`: export a trained model to ONNX, for use without PyTorch, and compare its score, size and speed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertcli.console import Console, format_size, format_table
from bertcli.errors import BertcliError, UsageError
from bertcli.files import atomic_folder
from bertcli.inference.latency import measure_latency
from bertcli.inference.onnx_model import OnnxModel
from bertcli.inference.validation_sample import ValidationSample, load_validation_sample
from bertcli.models.from_pretrained import ModelSource
from bertcli.models.onnx_export import check_packages, export_onnx, input_names, load_for_export, random_batch
from bertcli.models.onnx_precision import NUM_BITS, onnx_bytes
from bertcli.models.tokenizer_matching import set_input_names
from bertcli.recipe.schema import HardwareSection
from bertcli.runs.members import best_seed

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

ON_CPU = HardwareSection(device="cpu", precision="fp32")
NUM_TIMED_ROWS = 40
RANDOM_LENGTH = 32  # tokens, of the rows that are timed if there are no validation texts
TIMING_SECONDS = 1.0
MAX_POINTS_LOST = 1.0  # without a warning


def export(
    name: str, output: Path, *, precision: str = "fp32", mirror: Path | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Export the model of a run (the best of several seeds), a model folder or a Hub model to ONNX.

    Writes `model.onnx`, `config.json` and the tokenizer files to the new folder `output`, after checking that the graph
    and the model give the same outputs. Then compares their scores on the validation split, sizes and latencies.

    Args:
        precision: `fp32`, `fp16` or `int8`.

    Raises:
        ModelError: if the architecture cannot be exported, the model lacks weights, its tokenizer is incompatible,
            or the outputs differ.
        UsageError: if `output` exists, or the precision is unknown.
        BertcliError: if a package is not installed.
    """
    console = console or Console()
    if precision not in NUM_BITS:
        raise UsageError(f"found --precision {precision}, expected one of {', '.join(NUM_BITS)}")
    check_packages()
    name = best_seed(name)
    source = ModelSource(name, mirror)
    model, tokenizer = load_for_export(source)
    names = input_names(model, tokenizer)
    console.say(f"model     {name}: {type(model).__name__}, {model.num_parameters():,} parameters")
    with atomic_folder(output) as tmp, console.waiting("exporting to ONNX and comparing the outputs"):
        difference = export_onnx(model, names, tmp / "model.onnx", precision)
        set_input_names(tokenizer, names)
        model.config.save_pretrained(tmp)
        tokenizer.save_pretrained(tmp)
        size = sum(path.stat().st_size for path in tmp.iterdir())
    console.say(f"compared  ONNX Runtime with PyTorch on several batch shapes: largest difference {difference:.1g}")
    console.say(f"exported  {output}, {format_size(size)}")
    comparison = _compare(source, model, names, output / "model.onnx", precision, console)
    console.say(f'next      onnxruntime.InferenceSession("{output / "model.onnx"}")')
    return {
        "output": str(output),
        "model": name,
        "precision": precision,
        "inputs": names,
        "largest_difference": difference,
        "bytes": size,
        **comparison,
    }


def _compare(
    source: ModelSource, model: PreTrainedModel, names: list[str], path: Path, precision: str, console: Console
) -> dict[str, Any]:
    """Print score, size and latency of a model and of its exported graph, and return them as JSON data."""
    sample = _load_sample(source, model, console)
    forms: dict[str, nn.Module] = {"PyTorch fp32": model, f"ONNX {precision}": OnnxModel(path, model)}
    sizes = (4 * model.num_parameters(), onnx_bytes(path))
    if sample is None:
        batches = [random_batch(model, names, 1, RANDOM_LENGTH)]
    else:
        batches = [*sample.batches(names, 1, NUM_TIMED_ROWS)]
    entries: list[dict[str, Any]] = []
    for (form, module), num_bytes in zip(forms.items(), sizes, strict=True):
        with console.waiting(f"scoring and timing {form}"):
            scores = None if sample is None else sample.score(module)
            latency = measure_latency(module, batches, TIMING_SECONDS).median_ms
        entries.append({"form": form, "bytes": num_bytes, "latency_ms": round(latency, 3), "scores": scores})
    metric = None if sample is None else sample.main_metric(entries[0]["scores"])
    num_rows = 0 if sample is None else len(sample.rows)
    console.say(_format_comparison(entries, metric, num_rows))
    if sample is not None and metric is not None:
        _warn_about_score(entries, sample, metric, precision, console)
    return {"metric": metric, "num_rows": num_rows, "comparison": entries}


def _load_sample(source: ModelSource, model: PreTrainedModel, console: Console) -> ValidationSample | None:
    try:
        sample = load_validation_sample(source, model, ON_CPU)
    except BertcliError as error:  # of the data, or a recipe of another version; the model is exported already
        console.warn(f"not scored: {error}")
        return None
    if sample is None:
        console.say(f"score     not computed: {source.name} is not a fine-tuning run, so its task is unknown")
    return sample


def _format_comparison(entries: list[dict[str, Any]], metric: str | None, num_rows: int) -> str:
    header = ["", "MB", "ms for one row", *([] if metric is None else [f"{metric} ({num_rows} rows)"])]
    return format_table(
        header,
        [
            [
                *(entry["form"], f"{entry['bytes'] / 1e6:.1f}", f"{entry['latency_ms']:.2f}"),
                *([] if metric is None else [f"{entry['scores'][metric]:.4f}"]),
            ]
            for entry in entries
        ],
    )


def _warn_about_score(
    entries: list[dict[str, Any]], sample: ValidationSample, metric: str, precision: str, console: Console
) -> None:
    before, after = (entry["scores"][metric] for entry in entries)
    lost = sample.points_lost(metric, before, after)
    if lost > MAX_POINTS_LOST:
        cure = "--precision fp32, or fp16 for a GPU" if precision == "int8" else "--precision fp32"
        console.warn(
            f"{metric} is worse by {lost:.1f} points in {precision}: {after:.4f}, with PyTorch {before:.4f}; export to "
            f"another folder with {cure}"
        )
