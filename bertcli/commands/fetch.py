"""`bertcli fetch`: fill a mirror folder with what recipes need, on a machine that has a network."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bertcli.console import Console, format_size, format_table
from bertcli.errors import BertcliError, DataError, HubError, ModelError, UsageError, did_you_mean
from bertcli.files import replace_folder, write_text
from bertcli.hub import HubFile, Kind, Repository, download, list_repository
from bertcli.mirror import AnyRecipe, Need, needs_of
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.runs.folder import nearest_folder

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")


TOKENIZER = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt"),
    *("spiece.model", "spm.model", "sentencepiece.bpe.model", "tokenizer.model"),
)


CARD = "README.md"


DESCRIPTIONS = (CARD, "dataset_infos.json")  # of data sets: what they are made of


NO_DATA = ("*.py", "*.md", ".*", "dataset_infos.json")  # files that a data set without configurations is not made of


CONVERTED = "refs/convert/parquet"  # where the hub keeps Parquet files of data sets that are programs


@dataclass(frozen=True)
class Folder:
    """What belongs in one folder of the mirror."""

    repository: Repository
    files: tuple[HubFile, ...]
    missing: tuple[HubFile, ...]
    card: str | None  # what README.md has to say where the hub has none

    @property
    def place(self) -> str:
        """The folder, seen from the mirror."""
        return f"{self.repository.kind}/{self.repository.name}"


def fetch(
    recipes: Mapping[str, AnyRecipe], mirror: Path, *, dry_run: bool = False, console: Console | None = None
) -> dict[str, Any]:
    """Make `mirror` hold what the recipes (by name) need; what it holds already is checked and left as it is.

    Raises:
        HubError: the hub does not answer, or something did not come whole.
        DataError, ModelError: what the hub has cannot be used.
        UsageError: the mirror holds something else under such a name, or its disk is too small.
    """
    console = console or Console()
    needs = dict.fromkeys(need for recipe in recipes.values() for need in needs_of(recipe))
    with console.waiting("asking the hub what it has, and comparing what is here"):
        folders = _list_folders(needs, mirror)
    missing = sum(file.size for folder in folders for file in folder.missing)
    if not folders:
        console.say("nothing of these recipes comes from the hub")
        return {"mirror": str(mirror), "bytes": 0, "folders": []}
    console.say(format_table(("folder", "files", "size", "to fetch"), [_row(folder) for folder in folders]))
    free = shutil.disk_usage(nearest_folder(mirror)).free
    console.say(f"total     {format_size(missing)} to fetch, {format_size(free)} free for {mirror}")
    if free < missing:
        raise UsageError(f"the disk of {mirror} has too little room; make some, or name another with --mirror")
    results = {
        "mirror": str(mirror),
        "bytes": missing,
        "folders": [
            {
                "folder": folder.place,
                "revision": folder.repository.revision,
                "fetched": [f.path for f in folder.missing],
            }
            for folder in folders
        ],
    }
    if dry_run:
        console.say("dry run: nothing was fetched")
        return results | {"dry_run": True}
    for folder in folders:
        if folder.missing:
            console.say(f"fetching  {folder.place}")
            _fill(folder, mirror, quiet=console.quiet)
    count = sum(len(folder.missing) for folder in folders)
    console.say(f"made      {mirror}: {count} files fetched, {format_size(missing)}; all is there and whole")
    first, recipe = next(iter(recipes.items()))
    verb = "pretrain" if isinstance(recipe, PretrainRecipe) else "finetune"
    console.say(f"next      BERTCLI_MIRROR={shlex.quote(str(mirror))} bertcli {verb} {shlex.quote(first)}")
    return results


def _list_folders(needs: Iterable[Need], mirror: Path) -> list[Folder]:
    """Each repository once, with all that is needed of it; everything wrong is told at once."""
    parts: dict[tuple[Kind, str], list[str | None]] = {}
    for need in needs:
        parts.setdefault((need.kind, need.name), []).append(need.part)
    folders, problems = [], []
    for (kind, name), wanted in parts.items():
        try:
            folders.append(_folder(kind, name, wanted, mirror))
        except (DataError, ModelError, UsageError) as error:
            problems.append(error)
    if problems:
        raise problems[0] if len(problems) == 1 else BertcliError("\n".join(map(str, problems)))
    return folders


def _folder(kind: Kind, name: str, parts: list[str | None], mirror: Path) -> Folder:
    repository = list_repository(kind, name)
    card = None
    if kind == "models":
        files = _model_files(repository, weights="weights" in parts)
    else:
        if f"{name.rpartition('/')[2]}.py" in [file.path for file in repository.files]:
            repository, card = _converted(list_repository(kind, name, CONVERTED))
        files = _data_files(repository, parts)
    there = {file: mirror / kind / name / file.path for file in files}
    whole = {file for file, path in there.items() if file.is_whole(path)}
    other = [str(path) for file, path in there.items() if file not in whole and path.exists()]
    if other:
        raise UsageError(
            f"not what the hub has, and left as it is: {', '.join(other)}. Move it away to have the hub's."
        )
    return Folder(repository, files, tuple(file for file in files if file not in whole), card)


def _model_files(repository: Repository, *, weights: bool) -> tuple[HubFile, ...]:
    """Configuration and tokenizer, and the weights as safetensors.

    Raises:
        ModelError: it has none.
    """
    files = _matching(repository.files, (*TOKENIZER, *(WEIGHTS if weights else ())))
    if weights and not any(file.path.endswith(".safetensors") for file in files):
        raise ModelError(
            f"{repository.name} has no weights as safetensors on the hub, and others are not read here; name a model "
            "that has, or convert it where it can be trusted and name its folder"
        )
    return files


def _data_files(repository: Repository, configs: list[str | None]) -> tuple[HubFile, ...]:
    """The files of some configurations, and the card that tells which they are.

    A configuration comes whole, because it is only read whole. Along with it come those that `datasets` looks at before
    it reads any: the first, to learn what kind of files these are, and those whose files it has to find out.

    Raises:
        DataError: there is no such configuration.
    """
    known = {one["config_name"]: one for one in repository.card.get("configs", ())}
    if not known:
        data = [file for file in repository.files if not any(fnmatch(file.path, pattern) for pattern in NO_DATA)]
        return (*data, *_matching(repository.files, DESCRIPTIONS))
    for config in configs:
        if config is not None and config not in known:
            cure = did_you_mean(config, known)
            raise DataError(f"{repository.name}: found configurations {list(known)}, expected {config!r}.{cure}")
    default = [name for name, one in known.items() if name == "default" or one.get("default")] or list(known)
    wanted = {default[0] if config is None else config for config in configs} | {next(iter(known))}
    wanted |= {name for name, one in known.items() if not one.get("data_files")}
    patterns = [pattern for name in wanted for pattern in _patterns(known[name])]
    return _matching(repository.files, (*patterns, *DESCRIPTIONS))


def _patterns(config: Mapping[str, Any]) -> list[str]:
    """The patterns of a configuration's files; of one that names none, all in its folder."""
    folder = f"{config['data_dir'].strip('/')}/" if config.get("data_dir") else ""
    named = config.get("data_files") or "*"
    listed = [named] if isinstance(named, str) else named
    paths = [one["path"] if isinstance(one, dict) else one for one in listed]
    return [folder + path.removeprefix("./") for one in paths for path in ([one] if isinstance(one, str) else one)]


def _matching(files: Iterable[HubFile], patterns: Iterable[str]) -> tuple[HubFile, ...]:
    patterns = tuple(patterns)
    return tuple(file for file in files if any(fnmatch(file.path, pattern) for pattern in patterns))


def _converted(repository: Repository) -> tuple[Repository, str]:
    """The Parquet files (`config/split/0000.parquet`) of a data set that is a program, with a card that lists them."""
    from huggingface_hub import DatasetCardData

    splits: dict[str, list[dict[str, str]]] = {}
    for file in repository.files:
        if len(names := file.path.split("/")) == 3:
            one = {"split": names[1], "path": f"{names[0]}/{names[1]}/*.parquet"}
            if one not in splits.setdefault(names[0], []):
                splits[names[0]].append(one)
    configs = [{"config_name": name, "data_files": files} for name, files in splits.items()]
    card = f"---\n{DatasetCardData(configs=configs).to_yaml()}\n---\n"
    return Repository(**vars(repository) | {"card": {"configs": configs}}), card


def _fill(folder: Folder, mirror: Path, *, quiet: bool) -> None:
    """Fetch what is missing aside, check it, and only then give the folder its name."""
    target = mirror / folder.place
    aside = target.with_name(f".{target.name}.fetching")
    aside.mkdir(parents=True, exist_ok=True)
    awaited = [file for file in folder.missing if not file.is_whole(aside / file.path)]
    if awaited:
        download(folder.repository, awaited, aside, quiet=quiet)
    damaged = [file for file in awaited if not file.is_whole(aside / file.path)]
    for file in damaged:
        (aside / file.path).unlink(missing_ok=True)
    if damaged:
        names = ", ".join(file.path for file in damaged)
        raise HubError(f"{folder.place}: not as the hub lists it: {names}. The same command fetches it again.")
    wanted = {aside / file.path for file in folder.missing}
    for path in [path for path in aside.rglob("*") if path.is_file() and path not in wanted]:
        path.unlink()  # what the library notes down, and files of an earlier revision
    shutil.rmtree(aside / ".cache", ignore_errors=True)
    if target.is_dir():
        shutil.copytree(target, aside, copy_function=_link, dirs_exist_ok=True)
    if folder.card is not None and not (aside / CARD).exists():
        write_text(aside / CARD, folder.card)
    replace_folder(aside, target)


def _link(source: str, target: str) -> None:
    """The same file under another name; a copy where the disk knows no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _row(folder: Folder) -> tuple[str, str, str, str]:
    sizes = [sum(file.size for file in files) for files in (folder.files, folder.missing)]
    return folder.place, str(len(folder.files)), format_size(sizes[0]), format_size(sizes[1])
