"""List, download and upload repositories on the Hugging Face Hub; its errors are translated into `HubError`."""

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
REPO_TYPES = {"models": "model", "datasets": "dataset"}
HASH_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class HubFile:
    """A file in a repository, as listed by the Hub."""

    path: str
    size: int  # bytes
    sha256: str | None  # set for LFS files
    blob_id: str | None  # set for other files: git's SHA-1

    def matches(self, path: Path) -> bool:
        """Return whether the local file at `path` has the listed size and checksum."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        expected = self.sha256 or self.blob_id
        if expected is None:
            return True
        digest = hashlib.sha256() if self.sha256 else hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(HASH_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest() == expected


@dataclass(frozen=True)
class Repository:
    """A model or dataset repository on the Hub, at one revision."""

    kind: Kind
    name: str
    revision: str
    files: tuple[HubFile, ...]
    card: Mapping[str, Any]  # the metadata in its README


def is_cached(kind: Kind, name: str) -> bool:
    """Return whether the local Hugging Face cache has an entry for a model or dataset."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:  # the path of a folder that does not exist yet
        return False
    return Path(HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=REPO_TYPES[kind])).is_dir()


def list_repository(kind: Kind, name: str, revision: str | None = None) -> Repository:
    """List the files and metadata of a model or dataset on the Hub.

    Raises:
        UsageError: if `name` is not a valid repository ID.
        HubError: if the repository does not exist or requires authorization, or the Hub is unreachable.
    """
    from huggingface_hub import HfApi

    check_name(name)
    with translate_hub_errors(f"{REPO_TYPES[kind]} {name}"):
        get_info = HfApi().model_info if kind == "models" else HfApi().dataset_info
        info: Any = get_info(name, revision=revision, files_metadata=True)
    files = []
    for file in info.siblings or ():
        if PurePosixPath(file.rfilename).is_absolute() or ".." in PurePosixPath(file.rfilename).parts:
            raise HubError(f"{name} lists the file {file.rfilename!r}, which is outside its folder")
        sha256, blob_id = (file.lfs.sha256, None) if file.lfs else (None, file.blob_id)
        files.append(HubFile(file.rfilename, file.size or 0, sha256, blob_id))
    return Repository(kind, name, info.sha, tuple(files), info.card_data.to_dict() if info.card_data else {})


def download(repository: Repository, files: Sequence[HubFile], folder: Path, *, quiet: bool) -> None:
    """Download files from a repository into `folder`, resuming partial downloads.

    Raises:
        HubError: if the download fails.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    had_progress_bars = not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    try:
        with translate_hub_errors(f"{REPO_TYPES[repository.kind]} {repository.name}"):
            snapshot_download(
                repository.name,
                repo_type=REPO_TYPES[repository.kind],
                revision=repository.revision,
                local_dir=folder,
                allow_patterns=[glob.escape(file.path) for file in files],
            )
    finally:
        if quiet and had_progress_bars:
            enable_progress_bars()


def find_file(name: str, candidates: Sequence[str]) -> Path | None:
    """Return the path of the first of some files that a model has; None if it has none, or the Hub is unreachable.

    Files in the local Hugging Face cache are preferred; otherwise the file is downloaded there.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    for local_files_only in (True, False):
        for file in candidates:
            try:
                return Path(hf_hub_download(name, file, local_files_only=local_files_only))
            except LocalEntryNotFoundError:
                if not local_files_only:  # the Hub is unreachable
                    return None
            except EntryNotFoundError:
                continue
            except (OSError, HFValidationError):  # loading the model reports these
                return None
    return None


def check_name(name: str) -> None:
    """Raise `UsageError` unless `name` is a valid repository ID."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"invalid Hub repository ID {name!r}: expected ORGANIZATION/NAME") from error


def upload(name: str, files: Mapping[str, Path | bytes], *, private: bool, message: str) -> str:
    """Upload files to the model repository `name` in one commit, creating the repository if needed.

    Earlier files stay in the repository's history. The token is `HF_TOKEN` in the environment, or that saved by
    `hf auth login`.

    Args:
        files: path in the repository → local file, or content as bytes.
        message: commit message.

    Returns:
        The URL of the model.

    Raises:
        HubError: if there is no token, or the Hub rejects the upload.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if get_token() is None:
        raise HubError("not logged in to the Hub: create a token with write access, then run `hf auth login`")
    api = HfApi()
    with translate_hub_errors(f"model {name}"):
        url = api.create_repo(name, private=private or None, exist_ok=True)
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        api.create_commit(name, operations, commit_message=message)
    return str(url)


@contextmanager
def translate_hub_errors(subject: str) -> Iterator[None]:
    """Convert exceptions of huggingface_hub into a `HubError` about `subject` that suggests a fix."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(f"{subject} is gated: accept its terms on the Hub, then run `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"{subject} was not found on the Hub, or is private: check the name, or run `hf auth login`"
        ) from error
    except Exception as error:  # huggingface_hub raises many types, from OSError to HTTP errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HubError(
            f"request to the Hub failed for {subject} ({reason.rstrip('.')}). Check network access and permissions, "
            "then re-run the same command to resume."
        ) from error
