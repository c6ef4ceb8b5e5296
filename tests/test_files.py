"""Manifests notice every change of a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertcli.files import manifest_problem, manifest_update, write_manifest


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
