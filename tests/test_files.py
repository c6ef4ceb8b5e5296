"""Manifests notice every change of a folder."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from bertcli.cache import get_or_create
from bertcli.files import atomic_folder, manifest_problem, manifest_update, write_manifest, write_text


@pytest.fixture
def folder() -> Path:
    """A folder of two files, one of them in a subfolder, with a manifest."""
    folder = Path("folder")
    (folder / "inner").mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    (folder / "inner/b.txt").write_text("b")
    write_manifest(folder)
    return folder


@pytest.mark.parametrize("name", ["a.txt", "inner/b.txt"])
def test_manifest_covers_subfolders(folder: Path, name: str) -> None:
    assert manifest_problem(folder) is None
    (folder / name).write_text("c")
    assert manifest_problem(folder) == f"the hash of {name} does not match"
    write_manifest(folder)
    assert manifest_problem(folder) is None
    (folder / name).unlink()
    assert manifest_problem(folder) is not None


def test_manifest_matches_at_every_moment_of_an_update(folder: Path) -> None:
    with manifest_update(folder, "a.txt"):
        assert manifest_problem(folder) is None
        (folder / "a.txt").write_text("c")
        assert manifest_problem(folder) is None
    assert manifest_problem(folder) is None
    (folder / "a.txt").write_text("d")
    assert manifest_problem(folder) is not None


def test_folder_without_a_manifest_gets_none_from_an_update(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    with manifest_update(folder, "a.txt"):
        (folder / "a.txt").write_text("c")
    assert not (folder / "manifest.json").exists()


@pytest.mark.parametrize(("umask", "of_files", "of_folders"), [(0o002, 0o664, 0o775), (0o077, 0o600, 0o700)])
def test_umask_sets_the_permissions_of_what_is_written_atomically(umask: int, of_files: int, of_folders: int) -> None:
    previous = os.umask(umask)
    try:
        write_text(Path("text"), "a")
        with atomic_folder(Path("exported")) as tmp:
            (tmp / "inner").touch()
            (tmp / "weights").touch(0o600)  # as safetensors does
            write_manifest(tmp)
        get_or_create(Path("cache/entry"), lambda folder: (folder / "inner").touch(), pytest.fail)
    finally:
        os.umask(previous)
    paths = [
        Path(name) for name in ("text", "exported", "exported/inner", "exported/weights", "exported/manifest.json")
    ]
    paths += [Path(name) for name in ("cache", "cache/entry", "cache/entry/inner")]
    modes = {str(path): path.stat().st_mode & 0o777 for path in paths}
    assert modes == {str(path): of_folders if path.is_dir() else of_files for path in paths}


def test_manifest_and_all_that_it_lists_are_flushed_to_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    write_manifest(folder)
    names = ("a.txt", "inner", "inner/b.txt", "manifest.json", "")
    assert sorted(flushed) == sorted((folder / name).resolve() for name in names)
    assert flushed[-2:] == [(folder / "manifest.json").resolve(), folder.resolve()]


def test_manifest_is_not_written_if_a_file_cannot_be_flushed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "manifest.json").read_text()
    (folder / "a.txt").write_text("c")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_manifest(folder)
    assert (folder / "manifest.json").read_text() == before
