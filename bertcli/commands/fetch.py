"""`bertcli fetch`: download the datasets and models that recipes require into a local mirror, for use offline."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bertcli.console import Console, format_size, format_table
from bertcli.errors import BertcliError, DataError, HubError, ModelError, UsageError, did_you_mean
from bertcli.files import file_lock, nearest_folder, replace_folder, write_json, write_text
from bertcli.hub import HubFile, Kind, Repository, download, list_repository
from bertcli.mirror import AnyRecipe, Requirement, requirements
from bertcli.models.pickled_weights import (
    OTHER_FORMATS,
    OTHER_FORMATS_CURE,
    PICKLED,
    PICKLED_INDEX,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    convert_weights,
)
from bertcli.recipe.pretrain_schema import PretrainRecipe

SAFETENSORS_FILES = (SAFETENSORS, SAFETENSORS_INDEX, "model-*-of-*.safetensors")
SHARDED_PICKLE_FILES = (PICKLED_INDEX, "pytorch_model-*-of-*.bin")
TOKENIZER_FILES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt"),
    *("spiece.model", "spm.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
CARD = "README.md"
REVISIONS = "revisions.json"  # in the mirror: the revision of each folder, from which further files are fetched
DATASET_METADATA_FILES = (CARD, "dataset_infos.json")
NON_DATA_FILES = ("*.py", "*.md", ".*", "dataset_infos.json")  # skipped in a dataset without configurations
PARQUET_REVISION = "refs/convert/parquet"  # where the Hub keeps its Parquet conversion of script datasets


@dataclass(frozen=True)
class MirrorFolder:
    """The required files of one repository and those that the mirror lacks."""

    repository: Repository
    files: tuple[HubFile, ...]
    missing: tuple[HubFile, ...]
    card: str | None  # a README.md to write if the repository has none
    revisions: Mapping[str, str]  # to write to `REVISIONS`
    pickled: tuple[HubFile, ...] = ()  # weights to convert to safetensors

    @property
    def path(self) -> str:
        """The folder, relative to the mirror."""
        return f"{self.repository.kind}/{self.repository.name}"


def fetch(
    recipes: Mapping[str, AnyRecipe], mirror: Path, *, dry_run: bool = False, console: Console | None = None
) -> dict[str, Any]:
    """Download what the recipes (by name) require into `mirror`; files that are already there are verified and kept.

    A folder stays at the revision it was first fetched at; delete it to fetch the newest one.

    Raises:
        HubError: if the Hub cannot be reached, or a download is incomplete or corrupt.
        DataError, ModelError: if a repository cannot be used.
        UsageError: if the mirror holds a different file under the same name, or there is not enough disk space.
    """
    console = console or Console()
    unique_requirements = dict.fromkeys(
        requirement for recipe in recipes.values() for requirement in requirements(recipe)
    )
    with console.waiting("listing files on the Hub and verifying the mirror"):
        folders = _list_folders(unique_requirements, mirror)
    missing_bytes = sum(file.size for folder in folders for file in folder.missing)
    needed_bytes = missing_bytes + sum(file.size for folder in folders for file in folder.pickled)
    if not folders:
        console.say("these recipes require nothing from the Hub")
        return {"mirror": str(mirror), "bytes": 0, "folders": []}
    console.say(format_table(("folder", "files", "size", "to fetch"), [_table_row(folder) for folder in folders]))
    free_bytes = shutil.disk_usage(nearest_folder(mirror)).free
    conversion = f" and {format_size(needed_bytes - missing_bytes)} to convert" if needed_bytes > missing_bytes else ""
    sizes = f"{format_size(missing_bytes)} to fetch{conversion}"
    console.say(f"total     {sizes}, {format_size(free_bytes)} free for {mirror}")
    if free_bytes < needed_bytes:
        raise UsageError(f"not enough free disk space for {mirror}; free some, or choose another folder with --mirror")
    results = {
        "mirror": str(mirror),
        "bytes": missing_bytes,
        "folders": [
            {
                "folder": folder.path,
                "revision": folder.repository.revision,
                "fetched": [file.path for file in folder.missing],
            }
            for folder in folders
        ],
    }
    if dry_run:
        console.say("dry run: nothing was fetched")
        return results | {"dry_run": True}
    for folder in folders:
        if folder.missing or folder.pickled:
            console.say(f"fetching  {folder.path}")
            _fetch_folder(folder, mirror, console)
    _write_revisions(folders, mirror)
    num_files = sum(len(folder.missing) for folder in folders)
    console.say(f"mirror    {mirror}: {num_files} files fetched, {format_size(missing_bytes)}; complete and verified")
    first_name, first_recipe = next(iter(recipes.items()))
    verb = "pretrain" if isinstance(first_recipe, PretrainRecipe) else "finetune"
    console.say(f"next      BERTCLI_MIRROR={shlex.quote(str(mirror))} bertcli {verb} {shlex.quote(first_name)}")
    return results


def _list_folders(required: Iterable[Requirement], mirror: Path) -> list[MirrorFolder]:
    """List each repository once, with all of its required files; report all problems together."""
    parts_by_repository: dict[tuple[Kind, str], list[str | None]] = {}
    for requirement in required:
        parts_by_repository.setdefault((requirement.kind, requirement.name), []).append(requirement.part)
    folders, problems = [], []
    for (kind, name), parts in parts_by_repository.items():
        try:
            folders.append(_list_folder(kind, name, parts, mirror))
        except (DataError, ModelError, UsageError) as error:
            problems.append(error)
    if problems:
        raise problems[0] if len(problems) == 1 else BertcliError("\n".join(map(str, problems)))
    return folders


def _list_folder(kind: Kind, name: str, parts: list[str | None], mirror: Path) -> MirrorFolder:
    pinned = _read_revisions(mirror) if (mirror / kind / name).is_dir() else {}
    key = f"{kind}/{name}"
    repository = list_repository(kind, name, pinned.get(key))
    revisions, card = {key: repository.revision}, None
    if kind == "models":
        files = _model_files(repository, weights="weights" in parts)
    else:
        if f"{name.rpartition('/')[2]}.py" in [file.path for file in repository.files]:  # a script dataset
            key = f"{key}@{PARQUET_REVISION}"
            repository, card = _parquet_conversion(list_repository(kind, name, pinned.get(key, PARQUET_REVISION)))
            revisions[key] = repository.revision
        files = _dataset_files(repository, parts)
    local_paths = {file: mirror / kind / name / file.path for file in files}
    complete = {file for file, path in local_paths.items() if file.matches(path)}
    different = [str(path) for file, path in local_paths.items() if file not in complete and path.exists()]
    if kind == "datasets" and different == [str(mirror / kind / name / CARD)] and len(complete) == len(files) - 1:
        files, different = tuple(complete), []  # the local card describes the local files, and none is missing
    if different:
        raise UsageError(
            f"found files that differ from the Hub's, left unchanged: {', '.join(different)}. "
            "Move them away to fetch the Hub's."
        )
    pickled = tuple(file for file in files if file.path.startswith("pytorch_model"))
    if pickled and _is_converted(mirror / kind / name):
        files, pickled = tuple(file for file in files if file not in pickled), ()
    missing = tuple(file for file in files if file not in complete)
    return MirrorFolder(repository, files, missing, card, revisions, pickled)


def _is_converted(folder: Path) -> bool:
    """Return whether a model's weights, pickled on the Hub, are in its mirror folder in safetensors format."""
    return any((folder / file).is_file() for file in (SAFETENSORS, SAFETENSORS_INDEX))


def _read_revisions(mirror: Path) -> dict[str, str]:
    path = mirror / REVISIONS
    if not path.is_file():
        return {}
    try:
        return {str(key): str(revision) for key, revision in json.loads(path.read_text("utf-8")).items()}
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{path} is damaged ({error}); delete it") from error


def _write_revisions(folders: Iterable[MirrorFolder], mirror: Path) -> None:
    with file_lock(mirror / f".{REVISIONS}.lock", lambda owner: None):
        revisions = _read_revisions(mirror)
        for folder in folders:
            revisions |= folder.revisions
        write_json(mirror / REVISIONS, dict(sorted(revisions.items())))


def _model_files(repository: Repository, *, weights: bool) -> tuple[HubFile, ...]:
    """Select the configuration, the tokenizer and optionally the weights, in safetensors format if there are any.

    Raises:
        ModelError: if there are no weights, or only those of another framework.
    """
    files = _matching_files(repository.files, TOKENIZER_FILES)
    if not weights:
        return files
    for patterns in (SAFETENSORS_FILES, (PICKLED,), SHARDED_PICKLE_FILES):
        if weight_files := _matching_files(repository.files, patterns):
            return files + weight_files
    found = ", ".join(
        f"{file.path} ({OTHER_FORMATS[file.path]})" for file in repository.files if file.path in OTHER_FORMATS
    )
    cure = f"has only {found}; {OTHER_FORMATS_CURE}, and pass its path" if found else "has none; choose another model"
    raise ModelError(f"expected {SAFETENSORS} or {PICKLED} in {repository.name} on the Hub, which {cure}")


def _dataset_files(repository: Repository, configs: list[str | None]) -> tuple[HubFile, ...]:
    """Select the files of the given configurations, and the card that lists them.

    All files of a configuration are selected, because `datasets` loads it only as a whole. So are those of the
    configurations that `datasets` inspects first: the first one, to infer the file format, and any without
    `data_files`.

    Raises:
        DataError: if a configuration does not exist.
    """
    available = {config["config_name"]: config for config in repository.card.get("configs", ())}
    if not available:
        data_files = [
            file for file in repository.files if not any(fnmatch(file.path, pattern) for pattern in NON_DATA_FILES)
        ]
        return (*data_files, *_matching_files(repository.files, DATASET_METADATA_FILES))
    for name in configs:
        if name is not None and name not in available:
            suggestion = did_you_mean(name, available)
            raise DataError(
                f"{repository.name}: found configurations {list(available)}, expected {name!r}.{suggestion}"
            )
    defaults = [name for name, config in available.items() if name == "default" or config.get("default")] or list(
        available
    )
    selected = {defaults[0] if name is None else name for name in configs} | {next(iter(available))}
    selected |= {name for name, config in available.items() if not config.get("data_files")}
    patterns = [pattern for name in selected for pattern in _file_patterns(available[name])]
    return _matching_files(repository.files, (*patterns, *DATASET_METADATA_FILES))


def _file_patterns(config: Mapping[str, Any]) -> list[str]:
    """Return the glob patterns of a configuration's files; without `data_files`, all files in its `data_dir`."""
    folder = f"{config['data_dir'].strip('/')}/" if config.get("data_dir") else ""
    data_files = config.get("data_files") or "*"
    entries = [data_files] if isinstance(data_files, str) else data_files
    path_lists = [entry["path"] if isinstance(entry, dict) else entry for entry in entries]
    return [
        folder + path.removeprefix("./")
        for paths in path_lists
        for path in ([paths] if isinstance(paths, str) else paths)
    ]


def _matching_files(files: Iterable[HubFile], patterns: Iterable[str]) -> tuple[HubFile, ...]:
    patterns = tuple(patterns)
    return tuple(file for file in files if any(fnmatch(file.path, pattern) for pattern in patterns))


def _parquet_conversion(repository: Repository) -> tuple[Repository, str]:
    """Return a script dataset's Parquet files (`config/split/0000.parquet`) and a card listing its configurations."""
    from huggingface_hub import DatasetCardData

    data_files: dict[str, list[dict[str, str]]] = {}
    for file in repository.files:
        if len(parts := file.path.split("/")) == 3:
            config, split, _ = parts
            entry = {"split": split, "path": f"{config}/{split}/*.parquet"}
            if entry not in data_files.setdefault(config, []):
                data_files[config].append(entry)
    configs = [{"config_name": config, "data_files": entries} for config, entries in data_files.items()]
    card = f"---\n{DatasetCardData(configs=configs).to_yaml()}\n---\n"
    return Repository(**vars(repository) | {"card": {"configs": configs}}), card


def _fetch_folder(folder: MirrorFolder, mirror: Path, console: Console) -> None:
    """Download the missing files of a folder under a lock, because another process may fetch into the same mirror."""
    target = mirror / folder.path
    target.parent.mkdir(parents=True, exist_ok=True)

    def on_busy(owner: str) -> None:
        console.warn(f"waiting for {owner}, which is fetching {folder.path}")

    with file_lock(target.with_name(f".{target.name}.lock"), on_busy):
        pickled = () if _is_converted(target) else folder.pickled
        required = [file for file in folder.missing if file in pickled or file not in folder.pickled]
        missing = tuple(file for file in required if not file.matches(target / file.path))
        if missing or pickled:
            _download_missing(replace(folder, missing=missing, pickled=pickled), mirror, console)


def _download_missing(folder: MirrorFolder, mirror: Path, console: Console) -> None:
    """Download the missing files to a temporary folder and verify them, then replace the mirror's folder with it.

    Downloaded weights in pickles are replaced with their conversion to safetensors.
    """
    target = mirror / folder.path
    tmp = target.with_name(f".{target.name}.fetching")
    tmp.mkdir(parents=True, exist_ok=True)
    to_download = [file for file in folder.missing if not file.matches(tmp / file.path)]
    if to_download:
        download(folder.repository, to_download, tmp, quiet=console.quiet)
    corrupt = [file for file in to_download if not file.matches(tmp / file.path)]
    for file in corrupt:
        (tmp / file.path).unlink(missing_ok=True)
    if corrupt:
        names = ", ".join(file.path for file in corrupt)
        raise HubError(
            f"{folder.path}: size or checksum differs from the Hub's: {names}. "
            "Re-run the same command to fetch them again."
        )
    expected_paths = {tmp / file.path for file in folder.missing}
    for path in [path for path in tmp.rglob("*") if path.is_file() and path not in expected_paths]:
        path.unlink()  # metadata of huggingface_hub, and files of an earlier revision
    shutil.rmtree(tmp / ".cache", ignore_errors=True)
    if target.is_dir():
        shutil.copytree(target, tmp, copy_function=_link_or_copy, dirs_exist_ok=True)
    if folder.card is not None and not (tmp / CARD).exists():
        write_text(tmp / CARD, folder.card)
    if folder.pickled:
        convert_weights(tmp, tmp)
        names = ", ".join(file.path for file in folder.pickled)
        console.say(f"converted {names} to safetensors: {target}")
        for file in {*folder.pickled} & {*folder.missing}:
            (tmp / file.path).unlink()
    replace_folder(tmp, target)


def _link_or_copy(source: str, target: str) -> None:
    """Create a hard link, or a copy if the file system does not support links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _table_row(folder: MirrorFolder) -> tuple[str, str, str, str]:
    total, missing = (sum(file.size for file in files) for files in (folder.files, folder.missing))
    return folder.path, str(len(folder.files)), format_size(total), format_size(missing)
