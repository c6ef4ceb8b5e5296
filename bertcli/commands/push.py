"""`bertcli push`: upload a run's model and model card to the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertcli.console import Console, format_size, format_table
from bertcli.errors import UsageError
from bertcli.files import MANIFEST
from bertcli.hub import check_name, upload
from bertcli.runs.folder import RunFolder
from bertcli.runs.members import best_seed
from bertcli.runs.model_card import MODEL_ARGUMENT

CARD = "README.md"  # the Hub's file name for a model card


def push(
    run: str,
    name: str,
    *,
    license_name: str | None = None,
    languages: Sequence[str] = (),
    private: bool = False,
    dry_run: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Upload the model and model card of a finished run (the best of several seeds) to the Hub repository `name`.

    The card is uploaded as it is in the run folder, with license and languages added to its metadata if given.

    Raises:
        UsageError: if the run is not finished, its model is an adapter (LoRA) for a base model that exists only on this
            machine, or `name` is not a valid repository ID.
        HubError: if you are not logged in, or the Hub rejects the upload.
    """
    console = console or Console()
    check_name(name)
    folder = RunFolder(Path(best_seed(run)))
    if not (folder.results.is_file() and folder.card.is_file() and folder.model.is_dir()):
        raise UsageError(
            f"found no finished run with a model in {run}, expected results.json, README.md and model/ in it; "
            "finish it by re-running the command that started it (for a suite, specify one of its runs)"
        )
    problem = folder.model_problem()
    if problem is not None:
        console.warn(f"{folder.model} has changed since the run saved it: {problem}")
    base_model = _adapter_base_model(folder.model)
    if base_model is not None:
        console.say(f"base      {base_model}: the model is a LoRA adapter and requires this base model")
    files: dict[str, Path | bytes] = {
        path.relative_to(folder.model).as_posix(): path
        for path in sorted(folder.model.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    files[CARD] = _card(folder.card, name, license_name, languages).encode()
    sizes = {
        path: content.stat().st_size if isinstance(content, Path) else len(content) for path, content in files.items()
    }
    console.say(format_table(("file", "size"), [(path, format_size(size)) for path, size in sizes.items()]))
    results = {"run": str(folder.path), "model": name, "files": list(sizes), "bytes": sum(sizes.values())}
    if dry_run:
        console.say(f"dry run: nothing was uploaded to {name}")
        return results | {"dry_run": True}
    url = upload(name, files, private=private, message=f"bertcli push {folder.path.name}")
    console.say(f"uploaded  {url}")
    console.say(
        "next      load it with the code on its card" if base_model else f'next      bertcli predict {name} --text "…"'
    )
    return results | {"address": url}


def _adapter_base_model(model: Path) -> str | None:
    """Return the base model of an adapter; None if the saved model is not an adapter.

    Raises:
        UsageError: if the base model exists only on this machine.
    """
    file = model / "adapter_config.json"
    if not file.is_file():
        return None
    base_model = str(json.loads(file.read_text("utf-8"))["base_model_name_or_path"])
    if Path(base_model).is_absolute() or Path(base_model).exists():
        raise UsageError(
            f"{model} is a LoRA adapter for {base_model}, which exists only on this machine; push a run trained with "
            "training.lora_merge=true, which saves the full model"
        )
    return base_model


def _card(path: Path, name: str, license_name: str | None, languages: Sequence[str]) -> str:
    """Build the card for the Hub, with a code example that loads the model by its repository ID."""
    from huggingface_hub import ModelCard

    card = ModelCard(path.read_text("utf-8"))
    metadata = {"license": license_name, "language": list(languages)}
    for key, value in metadata.items():
        if value:
            setattr(card.data, key, value)
    card.text = card.text.replace(MODEL_ARGUMENT, f'"{name}")')
    return str(card)
