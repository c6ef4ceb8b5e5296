"""Convert the pickled weights of a model (`pytorch_model.bin`) to safetensors.

A pickle can run code while it is loaded. `torch.load(weights_only=True)` refuses all that is not a tensor or a plain
container, and it runs in a child process: a damaged or hostile file can crash or exhaust only that process.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bertcli
from bertcli.cache import cache_folder, get_or_create
from bertcli.console import Console
from bertcli.errors import ModelError, describe_exit, quoted
from bertcli.hub import find_file

if TYPE_CHECKING:
    import torch

SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"  # file names of transformers
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
PICKLED_ADAPTER = "adapter_model.bin"  # of peft
OTHER_FORMATS = {  # file names of weights that cannot be used
    "tf_model.h5": "TensorFlow",
    "tf_model.h5.index.json": "TensorFlow",
    "model.ckpt.index": "TensorFlow 1",
    "flax_model.msgpack": "Flax",
    "flax_model.msgpack.index.json": "Flax",
    "rust_model.ot": "Rust",
}
OTHER_FORMATS_CURE = (
    "convert it with transformers 4, as in AutoModel.from_pretrained(folder, from_tf=True).save_pretrained(folder)"
)
REFUSED = 3  # exit code of the child process if its output is the error message
SAMPLE_CHUNKS, SAMPLE_BYTES = 65, 1 << 16  # hashed of a file; the end of a zip file has the checksums of its tensors
MAX_REASON_CHARS = 200
LFS_POINTER, MAX_POINTER_BYTES = b"version https://git-lfs", 1000
GLOBAL_NAME = re.compile(r"GLOBAL ([\w.]+)")  # in torch's message about a class or function


def pickled_files(folder: Path) -> list[Path]:
    """Return the files of a model's pickled weights; an empty list if it has none.

    Raises:
        ModelError: if the index of sharded weights is corrupt, names a file outside the folder, or a shard is missing.
    """
    if (folder / PICKLED).is_file():
        return [folder / PICKLED]
    if not (folder / PICKLED_INDEX).is_file():
        return []
    files = [folder / name for name in shard_names(folder / PICKLED_INDEX)]
    for file in files:
        if not file.is_file():
            raise ModelError(f"found {PICKLED_INDEX} in {folder}, but not its {file.name}; restore that file")
    return files


def shard_names(index: Path) -> list[str]:
    """Return the file names in the index of sharded weights.

    Raises:
        ModelError: if the index is corrupt, or names a file outside its folder.
    """
    try:
        names = sorted({*json.loads(index.read_text("utf-8"))["weight_map"].values()})
        is_valid = bool(names) and all(Path(name).name == name for name in names)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        is_valid = False
    if not is_valid:
        raise ModelError(f"{index} is corrupt: expected a weight_map with the names of files next to it; restore it")
    return names


def missing_weights_note(folder: Path) -> str:
    """Say which weights a folder without loadable ones should have, or why those it has cannot be loaded."""
    if (folder / PICKLED_ADAPTER).is_file():
        return (
            f"found only {PICKLED_ADAPTER}, a pickled LoRA adapter, expected adapter_model.safetensors; convert it "
            "with peft, as in PeftModel.from_pretrained(base_model, folder).save_pretrained(folder)"
        )
    names = sorted({file.name for file in folder.iterdir()} & {*OTHER_FORMATS})
    found = ", ".join(f"{name} ({OTHER_FORMATS[name]})" for name in names)
    if not found:
        return f"{SAFETENSORS} is missing; restore it"
    return f"found only {found}, expected {SAFETENSORS} or {PICKLED}; {OTHER_FORMATS_CURE}"


def find_weights_on_hub(name: str) -> Path | None:
    """Return the folder in the Hub cache with a model's weights, downloaded if necessary; None if there are none."""
    file = find_file(name, (SAFETENSORS, SAFETENSORS_INDEX, PICKLED, PICKLED_INDEX))
    for shard in shard_names(file) if file is not None and file.name == PICKLED_INDEX else ():
        find_file(name, [shard])
    return None if file is None else file.parent


def cached_conversion(folder: Path, name: str) -> Path:
    """Return a folder in the cache with the pickled weights of a folder in safetensors format; convert them only once.

    Args:
        name: the model's name, for messages.

    Raises:
        ModelError: if the weights cannot be converted.
    """
    files, console = pickled_files(folder), Console()
    converted = cache_folder() / "weights" / content_key(files)

    def convert(target: Path) -> None:
        convert_weights(folder, target)
        console.warn(f"converted {PICKLED} of {name} to safetensors: {converted}")  # a warning, to appear with --quiet

    return get_or_create(converted, convert, console.warn)


def content_key(files: Iterable[Path]) -> str:
    """Return a hash of the sizes and times of change of files, and of a sample of their contents."""
    state = hashlib.blake2b(digest_size=16)
    for path in files:
        status = path.stat()
        state.update(json.dumps([path.name, status.st_size, status.st_mtime_ns]).encode())
        last = max(0, status.st_size - SAMPLE_BYTES)
        with path.open("rb") as file:
            for index in range(SAMPLE_CHUNKS):
                file.seek(last * index // (SAMPLE_CHUNKS - 1))
                state.update(file.read(SAMPLE_BYTES))
    return state.hexdigest()


def convert_weights(source: Path, target: Path) -> None:
    """Convert the pickled weights in the folder `source` to safetensors in the folder `target`, in a child process.

    Raises:
        ModelError: if the files are corrupt, hold more than tensors, or cannot be converted for another reason.
    """
    package = Path(bertcli.__file__).parent.parent
    path = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
    # -P: import no module from the working folder.
    command = [sys.executable, "-P", "-m", __name__, str(source), str(target)]
    child = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, check=False)
    if child.returncode == 0:
        return
    names = ", ".join(file.name for file in pickled_files(source))
    if child.returncode == REFUSED:
        raise ModelError(child.stdout.decode("utf-8", "replace").strip())
    last_line = child.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][:MAX_REASON_CHARS]
    reason = describe_exit(child.returncode) + (f": {last_line}" if last_line and child.returncode > 0 else "")
    raise ModelError(
        f"cannot convert {names} in {source} to safetensors: the process that does it failed ({reason}). If the file "
        "is intact, use a machine with more memory; otherwise restore it"
    )


def _convert(source: Path, target: Path) -> None:
    """Convert the weights in this process; sharded weights keep their shards."""
    files = pickled_files(source)
    weight_map: dict[str, str] = {}
    num_bytes = 0
    for number, file in enumerate(files, start=1):
        tensors = _load_tensors(file)
        is_single = file.name == PICKLED
        name = SAFETENSORS if is_single else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        _save_tensors(tensors, target / name)
        weight_map |= dict.fromkeys(tensors, name)
        num_bytes += sum(tensor.nbytes for tensor in tensors.values())
    if {*weight_map.values()} != {SAFETENSORS}:
        index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
        (target / SAFETENSORS_INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _load_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Load the tensors of a pickle, contiguous and without shared memory, as safetensors requires."""
    import torch

    try:
        # Files of torch before 1.6 are not zip files, which alone can be mapped into memory.
        state: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise _unsafe(file, str(error)) from error
    except Exception as error:  # torch raises many types for a damaged file
        raise ModelError(f"cannot read {file} ({_reason(error)}); it is damaged: restore it") from error
    if not isinstance(state, dict):
        raise ModelError(f"found a {type(state).__name__} in {file}, expected tensors by name; restore the file")
    tensors: dict[str, torch.Tensor] = {}
    addresses: set[int] = set()
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ModelError(
                f"found {type(tensor).__name__} for {quoted(name)} in {file}, expected a tensor; save only the "
                "state_dict() of the model"
            )
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise ModelError(f"{quoted(name)} in {file} is a sparse or quantized tensor, expected a dense one")
        # A tied weight is saved under each of its names, so that a model finds it under whichever it expects.
        tensor, storage = tensor.detach(), tensor.untyped_storage()
        is_shared = storage.data_ptr() in addresses or storage.nbytes() != tensor.nbytes
        tensors[name] = tensor.clone(memory_format=torch.contiguous_format) if is_shared else tensor.contiguous()
        addresses.add(storage.data_ptr())
    return tensors


def _unsafe(file: Path, message: str) -> ModelError:
    """Return the error for a pickle that `torch.load(weights_only=True)` refuses with a message."""
    if file.stat().st_size < MAX_POINTER_BYTES and file.read_bytes().startswith(LFS_POINTER):
        return ModelError(f"{file} is a pointer of Git LFS, not the weights; download them with `git lfs pull`")
    cure = (
        "use a copy of the model in safetensors format; if you trust this file, save the tensors of "
        f"torch.load(…, weights_only=False) with safetensors.torch.save_file as {SAFETENSORS}"
    )
    if found := GLOBAL_NAME.search(message):
        return ModelError(f"refused to load {file}: it uses {found[1]}, and could run any code; {cure}")
    reason = message.rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0][:MAX_REASON_CHARS]
    return ModelError(
        f"refused to load {file}: it is damaged or has more than tensors ({reason}), and could run any code; restore "
        f"it, or {cure}"
    )


def _save_tensors(tensors: dict[str, torch.Tensor], file: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"cannot write {file} ({_reason(error)}); free some disk space, or set BERTCLI_CACHE to another folder"
        ) from error


def _reason(error: Exception) -> str:
    """Return the type of a library's error and the first line of its message, truncated."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:MAX_REASON_CHARS].rstrip('.')}"


def _main(source: Path, target: Path) -> int:
    try:
        _convert(source, target)
    except ModelError as error:
        sys.stdout.write(str(error))
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(_main(*map(Path, sys.argv[1:])))
