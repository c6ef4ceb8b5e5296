"""`bertcli push`: a run's model and its card to the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertcli.console import Console, format_size, format_table
from bertcli.errors import UsageError
from bertcli.hub import check_name, upload
from bertcli.runs.folder import RunFolder, best_seed
from bertcli.runs.model_card import MODEL_HERE

CARD = "README.md"  # as the hub names it


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
    """Send the model and the card of a finished run (of several seeds, the best one) to the hub's model `name`.

    The card goes as it stands in the run folder, with licence and languages, if they are named, in its metadata.

    Raises:
        UsageError: there is no finished run, its model is additions (LoRA) to one that only this machine has, or
            `name` cannot be one on the hub.
        HubError: nobody is logged in, or the hub does not take it.
    """
    console = console or Console()
    check_name(name)
    folder = RunFolder(Path(best_seed(run)))
    if not (folder.results.is_file() and folder.card.is_file() and folder.model.is_dir()):
        raise UsageError(
            f"found no finished run with a model in {run}, expected results.json, README.md and model/ there; "
            "finish it with the command that began it (of a suite, name one of its runs)"
        )
    base = _base_of(folder.model)
    if base is not None:
        console.say(f"base      {base}: what is sent are low-rank additions (LoRA) to it, of no use without it")
    files: dict[str, Path | bytes] = {
        path.relative_to(folder.model).as_posix(): path for path in sorted(folder.model.rglob("*")) if path.is_file()
    }
    files[CARD] = _card(folder.card, name, license_name, languages).encode()
    sizes = {path: one.stat().st_size if isinstance(one, Path) else len(one) for path, one in files.items()}
    console.say(format_table(("file", "size"), [(path, format_size(size)) for path, size in sizes.items()]))
    results = {"run": str(folder.path), "model": name, "files": list(sizes), "bytes": sum(sizes.values())}
    if dry_run:
        console.say(f"dry run: nothing was sent to {name}")
        return results | {"dry_run": True}
    address = upload(name, files, private=private, message=f"bertcli push {folder.path.name}")
    console.say(f"made      {address}")
    console.say("next      the program on its card" if base else f'next      bertcli predict {name} --text "…"')
    return results | {"address": address}


def _base_of(model: Path) -> str | None:
    """The model on the hub that the saved one is additions to; None if it is whole.

    Raises:
        UsageError: only this machine has that model.
    """
    file = model / "adapter_config.json"
    if not file.is_file():
        return None
    base = str(json.loads(file.read_text("utf-8"))["base_model_name_or_path"])
    if Path(base).is_absolute() or Path(base).exists():
        raise UsageError(
            f"{model} holds low-rank additions (LoRA) to {base}, which only this machine has; push a run that was "
            "trained with training.lora_merge=true, which saves the whole model"
        )
    return base


def _card(path: Path, name: str, license_name: str | None, languages: Sequence[str]) -> str:
    """The card for the hub: its program names the model there."""
    from huggingface_hub import ModelCard

    card = ModelCard(path.read_text("utf-8"))
    known = {"license": license_name, "language": list(languages)}
    for key, value in known.items():
        if value:
            setattr(card.data, key, value)
    card.text = card.text.replace(MODEL_HERE, f'"{name}")')
    return str(card)
