"""`bertcli export`: export a trained model to ONNX, for use without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertcli.console import Console, format_size
from bertcli.errors import ModelError
from bertcli.files import atomic_folder
from bertcli.models.from_pretrained import ModelSource, has_head
from bertcli.models.onnx_export import check_packages, input_names, largest_difference, write_onnx
from bertcli.models.tokenizer_matching import match_tokenizer, set_input_names
from bertcli.runs.folder import best_seed
from bertcli.tasks.task import HEADS, load_class

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MAX_DIFFERENCE = 1e-4  # between the outputs of PyTorch and ONNX Runtime
PRETRAINING_CLASSES = ("AutoModelForMaskedLM", "AutoModelForPreTraining")
HEADLESS_CLASS = "AutoModel"


def export(name: str, output: Path, *, mirror: Path | None = None, console: Console | None = None) -> dict[str, Any]:
    """Export the model of a run (the best of several seeds), a model folder or a Hub model to ONNX.

    Writes `model.onnx`, `config.json` and the tokenizer files to the new folder `output`, after checking that the graph
    and the model give the same outputs.

    Raises:
        ModelError: if the architecture cannot be exported, the model lacks weights, its tokenizer is incompatible,
            or the outputs differ.
        UsageError: if `output` exists.
        BertcliError: if a package is not installed.
    """
    console = console or Console()
    check_packages()
    name = best_seed(name)
    source = ModelSource(name, mirror)
    tokenizer = source.load_tokenizer()
    match_tokenizer(tokenizer, source.config, name)
    fields = {"use_cache": False} if hasattr(source.config, "use_cache") else {}  # of decoders, for generation only
    model = source.load_model(_model_class(source.config, name), fields).eval()
    names = input_names(model, tokenizer)
    console.say(f"model     {name}: {type(model).__name__}, {model.num_parameters():,} parameters")
    with atomic_folder(output) as tmp, console.waiting("exporting to ONNX and comparing the outputs"):
        write_onnx(model, names, tmp / "model.onnx")
        difference = largest_difference(model, names, tmp / "model.onnx")
        if not difference <= MAX_DIFFERENCE:  # also true for NaN
            raise ModelError(
                f"outputs of the ONNX graph of {name} differ from the model's by {difference:.1g}, expected at most "
                f"{MAX_DIFFERENCE:.0e}; nothing was exported"
            )
        set_input_names(tokenizer, names)
        model.config.save_pretrained(tmp)
        tokenizer.save_pretrained(tmp)
        size = sum(path.stat().st_size for path in tmp.iterdir())
    console.say(f"compared  ONNX Runtime with PyTorch on several batch shapes: largest difference {difference:.1g}")
    console.say(f"exported  {output}, {format_size(size)}")
    console.say(f'next      onnxruntime.InferenceSession("{output / "model.onnx"}")')
    return {"output": str(output), "model": name, "inputs": names, "largest_difference": difference, "bytes": size}


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
