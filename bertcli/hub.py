"""The Hugging Face hub: what it lists, what comes from it and goes to it, and what is said when it does not answer."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from bertcli.errors import HubError, UsageError

Kind = Literal["models", "datasets"]
SINGULAR = {"models": "model", "datasets": "dataset"}
BYTES_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it."""

    path: str
    size: int  # bytes
    sha256: str | None  # of large files
    blob_id: str | None  # of the others: git's SHA-1

    def is_whole(self, path: Path) -> bool:
        """Whether the file at `path` is this one, to the last byte."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        expected = self.sha256 or self.blob_id
        if expected is None:
            return True
        state = hashlib.sha256() if self.sha256 else hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        with path.open("rb") as file:
            while part := file.read(BYTES_AT_ONCE):
                state.update(part)
        return state.hexdigest() == expected


@dataclass(frozen=True)
class Repository:
    """A model or data set on the hub, at one revision."""

    kind: Kind
    name: str
    revision: str
    files: tuple[HubFile, ...]
    card: Mapping[str, Any]  # the metadata of its README


def is_cached(kind: Kind, name: str) -> bool:
    """Whether the Hugging Face cache of this machine has something of a model or data set."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:  # the path of a folder that is not there yet
        return False
    return Path(HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=SINGULAR[kind])).is_dir()


def list_repository(kind: Kind, name: str, revision: str | None = None) -> Repository:
    """What the hub has of a model or data set.

    Raises:
        UsageError: the hub has no such names.
        HubError: there is no such thing, it is not for everybody, or the hub does not answer.
    """
    from huggingface_hub import HfApi

    check_name(name)
    with telling_of_the_hub(f"{SINGULAR[kind]} {name}"):
        ask = HfApi().model_info if kind == "models" else HfApi().dataset_info
        info: Any = ask(name, revision=revision, files_metadata=True)
    files = []
    for file in info.siblings or ():
        if PurePosixPath(file.rfilename).is_absolute() or ".." in PurePosixPath(file.rfilename).parts:
            raise HubError(f"{name} lists the file {file.rfilename!r}, which would not stay in its folder")
        sha256, blob_id = (file.lfs.sha256, None) if file.lfs else (None, file.blob_id)
        files.append(HubFile(file.rfilename, file.size or 0, sha256, blob_id))
    return Repository(kind, name, info.sha, tuple(files), info.card_data.to_dict() if info.card_data else {})


def download(repository: Repository, files: Sequence[HubFile], folder: Path, *, quiet: bool) -> None:
    """Fetch some files of a repository into `folder`; what was broken off there goes on.

    Raises:
        HubError: the hub does not give them.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    had_bars = not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    try:
        with telling_of_the_hub(f"{SINGULAR[repository.kind]} {repository.name}"):
            snapshot_download(
                repository.name,
                repo_type=SINGULAR[repository.kind],
                revision=repository.revision,
                local_dir=folder,
                allow_patterns=[glob.escape(file.path) for file in files],
            )
    finally:
        if quiet and had_bars:
            enable_progress_bars()


def check_name(name: str) -> None:
    """Raise `UsageError` if the hub has no such names."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"found {name!r}, expected a name on the hub: ORGANISATION/NAME") from error


def upload(name: str, files: Mapping[str, Path | bytes], *, private: bool, message: str) -> str:
    """Put files (path on the hub → file, or what it holds) into the model `name`, which is made if it is not there.

    One commit holds them all; what was there stays in the history. The token is the one of `hf auth login`.

    Returns:
        The model's address.

    Raises:
        HubError: nobody is logged in, or the hub does not take it.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if get_token() is None:
        raise HubError("nobody is logged in to the hub: make a token that may write, then `hf auth login`")
    api = HfApi()
    with telling_of_the_hub(f"model {name}"):
        address = api.create_repo(name, private=private or None, exist_ok=True)
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        api.create_commit(name, operations, commit_message=message)
    return str(address)


@contextmanager
def telling_of_the_hub(what: str) -> Iterator[None]:
    """Within the block whatever the hub's library raises becomes a `HubError` about `what`, with the cure."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(
            f"the hub gives {what} to those who accept its terms on its page, then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(f"the hub has no {what}, or it is private: check the name, or `hf auth login`") from error
    except Exception as error:  # the library raises many kinds, from the file system up to HTTP
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HubError(
            f"the hub did not answer as it should for {what} ({reason.rstrip('.')}). See whether this machine has a "
            "network and may do this; the same command goes on."
        ) from error
