"""`bertcli export`: a trained model as ONNX, for programs without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertcli.console import Console, format_size
from bertcli.errors import ModelError
from bertcli.files import made_whole
from bertcli.heads import HEADS
from bertcli.models.from_pretrained import has_trained_head, load_config, load_model, load_tokenizer
from bertcli.models.onnx_export import check_packages, input_names, largest_difference, write_onnx
from bertcli.runs.folder import best_seed

if TYPE_CHECKING:
    from transformers import PretrainedConfig

TOLERANCE = 1e-4  # between the answers of PyTorch and ONNX Runtime
PRETRAINED = ("AutoModelForMaskedLM", "AutoModelForPreTraining")
PLAIN_ENCODER = "AutoModel"


def export(name: str, output: Path, *, mirror: Path | None = None, console: Console | None = None) -> dict[str, Any]:
    """Write the model of a run (of several seeds, the best one's), a model folder or a hub model as ONNX.

    The new folder `output` gets `model.onnx`, `config.json` and the tokenizer's files, once the graph has answered as
    the model does.

    Raises:
        ModelError: its architecture has no graph, or the graph answers otherwise.
        UsageError: `output` exists.
        BertcliError: a package is missing.
    """
    console = console or Console()
    check_packages()
    name = best_seed(name)
    model_class = _model_class(load_config(name, mirror), name)
    model = load_model(name, mirror, model_class, {}).eval()
    tokenizer = load_tokenizer(name, mirror)
    names = input_names(model, tokenizer)
    console.say(f"model     {name}: {type(model).__name__}, {model.num_parameters():,} parameters")
    with made_whole(output) as aside, console.waiting("making the graph and comparing its answers"):
        write_onnx(model, names, aside / "model.onnx")
        difference = largest_difference(model, names, aside / "model.onnx")
        if not difference <= TOLERANCE:
            raise ModelError(f"the graph of {name} answers otherwise than the model, by {difference:.1g}; not exported")
        tokenizer.model_input_names = names
        model.config.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        size = sum(path.stat().st_size for path in aside.iterdir())
    console.say(f"compared  ONNX Runtime with PyTorch, several batches and lengths: {difference:.1g} apart at most")
    console.say(f"made      {output}, {format_size(size)}")
    console.say(f'next      onnxruntime.InferenceSession("{output / "model.onnx"}")')
    return {"output": str(output), "model": name, "inputs": names, "largest_difference": difference, "bytes": size}


def _model_class(config: PretrainedConfig, name: str) -> str:
    """The class of transformers that has what the model was saved with, and nothing fresh.

    Raises:
        ModelError: it was saved with something that is no head of an encoder.
    """
    known = (*(head.model_class for head in HEADS.values()), *PRETRAINED)
    found = next((one for one in known if has_trained_head(config, one)), None)
    architecture = (config.architectures or ["unknown"])[0]
    if found is None and ("For" in architecture or "LMHead" in architecture):
        raise ModelError(
            f"{name} is a {architecture}; encoders are exported, with {', '.join(known)} or without a head"
        )
    return found or PLAIN_ENCODER
